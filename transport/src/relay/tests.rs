//! Relayed connections as applications meet them, beside what the conformance suite asks of every backend.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::request::{ANSWER_BYTES, Answer, Refusal, Request, What};
use super::testing::{APART, Kernels, MEMBER, SOUND};
use crate::addr::{Addr, Cid, Port};
use crate::broker::record::ConnKind;
use crate::broker::{Policy, PolicyAction, PolicyRule, PortMatch};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::options::ListenOptions;
use crate::stream::Stream;

const PORT: Port = Port(5000);

async fn kernels(dir: &tempfile::TempDir, policy: Policy) -> Kernels {
    Kernels::start(dir.path().join("k"), true, &policy, SOUND).await.unwrap()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn allow(from: Cid, to: Cid, port: PortMatch) -> Policy {
    let [from, to] = [from, to].map(|cid| format!("kernel{cid}").parse().unwrap());
    Policy { rules: vec![PolicyRule { from, to, port, action: PolicyAction::Allow }] }
}

/// A connection: the caller's end, and the callee's.
async fn connection(caller: &Endpoint, callee: &Endpoint) -> (Stream, Stream) {
    let mut listener = callee.listen(Port::ANY, ListenOptions::default()).await.unwrap();
    let caller = caller.connect(listener.local_addr()).await.unwrap();
    (caller, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn services_are_found_by_name_from_everywhere() {
    let dir = dir();
    let kernels = kernels(&dir, Policy::default()).await;
    let cids = [Cid::HOST, APART[0], APART[1], MEMBER];
    let mut listeners = Vec::new();
    for cid in cids {
        let endpoint = kernels.attach(cid).await.unwrap();
        assert_eq!(endpoint.local_cid(), cid);
        listeners.push((cid, endpoint.listen(Port::ANY, ListenOptions::named("kv")).await.unwrap()));
    }
    for from in cids {
        let endpoint = kernels.attach(from).await.unwrap();
        for (to, listener) in &listeners {
            let found = endpoint.resolve(&format!("kernel{to}/kv")).await.unwrap();
            assert_eq!(found, listener.local_addr(), "{from} looks for {to}");
            let unknown = endpoint.resolve(&format!("kernel{to}/other")).await;
            assert!(matches!(unknown, Err(Error::NotFound { .. })), "{unknown:?}");
        }
        assert_eq!(endpoint.resolve("kv").await.unwrap().cid, from);
        assert!(endpoint.resolve("nobody/kv").await.is_err());
    }
}

#[tokio::test]
async fn rules_hold_between_kernels_that_are_relayed() {
    let dir = dir();
    let kernels = kernels(&dir, allow(APART[0], APART[1], PortMatch::Service("kv".into()))).await;
    let [first, second] = [kernels.attach(APART[0]).await.unwrap(), kernels.attach(APART[1]).await.unwrap()];
    let kv = second.listen(PORT, ListenOptions::named("kv")).await.unwrap();
    let other = first.listen(PORT, ListenOptions::default()).await.unwrap();
    first.connect(kv.local_addr()).await.unwrap();
    let denied = second.connect(other.local_addr()).await;
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    kernels.apart[1].set_policy(Policy::default());
    let denied = first.connect(kv.local_addr()).await;
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    let member = kernels.attach(MEMBER).await.unwrap();
    let denied = member.connect(kv.local_addr()).await;
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    let of_member = member.listen(PORT, ListenOptions::default()).await.unwrap();
    let denied = first.connect(of_member.local_addr()).await;
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
}

/// Asks the relay of the primary as kernel `from` does.
async fn ask(from: &Endpoint, request: &[u8]) -> (Stream, Option<Answer>) {
    let mut stream = from.connect(Addr::new(Cid::HOST, Port::RELAY)).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = [0; ANSWER_BYTES];
    let heard = stream.read_exact(&mut answer).await;
    (stream, heard.ok().and_then(|_| Answer::decode(&answer)))
}

#[tokio::test]
async fn a_kernel_cannot_call_in_the_name_of_another() {
    let dir = dir();
    let kernels = kernels(&dir, allow(APART[0], APART[1], PortMatch::Any)).await;
    let member = kernels.attach(MEMBER).await.unwrap();
    let host = kernels.attach(Cid::HOST).await.unwrap();
    let apart = kernels.attach(APART[1]).await.unwrap();
    let mut at_host = host.listen(PORT, ListenOptions::default()).await.unwrap();
    let _at_apart = apart.listen(PORT, ListenOptions::default()).await.unwrap();
    let forged = |target| Request {
        what: What::Connection(ConnKind::Stream),
        within: Duration::from_secs(5),
        source: Addr::new(APART[0], Port(77)),
        target: Addr::new(target, PORT),
        name: format!("kernel{}", APART[0]),
    };
    let (_stream, answer) = ask(&member, &forged(APART[1]).encode()).await;
    assert_eq!(answer, Some(Answer::Refused(Refusal::Denied)));
    let (_stream, answer) = ask(&member, &forged(Cid::HOST).encode()).await;
    assert_eq!(answer, Some(Answer::Connected));
    let (_stream, caller) = at_host.accept().await.unwrap();
    assert_eq!(caller, Addr::new(MEMBER, Port(77)));
}

#[tokio::test]
async fn nonsense_is_refused_and_harms_nobody_else() {
    let dir = dir();
    let kernels = kernels(&dir, Policy::default()).await;
    let member = kernels.attach(MEMBER).await.unwrap();
    let (_stream, answer) = ask(&member, &[0xff; 24 + 255]).await;
    assert_eq!(answer, Some(Answer::Refused(Refusal::BadRequest)));
    let round = kernels.attach(APART[0]).await.unwrap().connect(Addr::new(APART[1], Port::RELAY)).await;
    assert!(round.is_err(), "{round:?}");
    let (mut caller, mut callee) =
        connection(&kernels.attach(Cid::HOST).await.unwrap(), &kernels.attach(APART[0]).await.unwrap()).await;
    caller.write_all(b"hello").await.unwrap();
    callee.read_exact(&mut [0; 5]).await.unwrap();
}

#[tokio::test]
async fn death_of_a_kernel_is_a_reset_in_every_other() {
    let dir = dir();
    let kernels = kernels(&dir, allow(APART[0], APART[1], PortMatch::Any)).await;
    let dying = kernels.attach(APART[1]).await.unwrap();
    for cid in [Cid::HOST, APART[0]] {
        let living = kernels.attach(cid).await.unwrap();
        let (mut near, mut far) = connection(&living, &dying).await;
        far.write_all(b"last words").await.unwrap();
        near.read_exact(&mut [0; 10]).await.unwrap();
        if cid == APART[0] {
            assert!(kernels.links.remove(APART[1]));
            let error = near.read(&mut [0; 10]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let error = far.read(&mut [0; 10]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it only seemed dead");
            let refused = living.connect(Addr::new(APART[1], PORT)).await;
            assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn end_of_the_primarys_broker_resets_its_applications_and_no_others() {
    let dir = dir();
    let mut kernels = kernels(&dir, allow(APART[0], APART[1], PortMatch::Any)).await;
    let [host, first, second] = [Cid::HOST, APART[0], APART[1]].map(|cid| kernels.attach(cid));
    let (host, first, second) = (host.await.unwrap(), first.await.unwrap(), second.await.unwrap());
    let mut listener = host.listen(PORT, ListenOptions::default()).await.unwrap();
    let (mut near, mut far) = connection(&first, &second).await;
    kernels.relays.clear();
    kernels.primary().clone().stop().await;
    assert!(listener.accept().await.is_err());
    let refused = first.connect(Addr::new(Cid::HOST, PORT)).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    near.write_all(b"hello").await.unwrap();
    far.read_exact(&mut [0; 5]).await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_holds_up_its_own_connection_only() {
    let dir = dir();
    let kernels = kernels(&dir, Policy::default()).await;
    let (host, apart) = (kernels.attach(Cid::HOST).await.unwrap(), kernels.attach(APART[0]).await.unwrap());
    let (mut slow, mut unread) = connection(&host, &apart).await;
    let (mut quick, mut read) = connection(&host, &apart).await;
    const MANY: usize = 4 << 20;
    let writing = tokio::spawn(async move { slow.write_all(&vec![7; MANY]).await.map(|()| slow) });
    for _ in 0..100 {
        quick.write_all(&[1; 1000]).await.unwrap();
        read.read_exact(&mut [0; 1000]).await.unwrap();
    }
    assert!(!writing.is_finished(), "more is under way than buffers may hold");
    let mut all = vec![0; MANY];
    unread.read_exact(&mut all).await.unwrap();
    assert!(all.iter().all(|byte| *byte == 7));
    writing.await.unwrap().unwrap();
}
