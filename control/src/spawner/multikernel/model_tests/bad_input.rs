//! Bad input that reaches the kernel: what it says, and what is told. The rest is refused before (see the table in `docs/multikernel-traps.md`).

use tombolo_mksim::dtb;
use tombolo_mksim::model::{Machine, MachineConfig, State};

use super::bench::Bench;
use super::world::{Actor, Faults, MIB, Model};

#[test]
fn image_that_is_not_signed_where_that_is_needed_is_told_with_what_to_do() {
    for errno in [libc::ENODATA, libc::ENOKEY, libc::EKEYREJECTED] {
        let bench = Bench::new();
        bench.model.world().faults.load_errno = Some(errno);
        let error = bench.make(&mut bench.record("web", 3, &[2])).unwrap_err();
        assert!(error.contains("loads only signed images: sign it (kerf sign)"), "{error}");
        assert!(error.contains("boot one here that does not enforce signatures"), "{error}");
        bench.release("web").unwrap();
        assert_eq!((bench.state("web"), bench.is_recorded("web")), (None, false), "it is given back");
        bench.check();
    }
}

#[test]
fn signed_file_is_loaded_as_it_is_where_what_was_unpacked_from_it_is_refused() {
    let bench = Bench::new();
    bench.make_of_signed_file(&mut bench.record("web", 3, &[2])).unwrap();
    assert_eq!(
        bench.model.world().loads,
        [false],
        "where nothing is enforced any kernel takes what was unpacked"
    );

    for errno in [libc::ENODATA, libc::ENOKEY, libc::EKEYREJECTED, libc::EPERM] {
        let bench = Bench::new();
        bench.model.world().faults.load_errno = Some(errno);
        bench.make_of_signed_file(&mut bench.record("web", 3, &[2])).unwrap();
        assert_eq!(bench.model.world().loads, [false, true]);
        assert_eq!(bench.state("web"), Some(State::Loaded));
        bench.check();
    }
}

#[test]
fn signed_file_that_is_refused_as_well_is_told_with_what_was_tried_and_what_to_do() {
    for (errno, errno_signed) in [
        (libc::ENODATA, libc::ENOEXEC),
        (libc::ENODATA, libc::ENOKEY),
        (libc::EPERM, libc::EKEYREJECTED),
        (libc::EPERM, libc::EPERM),
    ] {
        let bench = Bench::new();
        let faults =
            Faults { load_errno: Some(errno), load_errno_signed: Some(errno_signed), ..Faults::default() };
        bench.model.world().faults = faults;
        let error = bench.make_of_signed_file(&mut bench.record("web", 3, &[2])).unwrap_err();
        for (way, errno) in [("tried unpacked", errno), ("tried as the signed file", errno_signed)] {
            let said = std::io::Error::from_raw_os_error(errno).to_string();
            assert!(error.split("; ").any(|part| part.contains(way) && part.contains(&said)), "{error}");
        }
        assert!(
            error.contains("(kerf sign), or boot a kernel here that does not enforce signatures"),
            "{error}"
        );
        assert_eq!(error.contains("CAP_SYS_BOOT"), errno_signed == libc::EPERM, "{error}");
        bench.release("web").unwrap();
        assert_eq!((bench.state("web"), bench.is_recorded("web")), (None, false), "it is given back");
    }
}

#[test]
fn refusal_that_is_not_about_signatures_is_told_at_once() {
    for errno in [libc::ENOEXEC, libc::EINVAL] {
        let bench = Bench::new();
        bench.model.world().faults.load_errno = Some(errno);
        bench.make_of_signed_file(&mut bench.record("web", 3, &[2])).unwrap_err();
        assert_eq!(bench.model.world().loads, [false]);
    }
}

#[test]
fn kernel_that_may_not_be_loaded_is_told_with_what_it_takes() {
    for (errno, told) in [
        (
            libc::EPERM,
            "CAP_SYS_BOOT, kernel.kexec_load_disabled = 0, and no lockdown or an image that is signed",
        ),
        (libc::ENOEXEC, "not a kernel that this one can load"),
        (libc::EINVAL, "takes no such image or command line"),
    ] {
        let bench = Bench::new();
        bench.model.world().faults.load_errno = Some(errno);
        let error = bench.make(&mut bench.record("web", 3, &[2])).unwrap_err();
        assert!(error.contains(told), "{error}");
        bench.release("web").unwrap();
        assert_eq!(bench.state("web"), None);
    }
}

#[test]
fn nothing_is_made_where_no_kernel_can_be_loaded() {
    let bench = Bench::new();
    bench.model.world().faults.load_is_disabled = true;
    let before = bench.model.world().machine.snapshot().transactions.len();
    let error = bench.make(&mut bench.record("web", 3, &[2])).unwrap_err();
    assert!(error.contains("kexec_load_disabled is 1") && error.contains("nothing was made"), "{error}");
    assert_eq!((bench.state("web"), bench.is_recorded("web")), (None, false));
    assert_eq!(bench.model.world().machine.snapshot().transactions.len(), before);
}

#[test]
fn memory_that_is_split_over_nodes_is_told_with_what_each_has() {
    let model = Model::without_pool();
    model.world().machine = Machine::new(MachineConfig { numa_nodes: 2, ..MachineConfig::default() });
    let halves = [(512 * MIB, Some(0)), (512 * MIB, Some(1))];
    let baseline = dtb::baseline(&[2, 4], &halves, &[]);
    model.world().write(Actor::Another, "device_tree", &baseline).unwrap();
    let bench = Bench::on(model);
    let mut record = bench.record("web", 3, &[2]);
    record.memory_bytes = 768 * MIB;
    let error = bench.make(&mut record).unwrap_err();
    assert!(error.contains("the pool has 1024 MiB") && error.contains("in one piece"), "{error}");
    assert!(error.contains("512 MiB (node 0), 512 MiB (node 1)"), "{error}");
    assert!(error.contains("nothing of it is left"), "{error}");
    record.memory_bytes = 512 * MIB;
    bench.make(&mut record).unwrap();
}

#[test]
fn cpus_that_the_pool_has_not_are_refused_before_anything_is_asked() {
    let bench = Bench::new();
    let mut record = bench.record("web", 3, &[]);
    record.cpus_wanted = 5;
    let error = bench.make(&mut record).unwrap_err();
    assert!(
        error.contains("to have 5 CPUs, and the pool has 4") && error.contains("multikernel pool"),
        "{error}"
    );
    assert!(bench.model.world().machine.snapshot().transactions.is_empty());
    assert!(!bench.is_recorded("web"));
}
