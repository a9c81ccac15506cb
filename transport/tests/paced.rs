//! Paced links as programs use them, with clocks that jump to the next timer.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::time::{Instant, sleep};
use tombolo_transport::paced::{PacedAcceptor, PacedConfig, PacedEndpoint, SocketKind};
use tombolo_transport::{Addr, Cid, Endpoint, Error, ListenOptions, Port, Stream};

const PARENT: Cid = Cid(0);
const CHILD: Cid = Cid(3);
const PORT: Port = Port(5000);

fn endpoint(cid: Cid) -> PacedEndpoint {
    PacedEndpoint::new(cid, PacedConfig::default()).unwrap()
}

/// The child `cid` dials whoever has `acceptor`.
fn child(cid: Cid, acceptor: &PacedAcceptor) -> PacedEndpoint {
    let child = endpoint(cid);
    let acceptor = acceptor.clone();
    let dial = move || {
        let (near, far) = tokio::io::duplex(4096);
        acceptor.replace(far);
        std::future::ready(Ok::<DuplexStream, io::Error>(near))
    };
    child.dial(PARENT, dial).unwrap();
    child
}

/// A child that dials once and never again.
fn child_that_dials_once(acceptor: &PacedAcceptor) -> PacedEndpoint {
    let (near, far) = tokio::io::duplex(4096);
    acceptor.replace(far);
    let mut socket = Some(near);
    let dial =
        move || std::future::ready(socket.take().ok_or_else(|| io::ErrorKind::ConnectionRefused.into()));
    let child = endpoint(CHILD);
    child.dial(PARENT, dial).unwrap();
    child
}

async fn streams(parent: &Endpoint, child: &Endpoint) -> (Stream, Stream) {
    let mut listener = parent.listen(Port::ANY, ListenOptions::default()).await.unwrap();
    let near = child.connect(listener.local_addr()).await.unwrap();
    let (far, from) = listener.accept().await.unwrap();
    assert_eq!(from, near.local_addr());
    (near, far)
}

#[tokio::test(start_paused = true)]
async fn one_listener_takes_the_calls_of_all_children() {
    let parent = endpoint(PARENT);
    let children = [CHILD, Cid(4)].map(|cid| child(cid, &parent.expect(cid).unwrap()));
    let parent = Endpoint::paced(parent);
    let mut listener = parent.listen(PORT, ListenOptions::default()).await.unwrap();
    for child in children {
        let cid = child.local_cid();
        let _call = Endpoint::paced(child).connect(Addr::new(PARENT, PORT)).await.unwrap();
        let (_, from) = listener.accept().await.unwrap();
        assert_eq!(from.cid, cid);
    }
}

#[tokio::test(start_paused = true)]
async fn call_waits_for_a_link_that_is_not_there_yet() {
    let parent = endpoint(PARENT);
    let acceptor = parent.expect(CHILD).unwrap();
    let parent = Endpoint::paced(parent);
    let addr = Addr::new(CHILD, PORT);
    let error = parent.connect(addr).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    let late = tokio::spawn(async move {
        sleep(Duration::from_secs(2)).await;
        let child = Endpoint::paced(child(CHILD, &acceptor));
        let mut listener = child.listen(PORT, ListenOptions::default()).await.unwrap();
        listener.accept().await.map(|_| ())
    });
    parent.connect(addr).await.unwrap();
    late.await.unwrap().unwrap();
    let error = parent.connect(Addr::new(Cid(9), PORT)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn successor_of_a_dead_child_ends_the_streams_of_the_dead_one_at_once() {
    let parent = endpoint(PARENT);
    let acceptor = parent.expect(CHILD).unwrap();
    let parent = Endpoint::paced(parent);
    let dead = child_that_dials_once(&acceptor);
    let (_near, mut far) = streams(&parent, &Endpoint::paced(dead)).await;
    let before = Instant::now();
    let _successor = child(CHILD, &acceptor);
    let error = far.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(before.elapsed() < PacedConfig::default().silence, "noticed by its silence only");
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_everything_is_dropped_arrives() {
    let parent = endpoint(PARENT);
    let child = Endpoint::paced(child(CHILD, &parent.expect(CHILD).unwrap()));
    let parent = Endpoint::paced(parent);
    let (mut near, mut far) = streams(&parent, &child).await;
    let sent = vec![7; 50_000];
    near.write_all(&sent).await.unwrap();
    drop((near, child));
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert!(read == sent);
}

#[tokio::test(start_paused = true)]
async fn removed_link_fails_its_streams_and_leaves_its_place() {
    let parent = endpoint(PARENT);
    let child = Endpoint::paced(child(CHILD, &parent.expect(CHILD).unwrap()));
    let (mut near, mut far) = streams(&Endpoint::paced(parent.clone()), &child).await;
    assert!(parent.is_up(CHILD));
    assert!(matches!(parent.expect(CHILD), Err(Error::Invalid(_))));
    assert!(parent.remove(CHILD) && !parent.remove(CHILD));
    assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // The child hears nothing any more.
    assert_eq!(near.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    parent.expect(CHILD).unwrap();
}

/// A socket whose peer died with a full ring: every write is refused, and nothing comes.
struct DeadAndFull {
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for DeadAndFull {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for DeadAndFull {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Err(io::ErrorKind::StorageFull.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn peer_that_died_with_a_full_ring_is_an_error_and_no_busy_loop() {
    let parent = endpoint(PARENT);
    let acceptor = parent.expect(CHILD).unwrap();
    let child = child_that_dials_once(&acceptor);
    let (_near, mut far) = streams(&Endpoint::paced(parent), &Endpoint::paced(child)).await;
    let writes = Arc::new(AtomicUsize::new(0));
    acceptor.replace(DeadAndFull { writes: Arc::clone(&writes) });
    let flood = {
        let (acceptor, writes) = (acceptor.clone(), Arc::clone(&writes));
        // However often a socket is made, it is no better.
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(100)).await;
                acceptor.replace(DeadAndFull { writes: Arc::clone(&writes) });
            }
        })
    };
    let before = Instant::now();
    assert_eq!(far.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    flood.abort();
    // Pauses of 10 ms at least, but for the first few on each socket.
    let most = before.elapsed().as_millis() as usize / 4;
    let writes = writes.load(Ordering::Relaxed);
    assert!(writes < most, "{writes} writes were tried in {:?}", before.elapsed());
}

#[test]
fn waits_that_cannot_work_are_refused() {
    for (keepalive, silence, give_up) in [(0, 4000, 10_000), (1000, 1000, 10_000), (1000, 4000, 3000)] {
        let config = PacedConfig {
            keepalive: Duration::from_millis(keepalive),
            silence: Duration::from_millis(silence),
            give_up: Duration::from_millis(give_up),
            ..PacedConfig::default()
        };
        assert!(matches!(PacedEndpoint::new(CHILD, config), Err(Error::Invalid(_))));
    }
}

#[test]
fn windows_and_lines_that_cannot_work_are_refused() {
    let default = PacedConfig::default();
    let sound = PacedConfig { sockets: SocketKind::Sound, ..default };
    for (config, window_bytes, works) in [
        (default, 1023, false),
        (default, 1024, true),
        (default, 32 << 10, true),
        (default, (32 << 10) + 1, false),
        (sound, 4 << 20, true),
        (sound, (4 << 20) + 1, false),
    ] {
        let config = PacedConfig { window_bytes: Some(window_bytes), ..config };
        assert_eq!(PacedEndpoint::new(CHILD, config).is_ok(), works, "{config:?}");
    }
    assert!(PacedEndpoint::new(CHILD, PacedConfig { is_line: true, ..sound }).is_err());
}

#[tokio::test]
async fn bytes_arrive_whole_over_sound_sockets_that_break() {
    let config = PacedConfig { sockets: SocketKind::Sound, ..PacedConfig::default() };
    let (parent, child) =
        (PacedEndpoint::new(PARENT, config).unwrap(), PacedEndpoint::new(CHILD, config).unwrap());
    let acceptor = parent.expect(CHILD).unwrap();
    let sockets = Arc::new(Mutex::new(Vec::new()));
    let dialled = Arc::clone(&sockets);
    let dial = move || {
        let made = tokio::net::UnixStream::pair().map(|(near, far)| {
            dialled.lock().unwrap().push(rustix::io::dup(&near).unwrap());
            acceptor.replace(far);
            near
        });
        std::future::ready(made)
    };
    child.dial(PARENT, dial).unwrap();
    let (mut near, mut far) = streams(&Endpoint::paced(parent), &Endpoint::paced(child)).await;
    let sent: Vec<u8> = (0..8 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let outgoing = sent.clone();
    let writing = tokio::spawn(async move {
        near.write_all(&outgoing).await?;
        near.shutdown().await.map(|()| near)
    });
    let mut read = Vec::new();
    let mut piece = vec![0; 100_000];
    loop {
        let len = far.read(&mut piece).await.unwrap();
        if len == 0 {
            break;
        }
        let before = read.len();
        read.extend_from_slice(&piece[..len]);
        // Each MiB or so, in the middle of whatever is under way.
        if before >> 20 != read.len() >> 20
            && let Some(last) = sockets.lock().unwrap().pop()
        {
            let _ = rustix::net::shutdown(&last, rustix::net::Shutdown::Both);
        }
    }
    assert!(read == sent);
    writing.await.unwrap().unwrap();
}
