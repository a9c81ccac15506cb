//! CPUs of a machine: all that it can ever have are there from its start, and those that are not lent to its kernel are parked.
//!
//! A machine whose CPUs are plugged and unplugged would be the obvious way. But on QEMU 7.2 `device_del` of a CPU under software
//! emulation corrupts the heap, and the next plugging of anything kills the machine; and no version uses the place of an unplugged
//! CPU again there. A CPU that its kernel has taken offline is as good as unplugged: it halts with interrupts off, and only its kernel could
//! wake it, which is seen. So a kernel is told at its boot to start no more CPUs than it was lent (`maxcpus=`, see
//! Documentation/admin-guide/kernel-parameters.txt in Linux's source), its agent takes them offline and online, and whether
//! that is so is read from the CPU's own registers: nobody inside has to be believed.

use std::path::Path;

use serde_json::json;
use tokio::net::UnixStream;

use super::qmp::{QmpError, Session, session};
use super::{MONITOR, MONITOR_MAX};
use crate::keeper::CpuLease;
use crate::spawner::KernelSpec;

/// With fewer QEMU would not keep atomics on memory that machines share atomic.
const CPUS_MIN: u32 = 2;

/// The options and the kernel's argument that give a machine its CPUs.
pub(super) fn options(spec: &KernelSpec) -> ((&'static str, String), String) {
    let lent = spec.cpus.len().max(1) as u32;
    let room = spec.cpus_max.max(lent).max(CPUS_MIN);
    (("-smp", format!("{room},maxcpus={room}")), format!("maxcpus={lent}"))
}

/// What the keeper is to remember: the kernel boots on the first. `pinned`: each runs on the CPU of this host that it is named after.
pub(super) fn leases(spec: &KernelSpec, pinned: bool) -> Vec<CpuLease> {
    let lease = |(index, unit): (u32, &u32)| CpuLease { index, unit: *unit, lent: true, pinned };
    (0..).zip(&spec.cpus).map(lease).collect()
}

/// For every CPU of the machine of `runtime_dir`, in order, whether it runs, as opposed to being parked.
pub(in crate::spawner) async fn running(runtime_dir: &Path) -> Result<Vec<bool>, String> {
    let looked =
        session(
            runtime_dir,
            MONITOR,
            MONITOR_MAX,
            |mut session| async move { registers(&mut session).await },
        );
    let cpus: Vec<Cpu> = parse(&looked.await.map_err(|error| error.to_string())?);
    if cpus.is_empty() {
        return Err("its monitor does not tell the registers of its CPUs".into());
    }
    Ok(cpus.into_iter().map(|cpu| !cpu.is_parked()).collect())
}

/// The registers of every CPU, as QEMU shows them to people; empty if it does not.
pub(super) async fn registers(session: &mut Session<UnixStream>) -> Result<String, QmpError> {
    let arguments = json!({ "command-line": "info registers -a" });
    let said = session.run("human-monitor-command", arguments).await?;
    Ok(said.as_str().unwrap_or_default().to_owned())
}

/// What is read of a CPU's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cpu {
    /// Whether it takes interrupts.
    pub(super) takes_interrupts: bool,
    /// Whether it waits for one.
    halts: bool,
}

impl Cpu {
    /// Whether it does nothing, and no interrupt can make it: only another CPU of its kernel can start it anew.
    fn is_parked(self) -> bool {
        self.halts && !self.takes_interrupts
    }
}

/// Reads QEMU's `info registers -a`: for each CPU, among others, a line with its flags (`EFL=` or `RFL=`) and whether it halts (`HLT=`).
pub(super) fn parse(registers: &str) -> Vec<Cpu> {
    const INTERRUPT_FLAG: u64 = 1 << 9;
    let read = |line: &str| {
        let field = |names: &[&str]| {
            let mut words = line.split_ascii_whitespace();
            words.find_map(|word| names.iter().find_map(|name| word.strip_prefix(name)))
        };
        let flags = u64::from_str_radix(field(&["EFL=", "RFL="])?, 16).ok()?;
        let halts = field(&["HLT="])? == "1";
        Some(Cpu { takes_interrupts: flags & INTERRUPT_FLAG != 0, halts })
    };
    registers.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_parked_when_it_halts_and_takes_no_interrupts() {
        let said = "\nCPU#0\nRAX=1 RBX=2\nRIP=ffffffffb2c0cf9b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\nES =0000\n\
                    \nCPU#1\nEIP=000fd09a EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
                    \nCPU#2\nRIP=ffffffffb226291a RFL=00000006 [-----P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\n";
        let parked: Vec<bool> = parse(said).into_iter().map(Cpu::is_parked).collect();
        assert_eq!(parked, [false, true, false], "idle, never started, running with interrupts off");
        let taking: Vec<bool> = parse(said).into_iter().map(|cpu| cpu.takes_interrupts).collect();
        assert_eq!(taking, [true, false, false]);
        assert_eq!(parse("nonsense\nRFL=x HLT=1\nRFL=202\n"), []);
    }
}
