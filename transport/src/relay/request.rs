//! What is asked over a relayed stream before its bytes begin, and the answer. Bytes in, values out: see `docs/relay.md`.

use std::time::Duration;

use crate::addr::{Addr, Cid, Port};
use crate::broker::protocol::Failure;
use crate::broker::record::ConnKind;

/// The version of what follows: another one is refused, whatever else it says.
const VERSION: u8 = 1;
/// Bytes of a request before its name.
pub(super) const REQUEST_HEAD_BYTES: usize = 24;
/// The longest name: of a kernel and a service, and the `/` between them.
pub(super) const NAME_BYTES_MAX: usize = u8::MAX as usize;
/// Bytes of an answer.
pub(super) const ANSWER_BYTES: usize = 12;
/// No request is given longer, whatever it asks for.
const WITHIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a stream to the relay port begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) what: What,
    /// How long the one who asks will wait.
    pub(super) within: Duration,
    /// Who calls. Believed from the primary only; the primary writes what it knows by itself in its place.
    pub(super) source: Addr,
    /// Who is called; of a [`What::Name`] the kernel that is asked, [`Cid::ANY`] to the primary.
    pub(super) target: Addr,
    /// Of a connection the name of the kernel that calls, which rules may be about; of a [`What::Name`] what is looked for.
    pub(super) name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Connection(ConnKind),
    Name,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The bytes of the connection follow.
    Connected,
    Resolved(Addr),
    Refused(Refusal),
}

/// Why there is no connection, or no such name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NobodyListens,
    BacklogFull,
    Denied,
    WrongKind,
    /// No such kernel, or nobody relays there.
    NoKernel,
    NoSuchName,
    TimedOut,
    /// As many connections are relayed as a kernel takes.
    TooMany,
    BadRequest,
}

impl Request {
    pub(super) fn encode(&self) -> Vec<u8> {
        let name = &self.name.as_bytes()[..self.name.len().min(NAME_BYTES_MAX)];
        let within_ms = u32::try_from(self.within.as_millis()).unwrap_or(u32::MAX);
        let mut bytes = vec![VERSION, self.what.code(), name.len() as u8, 0];
        for word in [within_ms, self.source.cid.0, self.source.port.0, self.target.cid.0, self.target.port.0]
        {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(name);
        bytes
    }

    /// How many bytes follow such a head.
    pub(super) fn name_len(head: &[u8; REQUEST_HEAD_BYTES]) -> usize {
        usize::from(head[2])
    }

    /// `None` for one that makes no sense.
    pub(super) fn decode(head: &[u8; REQUEST_HEAD_BYTES], name: &[u8]) -> Option<Self> {
        let what = What::of(head[1])?;
        if head[0] != VERSION || head[3] != 0 || name.len() != Self::name_len(head) {
            return None;
        }
        let request = Self {
            what,
            within: Duration::from_millis(word(head, 4).into()).min(WITHIN_MAX),
            source: Addr::new(Cid(word(head, 8)), Port(word(head, 12))),
            target: Addr::new(Cid(word(head, 16)), Port(word(head, 20))),
            name: std::str::from_utf8(name).ok()?.to_owned(),
        };
        let is_port = |port: Port| port.0 != 0 && port != Port::ANY;
        let has_ports = is_port(request.source.port) && is_port(request.target.port);
        // Nobody is called at the relay's own port through a relay: it would go round.
        let is_sound = match what {
            What::Connection(_) => has_ports && request.target.port != Port::RELAY,
            What::Name => !request.name.is_empty(),
        };
        is_sound.then_some(request)
    }
}

impl What {
    fn code(self) -> u8 {
        match self {
            Self::Connection(ConnKind::Stream) => 1,
            Self::Connection(ConnKind::Messages) => 2,
            Self::Name => 3,
        }
    }

    fn of(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Connection(ConnKind::Stream),
            2 => Self::Connection(ConnKind::Messages),
            3 => Self::Name,
            _ => return None,
        })
    }
}

impl Answer {
    pub(super) fn encode(self) -> [u8; ANSWER_BYTES] {
        let mut bytes = [0; ANSWER_BYTES];
        match self {
            Self::Connected => {}
            Self::Resolved(addr) => {
                bytes[0] = 1;
                bytes[4..8].copy_from_slice(&addr.cid.0.to_le_bytes());
                bytes[8..12].copy_from_slice(&addr.port.0.to_le_bytes());
            }
            Self::Refused(refusal) => bytes[0] = refusal.code(),
        }
        bytes
    }

    /// `None` for one that makes no sense.
    pub(super) fn decode(bytes: &[u8; ANSWER_BYTES]) -> Option<Self> {
        Some(match bytes[0] {
            0 => Self::Connected,
            1 => Self::Resolved(Addr::new(Cid(word(bytes, 4)), Port(word(bytes, 8)))),
            code => Self::Refused(Refusal::of(code)?),
        })
    }
}

impl Refusal {
    const ALL: [(u8, Self); 9] = [
        (2, Self::NobodyListens),
        (3, Self::BacklogFull),
        (4, Self::Denied),
        (5, Self::WrongKind),
        (6, Self::NoKernel),
        (7, Self::NoSuchName),
        (8, Self::TimedOut),
        (9, Self::TooMany),
        (10, Self::BadRequest),
    ];

    fn code(self) -> u8 {
        Self::ALL.iter().find(|(_, refusal)| *refusal == self).map_or(u8::MAX, |(code, _)| *code)
    }

    fn of(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|(other, _)| *other == code).map(|(_, refusal)| *refusal)
    }

    /// The same to an application that called `target`, or looked for a name.
    pub(crate) fn failure(self, target: Addr) -> Failure {
        let refused = |reason: &str| Failure::Refused { reason: reason.into() };
        match self {
            Self::NobodyListens => refused("nobody listens there"),
            Self::BacklogFull => refused("its backlog is full; try again when it has accepted some"),
            Self::WrongKind => {
                refused("its listener takes the other kind of connection: streams, or messages")
            }
            Self::NoKernel => refused("no kernel of that cid is up, or no relay leads there"),
            Self::TooMany => refused("as many connections are relayed as a kernel takes; close some"),
            Self::BadRequest => refused("the relay did not understand the call: use builds of one release"),
            Self::Denied => Failure::Denied {
                reason: format!(
                    "no rule of cid {} lets this kernel call port {}; `tombolo policy allow` makes one",
                    target.cid, target.port
                ),
            },
            Self::TimedOut => Failure::TimedOut,
            Self::NoSuchName => {
                Failure::NotFound { reason: "no kernel of that name is up, or it has no such service".into() }
            }
        }
    }
}

/// Any bytes are a request and an answer that are sound, and can be written again, or none.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_requests(bytes: &[u8]) {
    if let Some((head, name)) = bytes.split_first_chunk()
        && let Some(request) = Request::decode(head, name)
    {
        assert!(request.within <= WITHIN_MAX && request.name.len() <= NAME_BYTES_MAX);
        assert!(request.what == What::Name || request.target.port != Port::RELAY);
        let again = request.encode();
        let (head, name) = again.split_first_chunk().expect("it has a head");
        assert_eq!(Request::decode(head, name), Some(request));
    }
    if let Some(answer) = bytes.first_chunk().and_then(Answer::decode) {
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
    }
}

/// The word at `offset`, which is within `bytes`.
fn word(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(bytes: &[u8]) -> Option<Request> {
        let (head, name) = bytes.split_first_chunk()?;
        Request::decode(head, name)
    }

    prop_compose! {
        fn request()(
            what in prop_oneof![
                Just(What::Connection(ConnKind::Stream)),
                Just(What::Connection(ConnKind::Messages)),
                Just(What::Name)
            ],
            within_ms in 0..WITHIN_MAX.as_millis() as u64,
            cids in any::<[u32; 2]>(),
            ports in [3..u32::MAX, 3..u32::MAX],
            name in "[a-zä/]{1,100}",
        ) -> Request {
            let [source, target] = [0, 1].map(|n| Addr::new(Cid(cids[n]), Port(ports[n])));
            Request { what, within: Duration::from_millis(within_ms), source, target, name }
        }
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(request in request()) {
            prop_assert_eq!(decoded(&request.encode()), Some(request));
        }

        #[test]
        fn any_bytes_are_a_request_that_is_sound_or_none(
            known in any::<bool>(), code in 0..5_u8, mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            if known && bytes.len() > REQUEST_HEAD_BYTES {
                (bytes[0], bytes[1], bytes[3]) = (VERSION, code, 0);
                let name_len = (bytes.len() - REQUEST_HEAD_BYTES).min(NAME_BYTES_MAX);
                bytes[2] = name_len as u8;
                bytes.truncate(REQUEST_HEAD_BYTES + name_len);
            }
            if let Some(request) = decoded(&bytes) {
                prop_assert!(request.within <= WITHIN_MAX);
                prop_assert!(request.what == What::Name || request.target.port != Port::RELAY);
                prop_assert_eq!(decoded(&request.encode()), Some(request));
            }
        }

        #[test]
        fn any_bytes_are_an_answer_or_none(bytes in any::<[u8; ANSWER_BYTES]>()) {
            if let Some(answer) = Answer::decode(&bytes) {
                prop_assert_eq!(Answer::decode(&answer.encode()), Some(answer));
            }
        }
    }

    #[test]
    fn answers_survive_the_wire() {
        let refusals = Refusal::ALL.map(|(_, refusal)| Answer::Refused(refusal));
        let addr = Addr::new(Cid(3), Port(0xC000_0000));
        for answer in refusals.into_iter().chain([Answer::Connected, Answer::Resolved(addr)]) {
            assert_eq!(Answer::decode(&answer.encode()), Some(answer));
        }
    }

    #[test]
    fn calls_to_no_port_of_another_version_or_round_in_circles_are_no_requests() {
        let addr = Addr::new(Cid(3), Port(9));
        let sound = Request {
            what: What::Connection(ConnKind::Stream),
            within: Duration::from_secs(1),
            source: addr,
            target: addr,
            name: "web".into(),
        };
        assert!(decoded(&sound.encode()).is_some());
        for port in [Port(0), Port::ANY, Port::RELAY] {
            let bad = Request { target: Addr::new(Cid(3), port), ..sound.clone() };
            assert_eq!(decoded(&bad.encode()), None, "{port}");
        }
        let mut other_version = sound.encode();
        other_version[0] += 1;
        assert_eq!(decoded(&other_version), None);
        assert_eq!(decoded(&sound.encode()[..REQUEST_HEAD_BYTES + 1]), None, "its name is cut off");
    }
}
