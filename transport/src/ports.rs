//! The ports of one kernel, for backends that have no kernel to keep them: who listens where, and how many callers
//! wait there.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::addr::{Addr, Cid, Port};
use crate::error::{Error, Result};

/// Listeners of one kernel by port. Cheap to clone; clones share the table.
pub(crate) struct PortTable<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    cid: Cid,
    state: Mutex<State<T>>,
}

struct State<T> {
    listeners: HashMap<Port, mpsc::Sender<T>>,
    next_ephemeral: Port,
}

/// A bound port: callers arrive here. Dropping it frees the port and refuses whoever still waits.
pub(crate) struct BoundPort<T> {
    addr: Addr,
    arrivals: mpsc::Receiver<T>,
    table: PortTable<T>,
}

/// Why a caller finds no place at a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoPlace {
    NobodyListens,
    BacklogFull,
}

impl NoPlace {
    pub(crate) fn refusal(self, addr: Addr) -> Error {
        let reason = match self {
            Self::NobodyListens => "nobody listens there",
            Self::BacklogFull => "its backlog is full; try again when it has accepted some",
        };
        Error::Refused { addr, reason: reason.into() }
    }
}

impl<T> PortTable<T> {
    pub(crate) fn new(cid: Cid) -> Self {
        let state = State { listeners: HashMap::new(), next_ephemeral: Port::EPHEMERAL_FIRST };
        Self { shared: Arc::new(Shared { cid, state: Mutex::new(state) }) }
    }

    /// Takes `port`, or a free one for [`Port::ANY`]; `backlog` callers (at least one) may wait.
    pub(crate) fn bind(&self, port: Port, backlog: u32) -> Result<BoundPort<T>> {
        let (callers, arrivals) = mpsc::channel(backlog.clamp(1, 1 << 16) as usize);
        let mut state = self.lock();
        let port = if port == Port::ANY { state.free_port() } else { port };
        let addr = Addr::new(self.shared.cid, port);
        match state.listeners.entry(port) {
            Entry::Occupied(_) => return Err(Error::AddrInUse(addr)),
            Entry::Vacant(entry) => entry.insert(callers),
        };
        drop(state);
        Ok(BoundPort { addr, arrivals, table: self.clone() })
    }

    /// A place in the backlog of `port`, held until it is used or dropped.
    pub(crate) fn reserve(&self, port: Port) -> Result<mpsc::OwnedPermit<T>, NoPlace> {
        let callers = self.lock().listeners.get(&port).cloned().ok_or(NoPlace::NobodyListens)?;
        callers.try_reserve_owned().map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NoPlace::BacklogFull,
            mpsc::error::TrySendError::Closed(_) => NoPlace::NobodyListens,
        })
    }

    /// A port for the calling end of a connection: distinct from every listener and from the last 2^30 such.
    pub(crate) fn ephemeral(&self) -> Port {
        self.lock().free_port()
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Every critical section leaves the map whole, so a panic elsewhere does not spoil it.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
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

impl<T> BoundPort<T> {
    pub(crate) fn addr(&self) -> Addr {
        self.addr
    }

    /// The next caller. Cancel safe: a dropped future takes nobody from the queue.
    pub(crate) async fn accept(&mut self) -> Option<T> {
        self.arrivals.recv().await
    }
}

impl<T> Drop for BoundPort<T> {
    fn drop(&mut self) {
        self.table.lock().listeners.remove(&self.addr.port);
    }
}

impl<T> Clone for PortTable<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> fmt::Debug for PortTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortTable")
            .field("cid", &self.shared.cid)
            .field("listeners", &self.lock().listeners.keys())
            .finish()
    }
}

impl<T> fmt::Debug for BoundPort<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundPort").field("addr", &self.addr).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> PortTable<u8> {
        PortTable::new(Cid(3))
    }

    #[test]
    fn port_is_taken_until_its_listener_is_dropped() {
        let table = table();
        let bound = table.bind(Port(7), 1).unwrap();
        assert!(matches!(table.bind(Port(7), 1), Err(Error::AddrInUse(_))));
        drop(bound);
        assert!(table.bind(Port(7), 1).is_ok());
    }

    #[test]
    fn caller_finds_no_place_beyond_the_backlog_and_none_without_a_listener() {
        let table = table();
        assert_eq!(table.reserve(Port(7)).unwrap_err(), NoPlace::NobodyListens);
        let _bound = table.bind(Port(7), 2).unwrap();
        let _first = table.reserve(Port(7)).unwrap();
        let second = table.reserve(Port(7)).unwrap();
        assert_eq!(table.reserve(Port(7)).unwrap_err(), NoPlace::BacklogFull);
        drop(second);
        assert!(table.reserve(Port(7)).is_ok());
    }

    #[test]
    fn ephemeral_ports_skip_taken_ones_and_wrap_before_any() {
        let table = table();
        let _bound = table.bind(Port::EPHEMERAL_FIRST, 1).unwrap();
        assert_eq!(table.ephemeral(), Port(Port::EPHEMERAL_FIRST.0 + 1));
        table.lock().next_ephemeral = Port(u32::MAX - 1);
        assert_eq!(table.ephemeral(), Port(u32::MAX - 1));
        assert_eq!(table.ephemeral(), Port(Port::EPHEMERAL_FIRST.0 + 1));
    }
}
