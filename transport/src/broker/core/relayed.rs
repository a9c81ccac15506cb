//! Connections that go through no pool: to kernels that are not in it, by whoever relays, and from them.

use std::time::Duration;

use super::{BrokerCore, ClientId, Listener, ListenerId, Output};
use crate::addr::{Addr, Cid, Port};
use crate::broker::protocol::{Failure, ServerMessage};
use crate::broker::record::ConnKind;
use crate::relay::{Caller, Refusal};

/// What a process of ours wants of a kernel that is not in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) client: ClientId,
    pub(crate) request: u64,
    pub(crate) ask: Ask,
    /// What it is told if nobody knows that kernel.
    pub(crate) failure: Failure,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Connection { source: Port, target: Addr, kind: ConnKind, within: Duration },
    Name(String),
}

impl BrokerCore {
    pub(crate) fn set_relayed(&mut self, is_relayed: bool) {
        self.is_relayed = is_relayed;
    }

    /// A connection that cannot be made through the pool, for that reason.
    pub(super) fn connect_elsewhere(
        &mut self,
        client: ClientId,
        request: u64,
        target: Addr,
        kind: ConnKind,
        within: Duration,
        failure: Failure,
    ) {
        let is_up = self.find_kernel(target.cid).is_ok();
        // What the relay itself calls must not come back to it.
        if is_up || !self.is_relayed || target.port == Port::RELAY || target.cid == Cid::ANY {
            return self.fail(client, request, failure);
        }
        let ask = Ask::Connection { source: self.fresh_ephemeral(), target, kind, within };
        self.outputs.push_back(Output::Elsewhere(Elsewhere { client, request, ask, failure }));
    }

    /// A name that is not known in the pool, for that reason.
    pub(super) fn resolve_elsewhere(&mut self, client: ClientId, request: u64, name: &str, failure: Failure) {
        let is_up = |kernel| {
            let member = self.find_kernel_by_name(kernel).and_then(|member| self.member(member));
            member.is_some_and(|info| info.generation != 0)
        };
        match name.split_once('/') {
            Some((kernel, service)) if self.is_relayed && !service.is_empty() && !is_up(kernel) => {
                let ask = Ask::Name(name.to_owned());
                self.outputs.push_back(Output::Elsewhere(Elsewhere { client, request, ask, failure }));
            }
            _ => self.fail(client, request, failure),
        }
    }

    /// Somebody in such a kernel calls. The connection's number, for the listener's process.
    pub(crate) fn arrive(
        &mut self,
        caller: &Caller,
        port: Port,
        kind: ConnKind,
    ) -> Result<(ClientId, u64, ServerMessage), Refusal> {
        let listener = self.listeners.get(&port);
        // Denied comes before "nobody listens": who may not call does not learn what is there.
        let service = listener.and_then(|listener| listener.name.as_deref());
        let is_allowed = self
            .kernel_id(self.member)
            .is_some_and(|own| self.policy.allows(caller.kernel(), own, port, service));
        if !is_allowed {
            return Err(Refusal::Denied);
        }
        let id = self.next_id;
        let listener = self.listeners.get_mut(&port).ok_or(Refusal::NobodyListens)?;
        if listener.kind != kind {
            return Err(Refusal::WrongKind);
        }
        if listener.waiting >= listener.backlog {
            return Err(Refusal::BacklogFull);
        }
        listener.waiting += 1;
        let (client, waits_at, conn) = (listener.client, listener.id, id.get());
        self.relayed.insert(conn, waits_at);
        self.next_id = id.saturating_add(1);
        let message = ServerMessage::Relayed { port, conn, kind, remote: caller.addr };
        Ok((client, conn, message))
    }

    /// There is no such connection after all.
    pub(crate) fn give_up_arrival(&mut self, conn: u64) {
        if let Some(waits_at) = self.relayed.remove(&conn) {
            self.leave_backlog(waits_at);
        }
    }

    /// The listener that has a place free again.
    pub(super) fn relayed_accepted(&mut self, client: ClientId, conn: u64) -> Option<ListenerId> {
        let waits_at = *self.relayed.get(&conn)?;
        let is_its = |listener: &Listener| (listener.id, listener.client) == (waits_at, client);
        if !self.listeners.values().any(is_its) {
            return None;
        }
        self.relayed.remove(&conn)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::broker::core::{Backing, MemberInfo};
    use crate::broker::protocol::{ClientMessage, Reply};
    use crate::broker::{PeerQuota, Policy};
    use crate::pool::layout::Layout;
    use crate::pool::{Geometry, Member};
    use crate::ring::HalfLayout;

    const ROOT: ClientId = ClientId(1);
    const USER: ClientId = ClientId(2);
    const APART: Cid = Cid(9);
    const PORT: Port = Port(5000);

    fn core() -> BrokerCore {
        let layout = Layout::of(Geometry { members_max: 2, ..Geometry::default() }).unwrap();
        let backing = Backing(Box::new(|_, _| true));
        let (policy, quota) = (Policy::default(), PeerQuota::default());
        let mut core = BrokerCore::new(Member::PRIMARY, 1, layout, policy, quota, backing);
        core.handle_client(ROOT, true);
        core.handle_client(USER, false);
        let own = MemberInfo { cid: Cid::HOST, name: "host".into(), generation: 1 };
        core.handle_member_change(Member::PRIMARY, Some(own));
        core
    }

    fn said(core: &mut BrokerCore, client: ClientId, message: ClientMessage) -> Vec<Output> {
        core.handle_client_message(Instant::now(), client, message);
        std::iter::from_fn(|| core.poll_output()).collect()
    }

    fn connect(core: &mut BrokerCore, client: ClientId, addr: Addr) -> Vec<Output> {
        let (kind, layout) = (ConnKind::Stream, HalfLayout::STREAM.to_word() as u32);
        said(core, client, ClientMessage::Connect { request: 1, addr, kind, layout, timeout_ms: 1000 })
    }

    fn failure(outputs: &[Output]) -> &Failure {
        match outputs {
            [Output::ToClient(_, ServerMessage::Done { result: Err(failure), .. })] => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn kernels_that_are_not_in_the_pool_are_asked_for_where_somebody_relays() {
        let mut core = core();
        let addr = Addr::new(APART, PORT);
        assert!(matches!(failure(&connect(&mut core, USER, addr)), Failure::Refused { .. }));
        core.set_relayed(true);
        let outputs = connect(&mut core, USER, addr);
        assert!(matches!(&outputs[..], [Output::Elsewhere(elsewhere)] if elsewhere.client == USER));
        let resolve = |name: &str| ClientMessage::Resolve { request: 2, name: name.into() };
        let outputs = said(&mut core, USER, resolve("db/kv"));
        assert!(matches!(&outputs[..], [Output::Elsewhere(_)]), "{outputs:?}");
        for here in ["kv", "host/kv", "db/"] {
            assert!(matches!(failure(&said(&mut core, USER, resolve(here))), Failure::NotFound { .. }));
        }
    }

    #[test]
    fn the_relays_port_is_for_privileged_programs_and_never_relayed() {
        let mut core = core();
        core.set_relayed(true);
        for cid in [Cid::HOST, APART] {
            let addr = Addr::new(cid, Port::RELAY);
            assert!(matches!(failure(&connect(&mut core, USER, addr)), Failure::Denied { .. }));
        }
        let outputs = connect(&mut core, ROOT, Addr::new(APART, Port::RELAY));
        assert!(matches!(failure(&outputs), Failure::Refused { .. }), "it would come back");
    }

    #[test]
    fn arrivals_take_places_in_the_backlog_until_they_are_accepted_or_nobody_listens() {
        let mut core = core();
        let listen = ClientMessage::Listen {
            request: 1,
            port: PORT,
            kind: ConnKind::Stream,
            backlog: 1,
            name: None,
            layout: HalfLayout::STREAM.to_word() as u32,
        };
        let outputs = said(&mut core, USER, listen.clone());
        let [Output::ToClient(_, ServerMessage::Done { result: Ok(Reply::Listening(_)), .. })] = &outputs[..]
        else {
            panic!("{outputs:?}");
        };
        let caller = Caller { addr: Addr::new(APART, Port(7)), name: "db".into(), is_primary: false };
        let arrive = |core: &mut BrokerCore, kind| core.arrive(&caller, PORT, kind);
        assert_eq!(arrive(&mut core, ConnKind::Messages).unwrap_err(), Refusal::WrongKind);
        let (client, conn, message) = arrive(&mut core, ConnKind::Stream).unwrap();
        assert_eq!(client, USER);
        let remote = Addr::new(APART, Port(7));
        assert_eq!(message, ServerMessage::Relayed { port: PORT, conn, kind: ConnKind::Stream, remote });
        assert_eq!(arrive(&mut core, ConnKind::Stream).unwrap_err(), Refusal::BacklogFull);
        said(&mut core, ROOT, ClientMessage::Accepted { conn });
        assert_eq!(arrive(&mut core, ConnKind::Stream).unwrap_err(), Refusal::BacklogFull, "not its own");
        said(&mut core, USER, ClientMessage::Accepted { conn });
        let (_, conn, _) = arrive(&mut core, ConnKind::Stream).unwrap();
        said(&mut core, USER, ClientMessage::Unlisten { port: PORT });
        assert_eq!(arrive(&mut core, ConnKind::Stream).unwrap_err(), Refusal::NobodyListens);
        said(&mut core, USER, listen);
        said(&mut core, USER, ClientMessage::Accepted { conn });
        arrive(&mut core, ConnKind::Stream).unwrap();
        assert_eq!(arrive(&mut core, ConnKind::Stream).unwrap_err(), Refusal::BacklogFull);
        core.handle_client_gone(USER);
        assert!(core.relayed.is_empty());
    }
}
