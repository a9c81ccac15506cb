//! One try of a probe.

use std::path::Path;
use std::time::{Duration, SystemTime};

use tombolo_transport::{Addr, Endpoint, Port};

use crate::config::{ProbeAction, ProbeConfig};
use crate::exec::ExecEngine;

/// What a probe may need.
#[derive(Clone, Debug)]
pub struct ProbeTools {
    /// Runs programs.
    pub exec: ExecEngine,
    /// The fabric; `None` in a kernel without a pool.
    pub endpoint: Option<Endpoint>,
}

impl ProbeTools {
    /// One try, within its time-out.
    ///
    /// # Errors
    /// Why it failed, for people.
    pub async fn attempt(&self, probe: &ProbeConfig) -> Result<(), String> {
        let timeout = Duration::from_millis(probe.timeout_ms);
        let attempt = self.act(&probe.action, timeout);
        tokio::time::timeout(timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(format!("no result within {} ms", probe.timeout_ms)))
    }

    async fn act(&self, action: &ProbeAction, timeout: Duration) -> Result<(), String> {
        match action {
            ProbeAction::Exec { argv } => {
                let exit = self.exec.run_quietly(argv, timeout).await.map_err(|e| e.to_string())?;
                if exit.success() { Ok(()) } else { Err(format!("`{}` ended with {exit:?}", argv.join(" "))) }
            }
            ProbeAction::Tcp { host, port } => tokio::net::TcpStream::connect((host.as_str(), *port))
                .await
                .map(drop)
                .map_err(|e| format!("cannot connect to {host}:{port}: {e}")),
            ProbeAction::Fabric { port } => self.connect_fabric(*port).await,
            ProbeAction::FileAge { path, max_age_ms } => check_age(path, Duration::from_millis(*max_age_ms)),
        }
    }

    async fn connect_fabric(&self, port: u32) -> Result<(), String> {
        let endpoint = self.endpoint.as_ref().ok_or("this kernel has no shared-memory pool")?;
        let addr = Addr::new(endpoint.local_cid(), Port(port));
        endpoint.connect(addr).await.map(drop).map_err(|e| e.to_string())
    }
}

fn check_age(path: &Path, max_age: Duration) -> Result<(), String> {
    let modified = std::fs::metadata(path)
        .and_then(|meta| meta.modified())
        .map_err(|e| format!("cannot look at {}: {e}", path.display()))?;
    // A time in the future is as fresh as can be.
    let age = SystemTime::now().duration_since(modified).unwrap_or_default();
    if age <= max_age {
        Ok(())
    } else {
        Err(format!("{} was last written {} ms ago", path.display(), age.as_millis()))
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
        ProbeTools {
            exec: ExecEngine::new(
                Launcher::new(children, "/proc/self/exe".into(), false),
                Lifecycle::booting(),
            ),
            endpoint: None,
        }
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
        assert!(error.contains("false") && error.contains("Code(1)"), "{error}");
        let error = tools.attempt(&probe(r#""exec":{"argv":["no-such-program"]}"#)).await.unwrap_err();
        assert!(error.contains("no-such-program"), "{error}");
    }

    #[tokio::test]
    async fn a_try_that_takes_too_long_has_failed() {
        let mut probe = probe(r#""exec":{"argv":["sleep","1000"]}"#);
        probe.timeout_ms = 50;
        assert!(tools().attempt(&probe).await.is_err());
    }

    #[tokio::test]
    async fn tcp_passes_while_somebody_listens() {
        let tools = tools();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let probe = probe(&format!(r#""tcp":{{"port":{port}}}"#));
        tools.attempt(&probe).await.unwrap();
        drop(listener);
        assert!(tools.attempt(&probe).await.is_err());
    }

    #[tokio::test]
    async fn a_file_must_be_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("beat");
        let probe = probe(&format!(r#""file_age":{{"path":"{}","max_age_ms":60000}}"#, path.display()));
        assert!(tools().attempt(&probe).await.is_err());
        let file = std::fs::File::create(&path).unwrap();
        tools().attempt(&probe).await.unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(61)).unwrap();
        assert!(tools().attempt(&probe).await.unwrap_err().contains("ago"));
    }

    #[tokio::test]
    async fn without_a_pool_a_fabric_probe_fails_and_says_so() {
        let error = tools().attempt(&probe(r#""fabric":{"port":5}"#)).await.unwrap_err();
        assert!(error.contains("no shared-memory pool"), "{error}");
    }
}
