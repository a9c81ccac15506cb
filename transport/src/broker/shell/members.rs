//! The other members: their rows, their generations, their control rings, their lines.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Event, LineReader, Shell, Watch, only_primary};
use crate::addr::Cid;
use crate::broker::core::{ClientId, MemberInfo};
use crate::broker::link::{ControlLink, Taken};
use crate::broker::protocol::ClientMessage;
use crate::doorbell::{Hearing, Line, Lines, ring_eventfd};
use crate::error::{Error, Result};
use crate::incarnation::Incarnation;
use crate::mem::MemoryMut;
use crate::pool::layout::{GENERATION_LEAD_MAX, row, status};
use crate::pool::{Member, RowContent};

impl Shell {
    /// Looks at every row and every generation, and tells the core what has changed.
    pub(super) fn refresh_members(&mut self) {
        self.heed_fence();
        self.pool.layout.members().for_each(|member| self.refresh_member(member));
    }

    /// The same for what the answer to a process depends on: in a large pool a look at everybody takes longer than most answers.
    pub(super) fn refresh_for(&mut self, message: &ClientMessage) {
        match message {
            ClientMessage::Connect { addr, .. } => {
                let known = self.life.core.member_with(addr.cid);
                self.heed_fence();
                known.into_iter().for_each(|member| self.refresh_member(member));
                if known.is_none() || self.life.core.member_with(addr.cid) != known {
                    self.refresh_members();
                }
            }
            ClientMessage::Resolve { .. } => self.refresh_members(),
            _ => self.heed_fence(),
        }
    }

    fn heed_fence(&mut self) {
        if self.pool.fenced_generation(self.member) >= self.life.generation {
            tracing::warn!("the primary has declared this kernel dead; beginning anew");
            self.begin_anew();
        }
    }

    fn refresh_member(&mut self, member: Member) {
        // A row that the primary is writing, or was writing when it was killed, says nothing: what it said before holds until it
        // is whole. (Nobody dies of that: fences and generations are elsewhere.)
        let sequence = self.pool.row_sequence(member);
        if sequence != self.rows[member.index()].0 && sequence.is_multiple_of(2) {
            let row = self.pool.row(member);
            if self.pool.row_sequence(member) == sequence {
                self.rows[member.index()] = (sequence, row);
                self.hears_all = None;
            }
        }
        let row = self.rows[member.index()].1.as_ref();
        let generation = match row {
            Some(_) if member == self.member => self.life.generation,
            Some(_) => self.pool.live_generation(member),
            None => 0,
        };
        let known = self.life.core.member(member);
        let same = match (row, known) {
            (None, None) => true,
            (Some(row), Some(info)) => {
                (row.cid, row.name.as_str(), generation) == (info.cid, info.name.as_str(), info.generation)
            }
            _ => false,
        };
        if same {
            return;
        }
        let info = row.map(|row| MemberInfo { cid: row.cid, name: row.name.clone(), generation });
        tracing::debug!(%member, generation, "member changed");
        if let Some(link) = &mut self.life.links[member.index()]
            && link.peer_generation() != generation
        {
            match generation {
                0 => link.close(),
                _ => link.open(generation),
            }
            self.life.dirty.insert(member);
        }
        self.life.core.handle_member_change(member, info);
        if generation != 0 && member != self.member {
            // It may be waiting for us to open our side.
            self.ring(member);
        }
    }

    /// Takes what a peer has for us: records, and bells for our processes. Whether there was anything.
    pub(super) fn scan(&mut self, peer: Member) -> bool {
        let taken = self.take_records(peer);
        if taken >= u64::from(self.pool.layout.control_slots / 2) {
            // It may have more than its ring had room for.
            self.ring(peer);
        }
        if self.life.links[peer.index()].as_ref().is_some_and(ControlLink::has_pending) {
            self.life.dirty.insert(peer);
        }
        let mut rung = Rung::default();
        if let Some(hearers) = &mut self.life.watches[peer.index()] {
            hearers.rung(|watch| rung.note(watch));
        }
        self.pass_on(rung) || taken != 0
    }

    /// The same for a part of what a peer may have rung for and not counted.
    pub(super) fn sweep(&mut self, peer: Member) -> bool {
        let mut rung = Rung::default();
        if let Some(hearers) = &mut self.life.watches[peer.index()] {
            hearers.sweep(|watch| rung.note(watch));
        }
        self.pass_on(rung)
    }

    fn pass_on(&self, Rung(clients): Rung) -> bool {
        for client in clients.iter().filter_map(|client| self.life.clients.get(client)) {
            ring_eventfd(&client.eventfd);
        }
        !clients.is_empty()
    }

    /// At most two rounds of the ring: a peer that writes as fast as we read cannot keep us here. It rings for the rest.
    fn take_records(&mut self, peer: Member) -> u64 {
        let most = 2 * u64::from(self.pool.layout.control_slots);
        for taken in 0..most {
            let Some(link) = &mut self.life.links[peer.index()] else { return taken };
            match link.take() {
                Taken::Record(record) if record.is_request() && link.is_clogged() => {
                    self.life.core.handle_bad_record();
                }
                Taken::Record(record) => self.life.core.handle_record(peer, record),
                Taken::Nonsense => self.life.core.handle_bad_record(),
                Taken::Nothing => return taken,
            }
            self.drain_outputs();
        }
        most
    }

    pub(super) fn add_line(&mut self, member: Member, line: Line) {
        let line = Arc::new(line);
        self.remove_line(member);
        self.next_id += 1;
        let id = self.next_id;
        // Spawned kernels have no line to each other: the primary passes their bells on, here and at once.
        let others = (self.member == Member::PRIMARY).then(|| self.lines.clone());
        let task = tokio::spawn(read_line(Arc::clone(&line), member, id, others, self.events.clone()));
        self.lines.insert(member, line);
        self.hears_all = None;
        self.line_readers.insert(member, LineReader { task, id });
        // Whatever was missed while there was no line.
        self.ring_everybody();
        self.scan(member);
    }

    pub(super) fn remove_line(&mut self, member: Member) {
        self.lines.remove(member);
        self.hears_all = None;
        if let Some(reader) = self.line_readers.remove(&member) {
            reader.task.abort();
        }
    }

    /// How often to look around: more often while somebody can reach us in no other way, a bell is still to be rung, or memory is to
    /// become free.
    pub(super) fn recheck_period(&mut self) -> Duration {
        if self.lines.has_unsent() || !self.life.quarantined.is_empty() || !self.life.withheld.is_empty() {
            return self.recheck;
        }
        let hears_all = self.hears_all.unwrap_or_else(|| self.has_all_lines());
        self.hears_all = Some(hears_all);
        if hears_all { self.recheck_with_lines } else { self.recheck }
    }

    /// Whether there is a line to everybody to whom there can be one.
    fn has_all_lines(&self) -> bool {
        let needs_line = |member: Member| match self.member {
            // Before it has a broker, too: that is how one learns that it has.
            Member::PRIMARY => self.rows[member.index()].1.is_some(),
            _ => member == Member::PRIMARY,
        };
        let others = self.pool.layout.members().filter(|member| *member != self.member);
        self.lines.has_all(others.filter(|member| needs_line(*member)))
    }

    pub(super) fn ring_everybody(&mut self) {
        let own = self.member;
        for member in self.pool.layout.members().filter(|member| *member != own) {
            self.ring(member);
        }
    }

    pub(super) fn fence(&mut self, member: Member, generation: u64) -> Result<()> {
        let writer = self.row_writer.as_ref().ok_or_else(|| only_primary("fencing"))?;
        self.known(member)?;
        // No member can have come further; and no fence may use up the generations that are left.
        let furthest = self.pool.fenced_generation(member).saturating_add(GENERATION_LEAD_MAX);
        writer.fence(member, generation.min(furthest));
        self.refresh_members();
        self.ring_everybody();
        Ok(())
    }

    pub(super) fn admit(
        &mut self,
        member: Member,
        cid: Cid,
        name: &str,
        incarnation: Incarnation,
    ) -> Result<()> {
        if self.row_writer.is_none() {
            return Err(only_primary("admitting a kernel"));
        }
        self.known(member)?;
        check_name(name)?;
        let rows = self.pool.rows();
        if let Some(row) =
            rows.iter().find(|row| row.member != member && (row.cid == cid || row.name == name))
        {
            return Err(Error::Invalid(format!(
                "cid {cid} and name `{name}` must be unique in a pool: member {} is `{}` with cid {}",
                row.member, row.name, row.cid
            )));
        }
        let old = rows.into_iter().find(|row| row.member == member);
        let content = RowContent { in_use: true, cid: cid.0, incarnation, name: name.to_owned() };
        if old
            .as_ref()
            .is_some_and(|row| (row.cid, row.name.as_str(), row.incarnation) == (cid, name, incarnation))
        {
            return Ok(());
        }
        // Of a boot that ran under another row, or under one that was lost, peers have dropped everything: so must it.
        if old.is_none_or(|row| row.incarnation != incarnation) {
            self.fence(member, self.pool.live_generation(member))?;
        }
        // A kernel that maps the pool as a device cannot ask for pages itself: a full file system would kill it later.
        let layout = self.pool.layout;
        self.pool_fd
            .back(layout.extent(member) as u64, layout.heap_offset as u64)
            .map_err(|e| Error::io(format!("reserving memory for member {member} in the pool"), e))?;
        if let Some(writer) = &self.row_writer {
            writer.write(member, &content);
        }
        self.refresh_members();
        self.ring_everybody();
        Ok(())
    }

    pub(super) fn retire(&mut self, member: Member) -> Result<()> {
        self.fence(member, self.pool.live_generation(member))?;
        if let Some(writer) = &self.row_writer {
            writer.write(member, &RowContent::EMPTY);
        }
        self.refresh_members();
        self.ring_everybody();
        Ok(())
    }

    /// Says in our status page that our broker has gone.
    pub(super) fn publish_generation(&self, generation: u64) {
        if generation != 0 {
            self.status.store(status::LAST_GENERATION, generation, Ordering::Relaxed);
        }
        self.status.store(status::GENERATION, generation, Ordering::Release);
        // Before anything of an earlier generation is written over.
        <crate::mem::OwnSpan as crate::mem::Memory>::fence();
    }

    fn known(&self, member: Member) -> Result<()> {
        if self.pool.layout.has(member) {
            return Ok(());
        }
        let members = self.pool.geometry().members_max;
        Err(Error::Invalid(format!("this pool has members 0 to {}, not {member}", members - 1)))
    }
}

/// The processes that have a bell coming, each once.
#[derive(Debug, Default)]
struct Rung(Vec<ClientId>);

impl Rung {
    fn note(&mut self, watch: &mut Watch) {
        let bells = watch.half.bell_count();
        let is_rung = std::mem::replace(&mut watch.bells, bells) != bells;
        if is_rung && !self.0.contains(&watch.client) {
            self.0.push(watch.client);
        }
    }
}

/// Reads the line to `member` until it ends. In the primary, `others` are the lines over which bells that are not for us go on.
async fn read_line(
    line: Arc<Line>,
    member: Member,
    id: u64,
    others: Option<Lines>,
    events: mpsc::Sender<Event>,
) {
    let mut hearing = Hearing::default();
    while let Ok(mut bells) = line.bells(&mut hearing).await {
        // A line that is never empty would keep this task running, and nobody could end it.
        tokio::task::consume_budget().await;
        if let Some(lines) = &others {
            bells.retain(|bell| {
                lines.ring(*bell, member);
                *bell == Member::PRIMARY
            });
        }
        if !bells.is_empty() && events.send(Event::Bells(member, bells)).await.is_err() {
            return;
        }
    }
    let _ = events.send(Event::LineDown(member, id)).await;
}

pub(super) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > row::NAME_BYTES_MAX || name.contains('/') {
        return Err(Error::Invalid(format!(
            "`{name}` is no name of a kernel: 1 to {} bytes without `/`",
            row::NAME_BYTES_MAX
        )));
    }
    Ok(())
}
