//! The first part of a connection: HELLO, PROOF.

use super::{About, Config, Connection, Event, PeerInfo, Phase, Proof, Side};
use crate::error::LinkError;
use crate::wire::frame::{Header, Kind};
use crate::wire::hello::{FEATURES, Hello, HelloError, Limits, VERSIONS, proof};

impl Connection {
    pub(super) fn greet(&mut self) {
        let Config { side, cid, incarnation, nonce, ref role, ref build, .. } = self.config;
        self.hello = Hello {
            versions: (*VERSIONS.start(), *VERSIONS.end()),
            side,
            proves: self.config.proof != Proof::None,
            features: FEATURES,
            cid,
            incarnation,
            nonce,
            limits: Limits {
                frame_bytes: self.config.frame_bytes_max,
                message_bytes: self.config.message_bytes_max,
                metadata_bytes: self.config.metadata_bytes_max,
                calls: self.config.calls_max,
                window_bytes: self.config.window_bytes,
            },
            role: role.clone(),
            build: build.clone(),
        }
        .encode();
        self.control.push(About::Link, |out| {
            out.extend_from_slice(&Header::new(Kind::Hello, 0).to_bytes());
            out.extend_from_slice(&self.hello);
        });
    }

    pub(super) fn handle_hello(&mut self, body: &[u8]) {
        if self.phase != Phase::Greeting {
            return self.violation("a second HELLO");
        }
        let hello = match Hello::parse(body) {
            Ok(hello) => hello,
            Err(HelloError::Malformed(why)) => return self.violation(format!("bad HELLO: {why}")),
            Err(HelloError::Incompatible(why)) => return self.close(LinkError::Incompatible(why)),
        };
        if hello.side == self.config.side {
            return self
                .violation(format!("both sides are {:?}: is the link connected to itself?", hello.side));
        }
        if hello.nonce == self.config.nonce {
            return self.close(LinkError::NotAuthenticated("the peer sent our own nonce back".to_owned()));
        }
        if hello.proves != (self.config.proof != Proof::None) {
            let why = if hello.proves {
                "the peer wants the per-boot secret proven, but none is configured here"
            } else {
                "the peer offers no proof of the per-boot secret, but it is required here"
            };
            return self.close(LinkError::NotAuthenticated(why.to_owned()));
        }
        let peer = PeerInfo {
            cid: hello.cid,
            incarnation: hello.incarnation,
            role: hello.role.clone(),
            build: hello.build.clone(),
            authenticated: false,
            version: hello.versions.1.min(*VERSIONS.end()),
        };
        self.peer_limits = hello.limits;
        self.peer_hello = body.to_vec();
        self.peer_info = Some(peer.clone());
        self.peer = Some(hello);
        self.phase = Phase::Proving { secret: None };
        match self.config.proof {
            Proof::None => self.established(),
            Proof::Secret(secret) => self.authenticate(secret),
            Proof::Chosen => self.events.push_back(Event::PeerHello(peer)),
        }
    }

    /// Answers [`Event::PeerHello`]: this is the secret that the peer, and we, must prove.
    pub fn authenticate(&mut self, secret: [u8; 32]) {
        if self.phase != (Phase::Proving { secret: None }) {
            return;
        }
        let ours = self.proof_of(&secret, self.config.side);
        self.phase = Phase::Proving { secret: Some(secret) };
        self.control.push(About::Link, |out| {
            out.extend_from_slice(&Header::new(Kind::Proof, 0).to_bytes());
            out.extend_from_slice(ours.as_bytes());
        });
    }

    pub(super) fn handle_proof(&mut self, body: &[u8]) {
        let Phase::Proving { secret: Some(secret) } = &self.phase else {
            return self.violation("PROOF at the wrong time");
        };
        let Ok(theirs) = <[u8; 32]>::try_from(body) else {
            return self.violation(format!("PROOF of {} bytes, not 32", body.len()));
        };
        // Compared in constant time.
        if self.proof_of(secret, self.config.side.other()) != blake3::Hash::from_bytes(theirs) {
            return self.close(LinkError::NotAuthenticated(
                "the peer does not know the per-boot secret of this kernel".to_owned(),
            ));
        }
        if let Some(peer) = &mut self.peer_info {
            peer.authenticated = true;
        }
        self.established();
    }

    fn proof_of(&self, secret: &[u8; 32], prover: Side) -> blake3::Hash {
        match self.config.side {
            Side::Connector => proof(secret, prover, &self.hello, &self.peer_hello),
            Side::Acceptor => proof(secret, prover, &self.peer_hello, &self.hello),
        }
    }

    fn established(&mut self) {
        self.phase = Phase::Open;
        self.events.push_back(Event::Established);
    }
}
