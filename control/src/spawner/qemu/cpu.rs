//! CPUs of a machine. Where its QEMU can, they are plugged and unplugged ([`super::plug`]); elsewhere all that it can ever have are there from
//! its start, and those that are not lent to its kernel are parked.
//!
//! A CPU that its kernel has taken offline is as good as unplugged: it halts with interrupts off, and only its kernel could
//! wake it, which is seen. So a kernel is told at its boot to start no more CPUs than it was lent (`maxcpus=`, see
//! Documentation/admin-guide/kernel-parameters.txt in Linux's source), its agent takes them offline and online, and whether
//! that is so is read from the CPU's own registers: nobody inside has to be believed. A CPU is unplugged only when it is parked.

use std::path::Path;

use serde_json::json;
use tokio::net::UnixStream;

use super::plug::{self, Content, Method, Place};
use super::qmp::{QmpError, Session, session};
use super::{MONITOR, MONITOR_MAX};
use crate::keeper::CpuLease;
use crate::spawner::KernelSpec;

/// With fewer QEMU would not keep atomics on memory that machines share atomic.
const CPUS_MIN: u32 = 2;

/// The options and the kernel's argument that give a machine its CPUs. `driver`: what kind they are.
pub(super) fn options(
    spec: &KernelSpec,
    method: Method,
    driver: &str,
) -> (Vec<(&'static str, String)>, String) {
    let lent = spec.cpus.len().max(1) as u32;
    let room = spec.cpus_max.max(lent).max(CPUS_MIN);
    let options = match method {
        Method::Parked(_) => vec![("-smp", format!("{room},maxcpus={room}"))],
        Method::Plugged => plug::options(lent, room, driver),
    };
    (options, format!("maxcpus={lent}"))
}

/// What the keeper is to remember: the kernel boots on the first. `pinned`: each runs on the CPU of this host that it is named after.
pub(super) fn leases(spec: &KernelSpec, pinned: bool) -> Vec<CpuLease> {
    let lease = |(index, unit): (u32, &u32)| CpuLease { index, unit: *unit, lent: true, pinned };
    (0..).zip(&spec.cpus).map(lease).collect()
}

/// A CPU of a machine, or a place for one, as it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spawner) struct Seen {
    pub(in crate::spawner) index: u32,
    /// Whether it is there.
    pub(in crate::spawner) present: bool,
    /// Whether it comes by being plugged, and leaves by being unplugged.
    pub(in crate::spawner) pluggable: bool,
    /// Whether it runs, as opposed to being parked or not there.
    pub(in crate::spawner) runs: bool,
}

/// Every CPU and place of the machine of `runtime_dir`, in order.
pub(in crate::spawner) async fn look(runtime_dir: &Path) -> Result<Vec<Seen>, String> {
    let looked = session(runtime_dir, MONITOR, MONITOR_MAX, |mut session| async move {
        let places = plug::places(&mut session).await?;
        Ok((registers(&mut session).await?, places))
    });
    let (registers, places) = looked.await.map_err(|error| error.to_string())?;
    let cpus = parse(&registers);
    if cpus.is_empty() {
        return Err("its monitor does not tell the registers of its CPUs".into());
    }
    Ok(merge(&cpus, &places))
}

/// What registers and places tell together. A CPU of which there is no place is one that stays.
fn merge(cpus: &[Cpu], places: &[Place]) -> Vec<Seen> {
    let place = |index| places.iter().find(|place| place.index == index);
    let there = cpus.iter().map(|cpu| Seen {
        index: cpu.index,
        present: true,
        pluggable: place(cpu.index).is_some_and(|place| place.content == Content::Plugged),
        runs: !cpu.is_parked(),
    });
    let empty = places.iter().filter(|place| place.content == Content::Empty);
    // One that was plugged between the two looks is there.
    let empty = empty.filter(|place| cpus.iter().all(|cpu| cpu.index != place.index));
    let empty = empty.map(|place| Seen { index: place.index, present: false, pluggable: true, runs: false });
    let mut seen: Vec<Seen> = there.chain(empty).collect();
    seen.sort_by_key(|cpu| cpu.index);
    seen
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
    /// Its number.
    index: u32,
    /// Whether it takes interrupts.
    pub(super) takes_interrupts: bool,
    /// Whether it waits for one.
    halts: bool,
    /// Whether it is as no kernel can make it: at the reset vector, which is the firmware's, without paging. Nobody has started it; under KVM
    /// such a CPU does not count as halting.
    at_reset: bool,
}

impl Cpu {
    /// Whether it does nothing, and no interrupt can make it: only another CPU of its kernel can start it anew.
    fn is_parked(self) -> bool {
        (self.halts || self.at_reset) && !self.takes_interrupts
    }
}

/// Reads QEMU's `info registers -a`: for each CPU its number behind `CPU#`, and among others its flags (`EFL=` or `RFL=`) and whether it halts
/// (`HLT=`).
pub(super) fn parse(registers: &str) -> Vec<Cpu> {
    registers.split("CPU#").skip(1).filter_map(one).collect()
}

fn one(text: &str) -> Option<Cpu> {
    const INTERRUPT_FLAG: u64 = 1 << 9;
    let field = |names: &[&str]| {
        let mut words = text.split_ascii_whitespace();
        words.find_map(|word| names.iter().find_map(|name| word.strip_prefix(name)))
    };
    let hex = |names: &[&str]| u64::from_str_radix(field(names)?, 16).ok();
    let code_base = text.lines().find_map(|line| line.strip_prefix("CS =")?.split_ascii_whitespace().nth(1));
    Some(Cpu {
        index: text.lines().next()?.trim().parse().ok()?,
        takes_interrupts: hex(&["EFL=", "RFL="])? & INTERRUPT_FLAG != 0,
        halts: field(&["HLT="])? == "1",
        // Intel SDM, volume 3, "Processor State After Reset".
        at_reset: (hex(&["EIP="]), code_base, hex(&["CR0="]))
            == (Some(0xfff0), Some("ffff0000"), Some(0x6000_0010)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\nCPU#0\nRAX=1 RBX=2\nRIP=ffffffffb2c0cf9b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\nES =0000\n\
                        \nCPU#1\nEIP=000fd09a EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
                        \nCPU#2\nRIP=ffffffffb226291a RFL=00000006 [-----P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\n\
                        \nCPU#4\nEIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0\n\
                        ES =0000 00000000 0000ffff 00009300\nCS =f000 ffff0000 0000ffff 00009b00\nCR0=60000010 CR2=00000000\n";

    #[test]
    fn a_cpu_is_parked_when_it_takes_no_interrupts_and_halts_or_was_never_started() {
        let parked: Vec<(u32, bool)> =
            parse(SAID).into_iter().map(|cpu| (cpu.index, cpu.is_parked())).collect();
        let expected = [(0, false), (1, true), (2, false), (4, true)];
        assert_eq!(parked, expected, "idle, parked, running with interrupts off, never started");
        let taking: Vec<bool> = parse(SAID).into_iter().map(|cpu| cpu.takes_interrupts).collect();
        assert_eq!(taking, [true, false, false, false]);
        assert_eq!(parse("nonsense\nRFL=x HLT=1\nCPU#x\nRFL=202 HLT=0\nCPU#1\nRFL=202\nCPU#2"), []);
    }

    #[test]
    fn a_kernel_cannot_feign_a_cpu_that_was_never_started() {
        for (real, feigned) in [
            ("EIP=0000fff0", "RIP=000000000000fff0"),
            ("CS =f000 ffff0000", "CS =f000 00000000"),
            ("CR0=60000010", "CR0=e0000011"),
            ("EFL=00000002", "EFL=00000202"),
        ] {
            assert!(SAID.contains(real));
            let last = *parse(&SAID.replace(real, feigned)).last().unwrap();
            assert!(last.index == 4 && !last.is_parked(), "{feigned}");
        }
    }

    #[test]
    fn empty_places_are_listed_between_the_cpus_that_are_there() {
        let seen = merge(&parse(SAID), &plug::tests::places_of(&[1, 4], 5));
        let told: Vec<_> = seen.iter().map(|cpu| (cpu.index, cpu.present, cpu.pluggable, cpu.runs)).collect();
        let expected = [
            (0, true, false, true),
            (1, true, true, false),
            (2, true, false, true),
            (3, false, true, false),
            (4, true, true, false),
        ];
        assert_eq!(told, expected);
        let fixed = merge(&parse(SAID), &[]);
        assert!(fixed.len() == 4 && fixed.iter().all(|cpu| cpu.present && !cpu.pluggable), "{fixed:?}");
    }
}
