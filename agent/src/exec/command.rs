//! From what a caller asks for to a command that can be started, or to an error that names what is missing.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::user::{UserIds, resolve_user};
use crate::api::exec::ExecError;

/// Where programs are looked for unless the caller's environment says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with everything it needs, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// As it was asked for, for messages.
    pub asked: String,
    /// Where it is.
    pub path: PathBuf,
    /// Arguments, the program's name first.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Whom to run as; `None`: as the agent.
    pub user: Option<UserIds>,
}

impl Program {
    /// Checks and completes a request.
    ///
    /// # Errors
    /// [`ExecError::Invalid`], [`ExecError::NotFound`] or [`ExecError::NotExecutable`]; nothing was started.
    pub fn resolve(
        argv: &[String],
        env: impl IntoIterator<Item = (String, String)>,
        cwd: Option<&str>,
        user: Option<&str>,
    ) -> Result<Self, ExecError> {
        let asked = check_argv(argv)?;
        let user = user.map(resolve_user).transpose()?;
        let env = environment(env, user.as_ref())?;
        let cwd = PathBuf::from(cwd.unwrap_or("/"));
        if !cwd.is_absolute() {
            return Err(invalid("cwd", format!("{} is not an absolute path", cwd.display())));
        }
        if !cwd.is_dir() {
            return Err(invalid("cwd", format!("{} is not a directory in this kernel", cwd.display())));
        }
        let search = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let path = find_program(&asked, &cwd, search)?;
        Ok(Self { asked, path, argv: argv.to_vec(), env, cwd, user })
    }

    /// Has `command`, which names this program's path, do the rest: arguments, directory, user.
    pub(super) fn fill(&self, command: &mut Command) {
        if let Some((name, arguments)) = self.argv.split_first() {
            command.arg0(name).args(arguments);
        }
        command.current_dir(&self.cwd);
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
    }

    /// Says what an error of starting it means.
    pub fn spawn_error(&self, error: &io::Error) -> ExecError {
        let program = self.asked.clone();
        let why =
            |reason: &str| ExecError::NotExecutable { program: program.clone(), reason: reason.to_owned() };
        match error.raw_os_error().map(nix::errno::Errno::from_raw) {
            // The file was there a moment ago: what is missing is its interpreter.
            Some(nix::errno::Errno::ENOENT) if self.path.exists() => {
                why("the interpreter or dynamic loader it names is not in this kernel; copy a static program")
            }
            Some(nix::errno::Errno::ENOENT) => {
                ExecError::NotFound { program, reason: format!("{} is gone", self.path.display()) }
            }
            Some(nix::errno::Errno::ENOEXEC) => why("it is not in a format this kernel can run"),
            Some(nix::errno::Errno::EACCES) => why("permission denied"),
            _ => ExecError::System { attempt: format!("starting `{program}`"), reason: error.to_string() },
        }
    }
}

pub(super) fn invalid(field: &str, reason: impl Into<String>) -> ExecError {
    ExecError::Invalid { field: field.to_owned(), reason: reason.into() }
}

fn check_argv(argv: &[String]) -> Result<String, ExecError> {
    let Some(asked) = argv.first().filter(|program| !program.is_empty()) else {
        return Err(invalid("argv", "names no program"));
    };
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(invalid("argv", "an argument holds a zero byte"));
    }
    Ok(asked.clone())
}

fn environment(
    asked: impl IntoIterator<Item = (String, String)>,
    user: Option<&UserIds>,
) -> Result<BTreeMap<String, String>, ExecError> {
    let home = user.map_or_else(|| "/".to_owned(), |user| user.home.to_string_lossy().into_owned());
    let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOME".to_owned(), home)]);
    for (name, value) in asked {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid("env", format!("`{name}` cannot be set: an empty name, `=` or a zero byte")));
        }
        env.insert(name, value);
    }
    Ok(env)
}

fn find_program(asked: &str, cwd: &Path, search: &str) -> Result<PathBuf, ExecError> {
    let mut blocked = None;
    let candidates: Vec<PathBuf> = if asked.contains('/') {
        vec![cwd.join(asked)]
    } else {
        search.split(':').map(|dir| cwd.join(if dir.is_empty() { "." } else { dir }).join(asked)).collect()
    };
    for path in candidates {
        match check_executable(&path) {
            Ok(()) => return Ok(path),
            Err(Some(reason)) => blocked = blocked.or_else(|| Some(format!("{} {reason}", path.display()))),
            Err(None) => {}
        }
    }
    let program = asked.to_owned();
    match blocked {
        Some(reason) => Err(ExecError::NotExecutable { program, reason }),
        None if asked.contains('/') => {
            Err(ExecError::NotFound { program, reason: "there is no such file in this kernel".to_owned() })
        }
        None => {
            Err(ExecError::NotFound { program, reason: format!("it is in no directory of PATH ({search})") })
        }
    }
}

/// `Err(None)`: nothing there. `Err(Some(reason))`: something there that cannot be run.
fn check_executable(path: &Path) -> Result<(), Option<String>> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(Some("is a directory".to_owned())),
        Ok(meta) if !meta.is_file() => Err(Some("is not a regular file".to_owned())),
        Ok(_) => rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
            .map_err(|e| Some(format!("may not be executed: {}", io::Error::from(e)))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Some("cannot be looked at: permission denied".to_owned()))
        }
        Err(_) => Err(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(program: &str) -> Result<Program, ExecError> {
        Program::resolve(&[program.to_owned()], [], None, None)
    }

    #[test]
    fn a_missing_program_is_named_with_where_it_was_sought() {
        let error = resolve("no-such-program").unwrap_err();
        assert!(
            error.to_string().contains("no-such-program") && error.to_string().contains("/usr/bin"),
            "{error}"
        );
        assert!(matches!(resolve("/no/such/program"), Err(ExecError::NotFound { .. })));
    }

    #[test]
    fn what_cannot_be_run_is_told_from_what_is_not_there() {
        assert!(matches!(resolve("/etc"), Err(ExecError::NotExecutable { .. })));
        assert!(matches!(resolve("/etc/passwd"), Err(ExecError::NotExecutable { .. })));
    }

    #[test]
    fn a_program_is_found_in_the_path_of_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thing");
        std::fs::copy("/proc/self/exe", &path).unwrap();
        let env = [("PATH".to_owned(), dir.path().display().to_string())];
        let program = Program::resolve(&["thing".to_owned()], env, None, None).unwrap();
        assert_eq!(program.path, path);
    }

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        let bad_env = Program::resolve(&["sh".into()], [("A=B".into(), "x".into())], None, None);
        assert!(matches!(bad_env, Err(ExecError::Invalid { .. })));
        assert!(matches!(Program::resolve(&[], [], None, None), Err(ExecError::Invalid { .. })));
        for cwd in ["relative", "/no/such/dir"] {
            let refused = Program::resolve(&["sh".into()], [], Some(cwd), None);
            assert!(matches!(refused, Err(ExecError::Invalid { .. })), "{cwd}");
        }
    }
}
