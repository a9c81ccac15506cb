//! Finding a User-mode Linux kernel and its modules, and telling one from other files.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::{SpawnError, SpawnerKind};

/// What to do when there is none.
pub(super) const REMEDY: &str = "install Debian's package `user-mode-linux`, or run `cargo xtask fetch-kernel` (no root \
     needed), or set TOMBOLO_UML_KERNEL to a kernel built with ARCH=um";

/// How long a program may take to say its version.
const VERSION_MAX: Duration = Duration::from_secs(5);

/// Every such kernel has these texts: its management console, and the driver that maps the pool.
const MARKS: [&[u8]; 2] = [b"mconsole", b"mmapper"];

/// A kernel image that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
}

/// Checks `wanted`, or finds an image where none is wanted in particular.
pub(super) fn find(wanted: Option<&Path>) -> Result<Image, SpawnError> {
    if let Some(path) = wanted {
        return check(path);
    }
    if let Some(path) = std::env::var_os("TOMBOLO_UML_KERNEL") {
        return check(Path::new(&path));
    }
    let found = candidates().into_iter().filter(|path| path.is_file()).find_map(|path| check(&path).ok());
    found.ok_or_else(|| SpawnError::Unavailable {
        kind: SpawnerKind::Uml,
        what: "no User-mode Linux kernel was found".into(),
        remedy: REMEDY.into(),
    })
}

fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&path).map(|dir| dir.join("linux.uml")).collect();
    found.push("/usr/bin/linux.uml".into());
    found.extend(std::env::split_paths(&path).map(|dir| dir.join("linux")));
    found.extend(cache_folder("uml").map(|dir| dir.join("usr/bin/linux.uml")));
    found
}

/// Where `cargo xtask` unpacks what it fetched: `tombolo/WHAT` in the user's cache folder.
pub(super) fn cache_folder(what: &str) -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("tombolo").join(what))
}

/// The first line that a program says of its version; `None` when it does not tell.
pub(super) async fn version_of(program: &mut Command) -> Option<String> {
    let asked = program.arg("--version").kill_on_drop(true).output();
    let output = timeout(VERSION_MAX, asked).await.ok()?.ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| said.lines().next().unwrap_or_default().trim().to_owned())
}

/// Looks at the file without running it.
fn check(path: &Path) -> Result<Image, SpawnError> {
    let not = |reason: &str| SpawnError::NotAKernel {
        kind: SpawnerKind::Uml,
        path: path.to_owned(),
        reason: reason.into(),
    };
    let meta = fs::metadata(path).map_err(|error| not(&error.to_string()))?;
    if !meta.is_file() {
        return Err(not("it is not a regular file"));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(not("it is not executable"));
    }
    let bytes = fs::read(path).map_err(|error| not(&error.to_string()))?;
    // ELF, 64-bit, little-endian, x86-64.
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") || bytes.get(18..20) != Some(&[62, 0]) {
        return Err(not(
            "it is not an x86-64 program; a kernel for real hardware (bzImage) does not work here",
        ));
    }
    let has = |mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    if !MARKS.iter().all(|mark| has(mark)) {
        return Err(not("it is a program, but not a User-mode Linux kernel with the mmapper driver"));
    }
    Ok(Image { path: path.to_owned() })
}

impl Image {
    /// Its release, such as `6.1.176`; `unknown version` when it does not tell.
    pub(super) async fn version(&self) -> String {
        version_of(&mut Command::new(&self.path)).await.unwrap_or_else(|| "unknown version".into())
    }

    /// The files of these modules.
    pub(super) async fn modules(&self, names: &[String]) -> Result<Vec<PathBuf>, SpawnError> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let version = self.version().await;
        let beside = self.path.parent().and_then(Path::parent).map(|usr| usr.join("lib/uml/modules"));
        let folders = beside.into_iter().chain([PathBuf::from("/usr/lib/uml/modules")]);
        let folder = folders.map(|dir| dir.join(&version)).find(|dir| dir.is_dir());
        let missing =
            |what: String| SpawnError::Unavailable { kind: SpawnerKind::Uml, what, remedy: REMEDY.into() };
        let folder = folder.ok_or_else(|| {
            missing(format!("no modules of kernel {version} were found beside {}", self.path.display()))
        })?;
        let find = |name: &String| {
            let found = find_file(&folder, &format!("{name}.ko"));
            let found = found.map_err(|source| SpawnError::File {
                action: "search",
                path: folder.clone(),
                source,
            })?;
            found.ok_or_else(|| {
                missing(format!("kernel {version} has no module `{name}` in {}", folder.display()))
            })
        };
        names.iter().map(find).collect()
    }
}

fn find_file(dir: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_file(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_is_no_kernel_is_refused_with_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        fs::write(&text, "hello").unwrap();
        let cases: [(&Path, &str); 4] = [
            (&dir.path().join("nothing"), "No such file"),
            (dir.path(), "not a regular file"),
            (&text, "not executable"),
            (Path::new("/bin/true"), "not a User-mode Linux kernel"),
        ];
        for (path, expected) in cases {
            match find(Some(path)) {
                Err(SpawnError::NotAKernel { reason, .. }) => assert!(reason.contains(expected), "{reason}"),
                other => panic!("{}: {other:?}", path.display()),
            }
        }
        fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(find(Some(&text)).unwrap_err().to_string().contains("not an x86-64 program"));
    }
}
