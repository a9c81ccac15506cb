//! Idempotency keys: a call that was answered is answered again, not run again.
//!
//! A caller that lost its link does not know whether its call has run. If the call carried a key, it sends it again with the
//! same key: while the window lasts the server gives the answer that it gave. What holds, for unary methods of a
//! router with [`Router::replay`](super::Router::replay):
//! - of the calls of one peer with one key at most one runs at a time; another is shed meanwhile ([`Failure::Overloaded`](crate::Failure)),
//! - once it has answered (an application's error is an answer too), calls with the same method and arguments get that
//!   answer, and those with others are refused,
//! - a call with a key outlives its caller and its link, up to its deadline; otherwise there would be nothing to replay. (Not
//!   on a [`BusyServer`](crate::BusyServer), which has nowhere to go on with it.) One that ends without an answer (deadline,
//!   panic) is forgotten: the next one runs.
//!
//! Keys belong to the peer's kernel, by its CID if it has proven who it is; all others share one space, so let keys be random.
//! Nothing is kept on disk: a restart of the server forgets.
//!
//! [`Replays`] does no I/O and takes the time as an argument.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tombolo_transport::Cid;

/// How much is remembered of calls with idempotency keys, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct ReplayLimits {
    /// How long an answer is kept. Default 5 min.
    pub window: Duration,
    /// Keys of one peer that are remembered; calls with more are shed, so that no promise is broken. Default 1024.
    pub keys_per_peer: usize,
    /// Longest answer that is kept, in bytes; whoever asks for a longer one again is refused. Default 64 KiB.
    pub answer_bytes_max: usize,
    /// How long a call without a deadline may go on after its caller has gone. Default 10 min.
    pub run_max: Duration,
}

impl Default for ReplayLimits {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(5 * 60),
            keys_per_peer: 1024,
            answer_bytes_max: 64 * 1024,
            run_max: Duration::from_secs(10 * 60),
        }
    }
}

/// The longest key, in bytes.
pub(super) const KEY_BYTES_MAX: usize = 128;
/// When to ask again for the answer of a call that is running.
const RUNNING_RETRY: Duration = Duration::from_millis(50);

/// Whose keys: a kernel that has proven who it is, or anybody.
pub(super) type Scope = Option<Cid>;

/// A hash of what is called and with what.
pub(super) type RequestHash = [u8; 32];

/// An encoded answer, and whether it is the application's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) app_error: bool,
    pub(super) payload: Bytes,
}

/// What is to become of a call with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Run it, then say [`Replays::answered`] or [`Replays::forget`].
    Run,
    /// It has been answered.
    Replay(Answer),
    /// The key stands for another call.
    OtherRequest,
    /// It has been answered; the answer, of so many bytes, was too long to be kept.
    NotKept(usize),
    /// It is running, or there is no room for another key.
    Later(Duration),
}

/// The calls with keys of one router.
#[derive(Debug)]
pub(super) struct Replays {
    pub(super) limits: ReplayLimits,
    peers: HashMap<Scope, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    entries: HashMap<Box<[u8]>, Entry>,
    /// Answered keys with the time at which each is forgotten, in nanoseconds; the earliest first.
    expiring: VecDeque<(u64, Box<[u8]>)>,
}

#[derive(Debug)]
struct Entry {
    request: RequestHash,
    state: State,
}

#[derive(Debug)]
enum State {
    Running,
    Answered(Answer),
    NotKept(usize),
}

impl Replays {
    pub(super) fn new(limits: ReplayLimits) -> Self {
        Self { limits, peers: HashMap::new() }
    }

    /// A call with `key` has come in.
    pub(super) fn begin(&mut self, now_ns: u64, scope: Scope, key: &[u8], request: RequestHash) -> Verdict {
        self.expire(now_ns);
        let peer = self.peers.entry(scope).or_default();
        if let Some(entry) = peer.entries.get(key) {
            return match &entry.state {
                _ if entry.request != request => Verdict::OtherRequest,
                State::Running => Verdict::Later(RUNNING_RETRY),
                State::Answered(answer) => Verdict::Replay(answer.clone()),
                State::NotKept(len) => Verdict::NotKept(*len),
            };
        }
        if peer.entries.len() >= self.limits.keys_per_peer {
            let next_ns = peer.expiring.front().map(|(at, _)| at.saturating_sub(now_ns));
            return Verdict::Later(next_ns.map_or(RUNNING_RETRY, Duration::from_nanos).max(RUNNING_RETRY));
        }
        peer.entries.insert(key.into(), Entry { request, state: State::Running });
        Verdict::Run
    }

    /// The running call with `key` has been answered.
    pub(super) fn answered(&mut self, now_ns: u64, scope: Scope, key: &[u8], answer: Answer) {
        let window_ns = u64::try_from(self.limits.window.as_nanos()).unwrap_or(u64::MAX);
        let Some(peer) = self.peers.get_mut(&scope) else { return };
        let Some(entry) = peer.entries.get_mut(key) else { return };
        let len = answer.payload.len();
        let kept = len <= self.limits.answer_bytes_max;
        entry.state = if kept { State::Answered(answer) } else { State::NotKept(len) };
        peer.expiring.push_back((now_ns.saturating_add(window_ns), key.into()));
    }

    /// The running call with `key` has ended without an answer.
    pub(super) fn forget(&mut self, scope: Scope, key: &[u8]) {
        if let Some(peer) = self.peers.get_mut(&scope) {
            peer.entries.remove(key);
        }
    }

    fn expire(&mut self, now_ns: u64) {
        self.peers.retain(|_, peer| {
            while peer.expiring.front().is_some_and(|(at, _)| *at <= now_ns) {
                let Some((_, key)) = peer.expiring.pop_front() else { break };
                peer.entries.remove(&key);
            }
            !peer.entries.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const US: Scope = Some(Cid(3));

    fn replays() -> Replays {
        Replays::new(ReplayLimits {
            window: Duration::from_secs(10),
            keys_per_peer: 2,
            answer_bytes_max: 8,
            run_max: Duration::from_secs(1),
        })
    }

    fn answer(payload: &'static [u8]) -> Answer {
        Answer { app_error: false, payload: Bytes::from_static(payload) }
    }

    #[test]
    fn answered_call_is_replayed_until_its_window_ends() {
        let mut replays = replays();
        assert_eq!(replays.begin(0, US, b"k", [1; 32]), Verdict::Run);
        assert_eq!(replays.begin(0, US, b"k", [1; 32]), Verdict::Later(RUNNING_RETRY));
        replays.answered(5 * SECOND, US, b"k", answer(b"yes"));
        assert_eq!(replays.begin(15 * SECOND - 1, US, b"k", [1; 32]), Verdict::Replay(answer(b"yes")));
        assert_eq!(replays.begin(15 * SECOND, US, b"k", [1; 32]), Verdict::Run);
    }

    #[test]
    fn key_stands_for_one_request_running_or_answered() {
        let mut replays = replays();
        replays.begin(0, US, b"k", [1; 32]);
        assert_eq!(replays.begin(0, US, b"k", [2; 32]), Verdict::OtherRequest);
        replays.answered(0, US, b"k", answer(b"yes"));
        assert_eq!(replays.begin(0, US, b"k", [2; 32]), Verdict::OtherRequest);
    }

    #[test]
    fn peers_do_not_see_each_others_answers() {
        let mut replays = replays();
        replays.begin(0, US, b"k", [1; 32]);
        replays.answered(0, US, b"k", answer(b"ours"));
        assert_eq!(replays.begin(0, None, b"k", [1; 32]), Verdict::Run);
        assert_eq!(replays.begin(0, Some(Cid(4)), b"k", [1; 32]), Verdict::Run);
    }

    #[test]
    fn call_without_an_answer_is_forgotten() {
        let mut replays = replays();
        replays.begin(0, US, b"k", [1; 32]);
        replays.forget(US, b"k");
        assert_eq!(replays.begin(0, US, b"k", [2; 32]), Verdict::Run);
    }

    #[test]
    fn too_long_answer_is_not_kept_and_not_run_again() {
        let mut replays = replays();
        replays.begin(0, US, b"k", [1; 32]);
        replays.answered(0, US, b"k", answer(b"123456789"));
        assert_eq!(replays.begin(0, US, b"k", [1; 32]), Verdict::NotKept(9));
    }

    #[test]
    fn full_memory_sheds_new_keys_of_that_peer_and_keeps_its_promises() {
        let mut replays = replays();
        for key in [b"a", b"b"] {
            replays.begin(0, US, key, [1; 32]);
            replays.answered(0, US, key, answer(b"yes"));
        }
        assert_eq!(replays.begin(SECOND, US, b"c", [1; 32]), Verdict::Later(Duration::from_secs(9)));
        assert_eq!(replays.begin(SECOND, US, b"a", [1; 32]), Verdict::Replay(answer(b"yes")));
        assert_eq!(replays.begin(SECOND, None, b"c", [1; 32]), Verdict::Run);
        assert_eq!(replays.begin(10 * SECOND, US, b"c", [1; 32]), Verdict::Run);
        assert_eq!(replays.peers.values().map(|peer| peer.entries.len()).sum::<usize>(), 2);
    }
}
