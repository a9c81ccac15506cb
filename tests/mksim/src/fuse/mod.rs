//! The files, as a FUSE file system: the model's tree, and `mktty`, `iomem` and `dma_heap` beside it.
//!
//! Nothing is cached: every read makes the file anew, as the kernel does, and nobody is told of changes, unless the quirk is off that says so.

mod inodes;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyPoll, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use crate::model::{EntryKind, Errno, Machine, Quirk};
use crate::watchers::Watchers;
use crate::world::World;
use inodes::{CPUINFO, HEAP, IOMEM, Inodes, MKTTY, TREE};

/// Names in the root of the file system: each is bound to its place in the namespace.
pub(crate) const NAMES: [&str; 5] = [TREE, MKTTY, IOMEM, CPUINFO, HEAP];
pub(crate) use inodes::{
    CPUINFO as CPUINFO_NAME, HEAP as HEAP_NAME, IOMEM as IOMEM_NAME, MKTTY as MKTTY_NAME, TREE as TREE_NAME,
};

/// The file system.
pub(crate) struct Files {
    world: Arc<World>,
    inodes: Inodes,
    /// The real one, for what is not about numbers.
    cpuinfo: String,
}

const TTL: Duration = Duration::ZERO;

impl Files {
    /// To be called before its `cpuinfo` is bound over the real one.
    pub(crate) fn new(world: Arc<World>) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self { world, inodes: Inodes::default(), cpuinfo }
    }

    /// The path in the model's tree, if it is in there.
    fn model_path(path: &str) -> Option<&str> {
        let rest = path.strip_prefix(TREE)?;
        if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
    }

    fn kind(&self, path: &str) -> Result<EntryKind, Errno> {
        match path {
            "" => Ok(EntryKind::Dir),
            IOMEM | CPUINFO => Ok(EntryKind::File { mode: 0o444 }),
            MKTTY | HEAP => Ok(EntryKind::File { mode: 0o600 }),
            _ => {
                let path = Self::model_path(path).ok_or(Errno::NOENT)?;
                self.world.look(|machine| machine.entry(path))
            }
        }
    }

    fn content(&self, path: &str) -> Result<Vec<u8>, Errno> {
        match path {
            IOMEM => Ok(self.world.look(|machine| machine.iomem().into_bytes())),
            CPUINFO => Ok(self.world.look(|machine| machine.cpuinfo(&self.cpuinfo).into_bytes())),
            HEAP => Err(Errno::INVAL),
            _ => {
                let path = Self::model_path(path).ok_or(Errno::ISDIR)?;
                self.world.look(|machine| machine.read(path))
            }
        }
    }

    fn attributes(&self, ino: INodeNo, path: &str) -> Result<FileAttr, Errno> {
        let kind = self.kind(path)?;
        let (kind, perm, size) = match kind {
            EntryKind::Dir => (FileType::Directory, 0o755, 0),
            EntryKind::File { mode } => {
                let size =
                    if matches!(path, MKTTY | HEAP) { 0 } else { self.content(path).map_or(0, |c| c.len()) };
                (FileType::RegularFile, mode, size as u64)
            }
        };
        Ok(FileAttr {
            ino,
            size,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn list(&self, path: &str) -> Result<Vec<(String, FileType)>, Errno> {
        let file_type =
            |kind: EntryKind| if kind.is_dir() { FileType::Directory } else { FileType::RegularFile };
        if path.is_empty() {
            return NAMES.iter().map(|name| Ok(((*name).to_owned(), file_type(self.kind(name)?)))).collect();
        }
        let path = Self::model_path(path).ok_or(Errno::NOTDIR)?;
        let entries = self.world.look(|machine| machine.list(path))?;
        Ok(entries.into_iter().map(|entry| (entry.name, file_type(entry.kind))).collect())
    }

    /// The first write of a terminal names the instance; what follows goes to its kernel.
    fn write_terminal(&self, handle: u64, data: &[u8]) -> Result<usize, Errno> {
        if let Some(id) = self.world.terminals.instance(handle) {
            // A kernel that takes nothing loses what is typed, as the ring of the real one does.
            if let Some(kernel) = self.world.kernel(id) {
                kernel.type_in(data);
            }
            return Ok(data.len());
        }
        let text = std::str::from_utf8(data).map_err(|_| Errno::INVAL)?;
        let id: u32 = text.trim_matches(['\n', '\0', ' ']).parse().map_err(|_| Errno::INVAL)?;
        if id == 0 {
            return Err(Errno::INVAL);
        }
        if self.world.look(|machine| machine.instance_by_id(id).is_none()) {
            return Err(Errno::NODEV);
        }
        self.world.terminals.select(handle, id);
        Ok(data.len())
    }
}

/// Whether a file of the model is one that the kernel could tell of.
fn can_be_watched(path: &str) -> bool {
    path.starts_with("instances/") && path.ends_with("/status")
}

/// Whether whoever polls a file of the model is told that it changed; if not, `notifier` is told to look again.
pub(crate) fn tells_of_change(
    machine: &Machine,
    watchers: &Watchers,
    handle: u64,
    path: &str,
    notifier: Option<PollNotifier>,
) -> bool {
    if !can_be_watched(path) || machine.config().quirks.has(Quirk::NothingNotifies) {
        return false;
    }
    let content = machine.read(path).unwrap_or_default();
    watchers.has_changed(handle, &content, notifier)
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

impl Filesystem for Files {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.inodes.path(parent).and_then(|parent| {
            let name = std::str::from_utf8(name.as_bytes()).ok()?;
            Some(if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") })
        });
        let found = path.ok_or(Errno::NOENT).and_then(|path| {
            self.kind(&path)?;
            let ino = self.inodes.number(&path);
            self.attributes(ino, &path)
        });
        match found {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.inodes.path(ino).ok_or(Errno::NOENT).and_then(|path| self.attributes(ino, &path));
        match found {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// `O_TRUNC` comes as a size of 0, and is without effect.
    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.getattr(req, ino, fh, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let Some(path) = self.inodes.path(ino) else { return reply.error(errno(Errno::NOENT)) };
        let mode = match self.kind(&path) {
            Ok(EntryKind::File { mode }) => mode,
            Ok(EntryKind::Dir) => return reply.error(errno(Errno::ISDIR)),
            Err(error) => return reply.error(errno(error)),
        };
        let access = flags.acc_mode();
        let reads = access != OpenAccMode::O_WRONLY;
        let writes = access != OpenAccMode::O_RDONLY;
        if reads && mode & 0o444 == 0 || writes && mode & 0o222 == 0 {
            return reply.error(errno(Errno::ACCESS));
        }
        if path == MKTTY {
            let stream =
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_STREAM | FopenFlags::FOPEN_NONSEEKABLE;
            return reply.opened(FileHandle(self.world.terminals.open()), stream);
        }
        let is_watched = Self::model_path(&path).is_some_and(can_be_watched);
        let handle = if is_watched { self.world.watchers.open() } else { 0 };
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(path) = self.inodes.path(ino) else { return reply.error(errno(Errno::NOENT)) };
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        if path == MKTTY {
            let waits = flags.0 & libc::O_NONBLOCK == 0;
            return self.world.terminals.read(fh.0, len, req.pid(), waits, reply);
        }
        match self.content(&path) {
            Ok(content) => {
                self.world.watchers.has_read(fh.0, &content);
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let to = from.saturating_add(len).min(content.len());
                reply.data(&content[from..to]);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(path) = self.inodes.path(ino) else { return reply.error(errno(Errno::NOENT)) };
        let written = |result: Result<u64, Errno>, reply: ReplyWrite| match result {
            Ok(len) => reply.written(u32::try_from(len).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        };
        if path == MKTTY {
            let result = self.write_terminal(fh.0, data).map(|len| len as u64);
            return written(result, reply);
        }
        let Some(path) = Self::model_path(&path) else { return reply.error(errno(Errno::INVAL)) };
        self.world.act_then(
            |machine, now_ns| machine.write(path, offset, data, now_ns),
            Box::new(move |result| written(result, reply)),
        );
    }

    fn poll(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let path = self.inodes.path(ino).unwrap_or_default();
        let notifier = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY).then_some(ph);
        let ready = PollEvents::POLLOUT | PollEvents::POLLWRNORM;
        let reads = PollEvents::POLLIN | PollEvents::POLLRDNORM;
        if path == MKTTY {
            let readable = self.world.terminals.is_readable(fh.0, notifier);
            return reply.poll(if readable { ready | reads } else { ready });
        }
        // Other files are always ready.
        let watchers = &self.world.watchers;
        let tells = Self::model_path(&path).is_some_and(|path| {
            self.world.look(|machine| tells_of_change(machine, watchers, fh.0, path, notifier))
        });
        let told = PollEvents::POLLPRI | PollEvents::POLLERR;
        reply.poll(if tells { ready | reads | told } else { ready | reads });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        match self.inodes.path(ino).is_some_and(|path| path == MKTTY) {
            true => self.world.terminals.close(fh.0),
            false => self.world.watchers.close(fh.0),
        }
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // kernfs has `noop_fsync`, and kerf makes use of it.
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let path = self.inodes.path(ino);
        let listed = path.ok_or(Errno::NOENT).and_then(|path| Ok((self.list(&path)?, path)));
        let (entries, path) = match listed {
            Ok(listed) => listed,
            Err(error) => return reply.error(errno(error)),
        };
        let dots = [".", ".."].map(|name| (ino, name.to_owned(), FileType::Directory));
        let named = entries.into_iter().map(|(name, kind)| {
            let child = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            (self.inodes.number(&child), name, kind)
        });
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, (ino, name, kind)) in dots.into_iter().chain(named).enumerate().skip(from) {
            if reply.add(ino, index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = self.inodes.path(parent).unwrap_or_default();
        let path = format!("{parent}/{}", name.to_string_lossy());
        let Some(path) = Self::model_path(&path) else { return reply.error(errno(Errno::PERM)) };
        self.world.act_then(
            |machine, now_ns| machine.rmdir(path, now_ns),
            Box::new(move |result| match result {
                Ok(_) => reply.ok(),
                Err(error) => reply.error(errno(error)),
            }),
        );
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(Errno::PERM));
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(Errno::PERM));
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(errno(Errno::ACCESS));
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Errno::PERM));
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        reply.error(errno(Errno::PERM));
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(Errno::PERM));
    }
}
