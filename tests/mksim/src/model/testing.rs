//! A bench for the model: a machine with a pool, and a clock that goes where something happens.

use std::collections::HashMap;

use super::{
    Effect, Errno, Image, ImageFormat, LoadRequest, Machine, MachineConfig, Quirk, RebootCommand, Reply,
    State, Ticket,
};
use crate::dtb::{Op, baseline, overlay};

pub(crate) const MIB: u64 = 1 << 20;
/// Unit in which memory of running kernels moves, as by default.
pub(crate) const GRANULE: u64 = 128 * MIB;
pub(crate) const NIC: &str = "0000:03:00.0";

pub(crate) struct Bench {
    pub(crate) machine: Machine,
    pub(crate) now_ns: u64,
    pub(crate) effects: Vec<Effect>,
    results: HashMap<Ticket, Result<u64, Errno>>,
}

impl Bench {
    pub(crate) fn new(config: MachineConfig) -> Self {
        let machine = Machine::new(config);
        Self { machine, now_ns: 1, effects: Vec::new(), results: HashMap::new() }
    }

    /// CPUs 2, 4, 6, 1, 1 GiB and a NIC in the pool.
    pub(crate) fn with_pool() -> Self {
        let nic = format!("{NIC}=8086:1572").parse().unwrap();
        let mut bench = Self::new(MachineConfig { devices: vec![nic], ..MachineConfig::default() });
        let blob = baseline(&[2, 4, 6, 1], &[(8 * GRANULE, None)], &[NIC]);
        assert_eq!(bench.write("device_tree", &blob), Ok(blob.len() as u64));
        bench
    }

    /// As `with_pool`, with this quirk on or off.
    pub(crate) fn with_quirk(quirk: Quirk, on: bool) -> Self {
        let mut bench = Self::with_pool();
        bench.machine.set_quirk(quirk, on);
        bench
    }

    pub(crate) fn write(&mut self, path: &str, bytes: &[u8]) -> Result<u64, Errno> {
        let reply = self.machine.write(path, 0, bytes, self.now_ns);
        self.wait(reply)
    }

    pub(crate) fn rmdir(&mut self, path: &str) -> Result<u64, Errno> {
        let reply = self.machine.rmdir(path, self.now_ns);
        self.wait(reply)
    }

    /// Writes an overlay without waiting for it.
    pub(crate) fn begin(&mut self, fragments: &[(&str, &[Op<'_>])]) -> Result<Reply, Errno> {
        self.machine.write("overlays/new", 0, &overlay(None, fragments), self.now_ns)
    }

    /// Applies an overlay and gives what `write` came to.
    pub(crate) fn apply(&mut self, fragments: &[(&str, &[Op<'_>])]) -> Result<u64, Errno> {
        let reply = self.begin(fragments);
        self.wait(reply)
    }

    /// Applies an overlay and gives the status of its transaction.
    pub(crate) fn status_of(&mut self, fragments: &[(&str, &[Op<'_>])]) -> String {
        self.apply(fragments).unwrap();
        let id = self.last();
        self.read(&format!("overlays/tx_{id}/status"))
    }

    /// Number of the last transaction.
    pub(crate) fn last(&self) -> u64 {
        self.machine.snapshot().transactions.last().unwrap().id
    }

    pub(crate) fn read(&self, path: &str) -> String {
        String::from_utf8(self.machine.read(path).unwrap()).unwrap().trim().to_owned()
    }

    /// Lets time pass to the end of an operation.
    pub(crate) fn wait(&mut self, reply: Result<Reply, Errno>) -> Result<u64, Errno> {
        let ticket = match reply? {
            Reply::Done(value) => {
                self.collect();
                return Ok(value);
            }
            Reply::Pending(ticket) => ticket,
        };
        loop {
            self.collect();
            if let Some(result) = self.results.remove(&ticket) {
                return result;
            }
            let due_ns = self.machine.poll_timeout().expect("nothing will ever happen");
            self.pass_to(due_ns);
        }
    }

    pub(crate) fn is_over(&mut self, ticket: Ticket) -> bool {
        self.collect();
        self.results.contains_key(&ticket)
    }

    pub(crate) fn pass_to(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
        self.machine.advance(self.now_ns);
        self.collect();
    }

    pub(crate) fn pass(&mut self, ns: u64) {
        self.pass_to(self.now_ns + ns);
    }

    fn collect(&mut self) {
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Completed { ticket, result } => {
                    self.results.insert(ticket, result);
                }
                effect => self.effects.push(effect),
            }
        }
    }

    /// An instance with id 1, two CPUs (2 and 4) and one granule.
    pub(crate) fn create(&mut self, name: &str) {
        let create = Op::Create { name, id: None, memory_bytes: GRANULE, cpus: &[2, 4] };
        assert_eq!(self.status_of(&[("/instances", &[create])]), "applied");
    }

    pub(crate) fn load(&mut self, id: u32) -> Result<(), Errno> {
        let image = Image { bytes: 10 * MIB, format: ImageFormat::Elf };
        self.machine.kexec_file_load(LoadRequest::load(id, image, Some(MIB), "console=mktty0"), self.now_ns)
    }

    pub(crate) fn unload(&mut self, id: u32) -> Result<(), Errno> {
        self.machine.kexec_file_load(LoadRequest::unload(id), self.now_ns)
    }

    pub(crate) fn reboot(&mut self, command: RebootCommand, id: u32) -> Result<u64, Errno> {
        let reply = self.machine.reboot(command, id, self.now_ns);
        self.wait(reply)
    }

    /// An instance `web` that runs, with id 1.
    pub(crate) fn run(&mut self) {
        self.create("web");
        self.load(1).unwrap();
        assert_eq!(self.reboot(RebootCommand::Boot, 1), Ok(0));
        assert_eq!(self.state("web"), State::Active);
    }

    pub(crate) fn state(&self, name: &str) -> State {
        self.machine.instance(name).unwrap().state
    }

    /// CPUs on the host's side of the books, and on the kernel's.
    pub(crate) fn cpus(&self, name: &str) -> (Vec<u64>, Option<Vec<u64>>) {
        let instance = self.machine.instance(name).unwrap();
        (instance.cpus.clone(), instance.guest.as_ref().map(|guest| guest.cpus.clone()))
    }
}
