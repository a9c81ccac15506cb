//! CPUs that are plugged into a running machine and unplugged from it, where its QEMU can do that for as long as the machine lives.
//!
//! Otherwise all are there from the start, and those that are not lent are parked ([`super::cpu`]). Which of the two it is depends on QEMU
//! ([`method`]) and is settled when a machine starts; of one that runs it is seen, by the places for CPUs that are empty or were filled
//! by an order (`query-hotpluggable-cpus`). Places are filled from the lowest: Linux takes seconds over a CPU that skips one, and may hang.
//!
//! What has become of an order is looked up, as everywhere. Events (`ACPI_DEVICE_OST`, `DEVICE_UNPLUG_GUEST_ERROR`) only tell earlier that a kernel has
//! taken notice, or that it says no.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::qmp::{QmpError, Session, session};
use super::version::Version;
use super::{MONITOR, MONITOR_MAX};

/// How long a kernel may take to let a CPU go that it has taken offline; it takes milliseconds.
const UNPLUG_MAX: Duration = Duration::from_secs(10);
/// How long a kernel may take to notice a new CPU before it is taken to have done so: it says so in tens of milliseconds, or never.
const NOTICE_MAX: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Why CPUs of emulated machines are parked, in every version: the mending that this names was proposed in 2023 and is in none we know of.
const EMULATION: &str = "under software emulation QEMU takes a context for every CPU that is plugged, gives none back and ends when they are \
     used up (tcg_register_thread; `accel/tcg: Implement tcg_unregister_thread()` would mend it)";
/// Why those of older versions are.
const LISTENER: &str = "its QEMU leaves the address spaces of an unplugged CPU behind (mended by `physmem: Destroy all CPU AddressSpaces on \
     unrealize` in 10.0.5, 10.1.1 and 10.2.0)";

/// How CPUs come to a machine and leave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// All are there from the start; those that are not lent are parked, for this reason.
    Parked(&'static str),
    /// They are plugged and unplugged.
    Plugged,
}

/// How it is done with this QEMU; `None`: it does not say its version.
///
/// Under software emulation a machine can be given as many CPUs as it has places for, once each. Before the named mending an unplugged CPU
/// leaves its address spaces behind: memory that is never given back and, under software emulation, a listener on the CPU that is gone. That
/// may be why on 7.2 the next plugging of anything kills such a machine; that it does was seen, that this is why was not shown.
pub(super) fn method(version: Option<Version>, kvm: bool) -> Method {
    match version {
        _ if !kvm => Method::Parked(EMULATION),
        Some(version) if version.has_fix([Version(10, 0, 5), Version(10, 1, 1), Version(10, 2, 0)]) => {
            Method::Plugged
        }
        _ => Method::Parked(LISTENER),
    }
}

/// A place for a CPU in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The CPU's number.
    pub(super) index: u32,
    /// What is in it.
    pub(super) content: Content,
    /// What kind of CPU fits.
    driver: String,
    /// What names the place.
    props: Map<String, Value>,
}

/// What is in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// A CPU that can be unplugged.
    Plugged,
    /// A CPU that was made with the machine and stays.
    Fixed,
}

/// The options of a machine that boots with `lent` CPUs and has places for `room`: the first CPU is part of it, the others are plugged.
pub(super) fn options(lent: u32, room: u32, driver: &str) -> Vec<(&'static str, String)> {
    let cpu =
        |index| ("-device", format!("{driver},id={},socket-id=0,core-id={index},thread-id=0", id(index)));
    let places = ("-smp", format!("1,maxcpus={room},sockets=1,cores={room},threads=1"));
    std::iter::once(places).chain((1..lent).map(cpu)).collect()
}

/// The places of a machine, in order.
pub(super) async fn places(session: &mut Session<UnixStream>) -> Result<Vec<Place>, QmpError> {
    Ok(parse(&session.run("query-hotpluggable-cpus", json!({})).await?))
}

/// Plugs a CPU into the machine of `runtime_dir`. One that is there is no error. The inner error: it was refused.
pub(in crate::spawner) async fn plug(runtime_dir: &Path, index: u32) -> Result<Result<(), String>, String> {
    let patience = MONITOR_MAX + NOTICE_MAX;
    let plugged = session(runtime_dir, MONITOR, patience, |mut session| async move {
        let places = places(&mut session).await?;
        let Some(place) = places.into_iter().find(|place| place.index == index) else {
            return Ok(Err(format!("its machine has no place for a CPU {index}")));
        };
        if place.content != Content::Empty {
            return Ok(Ok(()));
        }
        let mut order = place.props;
        order.insert("driver".into(), place.driver.into());
        order.insert("id".into(), id(index).into());
        match session.run("device_add", Value::Object(order)).await {
            Err(QmpError::Refused { reason, .. }) => return Ok(Err(reason)),
            outcome => drop(outcome?),
        }
        let until = Instant::now() + NOTICE_MAX;
        while !session.take_events().iter().any(is_notice) && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
            session.run("query-status", json!({})).await?;
        }
        Ok(Ok(()))
    });
    plugged.await.map_err(|error| error.to_string())
}

/// Unplugs a CPU that its kernel has taken offline. One that is gone is no error. The inner error: it is there, and nothing was begun
/// or its kernel has said no; the outer: it may still go.
pub(in crate::spawner) async fn unplug(runtime_dir: &Path, index: u32) -> Result<Result<(), String>, String> {
    unplug_within(runtime_dir, index, UNPLUG_MAX).await
}

async fn unplug_within(
    runtime_dir: &Path,
    index: u32,
    limit: Duration,
) -> Result<Result<(), String>, String> {
    let patience = MONITOR_MAX + limit;
    let unplugged = session(runtime_dir, MONITOR, patience, |mut session| async move {
        if !is_plugged(&mut session, index).await? {
            return Ok(Ok(true));
        }
        // It is this process that must be able to, whatever a daemon thought that started it.
        let version = Version::of(&session.run("query-version", json!({})).await?);
        let kvm = session.run("query-kvm", json!({})).await?["enabled"] == json!(true);
        if let Method::Parked(reason) = method(version, kvm) {
            return Ok(Err(reason.to_owned()));
        }
        session.take_events();
        match session.run("device_del", json!({ "id": id(index) })).await {
            // It was told before.
            Err(QmpError::Refused { reason, .. }) if reason.contains("in the process of unplug") => {}
            Err(QmpError::Refused { reason, .. }) => return Ok(Err(reason)),
            outcome => drop(outcome?),
        }
        let until = Instant::now() + limit;
        while is_plugged(&mut session, index).await? {
            if session.take_events().iter().any(|event| is_veto(event, index)) {
                return Ok(Err("its kernel refused to let it go".to_owned()));
            }
            if Instant::now() >= until {
                return Ok(Ok(false));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Ok(true))
    });
    match unplugged.await.map_err(|error| error.to_string())? {
        Ok(true) => Ok(Ok(())),
        Ok(false) => Err(format!("its kernel has not let CPU {index} go within {limit:?}, and still may")),
        Err(reason) => Ok(Err(reason)),
    }
}

async fn is_plugged(session: &mut Session<UnixStream>, index: u32) -> Result<bool, QmpError> {
    let places = places(session).await?;
    Ok(places.iter().any(|place| place.index == index && place.content != Content::Empty))
}

/// Whether a kernel has said that it has dealt with a CPU.
fn is_notice(event: &Value) -> bool {
    event["event"] == "ACPI_DEVICE_OST" && event["data"]["info"]["slot-type"] == "CPU"
}

/// Whether a kernel says that it does not let this CPU go. Status 0 is success, and 0x84 that it is under way (ACPI 6.5, section 6.3.5).
fn is_veto(event: &Value, index: u32) -> bool {
    let info = &event["data"]["info"];
    match event["event"].as_str() {
        Some("DEVICE_UNPLUG_GUEST_ERROR") => event["data"]["device"] == json!(id(index)),
        Some("ACPI_DEVICE_OST") => {
            info["device"] == json!(id(index)) && !matches!(info["status"].as_i64(), Some(0 | 0x84) | None)
        }
        _ => false,
    }
}

/// What QEMU calls a CPU that was plugged.
fn id(index: u32) -> String {
    format!("cpu{index}")
}

/// The places that QEMU tells. Those of machines that are not made as [`options`] makes them have no numbers, and are left out.
fn parse(said: &Value) -> Vec<Place> {
    let place = |place: &Value| {
        let props = place["props"].as_object()?.clone();
        let number = |name: &str| props.get(name).map_or(Some(0), Value::as_u64);
        let is_plain = [number("socket-id")?, number("thread-id")?] == [0, 0];
        let content = match place.get("qom-path").map(|path| path.as_str().unwrap_or_default()) {
            None => Content::Empty,
            Some(path) if path.starts_with("/machine/peripheral/") => Content::Plugged,
            Some(_) => Content::Fixed,
        };
        let index = u32::try_from(number("core-id")?).ok()?;
        is_plain.then_some(Place { index, content, driver: place["type"].as_str()?.to_owned(), props })
    };
    let mut places: Vec<Place> = said.as_array().into_iter().flatten().filter_map(place).collect();
    places.sort_by_key(|place| place.index);
    places
}

#[cfg(test)]
#[path = "plug_tests.rs"]
pub(super) mod tests;
