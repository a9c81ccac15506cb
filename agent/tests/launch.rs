//! Programs started through the helper, which is the agent's own binary.

mod common;

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use common::{AGENT, within};
use nix::sys::signal::Signal;
use tombolo_agent::api::exec::{ExecError, ExitStatus};
use tombolo_agent::children::{Children, OnEnd, Scope};
use tombolo_agent::exec::{Launch, Launcher, Program, UserIds};

fn launcher(tied: bool) -> Launcher {
    let children = Children::new(Scope::OwnChildren);
    tokio::spawn(children.clone().run_reaper());
    Launcher::new(children, AGENT.into(), tied)
}

fn program(argv: &[&str], cwd: &str) -> Program {
    let argv: Vec<String> = argv.iter().map(|argument| (*argument).to_owned()).collect();
    Program::resolve(&argv, [], Some(cwd), None).unwrap()
}

async fn run(launcher: &Launcher, program: &Program) -> Result<(ExitStatus, String), ExecError> {
    let launch = Launch {
        stdio: [Stdio::null(), Stdio::piped(), Stdio::inherit()],
        on_terminal: false,
        on_end: OnEnd::LeaveGroup,
        on_agent_death: Signal::SIGKILL,
    };
    let mut child = launcher.start(program, launch)?;
    let status = within(child.exit.ended()).await;
    let mut written = String::new();
    child.pipes.stdout.take().unwrap().read_to_string(&mut written).unwrap();
    Ok((status, written))
}

/// Only root may become somebody else.
fn may_change_user() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("SKIPPED: needs root");
    }
    may
}

#[tokio::test]
async fn a_user_has_its_supplementary_groups_and_no_others() {
    if !may_change_user() {
        return;
    }
    let as_user = |groups| {
        let user = UserIds { uid: 4001, gid: 4002, groups, home: "/".into() };
        Program { user: Some(user), ..program(&["sh", "-c", "id -u; id -g; id -G"], "/") }
    };
    for (groups, listed) in [(vec![4003, 29], "4002 29 4003"), (vec![], "4002")] {
        for tied in [false, true] {
            let (status, written) = run(&launcher(tied), &as_user(groups.clone())).await.unwrap();
            assert_eq!(status, ExitStatus::Code(0));
            let mut lines: Vec<String> = written.lines().map(str::to_owned).collect();
            let mut all: Vec<&str> = lines[2].split(' ').collect();
            all[1..].sort_by_key(|gid| gid.parse::<u32>().unwrap());
            lines[2] = all.join(" ");
            assert_eq!(lines, ["4001", "4002", listed]);
        }
    }
}

#[tokio::test]
async fn a_directory_is_entered_as_the_user() {
    if !may_change_user() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let user = UserIds { uid: 4001, gid: 4002, groups: vec![29], home: "/".into() };
    let program = Program { user: Some(user), ..program(&["true"], dir.path().to_str().unwrap()) };
    let error = run(&launcher(false), &program).await.unwrap_err();
    assert!(matches!(&error, ExecError::Invalid { field, .. } if field == "cwd"), "{error}");
}

#[tokio::test]
async fn what_fails_in_the_helper_is_told_as_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    // By a process of its own: one that another test starts meanwhile would hold what is open here for writing, and keep the script from being run.
    let write = "printf '#!/no/such/interpreter\\n' > \"$0\" && chmod 755 \"$0\"";
    let written = std::process::Command::new("sh").args(["-c", write]).arg(&script).status().unwrap();
    assert!(written.success());
    let broken = program(&[script.to_str().unwrap()], "/");
    let mut gone = program(&["true"], "/");
    gone.path = PathBuf::from("/no/such/program");
    for tied in [false, true] {
        let error = run(&launcher(tied), &broken).await.unwrap_err();
        assert!(error.to_string().contains("interpreter"), "{error}");
        let error = run(&launcher(tied), &gone).await.unwrap_err();
        assert!(matches!(error, ExecError::NotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn arguments_environment_and_directory_pass_the_helper_unchanged() {
    let argv = ["sh", "-c", "printf '%s|' \"$0\" \"$@\" \"$K\"; pwd", "--help", "", "-x", "a b", "--"];
    let argv: Vec<String> = argv.iter().map(|argument| (*argument).to_owned()).collect();
    let env = [("K".to_owned(), "v=1".to_owned())];
    let program = Program::resolve(&argv, env, Some("/usr"), None).unwrap();
    for tied in [false, true] {
        let (status, written) = run(&launcher(tied), &program).await.unwrap();
        assert_eq!((status, written.as_str()), (ExitStatus::Code(0), "--help||-x|a b|--|v=1|/usr\n"));
    }
}
