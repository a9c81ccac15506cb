//! The connections of a process, by the member that rings for them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use crate::bells::Hearers;
use crate::mem::{Memory as _, PeerSpan};
use crate::pool::layout::{row, status};
use crate::pool::{Member, Pool};
use crate::shm::conn::Conn;

/// All connections that have not been dropped.
#[derive(Debug, Default)]
pub(super) struct Conns {
    /// By member; shorter than there are members until it has to be longer.
    members: Vec<Option<Box<OfMember>>>,
}

#[derive(Debug)]
struct OfMember {
    hearers: Hearers<PeerSpan, Weak<Conn>>,
    vital: Vital,
}

/// The words that tell of a death, ours or the member's: with any other value than before, each connection has to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vital([u64; 4]);

impl Vital {
    fn of(pool: &Pool, peer: Member) -> Self {
        let layout = &pool.layout;
        let words = |member| {
            [layout.extent(member) + status::GENERATION, layout.row(member) + row::FENCED_GENERATION]
        };
        let ([a, b], [c, d]) = (words(pool.member()), words(peer));
        Self([a, b, c, d].map(|word| pool.whole().load(word, Ordering::Acquire)))
    }
}

impl Conns {
    pub(super) fn insert(&mut self, pool: &Pool, conn: &Arc<Conn>) {
        let index = conn.peer.index();
        if self.members.len() <= index {
            self.members.resize_with(index + 1, || None);
        }
        let of_member = self.members[index].get_or_insert_with(|| {
            Box::new(OfMember {
                hearers: Hearers::new(pool.board(conn.peer)),
                vital: Vital::of(pool, conn.peer),
            })
        });
        of_member.hearers.insert(conn.peer_offset, Arc::downgrade(conn));
    }

    /// Takes out one that is being dropped.
    pub(super) fn remove(&mut self, conn: &Conn) {
        if let Some(Some(of_member)) = self.members.get_mut(conn.peer.index()) {
            of_member.hearers.remove(conn.peer_offset, |held| std::ptr::eq(held.as_ptr(), conn));
        }
    }

    /// Appends to `found` those for which somebody may have rung, or whose end has come, since the last time; with `sweep` also some of those
    /// of which nothing was said. They must not be dropped under the lock on this: the last to drop one takes it out.
    pub(super) fn rung(&mut self, pool: &Pool, sweep: bool, found: &mut Vec<Arc<Conn>>) {
        for (index, of_member) in self.members.iter_mut().enumerate() {
            let Some(of_member) = of_member.as_mut().filter(|of_member| !of_member.hearers.is_empty()) else {
                continue;
            };
            let mut find = |conn: &mut Weak<Conn>| found.extend(conn.upgrade());
            of_member.hearers.rung(&mut find);
            if sweep {
                of_member.hearers.sweep(&mut find);
            }
            let vital = Vital::of(pool, Member(index as u16));
            if std::mem::replace(&mut of_member.vital, vital) != vital {
                of_member.hearers.all(&mut find);
            }
        }
    }

    /// Appends all to `found`. As [`Conns::rung`].
    pub(super) fn all(&mut self, found: &mut Vec<Arc<Conn>>) {
        for of_member in self.members.iter_mut().flatten() {
            of_member.hearers.all(|conn| found.extend(conn.upgrade()));
        }
    }
}
