//! Answers the calls.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use libc::{seccomp_notif, seccomp_notif_addfd, seccomp_notif_resp};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::filter::{DMA_HEAP_IOCTL_ALLOC, WRITES};
use super::heap::Buffer;
use super::sys;
use crate::boot;
use crate::fuse::HEAP_NAME;
use crate::model::{Errno, Image, KEXEC_UNLOAD, LoadRequest, RebootCommand};
use crate::world::World;

/// Longest image or archive, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Longest command line that is read, in bytes; the model has its own limit.
const CMDLINE_BYTES_MAX: usize = 1 << 16;
/// `KEXEC_FILE_NO_INITRAMFS`.
const NO_INITRAMFS: u64 = 0x4;
/// `LINUX_REBOOT_MAGIC1` and the four of `LINUX_REBOOT_MAGIC2`.
const MAGIC1: u32 = 0xfee1_dead;
const MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
/// `CAP_SYS_BOOT`.
const CAP_SYS_BOOT: u32 = 22;

type Listener = Arc<OwnedFd>;

/// Answers calls until nobody has the filter any more. Calls that wait are answered by whoever ends the wait.
pub(crate) fn serve(world: &Arc<World>, listener: OwnedFd) {
    let listener: Listener = Arc::new(listener);
    loop {
        let mut ends = [PollFd::new(&listener, PollFlags::IN)];
        if poll(&mut ends, None).is_err() {
            continue;
        }
        if ends[0].revents().contains(PollFlags::HUP) {
            return;
        }
        // Whoever made the call may be gone by now.
        if let Ok(call) = sys::receive(listener.as_fd()) {
            answer(world, &listener, &call);
        }
    }
}

fn answer(world: &Arc<World>, listener: &Listener, call: &seccomp_notif) {
    let number = i64::from(call.data.nr);
    let result = match number {
        libc::SYS_kexec_file_load => kexec_file_load(world, listener, call),
        libc::SYS_reboot => return reboot(world, listener, call),
        libc::SYS_ioctl if call.data.args[1] as u32 == DMA_HEAP_IOCTL_ALLOC => {
            match heap_allocate(world, listener, call) {
                Some(result) => result,
                None => return let_through(listener, call.id),
            }
        }
        _ if WRITES.contains(&number) => {
            let descriptor = || foreign_fd(call.pid, call.data.args[0]).ok();
            match world.rings.refuse(descriptor) {
                true => Err(Errno::NOSPC),
                false => return let_through(listener, call.id),
            }
        }
        _ => Err(Errno::NOSYS),
    };
    reply(listener, call.id, result);
}

fn reply(listener: &Listener, id: u64, result: Result<u64, Errno>) {
    let (val, error) = match result {
        Ok(value) => (i64::try_from(value).unwrap_or(0), 0),
        Err(errno) => (0, -errno.raw_os_error()),
    };
    // Whoever made the call may be gone by now.
    let _ = sys::answer(listener.as_fd(), seccomp_notif_resp { id, val, error, flags: 0 });
}

fn let_through(listener: &Listener, id: u64) {
    let flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(1);
    let _ = sys::answer(listener.as_fd(), seccomp_notif_resp { id, val: 0, error: 0, flags });
}

fn kexec_file_load(world: &Arc<World>, listener: &Listener, call: &seccomp_notif) -> Result<u64, Errno> {
    let [kernel_fd, initrd_fd, cmdline_len, cmdline_at, flags, _] = call.data.args;
    check_capability(call.pid)?;
    let mut request = LoadRequest { image: None, initrd_bytes: None, cmdline: String::new(), flags };
    if flags & KEXEC_UNLOAD != 0 {
        return world.act(|machine, now_ns| machine.kexec_file_load(request, now_ns)).map(|()| 0);
    }
    let image = read_file(&foreign_fd(call.pid, kernel_fd)?)?;
    let initrd = match flags & NO_INITRAMFS {
        0 => Some(read_file(&foreign_fd(call.pid, initrd_fd)?)?),
        _ => None,
    };
    request.cmdline = cmdline(call.pid, cmdline_at, cmdline_len)?;
    // What was read is only worth something if its process was there all the time.
    if !sys::is_valid(listener.as_fd(), call.id) {
        return Err(Errno::SRCH);
    }
    request.image = Some(Image::of(&image, image.len() as u64));
    request.initrd_bytes = initrd.as_ref().map(|initrd| initrd.len() as u64);
    let id = crate::model::load_id(flags);
    world.act(|machine, now_ns| {
        machine.kexec_file_load(request, now_ns)?;
        // Under the same lock: nobody can boot it before it is in place.
        boot::stage(&world.dir, id, &image, initrd.as_deref()).map_err(|_| Errno::NOMEM)?;
        Ok(0)
    })
}

fn cmdline(pid: u32, at: u64, len: u64) -> Result<String, Errno> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len == 0 {
        return Ok(String::new());
    }
    if len > CMDLINE_BYTES_MAX {
        return Err(Errno::INVAL);
    }
    let mut bytes = read_memory(pid, at, len)?;
    if bytes.pop() != Some(0) {
        return Err(Errno::INVAL);
    }
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    String::from_utf8(bytes).map_err(|_| Errno::INVAL)
}

fn reboot(world: &Arc<World>, listener: &Listener, call: &seccomp_notif) {
    let [magic1, magic2, command, argument, ..] = call.data.args;
    let command = RebootCommand::of(command as u32);
    let known = magic1 as u32 == MAGIC1 && MAGIC2.contains(&(magic2 as u32));
    let id = || {
        check_capability(call.pid)?;
        if !known {
            return Err(Errno::INVAL);
        }
        if matches!(command, RebootCommand::Host(_)) {
            return Ok(0);
        }
        let bytes = read_memory(call.pid, argument, 4)?;
        let id = i32::from_ne_bytes(bytes.try_into().map_err(|_| Errno::FAULT)?);
        u32::try_from(id).map_err(|_| Errno::INVAL)
    };
    let id = match id() {
        Ok(id) => id,
        Err(errno) => return reply(listener, call.id, Err(errno)),
    };
    let (listener, call_id) = (Arc::clone(listener), call.id);
    world.act_then(
        |machine, now_ns| machine.reboot(command, id, now_ns),
        Box::new(move |result| reply(&listener, call_id, result)),
    );
}

/// Answers an allocation on `/dev/dma_heap/multikernel`; `None` if it is of another heap.
fn heap_allocate(
    world: &Arc<World>,
    listener: &Listener,
    call: &seccomp_notif,
) -> Option<Result<u64, Errno>> {
    let [fd, _, at, ..] = call.data.args;
    let target = std::fs::read_link(format!("/proc/{}/fd/{fd}", call.pid)).ok()?;
    let is_ours = target.ends_with("dma_heap/multikernel") || target.ends_with(HEAP_NAME);
    is_ours.then(|| allocate(world, listener, call, at))
}

/// `struct dma_heap_allocation_data`: u64 len, u32 fd (out), u32 fd_flags, u64 heap_flags.
fn allocate(world: &Arc<World>, listener: &Listener, call: &seccomp_notif, at: u64) -> Result<u64, Errno> {
    let data = read_memory(call.pid, at, 24)?;
    let word =
        |from: usize| data.get(from..from + 4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    let len =
        data.get(..8).and_then(|len| len.try_into().ok()).map(u64::from_ne_bytes).ok_or(Errno::FAULT)?;
    let (fd, fd_flags) = (word(8).ok_or(Errno::FAULT)?, word(12).ok_or(Errno::FAULT)?);
    let known_flags = (libc::O_CLOEXEC | libc::O_ACCMODE) as u32;
    if fd != 0 || fd_flags & !known_flags != 0 || data[16..].iter().any(|byte| *byte != 0) {
        return Err(Errno::INVAL);
    }
    let range = world.act(|machine, _| machine.heap_allocate(len))?;
    let give_back = |errno: Errno| {
        world.act(|machine, _| machine.heap_free(range));
        errno
    };
    let (buffer, given) = Buffer::allocate(range.size).map_err(|error| give_back(errno_of(&error)))?;
    let number = sys::add_fd(
        listener.as_fd(),
        seccomp_notif_addfd {
            id: call.id,
            flags: 0,
            srcfd: given.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: fd_flags & libc::O_CLOEXEC as u32,
        },
    );
    let number = number.map_err(|error| give_back(errno_of(&error)))?;
    write_memory(call.pid, at + 8, &number.to_ne_bytes()).map_err(give_back)?;
    world.log(&format!("heap: {} bytes at {:#x}", range.size, range.base));
    // Its process has it by now, so that it is in use.
    world.keep_heap(range, Arc::new(buffer));
    drop(given);
    Ok(0)
}

/// A copy of a descriptor of another process: EBADF if it has none of that number.
fn foreign_fd(pid: u32, fd: u64) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(fd as u32).map_err(|_| Errno::BADF)?;
    let pidfd = pidfd_open(leader(pid)?, PidfdFlags::empty())?;
    pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty())
}

/// The process of a thread.
fn leader(pid: u32) -> Result<rustix::process::Pid, Errno> {
    let leader = status_field(pid, "Tgid:").and_then(|text| text.parse().ok());
    leader.and_then(rustix::process::Pid::from_raw).ok_or(Errno::SRCH)
}

fn check_capability(pid: u32) -> Result<(), Errno> {
    let effective = status_field(pid, "CapEff:").and_then(|text| u64::from_str_radix(&text, 16).ok());
    let has = effective.is_some_and(|effective| effective >> CAP_SYS_BOOT & 1 == 1);
    if has { Ok(()) } else { Err(Errno::PERM) }
}

fn status_field(pid: u32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned())
}

/// All of a file, from its start, wherever its offset is.
fn read_file(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let file = File::from(file.try_clone().map_err(|error| errno_of(&error))?);
    let meta = file.metadata().map_err(|error| errno_of(&error))?;
    if !meta.is_file() {
        return Err(Errno::INVAL);
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(Errno::FBIG);
    }
    let mut bytes = vec![0; usize::try_from(meta.len()).map_err(|_| Errno::FBIG)?];
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) => return Err(errno_of(&error)),
        }
    }
    bytes.truncate(done);
    if bytes.is_empty() { Err(Errno::INVAL) } else { Ok(bytes) }
}

fn read_memory(pid: u32, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; len];
    let remote = RemoteIoVec { base: usize::try_from(at).map_err(|_| Errno::FAULT)?, len };
    let read = process_vm_readv(nix_pid(pid)?, &mut [IoSliceMut::new(&mut bytes)], &[remote]);
    if read == Ok(len) { Ok(bytes) } else { Err(Errno::FAULT) }
}

fn write_memory(pid: u32, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let remote = RemoteIoVec { base: usize::try_from(at).map_err(|_| Errno::FAULT)?, len: bytes.len() };
    let written = process_vm_writev(nix_pid(pid)?, &[IoSlice::new(bytes)], &[remote]);
    if written == Ok(bytes.len()) { Ok(()) } else { Err(Errno::FAULT) }
}

fn nix_pid(pid: u32) -> Result<Pid, Errno> {
    i32::try_from(pid).map(Pid::from_raw).map_err(|_| Errno::SRCH)
}

fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
