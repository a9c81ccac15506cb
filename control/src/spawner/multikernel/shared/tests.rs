//! Shared memory on hosts that answer in every way that was read of, and in some that were not.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use tempfile::TempDir;
use tombolo_transport::pool::{Geometry, Member, Pool};

use super::made::Holder;
use super::*;

const GEOMETRY: Geometry = Geometry { members_max: 2, extent_bytes: 1 << 20, black_box_records: 16 };
const CHUNK: &str = "140000000-17fffffff : Multikernel Memory Pool\n";
const HEAP: &str = "/dev/dma_heap/multikernel";

/// A host of which a test says how it answers. Its buffers are files without a name.
struct Fake {
    boot_id: RefCell<String>,
    /// Buffers that are there, by their addresses, and who holds them.
    buffers: RefCell<Vec<(u64, File, Option<Holder>)>>,
    /// How many were ever given.
    given: Cell<u32>,
    /// Whether the kernel lists its buffers.
    lists: Cell<bool>,
    /// How many others get a buffer at the same moment as we do, one at a time.
    others: Cell<u32>,
    refuses: Cell<Option<i32>>,
    cannot_note: Cell<bool>,
    dir: TempDir,
    mounts: RefCell<String>,
}

impl Fake {
    fn new() -> Self {
        Self {
            boot_id: RefCell::new("a".into()),
            buffers: RefCell::default(),
            given: Cell::new(0),
            lists: Cell::new(true),
            others: Cell::new(0),
            refuses: Cell::new(None),
            cannot_note: Cell::new(false),
            dir: TempDir::new().unwrap(),
            mounts: RefCell::default(),
        }
    }

    fn take(&self, pool: &str, in_use: bool) -> Result<Option<Shared>, Refusal> {
        #[derive(serde::Deserialize)]
        struct Text {
            pool: Option<SharedPool>,
        }
        let pool = toml::from_str::<Text>(pool).unwrap().pool;
        let file = self.dir.path().join("pool");
        let bytes = GEOMETRY.pool_bytes().unwrap();
        take(self, self.dir.path(), Wish { pool: pool.as_ref(), file: &file, bytes, in_use })
    }

    fn held_count(&self) -> usize {
        self.buffers.borrow().iter().filter(|(_, _, holder)| holder.is_some()).count()
    }

    fn noted(&self) -> Option<Made> {
        Made::read(self.dir.path()).unwrap()
    }
}

impl Host for Fake {
    fn boot_id(&self) -> io::Result<String> {
        Ok(self.boot_id.borrow().clone())
    }

    fn iomem(&self) -> io::Result<String> {
        let mut text = CHUNK.to_owned();
        if self.lists.get() {
            for (at, file, _) in &*self.buffers.borrow() {
                let last = at + file.metadata()?.len() - 1;
                text.push_str(&format!("  {at:x}-{last:x} : daxfs\n"));
            }
        }
        text.push_str("600000000-60fffffff : Reserved\n");
        Ok(text)
    }

    fn mounts(&self) -> io::Result<String> {
        Ok(self.mounts.borrow().clone())
    }

    fn allocate(&self, heap: &Path, bytes: u64) -> io::Result<OwnedFd> {
        assert_eq!(heap, Path::new(HEAP));
        if let Some(errno) = self.refuses.get() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let mut buffers = self.buffers.borrow_mut();
        // Ours of before was freed when its last descriptor was closed.
        buffers.retain(|(.., holder)| holder.is_some());
        let rivals = u32::from(self.others.get() > 0);
        self.others.set(self.others.get() - rivals);
        for _ in 0..=rivals {
            self.given.set(self.given.get() + 1);
            let file = tempfile::tempfile()?;
            file.set_len(bytes)?;
            let at = 0x1_4000_0000 + u64::from(self.given.get()) * 0x100_0000;
            buffers.push((at, file, None));
        }
        buffers.last().unwrap().1.try_clone().map(OwnedFd::from)
    }

    fn hold(&self, memory: OwnedFd, note: &mut dyn FnMut(Holder) -> io::Result<()>) -> io::Result<()> {
        let holder = Holder { pid: 40 + i32::try_from(self.given.get()).unwrap(), start_ticks: 1 };
        if self.cannot_note.get() {
            return Err(io::Error::other("the disk is full"));
        }
        note(holder)?;
        drop(memory);
        self.buffers.borrow_mut().last_mut().unwrap().2 = Some(holder);
        Ok(())
    }

    fn held(&self, holder: Holder) -> io::Result<OwnedFd> {
        let buffers = self.buffers.borrow();
        let found = buffers.iter().find(|(.., of)| *of == Some(holder));
        found.ok_or(io::ErrorKind::NotFound)?.1.try_clone().map(OwnedFd::from)
    }

    fn let_go(&self, holder: Holder) -> io::Result<()> {
        self.buffers.borrow_mut().retain(|(.., of)| *of != Some(holder));
        Ok(())
    }
}

fn not_had(outcome: Result<Option<Shared>, Refusal>) -> String {
    match outcome {
        Err(Refusal::NotHad(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn buffer_is_taken_and_kernels_are_told_its_address() {
    let host = Fake::new();
    let shared = host.take("pool = \"auto\"", false).unwrap().unwrap();
    assert!(shared.is_new && !shared.can_be_locked());
    let bytes = GEOMETRY.pool_bytes().unwrap();
    let wanted = SharedPool::Mem { phys: 0x1_4100_0000, size: bytes, device: "/dev/mem".into() };
    assert_eq!(shared.inside, wanted);
    assert_eq!(host.noted().unwrap().kind(), ("heap", Some(0x1_4100_0000)));
}

#[test]
fn everything_is_in_a_buffer_before_a_kernel_can_see_it() {
    let host = Fake::new();
    let first = host.take("pool = \"auto\"", false).unwrap().unwrap();
    let pool = Pool::format(first.source().unwrap(), GEOMETRY).unwrap();
    let again = host.take("pool = \"auto\"", true).unwrap().unwrap();
    let kernel = Pool::attach(again.source().unwrap(), Member(1)).unwrap();
    assert_eq!((kernel.id(), kernel.len_bytes()), (pool.id(), first.bytes));
}

#[test]
fn next_daemon_finds_the_same_memory_and_makes_no_other_while_kernels_use_it() {
    let host = Fake::new();
    host.take("pool = \"auto\"", false).unwrap().unwrap();
    let noted = host.noted().unwrap();
    for settings in ["pool = \"auto\"", "pool = { path = \"/p\" }", ""] {
        let found = host.take(settings, true).unwrap().unwrap();
        assert!(!found.is_new, "{settings}: it is attached to, not formatted");
        assert_eq!((host.noted().unwrap(), host.given.get()), (noted.clone(), 1));
    }
    let found = host.take("pool = { heap = {} }", false).unwrap().unwrap();
    assert!(found.is_new && host.given.get() == 1, "the same memory serves again");
    assert!(host.take("", false).unwrap().is_none());
    assert_eq!((host.held_count(), host.noted()), (0, None), "it is given back once nobody uses it");
}

#[test]
fn memory_in_use_whose_holder_is_gone_is_not_replaced() {
    let host = Fake::new();
    host.take("pool = \"auto\"", false).unwrap().unwrap();
    host.buffers.borrow_mut().clear();
    let Err(Refusal::Lost(reason)) = host.take("pool = \"auto\"", true) else { panic!("found") };
    assert!(reason.contains("is gone"), "{reason}");
    assert_eq!(host.given.get(), 1, "kernels may write to what was freed, whoever has it next");
    assert!(host.take("pool = \"auto\"", false).unwrap().unwrap().is_new, "when none can, it is made anew");
}

#[test]
fn memory_of_another_boot_is_forgotten_with_all_kernels_of_it() {
    let host = Fake::new();
    host.take("pool = \"auto\"", false).unwrap().unwrap();
    *host.boot_id.borrow_mut() = "b".into();
    // Whoever is thought to run ran before.
    let anew = host.take("pool = \"auto\"", true).unwrap().unwrap();
    assert!(anew.is_new && host.given.get() == 2);
}

#[test]
fn buffer_of_which_the_kernel_does_not_tell_where_it_is_is_given_back() {
    let host = Fake::new();
    host.lists.set(false);
    let reason = not_had(host.take("pool = { heap = {} }", false));
    assert!(reason.contains("/proc/iomem") && reason.contains("given back"), "{reason}");
    assert_eq!((host.held_count(), host.noted()), (0, None));
    let named = host.take("pool = { heap = { inside = \"/dev/mmapper\" } }", false).unwrap().unwrap();
    assert_eq!(named.inside, SharedPool::Path("/dev/mmapper".into()), "no address is needed");
}

#[test]
fn buffer_that_another_program_got_at_the_same_moment_is_not_taken_for_ours() {
    let host = Fake::new();
    host.others.set(2);
    let shared = host.take("pool = \"auto\"", false).unwrap().unwrap();
    assert_eq!(host.given.get(), 5, "twice it could not be told");
    let (at, ..) =
        host.buffers.borrow().iter().find(|(.., holder)| holder.is_some()).map(|it| (it.0, ())).unwrap();
    assert!(matches!(shared.inside, SharedPool::Mem { phys, .. } if phys == at));
    host.take("", false).unwrap();
    host.others.set(u32::MAX);
    not_had(host.take("pool = \"auto\"", false));
}

#[test]
fn heap_that_gives_nothing_is_told_with_what_to_do() {
    let host = Fake::new();
    for (errno, hint) in [(libc::ENOENT, "CONFIG_DMABUF_HEAPS"), (libc::ENOMEM, "multikernel pool --memory")]
    {
        host.refuses.set(Some(errno));
        let reason = not_had(host.take("pool = \"auto\"", false));
        assert!(reason.contains(hint) && reason.contains(HEAP), "{reason}");
    }
}

#[test]
fn what_could_not_be_noted_is_not_kept() {
    let host = Fake::new();
    host.cannot_note.set(true);
    assert!(not_had(host.take("pool = \"auto\"", false)).contains("the disk is full"));
    assert_eq!((host.held_count(), host.noted()), (0, None));
}

#[test]
fn named_memory_is_taken_only_if_it_is_nobodys() {
    let host = Fake::new();
    let mem = |phys: u64, size: u64| format!("pool = {{ mem = {{ phys = {phys}, size = {size} }} }}");
    let shared = host.take(&mem(0x6_0000_0000, 64 << 20), false).unwrap().unwrap();
    assert!(!shared.can_be_locked());
    assert!(matches!(shared.source().unwrap(), PoolSource::Path { offset: 0x6_0000_0000, .. }));
    let refused = |phys, size| not_had(host.take(&mem(phys, size), false));
    assert!(
        refused(0x1_4000_0000, 64 << 20).contains("to an instance"),
        "memory of the pool is the kernel's"
    );
    assert!(refused(0x6_0000_0000, 4096).contains("too few"));
    assert!(refused(0x6_0000_0001, 64 << 20).contains("whole pages"));
    assert!(refused(0x7_0000_0000, 64 << 20).contains("no one entry"));
    assert_eq!(host.noted(), None);
}

#[test]
fn file_on_daxfs_has_its_length_once_and_for_all() {
    let host = Fake::new();
    let at = host.dir.path().display().to_string();
    assert!(not_had(host.take("pool = { daxfs = {} }", false)).contains("on no DAXFS"));
    let mounted =
        |options: &str| format!("1 0 0:5 / / rw - ext4 x rw\n2 1 0:6 / {at} rw - daxfs none rw,{options}\n");
    *host.mounts.borrow_mut() = mounted("source=dmabuf,size=8388608");
    assert!(not_had(host.take("pool = { daxfs = {} }", false)).contains("does not tell where"));
    *host.mounts.borrow_mut() = mounted("phys=0x140000000,size=8388608");
    let shared = host.take("pool = { daxfs = {} }", false).unwrap().unwrap();
    assert!(shared.is_new && shared.can_be_locked());
    let SharedPool::Daxfs { phys, file, .. } = &shared.inside else { panic!("{:?}", shared.inside) };
    assert_eq!((phys, file.as_deref()), (&Some(0x1_4000_0000), Some(Path::new("pool"))));
    let file = File::options().write(true).open(host.dir.path().join("pool")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), shared.bytes);
    file.set_len(4096).unwrap();
    assert!(
        matches!(host.take("pool = { daxfs = {} }", true), Err(Refusal::Lost(why)) if why.contains("4096"))
    );
    assert!(not_had(host.take("pool = { daxfs = {} }", false)).contains("no other length"));
    assert_eq!(file.as_fd().try_clone_to_owned().map(File::from).unwrap().metadata().unwrap().len(), 4096);
}

#[test]
fn record_that_cannot_be_read_is_not_guessed() {
    let host = Fake::new();
    std::fs::write(host.dir.path().join("shared-memory.json"), "{").unwrap();
    for in_use in [true, false] {
        assert!(matches!(host.take("pool = \"auto\"", in_use), Err(Refusal::Lost(_))));
    }
    assert_eq!(host.given.get(), 0);
}
