//! Who made the instance that has a name now: us, or another program.
//!
//! Name and number do not tell: another program may have removed ours and made its own with both. The kernel keeps every overlay that was
//! written, with its bytes, until whoever wrote it takes it back; so the last one that took effect and made an instance of that name made the
//! one that is there. Ours carry a mark; that of one that was taken over is known by its number and its bytes. Memory and CPUs are no evidence: other programs may change them, and ours too.

use dtoolkit::fdt::Fdt;
use dtoolkit::{Node as _, Property as _};

use super::ids::InstanceName;
use super::interface::{AskError, Interface};
use super::overlay::NONCE;
use super::taken_over::TakenOver;
use super::transaction::transactions;

/// Whose an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// We made it.
    Us,
    /// Somebody else did.
    Another,
    /// The kernel's transactions do not tell; this says which.
    Unknown(String),
}

/// By what the transaction is known that made an instance of ours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mark<'a> {
    /// By what it carries.
    Nonce(&'a str),
    /// By itself: it was another program's.
    TakenOver(&'a TakenOver),
}

impl Mark<'_> {
    fn is_of(self, transaction: u64, blob: &[u8]) -> bool {
        match self {
            Self::Nonce(nonce) => nonce_in(blob).is_some_and(|text| text == nonce.as_bytes()),
            Self::TakenOver(taken_over) => taken_over.is(transaction, blob),
        }
    }
}

/// What one transaction has to do with an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    transaction: u64,
    /// As the kernel says it: `applied`, `failed`, ...
    status: String,
    is_ours: bool,
    makes: bool,
    removes: bool,
    /// Whether it could have taken effect in part.
    has_parts: bool,
}

/// Who made the instance of this name, which is there. `mark`: by what our transaction is known that made it.
pub(super) fn maker(
    interface: &impl Interface,
    name: &InstanceName,
    mark: Mark<'_>,
) -> Result<Maker, AskError> {
    Ok(judge(entries(interface, name, Some(mark))?))
}

/// The transaction that made the instance of this name, which is there, and its overlay; the error says why that cannot be told.
pub(super) fn made_by(
    interface: &impl Interface,
    name: &InstanceName,
) -> Result<Result<(u64, Vec<u8>), String>, AskError> {
    let entries = entries(interface, name, None)?;
    let made = entries.iter().rfind(|entry| entry.makes && entry.status == "applied");
    let Some(made) = made.map(|entry| entry.transaction) else {
        return Ok(Err("no transaction of the kernel says who made it".into()));
    };
    // Whether that is the last word on it.
    let marked = entries.into_iter().map(|entry| Entry { is_ours: entry.transaction == made, ..entry });
    match judge(marked) {
        Maker::Us => {
            let blob = of_transaction(interface, made, "dtbo")?;
            Ok(blob.map(|blob| (made, blob)).ok_or_else(|| format!("tx_{made} was taken back just now")))
        }
        Maker::Another => Ok(Err(format!("tx_{made} made it, but a later one removed it"))),
        Maker::Unknown(why) => Ok(Err(format!("it cannot be told who made it: {why}"))),
    }
}

/// Whether an overlay carries a mark that begins so.
pub(super) fn carries(blob: &[u8], mark: &str) -> bool {
    nonce_in(blob).is_some_and(|text| text.starts_with(mark.as_bytes()))
}

/// What every transaction has to do with the instance of this name, in the order in which the kernel took them.
fn entries(
    interface: &impl Interface,
    name: &InstanceName,
    mark: Option<Mark<'_>>,
) -> Result<Vec<Entry>, AskError> {
    let mut entries = Vec::new();
    for transaction in numbers(interface)? {
        let Some(blob) = of_transaction(interface, transaction, "dtbo")? else { continue };
        let Some(status) = of_transaction(interface, transaction, "status")? else { continue };
        let status = String::from_utf8_lossy(status.trim_ascii()).into_owned();
        let is_ours = mark.is_some_and(|mark| mark.is_of(transaction, &blob));
        entries.push(Entry { transaction, status, is_ours, ..entry(&blob, name) });
    }
    Ok(entries)
}

/// The transaction with this mark that has not come to an end, if there is one: what it makes may come yet.
pub(super) fn pending(interface: &impl Interface, mark: Mark<'_>) -> Result<Option<u64>, AskError> {
    for transaction in numbers(interface)? {
        let status = of_transaction(interface, transaction, "status")?;
        if status.is_some_and(|status| status.trim_ascii() == b"pending")
            && let Some(blob) = of_transaction(interface, transaction, "dtbo")?
            && mark.is_of(transaction, &blob)
        {
            return Ok(Some(transaction));
        }
    }
    Ok(None)
}

/// Whether the kernel has a transaction that carries this mark, whatever came of it.
pub(super) fn is_known(interface: &impl Interface, mark: Mark<'_>) -> Result<bool, AskError> {
    for transaction in numbers(interface)? {
        if let Some(blob) = of_transaction(interface, transaction, "dtbo")?
            && mark.is_of(transaction, &blob)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The numbers of all transactions, in the order in which the kernel took them.
fn numbers(interface: &impl Interface) -> Result<Vec<u64>, AskError> {
    let names = transactions(interface)?;
    let mut numbers: Vec<u64> =
        names.iter().filter_map(|name| name.strip_prefix("tx_")?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A file of a transaction; `None` if whoever wrote it took it back meanwhile.
fn of_transaction(
    interface: &impl Interface,
    transaction: u64,
    file: &str,
) -> Result<Option<Vec<u8>>, AskError> {
    let name = format!("tx_{transaction}");
    let path = format!("overlays/{name}/{file}");
    match interface.read(&path) {
        Ok(content) => Ok(Some(content)),
        // A file system that was unmounted has no such file either.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            match transactions(interface)?.contains(&name) {
                true => Err(AskError::Contradiction { path }),
                false => Ok(None),
            }
        }
        Err(source) => Err(AskError::Read { path, source }),
    }
}

fn judge(entries: impl IntoIterator<Item = Entry>) -> Maker {
    let mut made_by_us = None;
    let mut doubt = None;
    // One that failed and left an instance all the same, of which no other transaction knows.
    let mut tried_by_us = false;
    for entry in entries.into_iter().filter(|entry| entry.makes || entry.removes) {
        match entry.status.as_str() {
            // One that removes and makes has made it in the end, or the instance would not be there.
            "applied" => {
                made_by_us = entry.makes.then_some(entry.is_ours);
                (doubt, tried_by_us) = (None, false);
            }
            "failed" if entry.has_parts => doubt = Some(entry),
            "failed" => tried_by_us |= entry.makes && entry.is_ours,
            _ => doubt = Some(entry),
        }
    }
    match (doubt, made_by_us) {
        (Some(entry), _) => Maker::Unknown(format!(
            "transaction tx_{} is `{}`, and may have removed it or made it",
            entry.transaction, entry.status
        )),
        (None, Some(true)) => Maker::Us,
        (None, None) if tried_by_us => Maker::Us,
        (None, _) => Maker::Another,
    }
}

/// The mark that an overlay carries.
fn nonce_in(blob: &[u8]) -> Option<Vec<u8>> {
    let fdt = Fdt::new(blob).ok()?;
    let property = fdt.root().property(NONCE)?;
    property.value().strip_suffix(b"\0").map(<[u8]>::to_vec)
}

/// What an overlay has to do with an instance, as far as its bytes tell.
fn entry(blob: &[u8], name: &InstanceName) -> Entry {
    let Ok(fdt) = Fdt::new(blob) else {
        // The kernel should not have been able to read it either. If it names ours, that is not to be relied on.
        let has = |text: &[u8]| blob.windows(text.len()).any(|window| window == text);
        let is_named = has(&[name.as_str().as_bytes(), b"\0"].concat());
        let (makes, removes) = (has(b"instance-create") && is_named, has(b"instance-remove") && is_named);
        return Entry { makes, removes, has_parts: true, ..Entry::default() };
    };
    let text = |value: &[u8]| value.strip_suffix(b"\0").map(<[u8]>::to_vec);
    let says = |wanted: &str, value: &[u8]| text(value).as_deref() == Some(wanted.as_bytes());
    let root = fdt.root();
    let mut entry = Entry::default();
    let mut operations = 0;
    for fragment in root.children().filter(|node| node.name().starts_with("fragment@")) {
        let Some(overlay) = fragment.child("__overlay__") else { continue };
        for operation in overlay.children() {
            operations += 1;
            let is_of_it = operation
                .property("instance-name")
                .is_some_and(|property| says(name.as_str(), property.value()));
            entry.makes |= is_of_it && operation.name() == "instance-create";
            entry.removes |= is_of_it && operation.name() == "instance-remove";
        }
    }
    entry.has_parts = operations > 1;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(transaction: u64, status: &str) -> Entry {
        Entry { transaction, status: status.into(), ..Entry::default() }
    }

    fn made(transaction: u64, status: &str, is_ours: bool) -> Entry {
        Entry { makes: true, is_ours, ..told(transaction, status) }
    }

    fn removed(transaction: u64, status: &str) -> Entry {
        Entry { removes: true, ..told(transaction, status) }
    }

    #[test]
    fn the_last_that_made_it_and_took_effect_made_it() {
        let ours = made(2, "applied", true);
        assert_eq!(judge([ours.clone()]), Maker::Us);
        assert_eq!(judge([ours.clone(), removed(3, "applied")]), Maker::Another);
        assert_eq!(judge([ours.clone(), removed(3, "applied"), made(4, "applied", false)]), Maker::Another);
        assert_eq!(
            judge([ours.clone(), made(4, "applied", false)]),
            Maker::Another,
            "its removal was taken back"
        );
        assert_eq!(
            judge([made(2, "applied", false), removed(3, "applied"), made(4, "applied", true)]),
            Maker::Us
        );
        assert_eq!(judge([]), Maker::Another, "ours was taken back, with all that it had made");
    }

    #[test]
    fn what_failed_changes_nothing_unless_it_had_parts() {
        let ours = made(2, "applied", true);
        assert_eq!(judge([ours.clone(), removed(3, "failed"), made(4, "failed", false)]), Maker::Us);
        assert_eq!(
            judge([made(2, "applied", false), made(3, "failed", true)]),
            Maker::Another,
            "the name was taken"
        );
        assert_eq!(judge([made(3, "failed", true)]), Maker::Us, "it is there, and nobody else made it");
        let parts = Entry { has_parts: true, ..removed(3, "failed") };
        assert!(matches!(judge([ours.clone(), parts.clone()]), Maker::Unknown(why) if why.contains("tx_3")));
        assert_eq!(judge([ours.clone(), parts, made(4, "applied", false)]), Maker::Another);
        assert!(matches!(judge([ours, removed(3, "pending")]), Maker::Unknown(_)));
    }
}
