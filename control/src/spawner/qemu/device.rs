//! Devices that a machine is lent: each behind a root port that is there from its start, plugged and unplugged by ACPI.
//!
//! What a device needs outside the machine (an open file, a network) is its backend: made before it is plugged, removed after it is gone.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::qmp::{QmpError, Session, session};
use super::{MONITOR, MONITOR_MAX};
use crate::spawner::{Device, DeviceModel, KernelSpec};
use tombolo_handover::PciAddress;

/// Between two looks at whether a device is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long a device that is gone may hold its backend.
const LET_GO_MAX: Duration = Duration::from_secs(2);
/// What the ids of devices begin with.
const SLOT: &str = "slot";
/// The modules that kernels need for such devices, besides what they need for memory that can leave.
pub(super) fn modules(spec: &KernelSpec) -> Vec<String> {
    let module = |device: &Device| match device.model {
        DeviceModel::Nvme { .. } => "nvme",
        DeviceModel::Rng => "virtio_rng",
        DeviceModel::Net => "virtio_net",
    };
    let mut modules: Vec<String> = spec.catalogue.iter().map(|device| module(device).to_owned()).collect();
    if modules.iter().any(|module| module.starts_with("virtio")) {
        modules.insert(0, "virtio_pci".to_owned());
    }
    modules
}

/// The options that give a machine its root ports, and the devices that it boots with.
pub(super) fn options(spec: &KernelSpec) -> Vec<(&'static str, String)> {
    let ports = spec.catalogue.iter().map(Device::bus).max().unwrap_or(0);
    // The firmware numbers the buses behind them in this order.
    let port = |bus| ("-device", format!("pcie-root-port,id=port{bus},chassis={bus},slot={bus}"));
    let mut options: Vec<(&str, String)> = (1..=ports).map(port).collect();
    for device in spec.catalogue.iter().filter(|device| spec.devices.contains(&device.address)) {
        let option = match device.model {
            DeviceModel::Nvme { .. } => "-blockdev",
            DeviceModel::Rng => "-object",
            DeviceModel::Net => "-netdev",
        };
        options.push((option, backend(device).1.to_string()));
        options.push(("-device", front(device).to_string()));
    }
    options
}

/// The devices that the machine of `runtime_dir` has now.
pub(in crate::spawner) async fn plugged(runtime_dir: &Path) -> Result<Vec<PciAddress>, String> {
    let looked = session(runtime_dir, MONITOR, MONITOR_MAX, |mut session| async move {
        let devices = session.run("qom-list", json!({ "path": "/machine/peripheral" })).await?;
        Ok(parse(&devices))
    });
    looked.await.map_err(|error| error.to_string())
}

/// Plugs a device in. One that is there already is no error. The inner error: it was refused, and nothing has changed.
pub(in crate::spawner) async fn plug(
    runtime_dir: &Path,
    device: &Device,
) -> Result<Result<(), String>, String> {
    let plugged = session(runtime_dir, MONITOR, MONITOR_MAX, |mut session| async move {
        if is_plugged(&mut session, device.address).await? {
            return Ok(Ok(()));
        }
        let (command, arguments) = backend(device);
        // One that is left over from when the device was here before serves again.
        let no_backend = refusal(session.run(command, arguments).await)?;
        let Some(reason) = refusal(session.run("device_add", front(device)).await)? else {
            return Ok(Ok(()));
        };
        remove_backend(&mut session, device).await?;
        Ok(Err(no_backend.unwrap_or(reason)))
    });
    plugged.await.map_err(|error| error.to_string())
}

/// Unplugs a device, within `deadline`. One that is gone already is no error. The inner error: it is still there, and may yet go.
pub(in crate::spawner) async fn unplug(
    runtime_dir: &Path,
    device: &Device,
    deadline: Duration,
) -> Result<Result<(), String>, String> {
    let until = Instant::now() + deadline;
    let patience = deadline + MONITOR_MAX;
    let unplugged = session(runtime_dir, MONITOR, patience, |mut session| async move {
        let mut refused = None;
        if is_plugged(&mut session, device.address).await? {
            let order = json!({ "id": id(device.address) });
            // It has been asked for before, perhaps; whether it goes is seen.
            refused = refusal(session.run("device_del", order).await)?;
        }
        while is_plugged(&mut session, device.address).await? {
            if Instant::now() >= until {
                let said = refused.map(|reason| format!("; QEMU said: {reason}")).unwrap_or_default();
                return Ok(Err(format!("its kernel did not let it go within {deadline:?}{said}")));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        // The device lets go of its backend a moment after it is gone; until then the backend serves no other.
        let until = Instant::now() + LET_GO_MAX;
        while !remove_backend(&mut session, device).await? && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Ok(()))
    });
    unplugged.await.map_err(|error| error.to_string())
}

async fn is_plugged(session: &mut Session<UnixStream>, address: PciAddress) -> Result<bool, QmpError> {
    let devices = session.run("qom-list", json!({ "path": "/machine/peripheral" })).await?;
    Ok(parse(&devices).contains(&address))
}

/// What QEMU says to an order that it refuses.
fn refusal(outcome: Result<Value, QmpError>) -> Result<Option<String>, QmpError> {
    match outcome {
        Ok(_) => Ok(None),
        Err(QmpError::Refused { reason, .. }) => Ok(Some(reason)),
        Err(error) => Err(error),
    }
}

/// Whether it is gone now. What is left behind costs an open file, and is used again when the device comes back.
async fn remove_backend(session: &mut Session<UnixStream>, device: &Device) -> Result<bool, QmpError> {
    let name = name(device);
    let (command, arguments) = match device.model {
        DeviceModel::Nvme { .. } => ("blockdev-del", json!({ "node-name": name })),
        DeviceModel::Rng => ("object-del", json!({ "id": name })),
        DeviceModel::Net => ("netdev_del", json!({ "id": name })),
    };
    match session.run(command, arguments).await {
        Ok(_) => Ok(true),
        // QEMU has one class of error for all it refuses; of one that is not there it says so by its name alone.
        Err(QmpError::Refused { reason, .. }) => Ok(reason.contains("find") || reason.contains("not found")),
        Err(error) => Err(error),
    }
}

/// The command that makes what a device needs outside the machine, and its arguments.
fn backend(device: &Device) -> (&'static str, Value) {
    let name = name(device);
    match &device.model {
        DeviceModel::Nvme { file } => (
            "blockdev-add",
            json!({
                "driver": "raw",
                "node-name": name,
                // The ledger sees to it that one machine has it at a time. The lock is for whoever uses the file beside it.
                "file": { "driver": "file", "filename": file, "locking": "auto" },
            }),
        ),
        DeviceModel::Rng => ("object-add", json!({ "qom-type": "rng-builtin", "id": name })),
        DeviceModel::Net => ("netdev_add", json!({ "type": "user", "id": name, "restrict": true })),
    }
}

/// What the machine sees of it.
fn front(device: &Device) -> Value {
    let (id, name, port) = (id(device.address), name(device), format!("port{}", device.bus()));
    match device.model {
        DeviceModel::Nvme { .. } => {
            json!({ "driver": "nvme", "id": id, "bus": port, "drive": name, "serial": name })
        }
        DeviceModel::Rng => json!({ "driver": "virtio-rng-pci", "id": id, "bus": port, "rng": name }),
        DeviceModel::Net => {
            json!({ "driver": "virtio-net-pci", "id": id, "bus": port, "netdev": name, "romfile": "" })
        }
    }
}

/// The name of its backend.
fn name(device: &Device) -> String {
    format!("tombolo-{}", device.bus())
}

fn id(address: PciAddress) -> String {
    format!("{SLOT}{}", address.bus)
}

/// Which devices are in a list of what is plugged.
fn parse(devices: &Value) -> Vec<PciAddress> {
    let address = |entry: &Value| {
        let bus = entry["name"].as_str()?.strip_prefix(SLOT)?.parse().ok()?;
        Some(PciAddress { domain: 0, bus, device: 0, function: 0 })
    };
    devices.as_array().into_iter().flatten().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plugged_is_told_from_what_belongs_to_the_machine() {
        let devices = json!([{ "name": "type" }, { "name": "vmem0" }, { "name": "port2" }, { "name": "slot2" }, { "name": "slotx" }, 3]);
        assert_eq!(parse(&devices), ["0000:02:00.0".parse().unwrap()]);
        assert_eq!(parse(&json!({})), []);
    }
}
