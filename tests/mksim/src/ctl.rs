//! The control socket, `DIR/ctl.sock`: hangs, panics and quirks at will, and a look at everything.
//!
//! One line is a request (`freeze NAME`, `thaw NAME`, `panic NAME`, `cut NAME`, `lossy on|off NAME`, `full on|off NAME`, `refused NAME`, `quirk on|off NAME`,
//! `show`); the answer is `ok` or `error` in its first line, then text, until the end of the stream.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::model::Quirk;
use crate::world::World;

const NAME: &str = "ctl.sock";
/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 4096;
/// How long a client may take to say what it wants.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How long a kernel may take until it can be told to panic: it has to boot.
const PANIC_MAX: Duration = Duration::from_secs(10);

/// Sends a request to the stand-in that runs in `dir`, and gives what it answers.
///
/// # Errors
/// No stand-in there, or it refuses; then nothing was changed.
pub fn request(dir: &Path, request: &str) -> anyhow::Result<String> {
    let place = at(dir)?;
    let mut stream = UnixStream::connect(&place.1)
        .with_context(|| format!("connect to {} (does a stand-in run there?)", dir.join(NAME).display()))?;
    stream.write_all(format!("{request}\n").as_bytes()).context("send the request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some(("error", text)) => anyhow::bail!("{request}: {}", text.trim_end()),
        _ => anyhow::bail!("{request}: the stand-in ended before it answered; it may have been done"),
    }
}

/// The socket's path by a descriptor of its folder, since addresses have little room.
fn at(dir: &Path) -> anyhow::Result<(File, PathBuf)> {
    let dir = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", dir.as_raw_fd()));
    Ok((dir, path))
}

pub(crate) fn serve(world: &Arc<World>) -> anyhow::Result<()> {
    let place = at(&world.dir)?;
    // One that ended by force leaves its socket.
    let _ = std::fs::remove_file(&place.1);
    let listener = UnixListener::bind(&place.1)
        .with_context(|| format!("listen at {}", world.dir.join(NAME).display()))?;
    let world = Arc::clone(world);
    std::thread::Builder::new()
        .name("ctl".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = stream.set_read_timeout(Some(REQUEST_MAX));
                let _ = stream.set_write_timeout(Some(REQUEST_MAX));
                // Whoever asks may be gone before the answer.
                let _ = answer(&world, &stream);
            }
        })
        .context("start a thread")?;
    Ok(())
}

fn answer(world: &Arc<World>, mut stream: &UnixStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    match act(world, line.trim()) {
        Ok(text) => write!(stream, "ok\n{text}"),
        Err(error) => writeln!(stream, "error\n{error:#}"),
    }
}

fn act(world: &Arc<World>, line: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words[..] {
        ["show"] => world.look(|machine| {
            serde_json::to_string_pretty(&machine.snapshot()).map(|text| text + "\n").context("write JSON")
        }),
        ["quirk", switch @ ("on" | "off"), name] => {
            let quirk: Quirk = name.parse().map_err(anyhow::Error::msg)?;
            world.act(|machine, _| machine.set_quirk(quirk, switch == "on"));
            Ok(String::new())
        }
        ["freeze", name] => with_kernel(world, name, |id, kernel| {
            kernel.freeze().context("stop the kernel")?;
            world.act(|machine, _| machine.frozen(id));
            Ok(())
        }),
        ["thaw", name] => with_kernel(world, name, |id, kernel| {
            kernel.thaw().context("let the kernel go on")?;
            world.act(|machine, now_ns| machine.thawed(id, now_ns));
            Ok(())
        }),
        ["cut", name] => with_kernel(world, name, |_, kernel| {
            kernel.cut_link();
            Ok(())
        }),
        ["lossy", switch @ ("on" | "off"), name] => with_kernel(world, name, |_, kernel| {
            kernel.set_link_lossy(switch == "on");
            Ok(())
        }),
        ["full", "on", name] => with_kernel(world, name, |_, kernel| world.rings.fill(kernel.link())),
        ["full", "off", name] => with_kernel(world, name, |_, kernel| {
            world.rings.empty(kernel.link());
            Ok(())
        }),
        ["refused", name] => {
            let mut refused = 0;
            with_kernel(world, name, |_, kernel| {
                refused = kernel.link().refused();
                Ok(())
            })?;
            Ok(format!("{refused}\n"))
        }
        ["panic", name] => with_kernel(world, name, |_, kernel| {
            let deadline = Instant::now() + PANIC_MAX;
            loop {
                match kernel.panic() {
                    Ok(()) => return Ok(()),
                    Err(error) if Instant::now() > deadline => {
                        return Err(error).context("reach its management console");
                    }
                    // It boots.
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            }
        }),
        _ => anyhow::bail!("unknown request {line:?}"),
    }
}

fn with_kernel(
    world: &Arc<World>,
    name: &str,
    act: impl FnOnce(u32, &crate::boot::Kernel) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let id = world.look(|machine| machine.instance(name).map(|instance| instance.id));
    let id = id.with_context(|| format!("there is no instance {name:?}"))?;
    let kernel = world.kernel(id).with_context(|| format!("instance {name:?} runs no kernel"))?;
    act(id, &kernel).map(|()| String::new())
}
