//! Whether a kernel itself answers, whatever its user space does.
//!
//! A kernel with Multikernel's vsock resets a connection to a port on which nobody listens; that takes nothing but its interrupts. One that is dead
//! or hangs says nothing. So a call to such a port is refused by a kernel that lives, and times out at one that does not.

use std::path::Path;
use std::time::Duration;

use tombolo_transport::vsock::{VsockConfig, VsockEndpoint, VsockTransport};
use tombolo_transport::{Addr, Cid, Error, Port};

use super::ids::InstanceId;
use super::record::Record;

/// A port that nobody listens on: the last one that can be named.
const UNUSED: Port = Port(u32::MAX - 1);

/// Whether the kernel of `runtime_dir` answers within `deadline`; `None` where this host cannot ask.
pub(crate) async fn answers(runtime_dir: &Path, deadline: Duration) -> Option<bool> {
    let record = Record::read(runtime_dir).ok().flatten()?;
    let config = VsockConfig { transport: VsockTransport::Multikernel, local_cid: Some(parent()) };
    let called = VsockEndpoint::new(config).ok()?.connect(address_of(record.id), deadline).await;
    verdict(called.map(drop))
}

/// What the parent of all kernels is called on that vsock.
fn parent() -> Cid {
    Cid(0)
}

fn address_of(id: InstanceId) -> Addr {
    Addr::new(Cid(u32::from(id.0)), UNUSED)
}

fn verdict(called: Result<(), Error>) -> Option<bool> {
    match called {
        Ok(()) | Err(Error::Refused { .. } | Error::Reset { .. }) => Some(true),
        Err(Error::TimedOut { .. }) => Some(false),
        // There is no such transport here, or no descriptor left to ask with.
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_a_sign_of_life_silence_is_none_and_what_cannot_be_asked_says_nothing() {
        let addr = address_of(InstanceId::try_from(7).unwrap());
        let refused = Error::Refused { addr, reason: "nobody listens".into() };
        assert_eq!(verdict(Err(refused)), Some(true));
        assert_eq!(verdict(Err(Error::TimedOut { addr, deadline_ms: 100 })), Some(false));
        let no_transport = Error::io("calling", std::io::Error::from_raw_os_error(libc::ENODEV));
        assert_eq!(verdict(Err(no_transport)), None);
    }
}
