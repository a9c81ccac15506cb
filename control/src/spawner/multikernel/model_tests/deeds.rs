//! What happens besides what we do: other programs' work, kernels that end, a file system that goes.

use proptest::prelude::*;
use tombolo_mksim::dtb::Op;
use tombolo_mksim::model::{RebootCommand, State};

use super::world::{Actor, MIB, World};

/// Names of our instances, numbered from 1.
pub(super) const NAMES: [&str; 3] = ["web", "db", "cache"];

/// Something that others do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Happening {
    /// Another program makes an instance of its own.
    Create { name: usize, cpu: usize, memory: u64 },
    /// It makes one with our name and our number.
    CreateLikeOurs { name: usize, cpu: usize },
    /// It removes one of its own.
    Remove(usize),
    /// It loads, starts, ends or unloads one of its own.
    Work { which: usize, work: usize },
    /// It writes an overlay that fails.
    Noise,
    /// It asks one of its own to halt, which hangs: the kernel's lock is held for 30 s.
    HaltHangs(usize),
    /// A kernel of ours ends, whether in good order or not.
    Ends { name: usize, panics: bool },
    /// A kernel of ours hangs, or goes on.
    Hangs { name: usize, hangs: bool },
    /// The file system is unmounted until the step is over.
    Unmounted,
    /// No transaction is over until the step is.
    Pending,
    /// Trees that are read are cut off here until the step is over.
    Torn(usize),
    /// Another program ends ours, removes it, and makes its own of that name and number.
    Replaces { name: usize, runs: bool },
}

/// What may happen between any two calls of ours: other programs keep to the lock, and to what is theirs.
pub(super) fn any_time() -> impl Strategy<Value = Happening> {
    let name = 0..NAMES.len();
    let (name2, name3) = (name.clone(), name.clone());
    prop_oneof![
        (0..3_usize, 0..8_usize, 1..5_u64).prop_map(|(name, cpu, memory)| Happening::Create {
            name,
            cpu,
            memory
        }),
        (name, 0..8_usize).prop_map(|(name, cpu)| Happening::CreateLikeOurs { name, cpu }),
        (0..6_usize).prop_map(Happening::Remove),
        (0..6_usize, 0..4_usize).prop_map(|(which, work)| Happening::Work { which, work }),
        Just(Happening::Noise),
        (0..6_usize).prop_map(Happening::HaltHangs),
        (name2, any::<bool>()).prop_map(|(name, panics)| Happening::Ends { name, panics }),
        (name3, any::<bool>()).prop_map(|(name, hangs)| Happening::Hangs { name, hangs }),
        Just(Happening::Unmounted),
        Just(Happening::Pending),
        (0..400_usize).prop_map(Happening::Torn),
    ]
}

/// What may happen while we do nothing.
pub(super) fn between_steps() -> impl Strategy<Value = Happening> {
    let replaces =
        (0..NAMES.len(), any::<bool>()).prop_map(|(name, runs)| Happening::Replaces { name, runs });
    prop_oneof![3 => any_time(), 1 => replaces]
}

impl Happening {
    pub(super) fn happen(self, world: &mut World) {
        let cpus = |index: usize| [[2, 4, 6, 1, 3, 5, 7, 0][index % 8]];
        match self {
            Self::Create { name, cpu, memory } => {
                let id = u32::try_from(20 + name).unwrap();
                let name = ["other", "spare", "successor"][name % 3];
                let cpus = cpus(cpu);
                let create = Op::Create { name, id: Some(id), memory_bytes: memory * 64 * MIB, cpus: &cpus };
                world.overlay("/instances", &[create]);
            }
            Self::CreateLikeOurs { name, cpu } => create_like_ours(world, name, &cpus(cpu)),
            Self::Remove(which) => {
                if let Some((name, _)) = another(world, which) {
                    world.overlay("/instances", &[Op::Remove(&name)]);
                }
            }
            Self::Work { which, work } => {
                if let Some((_, id)) = another(world, which) {
                    // What the kernel refuses is refused.
                    let _ = match work {
                        0 => world.load(id),
                        1 => world.reboot(RebootCommand::Boot, id).map(drop),
                        2 => world.reboot(RebootCommand::ForceHalt, id).map(drop),
                        _ => world.unload(id),
                    };
                }
            }
            Self::Noise => world.overlay("/instances/none", &[Op::CpuAdd(&[2])]),
            Self::HaltHangs(which) => {
                if let Some((_, id)) = another(world, which) {
                    world.machine.frozen(id);
                    let now_ns = world.now_ns;
                    let _ = world.machine.reboot(RebootCommand::Halt, id, now_ns);
                }
            }
            Self::Ends { name, panics } => {
                let id = number(name);
                if panics { world.machine.panicked(id) } else { world.machine.halted(id) }
            }
            Self::Hangs { name, hangs: true } => world.machine.frozen(number(name)),
            Self::Hangs { name, hangs: false } => {
                let now_ns = world.now_ns;
                world.machine.thawed(number(name), now_ns);
            }
            Self::Unmounted => world.faults.is_unmounted = true,
            Self::Pending => world.faults.is_pending = true,
            Self::Torn(bytes) => world.faults.tear = Some(("device_tree", bytes)),
            Self::Replaces { name, runs } => {
                let id = number(name);
                if world.state(NAMES[name]) == Some(State::Active) {
                    let _ = world.reboot(RebootCommand::ForceHalt, id);
                }
                let _ = world.unload(id);
                world.overlay("/instances", &[Op::Remove(NAMES[name])]);
                create_like_ours(world, name, &[2]);
                if runs && world.load(id).is_ok() {
                    let _ = world.reboot(RebootCommand::Boot, id);
                }
            }
        }
    }
}

/// The number of our instance of this name.
pub(super) fn number(name: usize) -> u32 {
    u32::try_from(name + 1).unwrap()
}

fn create_like_ours(world: &mut World, name: usize, cpus: &[u64]) {
    let id = Some(number(name));
    world.overlay("/instances", &[Op::Create { name: NAMES[name], id, memory_bytes: 128 * MIB, cpus }]);
}

/// An instance that another program made.
fn another(world: &World, which: usize) -> Option<(String, u32)> {
    let theirs: Vec<&String> =
        world.makers.iter().filter(|(_, maker)| **maker == Actor::Another).map(|(name, _)| name).collect();
    let name = *theirs.get(which % theirs.len().max(1))?;
    Some((name.clone(), world.machine.instance(name)?.id))
}
