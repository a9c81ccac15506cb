//! The arguments of what moves memory, CPUs and devices.
#![allow(missing_docs, reason = "the help texts are the documentation")]

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tombolo_handover::PciAddress;

use crate::core::InstanceName;

#[derive(Clone, Debug, Args)]
pub struct MoveArgs {
    #[command(flatten)]
    pub what: MovedArgs,
    /// Who gives: an instance, `pool` or `host`
    #[arg(long, value_name = "NAME")]
    pub from: String,
    /// Who gets: an instance, `pool` or `host`
    #[arg(long, value_name = "NAME")]
    pub to: String,
    /// Move a device even if it cannot be reset between owners, and so may carry what one left in it to the next
    #[arg(long, requires = "device")]
    pub allow_no_reset: bool,
    #[command(flatten)]
    pub how: HandoverArgs,
}

/// What is to move: one of these.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct MovedArgs {
    /// How much memory, such as 64M or 1G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_size)]
    pub memory: Option<u64>,
    /// How many CPUs, whichever fit best
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub cpus: Option<u32>,
    /// Which device, such as 0000:01:00.0
    #[arg(long, value_name = "ADDRESS")]
    pub device: Option<PciAddress>,
}

#[derive(Clone, Debug, Args)]
#[group(id = "amounts", required = true, multiple = true, args = ["memory", "cpus"])]
pub struct ResizeArgs {
    /// The instance
    pub name: InstanceName,
    /// How much memory it is to have, such as 256M; or how much more or less, such as +64M or -64M
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = parse_change)]
    pub memory: Option<SizeChange>,
    /// How many CPUs it is to have, such as 2; or how many more or less, such as +1 or -1
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = parse_count_change)]
    pub cpus: Option<SizeChange>,
    #[command(flatten)]
    pub how: HandoverArgs,
}

#[derive(Clone, Debug, Args)]
pub struct DiffArgs {
    /// The fleet file [default: tombolo.toml]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub fleet: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct ApplyArgs {
    /// The fleet file [default: tombolo.toml]
    #[arg(short = 'f', long, value_name = "FILE")]
    pub fleet: Option<PathBuf>,
    #[command(flatten)]
    pub how: HandoverArgs,
}

#[derive(Clone, Debug, Args)]
pub struct DrainArgs {
    /// The instance
    pub name: InstanceName,
    #[command(flatten)]
    pub how: HandoverArgs,
}

/// How something is handed over.
#[derive(Clone, Debug, Args)]
pub struct HandoverArgs {
    /// Only show what would be done
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Wait until it has ended, which is the default: the last of this and `--no-wait` counts
    #[arg(long, overrides_with = "no_wait")]
    pub wait: bool,
    /// Do not wait until it has ended
    #[arg(long, overrides_with = "wait")]
    pub no_wait: bool,
    /// Move what can be had, instead of nothing, when some of it cannot
    #[arg(long)]
    pub partial: bool,
    /// Do not ask applications' hooks
    #[arg(long)]
    pub no_hooks: bool,
    /// Refuse unless the ledger is still at this version, as `tombolo pool` shows it
    #[arg(long, value_name = "N")]
    pub if_version: Option<u64>,
    /// Idempotency key: the same command with the same key is the same move, however often it is given
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// How much, or how much more or less, in bytes or CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeChange {
    To(u64),
    More(u64),
    Less(u64),
}

#[derive(Clone, Debug, Subcommand)]
pub enum OpCommand {
    /// List moves, the newest last
    Ls,
    /// Show everything known about a move
    Show {
        /// Its number
        id: u64,
    },
    /// Follow a move until it has ended
    Watch {
        /// Its number
        id: u64,
    },
    /// Call a move off; works until the point of no return
    Cancel {
        /// Its number
        id: u64,
    },
    /// Take a unit out of quarantine: every kernel is asked who has it. With OWNER nobody is asked: you vouch that it is there and nowhere else
    Repair {
        /// The unit, as `tombolo pool` names it, such as `memory lot 7`
        unit: String,
        /// Who has it: an instance, `pool` or `host`
        owner: Option<String>,
    },
}

pub(super) fn parse_size(input: &str) -> Result<u64, String> {
    tombolo_handover::request::parse_size(input).map_err(|error| error.to_string())
}

fn parse_change(input: &str) -> Result<SizeChange, String> {
    change_of(input, parse_size)
}

fn parse_count_change(input: &str) -> Result<SizeChange, String> {
    let count = |text: &str| match text.parse::<u32>() {
        Ok(count) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(count.into()),
        _ => Err(format!("`{text}` is not a number of CPUs")),
    };
    change_of(input, count)
}

fn change_of(input: &str, read: impl Fn(&str) -> Result<u64, String>) -> Result<SizeChange, String> {
    match (input.strip_prefix('+'), input.strip_prefix('-')) {
        (Some(more), _) => read(more).map(SizeChange::More),
        (_, Some(less)) => read(less).map(SizeChange::Less),
        _ => read(input).map(SizeChange::To),
    }
}
