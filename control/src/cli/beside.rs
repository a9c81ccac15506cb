//! `tombolo multikernel`: the kernel's own books, and what is set aside in them for kernels beside this one.

use std::process::ExitCode;

use super::args::{AdoptArgs, BesideCommand, CpuList, PoolChangeArgs};
use super::error::CliError;
use super::output::{bytes, table, text_of};
use super::{Context, Outcome, fleet, spec};
use crate::api::beside::{
    AdoptRequest, KernelAnswer, KernelBooks, KernelInstance, PoolDevice, PoolWish, SharedMemory,
};

pub(super) async fn multikernel(cx: &Context, command: BesideCommand) -> Outcome {
    match command {
        BesideCommand::Show { transactions, probe } => show(cx, transactions, probe).await,
        BesideCommand::Mount => mount(cx).await,
        BesideCommand::Pool(args) => pool(cx, args).await,
    }
}

pub(super) async fn adopt(cx: &Context, args: AdoptArgs) -> Outcome {
    let AdoptArgs { name, force, spec: wanted } = args;
    let sizes = [wanted.memory, wanted.memory_min, wanted.memory_max];
    let counts = [wanted.cpus, wanted.cpus_min, wanted.cpus_max];
    if sizes.iter().any(Option::is_some) || counts.iter().any(Option::is_some) {
        return Err(CliError::usage(
            "an instance that is taken over keeps the memory and the CPUs that it has: leave --memory.. and --cpus.. out",
        ));
    }
    let spec_json = serde_json::to_string(&spec::read(&wanted)?)
        .map_err(|error| CliError::failed("write the specification", error))?;
    let client = cx.client().await?;
    let request = AdoptRequest { name: name.to_string(), spec_json, force };
    let view = client.ask(client.beside.adopt(request)).await?;
    fleet::print_view(cx, &view)?;
    Ok(ExitCode::SUCCESS)
}

async fn mount(cx: &Context) -> Outcome {
    let client = cx.client().await?;
    let is_new = client.ask(client.beside.mount()).await?;
    if cx.output.json {
        cx.output.document("mounted", &serde_json::json!({ "is_new": is_new }))?;
    } else {
        cx.output.note(if is_new {
            "the kernel's interface is mounted"
        } else {
            "nothing is to be done: it is mounted already"
        });
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(cx: &Context, with_transactions: bool, probe: bool) -> Outcome {
    let client = cx.client().await?;
    let books = client.ask(client.beside.show(probe)).await?;
    if cx.output.json {
        cx.output.document("multikernel", &books)?;
        return Ok(ExitCode::SUCCESS);
    }
    cx.output.line(pool_line(&books))?;
    cx.output.line(shared_line(&books.shared_memory))?;
    books.devices.iter().try_for_each(|device| cx.output.line(device_line(device)))?;
    if let Some(reason) = &books.devices_unknown {
        cx.output.line(format!("set aside: which devices is not known, because {reason}"))?;
    }
    let mut rows = table(&["name", "number", "status", "cpus", "memory", "devices", "made by"]);
    for instance in &books.instances {
        let cpus: Vec<String> = instance.cpus.iter().map(u32::to_string).collect();
        rows.add_row([
            instance.name.clone(),
            instance.id.map_or_else(|| "?".into(), |id| id.to_string()),
            status(instance),
            cpus.join(","),
            bytes(instance.memory_bytes),
            instance.devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            match (instance.is_ours, instance.is_taken_over) {
                (true, false) => "tombolo".into(),
                (true, true) => "another program, taken over".into(),
                (false, _) => "another program".into(),
            },
        ]);
    }
    cx.output.line(text_of(&rows))?;
    if with_transactions {
        let mut rows = table(&["transaction", "status", "of", "made by"]);
        for transaction in &books.transactions {
            rows.add_row([
                transaction.name.as_str(),
                &transaction.status,
                &transaction.target,
                if transaction.is_ours { "tombolo" } else { "another program" },
            ]);
        }
        cx.output.line(text_of(&rows))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Its status, and what else is known of it.
fn status(instance: &KernelInstance) -> String {
    let answers = instance.answers.map(|answers| match answers {
        KernelAnswer::KerfAgent => "its kernel answers, and kerf's agent".to_owned(),
        KernelAnswer::Kernel => "its kernel answers".into(),
        KernelAnswer::Silent => "its kernel does not answer".into(),
    });
    let lent = instance.console_lent_ms.map(|ms| format!("its console is lent for {} s", ms.div_ceil(1000)));
    [Some(instance.status.clone()), answers, lent].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn pool_line(books: &KernelBooks) -> String {
    let cpus: Vec<String> = books
        .cpus
        .iter()
        .map(|cpu| format!("{}{}", cpu.physical, if cpu.is_free { "" } else { "*" }))
        .collect();
    let memory: u64 = books.chunks.iter().map(|chunk| chunk.bytes).sum();
    if cpus.is_empty() && memory == 0 {
        return "nothing is set aside for other kernels: see `tombolo multikernel pool --help`".into();
    }
    format!("set aside: physical CPUs {} (* in use), {}", cpus.join(","), bytes(memory))
}

fn device_line(device: &PoolDevice) -> String {
    let alias = device.alias.as_deref().map_or_else(String::new, |alias| format!(" `{alias}`"));
    let holder = match &device.held_by {
        Some(name) => format!("instance `{name}` has it"),
        None => "free".into(),
    };
    let group = device.iommu_group.map_or_else(|| "no IOMMU".into(), |group| format!("IOMMU group {group}"));
    let reset = if device.can_reset { "" } else { ", no reset" };
    format!("set aside: device {}{alias}: {holder} ({group}{reset})", device.address)
}

fn shared_line(shared: &SharedMemory) -> String {
    let Some(kind) = &shared.kind else {
        let why = shared.reason.as_deref().unwrap_or("the settings ask for none");
        return format!("shared with kernels: no memory ({why}); everything goes over one socket of each");
    };
    let place = shared.phys.map_or_else(String::new, |phys| format!(" at {phys:#x}"));
    let holder = shared.held_by.map_or_else(String::new, |pid| format!(", held by process {pid}"));
    format!("shared with kernels: {}{place} ({kind}{holder})", bytes(shared.bytes))
}

async fn pool(cx: &Context, args: PoolChangeArgs) -> Outcome {
    let wish = PoolWish {
        cpus: args.cpus.map(|list| physical(&list)).transpose()?,
        memory_bytes: args.memory,
        devices: args.devices.map(|list| list.0),
        allow_no_iommu: args.allow_no_iommu,
        allow_no_reset: args.allow_no_reset,
    };
    let client = cx.client().await?;
    let steps = client.ask(client.beside.change(wish, args.dry_run)).await?;
    if cx.output.json {
        cx.output.document("steps", &steps)?;
        return Ok(ExitCode::SUCCESS);
    }
    match (steps.is_empty(), args.dry_run) {
        (true, _) => cx.output.note("nothing is to be done: it is so already"),
        (false, true) => steps.iter().try_for_each(|step| cx.output.line(format!("would {step}")))?,
        (false, false) => steps.iter().try_for_each(|step| cx.output.line(format!("done: {step}")))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The physical numbers of a list that may name CPUs by their logical ones.
fn physical(list: &CpuList) -> Result<Vec<u32>, CliError> {
    let table = match list.has_logical() {
        true => std::fs::read_to_string("/proc/cpuinfo")
            .map_err(|error| CliError::failed("read which CPU is which (/proc/cpuinfo)", error))?,
        false => String::new(),
    };
    list.resolve(&table).map_err(CliError::usage)
}
