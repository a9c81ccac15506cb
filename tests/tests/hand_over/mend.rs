//! Kernels that have other than the ledger says, because somebody has meddled with their machines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use tombolo_tests::bed::{Bed, eventually};

use super::{Books, DISK, books_add_up, emulated_bed_with_two, has_disk};

/// The device of [`DISK`] in a machine, and the file behind it.
const DEVICE_ID: &str = "slot1";
const FILE_ID: &str = "tombolo-1";

/// One that there was not when the machines were started.
const NEW_DEVICE: &str = "0000:03:00.0";

/// The monitor of a machine, while no daemon uses it.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn of(bed: &Bed, name: &str) -> Self {
        let stream = UnixStream::connect(bed.instance_dir(name).join("qmp.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        monitor.run("qmp_capabilities", &json!({}));
        monitor
    }

    fn run(&mut self, command: &str, arguments: &Value) -> Value {
        self.order(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    fn order(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        let order = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.get_mut().write_all(order.as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the monitor hung up after {command}");
            let mut said: Value = serde_json::from_str(&line).unwrap();
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = said.get_mut("error") {
                return Err(error.take());
            }
        }
    }

    fn has_disk(&mut self) -> bool {
        let devices = self.run("qom-list", &json!({ "path": "/machine/peripheral" }));
        devices.as_array().unwrap().iter().any(|device| device["name"] == DEVICE_ID)
    }
}

#[test]
fn device_that_somebody_plugged_elsewhere_goes_back_to_whom_the_ledger_says_and_is_never_in_two_machines() {
    let Some(mut bed) = emulated_bed_with_two() else { return };
    bed.must(&["move", "--device", DISK, "--from", "pool", "--to", "db"]);
    bed.end_daemon("KILL");
    let mut db = Monitor::of(&bed, "db");
    db.run("device_del", &json!({ "id": DEVICE_ID }));
    eventually("the disk to leave db", || !db.has_disk());
    eventually("db to let go of the file", || {
        db.order("blockdev-del", &json!({ "node-name": FILE_ID })).is_ok()
    });
    let mut web = Monitor::of(&bed, "web");
    let file = json!({ "driver": "file", "filename": bed.dir().join("disk") });
    web.run("blockdev-add", &json!({ "driver": "raw", "node-name": FILE_ID, "file": file }));
    web.run(
        "device_add",
        &json!({ "driver": "nvme", "id": DEVICE_ID, "bus": "port1", "drive": FILE_ID, "serial": "1" }),
    );
    drop((db, web));

    bed.start_daemon();
    // It may ask for this while the machines are still being put right: then it waits.
    bed.must(&["move", "--device", DISK, "--from", "db", "--to", "web"]);
    assert!(has_disk(&bed, "web"));
    let used = |name: &str| bed.tombolo(&["exec", name, "--", "/bin/app", "stamped", "/dev/nvme0n1"]);
    eventually("the disk in web", || !used("web").stderr.contains("No such file"));
    let log = bed.daemon_log();
    assert!(log.contains("it had other than the ledger says: changed"), "{log}");
    books_add_up(&bed);
    bed.end_daemon("KILL");
    let has = ["web", "db"].map(|name| Monitor::of(&bed, name).has_disk());
    assert_eq!(has, [true, false]);

    // A daemon that is told of another device has it, although kernels run.
    bed.add_daemon_args(["--device", &format!("{NEW_DEVICE}=rng")]);
    bed.start_daemon();
    let books = Books::of(&bed);
    assert!(
        books.units_of("pool").iter().any(|unit| unit["unit"]["id"]["device"] == NEW_DEVICE),
        "{}",
        books.0
    );
    assert!(has_disk(&bed, "web"));
    bed.nothing_is_left();
}
