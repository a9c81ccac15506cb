//! The largest pool there can be: kernels of any index meet, and are heard by their bells alone.

mod common;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Fabric, WATCHDOG};
use tokio::time::timeout;
use tombolo_transport::broker::BrokerConfig;
use tombolo_transport::pool::{Geometry, PoolSource};
use tombolo_transport::{Broker, BrokerHandle, Error, ListenOptions, Member, Pool, Port};

const GEOMETRY: Geometry =
    Geometry { members_max: Geometry::MEMBERS_MAX, extent_bytes: 2 << 20, black_box_records: 16 };
/// Nobody finds by a timer what a bell should have told.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);

fn deaf_to_timers(fabric: &Fabric, member: Member) -> BrokerConfig {
    BrokerConfig { recheck: NEVER, recheck_with_lines: NEVER, ..fabric.config(member) }
}

async fn spawned(fabric: &Fabric, member: Member) -> BrokerHandle {
    fabric.admit(member).await;
    let broker = Broker::start(deaf_to_timers(fabric, member)).await.unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    fabric.brokers[0].add_line(member, near.into()).unwrap();
    broker.add_line(Member::PRIMARY, far.into()).unwrap();
    broker
}

#[tokio::test]
async fn kernels_of_any_index_meet_and_ring_each_other() {
    let mut fabric = Fabric::with_geometry(0, GEOMETRY).await;
    let config = deaf_to_timers(&fabric, Member::PRIMARY);
    fabric.brokers.pop().unwrap().stop().await;
    fabric.brokers.push(Broker::start(config).await.unwrap());
    let mut brokers = vec![fabric.brokers[0].clone()];
    for member in [1, 64, 511, 1023] {
        brokers.push(spawned(&fabric, Member(member)).await);
    }
    for (from, to) in [(0, 4), (4, 0), (2, 3), (3, 4), (4, 1), (1, 2)] {
        let (caller, server) =
            (brokers[from].endpoint().await.unwrap(), brokers[to].endpoint().await.unwrap());
        let meeting = async {
            let mut listener = server.listen_messages(Port(5000), ListenOptions::default()).await.unwrap();
            let near = caller.connect_messages(listener.local_addr());
            let (near, far) = tokio::join!(near, listener.accept());
            let (mut near, (mut far, _)) = (near.unwrap(), far.unwrap());
            near.send(&[7; 40]).await.unwrap();
            assert_eq!(far.recv().await.unwrap().unwrap(), [7; 40][..]);
        };
        timeout(WATCHDOG, meeting)
            .await
            .unwrap_or_else(|_| panic!("a bell from {from} to {to} was not heard"));
    }
    let members = brokers[0].status().await.unwrap().members;
    assert_eq!(members.iter().map(|status| status.member.0).collect::<Vec<_>>(), [0, 1, 64, 511, 1023]);
    assert!(members.iter().all(|status| status.generation != 0));
}

#[tokio::test]
async fn a_pool_has_as_many_members_as_it_was_made_for() {
    let fabric = Fabric::with_geometry(0, Geometry { members_max: 300, ..GEOMETRY }).await;
    let attach = |member| Pool::attach(PoolSource::path(fabric.pool_path()), Member(member));
    assert_eq!(attach(299).unwrap().geometry().members_max, 300);
    assert!(matches!(attach(300), Err(Error::BadPool { reason, .. }) if reason.contains("300 members")));
    let too_far =
        fabric.brokers[0].admit(Member(300), tombolo_transport::Cid(9), "k", fabric.admit(Member(299)).await);
    assert!(too_far.await.is_err());
}
