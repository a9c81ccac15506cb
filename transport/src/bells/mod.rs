//! Which connection a bell is for: found in a few loads, however many connections there are.
//!
//! A bell says whose it is, not what for. Whoever rings for a connection first counts the bell in three places that only its kernel writes: in its half
//! of the connection, on the [`Board`] of its extent in the *group* that the half belongs to, and there in the *summary* of sixteen groups. Who hears
//! the bell goes the other way: the summaries that have changed, in these the groups that have, in these the connections.
//!
//! ```text
//!   ringer                       its extent                                hearer
//!   half.bell_count += 1   ┌ board ──────────────────────────┐   3 which of my halves of that group?
//!   groups[g]       += 1 ─▶│ summaries  16 words, 2 lines     │◀─ 1 which sixteen groups?
//!   summaries[g/16] += 1 ─▶│ groups    256 words, 32 lines    │◀─ 2 which groups?
//!   rings                  └─────────────────────────────────┘
//! ```
//!
//! The counts are in memory, so a bell that was lost on its way is found by whoever looks at the board by itself. A kernel that counts wrongly costs others
//! looks in vain, and itself bells; what it does not count is found by the slow [sweep](Hearers::sweep). The idea of a word that
//! says where to look is that of `mk doorbell.c` and of iceoryx2's bit set; counts instead of bits, since only one side writes here.

mod board;
mod hearers;
#[cfg(test)]
mod loom_tests;
mod members;

pub(crate) use board::{BOARD_BYTES, Board};
pub(crate) use hearers::Hearers;
pub(crate) use members::MemberSet;
