//! The arguments of `tombolo balance`.
#![allow(missing_docs, reason = "the help texts are the documentation")]

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::parse_duration;

#[derive(Clone, Debug, Args)]
pub struct BalanceArgs {
    /// Turn it on, going by this: `pressure`, how long programs wait for a CPU
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<BalancePolicyArg>,
    /// Turn it off; what moves goes on
    #[arg(long, conflicts_with_all = ["policy", "dry_run"])]
    pub off: bool,
    /// Look for a second and show what would be moved if it stayed so; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Give a CPU to whom programs wait for one so much of the time, in percent [default: 20]
    #[arg(long, value_name = "PERCENT", requires = "policy")]
    pub take_at: Option<u32>,
    /// Take one from where programs wait at most so much, in percent [default: 2]
    #[arg(long, value_name = "PERCENT", requires = "policy")]
    pub give_at: Option<u32>,
    /// ... and the CPUs that stay would not be busier than this, in percent [default: 75]
    #[arg(long, value_name = "PERCENT", requires = "policy")]
    pub busy_max: Option<u32>,
    /// How long that must have been so [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "policy")]
    pub hold: Option<Duration>,
    /// How long both are left alone after a move [default: 15s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "policy")]
    pub rest: Option<Duration>,
}

/// What balancing goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BalancePolicyArg {
    Pressure,
}
