//! What happens around the connections of a fabric, and must not happen to them: the primary writing or losing a row, and
//! programs that lock parts of the pool's file.

mod common;

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{Fabric, WATCHDOG};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tombolo_transport::{Addr, Broker, Cid, ListenOptions, Member, Port};

/// Sets the sequence word of a member's row, as a primary that is writing it, or was killed over it, leaves it.
fn set_row_sequence(fabric: &Fabric, member: u64, sequence: u64) {
    let file = std::fs::File::options().write(true).open(fabric.pool_path()).unwrap();
    file.write_all_at(&sequence.to_le_bytes(), 4096 + member * 128).unwrap();
}

fn row_sequence(fabric: &Fabric, member: u64) -> u64 {
    let mut word = [0; 8];
    let file = std::fs::File::open(fabric.pool_path()).unwrap();
    file.read_exact_at(&mut word, 4096 + member * 128).unwrap();
    u64::from_le_bytes(word)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_being_written_is_nobodys_death() {
    let fabric = Fabric::new(2).await;
    let (caller, callee) =
        (fabric.brokers[1].endpoint().await.unwrap(), fabric.brokers[2].endpoint().await.unwrap());
    let mut listener = callee.listen(Port(5000), ListenOptions::default()).await.unwrap();
    let addr = listener.local_addr();
    let mut first = caller.connect(addr).await.unwrap();
    let (mut accepted, _) = listener.accept().await.unwrap();
    let sequence = row_sequence(&fabric, 2);
    set_row_sequence(&fabric, 2, sequence | 1);
    caller.connect(addr).await.unwrap();
    set_row_sequence(&fabric, 2, sequence + 2);
    caller.connect(addr).await.unwrap();
    first.write_all(b"still there").await.unwrap();
    let mut words = [0; 11];
    accepted.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"still there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admitting_what_is_there_already_writes_nothing() {
    let fabric = Fabric::new(1).await;
    let incarnation = fabric.brokers[0].pool().row(Member(1)).unwrap().incarnation;
    let before = row_sequence(&fabric, 1);
    fabric.brokers[0].admit(Member(1), Cid(3), "k1", incarnation).await.unwrap();
    assert_eq!(row_sequence(&fabric, 1), before);
    fabric.brokers[0].admit(Member(1), Cid(3), "other", incarnation).await.unwrap();
    assert_ne!(row_sequence(&fabric, 1), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_whose_row_was_lost_with_the_primary_is_reached_again_once_admitted() {
    let mut fabric = Fabric::new(2).await;
    let incarnation = fabric.brokers[0].pool().row(Member(2)).unwrap().incarnation;
    let connect_to_2 = async |fabric: &Fabric| {
        let (caller, callee) =
            (fabric.brokers[1].endpoint().await.unwrap(), fabric.brokers[2].endpoint().await.unwrap());
        let mut listener = callee.listen(Port(5000), ListenOptions::default()).await.unwrap();
        let connected = caller.connect(listener.local_addr()).await;
        connected.map(|_| ())?;
        listener.accept().await.map(|_| ())
    };
    connect_to_2(&fabric).await.unwrap();
    // The primary is killed over the row; the next one finds it half written.
    fabric.brokers.remove(0).stop().await;
    set_row_sequence(&fabric, 2, row_sequence(&fabric, 2) | 1);
    let primary = Broker::start(fabric.config(Member::PRIMARY)).await.unwrap();
    fabric.brokers.insert(0, primary);
    fabric.join(1);
    fabric.join(2);
    assert_eq!(fabric.brokers[0].pool().row(Member(2)), None);
    // Kernel 1 sees that, too.
    let caller = fabric.brokers[1].endpoint().await.unwrap();
    assert!(caller.connect(Addr::new(Cid(4), Port(5000))).await.is_err());
    fabric.brokers[0].admit(Member(2), Cid(4), "k2", incarnation).await.unwrap();
    timeout(WATCHDOG, async {
        while let Err(error) = connect_to_2(&fabric).await {
            assert_ne!(error.kind(), ErrorKind::TimedOut, "their brokers are out of step: {error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is never reached again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_that_no_broker_made_keep_their_pages_out_of_use_and_nothing_else_happens() {
    let mut fabric = Fabric::new(1).await;
    let heap_bytes = fabric.brokers[1].status().await.unwrap().heap_bytes;
    let pool = fabric.brokers[0].pool();
    let heap_end = 8192 + 2 * pool.geometry().extent_bytes;
    fabric.brokers.remove(1).stop().await;
    // A process that was given the pool locks what it likes, byte by byte.
    let lock = |from_end: u64, len: u64| {
        let file = std::fs::File::options().read(true).write(true).open(fabric.pool_path()).unwrap();
        let request = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: (heap_end - from_end) as libc::off_t,
            l_len: len as libc::off_t,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&request)).unwrap();
        file
    };
    let held = [lock(5000, 10), lock(4000, 1), lock(3990, 1), lock(1, 1)];
    let broker = Broker::start(fabric.config(Member(1))).await.unwrap();
    fabric.brokers.push(broker);
    assert_eq!(fabric.brokers[1].status().await.unwrap().heap_free_bytes, heap_bytes - 8192);
    drop(held);
    fabric.wait_until_free(1).await;
}
