//! Units of which nobody knew who has them, found again.

use serde_json::Value;
use tombolo_control::store::{Batch, Store, StoredLedger};
use tombolo_handover::owner::Quarantine;
use tombolo_handover::{Owner, Party, UnitId};
use tombolo_tests::bed::{Bed, eventually, send_signal};

use super::{Books, DISK, books_add_up, cpus, emulated_bed_with_two, has_disk};

/// Has the records say that nobody knows who has these units, as after a move that was never heard of again.
fn lose_track(bed: &mut Bed, is_lost: impl Fn(&UnitId, &Owner) -> bool, reason: &Quarantine) {
    bed.end_daemon("KILL");
    let store = Store::open(&bed.state_dir()).unwrap();
    let mut ledger: StoredLedger = store.ledger().unwrap().unwrap();
    let mut lost = 0;
    for entry in ledger.units.iter_mut().filter(|entry| is_lost(&entry.unit.id, &entry.owner)) {
        entry.owner = Owner::Quarantined(reason.clone());
        entry.epoch += 1;
        lost += 1;
    }
    assert!(lost > 0, "there is no such unit");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.commit(Batch::new().begin_ledger(ledger))).unwrap();
    drop(store);
    bed.start_daemon();
}

fn quarantined(bed: &Bed) -> Vec<Value> {
    let units = Books::of(bed).0["units"].as_array().unwrap().clone();
    units.into_iter().filter(|unit| unit["owner"]["quarantined"].is_object()).collect()
}

#[test]
fn unit_that_nobody_knew_of_is_found_with_the_kernel_that_has_it_or_is_free() {
    let Some(mut bed) = emulated_bed_with_two() else { return };
    let is_disk = |unit: &UnitId| matches!(unit, UnitId::Device(address) if address.to_string() == DISK);
    let is_of_db = |bed: &Bed| {
        let db = bed.view("db")["cid"].as_u64().unwrap();
        move |owner: &Owner| matches!(owner, Owner::Instance(kernel) if u64::from(kernel.instance.0) == db)
    };

    // A person must look at why this came to be; who has it can be looked up all the same.
    let reason = Quarantine::FoundElsewhere { with: Party::Pool };
    lose_track(&mut bed, |unit, _| is_disk(unit), &reason);
    assert_eq!(quarantined(&bed).len(), 1);
    let frozen = bed.pid("web");
    send_signal(frozen, "STOP");
    let said = bed.tombolo(&["op", "repair", &format!("device {DISK}")]);
    assert!(said.code == 9 && said.stderr.contains("`web` cannot be asked"), "{said:?}");
    send_signal(frozen, "CONT");
    let said = bed.must(&["op", "repair", &format!("device {DISK}")]);
    assert!(said.stderr.contains("is with pool"), "{said:?}");
    assert!(has_disk(&bed, "pool"));
    let said = bed.tombolo(&["op", "repair", &format!("device {DISK}")]);
    assert!(said.code != 0 && said.stderr.contains("not in quarantine"), "{said:?}");

    // These show by themselves.
    bed.must(&["move", "--device", DISK, "--from", "pool", "--to", "db"]);
    let mine = is_of_db(&bed);
    let lost = |unit: &UnitId, owner: &Owner| {
        mine(owner) && (is_disk(unit) || matches!(unit, UnitId::Cpu(_) | UnitId::Lot(_)))
    };
    lose_track(&mut bed, lost, &Quarantine::Unobserved { after: None });
    assert!(quarantined(&bed).len() >= 4, "the disk, two CPUs, its memory");
    eventually("everything to be found", || quarantined(&bed).is_empty());
    assert!(has_disk(&bed, "db"));
    assert_eq!(cpus(&bed, "db"), 2);
    books_add_up(&bed);
    bed.nothing_is_left();
}
