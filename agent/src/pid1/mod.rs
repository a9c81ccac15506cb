//! What the first process of a kernel must do that nobody else does.

mod large_pages;
mod loopback;
mod mounts;
mod poweroff;

use std::fs::File;
use std::path::{Path, PathBuf};

pub(crate) use mounts::is_mounted;
pub use mounts::mount_basics;
pub use poweroff::{finish, stop_everyone};

use crate::api::agent::AgentMode;
use crate::config::AgentConfig;

/// Inode of the initial PID namespace (`PROC_PID_INIT_INO`), which a container's differs from.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Finds out how the agent runs. As the first process, mounts /proc if it is not there: nothing can be found out
/// without it.
pub fn detect_mode() -> AgentMode {
    if std::process::id() != 1 {
        return AgentMode::Service;
    }
    if !Path::new("/proc/self/ns").exists() {
        mounts::mount_proc();
    }
    match std::fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) if namespace != Path::new(INITIAL_PID_NAMESPACE) => AgentMode::NamespaceInit,
        // A kernel built without PID namespaces has only the initial one.
        _ => AgentMode::Init,
    }
}

/// Sets up a fresh kernel (loopback, large pages, host name, modules) or a fresh namespace (host name). What fails is logged and
/// skipped: a kernel that lacks a module is worth more than one that does not boot.
pub fn set_up(mode: AgentMode, config: &AgentConfig) {
    if mode == AgentMode::Service {
        return adopt_orphans();
    }
    if let Some(hostname) = &config.hostname
        && let Err(error) = rustix::system::sethostname(hostname.as_bytes())
    {
        tracing::warn!(hostname, %error, "the host name could not be set");
    }
    if mode == AgentMode::Init {
        if let Err(error) = loopback::bring_up() {
            tracing::warn!(%error, "the loopback interface could not be brought up");
        }
        if let Err(error) = large_pages::allow() {
            tracing::warn!(%error, "large pages stay off");
        }
        load_modules(&config.modules);
        // Ctrl-Alt-Del (and its like on a virtual console) becomes SIGINT to us, hence an orderly end, not a reset.
        if let Err(error) = nix::sys::reboot::set_cad_enabled(false) {
            tracing::warn!(%error, "Ctrl-Alt-Del will reset this kernel");
        }
    }
}

/// Makes orphans of the agent's children its own, so that it can reap and stop them. Init gets them anyway.
fn adopt_orphans() {
    if let Err(error) = rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)) {
        tracing::warn!(%error, "orphans will not be collected");
    }
}

fn load_modules(modules: &[PathBuf]) {
    for path in modules {
        let loaded = File::open(path).and_then(|module| Ok(rustix::system::finit_module(&module, c"", 0)?));
        match loaded {
            Ok(()) => tracing::info!(module = %path.display(), "module loaded"),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => tracing::warn!(module = %path.display(), %error, "module could not be loaded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_an_ordinary_program() {
        assert_eq!(detect_mode(), AgentMode::Service);
    }
}
