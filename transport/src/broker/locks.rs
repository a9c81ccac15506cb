//! Who may still write where: record locks on the pool file itself.
//!
//! Every process gets a descriptor of the pool of its own (its own *open file description*), and its broker locks the bytes of
//! each half it grants **on that description** (`F_OFD_SETLK`). The kernel keeps such a lock until the last copy of the descriptor is
//! closed: when the process is dead, and the children it forked without exec as well. Nothing has to be written
//! down, nothing can be stale: a broker that starts asks which parts of its heap are locked and leaves those alone until they no
//! longer are. The first page of the extent is locked by the broker itself, so there is only one.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::mem::PAGE;

/// Locks the bytes of `range` for the open file description of `fd`. `false`: another one holds part of it.
pub(crate) fn lock(fd: impl AsFd, range: Range<u64>) -> io::Result<bool> {
    match fcntl(fd, FcntlArg::F_OFD_SETLK(&request(libc::F_WRLCK, &range))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes the lock back.
pub(crate) fn unlock(fd: impl AsFd, range: Range<u64>) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_OFD_SETLK(&request(libc::F_UNLCK, &range)))?;
    Ok(())
}

/// The first part of `range` that another open file description has locked, cut to `range`.
pub(crate) fn first_locked(fd: impl AsFd, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let mut found = request(libc::F_WRLCK, &range);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut found))?;
    if found.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    let start = u64::try_from(found.l_start).unwrap_or(0).max(range.start);
    let len = u64::try_from(found.l_len).unwrap_or(0);
    // A length of 0 means up to the end of the file.
    let end = if len == 0 { range.end } else { found.l_start as u64 + len }.min(range.end);
    Ok(Some(start..end.max(start)))
}

/// All parts of `range` that others have locked, in order.
pub(crate) fn all_locked(fd: impl AsFd, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let fd = fd.as_fd();
    let (mut found, mut unseen) = (Vec::new(), vec![range]);
    while let Some(part) = unseen.pop() {
        if part.is_empty() {
            continue;
        }
        // The kernel does not promise the lowest one, so look on both sides of what it names.
        if let Some(locked) = first_locked(fd, part.clone())? {
            unseen.push(locked.end.max(locked.start + 1)..part.end);
            unseen.push(part.start..locked.start);
            found.push(locked);
        }
    }
    found.sort_by_key(|range| range.start);
    Ok(found)
}

/// The whole pages that `ranges`, sorted by their starts, touch; what then touches each other is one. Brokers lock halves, which
/// may end within a page; and whoever has the pool can lock what it likes.
pub(crate) fn whole_pages(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut whole: Vec<Range<u64>> = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        let start = range.start - range.start % PAGE as u64;
        let end = range.end.next_multiple_of(PAGE as u64);
        match whole.last_mut() {
            Some(last) if start <= last.end => last.end = last.end.max(end),
            _ => whole.push(start..end),
        }
    }
    whole
}

fn request(kind: libc::c_int, range: &Range<u64>) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start as libc::off_t,
        l_len: (range.end - range.start) as libc::off_t,
        l_pid: 0, // required of locks that belong to a description
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn pages_touched_are_named_once() {
        assert_eq!(whole_pages(&[5..6, 7..9, 4095..4096]), vec![0u64..4096; 1]);
        assert_eq!(whole_pages(&[0..4097, 20_000..20_001, 5..5]), [0..8192, 16384..20480]);
        assert_eq!(whole_pages(&[4096..8192, 8192..12288]), vec![4096u64..12288; 1]);
    }

    #[test]
    fn locks_belong_to_the_description_and_vanish_with_its_last_copy() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (broker, client) = (open(), open());
        assert!(lock(&client, 4096..8192).unwrap());
        assert!(lock(&client, 16384..20480).unwrap());
        assert!(!lock(&broker, 0..5000).unwrap());
        let copy = client.try_clone().unwrap();
        drop(client);
        assert_eq!(all_locked(&broker, 0..1 << 20).unwrap(), [4096..8192, 16384..20480]);
        assert_eq!(all_locked(&broker, 5000..17000).unwrap(), [5000..8192, 16384..17000]);
        unlock(&copy, 4096..8192).unwrap();
        assert_eq!(all_locked(&broker, 0..1 << 20).unwrap(), vec![16384u64..20480; 1]);
        drop(copy);
        assert_eq!(all_locked(&broker, 0..1 << 20).unwrap(), []);
        assert!(lock(&broker, 0..1 << 20).unwrap());
    }
}
