//! What holds the overlay mutex: overlays, their undoing, and baselines, one after the other.

use std::collections::VecDeque;

use super::baseline::Baseline;
use super::guest::Message;
use super::machine::{Effect, Machine, Reply, Ticket};
use super::overlay::{Overlay, Step};
use super::quirk::Quirk;
use super::transaction::{Transaction, TxStatus};
use super::{Errno, PAGE_BYTES, TREE_BYTES_MAX, tree};

/// What waits for the overlay mutex.
#[derive(Debug)]
pub(super) enum Request {
    Baseline(Vec<u8>),
    Overlay(Vec<u8>),
    Rmdir(u64),
}

/// What holds it.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) ticket: Ticket,
    kind: Kind,
    transaction: u64,
    steps: VecDeque<Step>,
    /// The item that a spawned kernel has been asked about.
    pub(super) waiting: Option<Waiting>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Runs an overlay of so many bytes.
    Apply { len: u64 },
    /// Undoes what ran of an overlay that failed with this.
    Undo { len: u64, errno: Errno },
    /// Undoes a transaction that is to go.
    Rmdir,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: u32,
    pub(super) message: Message,
    pub(super) deadline_ns: u64,
    pub(super) step: Step,
}

/// A halt that a spawned kernel has been asked for.
#[derive(Debug)]
pub(super) struct Halt {
    pub(super) id: u32,
    pub(super) ticket: Ticket,
    pub(super) deadline_ns: u64,
}

impl Machine {
    /// `write(2)` to a file of the tree. Gives the bytes taken.
    ///
    /// # Errors
    /// The kernel's: EINVAL for a bad header or an offset, EFBIG, EBUSY, EACCES for what is not to be written, ENOENT.
    pub fn write(&mut self, path: &str, offset: u64, bytes: &[u8], now_ns: u64) -> Result<Reply, Errno> {
        self.advance(now_ns);
        match path.trim_matches('/') {
            "device_tree" => {
                check_length(offset, bytes)?;
                self.submit(Request::Baseline(bytes.to_vec()), now_ns)
            }
            "overlays/new" => {
                let clipped = self.has(Quirk::WriteClippedAtPage);
                let page = usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX);
                let bytes = if clipped { &bytes[..bytes.len().min(page)] } else { bytes };
                check_length(offset, bytes)?;
                tree::check_header(bytes)?;
                self.submit(Request::Overlay(bytes.to_vec()), now_ns)
            }
            other => Err(match self.entry(other)?.is_dir() {
                true => Errno::ISDIR,
                false => Errno::ACCESS,
            }),
        }
    }

    /// `rmdir(2)`: undoes a transaction and removes its folder. All other folders: EPERM.
    ///
    /// # Errors
    /// EPERM, ENOENT, or the errno of the operation that could not be undone; the folder then stays, `failed`.
    pub fn rmdir(&mut self, path: &str, now_ns: u64) -> Result<Reply, Errno> {
        self.advance(now_ns);
        let path = path.trim_matches('/');
        let id = path.strip_prefix("overlays/tx_").and_then(|id| id.parse().ok());
        match id.filter(|id| self.transactions.contains_key(id)) {
            Some(id) => self.submit(Request::Rmdir(id), now_ns),
            None => Err(if self.entry(path).is_ok() { Errno::PERM } else { Errno::NOENT }),
        }
    }

    fn submit(&mut self, request: Request, now_ns: u64) -> Result<Reply, Errno> {
        let ticket = self.ticket();
        self.queue.push_back((ticket, request));
        self.run(now_ns);
        self.reply(ticket)
    }

    /// Goes on until something is waited for or nothing is left.
    pub(super) fn run(&mut self, now_ns: u64) {
        loop {
            if self.work.is_none() {
                let Some((ticket, request)) = self.queue.pop_front() else { return };
                self.start(ticket, request);
                continue;
            }
            let Some(work) = self.work.as_mut().filter(|work| work.waiting.is_none()) else { return };
            let Some(step) = work.steps.pop_front() else {
                self.finish(Ok(()));
                continue;
            };
            match self.begin(&step, now_ns) {
                Ok(None) => self.ran(step),
                Ok(Some(waiting)) => {
                    if let Some(work) = &mut self.work {
                        work.waiting = Some(waiting);
                    }
                }
                Err(errno) => self.failed(&step, errno),
            }
        }
    }

    fn start(&mut self, ticket: Ticket, request: Request) {
        match request {
            Request::Baseline(bytes) => {
                let result = self.take_baseline(&bytes);
                self.effect(Effect::Completed { ticket, result });
            }
            Request::Overlay(bytes) => {
                let overlay = Overlay::parse(&bytes, !self.has(Quirk::UnknownItemsIgnored));
                self.last_transaction += 1;
                let id = self.last_transaction;
                let kind = Kind::Apply { len: bytes.len() as u64 };
                let steps: VecDeque<Step> = overlay.steps.iter().cloned().collect();
                let transaction = Transaction {
                    id,
                    status: TxStatus::Pending,
                    target: overlay.target,
                    resources: overlay.resources,
                    dtbo: bytes,
                    steps: overlay.steps,
                    ran: Vec::new(),
                };
                self.transactions.insert(id, transaction);
                self.work = Some(Work { ticket, kind, transaction: id, steps, waiting: None });
            }
            Request::Rmdir(id) => {
                let Some(transaction) = self.transactions.get(&id) else {
                    // Whoever held the mutex before removed it.
                    return self.effect(Effect::Completed { ticket, result: Err(Errno::NOENT) });
                };
                let all = self.has(Quirk::RmdirUndoesWhatNeverRan);
                let steps = if all { &transaction.steps } else { &transaction.ran };
                let steps = reversed(steps);
                self.work = Some(Work { ticket, kind: Kind::Rmdir, transaction: id, steps, waiting: None });
            }
        }
    }

    fn take_baseline(&mut self, bytes: &[u8]) -> Result<u64, Errno> {
        let baseline = Baseline::parse(bytes)?;
        if self.pool.is_some() || self.is_kexec_locked() {
            return Err(Errno::BUSY);
        }
        let mut log = Vec::new();
        let taken = baseline.take(&mut self.host, &mut self.pool, &mut log);
        log.into_iter().for_each(|line| self.log(line));
        taken.map(|()| bytes.len() as u64)
    }

    /// A step is done.
    pub(super) fn ran(&mut self, step: Step) {
        self.end_empty_pool();
        let Some(work) = &self.work else { return };
        if let (Kind::Apply { .. }, Some(tx)) = (work.kind, self.transactions.get_mut(&work.transaction)) {
            tx.ran.push(step);
        }
    }

    /// A step is not to be had: nothing after it runs.
    pub(super) fn failed(&mut self, step: &Step, errno: Errno) {
        self.log(format!("multikernel: {step:?} failed: {errno}"));
        let undo = !self.has(Quirk::HalfAppliedOverlay);
        let Some(work) = &mut self.work else { return };
        if let (Kind::Apply { len }, true) = (work.kind, undo)
            && let Some(tx) = self.transactions.get_mut(&work.transaction)
        {
            work.kind = Kind::Undo { len, errno };
            work.steps = reversed(&std::mem::take(&mut tx.ran));
            return;
        }
        self.finish(Err(errno));
    }

    fn finish(&mut self, outcome: Result<(), Errno>) {
        let Some(work) = self.work.take() else { return };
        let lies = self.has(Quirk::WriteSucceedsOnFailure);
        let settled = |errno: Errno, len: u64| if lies { Ok(len) } else { Err(errno) };
        let (status, result) = match (work.kind, outcome) {
            (Kind::Apply { len }, Ok(())) => (TxStatus::Applied, Ok(len)),
            (Kind::Apply { len }, Err(errno)) | (Kind::Undo { len, errno }, _) => {
                (TxStatus::Failed, settled(errno, len))
            }
            (Kind::Rmdir, Ok(())) => (TxStatus::Removed, Ok(0)),
            (Kind::Rmdir, Err(errno)) => (TxStatus::Failed, Err(errno)),
        };
        if status == TxStatus::Removed {
            self.transactions.remove(&work.transaction);
        } else if let Some(tx) = self.transactions.get_mut(&work.transaction) {
            tx.status = status;
        }
        self.effect(Effect::Completed { ticket: work.ticket, result });
    }
}

fn reversed(steps: &[Step]) -> VecDeque<Step> {
    steps.iter().rev().filter_map(Step::reverse).collect()
}

fn check_length(offset: u64, bytes: &[u8]) -> Result<(), Errno> {
    if offset != 0 || bytes.is_empty() {
        Err(Errno::INVAL)
    } else if bytes.len() > TREE_BYTES_MAX {
        Err(Errno::FBIG)
    } else {
        Ok(())
    }
}
