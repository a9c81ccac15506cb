//! AF_VSOCK between programs of this host and programs in emulated machines, through a device that is not ours.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tombolo_tests::bed::{Bed, eventually, send_signal};
use tombolo_tests::prerequisites;
use tombolo_tests::wait::LONG;
use tombolo_transport::hybrid::HybridConfig;
use tombolo_transport::{Addr, Cid, Endpoint, ListenOptions, Port, Stream};

const DISK: &str = "0000:01:00.0";
/// Where the program inside listens.
const INSIDE: Port = Port(5000);
/// Where the program of the host does.
const HOSTS: Port = Port(6000);

/// `web`, a machine with room for more memory and CPUs and for a disk, whose program echoes on AF_VSOCK.
fn bed_with_web() -> Option<Bed> {
    let app = prerequisites::static_program("tombolo-demo-kv")?;
    let device = prerequisites::vsock_device()?;
    let mut bed = Bed::prepare("qemu")?;
    let disk = bed.dir().join("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(8 << 20)).unwrap();
    bed.add_daemon_args(["--vsock-device", &device.display().to_string()]);
    bed.add_daemon_args(["--cpus", "4", "--device", &format!("{DISK}=nvme:{}", disk.display())]);
    bed.start_daemon();
    let file = format!("{}:/bin/app", app.display());
    let room = ["--memory", "160", "--memory-min", "128", "--memory-max", "320", "--cpus-max", "3"];
    let program = ["--restart", "never", "--file", &file, "--", "/bin/app", "vsock-echo", "5000"];
    bed.must(&[&["up", "web"], &room[..], &program].concat());
    Some(bed)
}

/// A program of the host that knows where the sockets of `web` are, and nothing else.
struct Host {
    runtime: Runtime,
    endpoint: Endpoint,
    guest: Cid,
}

impl Host {
    fn of(bed: &Bed) -> Self {
        let guest = Cid(u32::try_from(bed.view("web")["cid"].as_u64().unwrap()).unwrap());
        let runtime = Runtime::new().unwrap();
        let entered = runtime.enter();
        let path = bed.instance_dir("web").join("vsock.sock");
        let endpoint = Endpoint::hybrid(HybridConfig::host(path, guest)).unwrap();
        drop(entered);
        Self { runtime, endpoint, guest }
    }

    /// A connection to the program inside, as soon as it listens.
    fn dial(&self) -> Stream {
        let mut stream = None;
        eventually("an answer of the program inside", || {
            stream = self.runtime.block_on(self.endpoint.connect(Addr::new(self.guest, INSIDE))).ok();
            stream.is_some()
        });
        stream.unwrap()
    }

    fn echoes(&self, stream: &mut Stream, round: usize) {
        self.runtime.block_on(echoes(stream, round));
    }
}

/// What is sent comes back, more of it than any buffer on the way holds.
async fn echoes(stream: &mut Stream, round: usize) {
    let sent: Vec<u8> = (0..300_000_usize).map(|at| (at * 31 + round * 7) as u8).collect();
    let mut back = vec![0; sent.len()];
    let exchanged = async {
        let (mut from, mut to) = tokio::io::split(stream);
        tokio::try_join!(to.write_all(&sent), from.read_exact(&mut back))
    };
    timeout(LONG, exchanged).await.expect("no echo").unwrap();
    assert!(back == sent, "round {round}: what came back differs");
}

#[test]
fn programs_of_host_and_machine_reach_each_other() {
    let Some(bed) = bed_with_web() else { return };
    let host = Host::of(&bed);
    let mut streams: Vec<Stream> = (0..3).map(|_| host.dial()).collect();
    for (round, stream) in streams.iter_mut().enumerate() {
        host.echoes(stream, round);
    }

    let mut listener = host.runtime.block_on(host.endpoint.listen(HOSTS, ListenOptions::default())).unwrap();
    let serving = host.runtime.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes.map(|byte| byte.to_ascii_uppercase())).await.unwrap();
        // Until the caller has gone: the device takes our end for one of both directions.
        let _ = stream.read(&mut bytes).await;
    });
    let port = HOSTS.0.to_string();
    let said = bed.must(&["exec", "web", "--", "/bin/app", "vsock-call", &port, "hello"]);
    assert_eq!(said.stdout.trim(), "HELLO");
    host.runtime.block_on(async { timeout(LONG, serving).await.unwrap().unwrap() });
    assert_ne!(bed.tombolo(&["exec", "web", "--", "/bin/app", "vsock-call", &port, "again"]).code, 0);

    let device = device_of(&bed);
    bed.must(&["stop", "web"]);
    eventually("the end of the device", || !is_device(&bed, device));
    assert!(!bed.instance_dir("web").join("vsock.sock").exists(), "its socket goes with it");
    bed.must(&["start", "web"]);
    host.echoes(&mut host.dial(), 9);
    bed.nothing_is_left();
}

#[test]
fn connections_live_through_changes_of_the_machine_and_the_death_of_the_daemon() {
    let Some(mut bed) = bed_with_web() else { return };
    let host = Host::of(&bed);
    let (mut busy, mut idle) = (host.dial(), host.dial());
    host.echoes(&mut idle, 0);
    let is_over = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut rounds = 0;
            while !is_over.load(Ordering::Relaxed) {
                host.echoes(&mut busy, rounds);
                rounds += 1;
            }
            rounds
        });
        // Whatever fails below, the traffic ends.
        let over = Over(&is_over);
        for change in [
            &["resize", "web", "--memory", "+128M"][..],
            &["resize", "web", "--cpus", "+1"],
            &["move", "--device", DISK, "--from", "pool", "--to", "web"],
            &["resize", "web", "--memory", "-160M"],
            &["resize", "web", "--cpus", "-1"],
            &["move", "--device", DISK, "--from", "web", "--to", "pool"],
            &["resize", "web", "--memory", "+64M"],
        ] {
            bed.must(change);
            host.echoes(&mut host.dial(), 1);
        }
        bed.end_daemon("KILL");
        host.echoes(&mut host.dial(), 2);
        bed.start_daemon();
        bed.must(&["wait", "web", "--for", "running"]);
        host.echoes(&mut host.dial(), 3);
        drop(over);
        traffic.join().unwrap()
    });
    assert!(rounds > 0);
    host.echoes(&mut idle, 4);
    bed.nothing_is_left();
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn machine_outlives_its_device_and_its_keeper_says_so() {
    let Some(bed) = bed_with_web() else { return };
    let host = Host::of(&bed);
    let mut stream = host.dial();
    host.echoes(&mut stream, 0);
    send_signal(device_of(&bed), "KILL");
    let log = bed.instance_dir("web").join("keeper.log");
    let log = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("a word of the keeper", || log().contains("ended (signal: 9 (SIGKILL)); its kernel runs on"));
    let ended = host.runtime.block_on(async { timeout(LONG, stream.read(&mut [0; 8])).await });
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "its connections end: {ended:?}");
    assert!(host.runtime.block_on(host.endpoint.connect(Addr::new(host.guest, INSIDE))).is_err());
    bed.must(&["exec", "web", "--", "/bin/app", "where-am-i"]);
    bed.must(&["resize", "web", "--memory", "+64M"]);
    bed.must(&["debug", "freeze", "web"]);
    bed.must(&["debug", "thaw", "web"]);
    bed.must(&["wait", "web", "--for", "running"]);
    bed.must(&["exec", "web", "--", "/bin/app", "where-am-i"]);

    bed.must(&["stop", "web"]);
    assert_eq!(bed.view("web")["last_end"], "powered-off");
    bed.must(&["start", "web"]);
    host.echoes(&mut host.dial(), 1);
    bed.nothing_is_left();
}

#[test]
fn device_that_does_not_start_keeps_its_machine_from_starting_and_leaves_nothing() {
    if prerequisites::vsock_device().is_none() {
        return;
    }
    let Some(mut bed) = Bed::prepare("qemu") else { return };
    let broken = bed.dir().join("broken");
    std::fs::write(&broken, "#!/bin/sh\necho it is broken >&2\nexit 3\n").unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    bed.add_daemon_args(["--vsock-device", &broken.display().to_string()]);
    bed.start_daemon();
    let said = bed.tombolo(&["up", "web", "--memory", "160", "--restart", "never"]);
    assert_ne!(said.code, 0, "{said:?}");
    let error = bed.view("web")["last_error"].to_string();
    assert!(error.contains("could not start the device"), "{error}");
    assert!(error.contains("it ended (exit status: 3): it is broken"), "{error}");
    assert!(bed.processes().iter().all(|(_, command)| !command.contains("keeper")), "{:?}", bed.processes());
    bed.nothing_is_left();
}

/// The process that is the device of `web`.
fn device_of(bed: &Bed) -> u32 {
    let devices: Vec<u32> =
        bed.processes().into_iter().map(|(pid, _)| pid).filter(|pid| is_device(bed, *pid)).collect();
    assert_eq!(devices.len(), 1, "{:?}", bed.processes());
    devices[0]
}

fn is_device(bed: &Bed, pid: u32) -> bool {
    let mark = "uds-path=vsock.sock";
    bed.processes().iter().any(|(other, command)| *other == pid && command.contains(mark))
}
