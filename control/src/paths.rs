//! Where things are on this host, for the daemon and for those who look for it.

use std::path::{Path, PathBuf};

/// The daemon's socket, in its runtime folder.
pub const CONTROL_SOCKET: &str = "tombolod.sock";
/// The socket for applications of this host, in the daemon's runtime folder.
pub const BROKER_SOCKET: &str = "broker.sock";

/// The default folder for records: `/var/lib/tombolo` as root, else `$XDG_STATE_HOME/tombolo`.
pub fn state_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/tombolo");
    }
    let home = || absolute_variable("HOME").unwrap_or_else(|| PathBuf::from("/tmp")).join(".local/state");
    absolute_variable("XDG_STATE_HOME").unwrap_or_else(home).join("tombolo")
}

/// The default folder for sockets: `/run/tombolo` as root, else `$XDG_RUNTIME_DIR/tombolo`.
pub fn runtime_dir() -> PathBuf {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return PathBuf::from("/run/tombolo");
    }
    match absolute_variable("XDG_RUNTIME_DIR") {
        Some(folder) => folder.join("tombolo"),
        None => PathBuf::from(format!("/tmp/tombolo-{}", uid.as_raw())),
    }
}

/// The pool of the daemon with this state folder: one name for each folder, the same after a restart.
pub fn pool(state_dir: &Path) -> PathBuf {
    let hash = blake3::hash(state_dir.as_os_str().as_encoded_bytes()).to_hex();
    PathBuf::from(format!("/dev/shm/tombolo-{}", &hash[..16]))
}

fn absolute_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_folder_has_a_pool_of_its_own() {
        assert_eq!(pool(Path::new("/a")), pool(Path::new("/a")));
        assert_ne!(pool(Path::new("/a")), pool(Path::new("/b")));
        assert!(pool(Path::new("/a")).starts_with("/dev/shm"));
    }
}
