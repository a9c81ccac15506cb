//! Stands in for the agent in spawner tests: small, and does what its doorbell tells it.
//!
//! It prints `ready`, then a tick every 50 ms, and answers each byte on the doorbell with the byte after it. Some
//! bytes do more: `m` prints how much memory is free, `c` takes the second CPU online and `C` offline, `d` prints which PCI functions have
//! a driver, `q` powers off, `R` resets the machine, `p` panics the kernel (exit status 3 where there is none), `x` exits with status 1.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::system::{RebootCommand, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tombolo_agent::config::{AgentConfig, DEFAULT_PATH, Doorbell, PacedLine};

const SECOND_CPU: &str = "/sys/devices/system/cpu/cpu1/online";

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("--sleep") => thread::sleep(Duration::from_secs(3600)),
        Some("--config") => run(Path::new(args.get(2).map_or("", String::as_str)), false),
        _ => {
            for (source, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
                if let Err(error) = mount(source, target, source, MountFlags::empty(), c"") {
                    println!("could not mount {target}: {error}");
                }
            }
            run(Path::new(DEFAULT_PATH), true);
        }
    }
}

fn run(config: &Path, is_init: bool) {
    if let Err(error) = serve(config, is_init) {
        println!("test-init failed: {error}");
    }
    end(is_init, 1);
}

fn serve(config: &Path, is_init: bool) -> io::Result<()> {
    let config = AgentConfig::read(config).map_err(io::Error::other)?;
    // Where there is no shared memory the line of the link is as good as a doorbell.
    let line = match &config.paced {
        Some(PacedLine::Path(path)) => Some(Doorbell::Path(path.clone())),
        _ => None,
    };
    let doorbell = open_doorbell(config.doorbell.as_ref().or(line.as_ref()))?;
    for module in &config.modules {
        rustix::system::finit_module(&fs::File::open(module)?, c"", 0)?;
    }
    // A helper that left its process group: it must not outlive its kernel.
    let me = if is_init { "/init".into() } else { std::env::current_exe()? };
    Command::new("setsid")
        .arg(&me)
        .arg("--sleep")
        .spawn()
        .or_else(|_| Command::new(&me).arg("--sleep").spawn())?;
    println!("ready: {} cid {}", config.name, config.cid);
    thread::spawn(|| {
        for tick in 0_u64.. {
            println!("tick {tick}");
            thread::sleep(Duration::from_millis(50));
        }
    });
    loop {
        let mut byte = [0];
        if rustix::io::read(&doorbell, &mut byte[..])? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        println!("bell {}", byte[0]);
        if byte[0] == b'm' {
            let meminfo = fs::read_to_string("/proc/meminfo")?;
            println!("{}", meminfo.lines().find(|line| line.starts_with("MemFree:")).unwrap_or("MemFree: ?"));
        }
        match byte[0] {
            b'c' | b'C' if is_init => {
                let switched = fs::write(SECOND_CPU, if byte[0] == b'c' { "1" } else { "0" });
                println!("the second CPU: {switched:?}");
            }
            b'd' if is_init => println!("functions with a driver: {}", functions_with_a_driver()?.join(" ")),
            _ => {}
        }
        rustix::io::write(&doorbell, &[byte[0].wrapping_add(1)])?;
        match byte[0] {
            b'q' => end(is_init, 0),
            b'R' if is_init => reboot(RebootCommand::Restart)?,
            b'p' if is_init => fs::write("/proc/sysrq-trigger", "c")?,
            b'p' => end(is_init, 3),
            b'x' => end(false, 1),
            _ => {}
        }
    }
}

fn functions_with_a_driver() -> io::Result<Vec<String>> {
    let functions = fs::read_dir("/sys/bus/pci/devices")?.flatten();
    let driven = functions.filter(|function| function.path().join("driver").exists());
    Ok(driven.map(|function| function.file_name().to_string_lossy().into_owned()).collect())
}

fn open_doorbell(doorbell: Option<&Doorbell>) -> io::Result<OwnedFd> {
    match doorbell {
        Some(Doorbell::Path(path)) => {
            let line = fs::File::options().read(true).write(true).open(path)?;
            let mut mode = tcgetattr(&line)?;
            mode.make_raw();
            tcsetattr(line.as_fd(), OptionalActions::Now, &mode)?;
            Ok(line.into())
        }
        Some(Doorbell::Fd(fd)) => {
            let me = Pid::from_raw(std::process::id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
            let me = pidfd_open(me, PidfdFlags::empty())?;
            Ok(pidfd_getfd(me, *fd, PidfdGetfdFlags::empty())?)
        }
        Some(Doorbell::Vsock(_)) => Err(io::Error::other("this program dials no doorbell")),
        None => Err(io::Error::other("no doorbell is configured")),
    }
}

fn end(is_init: bool, code: i32) -> ! {
    if is_init && let Err(error) = reboot(RebootCommand::PowerOff) {
        println!("could not power off: {error}");
    }
    std::process::exit(code);
}
