//! The demo's application: a key-value service, its client, and small programs that show where they run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tombolo_tests::kv::{default_broker, floor, hardware, inside, measure, serve, vsock, watch};
use tombolo_transport::{Endpoint, Port};

const USAGE: &str = "\
usage: tombolo-demo-kv COMMAND [--broker SOCKET]
  where-am-i             the kernel this runs on, as JSON
  count LINES GAP_MS     print lines, one after the other
  checksum FILE          the BLAKE3 checksum of a file, as JSON
  set-clock-back SECONDS set the clock of the kernel this runs on, if a spawner has made it
  panic                  panic the kernel this runs on, if a spawner has made it
  power-off              switch that kernel off without asking anybody
  hog MIB                hold so much memory, until killed
  spin-on CPU            keep this CPU busy, and run on no other, until killed
  starve CPU MS          hold this CPU against everybody else for so long
  spin THREADS           keep so many CPUs busy, until killed
  switch-cpu CPU         take a CPU of that kernel offline and online, and say how long that took, as JSON
  await FILE             wait until there is such a file
  hold FILE              hold a file open, until killed
  claim DISK             claim a disk as a mount does, until killed
  stamp DISK TEXT        write to the beginning of a disk of the kernel this runs on, if a spawner has made it
  stamped DISK           what is written there
  keep-setting FILE TEXT write to a file of that kernel's again and again, until killed
  freeze-user-space MS   freeze every other program of that kernel for so long
  vsock-echo PORT        send back what comes on that port of AF_VSOCK, until killed
  vsock-call PORT TEXT   send a text to that port of the host by AF_VSOCK, and print what comes back
  floor                  what a cache line and a Unix socket cost on this machine, as JSON
  serve                  be the key-value service `kv` of this kernel, until SIGTERM
  try KERNEL/kv          connect, and leave
  measure KERNEL/kv      call it, check every reply, print percentiles as JSON
  watch KERNEL/kv        call it without end; print when it fails and when it is back, as JSON";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tombolo-demo-kv: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Under this name it is a hook that agrees to everything.
const AGREES: &str = "agrees";

fn run() -> Result<()> {
    if std::env::args_os().next().is_some_and(|name| Path::new(&name).ends_with(AGREES)) {
        return Ok(());
    }
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let broker = match words.iter().position(|word| word == "--broker") {
        Some(at) if at + 1 < words.len() => PathBuf::from(words.drain(at..at + 2).nth(1).unwrap_or_default()),
        _ => default_broker(),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["where-am-i"] => println!("{}", inside::where_am_i()?),
        ["count", lines, gap_ms] => inside::count(lines.parse()?, Duration::from_millis(gap_ms.parse()?)),
        ["checksum", file] => println!("{}", inside::checksum(Path::new(file))?),
        ["floor"] => println!("{}", floor::measure()?),
        ["floor-echo"] => floor::echo()?,
        ["set-clock-back", seconds] => inside::set_clock_back(Duration::from_secs(seconds.parse()?))?,
        ["say-on-console", text] => inside::say_on_console(text)?,
        ["panic"] => inside::panic_kernel()?,
        ["power-off"] => inside::power_off()?,
        ["hog", mib] => inside::hog(mib.parse()?),
        ["spin-on", cpu] => hardware::spin_on(cpu.parse()?)?,
        ["starve", cpu, ms] => hardware::starve(cpu.parse()?, Duration::from_millis(ms.parse()?))?,
        ["spin", threads] => hardware::spin_on_any(threads.parse()?),
        ["switch-cpu", cpu] => println!("{}", hardware::switch_cpu(cpu.parse()?)?),
        ["await", file] => println!("{}", hardware::await_file(Path::new(file))?),
        ["hold", file] => hardware::hold(Path::new(file))?,
        ["claim", disk] => hardware::claim(Path::new(disk))?,
        ["stamp", disk, text] => hardware::stamp(Path::new(disk), text)?,
        ["stamped", disk] => println!("{}", hardware::stamped(Path::new(disk))?),
        ["keep-setting", file, text] => hardware::keep_setting(Path::new(file), text)?,
        ["freeze-user-space", ms] => inside::freeze_user_space(Duration::from_millis(ms.parse()?))?,
        ["vsock-echo", port] => on_tokio(vsock::echo(Port(port.parse()?)))?,
        ["vsock-call", port, text] => println!("{}", on_tokio(vsock::call_host(Port(port.parse()?), text))?),
        ["serve"] => on_tokio(serve::serve(&broker))?,
        ["try", name] => on_tokio(attempt(&broker, name))?,
        ["measure", name] => println!("{}", on_tokio(measure::measure(&broker, name))?),
        ["watch", name] => on_tokio(watch::watch(&broker, name))?,
        _ => bail!("{USAGE}"),
    }
    Ok(())
}

async fn attempt(broker: &Path, name: &str) -> Result<()> {
    let endpoint = Endpoint::attach(broker).await.context("could not attach to the fabric")?;
    measure::connect(&endpoint, name).await.map(|link| link.close("only tried"))
}

fn on_tokio<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    // One thread: a kernel of the demo has one processor, where waking another thread is pure cost.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
