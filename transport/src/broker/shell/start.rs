//! The beginning and the end of a broker, and its new beginning after a fence.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;

use tokio::sync::mpsc;

use super::clients::accept;
use super::members::check_name;
use super::pool_fd::PoolFd;
use super::{Command, EVENTS_MAX, Event, Life, Shell};
use crate::bells::Board;
use crate::broker::core::{Backing, BrokerCore};
use crate::broker::door::{self, Door};
use crate::broker::link::ControlLink;
use crate::broker::spans::Spans;
use crate::broker::{BrokerConfig, PeerQuota, Policy, locks};
use crate::doorbell::{BellPipe, Lines};
use crate::error::{Error, Result};
use crate::incarnation::Incarnation;
use crate::mem::OwnSpan;
use crate::pool::layout::{GENERATION_LEAD_MAX, status};
use crate::pool::{Member, Pool, RowContent, RowWriter};

/// Starts the task. Returns what its owner needs: the pool, and where to send commands.
pub(crate) async fn start(config: BrokerConfig) -> Result<(Pool, mpsc::UnboundedSender<Command>)> {
    let name = config.pool.to_string();
    let fd = PoolFd::open(config.pool, config.locks.as_deref())?;
    let pool = Pool::map(fd.fd(), fd.place(), config.member, &name)?;
    let (events, event_queue) = mpsc::channel::<Event>(EVENTS_MAX);
    let bad = |reason: String| Error::BadPool { path: name.clone(), reason };

    take_member(fd.locks(), &pool).map_err(bad)?;
    let row_writer = if config.member == Member::PRIMARY { Some(RowWriter::new(&pool)?) } else { None };
    if let Some(writer) = &row_writer {
        check_name(&config.name)?;
        enter_primary(&pool, writer, &config.name, config.cid, config.incarnation)?;
    }
    if pool.row(config.member).is_none() {
        return Err(bad(format!(
            "its primary has not admitted member {} (or its row is corrupted)",
            config.member
        )));
    }

    let layout = pool.layout;
    let extent = layout.extent(config.member);
    let pool_status = pool.writable(extent, status::LEN)?;
    let extent_offset = (extent + layout.control_offset) as u64;
    let own = pool.writable(extent_offset as usize, layout.extent_len() - layout.control_offset)?;
    let board = pool.own_board()?;
    fd.back(extent as u64, layout.heap_offset as u64)
        .map_err(|e| Error::io(format!("reserving the extent's head in {name}"), e))?;
    let life = new_life(&pool, &fd, &own, &config.policy, config.peer_quota)?;
    let pipe = BellPipe::new()?;
    let listening =
        config.socket.as_deref().map(|path| door::listen(path, config.allowed_gid)).transpose()?;
    let (listener, socket) = listening.unzip();
    let mut shell = Shell {
        member: config.member,
        status: pool_status,
        extent: own,
        board: Board::new(board),
        extent_offset,
        row_writer,
        rows: vec![(u64::MAX, None); layout.geometry.members_max as usize],
        life,
        lines: Lines::default(),
        line_readers: HashMap::new(),
        hears_all: None,
        pipe,
        recheck: config.recheck,
        recheck_with_lines: config.recheck_with_lines,
        policy: config.policy,
        quota: config.peer_quota,
        relay: None,
        socket,
        tasks: Vec::new(),
        events: events.clone(),
        next_id: 0,
        found_by_timer: 0,
        has_own_bell: false,
        pool: pool.clone(),
        pool_fd: fd,
    };
    shell.publish_generation(shell.life.generation);
    shell.refresh_members();
    shell.drain();
    if let Some(listener) = listener {
        let door = Door { allowed_gid: config.allowed_gid };
        shell.tasks.push(tokio::spawn(accept(listener, door, events)));
    }
    let (commands, command_queue) = mpsc::unbounded_channel();
    tokio::spawn(shell.run(event_queue, command_queue));
    Ok((pool, commands))
}

/// There is one broker per member: whoever holds the lock on the first page of the extent.
fn take_member(fd: impl AsFd, pool: &Pool) -> Result<(), String> {
    let start = pool.layout.extent(pool.member()) as u64;
    match locks::lock(fd, start..start + status::LEN as u64) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("another broker is running for its member {}", pool.member())),
        Err(error) => {
            tracing::warn!(%error, "no locks on this pool: memory of processes that outlive their broker is not protected");
            Ok(())
        }
    }
}

/// The primary's own row. One that is there stays (a restarted daemon is the same kernel).
fn enter_primary(
    pool: &Pool,
    writer: &RowWriter,
    name: &str,
    cid: crate::addr::Cid,
    incarnation: Option<Incarnation>,
) -> Result<()> {
    let old = pool.row(Member::PRIMARY);
    let incarnation = match (incarnation, &old) {
        (Some(incarnation), _) => incarnation,
        (None, Some(old)) => old.incarnation,
        (None, None) => Incarnation::random()?,
    };
    let same =
        old.is_some_and(|old| (old.cid, old.name.as_str(), old.incarnation) == (cid, name, incarnation));
    if !same {
        let content = RowContent { in_use: true, cid: cid.0, incarnation, name: name.to_owned() };
        writer.write(Member::PRIMARY, &content);
    }
    Ok(())
}

/// Everything that begins with a generation. It is published by the caller, once this is in place.
fn new_life(pool: &Pool, fd: &PoolFd, extent: &OwnSpan, policy: &Policy, quota: PeerQuota) -> Result<Life> {
    let layout = pool.layout;
    let member = pool.member();
    let generation = next_generation(pool)?;
    let mut back = fd.backer().map_err(|e| Error::io("copying the pool's descriptor", e))?;
    // Nobody takes pages from an extent in use, so what is backed once stays so.
    let mut backed = Spans::default();
    let backing = Backing(Box::new(move |offset, len| {
        let range = offset..offset + len;
        let is_backed = backed.covers(&range) || back(offset, len).is_ok();
        if is_backed {
            backed.add(range);
        }
        is_backed
    }));
    let mut core = BrokerCore::new(member, generation, layout, policy.clone(), quota, backing);
    let heap_start = (layout.extent(member) + layout.heap_offset) as u64;
    let heap = heap_start..heap_start + layout.heap_len() as u64;
    let withheld = locks::whole_pages(&locks::all_locked(fd.locks(), heap).unwrap_or_default());
    for range in &withheld {
        tracing::info!(?range, "a process of an earlier broker still holds part of the heap");
        core.withhold(range.start, range.end - range.start);
    }
    let mut links = Vec::new();
    for peer in layout.members() {
        if peer == member {
            links.push(None);
            continue;
        }
        let bad = |e: crate::mem::OutOfBounds| Error::Invalid(format!("control block of member {peer}: {e}"));
        let own_block = layout.control_block(member, peer) - layout.extent(member) - layout.control_offset;
        let own = extent.sub(own_block, layout.control_stride()).map_err(bad)?;
        let theirs =
            pool.whole().sub(layout.control_block(peer, member), layout.control_stride()).map_err(bad)?;
        links.push(Some(ControlLink::new(own, theirs, layout.control_slots, generation)));
    }
    Ok(Life {
        generation,
        core,
        links,
        clients: HashMap::new(),
        watches: layout.members().map(|_| None).collect(),
        watched: HashMap::new(),
        dirty: BTreeSet::new(),
        withheld,
        quarantined: Vec::new(),
    })
}

fn next_generation(pool: &Pool) -> Result<u64> {
    use crate::mem::Memory;
    let at = pool.layout.extent(pool.member());
    let fenced = pool.fenced_generation(pool.member());
    let believable =
        |generation: u64| generation.checked_sub(fenced).is_some_and(|lead| lead <= GENERATION_LEAD_MAX / 2);
    let used = [status::GENERATION, status::LAST_GENERATION]
        .map(|word| pool.whole().load(at + word, std::sync::atomic::Ordering::Acquire));
    let last = used.into_iter().filter(|generation| believable(*generation)).fold(fenced, u64::max);
    last.checked_add(1).ok_or_else(|| Error::Invalid("the generations of this member are used up".into()))
}

impl Shell {
    /// The primary has declared us dead: our peers have dropped their connections, and so must we. Processes have to attach
    /// again; whatever they hold is kept out of use until they let go.
    pub(super) fn begin_anew(&mut self) {
        self.drop_clients();
        for link in self.life.links.iter_mut().flatten() {
            link.close();
        }
        match new_life(&self.pool, &self.pool_fd, &self.extent, &self.policy, self.quota) {
            Ok(life) => {
                self.life = life;
                self.life.core.set_relayed(self.relay.is_some());
            }
            Err(error) => {
                tracing::error!(%error, "no new generation can begin");
                return;
            }
        }
        self.rows.fill((u64::MAX, None));
        self.hears_all = None;
        self.publish_generation(self.life.generation);
        self.ring_everybody();
    }

    /// An orderly end: peers see at once that we are gone.
    pub(super) fn stop(&mut self) {
        self.drop_clients();
        for link in self.life.links.iter_mut().flatten() {
            link.close();
        }
        self.publish_generation(0);
        self.ring_everybody();
        self.tasks.drain(..).for_each(|task| task.abort());
        let lines: Vec<Member> = self.line_readers.keys().copied().collect();
        lines.into_iter().for_each(|member| self.remove_line(member));
        self.socket = None;
    }
}
