//! What the runtime folder of an instance says was made for it, and what is done about that: after whatever its maker died of.

use std::path::Path;

use super::devices;
use super::hold::Hold;
use super::ids::PhysicalCpu;
use super::interface::{self, InstanceStatus, Interface};
use super::load::Load;
use super::lock;
use super::may_load::{self, Obstacle};
use super::memory;
use super::record::{Origin, Record};
use super::regions::Span;

/// Makes in the kernel what `record` says, and loads it. What is to be made is noted in `dir` first, so that [`release`] gives back whatever
/// came of it.
pub(super) fn make(
    kernel: &impl Interface,
    dir: &Path,
    record: &mut Record,
    load: Load<'_>,
) -> Result<(), String> {
    if let Some(Obstacle { what, remedy }) = may_load::obstacle(kernel) {
        return Err(format!("{what}: {remedy}; nothing was made"));
    }
    let lock = Hold::on(kernel, record).lock()?;
    if record.cpus.is_empty() {
        record.cpus = free_cpus(kernel, record.cpus_wanted, &record.cpus_withheld)?;
    }
    record.write(dir).map_err(|error| format!("could not note what is to be made: {error}"))?;
    Hold::on(kernel, record).make_under(&lock)?;
    let fit =
        must_be_unused(kernel, dir, record).and_then(|()| devices::give_all(kernel, dir, record, &lock));
    if let Err(reason) = fit {
        let left = Hold::on(kernel, record).give_back();
        return Err(format!("{reason}; {left}"));
    }
    drop(lock);
    Hold::on(kernel, record).load(load)
}

/// What the kernel gave to an instance that was made just now must not be in use in another, which the kernel cannot know.
fn must_be_unused(kernel: &impl Interface, dir: &Path, record: &Record) -> Result<(), String> {
    let withheld = memory::withheld(kernel, dir)?;
    if withheld.is_empty() {
        return Ok(());
    }
    let map = interface::map(kernel).map_err(|error| error.to_string())?;
    let regions = map.of_instance(record.id, &record.name);
    let is_used = |span: &&Span| regions.iter().any(|region| region.overlaps(**span));
    match withheld.iter().find(is_used) {
        // Where it is has to be known.
        None if regions.is_empty() => Err(format!(
            "where the memory of instance `{}` is cannot be read from /proc/iomem, and some of the pool may be in use in another",
            record.name
        )),
        None => Ok(()),
        Some(span) => Err(format!(
            "the kernel gave memory to instance `{}` of which {span} may be in use in another, which was asked for it and did not answer: end that one first",
            record.name
        )),
    }
}

/// Loads the instance of `record`, which was taken over and is there, in place of whatever its maker had loaded. That is noted in `dir` first.
pub(super) fn load_taken_over(
    kernel: &impl Interface,
    dir: &Path,
    record: &mut Record,
    load: Load<'_>,
) -> Result<(), String> {
    let name = record.name.clone();
    let status = Hold::on(kernel, record).ours()?;
    if let Some(Obstacle { what, remedy }) = may_load::obstacle(kernel) {
        return Err(format!("{what}: {remedy}; nothing was changed"));
    }
    if matches!(status, Some(InstanceStatus::Active | InstanceStatus::Failed)) {
        return Err(format!(
            "a kernel runs in instance `{name}`, or may, and was taken over so, without an agent to stop it by: `tombolo kill {name}` ends it by force"
        ));
    }
    let tree = interface::instance(kernel, &record.name).map_err(|error| error.to_string())?;
    let tree = tree.ok_or_else(|| format!("instance `{name}` is gone"))?;
    (record.memory_bytes, record.cpus) = (tree.memory_bytes, tree.cpus);
    record.write(dir).map_err(|error| format!("could not note what is to be loaded: {error}"))?;
    let hold = Hold::on(kernel, record);
    if status == Some(InstanceStatus::Loaded) {
        hold.unload(|| false)?;
    }
    hold.load(load)
}

/// So many CPUs of the pool that no instance has, and none of `withheld`. Whoever holds the lock can be sure of them.
fn free_cpus(
    kernel: &impl Interface,
    wanted: u32,
    withheld: &[PhysicalCpu],
) -> Result<Vec<PhysicalCpu>, String> {
    let mut free = interface::pool_or_none(kernel).map_err(|error| error.to_string())?.cpus_available;
    free.retain(|cpu| !withheld.contains(cpu));
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    if free.len() < wanted {
        return Err(format!(
            "it is to have {wanted} CPUs, and the pool has {} to give; `tombolo multikernel pool` changes that",
            free.len()
        ));
    }
    free.truncate(wanted);
    Ok(free)
}

/// Gives back what was made, if anything was, and forgets it. Refuses a kernel that runs.
pub(super) fn release(kernel: &impl Interface, dir: &Path) -> Result<(), String> {
    let Some(record) = read(dir)? else { return Ok(()) };
    Hold::on(kernel, &record).release(dir, lock::WAIT_MAX, || false)?;
    Record::remove(dir).map_err(|error| format!("could not forget what was made: {error}"))
}

/// Makes room for another kernel in `dir`: gives back what was made and forgets it. What was taken over stays as it is, for that one. Refuses a kernel
/// that runs.
pub(super) fn clear(kernel: &impl Interface, dir: &Path) -> Result<(), String> {
    let Some(record) = read(dir)? else { return Ok(()) };
    if record.origin == Origin::Made {
        return release(kernel, dir);
    }
    match Hold::on(kernel, &record).ours()? {
        Some(InstanceStatus::Active) => Err(format!("instance `{}` runs: end it first", record.name)),
        _ => Record::remove(dir).map_err(|error| format!("could not forget what was loaded: {error}")),
    }
}

/// Ends the kernel, whoever stands for it.
pub(super) fn end(kernel: &impl Interface, dir: &Path) -> Result<(), String> {
    read(dir)?.map_or(Ok(()), |record| Hold::on(kernel, &record).end(|_| ()))
}

/// Whether the kernel was started and has told of no end. As long as that cannot be found out, it may run.
pub(super) fn may_run(kernel: &impl Interface, dir: &Path) -> bool {
    match read(dir) {
        Ok(None) => false,
        Ok(Some(record)) => match Hold::on(kernel, &record).ours() {
            Ok(status) => status == Some(InstanceStatus::Active),
            Err(reason) => {
                tracing::warn!(instance = %record.name, reason, "it is not known whether a kernel runs");
                true
            }
        },
        Err(reason) => {
            tracing::warn!(dir = %dir.display(), reason, "it is not known whether a kernel runs");
            true
        }
    }
}

pub(super) fn read(dir: &Path) -> Result<Option<Record>, String> {
    Record::read(dir).map_err(|error| format!("could not read what was made: {error}"))
}
