//! One try of a probe.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tombolo_transport::{Addr, Endpoint, Port};

use super::failure::ProbeFailure;
use super::rpc::{RpcTry, Stage};
use crate::api::exec::ExecError;
use crate::api::health::ProbeFailureKind as Kind;
use crate::config::{Exec, Fabric, FileAge, ProbeAction, ProbeConfig, Rpc, Tcp};
use crate::exec::ExecEngine;

/// What a probe may need.
#[derive(Clone, Debug)]
pub struct ProbeTools {
    exec: ExecEngine,
    endpoint: Option<Endpoint>,
    /// Names of the probes for which a thread looks at a file.
    looking: Arc<Mutex<HashSet<String>>>,
}

impl ProbeTools {
    /// `exec` runs programs; `endpoint` is the fabric, `None` in a kernel without a pool or a link.
    pub fn new(exec: ExecEngine, endpoint: Option<Endpoint>) -> Self {
        Self { exec, endpoint, looking: Arc::default() }
    }

    /// One try, within its time-out.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn attempt(&self, probe: &ProbeConfig) -> Result<(), ProbeFailure> {
        let timeout = Duration::from_millis(probe.timeout_ms);
        let stage = Stage::default();
        let attempt = self.act(probe, timeout, &stage);
        tokio::time::timeout(timeout, attempt).await.unwrap_or_else(|_| {
            let text = format!("no result within {} ms, still {}", probe.timeout_ms, stage.name());
            Err(ProbeFailure::new(Kind::TimedOut, text))
        })
    }

    async fn act(&self, probe: &ProbeConfig, timeout: Duration, stage: &Stage) -> Result<(), ProbeFailure> {
        match &probe.action {
            ProbeAction::Exec(Exec { argv }) => self.run(argv).await,
            ProbeAction::Tcp(Tcp { host, port }) => crate::net::connect(host, *port)
                .await
                .map(drop)
                .map_err(|e| ProbeFailure::io(format_args!("cannot connect to {host}:{port}"), &e)),
            ProbeAction::Fabric(Fabric { port }) => {
                let endpoint = self.fabric()?;
                let addr = Addr::new(endpoint.local_cid(), Port(*port));
                endpoint.connect(addr).await.map(drop).map_err(|e| ProbeFailure::fabric(&e))
            }
            ProbeAction::Rpc(Rpc { target, service }) => {
                let (endpoint, service) = (self.fabric()?, service.as_deref());
                RpcTry { endpoint, target, service, timeout, stage }.run().await
            }
            ProbeAction::FileAge(FileAge { path, max_age_ms }) => {
                self.check_age(&probe.name, path, Duration::from_millis(*max_age_ms)).await
            }
        }
    }

    fn fabric(&self) -> Result<&Endpoint, ProbeFailure> {
        let none = || {
            ProbeFailure::new(
                Kind::CannotTry,
                "this kernel has neither a shared-memory pool nor a paced link",
            )
        };
        self.endpoint.as_ref().ok_or_else(none)
    }

    async fn run(&self, argv: &[String]) -> Result<(), ProbeFailure> {
        match self.exec.run_quietly(argv).await {
            Ok(exit) if exit.success() => Ok(()),
            Ok(exit) => {
                let text = format!("`{}` ended with {exit:?}", argv.join(" "));
                Err(ProbeFailure::new(Kind::BadExit, text))
            }
            Err(error) => {
                let kind = match error {
                    ExecError::NotFound { .. } => Kind::NotFound,
                    ExecError::NotExecutable { .. } => Kind::Denied,
                    _ => Kind::CannotTry,
                };
                Err(ProbeFailure::new(kind, error))
            }
        }
    }

    /// Looks on a thread, which alone is stuck if the file system hangs; the next try does not send another after it.
    async fn check_age(&self, name: &str, path: &Path, max_age: Duration) -> Result<(), ProbeFailure> {
        let Some(looking) = Looking::begin(&self.looking, name) else {
            let text = format!("an earlier look at {} has not come back", path.display());
            return Err(ProbeFailure::new(Kind::TimedOut, text));
        };
        let file = path.to_owned();
        let look = move || {
            let _looking = looking;
            std::fs::metadata(&file).and_then(|meta| meta.modified())
        };
        let looked =
            tokio::task::spawn_blocking(look).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let modified =
            looked.map_err(|e| ProbeFailure::io(format_args!("cannot look at {}", path.display()), &e))?;
        // A time in the future is as fresh as can be.
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if age <= max_age {
            return Ok(());
        }
        let text = format!("{} was last written {} ms ago", path.display(), age.as_millis());
        Err(ProbeFailure::new(Kind::Stale, text))
    }
}

/// A thread looks for a probe, as long as this lives.
struct Looking {
    all: Arc<Mutex<HashSet<String>>>,
    name: String,
}

impl Looking {
    /// `None` if one does already.
    fn begin(all: &Arc<Mutex<HashSet<String>>>, name: &str) -> Option<Self> {
        let begins = all.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        begins.then(|| Self { all: Arc::clone(all), name: name.to_owned() })
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::children::{Children, Scope};
    use crate::exec::Launcher;
    use crate::state::Lifecycle;

    fn tools() -> ProbeTools {
        let children = Children::new(Scope::OwnChildren);
        tokio::spawn(children.clone().run_reaper());
        let launcher = Launcher::new(children, "/proc/self/exe".into(), false);
        ProbeTools::new(ExecEngine::new(launcher, Lifecycle::booting()), None)
    }

    fn probe(action: &str) -> ProbeConfig {
        let text = format!(r#"{{"name":"p","kind":"liveness","timeout_ms":2000,{action}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[tokio::test]
    async fn exec_passes_with_code_zero_alone() {
        let tools = tools();
        tools.attempt(&probe(r#""exec":{"argv":["true"]}"#)).await.unwrap();
        let error = tools.attempt(&probe(r#""exec":{"argv":["false"]}"#)).await.unwrap_err();
        assert!(error.text.contains("false") && error.text.contains("Code(1)"), "{error}");
        assert_eq!(error.kind, Kind::BadExit);
        let error = tools.attempt(&probe(r#""exec":{"argv":["no-such-program"]}"#)).await.unwrap_err();
        assert!(error.kind == Kind::NotFound && error.text.contains("no-such-program"), "{error}");
    }

    #[tokio::test]
    async fn a_try_that_takes_too_long_has_failed() {
        let mut probe = probe(r#""exec":{"argv":["sleep","1000"]}"#);
        probe.timeout_ms = 50;
        assert_eq!(tools().attempt(&probe).await.unwrap_err().kind, Kind::TimedOut);
    }

    #[tokio::test]
    async fn tcp_passes_while_somebody_listens() {
        let tools = tools();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe = probe(&format!(r#""tcp":{{"port":{port}}}"#));
        tools.attempt(&probe).await.unwrap();
        drop(listener);
        assert_eq!(tools.attempt(&probe).await.unwrap_err().kind, Kind::Refused);
    }

    #[tokio::test]
    async fn a_file_must_be_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("beat");
        let probe = probe(&format!(r#""file_age":{{"path":"{}","max_age_ms":60000}}"#, path.display()));
        assert_eq!(tools().attempt(&probe).await.unwrap_err().kind, Kind::NotFound);
        let file = std::fs::File::create(&path).unwrap();
        tools().attempt(&probe).await.unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(61)).unwrap();
        assert_eq!(tools().attempt(&probe).await.unwrap_err().kind, Kind::Stale);
        let tools = tools();
        let stuck = Looking::begin(&tools.looking, "p");
        assert_eq!(tools.attempt(&probe).await.unwrap_err().kind, Kind::TimedOut, "one look at a time");
        let other = ProbeConfig { name: "q".into(), ..probe.clone() };
        assert_eq!(tools.attempt(&other).await.unwrap_err().kind, Kind::Stale, "others are not held up");
        drop(stuck);
        assert_eq!(tools.attempt(&probe).await.unwrap_err().kind, Kind::Stale);
    }

    #[tokio::test]
    async fn without_a_pool_probes_of_the_fabric_fail_and_say_so() {
        for action in [r#""fabric":{"port":5}"#, r#""rpc":{"target":"kv"}"#] {
            let error = tools().attempt(&probe(action)).await.unwrap_err();
            assert!(
                error.kind == Kind::CannotTry && error.text.contains("neither a shared-memory pool"),
                "{error}"
            );
        }
    }
}
