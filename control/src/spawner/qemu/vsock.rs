//! AF_VSOCK between a machine and this host, through a device that is a program of its own: vhost-device-vsock of rust-vmm.
//!
//! ```text
//! program of this host ── vsock.sock, vsock.sock_PORT ── device ── queues in the machine's memory ── AF_VSOCK, program inside
//! ```
//!
//! Each machine has a device of its own. One that serves several can pass between them, too, but cuts what is long and can be
//! stopped by one that is down: between kernels there is Tombolo's fabric.

use tombolo_transport::Cid;

use crate::keeper::BackendJob;

/// The socket at which the device listens for its machine, relative to the runtime folder.
pub(super) const BACKEND: &str = "vsock-backend.sock";
/// The socket that programs of this host dial, relative to the runtime folder; theirs at [`HYBRID`]`_PORT` are dialled from inside.
pub(super) const HYBRID: &str = "vsock.sock";
/// The modules that a kernel needs for it.
pub(super) const MODULES: [&str; 4] =
    ["virtio_pci", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];
/// The options that give a machine the device. Its memory has to be shared, as [`super::memory`] makes it.
pub(super) const OPTIONS: [&str; 4] =
    ["-chardev", "socket,id=vsock,fd={backend}", "-device", "vhost-user-vsock-pci,chardev=vsock"];

/// The device of the machine with this CID, run by `program`.
pub(super) fn backend(program: &str, cid: Cid) -> BackendJob {
    // Names without a folder: they need no quoting, and fit the address of a socket however deep the runtime folder is.
    let machine = format!("guest-cid={cid},socket={BACKEND},uds-path={HYBRID}");
    BackendJob { argv: vec![program.to_owned(), "--vm".to_owned(), machine], socket: BACKEND.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_has_the_cid_of_its_machine_and_listens_where_the_keeper_looks() {
        let job = backend("/opt/a device", Cid(7));
        let machine = "guest-cid=7,socket=vsock-backend.sock,uds-path=vsock.sock";
        assert_eq!(job.argv, ["/opt/a device", "--vm", machine]);
        assert_eq!(job.socket, "vsock-backend.sock");
    }

    #[test]
    fn every_file_of_the_device_goes_with_those_of_its_machine() {
        assert!([BACKEND, HYBRID].iter().all(|name| super::super::FILES.contains(name)));
    }
}
