//! Programs run by a real agent process, over a link.

mod common;

use common::{Agent, Written, eventually, process_exists, shell, spec, within};
use serde_json::json;
use tombolo_agent::api::exec::{Attach, ExecError, ExecIn, ExecSpec, ExitStatus, Signal, WindowSize};
use tombolo_rpc::{Blob, CallError};

fn stdin(text: &'static str) -> ExecIn {
    ExecIn::Stdin(Blob::from(text.as_bytes()))
}

fn app<T: std::fmt::Debug>(result: Result<T, CallError<ExecError>>) -> ExecError {
    match result {
        Err(CallError::App(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let mut spec = shell("echo out $WHO; echo err >&2; pwd; exit 7");
    spec.env.insert("WHO".into(), "me".into());
    spec.cwd = Some("/tmp".into());
    let (call, _input, mut out) = clients.exec.run(spec);
    let mut written = Written::default();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(7));
    assert_eq!((written.stdout_text().as_str(), &written.stderr[..]), ("out me\n/tmp\n", &b"err\n"[..]));
    assert!(written.pid > 0);
}

#[tokio::test]
async fn stdin_flows_in_and_its_end_is_seen() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, input, mut out) = clients.exec.run(ExecSpec { stdin: true, ..spec(&["cat"]) });
    let mut written = Written::default();
    for piece in ["hello ", "world"] {
        input.send(stdin(piece)).await.unwrap();
    }
    written.read_until(&mut out, "world").await;
    input.send(ExecIn::Eof).await.unwrap();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(0));
    assert_eq!(written.stdout_text(), "hello world");
}

#[tokio::test]
async fn megabytes_pass_unchanged_both_ways() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, input, mut out) = clients.exec.run(ExecSpec { stdin: true, ..spec(&["cat"]) });
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let expected = blake3::hash(&content);
    tokio::spawn(async move {
        for piece in content.chunks(50_000) {
            input.send(ExecIn::Stdin(Blob::from(piece.to_vec()))).await.unwrap();
        }
    });
    let mut written = Written::default();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(0));
    assert_eq!(blake3::hash(&written.stdout), expected);
    assert_eq!(written.gap, 0);
}

#[tokio::test]
async fn a_missing_program_is_an_error_that_names_it() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, _input, _out) = clients.exec.run(spec(&["no-such-program"]));
    let error = app(within(call).await);
    assert!(matches!(&error, ExecError::NotFound { program, .. } if program == "no-such-program"), "{error}");
    let tty = Some(WindowSize { rows: 1, cols: 1 });
    let (call, _input, _out) = clients.exec.run(ExecSpec { tty, ..spec(&["/no/such"]) });
    assert!(matches!(app(within(call).await), ExecError::NotFound { .. }));
    let script = agent.path("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (call, _input, _out) = clients.exec.run(spec(&[script.to_str().unwrap()]));
    let error = app(within(call).await);
    assert!(matches!(error, ExecError::NotExecutable { .. }) && error.to_string().contains("interpreter"));
}

#[tokio::test]
async fn a_job_whose_caller_goes_away_is_killed_with_its_children() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, _input, mut out) = clients.exec.run(shell("sleep 1000 & echo child $!.; wait"));
    let mut written = Written::default();
    written.read_until(&mut out, ".\n").await;
    let text = written.stdout_text();
    let child: u32 = text.trim_start_matches("child ").trim_end_matches(".\n").parse().unwrap();
    drop((call, out));
    eventually("the job and its child are gone", || !process_exists(written.pid) && !process_exists(child))
        .await;
    assert!(within(clients.exec.list()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_job_whose_callers_link_is_lost_is_killed() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, input, mut out) = clients.exec.run(shell("echo up.; exec sleep 1000"));
    let mut written = Written::default();
    written.read_until(&mut out, "up.").await;
    clients.link.close("the test ends it");
    drop((call, input, out, clients));
    eventually("the job is gone", || !process_exists(written.pid)).await;
}

#[tokio::test]
async fn a_detached_job_outlives_its_caller_and_is_read_from_any_offset() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let spec = ExecSpec {
        key: Some("one".into()),
        stdin: true,
        ..shell("echo first; read line; echo got $line; exit 4")
    };
    let job = within(clients.exec.start(spec.clone())).await.unwrap();
    assert_eq!(within(clients.exec.start(spec)).await.unwrap().job, job.job, "the key makes it one job");
    clients.link.close("the test ends it");

    let clients = agent.clients().await;
    let (call, input, mut out) = clients.exec.attach(Attach { job: job.job, from_offset: 0 });
    let mut written = Written::default();
    written.read_until(&mut out, "first\n").await;
    drop((call, input, out));

    let (call, input, mut out) = clients.exec.attach(Attach { job: job.job, from_offset: written.end });
    let mut rest = Written::default();
    input.send(stdin("word\n")).await.unwrap();
    rest.read_all(&mut out).await;
    assert_eq!(rest.stdout_text(), "got word\n");
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(4));
    assert_eq!(within(clients.exec.wait(job.job)).await.unwrap(), ExitStatus::Code(4));

    let info = within(clients.exec.list()).await.unwrap().remove(0);
    assert_eq!((info.exit, info.output_to), (Some(ExitStatus::Code(4)), 15));
    within(clients.exec.forget(job.job)).await.unwrap();
    assert!(matches!(app(within(clients.exec.wait(job.job)).await), ExecError::NoSuchJob { .. }));
}

#[tokio::test]
async fn a_key_means_one_job_and_only_a_detached_one() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let keyed = |spec: ExecSpec| ExecSpec { key: Some("one".into()), ..spec };
    let job = within(clients.exec.start(keyed(spec(&["sleep", "1000"])))).await.unwrap();
    let error = app(within(clients.exec.start(keyed(spec(&["sleep", "999"])))).await);
    assert!(matches!(&error, ExecError::Invalid { field, .. } if field == "key"), "{error}");
    // An attached job neither takes over the detached one nor is taken for it.
    let (call, _input, mut out) = clients.exec.run(keyed(shell("echo mine")));
    let mut written = Written::default();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(0));
    assert!(written.job != job.job && written.stdout_text() == "mine\n", "{written:?}");
    assert!(process_exists(job.pid));
}

#[tokio::test]
async fn a_detached_job_nobody_reads_drops_its_oldest_output_and_says_how_much() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let script = "i=0; while [ $i -lt 20 ]; do head -c 65536 /dev/zero; i=$((i+1)); done; echo end";
    let job = within(clients.exec.start(shell(script))).await.unwrap();
    assert_eq!(within(clients.exec.wait(job.job)).await.unwrap(), ExitStatus::Code(0));
    let (call, _input, mut out) = clients.exec.attach(Attach { job: job.job, from_offset: 0 });
    let mut written = Written::default();
    written.read_all(&mut out).await;
    within(call).await.unwrap();
    assert!(written.gap >= 1_000_000, "{}", written.gap);
    assert_eq!(written.gap + written.stdout.len() as u64, 20 * 65536 + 4);
    assert!(written.stdout.ends_with(b"end\n"));
}

#[tokio::test]
async fn a_terminal_has_a_size_that_changes() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let script = "tty >/dev/null && echo terminal; stty size; \
        trap 'stty size; echo resized' WINCH; echo ready; while :; do sleep 0.05; done";
    let tty = Some(WindowSize { rows: 24, cols: 80 });
    let (call, input, mut out) = clients.exec.run(ExecSpec { tty, ..shell(script) });
    let mut written = Written::default();
    written.read_until(&mut out, "ready").await;
    assert!(written.stdout_text().starts_with("terminal\r\n24 80\r\n"), "{written:?}");
    input.send(ExecIn::Resize(WindowSize { rows: 50, cols: 132 })).await.unwrap();
    written.read_until(&mut out, "resized").await;
    assert!(written.stdout_text().contains("50 132"), "{written:?}");
    // Ctrl-C, as typed.
    input.send(stdin("\x03")).await.unwrap();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Signal { signal: 2, core_dumped: false });
}

#[tokio::test]
async fn signals_go_by_name_and_number() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, input, mut out) =
        clients.exec.run(shell("trap 'echo usr1' USR1; echo up.; while :; do sleep 0.05; done"));
    let mut written = Written::default();
    written.read_until(&mut out, "up.").await;
    input.send(ExecIn::Signal(Signal::Name("USR1".into()))).await.unwrap();
    written.read_until(&mut out, "usr1").await;
    within(clients.exec.kill(written.job, Signal::Number(9))).await.unwrap();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Signal { signal: 9, core_dumped: false });
    let error = app(within(clients.exec.kill(written.job, Signal::Name("NOPE".into()))).await);
    assert!(error.to_string().contains("NOPE"), "{error}");
}

#[tokio::test]
async fn a_death_by_a_real_time_signal_is_reported() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, _input, _out) = clients.exec.run(shell("kill -40 $$"));
    assert_eq!(within(call).await.unwrap(), ExitStatus::Signal { signal: 40, core_dumped: false });
}

#[tokio::test]
async fn a_terminal_belongs_to_the_user_who_works_on_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let tty = Some(WindowSize { rows: 24, cols: 80 });
    let script = "stat -c %u $(tty); echo by name > $(tty)";
    let user = Some("4001:4002".to_owned());
    let (call, _input, mut out) = clients.exec.run(ExecSpec { tty, user, ..shell(script) });
    let mut written = Written::default();
    written.read_all(&mut out).await;
    assert_eq!(written.stdout_text(), "4001\r\nby name\r\n");
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(0));
}

#[tokio::test]
async fn a_job_that_takes_too_long_is_killed() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let spec = ExecSpec { timeout_ms: Some(100), ..spec(&["sleep", "1000"]) };
    let (call, _input, _out) = clients.exec.run(spec);
    assert_eq!(within(call).await.unwrap(), ExitStatus::TimedOut);
}

#[tokio::test]
async fn a_program_that_leaves_a_child_with_its_pipes_still_ends() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, _input, mut out) = clients.exec.run(shell("sleep 60 & echo done"));
    let mut written = Written::default();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(0));
    assert_eq!(written.stdout_text(), "done\n");
}

#[tokio::test]
async fn the_agent_itself_can_be_run_to_describe_the_kernel() {
    let agent = Agent::start(json!({}));
    let clients = agent.clients().await;
    let (call, _input, mut out) = clients.exec.run(spec(&["/proc/self/exe", "info", "--json"]));
    let mut written = Written::default();
    written.read_all(&mut out).await;
    assert_eq!(within(call).await.unwrap(), ExitStatus::Code(0));
    let info: serde_json::Value = serde_json::from_slice(&written.stdout).unwrap();
    assert_eq!(info["uname"]["sysname"], "Linux");
    assert!(info["memory_bytes"].as_u64().unwrap() > 0);
}
