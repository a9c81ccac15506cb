//! A scripted monitor stands for QEMU: no machine here unplugs CPUs soundly, so the orders are shown against one that answers as QEMU does.

use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;

use super::*;

/// What the scripted machine is, and what it was told.
#[derive(Debug, Default)]
struct Script {
    version: [u32; 3],
    kvm: bool,
    /// The CPUs that are plugged, by number; CPU 0 is fixed. It has places for four.
    plugged: Vec<u32>,
    /// How often a CPU that was told to go is still seen before it goes; `None`: for ever.
    lingers: Option<u32>,
    /// What the kernel says about that.
    event: Option<Value>,
    leaving: Option<u32>,
    told: Vec<String>,
}

impl Script {
    fn answer(&mut self, request: &Value) -> Vec<Value> {
        let (command, arguments) = (request["execute"].as_str().unwrap(), &request["arguments"]);
        self.told.push(command.to_owned());
        let mut said = Vec::new();
        let outcome = match command {
            "query-version" => {
                let [major, minor, micro] = self.version;
                Ok(json!({ "qemu": { "major": major, "minor": minor, "micro": micro }, "package": "" }))
            }
            "query-kvm" => Ok(json!({ "enabled": self.kvm, "present": true })),
            "query-hotpluggable-cpus" => {
                if let (Some(leaving), Some(lingers)) = (self.leaving, self.lingers.as_mut()) {
                    match lingers.checked_sub(1) {
                        Some(left) => *lingers = left,
                        None => self.plugged.retain(|index| *index != leaving),
                    }
                }
                Ok(self.places(4))
            }
            "device_add" => {
                let index = arguments["core-id"].as_u64().unwrap() as u32;
                assert_eq!(arguments["id"], json!(id(index)));
                assert_eq!(arguments["driver"], "host-x86_64-cpu");
                said.extend(self.event.take());
                match index {
                    3 => Err("the machine wants no more"),
                    index => {
                        self.plugged.push(index);
                        Ok(json!({}))
                    }
                }
            }
            "device_del" if self.leaving.is_some() => Err("Device cpu1 is already in the process of unplug"),
            "device_del" => {
                self.leaving = arguments["id"].as_str().unwrap().strip_prefix("cpu").unwrap().parse().ok();
                said.extend(self.event.take());
                Ok(json!({}))
            }
            _ => Ok(json!({})),
        };
        said.push(match outcome {
            Ok(value) => json!({ "return": value, "id": request["id"] }),
            Err(reason) => {
                json!({ "error": { "class": "GenericError", "desc": reason }, "id": request["id"] })
            }
        });
        said
    }

    fn places(&self, count: u32) -> Value {
        let place = |index: u32| {
            let props = json!({ "core-id": index, "socket-id": 0, "thread-id": 0 });
            let mut place = json!({ "type": "host-x86_64-cpu", "vcpus-count": 1, "props": props });
            match index {
                0 => place["qom-path"] = json!("/machine/unattached/device[0]"),
                _ if self.plugged.contains(&index) => {
                    place["qom-path"] = json!(format!("/machine/peripheral/{}", id(index)));
                }
                _ => {}
            }
            place
        };
        (0..count).rev().map(place).collect()
    }
}

/// The places of a machine with room for so many CPUs, of which these are plugged and the first stays.
pub(in crate::spawner::qemu) fn places_of(plugged: &[u32], count: u32) -> Vec<Place> {
    parse(&Script { plugged: plugged.to_vec(), ..Script::default() }.places(count))
}

/// The monitor of a scripted machine.
fn machine(script: Script) -> (TempDir, Arc<Mutex<Script>>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(MONITOR)).unwrap();
    let script = Arc::new(Mutex::new(script));
    let shared = script.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let _ = stream.write_all(b"{\"QMP\": {}}\n").await;
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|count| count > 0) {
                let said = shared.lock().unwrap().answer(&serde_json::from_str(&line).unwrap());
                let said: String = said.iter().map(|value| format!("{value}\n")).collect();
                let _ = stream.write_all(said.as_bytes()).await;
                line.clear();
            }
        }
    });
    (dir, script)
}

fn able() -> Script {
    Script { version: [10, 1, 1], kvm: true, plugged: vec![1], lingers: Some(0), ..Script::default() }
}

fn told(script: &Mutex<Script>, command: &str) -> usize {
    script.lock().unwrap().told.iter().filter(|told| *told == command).count()
}

#[test]
fn cpus_are_plugged_only_where_qemu_can_do_it_again_and_again() {
    let parked = |version, reason: &str, kvm| match method(version, kvm) {
        Method::Parked(why) => assert!(why.contains(reason), "{why}"),
        Method::Plugged => panic!("{version:?} is to plug"),
    };
    for version in [None, Some(Version(7, 2, 22)), Some(Version(10, 1, 1)), Some(Version(99, 0, 0))] {
        parked(version, "tcg_register_thread", false);
    }
    for version in [
        None,
        Some(Version(7, 2, 22)),
        Some(Version(9, 2, 9)),
        Some(Version(10, 0, 4)),
        Some(Version(10, 1, 0)),
    ] {
        parked(version, "physmem: Destroy all CPU AddressSpaces on unrealize", true);
    }
    for version in [Version(10, 0, 5), Version(10, 1, 1), Version(10, 2, 0), Version(11, 0, 0)] {
        assert_eq!(method(Some(version), true), Method::Plugged, "{version}");
    }
}

#[test]
fn places_are_told_by_what_is_in_them() {
    let contents: Vec<_> = places_of(&[1], 4).into_iter().map(|place| (place.index, place.content)).collect();
    use Content::{Empty, Fixed, Plugged};
    assert_eq!(contents, [(0, Fixed), (1, Plugged), (2, Empty), (3, Empty)]);
    for nonsense in
        [json!([]), json!({}), json!([{ "props": 3 }]), json!([{ "props": { "core-id": -1 }, "type": "x" }])]
    {
        assert_eq!(parse(&nonsense), []);
    }
    let other_socket = json!([{ "props": { "core-id": 0, "socket-id": 1 }, "type": "x" }]);
    assert_eq!(parse(&other_socket), [], "it would have the number of another");
}

#[test]
fn machine_boots_with_one_cpu_of_its_own_and_the_others_plugged() {
    let options = options(3, 8, "host-x86_64-cpu");
    assert_eq!(options[0], ("-smp", "1,maxcpus=8,sockets=1,cores=8,threads=1".to_owned()));
    assert_eq!(options[2].1, "host-x86_64-cpu,id=cpu2,socket-id=0,core-id=2,thread-id=0");
    assert_eq!(options.len(), 3);
}

#[tokio::test]
async fn plugging_waits_until_the_kernel_has_noticed_and_is_done_once() {
    let info = json!({ "slot": "2", "slot-type": "CPU", "source": 1, "status": 0 });
    let noticed = json!({ "event": "ACPI_DEVICE_OST", "data": { "info": info } });
    let (dir, script) = machine(Script { event: Some(noticed), ..able() });
    plug(dir.path(), 2).await.unwrap().unwrap();
    plug(dir.path(), 2).await.unwrap().unwrap();
    plug(dir.path(), 0).await.unwrap().unwrap();
    assert_eq!(told(&script, "device_add"), 1);
    assert_eq!(script.lock().unwrap().plugged, [1, 2]);
    assert_eq!(plug(dir.path(), 3).await.unwrap().unwrap_err(), "the machine wants no more");
    assert!(plug(dir.path(), 9).await.unwrap().unwrap_err().contains("no place"));
}

#[tokio::test]
async fn unplugging_ends_when_the_cpu_is_seen_to_be_gone() {
    let (dir, script) = machine(Script { lingers: Some(3), ..able() });
    unplug(dir.path(), 1).await.unwrap().unwrap();
    assert!(script.lock().unwrap().plugged.is_empty());
    unplug(dir.path(), 1).await.unwrap().unwrap();
    assert_eq!(told(&script, "device_del"), 1, "one that is gone is not told to go");
}

#[tokio::test]
async fn cpu_that_was_told_before_is_waited_for() {
    let (dir, script) = machine(Script { leaving: Some(1), lingers: Some(2), ..able() });
    unplug(dir.path(), 1).await.unwrap().unwrap();
    assert!(script.lock().unwrap().plugged.is_empty());
}

#[tokio::test]
async fn kernel_that_says_no_is_believed_and_one_that_says_nothing_leaves_it_open() {
    let info = json!({ "device": "cpu1", "slot": "1", "slot-type": "CPU", "source": 3, "status": 1 });
    let ost = json!({ "event": "ACPI_DEVICE_OST", "data": { "info": info } });
    let error = json!({ "event": "DEVICE_UNPLUG_GUEST_ERROR", "data": { "device": "cpu1", "path": "/x" } });
    for event in [ost, error] {
        let (dir, _script) = machine(Script { event: Some(event), lingers: None, ..able() });
        let reason = unplug(dir.path(), 1).await.unwrap().unwrap_err();
        assert_eq!(reason, "its kernel refused to let it go");
    }
    let (dir, script) = machine(Script { lingers: None, ..able() });
    let open = unplug_within(dir.path(), 1, Duration::from_millis(30)).await.unwrap_err();
    assert!(open.contains("still may"), "{open}");
    assert_eq!(script.lock().unwrap().plugged, [1]);
}

#[tokio::test]
async fn no_cpu_is_unplugged_from_a_qemu_that_cannot() {
    for (version, kvm, reason) in [([7, 2, 22], true, "physmem"), ([10, 1, 1], false, "tcg_register_thread")]
    {
        let (dir, script) = machine(Script { version, kvm, ..able() });
        let said = unplug(dir.path(), 1).await.unwrap().unwrap_err();
        assert!(said.contains(reason), "{said}");
        assert_eq!(told(&script, "device_del"), 0);
    }
}
