//! The model as the spawner's kernel, with faults that a test asks for, other programs in between, and books of who did what.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tombolo_mksim::dtb;
use tombolo_mksim::model::{
    Effect, Errno, Image, ImageFormat, LoadRequest, Machine, MachineConfig, RebootCommand, Reply, State,
    Ticket,
};

use crate::spawner::multikernel::calls::Command;
use crate::spawner::multikernel::clock::Clock;
use crate::spawner::multikernel::ids::InstanceId;
use crate::spawner::multikernel::interface::Interface;

pub(super) const MIB: u64 = 1 << 20;
/// Physical CPUs of the pool at first; the host has 0 (which it boots on), 3, 5 and 7 besides.
pub(super) const POOL_CPUS: [u64; 4] = [2, 4, 6, 1];
/// Memory of the pool at first, in bytes.
pub(super) const POOL_BYTES: u64 = 1 << 30;

/// What an image with a signature begins with.
pub(super) const SIGNED: &[u8] = b"signed";

/// PCI functions of the host; all but the last are in the pool at first.
pub(super) const DEVICES: [&str; 4] = ["0000:03:00.0", "0000:03:00.1", "0000:04:00.0", "0000:05:00.0"];

/// Whoever acts on the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Actor {
    /// The spawner.
    Us,
    /// Another program.
    Another,
}

/// What another program does between two calls of ours.
pub(super) type Deed = Box<dyn FnOnce(&mut World) + Send>;

/// What is wrong with the kernel's answers besides what the model's quirks say.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Nothing is there: the file system was unmounted.
    pub(super) is_unmounted: bool,
    /// The next calls that start, end, load or unload say EBUSY.
    pub(super) busy_calls: u32,
    /// Loading an image without a signature fails so.
    pub(super) load_errno: Option<i32>,
    /// `kernel.kexec_load_disabled` is 1.
    pub(super) load_is_disabled: bool,
    /// Loading one with a signature fails so.
    pub(super) load_errno_signed: Option<i32>,
    /// The next forced halts change nothing.
    pub(super) deaf_halts: u32,
    /// Writes to `overlays/new` are cut off here.
    pub(super) clip_bytes: Option<usize>,
    /// In what is written to `overlays/new` these bytes become those: an operation that the kernel does not know.
    pub(super) rename: Option<(&'static [u8], &'static [u8])>,
    /// All transactions say that they are pending.
    pub(super) is_pending: bool,
    /// Files whose path ends so are this long at most.
    pub(super) tear: Option<(&'static str, usize)>,
    /// In files whose path ends so these bytes become those.
    pub(super) garble: Option<(&'static str, &'static [u8], &'static [u8])>,
    /// Reading files whose path ends so gives the content of others.
    pub(super) swap: Option<(&'static str, &'static str)>,
}

/// The model, other programs, and what happened.
pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) now_ns: u64,
    pub(super) faults: Faults,
    /// Before and after our next write to `overlays/new`.
    pub(super) before_write: Option<Deed>,
    pub(super) after_write: Option<Deed>,
    /// By the number of the call of ours that they come before.
    pub(super) deeds: BTreeMap<u64, Deed>,
    /// So much later than the next call of ours began to wait, in nanoseconds.
    pub(super) while_waiting: Option<(u64, Deed)>,
    pub(super) calls: u64,
    /// We die at this half of a call: twice its number before it takes effect, and once more after it.
    pub(super) crash_at: Option<u64>,
    /// Who made the instance of a name.
    pub(super) makers: BTreeMap<String, Actor>,
    /// What we did and should not have.
    pub(super) violations: Vec<String>,
    /// Images that we gave to the kernel, which was not busy: whether each had a signature.
    pub(super) loads: Vec<bool>,
    /// Forced halts of ours.
    pub(super) halts: u32,
    results: HashMap<Ticket, Result<u64, Errno>>,
}

impl World {
    fn new(config: MachineConfig) -> Self {
        Self {
            machine: Machine::new(config),
            now_ns: 1,
            faults: Faults::default(),
            before_write: None,
            after_write: None,
            deeds: BTreeMap::new(),
            while_waiting: None,
            calls: 0,
            crash_at: None,
            makers: BTreeMap::new(),
            violations: Vec::new(),
            loads: Vec::new(),
            halts: 0,
            results: HashMap::new(),
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now_ns += u64::try_from(time.as_nanos()).unwrap();
        self.machine.advance(self.now_ns);
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            if let Effect::Completed { ticket, result } = effect {
                self.results.insert(ticket, result);
            }
        }
    }

    /// Lets time pass, and spawned kernels do what they are asked, until an operation is over.
    fn wait(&mut self, reply: Result<Reply, Errno>) -> Result<u64, Errno> {
        let ticket = match reply? {
            Reply::Done(value) => return Ok(value),
            Reply::Pending(ticket) => ticket,
        };
        let began_ns = self.now_ns;
        loop {
            self.collect();
            if let Some(result) = self.results.remove(&ticket) {
                return result;
            }
            let due_ns = self.machine.poll_timeout().expect("what is waited for never comes");
            if let Some((after_ns, deed)) =
                self.while_waiting.take_if(|(after_ns, _)| began_ns + *after_ns <= due_ns)
            {
                self.now_ns = self.now_ns.max(began_ns + after_ns);
                deed(self);
                continue;
            }
            self.now_ns = self.now_ns.max(due_ns);
            self.machine.advance(self.now_ns);
        }
    }

    /// Writes to a file, and notes whose instances came and went.
    pub(super) fn write(&mut self, actor: Actor, path: &str, content: &[u8]) -> Result<u64, Errno> {
        let reply = self.machine.write(path, 0, content, self.now_ns);
        let written = self.wait(reply);
        let there: Vec<String> =
            self.machine.snapshot().instances.iter().map(|instance| instance.name.clone()).collect();
        for (name, maker) in std::mem::take(&mut self.makers) {
            if there.contains(&name) {
                self.makers.insert(name, maker);
            } else if (actor, maker) == (Actor::Us, Actor::Another) {
                self.violations.push(format!("we removed `{name}` of another program"));
            }
        }
        for name in there {
            self.makers.entry(name).or_insert(actor);
        }
        written
    }

    /// An overlay of another program; what comes of it is its own affair.
    pub(super) fn overlay(&mut self, target: &str, ops: &[dtb::Op<'_>]) {
        let _ = self.write(Actor::Another, "overlays/new", &dtb::overlay(None, &[(target, ops)]));
    }

    pub(super) fn load(&mut self, id: u32) -> Result<(), Errno> {
        let image = Image { bytes: 10 * MIB, format: ImageFormat::Elf };
        self.machine.kexec_file_load(LoadRequest::load(id, image, Some(MIB), "console=mktty0"), self.now_ns)
    }

    pub(super) fn unload(&mut self, id: u32) -> Result<(), Errno> {
        self.machine.kexec_file_load(LoadRequest::unload(id), self.now_ns)
    }

    pub(super) fn reboot(&mut self, command: RebootCommand, id: u32) -> Result<u64, Errno> {
        let reply = self.machine.reboot(command, id, self.now_ns);
        self.wait(reply)
    }

    pub(super) fn state(&self, name: &str) -> Option<State> {
        self.machine.instance(name).map(|instance| instance.state)
    }

    /// What a call of ours does to an instance must be to one of ours.
    fn note_call(&mut self, what: &str, id: InstanceId) -> Result<(), Errno> {
        if let Some(instance) = self.machine.instance_by_id(u32::from(id.0)) {
            let (name, state) = (instance.name.clone(), instance.state);
            if self.makers.get(&name) == Some(&Actor::Another) {
                self.violations.push(format!("we {what} `{name}` of another program"));
            }
            if what == "unload" && state == State::Active {
                self.violations.push(format!("we unload `{name}`, which is active"));
            }
        }
        if let Some(left) = self.faults.busy_calls.checked_sub(1) {
            self.faults.busy_calls = left;
            return Err(Errno::BUSY);
        }
        Ok(())
    }
}

/// The model behind the spawner's own trait.
pub(super) struct Model {
    world: Mutex<World>,
    began: Instant,
}

/// What unwinds when we die.
pub(super) struct Crash;

/// Whether whoever acts was struck dead at it. Any other panic goes on.
pub(super) fn dies_of(act: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(()) => false,
        Err(panicked) if panicked.is::<Crash>() => true,
        Err(panicked) => resume_unwind(panicked),
    }
}

fn is_signed(image: BorrowedFd<'_>) -> io::Result<bool> {
    let mut head = [0; SIGNED.len()];
    let read = File::from(image.try_clone_to_owned()?).read_at(&mut head, 0)?;
    Ok(head[..read] == *SIGNED)
}

impl Model {
    /// A machine with a pool of [`POOL_CPUS`], [`POOL_BYTES`] and three of [`DEVICES`].
    pub(super) fn with_pool() -> Self {
        let model = Self::without_pool();
        let baseline = dtb::baseline(&POOL_CPUS, &[(POOL_BYTES, None)], &DEVICES[..3]);
        model.world().write(Actor::Another, "device_tree", &baseline).unwrap();
        model
    }

    pub(super) fn without_pool() -> Self {
        let device = |address: &&str| format!("{address}=8086:1572").parse().unwrap();
        let devices = DEVICES.iter().map(device).collect();
        let config = MachineConfig { devices, ..MachineConfig::default() };
        Self { world: Mutex::new(World::new(config)), began: Instant::now() }
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call of ours, with all that may happen around it.
    fn call<T>(&self, call: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let crash_at = {
            let mut world = self.world();
            let number = world.calls;
            world.calls += 1;
            if let Some(deed) = world.deeds.remove(&number) {
                deed(&mut world);
            }
            world.crash_at.filter(|half| half / 2 == number)
        };
        let die = || -> ! { resume_unwind(Box::new(Crash)) };
        match crash_at {
            Some(half) if half.is_multiple_of(2) => die(),
            Some(_) => {
                let _ = call(&mut self.world());
                die()
            }
            None => call(&mut self.world()),
        }
    }
}

fn error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno.raw_os_error())
}

impl Clock for Model {
    fn now(&self) -> Instant {
        self.began + Duration::from_nanos(self.world().now_ns)
    }

    fn pause(&self, time: Duration) {
        self.world().pass(time);
    }
}

impl Interface for Model {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.call(|world| {
            if world.faults.is_unmounted {
                return Err(error(Errno::NOENT));
            }
            if world.faults.is_pending && path.starts_with("overlays/") && path.ends_with("/status") {
                return Ok(b"pending\n".to_vec());
            }
            let other = match world.faults.swap {
                Some((end, other)) if path.ends_with(end) => other,
                _ => path,
            };
            let mut content = world.machine.read(other).map_err(error)?;
            if let Some((end, bytes)) = world.faults.tear
                && path.ends_with(end)
            {
                content.truncate(bytes);
            }
            if let Some((end, from, to)) = world.faults.garble
                && path.ends_with(end)
            {
                rename(&mut content, from, to);
            }
            Ok(content)
        })
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.call(|world| {
            if world.faults.is_unmounted {
                return Err(error(Errno::NOENT));
            }
            let entries = world.machine.list(path).map_err(error)?;
            Ok(entries.into_iter().map(|entry| entry.name).collect())
        })
    }

    fn read_of_host(&self, path: &str) -> io::Result<String> {
        self.call(|world| match path {
            "/proc/iomem" => Ok(world.machine.iomem()),
            "/proc/sys/kernel/kexec_load_disabled" => {
                Ok(format!("{}\n", u8::from(world.faults.load_is_disabled)))
            }
            _ => Err(error(Errno::NOENT)),
        })
    }

    fn write_once(&self, path: &str, content: &[u8]) -> io::Result<()> {
        self.call(|world| {
            if world.faults.is_unmounted {
                return Err(error(Errno::NOENT));
            }
            let mut sent = content.to_vec();
            let is_overlay = path == "overlays/new";
            if is_overlay {
                world.before_write.take().into_iter().for_each(|deed| deed(world));
                if let Some((from, to)) = world.faults.rename {
                    rename(&mut sent, from, to);
                }
                sent.truncate(world.faults.clip_bytes.unwrap_or(usize::MAX));
            }
            let written = world.write(Actor::Us, path, &sent);
            if is_overlay {
                world.after_write.take().into_iter().for_each(|deed| deed(world));
            }
            match written.map_err(error)? {
                written if written == content.len() as u64 => Ok(()),
                written => Err(io::Error::new(
                    io::ErrorKind::WriteZero,
                    format!("it took {written} of {} bytes", content.len()),
                )),
            }
        })
    }

    fn load(&self, id: InstanceId, image: BorrowedFd<'_>, _: BorrowedFd<'_>, _: &str) -> io::Result<()> {
        let is_signed = is_signed(image)?;
        self.call(|world| {
            world.note_call("load", id).map_err(error)?;
            world.loads.push(is_signed);
            let Faults { load_errno, load_errno_signed, .. } = world.faults;
            if let Some(errno) = if is_signed { load_errno_signed } else { load_errno } {
                return Err(io::Error::from_raw_os_error(errno));
            }
            world.load(u32::from(id.0)).map_err(error)
        })
    }

    fn unload(&self, id: InstanceId) -> io::Result<()> {
        self.call(|world| {
            world.note_call("unload", id).map_err(error)?;
            world.unload(u32::from(id.0)).map_err(error)
        })
    }

    fn reboot(&self, command: Command, id: InstanceId) -> io::Result<()> {
        self.call(|world| {
            let (what, command) = match command {
                Command::Boot => ("start", RebootCommand::Boot),
                Command::ForceHalt => ("end", RebootCommand::ForceHalt),
            };
            world.note_call(what, id).map_err(error)?;
            if command == RebootCommand::ForceHalt {
                world.halts += 1;
                if let Some(left) = world.faults.deaf_halts.checked_sub(1) {
                    world.faults.deaf_halts = left;
                    return Ok(());
                }
            }
            world.reboot(command, u32::from(id.0)).map(drop).map_err(error)
        })
    }
}

fn rename(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let at: VecDeque<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    at.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
}
