//! The machine that is simulated.

use std::convert::Infallible;

use super::Rng;
use crate::coordinator::Coordinator;
use crate::kernel::{Incarnation, InstanceId, Party};
use crate::ledger::{Bounds, InstanceRow, Ledger, Limits};
use crate::unit::{PciAddress, Unit};

/// Its instances.
pub(super) const INSTANCES: [(InstanceId, &str); 3] =
    [(InstanceId(3), "db"), (InstanceId(4), "web"), (InstanceId(5), "log")];

/// A machine of ten CPUs, 2 GiB and three devices, with three kernels.
pub(super) fn machine(rng: &mut Rng) -> Coordinator {
    let cpu =
        |id: u32| if id == 0 { Unit::boot_cpu(0, 0, Some(0)) } else { Unit::cpu(id, id / 2, Some(id / 6)) };
    let mut units: Vec<(Unit, Party)> =
        (0..10).map(|id| (cpu(id), if id < 4 { Party::Host } else { Party::Pool })).collect();
    let memory = if rng.one_in(2) { Unit::lot(0, 32, None) } else { Unit::range(16, 32, None) };
    units.push((memory, Party::Pool));
    units.extend((0..3).map(|n| (Unit::device(device(n), None, n != 2), Party::Pool)));
    let bounds = Bounds::new(1, 6);
    let host = Limits { cpus: bounds, ..Limits::default() };
    let ledger =
        Ledger::discover(64 << 20, host, units).unwrap_or_else(|violation| unreachable!("{violation}"));
    let mut coordinator = Coordinator::new(ledger);
    for (id, name) in INSTANCES {
        let mut bits = [0; 16];
        bits[15] = id.0 as u8;
        let row = InstanceRow {
            id,
            name: name.to_owned(),
            incarnation: Incarnation(bits),
            running: true,
            limits: Limits { cpus: Bounds::new(0, 6), ..Limits::default() },
            boot_cpu: None,
        };
        let admitted = coordinator.admit(0, row).map(|step| step.persist(|_| Ok::<(), Infallible>(())));
        debug_assert!(admitted.is_ok());
    }
    coordinator
}

/// The `n`-th PCI function.
pub(super) fn device(n: u8) -> PciAddress {
    PciAddress { domain: 0, bus: 1 + n, device: 0, function: 0 }
}
