//! Which of a machine's CPUs are lent to its kernel, and under which name the ledger knows them.
//!
//! The keeper does not look at the machine: it only remembers, and for exactly as long as the machine lives, which is what a file or
//! the daemon could not promise.

use serde::{Deserialize, Serialize};

/// A CPU of a machine that is or was lent to its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLease {
    /// Its number in the machine, from 0.
    pub index: u32,
    /// The ledger's name for it.
    pub unit: u32,
    /// Whether it is lent now; if not, it was the last one that was.
    pub lent: bool,
    /// Whether it runs on the CPU of this host that it is named after, and on no other.
    #[serde(default)]
    pub pinned: bool,
}

/// Enters a lease, in place of any earlier one of that CPU.
pub(super) fn enter(leases: &mut Vec<CpuLease>, lease: CpuLease) -> Result<(), String> {
    let CpuLease { index, unit, lent, .. } = lease;
    if let Some(other) = leases.iter().find(|other| other.lent && other.unit == unit && other.index != index)
    {
        return Err(format!("unit {unit} is CPU {} of this machine already", other.index));
    }
    match leases.iter_mut().find(|known| known.index == index) {
        Some(known) if known.lent && known.unit != unit => {
            Err(format!("CPU {index} of this machine is unit {} already", known.unit))
        }
        Some(known) => {
            *known = lease;
            Ok(())
        }
        None if !lent => Err(format!("CPU {index} of this machine is lent to nobody")),
        None => {
            leases.push(lease);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(index: u32, unit: u32, lent: bool) -> CpuLease {
        CpuLease { index, unit, lent, pinned: false }
    }

    #[test]
    fn a_cpu_is_one_unit_and_a_unit_one_cpu() {
        let mut leases = vec![lease(0, 7, true)];
        enter(&mut leases, lease(1, 9, true)).unwrap();
        enter(&mut leases, lease(1, 9, true)).unwrap();
        assert!(enter(&mut leases, lease(2, 9, true)).unwrap_err().contains("CPU 1"));
        assert!(enter(&mut leases, lease(1, 8, true)).unwrap_err().contains("unit 9"));
        assert!(enter(&mut leases, lease(3, 5, false)).is_err());
        assert_eq!(leases, [lease(0, 7, true), lease(1, 9, true)]);
    }

    #[test]
    fn one_that_was_taken_can_be_lent_under_another_name_and_its_unit_elsewhere() {
        let mut leases = vec![lease(1, 9, true)];
        enter(&mut leases, lease(1, 9, false)).unwrap();
        enter(&mut leases, lease(2, 9, true)).unwrap();
        enter(&mut leases, lease(1, 4, true)).unwrap();
        assert_eq!(leases, [lease(1, 4, true), lease(2, 9, true)]);
    }
}
