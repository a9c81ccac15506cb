//! What a running kernel was asked and has not been seen to do.
//!
//! It is noted in the instance's runtime folder before the host's kernel is told, and crossed out when it is done, or is known never to have been begun.
//! What stays may still happen for as long as that kernel runs.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hold::nonce_of;
use super::ids::InstanceName;
use super::interface::{InstanceStatus, Interface};
use super::live::{Live, LiveError, reason};
use super::lock::Lock;
use super::overlay::{Change, Intent};
use super::record::Record;
use super::transaction;
use crate::keeper::{remove_all, write_atomically};

/// Something that a kernel can be asked.
pub(super) trait Asked: Serialize + DeserializeOwned + PartialEq {
    /// The file in the runtime folder in which such are noted.
    const NAME: &str;
    /// With what the marks begin of the transactions in which such are asked.
    const MARK: &str;

    /// What the transaction carries in which it was asked.
    fn mark(&self) -> &str;

    /// What it is about, for people.
    fn what(&self) -> String;

    fn change(&self) -> Change;

    /// How the kernel is asked for it, of its instance `name`.
    fn intent(&self, name: InstanceName) -> Intent;

    /// Whether the answer to one ends the doubt about the other.
    fn is_about_the_same(&self, other: &Self) -> bool;
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Doubts<A> {
    /// Of which boot: the nonce of its record.
    boot: String,
    pub(super) asked: Vec<A>,
}

impl<A: Asked> Doubts<A> {
    /// What was asked in this boot of the instance of `record`, whose runtime folder is `dir`. What was asked in a former one ended with it.
    pub(super) fn read(record: &Record, dir: &Path) -> Result<Self, LiveError> {
        let path = Self::path(dir);
        let boot = || Self { boot: record.nonce.clone(), asked: Vec::new() };
        let unreadable = |error: &dyn std::fmt::Display| {
            LiveError::Unknown(format!("what was asked cannot be read from {}: {error}", path.display()))
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(boot()),
            Err(error) => return Err(unreadable(&error)),
        };
        let found: Self = serde_json::from_slice(&bytes).map_err(|error| unreadable(&error))?;
        Ok(if found.boot == record.nonce { found } else { boot() })
    }

    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join(A::NAME)
    }

    /// Notes that what `new` makes of its mark is asked, has the kernel do it, and crosses it out if it is done or was not begun.
    pub(super) fn ask<I: Interface>(
        mut self,
        live: &Live<'_, I>,
        _lock: &Lock,
        new: impl FnOnce(String) -> A,
    ) -> Result<(), LiveError> {
        let name = &live.record.name;
        let mark = nonce_of(A::MARK)
            .map_err(|error| LiveError::Refused(format!("could not name what is to be asked: {error}")))?;
        let new = new(mark.clone());
        let (what, change, intent) = (new.what(), new.change(), new.intent(name.clone()));
        let attempt = match change {
            Change::Add => format!("give {what} to instance `{name}`"),
            Change::Remove => format!("take {what} from instance `{name}`"),
        };
        let was_open = self.asked.iter().any(|asked| asked.is_about_the_same(&new));
        self.asked.push(new);
        self.note(live.dir).map_err(|error| {
            LiveError::Refused(format!("could not note that it is to {attempt}: {error}; nothing was asked"))
        })?;
        let error = match transaction::apply(live.kernel, &intent, &mark) {
            Ok(applied) => {
                tracing::debug!(instance = %name, what, transaction = applied.transaction, ?change, "it moved");
                let Some(done) = self.asked.pop() else { return Ok(()) };
                self.asked.retain(|asked| !asked.is_about_the_same(&done));
                self.note_or_warn(live);
                return Ok(());
            }
            Err(error) => error,
        };
        if !error.did_nothing() {
            return Err(LiveError::Unknown(format!(
                "it is not known whether {what} will {} instance `{name}`: {error}",
                if change == Change::Add { "come to" } else { "leave" }
            )));
        }
        self.asked.retain(|asked| asked.mark() != mark);
        self.note_or_warn(live);
        let message = format!("could not {attempt}: {}", reason(&error));
        Err(if was_open { LiveError::Unknown(message) } else { LiveError::Refused(message) })
    }

    /// Crosses out all but `open`.
    pub(super) fn leave_open<I: Interface>(&mut self, live: &Live<'_, I>, open: Vec<A>) {
        if open != self.asked {
            self.asked = open;
            self.note_or_warn(live);
        }
    }

    fn note(&self, dir: &Path) -> io::Result<()> {
        if self.asked.is_empty() {
            return remove_all(&[Self::path(dir)]);
        }
        write_atomically(&Self::path(dir), &serde_json::to_vec_pretty(self)?)
    }

    /// What is settled and cannot be crossed out is found settled at the next look.
    fn note_or_warn<I: Interface>(&self, live: &Live<'_, I>) {
        if let Err(error) = self.note(live.dir) {
            tracing::warn!(instance = %live.record.name, %error, "what is settled stays noted as open");
        }
    }
}

/// What other kernels of ours that run than the one of `dir` were asked and have not been seen to do, each with whose it is: it may be in use in them, although
/// nobody has it by the host's books.
pub(super) fn withheld<A: Asked>(
    kernel: &impl Interface,
    dir: &Path,
) -> Result<Vec<(InstanceName, A)>, String> {
    let Some(parent) = dir.parent() else { return Ok(Vec::new()) };
    withheld_by_any(kernel, parent, Some(dir))
}

/// The same of all whose runtime folders are in `instances`, but for that of `but`.
pub(super) fn withheld_by_any<A: Asked>(
    kernel: &impl Interface,
    instances: &Path,
    but: Option<&Path>,
) -> Result<Vec<(InstanceName, A)>, String> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        format!("what kernels were asked cannot be read from {}: {error}", path.display())
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(instances).map_err(|error| failed(instances, &error))? {
        let other = entry.map_err(|error| failed(instances, &error))?.path();
        if but == Some(other.as_path()) || !Doubts::<A>::path(&other).exists() {
            continue;
        }
        let record = Record::read(&other).map_err(|error| failed(&other, &error))?;
        let Some(record) = record else { continue };
        let asked = Doubts::<A>::read(&record, &other).map_err(LiveError::into_reason)?.asked;
        let live = Live { kernel, record: &record, dir: &other };
        // One that has ended uses nothing.
        let runs = match live.status() {
            Ok(status) => matches!(status, Some(InstanceStatus::Active | InstanceStatus::Failed)),
            Err(_) => true,
        };
        if runs {
            found.extend(asked.into_iter().map(|asked| (record.name.clone(), asked)));
        }
    }
    Ok(found)
}
