//! The hybrid convention against the other side played by hand, byte by byte.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tombolo_transport::hybrid::HybridConfig;
use tombolo_transport::{Addr, Cid, ConnectOptions, Endpoint, Error, ListenOptions, Port};

const GUEST: Addr = Addr { cid: Cid(3), port: Port(52) };

fn host(path: &Path) -> Endpoint {
    Endpoint::hybrid(HybridConfig::host(path, GUEST.cid)).unwrap()
}

fn guest(path: &Path) -> Endpoint {
    Endpoint::hybrid(HybridConfig::guest(path, GUEST.cid)).unwrap()
}

/// A monitor that reads the request and answers with `answer`.
fn monitor(path: &Path, answer: &'static [u8]) -> tokio::task::JoinHandle<Vec<u8>> {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64];
        let read = stream.read(&mut request).await.unwrap();
        request.truncate(read);
        stream.write_all(answer).await.unwrap();
        request
    })
}

#[tokio::test]
async fn host_says_connect_and_keeps_what_follows_ok() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let monitor = monitor(&path, b"OK 1073741824\nhello");
    let mut stream = host(&path).connect(GUEST).await.unwrap();
    assert_eq!(stream.local_addr(), Addr::new(Cid::HOST, Port(1_073_741_824)));
    let mut words = Vec::new();
    stream.read_to_end(&mut words).await.unwrap();
    assert_eq!(words, b"hello");
    assert_eq!(monitor.await.unwrap(), b"CONNECT 52\n");
}

#[tokio::test]
async fn monitor_that_hangs_up_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let _monitor = monitor(&path, b"");
    let error = host(&path).connect(GUEST).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[tokio::test]
async fn missing_monitor_and_other_guests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(&dir.path().join("v"));
    for addr in [GUEST, Addr::new(Cid(4), GUEST.port)] {
        let error = host.connect(addr).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
}

#[tokio::test]
async fn server_that_is_no_monitor_is_called_so() {
    for answer in
        [&b"HTTP/1.1 400 Bad Request\r\n"[..], b"OK\n", b"OK x\n", b"no end to this answer is in sight, none"]
    {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let _monitor = monitor(&path, answer);
        let error = host(&path).connect(GUEST).await.unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.contains("no vsock monitor")), "{error}");
    }
}

#[tokio::test]
async fn silent_monitor_is_given_up_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let _listener = UnixListener::bind(&path).unwrap();
    let options = ConnectOptions { timeout: Duration::from_millis(30), ..ConnectOptions::default() };
    let error = host(&path).connect_with(GUEST, &options).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { deadline_ms: 30, .. }), "{error}");
}

#[tokio::test]
async fn guest_hangs_up_on_whoever_talks_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let guest = guest(&path);
    let mut listener = guest.listen(GUEST.port, ListenOptions::default()).await.unwrap();
    for request in
        [&b"GET / HTTP/1.1\r\n"[..], b"CONNECT 53\n", b"CONNECT 4294967296\n", b"CONNECT", &[0xff; 200]]
    {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // Hung up with bytes unread is a reset; otherwise an end.
        if let Err(error) = stream.read_to_end(&mut answer).await {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(answer, b"", "{}", request.escape_ascii());
    }
    // After all that, one who keeps to it is served.
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"CONNECT 52\nhello").await.unwrap();
    let (mut accepted, from) = listener.accept().await.unwrap();
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).await.unwrap();
    assert_eq!(&answer[..read], format!("OK {}\n", from.port).as_bytes());
    let mut words = [0; 5];
    accepted.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"hello");
}

#[tokio::test]
async fn guest_calls_a_listener_that_knows_nothing_of_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let listener = UnixListener::bind(dir.path().join("v_6000")).unwrap();
    let mut called = guest(&path).connect(Addr::new(Cid::HOST, Port(6000))).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    called.write_all(b"from the guest").await.unwrap();
    called.shutdown().await.unwrap();
    let mut words = Vec::new();
    accepted.read_to_end(&mut words).await.unwrap();
    assert_eq!(words, b"from the guest");
}

#[tokio::test]
async fn nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let guest = guest(&path);
    let listener = host(&path).listen(Port(6000), ListenOptions::default()).await.unwrap();
    assert!(
        Endpoint::hybrid(HybridConfig::guest(&path, GUEST.cid))
            .is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
    );
    drop((guest, listener));
    for _ in 0..200 {
        if std::fs::read_dir(dir.path()).unwrap().next().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("sockets are left: {:?}", std::fs::read_dir(dir.path()).unwrap().collect::<Vec<_>>());
}
