//! [`LinkConfig`]: what one end of a link is and takes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tombolo_transport::{Cid, Incarnation};

use crate::connection::{Config, PeerInfo, Proof, Side};
use crate::error::LinkError;
use crate::wire::hello::{FRAME_BYTES_MIN, WINDOW_BYTES_MIN};

/// Decides who may link with us, and which secret it must prove.
pub type Chooser = Arc<dyn Fn(&PeerInfo) -> Result<[u8; 32], String> + Send + Sync>;

/// How the two ends of a link prove to each other who they are.
#[derive(Clone)]
pub enum Auth {
    /// Not at all: for connections that are trusted for another reason, such as the permissions of a Unix socket.
    None,
    /// Both ends know this per-boot secret.
    Secret([u8; 32]),
    /// Both ends know the secret that this function finds for whoever claims to be there, by CID and incarnation.
    /// Its `Err` is a reason, such as a stale incarnation, that both sides get to see.
    Choose(Chooser),
}

impl Auth {
    /// [`Auth::Choose`] from a closure.
    pub fn choose(chooser: impl Fn(&PeerInfo) -> Result<[u8; 32], String> + Send + Sync + 'static) -> Self {
        Self::Choose(Arc::new(chooser))
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Secret(_) => "Secret(..)",
            Self::Choose(_) => "Choose(..)",
        })
    }
}

/// What one end of a link is and takes. Start from [`LinkConfig::new`] and change what you need.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// This kernel. Default: [`Cid::HOST`].
    pub cid: Cid,
    /// This boot of this kernel. Default: [`Incarnation::NONE`].
    pub incarnation: Incarnation,
    /// What this end is, in a word, such as `agent`. At most 200 bytes.
    pub role: String,
    /// What program this is, for people. Default: the version of this crate. At most 200 bytes.
    pub build: String,
    /// How both ends prove who they are. Default: not at all.
    pub auth: Auth,
    /// Whom this end expects, if it knows; another incarnation is refused.
    pub expect_incarnation: Option<Incarnation>,
    /// How long HELLO and PROOF may take. Default 5 s.
    pub handshake_timeout: Duration,
    /// Deadline of unary calls that set none. Default 10 s.
    pub default_deadline: Duration,
    /// Longest request, answer or item that is taken, in bytes. Default 16 MiB.
    pub message_bytes_max: u32,
    /// Longest metadata of a call that is taken, in bytes. Default 4 KiB.
    pub metadata_bytes_max: u16,
    /// Most calls from the peer under way at once; more are refused as overloaded. Default 1024.
    pub calls_max: u32,
    /// Most bytes of long requests, items and answers that have arrived in part, over all calls: beyond it calls of the peer's are
    /// refused as overloaded, and ours given up. Default 64 MiB.
    pub assembly_bytes_max: usize,
    /// Bytes that the peer may send ahead on each stream. Default 256 KiB; at least 32 KiB.
    pub window_bytes: u32,
    /// Silence after which the peer is asked for a sign of life. Default 5 s.
    pub keepalive: Duration,
    /// Silence after which the peer is taken for dead. Default 15 s.
    pub silence_max: Duration,
    /// Whether the first step of a unary handler runs on the link's own task. Saves a task for handlers that answer
    /// without waiting; turn it off if handlers compute for long before they first wait. Default true.
    pub inline_handlers: bool,
}

impl LinkConfig {
    /// The defaults, with this role.
    pub fn new(role: impl Into<String>) -> Self {
        Self {
            cid: Cid::HOST,
            incarnation: Incarnation::NONE,
            role: role.into(),
            build: concat!("tombolo ", env!("CARGO_PKG_VERSION")).to_owned(),
            auth: Auth::None,
            expect_incarnation: None,
            handshake_timeout: Duration::from_secs(5),
            default_deadline: Duration::from_secs(10),
            message_bytes_max: 16 * 1024 * 1024,
            metadata_bytes_max: 4 * 1024,
            calls_max: 1024,
            assembly_bytes_max: 64 * 1024 * 1024,
            window_bytes: 256 * 1024,
            keepalive: Duration::from_secs(5),
            silence_max: Duration::from_secs(15),
            inline_handlers: true,
        }
    }

    /// Says which kernel, and which boot of it, this is.
    pub fn identity(mut self, cid: Cid, incarnation: Incarnation) -> Self {
        self.cid = cid;
        self.incarnation = incarnation;
        self
    }

    /// Says how both ends prove who they are.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Why the peer, of incarnation `found`, is not the one expected; `None` if it is.
    pub(crate) fn unexpected(&self, found: Option<Incarnation>) -> Option<LinkError> {
        match (self.expect_incarnation, found) {
            (Some(expected), Some(found)) if expected != found => Some(LinkError::NotAuthenticated(format!(
                "stale or foreign incarnation: expected {expected}, found {found}"
            ))),
            _ => None,
        }
    }

    /// What the protocol core needs. `frame_bytes_max`: the longest message of the transport. `fragment_bytes`: how long the parts of something long are best
    /// there.
    pub(crate) fn core(
        &self,
        side: Side,
        nonce: [u8; 32],
        frame_bytes_max: u32,
        fragment_bytes: usize,
    ) -> Config {
        Config {
            side,
            cid: self.cid,
            incarnation: self.incarnation,
            nonce,
            proof: match &self.auth {
                Auth::None => Proof::None,
                Auth::Secret(secret) => Proof::Secret(*secret),
                Auth::Choose(_) => Proof::Chosen,
            },
            role: self.role.clone(),
            build: self.build.clone(),
            frame_bytes_max,
            fragment_bytes: u32::try_from(fragment_bytes).unwrap_or(u32::MAX),
            message_bytes_max: self.message_bytes_max,
            metadata_bytes_max: self.metadata_bytes_max,
            calls_max: self.calls_max,
            assembly_bytes_max: self.assembly_bytes_max,
            window_bytes: self.window_bytes.max(WINDOW_BYTES_MIN),
            handshake_timeout: self.handshake_timeout,
            keepalive: self.keepalive,
            silence_max: self.silence_max,
        }
    }
}

/// Whether a transport whose longest message has `frame_bytes` bytes can carry a link.
pub(crate) fn check_frame_bytes(frame_bytes: u32) -> Result<(), LinkError> {
    if frame_bytes >= FRAME_BYTES_MIN {
        return Ok(());
    }
    Err(LinkError::Incompatible(format!(
        "the connection carries messages of at most {frame_bytes} bytes; {FRAME_BYTES_MIN} are needed"
    )))
}
