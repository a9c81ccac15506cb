//! `tombolo-mksim`: **STAND-IN** for the kernel interface of Multikernel Linux. See the library.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use clap::{Args, Parser, Subcommand};
use tombolo_mksim::model::{MachineConfig, PciFunction, Quirk};
use tombolo_mksim::{ctl, guard, run};

const EXAMPLES: &str = "\
Examples:
  # A shell that sees /sys/fs/multikernel, /dev/mktty, /proc/iomem and /dev/dma_heap/multikernel
  tombolo-mksim run --cpus 16 --memory 32G --numa-nodes 2 --device 0000:03:00.0=8086:1572 -- bash

  # A daemon on a machine whose time-outs of 10 s pass in one, with the traps that kernels may have set otherwise
  tombolo-mksim run --dir /tmp/mk --clock-speed 10 --no-quirk first-fit-base --quirk cpu-add-ack-lost -- tombolod

  # From elsewhere: the kernel of instance `web` hangs, then goes on; look at both sides of the books
  tombolo-mksim ctl --dir /tmp/mk freeze web
  tombolo-mksim ctl --dir /tmp/mk thaw web
  tombolo-mksim ctl --dir /tmp/mk show

Not the real thing: nothing is isolated, CPUs are numbers, and what boots is User-mode Linux.";

/// STAND-IN for the kernel interface of Multikernel Linux: a test double, not that kernel.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// STAND-IN: run a command in a namespace where the interface is, and exit as it does (needs root and /dev/fuse)
    Run(RunArgs),
    /// STAND-IN: hang, panic and quirks at will, and a look at the model
    Ctl(CtlArgs),
    /// STAND-IN: make an image that loaders take for a kernel of this machine, out of a User-mode Linux kernel
    Image {
        /// The User-mode Linux kernel
        uml: PathBuf,
        /// Where the image goes
        image: PathBuf,
    },
    /// List the quirks: the kernel's traps, with their defaults
    Quirks,
}

#[derive(Args)]
struct RunArgs {
    /// Where the control socket, DIR/link.<id>, DIR/console.<id> and DIR/dmesg are [default: temporary]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// CPUs of the machine; logical 0..n/2 have even physical ids, the rest odd ones
    #[arg(long, default_value_t = 8)]
    cpus: u32,
    /// Memory of the machine: bytes, or with K, M, G
    #[arg(long, default_value = "16G", value_parser = bytes)]
    memory: u64,
    /// NUMA nodes
    #[arg(long, default_value_t = 1)]
    numa_nodes: u32,
    /// Unit in which memory of running kernels moves
    #[arg(long, default_value = "128M", value_parser = bytes)]
    memory_granule: u64,
    /// PCI function of the machine; may be repeated
    #[arg(long, value_name = "DDDD:BB:SS.F=vvvv:dddd")]
    device: Vec<PciFunction>,
    /// Trap to switch on; may be repeated
    #[arg(long, value_name = "NAME")]
    quirk: Vec<Quirk>,
    /// Trap to switch off; may be repeated
    #[arg(long, value_name = "NAME")]
    no_quirk: Vec<Quirk>,
    /// A file that every kernel has as /dev/mmapper, where no buffer of the DMA heap was allocated: what a file on DAXFS is
    /// to the real ones
    #[arg(long, value_name = "FILE")]
    share: Option<PathBuf>,
    /// Seconds of the machine in one second, for its time-outs of 10 s and 30 s
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    clock_speed: f64,
    /// Look at each write of the command, which then takes longer: `ctl full` has some of them fail
    #[arg(long)]
    see_writes: bool,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Args)]
struct CtlArgs {
    /// The folder of the stand-in that runs
    #[arg(long)]
    dir: PathBuf,
    #[command(subcommand)]
    request: Request,
}

#[derive(Subcommand)]
enum Request {
    /// The kernel of an instance hangs
    Freeze {
        /// Instance
        name: String,
    },
    /// It goes on
    Thaw {
        /// Instance
        name: String,
    },
    /// It panics
    Panic {
        /// Instance
        name: String,
    },
    /// The connection of its line breaks, with what is on its way
    Cut {
        /// Instance
        name: String,
    },
    /// Its line loses bytes without a word
    Lossy {
        /// on or off
        #[arg(value_parser = ["on", "off"])]
        switch: String,
        /// Instance
        name: String,
    },
    /// Its ring is full: what this side writes to its line fails with ENOSPC, and nothing is carried (of `run --see-writes`)
    Full {
        /// on or off
        #[arg(value_parser = ["on", "off"])]
        switch: String,
        /// Instance
        name: String,
    },
    /// How many writes to its line have failed for want of room
    Refused {
        /// Instance
        name: String,
    },
    /// Switch a trap
    Quirk {
        /// on or off
        #[arg(value_parser = ["on", "off"])]
        switch: String,
        /// Quirk
        name: Quirk,
    },
    /// The model as JSON
    Show,
}

fn main() -> ExitCode {
    if let Some(outcome) = guard::run(std::env::args_os().skip(1)) {
        return exit(outcome);
    }
    exit(match Cli::parse().command {
        Action::Run(args) => run::run(options(args)),
        Action::Ctl(args) => ctl(&args),
        Action::Image { uml, image } => std::fs::read(&uml)
            .and_then(|program| std::fs::write(&image, tombolo_mksim::image::wrap(&program)))
            .map(|()| 0)
            .with_context(|| format!("make {} of {}", image.display(), uml.display())),
        Action::Quirks => {
            for quirk in Quirk::ALL {
                println!("{quirk:32}{}", if quirk.is_default() { "on" } else { "off" });
            }
            Ok(0)
        }
    })
}

fn exit(outcome: anyhow::Result<u8>) -> ExitCode {
    outcome.map_or_else(
        |error| {
            eprintln!("tombolo-mksim (STAND-IN): {error:#}");
            ExitCode::from(125)
        },
        ExitCode::from,
    )
}

fn options(args: RunArgs) -> run::Options {
    let mut machine = MachineConfig {
        cpus: args.cpus,
        memory_bytes: args.memory,
        numa_nodes: args.numa_nodes,
        devices: args.device,
        memory_granule_bytes: args.memory_granule,
        ..MachineConfig::default()
    };
    args.quirk.into_iter().for_each(|quirk| machine.quirks.set(quirk, true));
    args.no_quirk.into_iter().for_each(|quirk| machine.quirks.set(quirk, false));
    run::Options {
        dir: args.dir,
        machine,
        share: args.share,
        clock_speed: args.clock_speed,
        sees_writes: args.see_writes,
        command: args.command,
    }
}

fn ctl(args: &CtlArgs) -> anyhow::Result<u8> {
    let request = match &args.request {
        Request::Freeze { name } => format!("freeze {name}"),
        Request::Thaw { name } => format!("thaw {name}"),
        Request::Panic { name } => format!("panic {name}"),
        Request::Cut { name } => format!("cut {name}"),
        Request::Lossy { switch, name } => format!("lossy {switch} {name}"),
        Request::Full { switch, name } => format!("full {switch} {name}"),
        Request::Refused { name } => format!("refused {name}"),
        Request::Quirk { switch, name } => format!("quirk {switch} {name}"),
        Request::Show => "show".into(),
    };
    print!("{}", ctl::request(&args.dir, &request)?);
    Ok(0)
}

/// Bytes, with K, M, G for powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.to_ascii_uppercase().trim_end_matches('B') {
        text if text.ends_with('K') => (text[..text.len() - 1].to_owned(), 10),
        text if text.ends_with('M') => (text[..text.len() - 1].to_owned(), 20),
        text if text.ends_with('G') => (text[..text.len() - 1].to_owned(), 30),
        text => (text.to_owned(), 0),
    };
    let count: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size"))?;
    count.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too much"))
}
