//! A doorbell line over a socket that has to be dialled: made again whenever it is lost.
//!
//! The broker has one end of a socket pair for good; what it writes there goes to whatever socket there is, and back. What is written while there is
//! none waits, or is lost once the pair is full: a bell that is lost is found by the receiver's timer.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy, split};
use tokio::net::UnixStream;
use tombolo_transport::paced::{Dial, VsockDial};
use tombolo_transport::vsock::{VsockConfig, VsockEndpoint, VsockTransport};
use tombolo_transport::{Addr, Cid, Port};

use crate::paced::PARENT;

/// Pauses between attempts: from, to.
const REDIAL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long one attempt may take.
const DIAL_MAX: Duration = Duration::from_secs(2);

/// A line to this port of the parent kernel. Must be called on a Tokio runtime.
pub(crate) fn of_parent(own: Cid, port: Port) -> io::Result<OwnedFd> {
    let config = VsockConfig {
        transport: VsockTransport::Multikernel,
        local_cid: Some(own),
        ..VsockConfig::default()
    };
    let vsock = VsockEndpoint::new(config).map_err(io::Error::other)?;
    dialled(VsockDial::new(vsock, Addr::new(PARENT, port)))
}

/// A line over the sockets that `dial` makes, one after the other, for as long as the line is open.
fn dialled(mut dial: impl Dial<Socket: AsyncRead + AsyncWrite + Unpin>) -> io::Result<OwnedFd> {
    let (line, mut near) = UnixStream::pair()?;
    tokio::spawn(async move {
        let mut pause = REDIAL.0;
        loop {
            match tokio::time::timeout(DIAL_MAX, dial.dial()).await {
                Ok(Ok(mut socket)) => {
                    pause = REDIAL.0;
                    carry(&mut near, &mut socket).await;
                    tracing::debug!("the doorbell's socket is gone");
                }
                Ok(Err(error)) => tracing::debug!(%error, "the doorbell cannot be dialled"),
                Err(_) => tracing::debug!("the doorbell is not answered"),
            }
            if is_closed(&near) {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(REDIAL.1);
        }
    });
    Ok(line.into_std()?.into())
}

/// Carries bells both ways until either end is gone. The line stays open for the next socket.
async fn carry(near: &mut UnixStream, socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let (mut near_in, mut near_out) = near.split();
    let (mut far_in, mut far_out) = split(socket);
    tokio::select! {
        _ = copy(&mut near_in, &mut far_out) => {}
        _ = copy(&mut far_in, &mut near_out) => {}
    }
}

/// Whether the broker has let go of its end.
fn is_closed(near: &UnixStream) -> bool {
    let mut byte = [0];
    matches!(
        rustix::net::recv(near, &mut byte, rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT),
        Ok((_, 0))
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream as StdStream;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bells_pass_both_ways_and_again_over_the_next_socket() {
        let (made, mut taken) = mpsc::unbounded_channel();
        let attempts = Arc::new(Mutex::new(0));
        let counted = attempts.clone();
        let dial = move || {
            let made = made.clone();
            *counted.lock().unwrap() += 1;
            let fails = *counted.lock().unwrap() == 2;
            async move {
                if fails {
                    return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
                }
                let (near, far) = UnixStream::pair()?;
                let _ = made.send(far);
                Ok(near)
            }
        };
        let line = StdStream::from(dialled(dial).unwrap());
        line.set_nonblocking(true).unwrap();
        let mut line = UnixStream::from_std(line).unwrap();
        for _ in 0..2 {
            let mut far = taken.recv().await.unwrap();
            line.write_all(&[7]).await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), 7);
            far.write_all(&[9]).await.unwrap();
            assert_eq!(line.read_u8().await.unwrap(), 9);
            // Here the socket is lost. The second attempt fails, the third makes another.
        }
        assert_eq!(*attempts.lock().unwrap(), 3);
        drop(line);
        assert!(taken.recv().await.is_none(), "nobody dials for a line that is closed");
    }
}
