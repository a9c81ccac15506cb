//! What all threads share: the model behind one lock, its clock, and the doing of what it asks for.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::boot::{BootOrder, Kernel, Rings};
use crate::calls::Buffer;
use crate::model::{Effect, Errno, Machine, Range, Reply, Resource, Ticket};
use crate::terminals::Terminals;
use crate::watchers::Watchers;

/// Who is told when an operation that waited is over.
pub(crate) type Waiter = Box<dyn FnOnce(Result<u64, Errno>) + Send>;

/// What all threads share.
pub(crate) struct World {
    state: Mutex<State>,
    /// Rings when the model's next deadline may have changed.
    changed: Condvar,
    started: Instant,
    clock_speed: f64,
    /// Where everything is: control socket, links, images, logs.
    pub(crate) dir: PathBuf,
    /// What kernels have as `/dev/mmapper` while the DMA heap has no buffer.
    share: Option<PathBuf>,
    /// What `/dev/mktty` serves.
    pub(crate) terminals: Terminals,
    /// Who has files open that change.
    pub(crate) watchers: Watchers,
    /// What answers writes to kernels that take none.
    pub(crate) rings: Rings,
    log: Mutex<Option<File>>,
}

struct State {
    machine: Machine,
    waiters: HashMap<Ticket, Waiter>,
    kernels: HashMap<u32, Arc<Kernel>>,
    /// Buffers of the DMA heap: where the pool says they are, and the memory.
    heap: Vec<(Range, Arc<Buffer>)>,
}

impl World {
    pub(crate) fn new(
        machine: Machine,
        dir: &Path,
        share: Option<PathBuf>,
        clock_speed: f64,
        rings: Rings,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                machine,
                waiters: HashMap::new(),
                kernels: HashMap::new(),
                heap: Vec::new(),
            }),
            changed: Condvar::new(),
            started: Instant::now(),
            clock_speed,
            dir: dir.to_owned(),
            share,
            terminals: Terminals::default(),
            watchers: Watchers::default(),
            rings,
            log: Mutex::new(File::create(dir.join("dmesg")).ok()),
        })
    }

    /// Looks at the model.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Machine) -> R) -> R {
        look(&self.lock().machine)
    }

    /// Does something to the model, and then what it asks for.
    pub(crate) fn act<R>(self: &Arc<Self>, act: impl FnOnce(&mut Machine, u64) -> R) -> R {
        let mut state = self.lock();
        let now_ns = self.now_ns();
        let result = act(&mut state.machine, now_ns);
        let over = self.carry_out(&mut state);
        drop(state);
        self.finish(over);
        result
    }

    /// Does something that may wait; `waiter` is told of its end, at once or later, by some thread.
    pub(crate) fn act_then(
        self: &Arc<Self>,
        act: impl FnOnce(&mut Machine, u64) -> Result<Reply, Errno>,
        waiter: Waiter,
    ) {
        let mut state = self.lock();
        let now_ns = self.now_ns();
        let reply = act(&mut state.machine, now_ns);
        let mut over = Vec::new();
        match reply {
            Ok(Reply::Pending(ticket)) => {
                state.waiters.insert(ticket, waiter);
            }
            Ok(Reply::Done(value)) => over.push((waiter, Ok(value))),
            Err(errno) => over.push((waiter, Err(errno))),
        }
        // What was asked for is done before anybody hears that it is.
        let mut also_over = self.carry_out(&mut state);
        drop(state);
        also_over.append(&mut over);
        self.finish(also_over);
    }

    fn finish(&self, over: Vec<(Waiter, Result<u64, Errno>)>) {
        over.into_iter().for_each(|(waiter, result)| waiter(result));
        self.changed.notify_all();
        self.watchers.wake();
    }

    fn carry_out(self: &Arc<Self>, state: &mut State) -> Vec<(Waiter, Result<u64, Errno>)> {
        let mut over = Vec::new();
        while let Some(effect) = state.machine.poll_effect() {
            match effect {
                Effect::Completed { ticket, result } => {
                    over.extend(state.waiters.remove(&ticket).map(|waiter| (waiter, result)));
                }
                Effect::Log(line) => self.log(&line),
                Effect::Boot { id, name, memory_bytes, cmdline, .. } => {
                    let heap = state.heap.last().map(|(_, file)| Arc::clone(file));
                    let heap = heap.or_else(|| self.shared_file());
                    let order = BootOrder { id, name, memory_bytes, cmdline, heap };
                    match Kernel::boot(self, order) {
                        Ok(kernel) => {
                            state.kernels.insert(id, kernel);
                        }
                        Err(error) => {
                            self.log(&format!("instance {id}: cannot boot: {error:#}"));
                            state.machine.halted(id);
                        }
                    }
                }
                Effect::Kill { id } => {
                    if let Some(kernel) = state.kernels.remove(&id) {
                        kernel.kill();
                    }
                }
                Effect::HotAdd { id, resource } => self.hotplug(state, id, &resource, true),
                Effect::HotRemove { id, resource } => self.hotplug(state, id, &resource, false),
                Effect::Unloaded { id } => crate::boot::discard(&self.dir, id),
            }
        }
        over
    }

    /// A kernel here has one CPU and no hot-plug of devices; its memory can be changed.
    fn hotplug(&self, state: &State, id: u32, resource: &Resource, add: bool) {
        self.log(&format!("instance {id}: {resource:?} is {}", if add { "online" } else { "offline" }));
        if let (Resource::Memory { size, .. }, Some(kernel)) = (resource, state.kernels.get(&id)) {
            kernel.change_memory(*size, add);
        }
    }

    /// A kernel is gone: by itself, if it is still the one that the instance runs.
    pub(crate) fn ended(self: &Arc<Self>, kernel: &Arc<Kernel>, panicked: bool) {
        let mut state = self.lock();
        let id = kernel.id;
        if !state.kernels.get(&id).is_some_and(|known| Arc::ptr_eq(known, kernel)) {
            return;
        }
        state.kernels.remove(&id);
        match panicked {
            true => state.machine.panicked(id),
            false => state.machine.halted(id),
        }
        let over = self.carry_out(&mut state);
        drop(state);
        self.finish(over);
    }

    /// The kernel that an instance runs.
    pub(crate) fn kernel(&self, id: u32) -> Option<Arc<Kernel>> {
        self.lock().kernels.get(&id).cloned()
    }

    /// The file that stands for what kernels share, if it is there.
    fn shared_file(&self) -> Option<Arc<Buffer>> {
        let path = self.share.as_ref()?;
        match File::options().read(true).write(true).open(path) {
            Ok(file) => Some(Arc::new(Buffer::of_file(file))),
            Err(error) => {
                self.log(&format!("cannot share {}: {error}", path.display()));
                None
            }
        }
    }

    /// Notes a buffer of the DMA heap: what kernels booted from now on see as `/dev/mmapper`.
    pub(crate) fn keep_heap(&self, range: Range, buffer: Arc<Buffer>) {
        self.lock().heap.push((range, buffer));
    }

    /// Gives buffers of the DMA heap back that nobody uses any more.
    pub(crate) fn release_heap(&self) {
        let mut state = self.lock();
        let State { machine, heap, .. } = &mut *state;
        heap.retain(|(range, buffer)| {
            // A kernel that is being booted holds what it will open.
            let released = Arc::strong_count(buffer) == 1 && buffer.is_unused();
            if released {
                machine.heap_free(*range);
                self.log(&format!("heap: {} bytes at {:#x} are free again", range.size, range.base));
            }
            !released
        });
    }

    /// Ends all kernels.
    pub(crate) fn kill_all(&self) {
        let kernels: Vec<_> = self.lock().kernels.drain().collect();
        kernels.iter().for_each(|(_, kernel)| kernel.kill());
    }

    /// Lets the model's time pass. Never returns.
    pub(crate) fn keep_time(self: &Arc<Self>) {
        let mut state = self.lock();
        loop {
            let now_ns = self.now_ns();
            state.machine.advance(now_ns);
            let over = self.carry_out(&mut state);
            if !over.is_empty() {
                drop(state);
                over.into_iter().for_each(|(waiter, result)| waiter(result));
                state = self.lock();
            }
            let wait_ns = state.machine.poll_timeout().map(|due_ns| due_ns.saturating_sub(self.now_ns()));
            let wait = wait_ns.map_or(IDLE, |ns| self.real(ns).clamp(Duration::from_micros(100), IDLE));
            state = match self.changed.wait_timeout(state, wait) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn now_ns(&self) -> u64 {
        // Saturates after centuries.
        (self.started.elapsed().as_nanos() as f64 * self.clock_speed) as u64
    }

    fn real(&self, virtual_ns: u64) -> Duration {
        Duration::from_nanos((virtual_ns as f64 / self.clock_speed) as u64)
    }

    /// Adds a line to the kernel log, `dmesg` in the folder.
    pub(crate) fn log(&self, line: &str) {
        let at = self.started.elapsed().as_secs_f64();
        if let Some(file) = self.log.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            // A log that cannot be written is not worth failing for.
            let _ = writeln!(file, "[{at:12.6}] {line}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long the clock sleeps at most.
const IDLE: Duration = Duration::from_secs(3600);
