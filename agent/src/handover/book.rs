//! What this agent was told of units in hand-overs, what it is doing to them, and what it has promised: no I/O, time as an argument
//! (since the kernel's boot, so that it means the same to an agent that was started again).
//!
//! An order is *admitted* when it comes, *begun* when it is its turn, and *finished*. In between it may be overtaken: whoever has been told
//! what goes on with a unit under an epoch has outdated every order of that epoch or an older one that was not begun.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tombolo_handover::operation::Veto;
use tombolo_handover::{OpId, UnitId};

use super::veto::never;
use crate::api::handover::{Action, Here};

/// Units remembered at most. Each operation names its units with every question, so the oldest can go.
const UNITS_MAX: usize = 4096;

/// What was promised of a unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Promise {
    /// Nothing out of the ordinary.
    #[default]
    Nothing,
    /// It is not used, and kept ready to be taken.
    Drained,
    /// It is used, and was seen to work.
    Online,
}

/// What is done to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) operation: OpId,
    pub(super) here: Here,
    pub(super) action: Action,
    /// What it comes to lapses then.
    pub(super) until: Duration,
}

/// What was done to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    operation: OpId,
    here: Here,
    promise: Promise,
    /// The promise lapses then, unless it was confirmed.
    until: Duration,
    /// Whether the control plane was told that all still stands: from then on it may take what was promised at any time.
    confirmed: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// The newest that was answered.
    epoch: u64,
    piece: Option<Piece>,
    begun: Option<Begun>,
    /// The epoch of an order whose turn has not come.
    #[serde(skip)]
    admitted: Option<u64>,
    /// The operation whose lease somebody watches.
    #[serde(skip)]
    watched: Option<OpId>,
}

impl Piece {
    fn lapses(&self) -> bool {
        self.promise == Promise::Drained && !self.confirmed
    }
}

/// Everything known of units in hand-overs.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Book {
    units: HashMap<UnitId, Entry>,
}

impl Book {
    /// Whether an order under this epoch may be carried out: it is newer than anything answered before.
    pub(super) fn admit(&mut self, unit: UnitId, epoch: u64) -> Result<(), Veto> {
        match self.units.get(&unit) {
            Some(entry) if epoch <= entry.epoch => Err(out_of_date(epoch, entry.epoch)),
            _ => {
                let entry = self.entry(unit);
                (entry.epoch, entry.admitted) = (epoch, Some(epoch));
                Ok(())
            }
        }
    }

    /// Takes note that an order which was admitted is carried out now, unless it was overtaken while it waited.
    pub(super) fn begin(&mut self, unit: UnitId, epoch: u64, begun: Begun) -> Result<(), Veto> {
        let entry = self.entry(unit);
        if entry.admitted != Some(epoch) {
            return Err(out_of_date(epoch, entry.epoch));
        }
        (entry.admitted, entry.begun) = (None, Some(begun));
        Ok(())
    }

    /// Takes note of how that ended. What was done is promised, also if a newer epoch was answered meanwhile: no newer order can have been
    /// begun, and whoever looks waits for it. What was not done leaves everything as it was.
    pub(super) fn finish(&mut self, unit: UnitId, is_done: bool) {
        let Some(entry) = self.units.get_mut(&unit) else { return };
        let Some(Begun { operation, here, action, until }) = entry.begun.take().filter(|_| is_done) else {
            return;
        };
        let promise = match action {
            Action::Drain => Promise::Drained,
            Action::Undrain => Promise::Nothing,
            Action::Online => Promise::Online,
        };
        let was_confirmed = entry.piece.is_some_and(|before| {
            before.operation == operation && before.promise == Promise::Drained && before.confirmed
        });
        let confirmed = promise == Promise::Drained && was_confirmed;
        entry.piece = Some(Piece { operation, here, promise, until, confirmed });
    }

    /// Whether something is done to a unit now.
    pub(super) fn is_under_way(&self, unit: UnitId) -> bool {
        self.units.get(&unit).is_some_and(|entry| entry.begun.is_some())
    }

    /// Takes note of what was heard of a unit: outdates what is older, and renews what was promised for the same operation. Whether
    /// there was any.
    pub(super) fn note(&mut self, operation: OpId, unit: UnitId, epoch: u64, until: Duration) -> bool {
        let entry = self.entry(unit);
        entry.epoch = epoch.max(entry.epoch);
        entry.admitted = entry.admitted.filter(|admitted| *admitted >= epoch);
        if let Some(begun) = entry.begun.as_mut().filter(|begun| begun.operation == operation) {
            begun.until = until;
        }
        let piece = entry.piece.as_mut().filter(|piece| piece.operation == operation);
        piece.map(|piece| piece.until = until).is_some()
    }

    /// The same for whoever will be told what goes on with the unit, which outdates orders of that same epoch, too.
    pub(super) fn look(&mut self, operation: OpId, unit: UnitId, epoch: u64, until: Duration) -> bool {
        let entry = self.entry(unit);
        entry.admitted = entry.admitted.filter(|admitted| *admitted > epoch);
        self.note(operation, unit, epoch, until)
    }

    /// Takes note that the unit is drained and may be taken at any time: that does not lapse any more. It may have been drained for another
    /// operation, or by hand.
    pub(super) fn confirm(&mut self, operation: OpId, unit: UnitId, here: Here, until: Duration) {
        let piece = Piece { operation, here, promise: Promise::Drained, until, confirmed: true };
        self.entry(unit).piece = Some(piece);
    }

    /// What is promised of a unit for an operation; what was for an earlier one says nothing any more.
    pub(super) fn promise(&self, operation: OpId, unit: UnitId) -> Promise {
        let piece = self.units.get(&unit).and_then(|entry| entry.piece);
        piece.filter(|piece| piece.operation == operation).map_or(Promise::Nothing, |piece| piece.promise)
    }

    /// How much memory is kept drained for an operation, this unit left out, in bytes.
    pub(super) fn drained_bytes(&self, operation: OpId, except: UnitId) -> u64 {
        let pieces =
            self.units.iter().filter(|(unit, _)| **unit != except).filter_map(|(_, entry)| entry.piece);
        pieces
            .filter(|piece| piece.operation == operation && piece.promise == Promise::Drained)
            .map(|piece| piece.here.bytes())
            .fold(0, u64::saturating_add)
    }
}

/// Leases.
impl Book {
    /// What is kept drained for operations, and lapses some time.
    pub(super) fn leases(&self) -> Vec<(OpId, UnitId)> {
        let pieces = self.units.iter().filter_map(|(unit, entry)| Some((*unit, entry.piece?)));
        pieces.filter(|(_, piece)| piece.lapses()).map(|(unit, piece)| (piece.operation, unit)).collect()
    }

    /// Whether nobody watches this lease yet; from now on somebody does.
    pub(super) fn watch(&mut self, operation: OpId, unit: UnitId) -> bool {
        self.entry(unit).watched.replace(operation) != Some(operation)
    }

    /// What is kept drained for the operation, and until when. `None` for whatever does not lapse any more: nobody watches it from now on.
    pub(super) fn watched(&mut self, operation: OpId, unit: UnitId) -> Option<(Here, Duration)> {
        let lapses = self.lapses_at(operation, unit);
        let entry = self.units.get_mut(&unit)?;
        if lapses.is_none() {
            entry.watched = entry.watched.filter(|watched| *watched != operation);
        }
        Some((entry.piece?.here, lapses?))
    }

    /// Takes note that a unit is used again, if its time has come.
    pub(super) fn begin_lapse(&mut self, operation: OpId, unit: UnitId, now: Duration) -> Option<Begun> {
        let until = self.lapses_at(operation, unit).filter(|until| *until <= now)?;
        let entry = self.units.get_mut(&unit)?;
        let here = entry.piece?.here;
        entry.begun = Some(Begun { operation, here, action: Action::Undrain, until });
        entry.begun
    }

    fn lapses_at(&self, operation: OpId, unit: UnitId) -> Option<Duration> {
        let piece = self.units.get(&unit)?.piece?;
        (piece.operation == operation && piece.lapses()).then_some(piece.until)
    }
}

/// What an agent that was started again finds.
impl Book {
    /// What was begun and of which it is not known how it ended.
    pub(super) fn unfinished(&self) -> Vec<(UnitId, Begun)> {
        self.units.iter().filter_map(|(unit, entry)| Some((*unit, entry.begun?))).collect()
    }

    /// Takes note of what has become of it, by what the unit is seen to be now. One that is out of use, and was not to be brought into use
    /// for a receiver, lapses with its lease: whether it was to be drained, or to be used again.
    pub(super) fn settle(&mut self, unit: UnitId, is_offline: bool) {
        let Some(entry) = self.units.get_mut(&unit) else { return };
        let Some(Begun { operation, here, action, until }) = entry.begun.take() else { return };
        match action {
            Action::Drain | Action::Undrain if is_offline => {
                let promise = Promise::Drained;
                entry.piece = Some(Piece { operation, here, promise, until, confirmed: false });
            }
            // It is used, whatever was promised before.
            Action::Undrain => entry.piece = None,
            Action::Drain | Action::Online => {}
        }
    }

    /// Whether it holds no more than it can.
    pub(super) fn is_bounded(&self) -> bool {
        self.units.len() <= UNITS_MAX
    }

    fn entry(&mut self, unit: UnitId) -> &mut Entry {
        if self.units.len() >= UNITS_MAX && !self.units.contains_key(&unit) {
            // What lapses is needed until it has.
            let oldest = self.units.iter().min_by_key(|(_, entry)| {
                let lapses = entry.piece.is_some_and(|piece| piece.lapses());
                (entry.begun.is_some(), lapses, entry.piece.map(|piece| piece.until))
            });
            if let Some(oldest) = oldest.map(|(unit, _)| *unit) {
                self.units.remove(&oldest);
            }
        }
        self.units.entry(unit).or_default()
    }
}

fn out_of_date(epoch: u64, answered: u64) -> Veto {
    never(format!("an order under epoch {epoch} is out of date: {answered} was answered already"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OP: OpId = OpId(7);
    const OTHER: OpId = OpId(8);
    const LOT: UnitId = UnitId::Lot(3);
    const CPU: UnitId = UnitId::Cpu(1);
    const SOON: Duration = Duration::from_secs(10);
    const LATE: Duration = Duration::from_secs(30);

    fn drain(here: Here, until: Duration) -> Begun {
        Begun { operation: OP, here, action: Action::Drain, until }
    }

    fn lot(until: Duration) -> Begun {
        drain(Here::Memory { bytes: 100 }, until)
    }

    fn cpu(until: Duration) -> Begun {
        drain(Here::Cpu { index: 1 }, until)
    }

    fn does(book: &mut Book, unit: UnitId, epoch: u64, begun: Begun) {
        book.admit(unit, epoch).unwrap();
        book.begin(unit, epoch, begun).unwrap();
        book.finish(unit, true);
    }

    fn lapses(book: &mut Book, unit: UnitId) -> Option<Duration> {
        book.watched(OP, unit).map(|(_, until)| until)
    }

    #[test]
    fn an_order_is_taken_once_and_nothing_older_after_it() {
        let mut book = Book::default();
        book.admit(LOT, 5).unwrap();
        assert!(book.admit(LOT, 5).is_err(), "it may have been sent twice");
        book.note(OP, LOT, 9, SOON);
        assert!(book.admit(LOT, 8).is_err(), "a look has outdated it");
        book.admit(LOT, 10).unwrap();
    }

    #[test]
    fn an_order_that_was_overtaken_while_it_waited_is_never_begun() {
        let mut book = Book::default();
        book.admit(LOT, 5).unwrap();
        book.look(OP, LOT, 5, SOON);
        assert!(book.begin(LOT, 5, lot(SOON)).is_err(), "a look under its own epoch has not shown it");
        book.admit(LOT, 6).unwrap();
        book.note(OP, LOT, 7, SOON);
        assert!(book.begin(LOT, 6, lot(SOON)).is_err(), "a newer question");
        book.admit(LOT, 8).unwrap();
        book.admit(LOT, 9).unwrap();
        assert!(book.begin(LOT, 8, lot(SOON)).is_err(), "a newer order");
        book.note(OP, LOT, 9, SOON);
        book.look(OP, LOT, 8, SOON);
        book.begin(LOT, 9, lot(SOON)).unwrap();
        assert!(book.begin(LOT, 9, lot(SOON)).is_err(), "once");
    }

    #[test]
    fn what_is_done_while_a_newer_epoch_is_answered_is_promised_with_the_lease_heard_of_last() {
        let mut book = Book::default();
        book.admit(LOT, 5).unwrap();
        book.begin(LOT, 5, lot(SOON)).unwrap();
        book.look(OP, LOT, 6, LATE);
        assert!(book.is_under_way(LOT), "the look has to wait for it");
        book.finish(LOT, true);
        assert_eq!((book.promise(OP, LOT), book.is_under_way(LOT)), (Promise::Drained, false));
        assert_eq!(book.leases(), [(OP, LOT)]);
        assert_eq!(lapses(&mut book, LOT), Some(LATE));
    }

    #[test]
    fn what_could_not_be_done_leaves_the_promise_as_it_was() {
        let mut book = Book::default();
        does(&mut book, LOT, 1, lot(SOON));
        book.admit(LOT, 2).unwrap();
        book.begin(LOT, 2, Begun { operation: OTHER, action: Action::Undrain, ..lot(LATE) }).unwrap();
        book.finish(LOT, false);
        assert_eq!((book.promise(OP, LOT), lapses(&mut book, LOT)), (Promise::Drained, Some(SOON)));
    }

    #[test]
    fn a_promise_lapses_unless_something_is_heard_of_its_operation() {
        let mut book = Book::default();
        does(&mut book, LOT, 1, lot(SOON));
        assert!(!book.note(OTHER, LOT, 2, LATE), "another operation's");
        assert!(book.note(OP, LOT, 3, LATE));
        assert_eq!(book.begin_lapse(OP, LOT, SOON), None, "renewed");
        assert_eq!(book.begin_lapse(OTHER, LOT, LATE), None, "another operation's");
        assert_eq!(book.begin_lapse(OP, LOT, LATE).unwrap().here, Here::Memory { bytes: 100 });
        assert!(book.is_under_way(LOT));
        book.finish(LOT, false);
        assert!(book.begin_lapse(OP, LOT, LATE).is_some(), "it did not work: again");
        book.finish(LOT, true);
        assert_eq!(book.promise(OP, LOT), Promise::Nothing);
        assert_eq!(book.begin_lapse(OP, LOT, LATE), None, "once");
    }

    #[test]
    fn a_promise_that_was_confirmed_does_not_lapse() {
        let mut book = Book::default();
        does(&mut book, LOT, 1, lot(SOON));
        book.confirm(OP, LOT, Here::Memory { bytes: 100 }, SOON);
        does(&mut book, LOT, 2, lot(SOON));
        assert_eq!(book.begin_lapse(OP, LOT, LATE), None);
        assert_eq!((book.promise(OP, LOT), lapses(&mut book, LOT)), (Promise::Drained, None));
        does(&mut book, LOT, 3, Begun { action: Action::Undrain, ..lot(SOON) });
        does(&mut book, LOT, 4, lot(SOON));
        assert_eq!(lapses(&mut book, LOT), Some(SOON), "it was used again since");
    }

    #[test]
    fn what_is_confirmed_for_an_operation_does_not_lapse_for_an_earlier_one() {
        let mut book = Book::default();
        does(&mut book, CPU, 1, cpu(SOON));
        book.note(OTHER, CPU, 2, LATE);
        book.confirm(OTHER, CPU, Here::Cpu { index: 1 }, LATE);
        assert_eq!(book.begin_lapse(OP, CPU, LATE), None);
        assert_eq!(book.leases(), []);
    }

    #[test]
    fn a_lease_is_watched_once() {
        let mut book = Book::default();
        does(&mut book, CPU, 1, cpu(SOON));
        assert!(book.watch(OP, CPU));
        assert!(!book.watch(OP, CPU));
        assert_eq!(lapses(&mut book, CPU), Some(SOON));
        book.confirm(OP, CPU, Here::Cpu { index: 1 }, SOON);
        assert_eq!(lapses(&mut book, CPU), None);
        assert!(book.watch(OP, CPU), "whoever watched has gone");
    }

    #[test]
    fn memory_that_is_kept_free_is_counted_by_operation() {
        let mut book = Book::default();
        does(&mut book, LOT, 1, lot(SOON));
        does(&mut book, UnitId::Lot(4), 1, lot(SOON));
        does(&mut book, UnitId::Lot(5), 1, Begun { operation: OTHER, ..lot(SOON) });
        assert_eq!(book.drained_bytes(OP, UnitId::Lot(9)), 200);
        assert_eq!(book.drained_bytes(OP, LOT), 100);
        assert_eq!(book.promise(OTHER, LOT), Promise::Nothing, "another operation's");
    }

    #[test]
    fn what_was_begun_before_a_restart_is_settled_by_what_is_seen() {
        let settled = |begun: Begun, is_offline: bool| {
            let mut book = Book::default();
            does(&mut book, CPU, 1, cpu(SOON));
            book.admit(CPU, 2).unwrap();
            book.begin(CPU, 2, begun).unwrap();
            assert_eq!(book.unfinished(), [(CPU, begun)]);
            book.settle(CPU, is_offline);
            assert_eq!(book.unfinished(), []);
            (book.promise(OTHER, CPU), book.leases())
        };
        let of_other = |action| Begun { operation: OTHER, action, ..cpu(LATE) };
        let (drained, before) = ((Promise::Drained, vec![(OTHER, CPU)]), vec![(OP, CPU)]);
        assert_eq!(settled(of_other(Action::Drain), true), drained);
        assert_eq!(settled(of_other(Action::Drain), false), (Promise::Nothing, before.clone()), "not done");
        assert_eq!(settled(of_other(Action::Undrain), true), drained, "it lapses, which does it");
        assert_eq!(settled(of_other(Action::Undrain), false), (Promise::Nothing, vec![]));
        assert_eq!(settled(of_other(Action::Online), true), (Promise::Nothing, before), "it was never used");
    }

    #[test]
    fn the_book_does_not_grow_without_end_and_keeps_what_lapses() {
        let mut book = Book::default();
        does(&mut book, CPU, 1, cpu(Duration::ZERO));
        let numbers = UNITS_MAX as u64 + 100;
        for number in 0..numbers {
            let begun = Begun { action: Action::Online, ..lot(Duration::from_millis(number)) };
            does(&mut book, UnitId::Lot(number), 1, begun);
        }
        assert!(book.is_bounded() && book.units.len() == UNITS_MAX);
        assert_eq!(book.promise(OP, UnitId::Lot(numbers - 1)), Promise::Online);
        assert_eq!(book.leases(), [(OP, CPU)]);
    }
}
