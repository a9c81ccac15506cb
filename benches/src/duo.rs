//! Two processes for one measurement: this one leads, the same binary started again follows.
//!
//! The leader says over a pipe what comes next, a line each; the follower says when it is ready for it. Timing
//! starts only then, so starting processes and mapping memory are in no figure.

use std::io::{BufRead, BufReader, Lines, StdinLock, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

use crate::pin;

const FOLLOWER: &str = "--follow";

/// The other process, seen from the leader. Dropping it ends it.
#[derive(Debug)]
pub struct Follower {
    child: Child,
    orders: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

/// The leader, seen from the follower.
#[derive(Debug)]
pub struct Leader {
    orders: Lines<StdinLock<'static>>,
}

/// Which part this process plays.
#[derive(Debug)]
pub enum Role {
    /// The process that the user started.
    Leads,
    /// Started by [`Follower::start`] with these arguments.
    Follows(Leader, Vec<String>),
}

/// Finds out which part this process plays.
pub fn role() -> Role {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(FOLLOWER) {
        Role::Follows(Leader { orders: std::io::stdin().lines() }, args.collect())
    } else {
        Role::Leads
    }
}

/// Pins the calling thread of the leader to the first core. Threads started before, and other processes, stay free.
pub fn pin_leader() {
    pin::to_core(pin::two_cores().0);
}

/// Pins the calling thread of the follower to the second core.
pub fn pin_follower() {
    pin::to_core(pin::two_cores().1);
}

impl Follower {
    /// Starts this binary again as the follower, with `args` for it.
    pub fn start(args: &[&str]) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("finding this binary")?;
        let mut child = Command::new(binary)
            .arg(FOLLOWER)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the second process")?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no pipe from the second process")?).lines();
        Ok(Self { child, orders, answers })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order and waits until the follower is about to carry it out.
    pub fn order(&mut self, order: &str) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().context("the second process has been told to end")?;
        writeln!(orders, "{order}").context("the second process is gone")?;
        match self.answers.next() {
            Some(Ok(answer)) if answer == "ready" => Ok(()),
            Some(Ok(answer)) => bail!("the second process answered `{answer}` to `{order}`"),
            Some(Err(error)) => Err(error).context("reading from the second process"),
            None => bail!("the second process died before `{order}`"),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // The end of its orders ends it; if it hangs in a measurement, force does.
        self.orders = None;
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Leader {
    /// The next order as its words; `None` when there are no more.
    pub fn next_order(&mut self) -> anyhow::Result<Option<Vec<String>>> {
        let line = self.orders.next().transpose()?;
        Ok(line.map(|line| line.split_whitespace().map(str::to_owned).collect()))
    }

    /// Says that the order will be carried out now.
    pub fn ready(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "ready")?;
        Ok(out.flush()?)
    }
}
