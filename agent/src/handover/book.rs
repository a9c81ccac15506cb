//! What this agent was told of units in hand-overs, and what it has promised: no I/O, time as an argument.

use std::collections::HashMap;
use std::time::Instant;

use tombolo_handover::operation::Veto;
use tombolo_handover::{OpId, UnitId};

/// Units remembered at most. Each operation names its units with every question, so the oldest can go.
const UNITS_MAX: usize = 4096;

/// What was promised of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Promise {
    /// Nothing out of the ordinary.
    #[default]
    Nothing,
    /// It is not used, and kept ready to be taken.
    Drained,
    /// It is used, and was seen to work.
    Online,
}

/// What is known of a unit in an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) operation: OpId,
    pub(super) bytes: u64,
    pub(super) promise: Promise,
    /// The promise lapses then, unless it was confirmed.
    pub(super) until: Instant,
    /// Whether the control plane was told that all still stands: from then on it may take what was promised at any time.
    pub(super) confirmed: bool,
}

/// Everything known of units in hand-overs.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// With the newest epoch that was answered.
    units: HashMap<UnitId, (u64, Option<Piece>)>,
}

impl Book {
    /// Whether an order under this epoch may be carried out: it is newer than anything answered before.
    pub(super) fn admit(&mut self, unit: UnitId, epoch: u64) -> Result<(), Veto> {
        match self.units.get(&unit) {
            Some((seen, _)) if epoch <= *seen => Err(Veto {
                reason: format!("an order under epoch {epoch} is out of date: {seen} was answered already"),
                retry_after_ms: None,
            }),
            _ => {
                self.entry(unit).0 = epoch;
                Ok(())
            }
        }
    }

    /// Enters what was promised under this epoch, unless a newer one was answered meanwhile.
    pub(super) fn put(&mut self, unit: UnitId, epoch: u64, piece: Piece) {
        let entry = self.entry(unit);
        if entry.0 <= epoch {
            let before = entry.1.filter(|before| before.operation == piece.operation);
            let confirmed = piece.confirmed || before.is_some_and(|before| before.confirmed);
            *entry = (epoch, Some(Piece { confirmed, ..piece }));
        }
    }

    /// Takes note of what was heard of a unit: outdates what is older, and renews what was promised for the same operation.
    pub(super) fn note(&mut self, operation: OpId, unit: UnitId, epoch: u64, until: Instant) {
        let (seen, piece) = self.entry(unit);
        *seen = epoch.max(*seen);
        if let Some(piece) = piece.as_mut().filter(|piece| piece.operation == operation) {
            piece.until = until;
        }
    }

    /// Takes note that all still stands: what was promised for the operation does not lapse any more.
    pub(super) fn confirm(&mut self, operation: OpId, unit: UnitId) {
        if let Some((_, Some(piece))) = self.units.get_mut(&unit)
            && piece.operation == operation
        {
            piece.confirmed = true;
        }
    }

    /// What is kept drained for an operation, until when; `None` for whatever does not lapse.
    pub(super) fn lapses_at(&self, operation: OpId, unit: UnitId) -> Option<Instant> {
        let piece = self.units.get(&unit).and_then(|(_, piece)| *piece)?;
        let lapses = piece.operation == operation && piece.promise == Promise::Drained && !piece.confirmed;
        lapses.then_some(piece.until)
    }

    /// What is promised of a unit for an operation; what was for an earlier one says nothing any more.
    pub(super) fn promise(&self, operation: OpId, unit: UnitId) -> Promise {
        let piece = self.units.get(&unit).and_then(|(_, piece)| *piece);
        piece.filter(|piece| piece.operation == operation).map_or(Promise::Nothing, |piece| piece.promise)
    }

    /// How much memory is kept drained for an operation, this unit left out, in bytes.
    pub(super) fn drained_bytes(&self, operation: OpId, except: UnitId) -> u64 {
        let pieces =
            self.units.iter().filter(|(unit, _)| **unit != except).filter_map(|(_, (_, piece))| *piece);
        pieces
            .filter(|piece| piece.operation == operation && piece.promise == Promise::Drained)
            .map(|piece| piece.bytes)
            .fold(0, u64::saturating_add)
    }

    /// Lets the promise of a unit lapse, if its time has come; whether it had.
    pub(super) fn lapse(&mut self, operation: OpId, unit: UnitId, now: Instant) -> bool {
        let lapsed = self.lapses_at(operation, unit).is_some_and(|until| until <= now);
        if lapsed && let Some((_, piece)) = self.units.get_mut(&unit) {
            *piece = None;
        }
        lapsed
    }

    fn entry(&mut self, unit: UnitId) -> &mut (u64, Option<Piece>) {
        if self.units.len() >= UNITS_MAX && !self.units.contains_key(&unit) {
            let oldest = self.units.iter().min_by_key(|(_, (_, piece))| piece.map(|piece| piece.until));
            if let Some(oldest) = oldest.map(|(unit, _)| *unit) {
                self.units.remove(&oldest);
            }
        }
        self.units.entry(unit).or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const OP: OpId = OpId(7);
    const LOT: UnitId = UnitId::Lot(3);

    fn drained(until: Instant) -> Piece {
        Piece { operation: OP, bytes: 100, promise: Promise::Drained, until, confirmed: false }
    }

    #[test]
    fn an_order_is_taken_once_and_nothing_older_after_it() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.admit(LOT, 5).unwrap();
        assert!(book.admit(LOT, 5).is_err(), "it may have been sent twice");
        book.note(OP, LOT, 9, now);
        assert!(book.admit(LOT, 8).is_err(), "a look has outdated it");
        book.admit(LOT, 10).unwrap();
    }

    #[test]
    fn what_was_done_under_an_epoch_that_was_overtaken_meanwhile_is_not_promised() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.admit(LOT, 5).unwrap();
        book.note(OP, LOT, 6, now);
        book.put(LOT, 5, drained(now));
        assert_eq!(book.promise(OP, LOT), Promise::Nothing);
    }

    #[test]
    fn a_promise_lapses_unless_something_is_heard_of_its_operation() {
        let (mut book, now) = (Book::default(), Instant::now());
        let later = now + Duration::from_secs(30);
        book.put(LOT, 1, drained(now + Duration::from_secs(10)));
        book.note(OpId(8), LOT, 2, later);
        book.note(OP, LOT, 3, later);
        assert!(!book.lapse(OP, LOT, now + Duration::from_secs(20)), "renewed");
        assert!(!book.lapse(OpId(8), LOT, later), "another operation's");
        assert!(book.lapse(OP, LOT, later));
        assert_eq!(book.promise(OP, LOT), Promise::Nothing);
        assert!(!book.lapse(OP, LOT, later), "once");
    }

    #[test]
    fn a_promise_that_was_confirmed_does_not_lapse() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.put(LOT, 1, drained(now));
        assert_eq!(book.lapses_at(OP, LOT), Some(now));
        book.confirm(OpId(8), LOT);
        assert_eq!(book.lapses_at(OP, LOT), Some(now), "another operation was confirmed");
        book.confirm(OP, LOT);
        book.put(LOT, 2, drained(now));
        assert!(!book.lapse(OP, LOT, now + Duration::from_secs(1)));
        assert_eq!((book.promise(OP, LOT), book.lapses_at(OP, LOT)), (Promise::Drained, None));
    }

    #[test]
    fn memory_that_is_kept_free_is_counted_by_operation() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.put(LOT, 1, drained(now));
        book.put(UnitId::Lot(4), 1, drained(now));
        book.put(UnitId::Lot(5), 1, Piece { operation: OpId(8), ..drained(now) });
        assert_eq!(book.drained_bytes(OP, UnitId::Lot(9)), 200);
        assert_eq!(book.drained_bytes(OP, LOT), 100);
        assert_eq!(book.promise(OpId(8), LOT), Promise::Nothing, "another operation's");
    }

    #[test]
    fn the_book_does_not_grow_without_end() {
        let (mut book, now) = (Book::default(), Instant::now());
        for number in 0..2 * UNITS_MAX as u64 {
            book.put(UnitId::Lot(number), 1, drained(now + Duration::from_millis(number)));
        }
        assert_eq!(book.units.len(), UNITS_MAX);
        assert_eq!(book.promise(OP, UnitId::Lot(2 * UNITS_MAX as u64 - 1)), Promise::Drained);
    }
}
