//! What the lifecycle decides, done. Each effect is idempotent and bounded in time.

use std::error::Error;
use std::time::Duration;

use tokio::time::Instant;
use tombolo_agent::config::{AgentConfig, Hex, Secret};
use tombolo_transport::pool::{Member, Phase};
use tombolo_transport::{Cid, Incarnation};

use super::Instance;
use super::kernel_probe::KernelProbe;
use super::message::Message;
use super::watch::Confirmation;
use crate::core::cpus::StuckCpus;
use crate::core::health::Monitor;
use crate::core::lifecycle::{Effect, End, Input};
use crate::core::policy::to_broker_policy;
use crate::core::{EventKind, State};
use crate::daemon::shared::Credential;
use crate::keeper::{Exit, ExitHow};
use crate::spawner::{FileContent, InitrdFile, Kernel, KernelSpec, PoolFile, SpawnError};
use crate::store::{Batch, LastEnd};
use crate::time::unix_ns;

/// How long a keeper may take to answer. It is a small process of this host that does nothing else.
pub(super) const KEEPER_MAX: Duration = Duration::from_secs(5);
/// How long starting a kernel may take: writing its initial archive, starting its keeper.
const SPAWN_MAX: Duration = Duration::from_secs(60);
/// How long killing may take, its helpers included.
pub(super) const KILL_MAX: Duration = Duration::from_secs(10);
/// How often it is tried: for five minutes and more, as a process may hang in a system call that long.
const KILL_TRIES: u32 = 20;

impl Instance {
    pub(super) async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Reserve => match self.reserve().await {
                Ok(()) => self.inputs.push_back(Input::Reserved),
                Err(reason) => self.step_failed("reserve", reason).await,
            },
            Effect::Load => match self.load().await {
                Ok(()) => self.inputs.push_back(Input::Loaded),
                Err(reason) => self.step_failed("load", reason).await,
            },
            Effect::Spawn => self.spawn().await,
            Effect::Drain(grace) => self.drain(grace),
            Effect::Kill => self.kill(),
            Effect::Escalate => self.begin_fencing().await,
            Effect::Fence => {} // done before the step was recorded: peers must not wait for our disk
            Effect::KeepLastWords => self.keep_last_words().await,
            Effect::Release => self.release().await,
            Effect::Arm(timer, after) => drop(self.timers.insert(timer, Instant::now() + after)),
            Effect::Disarm(timer) => drop(self.timers.remove(&timer)),
            Effect::GiveUp => {
                tracing::warn!(instance = %self.record.name, "it has ended too often and is not started again");
            }
        }
    }

    async fn step_failed(&mut self, step: &str, reason: String) {
        tracing::warn!(instance = %self.record.name, step, reason, "a step did not work");
        self.record.last_error = Some(format!("{step}: {reason}"));
        self.shared
            .note(Some(&self.record.name), EventKind::StepFailed { step: step.to_owned(), reason })
            .await;
        self.inputs.push_back(Input::StepFailed);
    }

    async fn reserve(&mut self) -> Result<(), String> {
        let incarnation = Incarnation::random().map_err(|error| error.to_string())?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| error.to_string())?;
        let member = Member(self.record.member);
        let admission =
            self.shared.broker.admit(member, self.record.cid, self.record.name.as_str(), incarnation);
        match tokio::time::timeout(KEEPER_MAX, admission).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(chain(&error)),
            Err(_) => return Err("the broker did not answer in time".into()),
        }
        self.record.incarnation = Some(incarnation);
        self.record.secret = Some(Secret(Hex(secret)));
        self.record.boot_id = None;
        self.record.kernel = None;
        self.record.pid = None;
        self.inventory = None;
        self.report = None;
        self.confirm = None;
        self.last_registers = None;
        Ok(())
    }

    async fn load(&mut self) -> Result<(), String> {
        let (Some(incarnation), Some(secret)) = (self.record.incarnation, self.record.secret.clone()) else {
            return Err("the record holds no incarnation".into());
        };
        let kind = self.shared.drivers.choose(&self.record.spec).await;
        self.record.spawner = Some(kind);
        let boots_with = self.take_holding(kind, incarnation).await?;
        let spec = &self.record.spec;
        let folder = self.shared.places.instance(&self.record.name);
        let mut config = AgentConfig::new(
            self.record.name.as_str(),
            self.record.cid,
            Member(self.record.member),
            incarnation,
            secret.0.0,
        );
        config.primary_cid = Cid::HOST;
        config.entrypoint = spec.entrypoint.clone();
        config.probes = spec.probes.clone();
        config.log_level = spec.log_level.clone();
        config.heartbeat_ms = spec.heartbeat_ms;
        config.policy = to_broker_policy(&self.shared.rules());
        if kind.makes_kernels() {
            config.hostname = Some(self.record.name.to_string());
            config.may_set_clock = spec.sync_clock;
            config.cpu_stuck_ms = Some(spec.cpu_stuck_ms).filter(|ms| *ms > 0);
        }
        let initrd_files = spec.files.iter().map(|file| InitrdFile {
            guest_path: file.guest.clone(),
            mode: file.mode,
            content: FileContent::Path(file.source.clone()),
        });
        self.kernel_spec = Some(Box::new(KernelSpec {
            image: spec.image.clone(),
            initrd: spec.initrd.clone(),
            memory_bytes: boots_with.memory_bytes,
            memory_min_bytes: boots_with.memory_min_bytes,
            memory_max_bytes: boots_with.memory_max_bytes,
            cpus: boots_with.cpus,
            cpus_started: spec.cpus,
            cpus_withheld: self.shared.ledger.cpus_in_doubt(),
            cpus_max: spec.cpus_max(),
            catalogue: self.shared.catalogue.to_vec(),
            devices: boots_with.devices,
            devices_move: boots_with.devices_move,
            agent_binary: self.shared.places.agent_binary.clone(),
            agent_config: config,
            initrd_files: initrd_files.collect(),
            modules: spec.modules.clone(),
            pool: Some(PoolFile { path: self.shared.places.pool.clone(), len: self.shared.pool_bytes }),
            runtime_dir: folder,
            extra_args: spec.extra_args.clone(),
            taken_over: self.record.taken_over.clone(),
        }));
        Ok(())
    }

    async fn spawn(&mut self) {
        if self.kernel_spec.is_none()
            && let Err(reason) = self.load().await
        {
            return self.step_failed("load", reason).await;
        }
        let (Some(spec), Some(incarnation), Some(kind)) =
            (self.kernel_spec.take(), self.record.incarnation, self.record.spawner)
        else {
            return self.step_failed("spawn", "nothing was loaded".into()).await;
        };
        self.admit_agent();
        self.monitor = Monitor::new(super::health_config(&self.record));
        self.cpus = StuckCpus::default();
        self.probe.reset();
        self.kernel_probe = KernelProbe::default();
        self.record.spawned_unix_ns = Some(unix_ns());
        let (shared, mailbox) = (self.shared.clone(), self.mailbox.clone());
        tokio::spawn(async move {
            let spawning = async {
                match shared.drivers.spawn(kind, &spec).await {
                    // A kernel that an earlier attempt of ours left behind: nobody else uses this folder.
                    Err(SpawnError::Occupied { .. }) => {
                        clear(shared.drivers.adopt(kind, &spec.runtime_dir).await).await;
                        shared.drivers.spawn(kind, &spec).await
                    }
                    other => other,
                }
            };
            let outcome = match tokio::time::timeout(SPAWN_MAX, spawning).await {
                Ok(Ok(kernel)) => Ok(kernel),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => {
                    clear(shared.drivers.adopt(kind, &spec.runtime_dir).await).await;
                    Err(format!("it was not started within {SPAWN_MAX:?}"))
                }
            };
            mailbox.send(Message::Spawned { incarnation, outcome }).await;
        });
    }

    pub(super) async fn spawned(&mut self, incarnation: Incarnation, outcome: Result<Kernel, String>) {
        let is_current = Some(incarnation) == self.record.incarnation;
        match outcome {
            Ok(kernel) if is_current => {
                let kind = kernel.kind();
                self.record.pid = Some(kernel.pid());
                self.record.boots += 1;
                let event = EventKind::Spawned { spawner: kind.to_string(), pid: kernel.pid() };
                self.attend(kernel).await;
                let _ = self.step(Input::Spawned, vec![event]).await;
                self.check_holding().await;
            }
            Ok(kernel) => drop(tokio::spawn(clear(Ok(kernel)))),
            Err(reason) if is_current => self.step_failed("spawn", reason).await,
            Err(_) => {}
        }
    }

    /// Takes charge of a kernel that runs: doorbell, agent, end.
    pub(super) async fn attend(&mut self, kernel: Kernel) {
        let Some(incarnation) = self.record.incarnation else { return };
        match kernel.link() {
            Some(end) => self.shared.paced.expect(self.record.cid, end),
            None => self.take_doorbell(&kernel).await,
        }
        self.admit_agent();
        let (mailbox, watched) = (self.mailbox.clone(), kernel.clone());
        tokio::spawn(async move {
            let message = match wait_for_the_end(watched).await {
                Waited::Ended(exit) => Message::Ended { incarnation, exit },
                Waited::StoodForAgain(kernel) => Message::StoodForAgain { incarnation, kernel },
            };
            mailbox.send(message).await;
        });
        self.kernel = Some(kernel);
        self.monitor.expects_heartbeat(self.shares_memory());
        (self.verdict, self.layer) = (self.monitor.verdict(self.now_ns()), None);
    }

    /// The line by which it wakes this kernel, and is woken.
    async fn take_doorbell(&self, kernel: &Kernel) {
        match tokio::time::timeout(KEEPER_MAX, kernel.doorbell()).await {
            Ok(Ok(line)) => {
                if let Err(error) = self.shared.broker.add_line(Member(self.record.member), line) {
                    tracing::warn!(instance = %self.record.name, %error, "its doorbell cannot be used; it is polled");
                }
            }
            Ok(Err(error)) => {
                let error = chain(&error);
                tracing::warn!(instance = %self.record.name, error, "it has no doorbell; it is polled");
            }
            Err(_) => {
                tracing::warn!(instance = %self.record.name, "its keeper did not hand over the doorbell");
            }
        }
    }

    /// The keeper of a kernel died, and another is in its place.
    pub(super) async fn stood_for_again(&mut self, incarnation: Incarnation, kernel: Kernel) {
        if Some(incarnation) != self.record.incarnation || !self.record.life.state().may_have_kernel() {
            return;
        }
        let pid = kernel.pid();
        tracing::warn!(instance = %self.record.name, pid, "its keeper died, and another stands for it");
        self.record.pid = Some(pid);
        self.attend(kernel).await;
        let (name, boot) = (&self.record.name, incarnation.to_string());
        let batch =
            Batch::new().put_instance(&self.record).event(Some(name), Some(boot), EventKind::Adopted { pid });
        if let Err(error) = self.shared.store.commit(batch).await {
            tracing::error!(instance = %self.record.name, %error, "could not record who stands for it");
        }
        self.publish();
    }

    fn admit_agent(&self) {
        if let (Some(incarnation), Some(secret)) = (self.record.incarnation, &self.record.secret) {
            let credential = Credential {
                secret: secret.0.0,
                name: self.record.name.clone(),
                mailbox: self.mailbox.clone(),
            };
            self.shared.admit_agent(self.record.cid, incarnation, credential);
        }
    }

    pub(super) async fn ended(&mut self, incarnation: Incarnation, exit: Exit) {
        if Some(incarnation) != self.record.incarnation || !self.record.life.state().may_have_kernel() {
            return;
        }
        if self.may_bury(&exit).await {
            self.bury(exit).await;
        }
    }

    /// What is to be done about a kernel that has ended.
    pub(super) async fn bury(&mut self, exit: Exit) {
        self.stop_killing();
        let (end, now_ns, now_unix_ns) = (self.end_of(&exit.how), self.now_ns(), unix_ns());
        if let Some(beats) = self.beats() {
            self.monitor.heartbeat(now_ns, beats);
        }
        self.monitor.ended(end);
        (self.verdict, self.layer) = (self.monitor.verdict(now_ns), None);
        self.note_end(end, exit.at_unix_ns);
        if let ExitHow::NeverRan(reason) = &exit.how {
            self.record.last_error = Some(format!("spawn: {reason}"));
        }
        let last_beat_ns = self.monitor.last_beat_ns();
        // Where there is no heartbeat, its keeper's is the only word.
        self.confirm = self.shares_memory().then(|| Confirmation::new(now_ns, self.beats(), last_beat_ns));
        let died = EventKind::Died {
            end,
            expected: self.record.life.state() == State::Draining,
            last_beat_age_ms: last_beat_ns.map(|at| now_ns.saturating_sub(at) / 1_000_000),
            reaped_to_noticed_ms: Some(now_unix_ns.saturating_sub(exit.at_unix_ns) / 1_000_000),
        };
        let _ = self.step(Input::Ended(end), vec![died]).await;
    }

    /// How its kernel ended, by what the keeper saw and what the agent left in the pool.
    pub(super) fn end_of(&self, how: &ExitHow) -> End {
        let status = self.shared.pool.heartbeat(Member(self.record.member));
        let is_of_this_boot = Some(status.incarnation) == self.record.incarnation;
        end_of(how, is_of_this_boot && status.phase == Phase::Stopped)
    }

    pub(super) fn note_end(&mut self, end: End, at_unix_ns: u64) {
        self.record.last_end = Some(LastEnd { end, at_unix_ns, incarnation: self.record.incarnation });
    }

    /// Declares the present generation dead, at once and without waiting for anything else.
    pub(super) async fn fence(&mut self) -> Option<EventKind> {
        self.shared.dismiss_agent(self.record.cid);
        self.link = None;
        self.shared.paced.remove(self.record.cid);
        let generation = self.shared.generation(self.record.member);
        if generation == 0 {
            return None;
        }
        let fencing = self.shared.broker.fence(Member(self.record.member), generation);
        match tokio::time::timeout(KEEPER_MAX, fencing).await {
            Ok(Ok(())) => Some(EventKind::Fenced { generation }),
            Ok(Err(error)) => {
                tracing::error!(instance = %self.record.name, %error, generation, "could not fence a dead kernel");
                None
            }
            Err(_) => {
                tracing::error!(instance = %self.record.name, generation, "fencing a dead kernel took too long");
                None
            }
        }
    }

    fn kill(&mut self) {
        // Without a kernel one is just being started: it is killed when that is done.
        let Some(kernel) = self.kernel.clone() else { return };
        let (name, shared) = (self.record.name.clone(), self.shared.clone());
        let killing = tokio::spawn(async move {
            for attempt in 0..KILL_TRIES {
                let reason = match tokio::time::timeout(KILL_MAX, kernel.kill()).await {
                    Ok(Ok(_)) => return,
                    Ok(Err(error)) => chain(&error),
                    Err(_) => format!("it took longer than {KILL_MAX:?}"),
                };
                tracing::error!(instance = %name, attempt, reason, "could not kill it");
                if attempt == 0 {
                    let step = "kill".to_owned();
                    shared.note(Some(&name), EventKind::StepFailed { step, reason }).await;
                }
                tokio::time::sleep(KEEPER_MAX).await;
            }
        });
        self.stop_killing();
        self.killing = Some(killing.abort_handle());
    }

    /// The next kernel of this instance will have the same folder: whoever still tries to kill this one must not find that.
    pub(super) fn stop_killing(&mut self) {
        if let Some(killing) = self.killing.take() {
            killing.abort();
        }
    }

    /// Gives back what a kernel that has ended held on this host.
    pub(super) async fn release(&mut self) {
        self.link = None;
        self.shared.dismiss_agent(self.record.cid);
        let member = Member(self.record.member);
        self.shared.paced.remove(self.record.cid);
        self.shared.broker.remove_line(member);
        if let Ok(Err(error)) = tokio::time::timeout(KEEPER_MAX, self.shared.broker.retire(member)).await {
            tracing::debug!(instance = %self.record.name, %error, "its row in the pool was not given back");
        }
        if let Some(incarnation) = self.record.incarnation {
            self.shared.ledger.down(self.record.cid, incarnation).await;
        }
        let Some(kernel) = self.kernel.take() else { return };
        match tokio::time::timeout(KEEPER_MAX, kernel.forget()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(instance = %self.record.name, error = chain(&error), "its keeper stays");
            }
            Err(_) => tracing::warn!(instance = %self.record.name, "its keeper did not answer and stays"),
        }
    }
}

/// Ends and forgets a kernel that nobody wants.
async fn clear(found: Result<Kernel, SpawnError>) {
    let Ok(kernel) = found else { return };
    let clearing = async {
        let _ = kernel.kill().await;
        let _ = kernel.forget().await;
    };
    let _ = tokio::time::timeout(KILL_MAX, clearing).await;
}

/// What comes of waiting for the end of a kernel.
enum Waited {
    Ended(Exit),
    StoodForAgain(Kernel),
}

/// Waits until the kernel has ended. A keeper that cannot be asked is asked again and again: only its word, or its own end,
/// says that a kernel has ended.
async fn wait_for_the_end(kernel: Kernel) -> Waited {
    let mut pause = Duration::from_millis(100);
    loop {
        match kernel.exited().await {
            Ok(exit) => return Waited::Ended(exit),
            Err(error) => {
                tracing::warn!(
                    pid = kernel.pid(),
                    error = chain(&error),
                    "the keeper of a kernel cannot be asked"
                );
                match kernel.stand_again().await {
                    Ok(Some(kernel)) => return Waited::StoodForAgain(kernel),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(error = chain(&error), "nobody stands for a kernel that runs");
                    }
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(KEEPER_MAX);
    }
}

/// How a kernel ended, in the words of the lifecycle. `farewell`: whether the last that its agent said was that it is about to power off.
fn end_of(how: &ExitHow, farewell: bool) -> End {
    match how {
        ExitHow::PoweredOff => End::PoweredOff,
        ExitHow::Panicked => End::Panicked,
        ExitHow::Signaled(signal) => End::Signaled(*signal),
        ExitHow::Code(code) => End::Exited(*code),
        // What a shell says of a program that cannot be run.
        ExitHow::NeverRan(_) => End::Exited(126),
        ExitHow::Unexplained if farewell => End::PoweredOff,
        ExitHow::Unexplained | ExitHow::Lost => End::Vanished,
    }
}

/// An error with its causes on one line: what people read must not end at "could not open".
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_that_nothing_explains_is_in_good_order_only_if_the_agent_took_its_leave() {
        assert_eq!(end_of(&ExitHow::Unexplained, true), End::PoweredOff);
        assert_eq!(end_of(&ExitHow::Unexplained, false), End::Vanished);
        assert_eq!(
            end_of(&ExitHow::Panicked, true),
            End::Panicked,
            "what was seen counts more than what was said"
        );
        assert_eq!(end_of(&ExitHow::Lost, true), End::Vanished);
    }
}
