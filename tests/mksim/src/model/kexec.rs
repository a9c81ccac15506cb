//! The two system calls: `kexec_file_load` and `reboot`.

use super::guest::{Guest, Message, MessageOp, Resource};
use super::instance::{Loaded, State};
use super::machine::{Effect, Machine, Reply};
use super::quirk::Quirk;
use super::work::Halt;
use super::{Errno, HALT_TIMEOUT_NS};

/// `KEXEC_FILE_UNLOAD`.
pub const KEXEC_UNLOAD: u64 = 0x1;
/// The load is of an instance, whose id is in bits 5 to 15.
pub const KEXEC_MULTIKERNEL: u64 = 0x10;
const ID_MASK: u64 = 0xffe0;
const ID_SHIFT: u32 = 5;

/// `COMMAND_LINE_SIZE` of x86, in bytes.
const CMDLINE_BYTES_MAX: usize = 2048;

/// What `kexec_file_load` is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadRequest {
    /// The kernel; `None` to unload.
    pub image: Option<Image>,
    /// Length of the initial archive, in bytes, if there is one.
    pub initrd_bytes: Option<u64>,
    /// Without the NUL.
    pub cmdline: String,
    /// As in the system call: `KEXEC_*` and the id.
    pub flags: u64,
}

impl LoadRequest {
    /// Loads a kernel into this instance.
    pub fn load(id: u32, image: Image, initrd_bytes: Option<u64>, cmdline: impl Into<String>) -> Self {
        let flags = KEXEC_MULTIKERNEL | u64::from(id) << 5;
        Self { image: Some(image), initrd_bytes, cmdline: cmdline.into(), flags }
    }

    /// Unloads what is in this instance.
    pub fn unload(id: u32) -> Self {
        let flags = KEXEC_UNLOAD | KEXEC_MULTIKERNEL | u64::from(id) << 5;
        Self { image: None, initrd_bytes: None, cmdline: String::new(), flags }
    }
}

/// A kernel image as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// In bytes.
    pub bytes: u64,
    /// What it is by content.
    pub format: ImageFormat,
}

/// What a kernel image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// What is normally loaded.
    Elf,
    /// The newest kernel can load it; the stand-in cannot boot it.
    BzImage,
    /// ENOEXEC.
    Unknown,
}

impl Image {
    /// Looks at an image. Only the first 1 KiB matter.
    pub fn of(head: &[u8], bytes: u64) -> Self {
        let format = if head.starts_with(b"\x7fELF") {
            ImageFormat::Elf
        } else if head.get(0x202..0x206) == Some(b"HdrS") {
            ImageFormat::BzImage
        } else {
            ImageFormat::Unknown
        };
        Self { bytes, format }
    }
}

/// The instance that the flags of `kexec_file_load` name; 0 for none.
pub(crate) fn load_id(flags: u64) -> u32 {
    u32::try_from((flags & ID_MASK) >> ID_SHIFT).unwrap_or(0)
}

/// What `reboot` is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RebootCommand {
    /// Run what is loaded.
    Boot,
    /// Ask the spawned kernel to halt.
    Halt,
    /// Halt it without asking.
    ForceHalt,
    /// Anything that is about the host.
    Host(u32),
}

impl RebootCommand {
    /// The command of this number.
    pub fn of(number: u32) -> Self {
        match number {
            0x4d4b_4c49 => Self::Boot,
            0x4d4b_4c48 => Self::Halt,
            0x4d4b_4c46 => Self::ForceHalt,
            other => Self::Host(other),
        }
    }
}

impl Machine {
    /// `kexec_file_load(2)`: loads or unloads what an instance boots.
    ///
    /// # Errors
    /// EPERM for a load that is not an instance's (this host's own kernel), EINVAL, ENOENT, EBUSY, ENOEXEC, ENOMEM.
    pub fn kexec_file_load(&mut self, request: LoadRequest, now_ns: u64) -> Result<(), Errno> {
        self.advance(now_ns);
        if request.flags & KEXEC_MULTIKERNEL == 0 {
            return Err(Errno::PERM);
        }
        let id = load_id(request.flags);
        let refuses_active = !self.has(Quirk::UnloadOfActive);
        let locked = self.is_kexec_locked();
        if id == 0 {
            return Err(Errno::INVAL);
        }
        if locked {
            return Err(Errno::BUSY);
        }
        let instance = self.instance_by_id_mut(id).ok_or(Errno::NOENT)?;
        if request.flags & KEXEC_UNLOAD != 0 {
            if refuses_active && instance.guest.is_some() {
                return Err(Errno::BUSY);
            }
            instance.loaded.take().ok_or(Errno::NOENT)?;
            instance.state = State::Ready;
            self.effect(Effect::Unloaded { id });
            return Ok(());
        }
        if instance.loaded.is_some() {
            return Err(Errno::BUSY);
        }
        let image = request.image.ok_or(Errno::BADF)?;
        if image.format == ImageFormat::Unknown {
            return Err(Errno::NOEXEC);
        }
        if request.cmdline.len() >= CMDLINE_BYTES_MAX {
            return Err(Errno::INVAL);
        }
        let needed = image.bytes.saturating_add(request.initrd_bytes.unwrap_or(0));
        if instance.regions.first().is_none_or(|region| region.range.size < needed) {
            return Err(Errno::NOMEM);
        }
        instance.state = State::Loaded;
        instance.loaded = Some(Loaded {
            image_bytes: image.bytes,
            initrd_bytes: request.initrd_bytes,
            cmdline: request.cmdline,
        });
        // The whole command line goes to the host's log: nothing secret belongs on it.
        let cmdline = instance.loaded.as_ref().map(|loaded| loaded.cmdline.clone()).unwrap_or_default();
        self.log(format!("kexec_file: instance {id}: loaded, command line: {cmdline}"));
        Ok(())
    }

    /// `reboot(2)`.
    ///
    /// # Errors
    /// ENOENT, EINVAL, EBUSY, ETIMEDOUT; EPERM for a command about the host.
    pub fn reboot(&mut self, command: RebootCommand, id: u32, now_ns: u64) -> Result<Reply, Errno> {
        self.advance(now_ns);
        if let RebootCommand::Host(number) = command {
            if self.has(Quirk::HostRebootRefused) {
                self.log(format!("reboot({number:#x}) of the host is refused"));
                return Err(Errno::PERM);
            }
            self.restart_host();
            return Ok(Reply::Done(0));
        }
        if self.is_kexec_locked() {
            return Err(Errno::BUSY);
        }
        let state = self.instance_by_id(id).ok_or(Errno::NOENT)?.state;
        match command {
            RebootCommand::Boot => self.boot(id).map(|()| Reply::Done(0)),
            RebootCommand::Halt if state == State::Active => self.halt(id, now_ns),
            RebootCommand::ForceHalt if matches!(state, State::Active | State::Loaded) => {
                let settles = !self.has(Quirk::FailedAndEmptyNeverSet);
                let ended = if settles { State::Failed } else { State::Loaded };
                if self.has(Quirk::ForceMissesACpu) && state == State::Active {
                    // It runs on: whoever looks is told otherwise.
                    self.instance_by_id_mut(id).into_iter().for_each(|instance| instance.state = ended);
                } else {
                    self.effect(Effect::Kill { id });
                    self.stopped(id, ended);
                }
                Ok(Reply::Done(0))
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn boot(&mut self, id: u32) -> Result<(), Errno> {
        let instance = self.instance_by_id_mut(id).ok_or(Errno::NOENT)?;
        let (Some(loaded), false) = (&instance.loaded, instance.cpus.is_empty()) else {
            return Err(Errno::INVAL);
        };
        // A kernel that went without a notice left its state at active; its CPUs are parked, so it may be booted.
        if instance.guest.is_some() || !matches!(instance.state, State::Loaded | State::Active) {
            return Err(Errno::BUSY);
        }
        instance.state = State::Active;
        let memory: Vec<_> = instance.regions.iter().map(|region| region.range).collect();
        let devices = instance.devices.iter().map(|device| device.pci_id.clone()).collect();
        instance.guest = Some(Guest::new(instance.cpus.clone(), &memory, devices));
        let boot = Effect::Boot {
            id,
            name: instance.name.clone(),
            memory_bytes: instance.memory_bytes(),
            cpus: instance.cpus.clone(),
            cmdline: loaded.cmdline.clone(),
        };
        self.effect(boot);
        Ok(())
    }

    fn halt(&mut self, id: u32, now_ns: u64) -> Result<Reply, Errno> {
        self.messages += 1;
        let message =
            Message { op: MessageOp::Shutdown, resource: Resource::Kernel, sequence: self.messages };
        if let Some(guest) = self.instance_by_id_mut(id).and_then(|instance| instance.guest.as_mut()) {
            guest.receive(message, now_ns);
        }
        let bounded = self.has(Quirk::HaltTimesOut);
        let deadline_ns = if bounded { now_ns.saturating_add(HALT_TIMEOUT_NS) } else { u64::MAX };
        let ticket = self.ticket();
        self.halts.push(Halt { id, ticket, deadline_ns });
        self.reply(ticket)
    }
}
