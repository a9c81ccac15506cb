//! One change of what the kernel has, from intent to proof.
//!
//! The kernel answers a write of an overlay with its length even when nothing of it took effect, and does not say which transaction it became. So
//! the transaction is found by what it is made of, among those that were not there before; what it says of itself is read; and what it was to
//! change is read back, which alone counts.

use std::io;
use std::time::Duration;

use super::clock::look_until;
use super::holders;
use super::interface::{self, AskError, Interface};
use super::overlay::{Change, Intent, TooLong};
use super::tree::PoolTree;

/// How long a transaction may stay pending once its overlay was taken: the kernel applies it within the write.
const PENDING_MAX: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What the kernel fails sooner was never asked of a spawned kernel, or was refused by it: for an answer it waits 10 s.
const PROMPT: Duration = Duration::from_secs(5);
/// How long after a change that did nothing it is tried again: the kernel may have been busy with another instance, and does not say so.
const TRY_AGAIN: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_millis(2000)];

/// A change that is in effect.
#[derive(Debug)]
pub(super) struct Applied {
    /// Its transaction: `tx_N`.
    pub(super) transaction: String,
}

/// Why a change is not in effect, or not known to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    /// It could not be put into an overlay. Nothing was asked of the kernel.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The kernel took no overlay. Nothing changed.
    #[error("the kernel took no overlay: {0}")]
    NotTaken(#[source] io::Error),
    /// Something else could not be read, before anything was asked of the kernel.
    #[error("{0}; nothing was asked of the kernel")]
    Before(#[source] AskError),
    /// The overlay was written, and what came of it could not be found out.
    #[error("what came of the overlay is not known: {0}")]
    Unknown(String),
    /// It was taken and did not do what it was to do, or not all of it. What is in effect is in `report`; `took`: how long the kernel was
    /// about it.
    #[error("{transaction} of the kernel is `{status}`: {report}; {reason}")]
    Failed { transaction: String, status: String, report: Box<Report>, reason: String, took: Duration },
}

impl ApplyError {
    /// Whether the kernel did nothing, for a reason that may pass.
    fn may_pass(&self) -> bool {
        match self {
            Self::NotTaken(error) => error.raw_os_error() == Some(libc::EBUSY),
            Self::Failed { status, report, .. } => status == "failed" && report.done.is_empty(),
            Self::TooLong(_) | Self::Before(_) | Self::Unknown(_) => false,
        }
    }

    /// Whether nothing came of it, and nothing will: nothing was asked, or it was refused sooner than a spawned kernel that was asked is given up.
    pub(super) fn did_nothing(&self) -> bool {
        match self {
            Self::TooLong(_) | Self::NotTaken(_) | Self::Before(_) => true,
            Self::Failed { status, report, took, .. } => {
                status == "failed" && report.done.is_empty() && *took < PROMPT
            }
            Self::Unknown(_) => false,
        }
    }
}

/// Which units of an intent are as wanted, and which are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) done: Vec<String>,
    pub(super) undone: Vec<String>,
}

impl Report {
    fn note(&mut self, what: String, is_done: bool) {
        if is_done { self.done.push(what) } else { self.undone.push(what) }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |units: &[String]| units.join(", ");
        match (self.done.as_slice(), self.undone.as_slice()) {
            (_, []) => f.write_str("all of it is in effect all the same"),
            ([], undone) => write!(f, "nothing of it is in effect ({})", list(undone)),
            (done, undone) => write!(f, "in effect: {}; not: {}", list(done), list(undone)),
        }
    }
}

/// Has the kernel do it, and again if nothing came of it. The caller holds the lock that keeps other programs from changing anything meanwhile.
pub(super) fn apply(interface: &impl Interface, intent: &Intent, nonce: &str) -> Result<Applied, ApplyError> {
    // Memory that came late would come twice.
    let again = if matches!(intent, Intent::PoolMemoryAdd { .. }) { &[][..] } else { &TRY_AGAIN };
    // A kernel that was asked and did not answer is not kept waiting for.
    let is_asked = matches!(
        intent,
        Intent::InstanceCpu { .. } | Intent::InstanceMemory { .. } | Intent::InstanceDevice { .. }
    );
    for time in again {
        match attempt(interface, intent, nonce) {
            Err(error) if error.may_pass() && (!is_asked || error.did_nothing()) => {
                tracing::debug!(%error, "the kernel did nothing, and is asked again");
                interface.pause(*time);
            }
            outcome => return outcome,
        }
    }
    attempt(interface, intent, nonce)
}

fn attempt(interface: &impl Interface, intent: &Intent, nonce: &str) -> Result<Applied, ApplyError> {
    let overlay = intent.overlay(nonce)?;
    let before = transactions(interface).map_err(ApplyError::Before)?;
    let before_it = Before::of(interface, intent).map_err(ApplyError::Before)?;
    // Whatever the write answers: a success may have done nothing, and a failure half of it.
    let began = interface.now();
    let written = interface.write_once("overlays/new", &overlay);
    let took = interface.now().saturating_duration_since(began);
    let unknown = |error: AskError| ApplyError::Unknown(error.to_string());
    let mine = transactions(interface)
        .map_err(|error| match &written {
            Ok(()) => unknown(error),
            Err(answer) => ApplyError::Unknown(format!("{answer}; {error}")),
        })?
        .into_iter()
        .filter(|transaction| !before.contains(transaction))
        .find(|transaction| is_of(interface, transaction, &overlay, nonce));
    let Some(transaction) = mine else {
        return Err(match written {
            Err(error) if error.kind() != io::ErrorKind::WriteZero => ApplyError::NotTaken(error),
            outcome => {
                let answer =
                    outcome.err().map_or_else(|| "it took all of it".into(), |error| error.to_string());
                ApplyError::Unknown(format!(
                    "no transaction carries its mark, and {answer}: look at overlays/ and at the kernel's log (dmesg)"
                ))
            }
        });
    };
    let status = settled_status(interface, &transaction).map_err(unknown)?;
    let report = report(interface, intent, &before_it).map_err(unknown)?;
    // A success that the tree does not confirm is none; a failure that it belies is one all the same: something is as nobody wanted it.
    match status.as_str() {
        "applied" if report.undone.is_empty() => Ok(Applied { transaction }),
        "pending" => Err(ApplyError::Unknown(format!(
            "{transaction} is pending still after {PENDING_MAX:?}, and may take effect yet; so far, {report}"
        ))),
        _ => {
            let reason = match written {
                Ok(()) => "its reason is in the kernel's log (dmesg)".to_owned(),
                Err(error) => error.to_string(),
            };
            Err(ApplyError::Failed { transaction, status, report: Box::new(report), reason, took })
        }
    }
}

/// The names of all transactions, whoever wrote them.
pub(super) fn transactions(interface: &impl Interface) -> Result<Vec<String>, AskError> {
    let path = "overlays".to_owned();
    let mut names = interface.list(&path).map_err(|source| AskError::Read { path, source })?;
    names.retain(|name| name.starts_with("tx_"));
    Ok(names)
}

/// Whether it was made of this overlay: by the nonce, or where the kernel does not give it back, by all its bytes.
fn is_of(interface: &impl Interface, transaction: &str, overlay: &[u8], nonce: &str) -> bool {
    let is_nonce = |text: Vec<u8>| {
        let text = text.trim_ascii();
        text.strip_suffix(b"\0").unwrap_or(text) == nonce.as_bytes()
    };
    let says_nonce = interface.read(&format!("overlays/{transaction}/resources")).is_ok_and(is_nonce);
    says_nonce || interface.read(&format!("overlays/{transaction}/dtbo")).is_ok_and(|dtbo| dtbo == overlay)
}

fn settled_status(interface: &impl Interface, transaction: &str) -> Result<String, AskError> {
    let path = format!("overlays/{transaction}/status");
    let status = look_until(interface, PENDING_MAX, LOOK_AGAIN, || {
        let text = interface.read(&path).map_err(|source| AskError::Read { path: path.clone(), source })?;
        let status = String::from_utf8_lossy(text.trim_ascii()).into_owned();
        Ok((status != "pending").then_some(status))
    })?;
    Ok(status.unwrap_or_else(|| "pending".into()))
}

/// What there was before.
struct Before {
    pool: PoolTree,
    /// Of the instance whose memory is to change.
    instance_bytes: u64,
}

impl Before {
    fn of(interface: &impl Interface, intent: &Intent) -> Result<Self, AskError> {
        let instance_bytes = match intent {
            Intent::InstanceMemory { name, .. } => {
                interface::instance(interface, name)?.map_or(0, |tree| tree.memory_bytes)
            }
            _ => 0,
        };
        Ok(Self { pool: interface::pool_or_none(interface)?, instance_bytes })
    }
}

/// What of the intent is in effect, by what the kernel has now.
fn report(interface: &impl Interface, intent: &Intent, before: &Before) -> Result<Report, AskError> {
    let mut report = Report::default();
    match intent {
        Intent::Create(new) => {
            let tree = interface::instance(interface, &new.name)?;
            report.note(format!("instance {}", new.name), tree.is_some());
            if let Some(tree) = tree {
                report.note(format!("its number {}", new.id), tree.id == new.id);
                let memory = format!("its memory of {} MiB", new.memory_bytes >> 20);
                report.note(memory, tree.memory_bytes == new.memory_bytes);
                for cpu in &new.cpus {
                    report.note(format!("CPU {cpu}"), tree.cpus.contains(cpu));
                }
                for cpu in tree.cpus.iter().filter(|cpu| !new.cpus.contains(cpu)) {
                    report.note(format!("CPU {cpu}, which it has and was not to get"), false);
                }
                report.note("the CPU that it boots on".into(), tree.cpus.first() == new.cpus.first());
            }
        }
        Intent::Remove(name) => {
            report
                .note(format!("the end of instance {name}"), interface::instance(interface, name)?.is_none());
        }
        Intent::InstanceCpu { name, change, cpu } => {
            let tree = interface::instance(interface, name)?;
            let pool = interface::pool_or_none(interface)?;
            let is_there = tree.is_some_and(|tree| tree.cpus.contains(cpu));
            let is_wanted = *change == Change::Add;
            report.note(format!("CPU {cpu} in instance {name}"), is_there == is_wanted);
            report.note(format!("CPU {cpu} in the pool"), pool.cpus_available.contains(cpu) != is_wanted);
        }
        Intent::InstanceMemory { name, change, span } => {
            let tree = interface::instance(interface, name)?;
            let regions = match &tree {
                Some(tree) => interface::map(interface)?.of_instance(tree.id, name),
                None => Vec::new(),
            };
            let (has, had) = (tree.map_or(0, |tree| tree.memory_bytes), before.instance_bytes);
            let expected = match change {
                Change::Add => had.saturating_add(span.bytes),
                Change::Remove => had.saturating_sub(span.bytes),
            };
            report.note(
                format!("{span} in instance {name}"),
                regions.contains(span) == (*change == Change::Add),
            );
            report.note(format!("{} MiB in all", expected >> 20), has == expected);
        }
        Intent::InstanceDevice { name, change, function } => {
            let has = holders::has(interface, name, *function)?;
            let is_wanted = *change == Change::Add;
            report.note(format!("device {function} in instance {name}"), has == is_wanted);
            // Whether the pool's tree goes on telling of one that an instance has is not known; of one that none has it does.
            if !is_wanted {
                let is_there = holders::is_in_pool(interface, *function)?;
                report.note(format!("device {function} in the pool"), is_there);
            }
        }
        Intent::PoolDeviceAdd { function, .. } => {
            let is_there = holders::is_in_pool(interface, *function)?;
            report.note(format!("device {function} in the pool"), is_there);
        }
        Intent::PoolDeviceRemove { function } => {
            let is_there = holders::is_in_pool(interface, *function)?;
            report.note(format!("the end of device {function} in the pool"), !is_there);
        }
        Intent::PoolCpus { change, cpus } => {
            let pool = interface::pool_or_none(interface)?;
            for cpu in cpus {
                let is_done = pool.cpus.contains(cpu) == (*change == Change::Add);
                report.note(format!("CPU {cpu}"), is_done);
            }
        }
        Intent::PoolMemoryAdd { bytes } => {
            let grown =
                interface::pool_or_none(interface)?.memory_bytes().saturating_sub(before.pool.memory_bytes());
            report.note(format!("{} MiB more", bytes >> 20), grown >= *bytes);
        }
        Intent::PoolMemoryRemove { chunk } => {
            let chunks = interface::pool_or_none(interface)?.chunks;
            let is_gone = !chunks.iter().any(|other| other.base == chunk.base);
            report.note(format!("the end of the {} MiB at {:#x}", chunk.bytes >> 20, chunk.base), is_gone);
        }
    }
    Ok(report)
}
