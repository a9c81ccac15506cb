//! Connections: from CONNECT to the last CLOSED.

use std::time::{Duration, Instant};

use super::{BrokerCore, Call, ClientId, Conn, ConnState, Ends, Output, half_len};
use crate::addr::{Addr, Cid, Port};
use crate::broker::protocol::{Failure, Grant, Reply, ServerMessage};
use crate::broker::quota::Held;
use crate::broker::record::{ConnKind, HalfRef, Record, RefuseCode};
use crate::pool::Member;
use crate::ring::HalfLayout;

/// Why there is no half for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoHalf {
    Memory,
    Quota,
}

/// No connect waits longer than this, whatever its caller asks for.
const TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

impl BrokerCore {
    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn connect(
        &mut self,
        now: Instant,
        client: ClientId,
        request: u64,
        addr: Addr,
        kind: ConnKind,
        layout: u32,
        timeout_ms: u64,
    ) -> Result<(), Failure> {
        let layout = checked_layout(layout, kind).map_err(|reason| Failure::Invalid { reason })?;
        if addr.port == Port::ANY || addr.port.0 == 0 {
            return Err(Failure::Invalid { reason: format!("one cannot connect to port {}", addr.port) });
        }
        if addr.port == Port::RELAY && !self.clients.get(&client).is_some_and(|client| client.privileged) {
            let reason = "what is relayed goes by the broker: connect to the address itself".into();
            return Err(Failure::Denied { reason });
        }
        let (peer, peer_generation) = self.find_kernel(addr.cid)?;
        let half = self.allocate_half(client, peer, layout).map_err(|no_half| match no_half {
            NoHalf::Memory => Failure::NoMemory { cid: self.own_cid(), needed: layout.total_len() as u64 },
            NoHalf::Quota => Failure::Refused { reason: self.quota_reached(peer) },
        })?;
        let id = self.fresh_id().get();
        let local = Addr::new(self.own_cid(), self.fresh_ephemeral());
        let remote = Addr::new(if addr.cid == Cid::LOCAL { self.own_cid() } else { addr.cid }, addr.port);
        let deadline = now + Duration::from_millis(timeout_ms.min(TIMEOUT_MS_MAX));
        let call = Call { client, request, deadline, ends: Ends { kind, local, remote } };
        let conn = Conn {
            state: ConnState::Connecting(Box::new(call)),
            peer,
            peer_generation,
            peer_id: 0,
            peer_closed: false,
            half,
            waits_at: None,
            is_charged: true,
        };
        self.conns.insert(id, conn);
        self.deadlines.insert((deadline, id));
        let (src_port, dst_port) = (local.port.0, addr.port.0);
        self.send(peer, Record::Connect { from: id, kind, half, src_port, dst_port });
        Ok(())
    }

    /// The acceptor's side: answers at once.
    pub(super) fn handle_connect(
        &mut self,
        peer: Member,
        from: u64,
        kind: ConnKind,
        peer_half: HalfRef,
        src: Port,
        dst: Port,
    ) {
        if let Err(code) = self.admit(peer, from, kind, peer_half, src, dst) {
            if code == RefuseCode::BadRequest {
                self.bad_records += 1;
            }
            self.send(peer, Record::Refuse { to: from, code });
        }
    }

    fn admit(
        &mut self,
        peer: Member,
        from: u64,
        kind: ConnKind,
        peer_half: HalfRef,
        src: Port,
        dst: Port,
    ) -> Result<(), RefuseCode> {
        self.check_peer_half(peer, &peer_half, kind).map_err(|_| RefuseCode::BadRequest)?;
        let (peer_cid, peer_generation) = self.members[peer.index()]
            .as_ref()
            .map(|m| (m.cid, m.generation))
            .ok_or(RefuseCode::BadRequest)?;
        // Denied comes before "nobody listens": who may not call does not learn what is there.
        let service = self.listeners.get(&dst).and_then(|listener| listener.name.as_deref());
        if !self.is_allowed(peer, dst, service) {
            return Err(RefuseCode::Denied);
        }
        let listener = self.listeners.get(&dst).ok_or(RefuseCode::NoListener)?;
        if listener.kind != kind {
            return Err(RefuseCode::WrongKind);
        }
        if listener.waiting >= listener.backlog {
            return Err(RefuseCode::BacklogFull);
        }
        let (client, layout, listener_id) = (listener.client, listener.layout, listener.id);
        let half = self.allocate_half(client, peer, layout).map_err(|no_half| match no_half {
            NoHalf::Memory => RefuseCode::NoMemory,
            NoHalf::Quota => RefuseCode::Quota,
        })?;
        let id = self.fresh_id().get();
        let conn = Conn {
            state: ConnState::Established { client },
            peer,
            peer_generation,
            peer_id: from,
            peer_closed: false,
            half,
            waits_at: Some(listener_id),
            is_charged: true,
        };
        if let Some(listener) = self.listeners.get_mut(&dst) {
            listener.waiting += 1;
        }
        let ends = Ends { kind, local: Addr::new(self.own_cid(), dst), remote: Addr::new(peer_cid, src) };
        let grant = self.grant(id, &conn, client, ends, peer_half);
        self.conns.insert(id, conn);
        self.outputs.push_back(Output::ToClient(client, ServerMessage::Incoming { port: dst, grant }));
        self.send(peer, Record::Accept { from: id, to: from, half });
        Ok(())
    }

    pub(super) fn handle_accept(&mut self, peer: Member, from: u64, to: u64, peer_half: HalfRef) {
        let Some(conn) = self.conn_of(peer, to) else { return };
        match &conn.state {
            ConnState::Connecting(call) => {
                let Call { client, request, deadline, ends } = **call;
                self.deadlines.remove(&(deadline, to));
                if let Err(reason) = self.check_peer_half(peer, &peer_half, ends.kind) {
                    // We hold no memory of theirs, they hold none that we would ever tell them to free: give ours up
                    // only once they say CLOSED.
                    self.bad_records += 1;
                    self.leave(to, from);
                    self.fail(client, request, Failure::Refused { reason });
                    return;
                }
                let Some(conn) = self.conns.get_mut(&to) else { return };
                conn.state = ConnState::Established { client };
                conn.peer_id = from;
                let conn = conn.clone();
                let grant = self.grant(to, &conn, client, ends, peer_half);
                self.answer(client, request, Ok(Reply::Connected(grant)));
            }
            ConnState::Abandoned => self.leave(to, from),
            ConnState::Established { .. } | ConnState::Leaving => self.bad_records += 1,
        }
    }

    pub(super) fn handle_refuse(&mut self, peer: Member, to: u64, code: RefuseCode) {
        let Some(conn) = self.conn_of(peer, to) else { return };
        match &conn.state {
            ConnState::Connecting(call) => {
                let (Call { client, request, ends, .. }, needed) = (**call, half_len(&conn.half));
                self.free(to);
                self.fail(client, request, refusal(code, ends.remote, needed));
            }
            ConnState::Abandoned => self.free(to),
            ConnState::Established { .. } | ConnState::Leaving => self.bad_records += 1,
        }
    }

    pub(super) fn handle_closed(&mut self, peer: Member, to: u64) {
        let Some(conn) = self.conn_of(peer, to) else { return };
        match conn.state {
            ConnState::Leaving => self.free(to),
            ConnState::Established { client } => {
                if let Some(conn) = self.conns.get_mut(&to) {
                    conn.peer_closed = true;
                }
                // It finds the end, or the reset, in the half; its bell may have been lost.
                self.outputs.push_back(Output::Wake(client));
            }
            ConnState::Connecting(_) | ConnState::Abandoned => self.bad_records += 1,
        }
    }

    /// The process has dropped the connection, and said in its half how.
    pub(super) fn drop_conn(&mut self, client: ClientId, id: u64) {
        if self.conns.get(&id).is_some_and(|conn| conn.state == ConnState::Established { client }) {
            self.close(id);
        }
    }

    /// The process is dead.
    pub(super) fn reset_conn(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match conn.state {
            ConnState::Connecting(_) => self.abandon(id),
            ConnState::Established { .. } => {
                let (half, peer) = (conn.half, conn.peer);
                self.outputs.push_back(Output::ResetHalf(half));
                self.close(id);
                self.outputs.push_back(Output::Bell(peer));
            }
            ConnState::Abandoned | ConnState::Leaving => {}
        }
    }

    pub(super) fn cancel(&mut self, client: ClientId, request: u64) {
        let is_it = |conn: &Conn| match &conn.state {
            ConnState::Connecting(call) => (call.client, call.request) == (client, request),
            _ => false,
        };
        if let Some(id) = self.conns.iter().find_map(|(id, conn)| is_it(conn).then_some(*id)) {
            return self.abandon(id);
        }
        self.drop_questions(|question| (question.client, question.request) == (client, request));
    }

    /// `id`, if it is a connect under way, has taken too long.
    pub(super) fn expire_connect(&mut self, id: u64) {
        let Some(conn) = self.conns.get(&id) else { return };
        if let ConnState::Connecting(call) = &conn.state {
            let Call { client, request, .. } = **call;
            self.abandon(id);
            self.fail(client, request, Failure::TimedOut);
        }
    }

    /// Nobody waits for this connect any more. Our half stays until the peer is known not to use it.
    fn abandon(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if let ConnState::Connecting(call) = &conn.state {
            let deadline = call.deadline;
            conn.state = ConnState::Abandoned;
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// The peer of that generation is dead: nobody reads our halves of its connections any more.
    pub(super) fn lose_peer(&mut self, peer: Member, generation: u64) {
        let lost: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.peer == peer && conn.peer_generation == generation)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            match conn.state {
                ConnState::Connecting(ref call) => {
                    let Call { client, request, .. } = **call;
                    self.free(id);
                    let reason = "its kernel died, or it or its broker restarted".into();
                    self.fail(client, request, Failure::Refused { reason });
                }
                ConnState::Established { client } => {
                    conn.peer_closed = true;
                    // The dead hold nothing: what our process has yet to let go of is not for the member's next life to answer for.
                    conn.discharge(&mut self.held, &self.heap);
                    self.outputs.push_back(Output::Wake(client));
                }
                ConnState::Abandoned | ConnState::Leaving => self.free(id),
            }
        }
    }

    /// Tells the peer that our side is done, and waits for it to be done too unless it is.
    fn close(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (peer, peer_id, half) = (conn.peer, conn.peer_id, conn.half);
        let (waits_at, client) = (conn.waits_at.take(), conn.client());
        let peer_is_alive = self.members[peer.index()]
            .as_ref()
            .is_some_and(|member| member.generation == conn.peer_generation);
        conn.state = ConnState::Leaving;
        let done = conn.peer_closed;
        self.outputs.push_back(Output::Released { client, conn: id, half });
        if let Some(listener) = waits_at {
            self.leave_backlog(listener);
        }
        if peer_is_alive {
            self.send(peer, Record::Closed { to: peer_id });
        }
        if done || !peer_is_alive {
            self.free(id);
        }
    }

    /// An ACCEPT came for a connection nobody wants (any more).
    fn leave(&mut self, id: u64, peer_id: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.peer_id = peer_id;
        conn.state = ConnState::Leaving;
        let (half, peer) = (conn.half, conn.peer);
        self.outputs.push_back(Output::ResetHalf(half));
        self.send(peer, Record::Closed { to: peer_id });
        self.outputs.push_back(Output::Bell(peer));
    }

    fn free(&mut self, id: u64) {
        let Some(mut conn) = self.conns.remove(&id) else { return };
        if let ConnState::Connecting(call) = &conn.state {
            self.deadlines.remove(&(call.deadline, id));
        }
        if conn.client().is_some() {
            self.outputs.push_back(Output::Released { client: conn.client(), conn: id, half: conn.half });
        }
        let (offset, len) = (conn.half.offset, half_len(&conn.half));
        conn.discharge(&mut self.held, &self.heap);
        match self.quarantined.get_mut(&offset) {
            Some(release) => *release = Some(len),
            None => self.heap.release(offset, len),
        }
    }

    /// A half of one of our processes for a connection with `peer`, which holds it from here on.
    fn allocate_half(
        &mut self,
        client: ClientId,
        peer: Member,
        layout: HalfLayout,
    ) -> Result<HalfRef, NoHalf> {
        let len = layout.total_len() as u64;
        let offset = self.heap.allocate(len, layout.align() as u64, client.0).ok_or(NoHalf::Memory)?;
        let held = self.held[peer.index()].with(self.heap.taken(offset, len));
        let is_bound = peer != Member::PRIMARY && peer != self.member;
        let refused = if is_bound && !self.quota.allows(held, self.heap.free_bytes()) {
            Some(NoHalf::Quota)
        } else {
            (!(self.backing.0)(offset, len)).then_some(NoHalf::Memory)
        };
        if let Some(refused) = refused {
            self.heap.release(offset, len);
            return Err(refused);
        }
        self.held[peer.index()] = held;
        // Unique in the life of this extent: a half is never taken for the one that was there before.
        let nonce = self.generation << 40 ^ self.next_id.get();
        let half = HalfRef { offset, layout: layout.to_word() as u32, nonce };
        self.outputs.push_back(Output::InitHalf(half));
        Ok(half)
    }

    fn quota_reached(&self, peer: Member) -> String {
        let Held { bytes, connections } = self.held[peer.index()];
        format!(
            "connections with that kernel hold {bytes} bytes of this kernel's extent ({connections} connections), and may hold no \
             more; each holds its part until both kernels have closed it, or that kernel is declared dead"
        )
    }

    fn grant(&mut self, id: u64, conn: &Conn, client: ClientId, ends: Ends, peer_half: HalfRef) -> Grant {
        let peer_process = match conn.peer == self.member {
            true => self.conns.get(&conn.peer_id).and_then(Conn::client),
            false => None,
        };
        self.outputs.push_back(Output::Granted {
            client,
            conn: id,
            own: conn.half,
            peer: conn.peer,
            peer_half,
            peer_process,
        });
        Grant {
            conn: id,
            kind: ends.kind,
            local: ends.local,
            remote: ends.remote,
            own_half: conn.half,
            peer_half,
            peer: conn.peer,
            peer_process: peer_process.map(|client| client.0),
            own_generation: self.generation,
            peer_generation: conn.peer_generation,
        }
    }

    fn check_peer_half(&self, peer: Member, half: &HalfRef, kind: ConnKind) -> Result<(), String> {
        let layout = checked_layout(half.layout, kind)?;
        let len = layout.total_len() as u64;
        if !half.offset.is_multiple_of(layout.align() as u64)
            || !self.layout.heap_contains(peer, half.offset, len)
        {
            return Err(format!(
                "its broker offered {len} bytes at {:#x}, which is not in its heap",
                half.offset
            ));
        }
        Ok(())
    }

    /// The connection `id`, if it is one with `peer`. Else the peer is confused or lying.
    fn conn_of(&mut self, peer: Member, id: u64) -> Option<&Conn> {
        let found = self.conns.get(&id).filter(|conn| conn.peer == peer);
        if found.is_none() {
            self.bad_records += 1;
        }
        found
    }
}

fn checked_layout(word: u32, kind: ConnKind) -> Result<HalfLayout, String> {
    let layout = HalfLayout::from_word(u64::from(word)).map_err(|e| e.to_string())?;
    match kind {
        ConnKind::Stream if layout.bytes_log2 == 0 => Err("a stream needs a byte ring".into()),
        ConnKind::Messages if layout.slots_log2 == 0 => Err("messages need slots".into()),
        _ => Ok(layout),
    }
}

fn refusal(code: RefuseCode, remote: Addr, needed: u64) -> Failure {
    match code {
        RefuseCode::Denied => Failure::Denied {
            reason: format!(
                "no rule of cid {} lets this kernel call port {}; `tombolo policy allow` makes one",
                remote.cid, remote.port
            ),
        },
        RefuseCode::NoMemory => Failure::NoMemory { cid: remote.cid, needed },
        other => Failure::Refused { reason: other.to_string() },
    }
}
