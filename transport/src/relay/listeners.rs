//! Who listens in a kernel that shares no memory: ports, names, backlogs, and the policy that its broker keeps.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::request::Refusal;
use crate::addr::{Addr, Cid, Port};
use crate::broker::protocol::Failure;
use crate::broker::record::{ConnKind, SERVICE_NAME_BYTES_MAX};
use crate::broker::{KernelId, Policy};

/// The largest backlog; a larger one is cut. Each who waits is a descriptor under way, and all of them fit into the process's socket.
const BACKLOG_MAX: u32 = 128;
/// Listeners of a kernel.
const LISTENERS_MAX: usize = 4096;

/// Who calls, as far as rules are concerned.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) addr: Addr,
    /// The name of its kernel.
    pub(crate) name: String,
    pub(crate) is_primary: bool,
}

impl Caller {
    pub(crate) fn kernel(&self) -> KernelId<'_> {
        KernelId { cid: self.addr.cid, name: &self.name, primary: self.is_primary }
    }
}

/// All listeners of one kernel.
#[derive(Debug)]
pub(super) struct Listeners {
    cid: Cid,
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    policy: Policy,
    listeners: BTreeMap<Port, Listener>,
    next_ephemeral: Port,
    last_id: u64,
}

#[derive(Debug)]
struct Listener {
    id: u64,
    kind: ConnKind,
    backlog: u32,
    waiting: u32,
    name: Option<String>,
    /// Closed by the process when it listens no more, which shows at once.
    process: Arc<UnixStream>,
    arrivals: mpsc::UnboundedSender<Arrived>,
}

/// A connection for a listener.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) conn: u64,
    pub(super) source: Addr,
    pub(super) socket: OwnedFd,
}

/// What a process wants to listen on.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) port: Port,
    pub(super) kind: ConnKind,
    pub(super) backlog: u32,
    pub(super) name: Option<String>,
    pub(super) is_privileged: bool,
}

/// A port that is listened on, until this is dropped.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) addr: Addr,
    pub(super) arrivals: mpsc::UnboundedReceiver<Arrived>,
    id: u64,
    listeners: Arc<Listeners>,
}

impl Listeners {
    pub(super) fn new(cid: Cid, name: String, policy: Policy) -> Arc<Self> {
        let state =
            State { policy, listeners: BTreeMap::new(), next_ephemeral: Port::EPHEMERAL_FIRST, last_id: 0 };
        Arc::new(Self { cid, name, state: Mutex::new(state) })
    }

    pub(super) fn cid(&self) -> Cid {
        self.cid
    }

    pub(super) fn set_policy(&self, policy: Policy) {
        self.lock().policy = policy;
    }

    pub(super) fn services(&self) -> Vec<(String, Port)> {
        let state = self.lock();
        let named = state.living().filter_map(|(port, listener)| Some((listener.name.clone()?, port)));
        named.collect()
    }

    pub(super) fn resolve(&self, service: &str) -> Option<Addr> {
        let state = self.lock();
        let port = state.living().find(|(_, listener)| listener.name.as_deref() == Some(service))?.0;
        Some(Addr::new(self.cid, port))
    }

    /// A port for the calling end of a connection.
    pub(super) fn ephemeral(&self) -> Port {
        self.lock().free_port()
    }

    pub(super) fn bind(
        self: &Arc<Self>,
        wanted: Wanted,
        process: &Arc<UnixStream>,
    ) -> Result<Bound, Failure> {
        let Wanted { port, kind, backlog, name, is_privileged } = wanted;
        let invalid = |reason: String| Err(Failure::Invalid { reason });
        if port.0 == 0 {
            return invalid("port 0 is no port: ask for Port::ANY to get a free one".into());
        }
        if backlog == 0 {
            return invalid("a backlog of 0 would refuse everybody".into());
        }
        if port.is_privileged() && !is_privileged {
            let reason = "ports below 1024 are for root and the broker's own user".into();
            return Err(Failure::Denied { reason });
        }
        if let Some(name) = &name
            && (name.is_empty() || name.len() > SERVICE_NAME_BYTES_MAX || name.contains('/'))
        {
            return invalid(format!(
                "`{name}` is no service name: 1 to {SERVICE_NAME_BYTES_MAX} bytes without `/`"
            ));
        }
        let mut state = self.lock();
        state.listeners.retain(|_, listener| listener.is_alive());
        if state.listeners.len() >= LISTENERS_MAX {
            return invalid(format!("{LISTENERS_MAX} ports are listened on already"));
        }
        if state.listeners.contains_key(&port) {
            return Err(Failure::PortInUse);
        }
        if name.is_some() && state.listeners.values().any(|listener| listener.name == name) {
            return Err(Failure::NameInUse);
        }
        let port = if port == Port::ANY { state.free_port() } else { port };
        let (sender, arrivals) = mpsc::unbounded_channel();
        let (id, backlog, process) = (state.fresh_id(), backlog.min(BACKLOG_MAX), Arc::clone(process));
        let listener = Listener { id, kind, backlog, waiting: 0, name, process, arrivals: sender };
        state.listeners.insert(port, listener);
        Ok(Bound { addr: Addr::new(self.cid, port), arrivals, id, listeners: Arc::clone(self) })
    }

    /// Somebody calls. `make` makes the connection's socket, for the listener, of that number.
    pub(super) fn arrive(
        &self,
        caller: &Caller,
        port: Port,
        kind: ConnKind,
        make: impl FnOnce(u64) -> io::Result<OwnedFd>,
    ) -> Result<(), Refusal> {
        let mut state = self.lock();
        let state = &mut *state;
        let listener = state.listeners.get_mut(&port).filter(|listener| listener.is_alive());
        // Denied comes before "nobody listens": who may not call does not learn what is there.
        let service = listener.as_ref().and_then(|listener| listener.name.as_deref());
        let own = KernelId { cid: self.cid, name: &self.name, primary: false };
        if !state.policy.allows(caller.kernel(), own, port, service) {
            return Err(Refusal::Denied);
        }
        let listener = listener.ok_or(Refusal::NobodyListens)?;
        if listener.kind != kind {
            return Err(Refusal::WrongKind);
        }
        if listener.waiting >= listener.backlog {
            return Err(Refusal::BacklogFull);
        }
        state.last_id += 1;
        let conn = state.last_id;
        let socket = make(conn).map_err(|error| {
            tracing::warn!(%error, "no socket for a connection could be made");
            Refusal::TooMany
        })?;
        let arrived = Arrived { conn, source: caller.addr, socket };
        listener.arrivals.send(arrived).map_err(|_| Refusal::NobodyListens)?;
        listener.waiting += 1;
        Ok(())
    }

    /// Every critical section leaves the table whole, so poison means nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn living(&self) -> impl Iterator<Item = (Port, &Listener)> {
        self.listeners.iter().map(|(port, listener)| (*port, listener)).filter(|(_, it)| it.is_alive())
    }

    fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn free_port(&mut self) -> Port {
        loop {
            let port = self.next_ephemeral;
            self.next_ephemeral = port.next_ephemeral();
            if !self.listeners.contains_key(&port) {
                return port;
            }
        }
    }
}

impl Listener {
    /// Whether its process still holds it: it may have let go of it a moment ago, and call again at once.
    fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&*self.process, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(poll(&mut fds, Some(&at_once)), Ok(1..))
    }
}

impl Bound {
    /// The application has taken one: room in the backlog.
    pub(super) fn accepted(&self) {
        let mut state = self.listeners.lock();
        let listener = state.listeners.get_mut(&self.addr.port).filter(|listener| listener.id == self.id);
        if let Some(listener) = listener {
            listener.waiting = listener.waiting.saturating_sub(1);
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let mut state = self.listeners.lock();
        if state.listeners.get(&self.addr.port).is_some_and(|listener| listener.id == self.id) {
            state.listeners.remove(&self.addr.port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{PolicyAction, PolicyRule, PortMatch};
    use crate::relay::socket::RelaySocket;

    const OWN: Cid = Cid(4);

    fn listeners(policy: Policy) -> Arc<Listeners> {
        Listeners::new(OWN, "db".into(), policy)
    }

    fn wanted(port: Port, name: Option<&str>) -> Wanted {
        let name = name.map(str::to_owned);
        Wanted { port, kind: ConnKind::Stream, backlog: 2, name, is_privileged: false }
    }

    fn process() -> (Arc<UnixStream>, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Arc::new(near), far)
    }

    fn caller(cid: u32, name: &str) -> Caller {
        Caller { addr: Addr::new(Cid(cid), Port(7)), name: name.into(), is_primary: cid == 2 }
    }

    fn call(listeners: &Listeners, caller: &Caller, port: Port) -> Result<(), Refusal> {
        let make = |conn| RelaySocket::pair(conn).map(|(_, far)| far);
        listeners.arrive(caller, port, ConnKind::Stream, make)
    }

    #[tokio::test]
    async fn callers_beyond_the_backlog_are_refused_until_one_is_accepted() {
        let listeners = listeners(Policy::default());
        let (near, _far) = process();
        let bound = listeners.bind(wanted(Port::ANY, None), &near).unwrap();
        let (host, port) = (caller(2, "host"), bound.addr.port);
        assert_eq!([call(&listeners, &host, port), call(&listeners, &host, port)], [Ok(()); 2]);
        assert_eq!(call(&listeners, &host, port), Err(Refusal::BacklogFull));
        bound.accepted();
        assert_eq!(call(&listeners, &host, port), Ok(()));
        drop(bound);
        assert_eq!(call(&listeners, &host, port), Err(Refusal::NobodyListens));
    }

    #[tokio::test]
    async fn port_and_name_are_free_as_soon_as_the_process_lets_go() {
        let listeners = listeners(Policy::default());
        let (near, far) = process();
        let kept = listeners.bind(wanted(Port(5000), Some("kv")), &near).unwrap();
        let again = |port, name| listeners.bind(wanted(port, name), &near).unwrap_err();
        assert_eq!(again(Port(5000), None), Failure::PortInUse);
        assert_eq!(again(Port(5001), Some("kv")), Failure::NameInUse);
        assert_eq!(listeners.resolve("kv"), Some(Addr::new(OWN, Port(5000))));
        drop(far);
        assert_eq!(listeners.resolve("kv"), None);
        assert_eq!(call(&listeners, &caller(2, "host"), Port(5000)), Err(Refusal::NobodyListens));
        let (near, _far) = process();
        let _next = listeners.bind(wanted(Port(5000), Some("kv")), &near).unwrap();
        drop(kept);
        assert_eq!(listeners.resolve("kv"), Some(Addr::new(OWN, Port(5000))), "it is the next one's");
    }

    #[tokio::test]
    async fn rules_know_kernels_and_services_by_name_and_say_nothing_of_what_is_there() {
        let rule = PolicyRule {
            from: "web".parse().unwrap(),
            to: "db".parse().unwrap(),
            port: PortMatch::Service("kv".into()),
            action: PolicyAction::Allow,
        };
        let listeners = listeners(Policy { rules: vec![rule] });
        let (near, _far) = process();
        let bound = listeners.bind(wanted(Port::ANY, Some("kv")), &near).unwrap();
        assert_eq!(call(&listeners, &caller(3, "web"), bound.addr.port), Ok(()));
        assert_eq!(call(&listeners, &caller(5, "app"), bound.addr.port), Err(Refusal::Denied));
        assert_eq!(call(&listeners, &caller(3, "web"), Port(9)), Err(Refusal::Denied));
        assert_eq!(call(&listeners, &caller(2, "host"), Port(9)), Err(Refusal::NobodyListens));
    }

    #[tokio::test]
    async fn ports_below_1024_are_for_privileged_programs() {
        let listeners = listeners(Policy::default());
        let (near, _far) = process();
        let denied = listeners.bind(wanted(Port(80), None), &near);
        assert!(matches!(denied, Err(Failure::Denied { .. })), "{denied:?}");
        let privileged = Wanted { is_privileged: true, ..wanted(Port(80), None) };
        assert!(listeners.bind(privileged, &near).is_ok());
        for senseless in [wanted(Port(0), None), wanted(Port(5), Some("a/b")), wanted(Port(5000), Some(""))] {
            assert!(listeners.bind(senseless, &near).is_err());
        }
    }
}
