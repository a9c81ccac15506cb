//! The conformance suite on every backend that this machine has. AF_VSOCK runs inside a kernel that has
//! vsock_loopback, through the binary `tombolo-conformance`.

use tombolo_transport::conformance::backends::{Between, Hybrid, Memory, Paced, Shm, ShmKernels};
use tombolo_transport::conformance::relayed::{Relayed, RelayedKernels};
use tombolo_transport::conformance::{
    self, Backend, Direction, Failure, Limits, Outcome, Pair, Party, RemoteParty,
};
use tombolo_transport::memory::MemoryFabric;
use tombolo_transport::paced::SocketKind;
use tombolo_transport::{Cid, Endpoint};

async fn conforms(backend: impl Backend) {
    let verdicts = conformance::run(&backend, "", |verdict| println!("{verdict}")).await;
    let failed: Vec<_> =
        verdicts.iter().filter(|verdict| matches!(verdict.outcome, Outcome::Failed(_))).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conforms(Memory).await;
}

#[tokio::test]
async fn memory_conforms_on_one_thread() {
    conforms(Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hybrid_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(Hybrid::in_dir(dir.path())).await;
}

#[tokio::test]
async fn hybrid_conforms_on_one_thread() {
    let dir = tempfile::tempdir().unwrap();
    conforms(Hybrid::in_dir(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paced_conforms() {
    conforms(Paced::over_sound_sockets(SocketKind::Multikernel)).await;
}

#[tokio::test]
async fn paced_conforms_on_one_thread() {
    conforms(Paced::over_sound_sockets(SocketKind::Multikernel)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paced_conforms_over_faulty_sockets() {
    conforms(Paced::over_faulty_sockets(SocketKind::Multikernel)).await;
}

#[tokio::test]
async fn paced_conforms_over_faulty_sockets_on_one_thread() {
    conforms(Paced::over_faulty_sockets(SocketKind::Multikernel)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paced_with_long_frames_conforms() {
    conforms(Paced::over_sound_sockets(SocketKind::Sound)).await;
}

#[tokio::test]
async fn paced_with_long_frames_conforms_on_one_thread() {
    conforms(Paced::over_sound_sockets(SocketKind::Sound)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paced_with_long_frames_conforms_over_faulty_sockets() {
    conforms(Paced::over_faulty_sockets(SocketKind::Sound)).await;
}

async fn relayed_conforms(kernels: RelayedKernels) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    conforms(Relayed::in_dir(dir.path(), kernels)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_within_one_kernel_conforms() {
    relayed_conforms(RelayedKernels::Same).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_between_primary_and_kernel_without_pool_conforms() {
    relayed_conforms(RelayedKernels::PrimaryAndApart).await;
}

#[tokio::test]
async fn relayed_between_primary_and_kernel_without_pool_conforms_on_one_thread() {
    relayed_conforms(RelayedKernels::PrimaryAndApart).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_between_two_kernels_without_pool_conforms() {
    relayed_conforms(RelayedKernels::TwoApart).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_between_two_kernels_without_pool_conforms_over_faulty_sockets() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    conforms(Relayed::over_faulty_sockets(dir.path(), RelayedKernels::TwoApart)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_between_kernels_with_and_without_pool_conforms() {
    relayed_conforms(RelayedKernels::MemberAndApart).await;
}

async fn shm_conforms(kernels: ShmKernels) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    conforms(Shm::in_dir(dir.path(), kernels)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shm_within_one_kernel_conforms() {
    shm_conforms(ShmKernels::Same).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shm_between_primary_and_spawned_kernel_conforms() {
    shm_conforms(ShmKernels::PrimaryAndSpawned).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shm_between_two_spawned_kernels_conforms() {
    shm_conforms(ShmKernels::TwoSpawned).await;
}

#[tokio::test]
async fn shm_between_two_spawned_kernels_conforms_on_one_thread() {
    shm_conforms(ShmKernels::TwoSpawned).await;
}

/// The driver and the peer program of the suite themselves, on the backend that has least to say of its own.
struct MemoryThroughAPeerProgram;

impl Backend for MemoryThroughAPeerProgram {
    async fn pair(&self) -> Result<Pair, Failure> {
        let fabric = MemoryFabric::new();
        let here = Endpoint::memory(fabric.endpoint(Cid::HOST));
        let there = Cid(3);
        let (ready, serving) = tokio::sync::oneshot::channel();
        let peer =
            tokio::spawn(conformance::serve_peer(Endpoint::memory(fabric.endpoint(there)), move || {
                let _ = ready.send(());
            }));
        serving.await.map_err(|_| Failure::new("the peer program did not start"))?;
        let callee = RemoteParty::connect_to(&here, there).await?;
        let keep = Box::new((callee.ends(), peer));
        Ok(Pair { caller: here.into(), callee: Party::There(callee), keep })
    }

    fn limits(&self) -> Limits {
        Memory.limits()
    }

    fn skips(&self, behaviour: &str, direction: Direction) -> Option<&'static str> {
        Between::shm("", Cid(3)).skips(behaviour, direction)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_through_a_peer_program_conforms() {
    conforms(MemoryThroughAPeerProgram).await;
}
