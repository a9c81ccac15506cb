//! Which DAXFS a file is on, and where that is in memory, as far as the kernel tells.

use std::path::{Path, PathBuf};

use tombolo_agent::mount_table::unescaped;

/// A mounted DAXFS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// The file, from its root on.
    pub(super) file: PathBuf,
    /// Told only where it was mounted by it; one that was mounted from a buffer says `source=dmabuf`.
    pub(super) phys: Option<u64>,
    pub(super) size: Option<u64>,
}

/// The DAXFS that `file` is on; `None` if it is on something else. `mounts`: the text of /proc/self/mountinfo.
pub(super) fn daxfs_of(mounts: &str, file: &Path) -> Option<Mounted> {
    let over = |line: &str| {
        let (places, kinds) = line.split_once(" - ")?;
        let mut places = places.split(' ').skip(3);
        let (root, point) = (unescaped(places.next()?), unescaped(places.next()?));
        let mut kinds = kinds.splitn(3, ' ');
        let (kind, _, options) = (kinds.next()?, kinds.next()?, kinds.next()?);
        let rest = file.strip_prefix(&point).ok()?.to_owned();
        Some((point, root, kind.to_owned(), options.to_owned(), rest))
    };
    // Of two on one place the later one is seen.
    let (_, root, kind, options, rest) =
        mounts.lines().filter_map(over).max_by_key(|(point, ..)| point.components().count())?;
    if kind != "daxfs" {
        return None;
    }
    let option = |name: &str| {
        let value = options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))?;
        match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => value.parse().ok(),
        }
    };
    let file = root.strip_prefix("/").unwrap_or(&root).join(rest);
    Some(Mounted { file, phys: option("phys"), size: option("size") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:50 / /mnt/shared rw,relatime shared:5 - daxfs none rw,name=x,phys=0x140000000,size=1048576,rw
31 22 0:51 / /mnt/of\\040a\\040buffer rw - daxfs none rw,source=dmabuf,size=2097152
32 30 0:52 / /mnt/shared/other rw - tmpfs none rw
";

    #[test]
    fn file_system_tells_where_it_is_if_it_was_mounted_by_that() {
        let of = |file: &str| daxfs_of(MOUNTS, Path::new(file));
        let by_address = of("/mnt/shared/a/pool").unwrap();
        assert_eq!(by_address.file, Path::new("a/pool"));
        assert_eq!((by_address.phys, by_address.size), (Some(0x1_4000_0000), Some(1 << 20)));
        let of_buffer = of("/mnt/of a buffer/pool").unwrap();
        assert_eq!((of_buffer.phys, of_buffer.size), (None, Some(2 << 20)));
        assert_eq!((of("/mnt/shared/other/pool"), of("/mnt/pool"), of("/mnt/sharedx")), (None, None, None));
        assert_eq!(daxfs_of("nonsense\n - \n", Path::new("/a")), None);
    }
}
