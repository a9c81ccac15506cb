//! Ways of the kernel that carry bytes: Unix socket, TCP over the loopback, pipe. A message is as many bytes as both ends know it has.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, mknodat};
use rustix::pipe::fcntl_setpipe_size;
use tombolo_benches::payload::Payload;
use tombolo_benches::probe::{Probe, Test, Waiting};

use crate::link::{Link, Meet};

/// What one call of the kernel takes or gives at the most where messages go several at once.
const AT_ONCE: usize = 1 << 16;
/// As much as a process without privileges may ask for.
const PIPE_BYTES: usize = 1 << 20;

/// Messages over what can be read and what can be written.
#[derive(Debug)]
pub(crate) struct Framed<R, W> {
    from: R,
    to: W,
    /// Several messages to be written at once.
    leaving: Vec<u8>,
    /// What has been read, as many whole messages as there is room for.
    arrived: Vec<u8>,
    /// Of `arrived`: read, but not yet handed over.
    unread: Range<usize>,
    bytes: usize,
}

impl<R: Read, W: Write> Framed<R, W> {
    pub(crate) fn new(from: R, to: W, probe: &Probe) -> Self {
        let at_once = (AT_ONCE / probe.bytes).max(1) * probe.bytes;
        let leaving = if probe.test == Test::OneWayBatched { vec![0; at_once] } else { Vec::new() };
        Self { from, to, leaving, arrived: vec![0; at_once], unread: 0..0, bytes: probe.bytes }
    }
}

impl<R: Read, W: Write> Link for Framed<R, W> {
    fn send(&mut self, message: &[u8]) -> anyhow::Result<()> {
        write_all(&mut self.to, message)
    }

    fn receive(&mut self, read: impl FnOnce(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        }
        while self.unread.len() < self.bytes {
            let count = read_some(&mut self.from, &mut self.arrived[self.unread.end..])?;
            self.unread.end += count;
        }
        let message = self.unread.start..self.unread.start + self.bytes;
        self.unread.start = message.end;
        read(&self.arrived[message])
    }

    fn send_many(&mut self, numbers: Range<u64>, payload: &mut Payload) -> anyhow::Result<()> {
        if self.leaving.is_empty() {
            return numbers.into_iter().try_for_each(|number| self.send(payload.numbered(number)));
        }
        let at_once = self.leaving.len() / self.bytes;
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            let mut used = 0;
            for number in numbers.by_ref().take(at_once) {
                self.leaving[used..used + self.bytes].copy_from_slice(payload.numbered(number));
                used += self.bytes;
            }
            write_all(&mut self.to, &self.leaving[..used])?;
        }
        Ok(())
    }
}

/// Waits in the kernel, or by looking again where the file does not block.
fn read_some(from: &mut impl Read, into: &mut [u8]) -> anyhow::Result<usize> {
    loop {
        match from.read(into) {
            Ok(0) => anyhow::bail!("the other end has closed"),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("reading"),
        }
    }
}

fn write_all(to: &mut impl Write, mut bytes: &[u8]) -> anyhow::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("writing"),
        }
    }
    Ok(())
}

/// A Unix stream socket.
pub(crate) type UnixSocket = Framed<UnixStream, UnixStream>;

impl Meet for UnixSocket {
    type Offer = (UnixListener, Probe);

    fn offer(at: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        let path = at.join("socket");
        let listener = UnixListener::bind(&path)?;
        Ok(((listener, probe.clone()), path.display().to_string()))
    }

    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self> {
        Self::over_unix(UnixStream::connect(word)?, probe)
    }

    fn accept((listener, probe): Self::Offer) -> anyhow::Result<Self> {
        Self::over_unix(listener.accept()?.0, &probe)
    }
}

impl UnixSocket {
    fn over_unix(socket: UnixStream, probe: &Probe) -> anyhow::Result<Self> {
        socket.set_nonblocking(probe.waiting == Waiting::Busy)?;
        Ok(Self::new(socket.try_clone()?, socket, probe))
    }
}

/// A TCP connection over the loopback, without Nagle's algorithm.
pub(crate) type Tcp = Framed<TcpStream, TcpStream>;

impl Meet for Tcp {
    type Offer = (TcpListener, Probe);

    fn offer(_: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        Ok(((listener, probe.clone()), address))
    }

    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self> {
        Self::over_tcp(TcpStream::connect(word)?, probe)
    }

    fn accept((listener, probe): Self::Offer) -> anyhow::Result<Self> {
        Self::over_tcp(listener.accept()?.0, &probe)
    }
}

impl Tcp {
    fn over_tcp(socket: TcpStream, probe: &Probe) -> anyhow::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(probe.waiting == Waiting::Busy)?;
        Ok(Self::new(socket.try_clone()?, socket, probe))
    }
}

/// Two pipes with names, one for each direction.
pub(crate) type Pipe = Framed<File, File>;

impl Meet for Pipe {
    type Offer = (Self, PathBuf);

    fn offer(at: &Path, probe: &Probe) -> anyhow::Result<(Self::Offer, String)> {
        for name in [THERE, BACK] {
            mknodat(CWD, at.join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        let link = Self::over_pipes(&at.join(BACK), &at.join(THERE), probe)?;
        Ok(((link, at.to_owned()), at.display().to_string()))
    }

    fn join(word: &str, probe: &Probe) -> anyhow::Result<Self> {
        let at = Path::new(word);
        Self::over_pipes(&at.join(THERE), &at.join(BACK), probe)
    }

    fn accept((link, _): Self::Offer) -> anyhow::Result<Self> {
        Ok(link)
    }
}

const THERE: &str = "there";
const BACK: &str = "back";

impl Pipe {
    fn over_pipes(from: &Path, to: &Path, probe: &Probe) -> anyhow::Result<Self> {
        // Open for both, so that opening waits for nobody.
        let open = |path: &Path| -> anyhow::Result<File> {
            let file = File::options().read(true).write(true).open(path)?;
            fcntl_setpipe_size(&file, PIPE_BYTES)?;
            if probe.waiting == Waiting::Busy {
                fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
            }
            Ok(file)
        };
        Ok(Self::new(open(from)?, open(to)?, probe))
    }
}
