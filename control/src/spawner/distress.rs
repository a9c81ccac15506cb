//! What is asked of a kernel before it is ended by force: to write back what it has in memory, and to say what it does.
//!
//! Both by magic SysRq keys (Documentation/admin-guide/sysrq.rst in Linux's source), which a kernel obeys from an interrupt, whatever its
//! user space does. What it says goes to its console, hence into that one's record.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{Kernel, SpawnerKind, qemu, uml};

/// A magic SysRq key, and how a kernel acknowledges it on its console.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) key: char,
    pub(super) said: &'static str,
}

/// Say everything on the console; say who waits for what; say what each CPU does; write back; make what is mounted from disks
/// read-only.
const KEYS: [Key; 5] = [
    Key { key: '8', said: "Loglevel set" },
    Key { key: 'w', said: "Show Blocked State" },
    Key { key: 'l', said: "Show backtrace" },
    Key { key: 's', said: "Emergency Sync" },
    Key { key: 'u', said: "Emergency Remount" },
];
/// What a kernel that knows of one CPU only has in place of `l`.
const OF_ONE_CPU: Key = Key { key: 'p', said: "Show Regs" };
/// What the kernel says when it is done with the last of them.
const DONE: &[u8] = b"Emergency Remount complete";
/// From one look for that to the next.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Kernel {
    /// Has the kernel say on its console what it does, write back what it has in memory, and use its disks no more; returns
    /// once it says that it is done. The error is for people.
    ///
    /// # Cancel safety
    /// What was asked is done all the same.
    pub async fn quiesce(&self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let log = self.console_log();
        let said_before = std::fs::metadata(&log).map_or(0, |log| log.len());
        let pressing = async {
            match self.kind() {
                SpawnerKind::Uml => {
                    let keys = KEYS.map(|key| if key.key == 'l' { OF_ONE_CPU } else { key });
                    uml::press(self.runtime_dir(), &keys, limit).await
                }
                SpawnerKind::Qemu => qemu::press(self, &KEYS, limit).await,
                SpawnerKind::Multikernel => Err("its console takes no magic keys".into()),
                SpawnerKind::Process => Err("it has no kernel of its own".into()),
            }
        };
        let late = |what: &str| format!("{what} within {limit:?}");
        timeout_at(deadline, pressing).await.map_err(|_| late("it did not take all keys"))??;
        while !says(&log, said_before, DONE) {
            if Instant::now() >= deadline {
                return Err(late("it took all keys and did not say that it was done"));
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Where each CPU of a kernel that does not answer stands, if its spawner can see that within `limit`.
    ///
    /// # Cancel safety
    /// Cancel safe: looking changes nothing.
    pub async fn registers(&self, limit: Duration) -> Option<String> {
        match self.kind() {
            SpawnerKind::Qemu => qemu::registers(self.runtime_dir(), limit).await,
            SpawnerKind::Uml | SpawnerKind::Multikernel | SpawnerKind::Process => None,
        }
    }
}

/// Whether a console's record holds these words behind its first `from` bytes. One that was begun anew is looked at whole.
fn says(log: &Path, from: u64, words: &[u8]) -> bool {
    let read = || {
        let mut file = File::open(log)?;
        let from = if file.metadata()?.len() < from { 0 } else { from };
        file.seek(SeekFrom::Start(from))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    read().is_ok_and(|text| text.windows(words.len()).any(|window| window == words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_looked_for_behind_what_was_said_before_unless_the_record_was_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console");
        assert!(!says(&log, 0, b"done"));
        std::fs::write(&log, "it is done\n").unwrap();
        assert!(says(&log, 0, b"done") && says(&log, 100, b"done") && !says(&log, 10, b"done"));
    }
}
