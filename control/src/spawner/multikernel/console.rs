//! A kernel's console as its warden has it: recorded, or lent to another program.
//!
//! Of all who have the device open for one kernel only one hears it: the one that opened it last, until it closes it (`mktty_find_conn` in
//! drivers/tty/mktty.c looks through a list to the front of which each is put that opens). So `kerf console` hears a kernel that is recorded here, and the
//! record has a gap of which nothing tells; where a kernel prefers whoever came first it is `kerf console` that hears nothing. Neither
//! matters to a console that is [lent](Lease): it is closed here, and that is said in the record.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::ids::InstanceId;
use super::lease::Lease;

/// The warden's end of a kernel's console.
#[derive(Debug)]
pub(super) struct Console {
    /// The device, if it is to be recorded.
    device: Option<PathBuf>,
    id: InstanceId,
    /// Where leases are.
    dir: PathBuf,
    state: State,
}

#[derive(Debug)]
enum State {
    Recorded(File),
    Lent {
        lease: Lease,
        /// Whether somebody was told that what he types goes nowhere.
        was_told: bool,
    },
    /// It could not be had.
    Missing,
}

impl Console {
    /// The console of the kernel `id`, whose runtime folder is `dir`, with what there is to say. `device`: through which it is recorded, if it is to be. One that
    /// cannot be had costs the kernel its record, not its life.
    pub(super) fn open(
        device: Option<&Path>,
        id: InstanceId,
        dir: &Path,
        now_ms: u64,
    ) -> (Self, Vec<String>) {
        let device = device.map(Path::to_owned);
        let mut console = Self { device, id, dir: dir.to_owned(), state: State::Missing };
        let said = match Lease::there(dir, now_ms).filter(|_| console.device.is_some()) {
            Some(lease) => console.lend(lease, now_ms),
            None => console.record(),
        };
        (console, said)
    }

    /// The device to wait for, if it is recorded.
    pub(super) fn recorded(&self) -> Option<&File> {
        match &self.state {
            State::Recorded(file) => Some(file),
            State::Lent { .. } | State::Missing => None,
        }
    }

    /// Looks whether it is to be lent now, or recorded again. Returns what there is to say.
    pub(super) fn look(&mut self, now_ms: u64) -> Vec<String> {
        if self.device.is_none() {
            return Vec::new();
        }
        match (&self.state, Lease::there(&self.dir, now_ms)) {
            (State::Lent { lease, .. }, Some(there)) if *lease == there => Vec::new(),
            (_, Some(lease)) => self.lend(lease, now_ms),
            (State::Lent { .. }, None) => {
                let mut said = vec!["the console is recorded here again".to_owned()];
                said.extend(self.record());
                said
            }
            (_, None) => Vec::new(),
        }
    }

    /// What the kernel says; `Ok(None)` if nothing now.
    ///
    /// # Errors
    /// A sentence: it cannot be read any more, and is not recorded from now on.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, String> {
        let State::Recorded(file) = &mut self.state else { return Ok(None) };
        loop {
            match file.read(buffer) {
                Ok(n) => return Ok((n > 0).then_some(n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => {
                    self.state = State::Missing;
                    return Err(format!("the console cannot be read any more: {error}"));
                }
            }
        }
    }

    /// What people type. A kernel that reads none of it loses it, as on a serial line; returns what there is to say to them.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Option<&'static str> {
        match &mut self.state {
            State::Recorded(file) => {
                let _ = file.write(bytes);
            }
            State::Lent { was_told: was_told @ false, .. } => {
                *was_told = true;
                return Some("the console is lent to another program: what is typed here goes nowhere");
            }
            State::Lent { .. } | State::Missing => {}
        }
        None
    }

    fn lend(&mut self, lease: Lease, now_ms: u64) -> Vec<String> {
        // Closed before that is said.
        self.state = State::Lent { lease, was_told: false };
        let seconds = lease.left(now_ms).unwrap_or_default().as_secs_f64().ceil();
        let mut said = vec![format!(
            "the console is lent to other programs for {seconds} s: what the kernel says until then is not recorded here (`tombolo console --take-back` ends that)"
        )];
        said.extend(self.keep(Some(lease)));
        said
    }

    fn record(&mut self) -> Vec<String> {
        self.state = State::Missing;
        let Some(path) = self.device.as_deref() else { return Vec::new() };
        let open = || -> io::Result<File> {
            let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            let mut file = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(path)?;
            file.write_all(self.id.to_string().as_bytes())?;
            Ok(file)
        };
        let mut said = Vec::new();
        match open() {
            Ok(file) => self.state = State::Recorded(file),
            Err(error) => {
                said.push(format!(
                    "the console {} cannot be had, and is not recorded: {error}",
                    path.display()
                ));
            }
        }
        said.extend(self.keep(None));
        said
    }

    fn keep(&self, lease: Option<Lease>) -> Option<String> {
        let kept = Lease::keep(lease, &self.dir);
        kept.err().map(|error| format!("could not say to whoever lends the console that it is done: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A runtime folder, with a file for a device.
    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let bench = Self { dir: tempfile::tempdir().unwrap() };
            std::fs::write(bench.device(), "").unwrap();
            bench
        }

        fn device(&self) -> PathBuf {
            self.dir.path().join("mktty")
        }

        fn open(&self, now_ms: u64) -> (Console, Vec<String>) {
            let id = InstanceId::try_from(16).unwrap();
            Console::open(Some(&self.device()), id, self.dir.path(), now_ms)
        }

        fn lend(&self, lease: Option<Lease>) {
            let path = self.dir.path().join(Lease::NAME);
            match lease {
                Some(lease) => std::fs::write(path, serde_json::to_vec(&lease).unwrap()).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
        }

        fn kept(&self) -> Option<Lease> {
            serde_json::from_slice(&std::fs::read(self.dir.path().join(Lease::KEPT)).ok()?).ok()
        }
    }

    #[test]
    fn console_is_let_go_while_it_is_lent_and_taken_back_at_its_time() {
        let bench = Bench::new();
        let (mut console, said) = bench.open(0);
        assert!(console.recorded().is_some() && said.is_empty(), "{said:?}");
        let lease = Lease::of(Duration::from_secs(10), 0);
        bench.lend(Some(lease));
        let said = console.look(1).join(" ");
        assert!(console.recorded().is_none() && said.contains("lent") && said.contains("10 s"), "{said}");
        assert_eq!(bench.kept(), Some(lease));
        assert!(console.look(9_999).is_empty(), "it is said once");
        let said = console.look(10_000).join(" ");
        assert!(console.recorded().is_some() && said.contains("recorded here again"), "{said}");
        assert_eq!(bench.kept(), None);
        assert!(console.look(10_001).is_empty());
    }

    #[test]
    fn console_is_taken_back_before_its_time_when_the_lease_goes() {
        let bench = Bench::new();
        let (mut console, _) = bench.open(0);
        bench.lend(Some(Lease::of(Duration::from_secs(10), 0)));
        console.look(1);
        bench.lend(None);
        assert!(console.look(2).join(" ").contains("again"));
        assert!(console.recorded().is_some());
    }

    #[test]
    fn warden_that_comes_later_keeps_to_the_lease_and_says_so() {
        let bench = Bench::new();
        let lease = Lease::of(Duration::from_secs(10), 0);
        bench.lend(Some(lease));
        let (console, said) = bench.open(1);
        assert!(console.recorded().is_none() && said.join(" ").contains("lent"), "{said:?}");
        assert_eq!(bench.kept(), Some(lease));
        drop(console);
        bench.lend(None);
        let (console, _) = bench.open(2);
        assert!(console.recorded().is_some());
        assert_eq!(bench.kept(), None, "an answer of the one before is none of this one");
    }

    #[test]
    fn whoever_types_into_a_lent_console_is_told_once() {
        let bench = Bench::new();
        bench.lend(Some(Lease::of(Duration::from_secs(10), 0)));
        let (mut console, _) = bench.open(0);
        assert!(console.write(b"x").is_some());
        assert!(console.write(b"y").is_none());
        assert_eq!(std::fs::read(bench.device()).unwrap(), b"");
    }

    #[test]
    fn console_that_cannot_be_had_is_said_and_tried_again_after_a_lease() {
        let bench = Bench::new();
        std::fs::remove_file(bench.device()).unwrap();
        let (mut console, said) = bench.open(0);
        assert!(said.join(" ").contains("cannot be had"), "{said:?}");
        bench.lend(Some(Lease::of(Duration::from_secs(1), 0)));
        console.look(1);
        std::fs::write(bench.device(), "").unwrap();
        console.look(1_000);
        assert!(console.recorded().is_some());
    }
}
