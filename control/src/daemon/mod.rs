//! `tombolod`: holds the truth about the instances, keeps it in step with the world, and serves it.
//!
//! ```text
//!  tombolo ──tombolod.sock──▶ services ──▶ registry ──▶ instance (one task each) ──▶ spawner, keeper
//!                                │                          ▲    │
//!                                ▼                          │    ▼
//!                              store ◀──── every step ──────┘   pool: heartbeat, black box, fence
//!                                                           ▲
//!  agents ──control port (shared memory, paced link)──▶ door┘
//! ```

mod agents;
mod balance;
mod drivers;
mod groups;
mod handover;
mod instance;
pub mod options;
mod paced;
mod pool;
mod registry;
mod relay;
mod services;
mod shared;
pub mod socket;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::agents::Door;
use self::balance::Balance;
use self::drivers::Drivers;
use self::handover::Stock;
#[cfg(test)]
pub(crate) use self::handover::{
    Amount, GRANULE_BYTES, Has, Lots, Movable, Tie, UnitsAre, Whereabouts, attached, cpu_of_kernels,
    device_of_kernels, find_lot, find_unit, granules_of, held_memory, needs_of, row_of,
};
use self::instance::Command;
use self::options::{Options, Places};
use self::paced::PacedLinks;
use self::registry::Registry;
use self::services::ShutdownRequest;
use self::shared::{Parts, Shared};
use crate::api::ControlError;
use crate::core::policy::to_broker_policy;
use crate::core::{EventKind, State};
use crate::spawner::QemuSpawner;
use crate::store::{StateLock, Store, StoreError};
use crate::topology::Topology;

/// How long an instance may take to stop when the daemon ends, whatever its grace.
const STOP_MAX: Duration = Duration::from_secs(300);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store, or the right to it, could not be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pool cannot be used.
    #[error("{0}")]
    Pool(String),
    /// Something of the host's was refused.
    #[error("could not {attempt}: {reason}")]
    Host {
        /// What was tried.
        attempt: String,
        /// What went wrong.
        reason: String,
    },
}

impl StartError {
    fn host(attempt: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let attempt = attempt.into();
        move |error| Self::Host { attempt, reason: error.to_string() }
    }

    /// The exit code that says so.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Store(StoreError::InUse { .. }) => ExitCode::from(4),
            _ => ExitCode::FAILURE,
        }
    }
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// [`StartError`] if it cannot take charge; nothing has been changed then.
pub async fn run(options: Options) -> Result<(), StartError> {
    let mut places = Places::new(&options).map_err(StartError::host("find our own program"))?;
    let mut multikernel = options.multikernel_settings()?;
    let vsock_device = options.vsock_device()?;
    let _state_lock = StateLock::acquire(&places.state_dir, 0o700)?;
    let _runtime_lock = StateLock::acquire(&places.runtime_dir, 0o755)?;
    let store = Store::open(&places.state_dir)?;
    if let Some(reason) = store.refusal() {
        tracing::warn!(reason, "changes are refused; reading goes on");
    }
    let records = store.instances()?;
    let rules = store.rules()?;
    let balance = Balance::new(store.balance()?);
    let open = pool::open(&mut places, &options, &records, &mut multikernel)?;
    let broker = pool::start_broker(&open, &places, to_broker_policy(&rules), &options).await?;
    let catalogue = options.catalogue()?;
    let unusable = |error: tombolo_transport::Error| StartError::Pool(chain(&error));
    let paced = PacedLinks::new().map_err(unusable)?;
    let stock = Stock {
        host_memory_min_mib: options.host_memory_min,
        kernels_memory_bytes: options.kernels_memory_bytes()?,
        cpus: options.cpu_stock(&Topology::of_this_host())?,
        devices: options.device_stock(&catalogue)?,
        devices_are_of_kernels: options.moves_devices_of_kernels(),
    };
    let (ledger, opening) = handover::open(&store, &stock).await;
    let shared = Shared::new(Parts {
        drivers: Drivers::new(
            &places.keeper_binary,
            options.image.as_deref(),
            options.spawner,
            QemuSpawner::new(&places.keeper_binary)
                .with_vsock_device(vsock_device)
                .with_accelerator(options.accel, Some(places.state_dir.clone()))
                .with_pinned_cpus(options.host_cpus.is_some()),
            multikernel,
        ),
        operators_gid: groups::gid_of(&options.operators),
        image: options.image.clone(),
        catalogue,
        places,
        store,
        ledger,
        pool: open.pool,
        pool_bytes: open.bytes,
        broker,
        paced,
        rules,
        balance,
    });
    let endpoint = shared.broker.endpoint().await.map_err(unusable)?;
    let _relay = relay::start(&shared).await.map_err(unusable)?;
    let door = Door::new(shared.clone());
    let doors =
        Door::open(&endpoint, shared.pool.geometry(), &shared.paced.endpoint()).await.map_err(unusable)?;
    let path = shared.places.control_socket();
    let listener = socket::bind(&path).map_err(StartError::host(format!("bind {}", path.display())))?;

    let started =
        EventKind::DaemonStarted { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() };
    shared.note(None, started).await;
    let registry = Registry::resume(shared.clone(), records);
    tokio::spawn(opening.serve(shared.clone(), registry.clone(), options.debug_die_after_steps));
    tokio::spawn(balance::run(shared.clone(), registry.clone()));
    let (shutdown, requests) = mpsc::channel(1);
    let doors = doors.map(|agents| tokio::spawn(door.clone().serve(agents)));
    let callers = tokio::spawn(socket::serve(listener, shared.clone(), registry.clone(), shutdown));
    tracing::info!(socket = %path.display(), state = %shared.places.state_dir.display(), "ready");

    let request = wait_for_the_end(requests, options.stop_kernels).await;
    shared.is_ending.store(true, Ordering::Release);
    if request.stop_kernels {
        stop_all(&registry).await;
    }
    let left = registry.views().iter().filter(|view| view.state.may_have_kernel()).count() as u32;
    shared.note(None, EventKind::DaemonStopped { kernels_left_running: left }).await;
    callers.abort();
    doors.iter().for_each(tokio::task::JoinHandle::abort);
    let _ = std::fs::remove_file(&path);
    drop(endpoint);
    shared.broker.clone().stop().await;
    if left == 0 && request.stop_kernels {
        // Nobody maps it any more; the next daemon makes a new one.
        pool::remove(&shared.places);
    }
    tracing::info!(kernels_left_running = left, "ended");
    Ok(())
}

async fn wait_for_the_end(
    mut requests: mpsc::Receiver<ShutdownRequest>,
    stop_kernels: bool,
) -> ShutdownRequest {
    let by_signal = ShutdownRequest { stop_kernels };
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return requests.recv().await.unwrap_or(by_signal);
    };
    tokio::select! {
        request = requests.recv() => request.unwrap_or(by_signal),
        _ = terminate.recv() => by_signal,
        _ = interrupt.recv() => by_signal,
    }
}

/// Stops every instance in good order, all at once, and waits until none has a kernel.
async fn stop_all(registry: &Registry) {
    let mut stopping = tokio::task::JoinSet::new();
    for handle in registry.all() {
        stopping.spawn(async move {
            let name = handle.name.to_string();
            if let Err(error) = handle.mailbox.command(&name, Command::Stop(None)).await {
                tracing::warn!(instance = name, %error, "could not begin to stop it");
                // One that was taken over while it ran, and is not ours to end by the way.
                if !matches!(error, ControlError::Conflict { .. }) {
                    let _ = handle.mailbox.command(&name, Command::Kill).await;
                }
            }
            let mut face = handle.face.clone();
            let stopped = face.wait_for(|face| {
                let state = face.view.state;
                !state.may_have_kernel() && state != State::Reserved
            });
            // The instance itself uses force when its grace is over; this is for when even that does not work.
            if tokio::time::timeout(STOP_MAX, stopped).await.is_err() {
                tracing::error!(instance = name, "it did not stop");
            }
        });
    }
    while stopping.join_next().await.is_some() {}
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    instance::chain(error)
}
