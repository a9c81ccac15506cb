//! The endpoint of this backend.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::mpsc::WeakUnboundedSender;

use crate::addr::{Addr, Cid, Port};
use crate::broker::Command;
use crate::broker::protocol::ClientMessage;
use crate::broker::record::ConnKind;
use crate::error::{Error, Result};
use crate::messages::Messages;
use crate::options::{AttachOptions, ConnectOptions, ListenOptions, Sizes};
use crate::ring::HalfLayout;
use crate::ring::layout::{
    BYTES_LOG2_MAX, BYTES_LOG2_MIN, LOAN_LOG2_MAX, LOAN_LOG2_MIN, LOANS_MAX, SLOTS_LOG2_MAX,
};
use crate::shm::ShmListener;
use crate::shm::client::{self, Arrival, Client};
use crate::shm::{messages, stream};
use crate::stream::Stream;

/// Attached to a broker, and able to attach again when that one is gone. Clones share the attachment.
#[derive(Clone, Debug)]
pub(crate) struct ShmEndpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    way: Way,
    options: AttachOptions,
    cid: Cid,
    current: Mutex<Arc<Client>>,
    /// Held while attaching again, so that it is done once.
    attaching: tokio::sync::Mutex<()>,
}

/// How to get to the broker.
#[derive(Debug)]
pub(crate) enum Way {
    /// By its socket.
    Socket(PathBuf),
    /// It runs in this process: a socket pair, one end of which it adopts. (Weak: an endpoint does not keep it running.)
    Here(WeakUnboundedSender<Command>),
}

impl Way {
    async fn attach(&self, options: &AttachOptions) -> Result<client::Attached> {
        match self {
            Self::Socket(path) => Client::attach_path(path, options).await,
            Self::Here(commands) => {
                let attempt = "attaching to the broker of this process";
                let failed = |e: std::io::Error| Error::io(attempt, e);
                let (ours, theirs) = UnixStream::pair().map_err(failed)?;
                let theirs = theirs.into_std().map_err(failed)?;
                let commands = commands.upgrade();
                let sent = commands.is_some_and(|commands| commands.send(Command::Adopt(theirs)).is_ok());
                if !sent {
                    return Err(failed(std::io::Error::new(
                        std::io::ErrorKind::NotConnected,
                        "it has stopped",
                    )));
                }
                Client::attach(ours, options, attempt).await
            }
        }
    }
}

/// What an attachment turned out to be.
#[derive(Debug)]
pub(crate) enum Attached {
    Shm(ShmEndpoint),
    /// The broker has no pool, and its kernel this CID.
    Apart(Cid),
}

impl ShmEndpoint {
    pub(crate) async fn attach(way: Way, options: AttachOptions) -> Result<Attached> {
        Ok(match way.attach(&options).await? {
            client::Attached::Pool(client) => Attached::Shm(Self::new(way, options, client)),
            client::Attached::Apart(cid) => Attached::Apart(cid),
        })
    }

    fn new(way: Way, options: AttachOptions, client: Arc<Client>) -> Self {
        let (cid, current, attaching) = (client.cid, Mutex::new(client), tokio::sync::Mutex::new(()));
        Self(Arc::new(Inner { way, options, cid, current, attaching }))
    }

    pub(crate) fn local_cid(&self) -> Cid {
        self.0.cid
    }

    pub(crate) fn bells_found_by_timer(&self) -> u64 {
        self.current().found_by_timer.load(Ordering::Relaxed)
    }

    pub(crate) async fn resolve(&self, name: &str) -> Result<Addr> {
        self.client().await?.resolve(name).await
    }

    pub(crate) async fn connect(&self, addr: Addr, options: &ConnectOptions) -> Result<Stream> {
        Ok(match self.dial(addr, ConnKind::Stream, options).await? {
            Arrival::Pool(conn) => stream::open(&conn),
            Arrival::Relayed(_, relayed) => relayed.into_stream(),
        })
    }

    pub(crate) async fn connect_messages(&self, addr: Addr, options: &ConnectOptions) -> Result<Messages> {
        Ok(match self.dial(addr, ConnKind::Messages, options).await? {
            Arrival::Pool(conn) => messages::open(&conn),
            Arrival::Relayed(_, relayed) => relayed.into_messages(options.sizes.message_bytes_max),
        })
    }

    fn current(&self) -> Arc<Client> {
        Arc::clone(&self.0.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The attachment, made anew if its broker has gone.
    async fn client(&self) -> Result<Arc<Client>> {
        let client = self.current();
        if !client.broker_died() {
            return Ok(client);
        }
        let _once = self.0.attaching.lock().await;
        let client = self.current();
        if !client.broker_died() {
            return Ok(client);
        }
        let client::Attached::Pool(client) = self.0.way.attach(&self.0.options).await? else {
            let other = "the broker of this kernel, which had a pool, has none now: attach again";
            return Err(Error::Invalid(other.into()));
        };
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&client);
        Ok(client)
    }

    pub(crate) async fn listen(&self, port: Port, options: ListenOptions) -> Result<ShmListener> {
        self.bind(port, ConnKind::Stream, options).await
    }

    pub(crate) async fn listen_messages(&self, port: Port, options: ListenOptions) -> Result<ShmListener> {
        self.bind(port, ConnKind::Messages, options).await
    }

    async fn dial(&self, addr: Addr, kind: ConnKind, options: &ConnectOptions) -> Result<Arrival> {
        let layout = layout_of(&options.sizes, kind)?;
        let timeout_ms = options.timeout.as_millis() as u64;
        let message = |request| ClientMessage::Connect { request, addr, kind, layout, timeout_ms };
        self.client().await?.connect(addr, options.timeout, message).await
    }

    async fn bind(&self, port: Port, kind: ConnKind, options: ListenOptions) -> Result<ShmListener> {
        let layout = layout_of(&options.sizes, kind)?;
        let ListenOptions { backlog, name, sizes } = options;
        let client = self.client().await?;
        let addr = Addr::new(client.cid, port);
        let asked = name.clone();
        let message = |request| ClientMessage::Listen { request, port, kind, backlog, name, layout };
        let (addr, arrivals) = client.listen(addr, asked, message).await?;
        Ok(ShmListener::new(client, addr, arrivals, sizes.message_bytes_max))
    }
}

/// The layout word of a half of these sizes, each rounded up to a power of two.
fn layout_of(sizes: &Sizes, kind: ConnKind) -> Result<u32> {
    let log2 = |value: u32, min: u8, max: u8, what: &str| {
        if value > 1 << max {
            return Err(Error::Invalid(format!("{value} {what}: at most {}", 1u64 << max)));
        }
        Ok((value.max(1).next_power_of_two().trailing_zeros() as u8).max(min))
    };
    let loan_count = u8::try_from(sizes.loans).ok().filter(|count| *count <= LOANS_MAX);
    let layout = HalfLayout {
        slots_log2: match kind {
            ConnKind::Stream => 0,
            ConnKind::Messages => log2(sizes.slots, 1, SLOTS_LOG2_MAX, "message slots")?,
        },
        bytes_log2: log2(sizes.ring_bytes, BYTES_LOG2_MIN, BYTES_LOG2_MAX, "bytes of ring")?,
        loan_count: match kind {
            ConnKind::Stream => 0,
            ConnKind::Messages => loan_count
                .ok_or_else(|| Error::Invalid(format!("{} loans: at most {LOANS_MAX}", sizes.loans)))?,
        },
        loan_log2: match kind {
            ConnKind::Messages if sizes.loans != 0 => {
                log2(sizes.loan_bytes, LOAN_LOG2_MIN, LOAN_LOG2_MAX, "bytes of loan")?
            }
            _ => 0,
        },
    };
    let layout = layout.validate().map_err(|e| Error::Invalid(e.to_string()))?;
    Ok(layout.to_word() as u32)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::broker::{Broker, BrokerConfig, BrokerHandle, locks};
    use crate::mem::PAGE;
    use crate::pool::{Geometry, Member, Pool, PoolSource};
    use crate::ring::State;
    use crate::shm::conn::Conn;

    /// So long that nobody looks around by itself.
    const NEVER: Duration = Duration::from_secs(3600);

    async fn two_processes(dir: &std::path::Path, recheck: Duration) -> (BrokerHandle, [ShmEndpoint; 2]) {
        let (pool, socket) = (dir.join("pool"), dir.join("broker.sock"));
        Pool::create(&pool, Geometry { members_max: 2, ..Geometry::default() }).unwrap();
        let config = BrokerConfig::new(PoolSource::path(&pool), Member::PRIMARY);
        let socket_there = Some(socket.clone());
        let config = BrokerConfig { socket: socket_there, recheck, recheck_with_lines: recheck, ..config };
        let broker = Broker::start(config).await.unwrap();
        let options = AttachOptions { recheck: NEVER, spin: Duration::ZERO };
        (broker, [attach(&socket, &options).await, attach(&socket, &options).await])
    }

    async fn attach(socket: &std::path::Path, options: &AttachOptions) -> ShmEndpoint {
        match ShmEndpoint::attach(Way::Socket(socket.to_owned()), options.clone()).await.unwrap() {
            Attached::Shm(endpoint) => endpoint,
            Attached::Apart(_) => panic!("there is a pool"),
        }
    }

    /// A connection through the pool.
    async fn dial(caller: &ShmEndpoint, addr: Addr) -> Arc<Conn> {
        match caller.dial(addr, ConnKind::Stream, &ConnectOptions::default()).await.unwrap() {
            Arrival::Pool(conn) => conn,
            Arrival::Relayed(..) => panic!("nobody relays"),
        }
    }

    /// How many bytes of the pool processes have locked, the broker's own page left out.
    fn locked_bytes(pool: &std::path::Path) -> u64 {
        locked_bytes_of(pool, std::fs::metadata(pool).unwrap().len())
    }

    fn locked_bytes_of(file: &std::path::Path, len: u64) -> u64 {
        let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
        let locked = locks::all_locked(&file, 0..len).unwrap();
        locked.iter().map(|range| range.end - range.start).sum::<u64>() - PAGE as u64
    }

    #[tokio::test]
    async fn processes_reach_a_pool_inside_of_a_device_by_way_of_a_file_of_locks() {
        let dir = tempfile::tempdir().unwrap();
        let (path, socket, locked) =
            (dir.path().join("memory"), dir.path().join("sock"), dir.path().join("locks"));
        let geometry = Geometry { members_max: 2, ..Geometry::default() };
        let len = Pool::create(&path, geometry).unwrap().len_bytes();
        let (offset, file) = (1 << 20, std::fs::File::options().read(true).write(true).open(&path).unwrap());
        file.set_len(offset + len).unwrap();
        let source = || PoolSource::Fd { fd: file.try_clone().unwrap().into(), offset, len };
        Pool::format(source(), geometry).unwrap();
        let config = BrokerConfig::new(source(), Member::PRIMARY);
        let config = BrokerConfig { socket: Some(socket.clone()), locks: Some(locked.clone()), ..config };
        let broker = Broker::start(config).await.unwrap();
        let options = AttachOptions::default();
        let (caller, callee) = (attach(&socket, &options).await, attach(&socket, &options).await);
        let mut listener = callee.listen(Port(7), ListenOptions::default()).await.unwrap();
        let addr = Addr::new(caller.local_cid(), Port(7));
        let near = dial(&caller, addr).await;
        let far = listener.accept_stream().await.unwrap();
        assert_eq!(locks::all_locked(&file, 0..offset + len).unwrap(), [], "the device itself is not locked");
        assert_eq!(locked_bytes_of(&locked, len), 2 * HalfLayout::STREAM.total_len() as u64);
        drop((near, far, listener));
        broker.stop().await;
    }

    #[tokio::test]
    async fn halves_stay_locked_until_the_broker_looks_around_or_another_process_gets_them() {
        let dir = tempfile::tempdir().unwrap();
        let half = HalfLayout::STREAM.total_len() as u64;
        for recheck in [NEVER, Duration::from_millis(1)] {
            let (broker, [caller, callee]) = two_processes(dir.path(), recheck).await;
            let mut listener = callee.listen(Port(7), ListenOptions::default()).await.unwrap();
            let addr = Addr::new(caller.local_cid(), Port(7));
            for _ in 0..3 {
                let conn = dial(&caller, addr).await;
                let accepted = listener.accept_stream().await.unwrap();
                assert_eq!(locked_bytes(&dir.path().join("pool")), 2 * half);
                drop((conn, accepted));
                while broker.status().await.unwrap().connections != 0 {
                    tokio::task::yield_now().await;
                }
                if recheck == NEVER {
                    assert_eq!(locked_bytes(&dir.path().join("pool")), 2 * half);
                    continue;
                }
                while locked_bytes(&dir.path().join("pool")) != 0 {
                    tokio::task::yield_now().await;
                }
            }
            // The other way round, so that each gets what was the other's.
            let mut listener = caller.listen(Port(8), ListenOptions::default()).await.unwrap();
            let addr = Addr::new(caller.local_cid(), Port(8));
            let conn = dial(&callee, addr).await;
            let _accepted = listener.accept_stream().await.unwrap();
            assert!(locked_bytes(&dir.path().join("pool")) >= 2 * half);
            drop(conn);
            broker.stop().await;
        }
    }

    #[tokio::test]
    async fn a_process_without_its_neighbours_bell_rings_through_the_broker() {
        let dir = tempfile::tempdir().unwrap();
        let (_broker, [caller, callee]) = two_processes(dir.path(), NEVER).await;
        let mut listener = callee.listen(Port(7), ListenOptions::default()).await.unwrap();
        let addr = Addr::new(caller.local_cid(), Port(7));
        let conn = dial(&caller, addr).await;
        let (mut accepted, _) = listener.accept_stream().await.unwrap();
        let sleeper = tokio::spawn(async move { accepted.read_u8().await });
        while !callee.current().is_anyone_parked() {
            tokio::task::yield_now().await;
        }
        conn.own.set_state(State::SHUT_WR);
        conn.own.count_bell();
        conn.ring_without_neighbour();
        let end =
            tokio::time::timeout(Duration::from_secs(10), sleeper).await.expect("nobody woke it").unwrap();
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn sizes_are_rounded_up_and_bounded() {
        let layout = |sizes: Sizes, kind| {
            layout_of(&sizes, kind).map(|word| HalfLayout::from_word(u64::from(word)).unwrap())
        };
        let sizes = Sizes { slots: 3, ring_bytes: 100, loans: 2, loan_bytes: 1, ..Sizes::default() };
        let messages = layout(sizes, ConnKind::Messages).unwrap();
        assert_eq!((messages.slots(), messages.byte_capacity(), messages.loan_len()), (4, 128, 4096));
        let stream = layout(sizes, ConnKind::Stream).unwrap();
        assert_eq!((stream.slots(), stream.byte_capacity(), stream.loan_count), (0, 128, 0));
        layout(Sizes { slots: 0, ring_bytes: 0, ..sizes }, ConnKind::Messages).unwrap();
        for bad in [
            Sizes { slots: u32::MAX, ..sizes },
            Sizes { ring_bytes: u32::MAX, ..sizes },
            Sizes { loans: 65, ..sizes },
            Sizes { loans: u32::MAX, ..sizes },
            Sizes { loan_bytes: u32::MAX, ..sizes },
        ] {
            assert!(layout(bad, ConnKind::Messages).is_err(), "{bad:?}");
        }
    }
}
