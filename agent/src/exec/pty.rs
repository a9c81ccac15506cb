//! Terminals for jobs.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::api::exec::WindowSize;

/// The master side of a terminal.
#[derive(Debug)]
pub struct Pty {
    master: AsyncFd<OwnedFd>,
}

impl Pty {
    /// A new terminal of that size, and stdin, stdout and stderr for the program that is to run on it as `owner`, who can
    /// then also open it by name.
    ///
    /// # Errors
    /// What the system said; without devpts mounted there are no terminals.
    pub fn open(size: WindowSize, owner: Option<u32>) -> io::Result<(Self, [Stdio; 3])> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        if let Some(uid) = owner {
            // The group stays that of all terminals, as devpts was mounted.
            rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)?;
        }
        let both = Interest::READABLE | Interest::WRITABLE;
        let pty = Self { master: crate::sys::watched(master, both)? };
        pty.resize(size)?;
        let stdio = [Stdio::from(slave.try_clone()?), Stdio::from(slave.try_clone()?), Stdio::from(slave)];
        Ok((pty, stdio))
    }

    /// Tells the program that its terminal has another size.
    pub fn resize(&self, size: WindowSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.master.get_ref(), size)?)
    }

    /// Reads what the program wrote; 0 once nobody has the terminal open. Cancel safe.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self
            .master
            .async_io(Interest::READABLE, |fd| rustix::io::read(fd, &mut *buffer).map_err(io::Error::from));
        match read.await {
            // How Linux says that the last descriptor of the other side was closed.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => Ok(0),
            read => read,
        }
    }

    /// Writes all of `bytes` as if typed. Cancelled, it has written a part.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| rustix::io::write(fd, bytes).map_err(io::Error::from);
            let written = self.master.async_io(Interest::WRITABLE, write).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}
