//! What follows from the ledger and from what agents say: who takes part, and how much each waits and works. No I/O.

use tombolo_agent::api::health::{CpuTimes, SystemLoad};
use tombolo_handover::balance::{BasisPoints, Member, Reading};
use tombolo_handover::{Bounds, Coordinator, InstanceId, Kind, Party};

/// What an agent said, and when it was asked.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at_ns: u64,
    pub(super) load: SystemLoad,
}

/// Why nothing can be told of an instance yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoReading {
    #[error(
        "its kernel does not tell of pressure: it needs CONFIG_PSI, and `psi=1` where that is off by default"
    )]
    NoPressure,
    /// How busy its CPUs are shows between two looks at the same boot.
    #[error("it was looked at once; the next look tells")]
    Once,
}

/// Why an instance takes no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAMember {
    #[error("it does not run")]
    NotRunning,
    #[error("its spawner cannot move CPUs")]
    CannotMoveCpus,
}

/// How an instance takes part, by the ledger. `runs` is what its own task says.
pub(super) fn member(coordinator: &Coordinator, id: InstanceId, runs: bool) -> Result<Member, NotAMember> {
    let ledger = coordinator.ledger();
    let row = ledger.instance(id).filter(|row| runs && row.running).ok_or(NotAMember::NotRunning)?;
    let bounds: Bounds = row.limits.cpus;
    if bounds.max == 0 {
        return Err(NotAMember::CannotMoveCpus);
    }
    let is_moving = coordinator.moving_at(id).is_some();
    let cpus = ledger.held(Party::Instance(row.kernel()), Kind::Cpu);
    Ok(Member { instance: id, cpus, bounds, is_moving })
}

/// How many CPUs are free.
pub(super) fn free_cpus(coordinator: &Coordinator) -> u64 {
    coordinator.ledger().held(Party::Pool, Kind::Cpu)
}

/// How much an instance waits at its last sample, and how busy it was since the one before.
pub(super) fn reading(
    instance: InstanceId,
    before: Option<&Sample>,
    after: &Sample,
) -> Result<Reading, NoReading> {
    let pressure = after.load.pressure.ok_or(NoReading::NoPressure)?;
    let before = before.filter(|before| before.load.uptime_ms <= after.load.uptime_ms);
    let busy = busy(&before.ok_or(NoReading::Once)?.load.cpus, &after.load.cpus).ok_or(NoReading::Once)?;
    Ok(Reading { instance, at_ns: after.at_ns, stall: basis_points(pressure.cpu.some_avg10), busy })
}

/// The share of time that was not idle, over the CPUs that were there both times. Time that the host took from them is neither:
/// they could not work then.
fn busy(before: &[CpuTimes], after: &[CpuTimes]) -> Option<BasisPoints> {
    let (mut busy_ms, mut idle_ms) = (0, 0);
    for now in after {
        let Some(then) = before.iter().find(|then| then.cpu == now.cpu) else { continue };
        let since = |of: fn(&CpuTimes) -> u64| of(now).checked_sub(of(then));
        // Counters that ran back are those of a CPU that went and came: they say nothing.
        let worked = since(|cpu| cpu.user_ms + cpu.system_ms);
        if let (Some(worked), Some(idle)) = (worked, since(|cpu| cpu.idle_ms)) {
            busy_ms += worked;
            idle_ms += idle;
        }
    }
    let share = (busy_ms * u64::from(WHOLE)).checked_div(busy_ms + idle_ms)?;
    Some(u32::try_from(share).unwrap_or(WHOLE))
}

/// A share of time as PSI prints it, in percent. What is no share counts as none.
fn basis_points(percent: f64) -> BasisPoints {
    // The cast maps NaN to 0 and clamps the rest.
    ((percent * 100.0).round() as u32).min(WHOLE)
}

/// A share of time, in percent.
pub(super) fn percent(share: BasisPoints) -> f64 {
    f64::from(share) / 100.0
}

/// All of the time, in hundredths of a percent.
const WHOLE: BasisPoints = 10_000;

#[cfg(test)]
mod tests {
    use tombolo_agent::api::health::{Pressure, PressureLine};
    use tombolo_handover::coordinator::Needs;
    use tombolo_handover::operation::Rules;
    use tombolo_handover::{
        Incarnation, Input, InstanceRow, Ledger, Limits, PciAddress, Phase, Request, Side, Submitted, Unit,
        What,
    };

    use super::*;

    const WEB: InstanceId = InstanceId(3);
    const DB: InstanceId = InstanceId(4);

    fn cpu(cpu: u32, user_ms: u64, idle_ms: u64) -> CpuTimes {
        CpuTimes { cpu, user_ms, idle_ms, ..CpuTimes::default() }
    }

    fn sample(at_ns: u64, uptime_ms: u64, some_avg10: f64, cpus: &[CpuTimes]) -> Sample {
        let cpu = PressureLine { some_avg10, ..PressureLine::default() };
        let pressure = Some(Pressure { cpu, ..Pressure::default() });
        Sample {
            at_ns,
            load: SystemLoad { uptime_ms, cpus: cpus.to_vec(), pressure, ..SystemLoad::default() },
        }
    }

    #[test]
    fn waiting_is_as_of_now_and_busy_is_between_two_looks() {
        let before = sample(1, 1_000, 0.0, &[cpu(0, 500, 500), cpu(1, 0, 1_000)]);
        let after = sample(2, 2_000, 12.345, &[cpu(0, 1_500, 500), cpu(1, 0, 2_000)]);
        let expected = Reading { instance: WEB, at_ns: 2, stall: 1_235, busy: 5_000 };
        assert_eq!(reading(WEB, Some(&before), &after), Ok(expected));
    }

    #[test]
    fn one_look_another_boot_and_no_time_between_tell_nothing() {
        let after = sample(2, 2_000, 50.0, &[cpu(0, 100, 100)]);
        assert_eq!(reading(WEB, None, &after), Err(NoReading::Once));
        assert_eq!(reading(WEB, Some(&after), &after), Err(NoReading::Once));
        let former_boot = sample(1, 9_000, 0.0, &[cpu(0, 0, 0)]);
        assert_eq!(reading(WEB, Some(&former_boot), &after), Err(NoReading::Once));
    }

    #[test]
    fn a_kernel_without_pressure_is_named_as_such() {
        let mut after = sample(2, 2_000, 50.0, &[cpu(0, 100, 100)]);
        after.load.pressure = None;
        assert_eq!(reading(WEB, Some(&after.clone()), &after), Err(NoReading::NoPressure));
    }

    #[test]
    fn cpus_that_came_went_or_began_anew_do_not_count() {
        let before = [cpu(0, 0, 0), cpu(1, 500, 500), cpu(2, 0, 0)];
        let after = [cpu(0, 250, 750), cpu(1, 10, 10), cpu(3, 9_000, 0)];
        assert_eq!(busy(&before, &after), Some(2_500));
        assert_eq!(busy(&before, &[cpu(3, 9_000, 0)]), None);
    }

    #[test]
    fn time_that_the_host_took_is_neither_busy_nor_idle() {
        let stolen = CpuTimes { steal_ms: 8_000, ..cpu(0, 500, 500) };
        assert_eq!(busy(&[cpu(0, 0, 0)], &[stolen]), Some(5_000));
    }

    #[test]
    fn what_is_no_share_of_time_is_kept_within_one() {
        for (percent, expected) in [(0.0, 0), (100.0, 10_000), (250.0, 10_000), (-1.0, 0), (f64::NAN, 0)] {
            assert_eq!(basis_points(percent), expected, "{percent}");
        }
    }

    fn row(id: InstanceId, name: &str, cpus: Bounds) -> InstanceRow {
        let limits = Limits { cpus, ..Limits::default() };
        let incarnation = Incarnation([1; 16]);
        InstanceRow { id, name: name.into(), incarnation, running: false, limits, boot_cpu: None }
    }

    /// `web` with one CPU of at most four, `db` with two, one free; an instance whose CPUs cannot be moved, and a disk.
    fn coordinator() -> Coordinator {
        let disk = Unit::device(PciAddress { domain: 0, bus: 1, device: 0, function: 0 }, None, true);
        let units = (0..4).map(|number| Unit::cpu(number, number, None)).chain([disk]);
        let ledger = Ledger::discover(2 << 20, Limits::default(), units.map(|unit| (unit, Party::Pool)));
        let mut coordinator = Coordinator::new(ledger.unwrap());
        let none = Bounds::NONE;
        for (id, name, bounds, cpus) in [
            (WEB, "web", Bounds { min: 1, desired: 1, max: 4 }, 1),
            (DB, "db", Bounds { min: 1, desired: 2, max: 4 }, 2),
            (InstanceId(5), "fixed", none, 0),
        ] {
            let step =
                coordinator.boot(1, row(id, name, bounds), Needs { cpus, ..Needs::default() }).unwrap();
            step.persist(|_| Ok::<_, ()>(())).unwrap();
        }
        coordinator
    }

    #[test]
    fn whoever_runs_and_may_have_cpus_takes_part_with_what_it_has() {
        let coordinator = coordinator();
        let web = member(&coordinator, WEB, true).unwrap();
        assert_eq!((web.cpus, web.bounds.max, web.is_moving), (1, 4, false));
        assert_eq!(member(&coordinator, DB, true).unwrap().cpus, 2);
        assert_eq!(free_cpus(&coordinator), 1);
        assert_eq!(member(&coordinator, WEB, false), Err(NotAMember::NotRunning));
        assert_eq!(member(&coordinator, InstanceId(5), true), Err(NotAMember::CannotMoveCpus));
        assert_eq!(member(&coordinator, InstanceId(9), true), Err(NotAMember::NotRunning));
    }

    #[test]
    fn whoever_has_a_move_under_way_is_seen_to_have() {
        let mut coordinator = coordinator();
        let request = Request::new("k", Side::Pool, Side::Instance("web".into()), What::CpuCount(1));
        let Submitted::New(id, step) = coordinator.submit(1, request, Rules::default()).unwrap() else {
            panic!("nobody has asked for it before");
        };
        step.persist(|_| Ok::<_, ()>(())).unwrap();
        let is_moving = |coordinator: &Coordinator, id| member(coordinator, id, true).unwrap().is_moving;
        assert!(is_moving(&coordinator, WEB) && !is_moving(&coordinator, DB));
        let kernel = coordinator.ledger().instance(WEB).unwrap().kernel();
        coordinator.handle(2, Input::KernelDown(kernel)).persist(|_| Ok::<_, ()>(())).unwrap();
        assert_eq!(coordinator.operation(id).unwrap().phase, Phase::Aborted);
        assert_eq!(member(&coordinator, WEB, true), Err(NotAMember::NotRunning));
    }
}
