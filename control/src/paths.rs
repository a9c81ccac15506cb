//! Where things are on this host, for the daemon and for those who look for it.

use std::os::unix::fs::PermissionsExt as _;
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

/// A program, by its absolute path: one that is named without a folder is looked for on `$PATH`. `None`: there is none.
pub fn program(asked: &Path) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let path = match asked.components().count() {
        1 if !asked.has_root() => std::env::var_os("PATH").unwrap_or_default(),
        _ => return std::path::absolute(asked).ok().filter(is_program),
    };
    let candidates = std::env::split_paths(&path).filter_map(|dir| std::path::absolute(dir.join(asked)).ok());
    candidates.into_iter().find(is_program)
}

fn absolute_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_looked_for_on_the_path_unless_a_folder_is_named() {
        let found = program(Path::new("sh")).unwrap();
        assert!(found.is_absolute() && found.ends_with("sh"));
        assert_eq!(program(&found), Some(found));
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("sh");
        std::fs::write(&plain, "").unwrap();
        for asked in [plain.as_path(), dir.path(), Path::new("./sh"), Path::new("no-such-program-anywhere")] {
            assert_eq!(program(asked), None, "{}", asked.display());
        }
    }

    #[test]
    fn each_state_folder_has_a_pool_of_its_own() {
        assert_eq!(pool(Path::new("/a")), pool(Path::new("/a")));
        assert_ne!(pool(Path::new("/a")), pool(Path::new("/b")));
        assert!(pool(Path::new("/a")).starts_with("/dev/shm"));
    }
}
