//! QEMU's machine protocol, as much of it as is needed: one command at a time over a Unix socket, a line of JSON each way.
//!
//! QEMU greets; `qmp_capabilities` must be the first command; events may come between a command and its answer, which bears
//! its id (docs/interop/qmp-spec.txt in QEMU's source). Those of a session are kept for who asks ([`Session::take_events`]); how a
//! machine ends its keeper hears over a monitor of its own (see [`crate::keeper`]). QEMU carries out commands in the order in which they come, so what
//! does not depend on an answer does not wait for it: under emulation each round trip costs a millisecond or more.
//!
//! QEMU serves one client at a time and lets others wait, so sessions are short and every one has a deadline.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::keeper::unix_address;

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Of the first command, which is `qmp_capabilities`.
const CAPABILITIES_ID: u64 = 1;
/// When it is tried again to connect where too many wait.
const CONNECT_AGAIN: Duration = Duration::from_millis(2);
/// Events that are kept.
const EVENTS_MAX: usize = 64;

/// Why a command was not carried out, or may not have been.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// Nobody serves the socket (yet).
    #[error("its monitor cannot be reached: {0}")]
    Absent(#[source] io::Error),
    /// The connection broke, or what came is no QMP.
    #[error("its monitor broke off: {0}")]
    Broken(#[source] io::Error),
    /// QEMU refused.
    #[error("its monitor refused `{command}`: {reason}")]
    Refused {
        /// Which command.
        command: String,
        /// QEMU's own words.
        reason: String,
    },
    /// No answer in time; it may have been carried out.
    #[error("its monitor did not answer within {0:?}")]
    Silent(Duration),
}

/// Connects to the socket `name` in `dir` and does with it what `exchange` says, all within `deadline`.
pub(super) async fn session<T, F>(
    dir: &Path,
    name: &str,
    deadline: Duration,
    exchange: impl FnOnce(Session<UnixStream>) -> F,
) -> Result<T, QmpError>
where
    F: Future<Output = Result<T, QmpError>>,
{
    let whole = async {
        let (path, _dir) = unix_address(dir, name).map_err(QmpError::Absent)?;
        let stream = loop {
            match UnixStream::connect(&path).await {
                // Others wait for their turn, too, and the queue is short.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(CONNECT_AGAIN).await,
                outcome => break outcome.map_err(QmpError::Absent)?,
            }
        };
        exchange(Session::begin(stream)).await
    };
    timeout(deadline, whole).await.unwrap_or(Err(QmpError::Silent(deadline)))
}

/// A connection that takes commands.
#[derive(Debug)]
pub(super) struct Session<S> {
    stream: BufReader<S>,
    /// Whether QEMU has greeted.
    is_greeted: bool,
    /// What is to go with the next command.
    unsent: String,
    next_id: u64,
    /// The last events that came while answers were waited for.
    events: VecDeque<Value>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    fn begin(stream: S) -> Self {
        let mut session = Self {
            stream: BufReader::new(stream),
            is_greeted: false,
            unsent: String::new(),
            next_id: 1,
            events: VecDeque::new(),
        };
        session.add("qmp_capabilities", &json!({}));
        session
    }

    /// Has one command carried out, and returns its answer.
    pub(super) async fn run(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let [answer] = self.run_all([(command, arguments)]).await?;
        Ok(answer)
    }

    /// Has commands carried out one after the other, and returns their answers. What comes after one that is refused is carried out all the
    /// same.
    pub(super) async fn run_all<const N: usize>(
        &mut self,
        commands: [(&str, Value); N],
    ) -> Result<[Value; N], QmpError> {
        let ids = commands.each_ref().map(|(command, arguments)| self.add(command, arguments));
        let lines = std::mem::take(&mut self.unsent);
        self.stream.write_all(lines.as_bytes()).await.map_err(QmpError::Broken)?;
        if !self.is_greeted {
            if self.line().await?.get("QMP").is_none() {
                return Err(broken("it does not greet as QEMU does"));
            }
            self.is_greeted = true;
            self.answer(CAPABILITIES_ID, "qmp_capabilities").await?;
        }
        let mut answers = [const { Value::Null }; N];
        for ((answer, id), (command, _)) in answers.iter_mut().zip(ids).zip(&commands) {
            *answer = self.answer(id, command).await?;
        }
        Ok(answers)
    }

    /// Lets a command go with the next that is sent; returns its id.
    fn add(&mut self, command: &str, arguments: &Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        self.unsent.push_str(&format!("{request}\n"));
        id
    }

    async fn answer(&mut self, id: u64, command: &str) -> Result<Value, QmpError> {
        loop {
            let mut answer = self.line().await?;
            // Events and answers to others come in between.
            if answer.get("id").and_then(Value::as_u64) != Some(id) {
                if answer.get("event").is_some() {
                    self.events.truncate(EVENTS_MAX - 1);
                    self.events.push_front(answer);
                }
                continue;
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("it does not say why");
                return Err(QmpError::Refused { command: command.to_owned(), reason: reason.to_owned() });
            }
            return match answer.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(broken("an answer is neither a result nor an error")),
            };
        }
    }

    /// The events that have come since they were last taken, the newest first. A machine that causes many loses the oldest.
    pub(super) fn take_events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    async fn line(&mut self) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        read.map_err(QmpError::Broken)?;
        if line.last() != Some(&b'\n') {
            return Err(broken("it ended within a line, or a line does not end"));
        }
        serde_json::from_slice(&line).map_err(|error| QmpError::Broken(error.into()))
    }
}

fn broken(reason: &str) -> QmpError {
    QmpError::Broken(io::Error::new(io::ErrorKind::InvalidData, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
    const READY: &str = r#"{"return": {}, "id": 1}"#;

    /// Has `stop` carried out by a QEMU that says these lines, whatever it is told. Also what it was told.
    async fn stop_and_told(lines: &[&str]) -> (Result<Value, QmpError>, String) {
        let (ours, theirs) = tokio::io::duplex(4 << 20);
        let said: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let qemu = tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(theirs);
            to.write_all(said.as_bytes()).await.unwrap();
            drop(to.shutdown().await);
            let mut told = String::new();
            let _ = from.read_to_string(&mut told).await;
            told
        });
        let outcome = async { Session::begin(ours).run("stop", json!({})).await }.await;
        (outcome, qemu.await.unwrap())
    }

    async fn stop(lines: &[&str]) -> Result<Value, QmpError> {
        stop_and_told(lines).await.0
    }

    #[tokio::test]
    async fn a_command_gets_its_own_answer_whatever_comes_before() {
        let event = r#"{"event": "STOP", "timestamp": {}}"#;
        let (other, answer) = (r#"{"return": 9, "id": 7}"#, r#"{"return": 5, "id": 2}"#);
        let (outcome, told) = stop_and_told(&[GREETING, event, READY, event, other, answer]).await;
        assert_eq!(outcome.unwrap(), 5);
        let told: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(told.len(), 2);
        assert_eq!((&told[0]["execute"], &told[1]["execute"]), (&json!("qmp_capabilities"), &json!("stop")));
    }

    #[tokio::test]
    async fn commands_that_go_together_get_an_answer_each() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let refusal = r#"{"error": {"desc": "not now"}, "id": 4}"#;
        let answers = r#"{"return": 5, "id": 2}"#.to_owned() + "\n" + r#"{"return": 6, "id": 3}"#;
        theirs.write_all(format!("{GREETING}\n{READY}\n{answers}\n{refusal}\n").as_bytes()).await.unwrap();
        let mut session = Session::begin(ours);
        let both = session.run_all([("stop", json!({})), ("cont", json!({}))]).await.unwrap();
        assert_eq!(both, [json!(5), json!(6)]);
        let two = session.run_all([("quit", json!({})), ("stop", json!({}))]).await;
        assert_eq!(two.unwrap_err().to_string(), "its monitor refused `quit`: not now");
    }

    #[tokio::test]
    async fn events_are_kept_until_they_are_taken_and_the_oldest_are_lost() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let events: String = (0..100).map(|n| format!("{{\"event\": \"E\", \"data\": {n}}}\n")).collect();
        let answer = r#"{"return": {}, "id": 2}"#;
        theirs.write_all(format!("{GREETING}\n{READY}\n{events}{answer}\n").as_bytes()).await.unwrap();
        let mut session = Session::begin(ours);
        session.run("stop", json!({})).await.unwrap();
        let taken: Vec<u64> =
            session.take_events().iter().map(|event| event["data"].as_u64().unwrap()).collect();
        assert_eq!((taken.len(), taken[0], taken[63]), (EVENTS_MAX, 99, 36));
        assert!(session.take_events().is_empty());
    }

    #[tokio::test]
    async fn a_refusal_bears_qemus_own_words() {
        let refusal = r#"{"error": {"class": "GenericError", "desc": "not now"}, "id": 2}"#;
        let error = stop(&[GREETING, READY, refusal]).await.unwrap_err();
        assert_eq!(error.to_string(), "its monitor refused `stop`: not now");
    }

    #[tokio::test]
    async fn what_is_no_qmp_is_an_error() {
        for lines in [
            &[][..],
            &["nonsense"],
            &["{}"],
            &["[1]"],
            &[GREETING],
            &[GREETING, r#"{"id": 1}"#],
            &[GREETING, READY, r#"{"error": 3, "id": 2}"#],
            &[GREETING, "\u{0}"],
        ] {
            assert!(stop(lines).await.is_err(), "{lines:?}");
        }
        let endless = "x".repeat(2 << 20);
        assert!(stop(&[&endless]).await.is_err());
    }

    #[tokio::test]
    async fn many_who_want_a_monitor_at_once_all_get_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None);
        let socket = socket.unwrap();
        rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
        // As QEMU does.
        rustix::net::listen(&socket, 1).unwrap();
        let listener = std::os::unix::net::UnixListener::from(socket);
        let qemu = std::thread::spawn(move || {
            for _ in 0..8 {
                let (mut client, _) = listener.accept().unwrap();
                let answers = format!("{GREETING}\n{READY}\n{{\"return\": 5, \"id\": 2}}\n");
                std::io::Write::write_all(&mut client, answers.as_bytes()).unwrap();
                // Until it has had enough.
                let _ = std::io::Read::read_to_string(&mut client, &mut String::new());
            }
        });
        let limit = Duration::from_secs(60);
        let ask = || {
            session(dir.path(), "q", limit, |mut session| async move { session.run("stop", json!({})).await })
        };
        let answers = tokio::join!(ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask());
        let (a, b, c, d, e, f, g, h) = answers;
        assert!([a, b, c, d, e, f, g, h].into_iter().all(|answer| answer.unwrap() == 5));
        qemu.join().unwrap();
    }

    #[tokio::test]
    async fn a_monitor_that_says_nothing_is_given_up_and_one_that_is_not_there_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let ask = || {
            let limit = Duration::from_millis(100);
            session(dir.path(), "q", limit, |mut session| async move { session.run("stop", json!({})).await })
        };
        assert!(matches!(ask().await, Err(QmpError::Absent(_))));
        let listener = tokio::net::UnixListener::bind(dir.path().join("q")).unwrap();
        assert!(matches!(ask().await, Err(QmpError::Silent(_))));
        drop(listener);
        assert!(matches!(ask().await, Err(QmpError::Absent(_))));
    }
}
