//! Numbers of files: one per path, for as long as the stand-in runs.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use fuser::INodeNo;

/// What is bound to `/sys/fs/multikernel`, `/dev/mktty`, `/proc/iomem`, `/proc/cpuinfo` and `/dev/dma_heap/multikernel`.
pub(crate) const TREE: &str = "multikernel";
pub(crate) const MKTTY: &str = "mktty";
pub(crate) const IOMEM: &str = "iomem";
pub(crate) const CPUINFO: &str = "cpuinfo";
pub(crate) const HEAP: &str = "dma_heap";

/// Paths and their numbers. They are few: the files of instances and transactions, whose names recur.
pub(crate) struct Inodes(Mutex<(HashMap<String, u64>, Vec<String>)>);

impl Default for Inodes {
    fn default() -> Self {
        // 0 is no number, and 1 is the root.
        Self(Mutex::new((HashMap::from([(String::new(), 1)]), vec![String::new(), String::new()])))
    }
}

impl Inodes {
    pub(crate) fn path(&self, ino: INodeNo) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.1.get(usize::try_from(ino.0).ok()?).filter(|_| ino.0 > 0).cloned()
    }

    pub(crate) fn number(&self, path: &str) -> INodeNo {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = known.0.get(path) {
            return INodeNo(*number);
        }
        let number = known.1.len() as u64;
        known.0.insert(path.to_owned(), number);
        known.1.push(path.to_owned());
        INodeNo(number)
    }
}
