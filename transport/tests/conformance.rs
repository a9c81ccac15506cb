//! The conformance suite on every backend that this machine has. AF_VSOCK runs inside a kernel that has
//! vsock_loopback, through the binary `tombolo-conformance`.

use tombolo_transport::conformance::backends::{Hybrid, Memory, Shm, ShmKernels};
use tombolo_transport::conformance::{self, Backend};

async fn conforms(backend: impl Backend) {
    let verdicts = conformance::run(&backend, "", |verdict| println!("{verdict}")).await;
    let failed: Vec<_> = verdicts.iter().filter(|verdict| verdict.outcome.is_err()).collect();
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
