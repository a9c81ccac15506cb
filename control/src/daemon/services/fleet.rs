//! `tombolo.control.Fleet`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::time::Instant;
use tombolo_rpc::{Blob, Ctx, Receiver, Sender};

use super::Session;
use crate::api::fleet::Fleet;
use crate::api::{Condition, ControlError, CreateRequest, InstanceDetail, InstanceView, Role};
use crate::core::State;
use crate::daemon::instance::Command;
use crate::spawner::multikernel;

/// Longest piece of a console log that is sent at once, in bytes: well below the longest message of a link.
const CONSOLE_TAIL_MAX: u64 = 4 << 20;
/// How long a kill before a removal may take.
const KILL_MAX: Duration = Duration::from_secs(15);

impl Fleet for Session {
    async fn list(&self, _cx: &Ctx) -> Result<Vec<InstanceView>, ControlError> {
        Ok(self.registry.views())
    }

    async fn inspect(&self, _cx: &Ctx, name: String) -> Result<InstanceDetail, ControlError> {
        let mut detail = self.find(&name)?.mailbox.inspect(&name).await?;
        if self.caller.role < Role::Operator {
            // A program's variables are often secrets.
            detail.spec_json = "{}".to_owned();
        }
        Ok(detail)
    }

    async fn create(&self, _cx: &Ctx, request: CreateRequest) -> Result<InstanceView, ControlError> {
        self.require(Role::Operator, "create")?;
        let name = request.name.clone();
        let outcome = match self.refuse_at_the_end("create", &name) {
            Ok(()) => self.registry.create(request).await,
            Err(error) => Err(error),
        };
        self.audit("create", Some(&name), &outcome).await;
        outcome
    }

    async fn start(&self, _cx: &Ctx, name: String) -> Result<InstanceView, ControlError> {
        self.change("start", &name, Command::Start).await
    }

    async fn stop(
        &self,
        _cx: &Ctx,
        name: String,
        grace_ms: Option<u64>,
    ) -> Result<InstanceView, ControlError> {
        self.change("stop", &name, Command::Stop(grace_ms.map(Duration::from_millis))).await
    }

    async fn restart(
        &self,
        _cx: &Ctx,
        name: String,
        grace_ms: Option<u64>,
    ) -> Result<InstanceView, ControlError> {
        self.change("restart", &name, Command::Restart(grace_ms.map(Duration::from_millis))).await
    }

    async fn kill(&self, _cx: &Ctx, name: String) -> Result<InstanceView, ControlError> {
        self.change("kill", &name, Command::Kill).await
    }

    async fn remove(&self, cx: &Ctx, name: String, force: bool) -> Result<(), ControlError> {
        self.require(Role::Operator, "remove")?;
        let removal = async {
            let handle = self.find(&name)?;
            if force {
                // Whatever it is doing: a restart that is pending is called off by this, too.
                handle.mailbox.command(&name, Command::Kill).await?;
                self.wait(cx, name.clone(), Condition::Stopped, KILL_MAX.as_millis() as u64).await?;
            }
            self.registry.remove(&name).await
        };
        let outcome = removal.await;
        self.audit("remove", Some(&name), &outcome).await;
        outcome
    }

    async fn wait(
        &self,
        _cx: &Ctx,
        name: String,
        condition: Condition,
        timeout_ms: u64,
    ) -> Result<InstanceView, ControlError> {
        let handle = match self.find(&name) {
            Err(ControlError::NotFound { .. }) if condition == Condition::Gone => return Ok(absent(name)),
            other => other?,
        };
        let mut face = handle.face.clone();
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        loop {
            let view = face.borrow_and_update().view.clone();
            if view.satisfies(condition) {
                return Ok(view);
            }
            if view.rules_out(condition) {
                return Err(ControlError::Failed {
                    attempt: format!("wait until `{name}` is {condition}"),
                    reason: match &view.last_error {
                        Some(error) => format!("it is {}, and nobody starts it: {error}", view.state),
                        None => format!("it is {}, and nobody starts it", view.state),
                    },
                });
            }
            match tokio::time::timeout_at(deadline, face.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) if condition == Condition::Gone => return Ok(view),
                Ok(Err(_)) => return Err(ControlError::no_instance(name)),
                Err(_) => {
                    return Err(ControlError::TimedOut {
                        what: format!(
                            "`{name}` becoming {condition} (it is {}, {})",
                            view.state, view.health
                        ),
                        waited_ms: timeout_ms,
                    });
                }
            }
        }
    }

    async fn freeze(&self, _cx: &Ctx, name: String, frozen: bool) -> Result<InstanceView, ControlError> {
        self.change(if frozen { "freeze" } else { "thaw" }, &name, Command::Freeze(frozen)).await
    }

    async fn crash(&self, _cx: &Ctx, name: String) -> Result<InstanceView, ControlError> {
        self.change("crash", &name, Command::Crash).await
    }

    async fn console(
        &self,
        _cx: &Ctx,
        name: String,
        mut input: Receiver<Blob>,
        out: Sender<Blob>,
    ) -> Result<(), ControlError> {
        self.require(Role::Operator, "console")?;
        let kernel = self.find(&name)?.face.borrow().kernel.clone();
        let Some(kernel) = kernel else {
            return Err(ControlError::Conflict {
                verb: "attach to the console of".into(),
                name,
                reason: "it has no kernel".into(),
            });
        };
        let failed = |error: &dyn std::error::Error| {
            ControlError::failed(format!("attach to the console of `{name}`"), super::super::chain(error))
        };
        let socket = kernel.console().await.map_err(|error| failed(&error))?;
        socket.set_nonblocking(true).map_err(|error| failed(&error))?;
        let (mut from, mut to) =
            tokio::net::UnixStream::from_std(socket).map_err(|error| failed(&error))?.into_split();
        // The first item says that the console is attached, and perhaps why nothing will be seen.
        let lent = multikernel::console_lent(kernel.runtime_dir()).map(|left| {
            format!(
                "the console of `{name}` is lent to other programs for another {} s: nothing is seen here until then (`tombolo console {name} --take-back`)\r\n",
                left.as_secs() + 1
            )
        });
        if out.send(Blob(lent.unwrap_or_default().into())).await.is_err() {
            return Ok(());
        }
        let inward = async {
            while let Ok(Some(bytes)) = input.recv().await {
                if to.write_all(&bytes.0).await.is_err() {
                    break;
                }
            }
        };
        let outward = async {
            let mut chunk = vec![0; 16 * 1024];
            while let Ok(read @ 1..) = from.read(&mut chunk).await {
                if out.send(Blob(chunk[..read].to_vec().into())).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! { () = inward => {}, () = outward => {} }
        Ok(())
    }

    async fn console_log(&self, _cx: &Ctx, name: String, tail_bytes: u64) -> Result<Blob, ControlError> {
        self.find(&name)?;
        let name = name.parse().map_err(|_| ControlError::no_instance(&name))?;
        let path = self.shared.places.instance(&name).join(crate::keeper::names::CONSOLE);
        let reading = async {
            let mut file = tokio::fs::File::open(&path).await?;
            let len = file.metadata().await?.len();
            let from = len.saturating_sub(tail_bytes.min(CONSOLE_TAIL_MAX));
            file.seek(std::io::SeekFrom::Start(from)).await?;
            let mut bytes = Vec::new();
            file.take(CONSOLE_TAIL_MAX).read_to_end(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        };
        match reading.await {
            Ok(bytes) => Ok(Blob(bytes.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Blob::default()),
            Err(error) => Err(ControlError::failed(format!("read {}", path.display()), error)),
        }
    }
}

impl Session {
    /// A daemon that stops everything must not be overtaken by a start.
    fn refuse_at_the_end(&self, verb: &str, name: &str) -> Result<(), ControlError> {
        if !self.shared.is_ending.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = "the daemon is about to end; start another, then try again".into();
        Err(ControlError::Conflict { verb: verb.to_owned(), name: name.to_owned(), reason })
    }

    async fn change(&self, verb: &str, name: &str, command: Command) -> Result<InstanceView, ControlError> {
        self.require(Role::Operator, verb)?;
        let may_start = match command {
            Command::Start | Command::Restart(_) => self.refuse_at_the_end(verb, name),
            _ => Ok(()),
        };
        let outcome = match may_start.and_then(|()| self.find(name)) {
            Ok(handle) => handle.mailbox.command(name, command).await,
            Err(error) => Err(error),
        };
        self.audit(verb, Some(name), &outcome).await;
        outcome
    }
}

/// What is said of an instance that there is none of, to someone who waited for that.
fn absent(name: String) -> InstanceView {
    InstanceView {
        name,
        cid: 0,
        member: 0,
        state: State::Stopped,
        desired: crate::core::Desired::Stopped,
        health: crate::core::health::Verdict::Absent,
        layer: None,
        health_reason: None,
        link: None,
        spawner: None,
        taken_over: None,
        pid: None,
        incarnation: None,
        boot_id: None,
        kernel: None,
        generation: 0,
        up_since_unix_ns: None,
        boots: 0,
        restarts: 0,
        memory_mib: 0,
        last_end: None,
        last_end_unix_ns: None,
        last_error: None,
    }
}
