//! What happened, numbered: the journal people read, follow and replay.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use super::fencing::Rung;
use super::health::Verdict;
use super::layer::Layer;
use super::lifecycle::{End, State};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Event {
    /// Its number: 1 for the first, without gaps, never reused.
    pub seq: u64,
    /// When, in nanoseconds since 1970.
    pub at_unix_ns: u64,
    /// The instance it is about.
    pub instance: Option<String>,
    /// Which boot of that instance, 32 hex digits.
    pub incarnation: Option<String>,
    /// What.
    pub kind: EventKind,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are named after what they hold; units are in the names")]
pub enum EventKind {
    /// A daemon took charge.
    DaemonStarted { version: String, pid: u32 },
    /// A daemon left in good order.
    DaemonStopped { kernels_left_running: u32 },
    /// A record was made.
    Created,
    /// An instance that another program made was taken over: which transaction of the kernel had made it, and how it was.
    TakenOver { transaction: String, status: String },
    /// A record was deleted.
    Removed,
    /// The lifecycle moved.
    State { from: State, to: State },
    /// A kernel was started.
    Spawned { spawner: String, pid: u32 },
    /// Its agent reported for the first time.
    AgentUp { boot_id: String, kernel: String, boot_ms: u64 },
    /// The link to its agent broke while the kernel went on.
    LinkLost { reason: String },
    /// The witnesses changed their mind: of how it is, or of the smallest part that fails.
    Health {
        from: Verdict,
        to: Verdict,
        #[serde(default)]
        layer: Option<Layer>,
        why: String,
    },
    /// The kernel ended. `last_beat_age_ms` is how long its heartbeat had been silent when we learnt it,
    /// `reaped_to_noticed_ms` how long the keeper's word took to arrive.
    Died { end: End, expected: bool, last_beat_age_ms: Option<u64>, reaped_to_noticed_ms: Option<u64> },
    /// No heartbeat came after the death: the second witness agrees.
    DeathConfirmed { silent_ms: u64 },
    /// A heartbeat came after the death was reported: the witnesses contradict each other.
    DeathContradicted { beats_after_death: u64 },
    /// A kernel that hangs is being taken out of service: this rung was reached. `attempt` counts kills.
    Fencing { rung: Rung, attempt: u32 },
    /// Nothing ended it for certain. It keeps what it has until an operator sees to it.
    FenceFailed { attempts: u32, reason: String },
    /// Its generation was declared dead in the pool; its peers are reset.
    Fenced { generation: u64 },
    /// The black box of the dead kernel was kept.
    LastWords { records: u32, last: String },
    /// It stopped answering on every way, the kernel itself included.
    Hung { silent_ms: u64 },
    /// Nothing of its user space answers any more, but the kernel itself does.
    UserSpaceDead { silent_ms: u64 },
    /// One of its CPUs runs nothing.
    CpuStuck { cpu: u32, silent_ms: u64 },
    /// That CPU runs something again, or has left.
    CpuRecovered { cpu: u32, after_ms: u64 },
    /// It answers again.
    Recovered { after_ms: u64 },
    /// It will be started again.
    RestartScheduled { delay_ms: u64 },
    /// It will not be started again: it has ended too often.
    GaveUp { restarts: u32 },
    /// A new daemon found it running.
    Adopted { pid: u32 },
    /// Something that was to be done did not work.
    StepFailed { step: String, reason: String },
    /// A caller claiming to be this kernel's agent was turned away.
    AgentRefused { cid: u32, reason: String },
    /// A policy rule was added.
    PolicyAdded { rule: String },
    /// A policy rule was removed.
    PolicyRemoved { rule: String },
    /// A hand-over was accepted. `what` is such as `128 MiB of memory`.
    OperationAccepted { operation: u64, from: String, to: String, what: String },
    /// A hand-over came further.
    OperationPhase { operation: u64, from: String, to: String },
    /// A unit of a hand-over has an owner again.
    UnitSettled { operation: u64, unit: String, fate: String },
    /// A unit was taken out of quarantine.
    UnitRepaired { unit: String, owner: String },
    /// A new daemon took a hand-over up again.
    OperationResumed { operation: u64, phase: String },
    /// CPUs are to be balanced by these settings, or (`None`) no more.
    BalanceChanged { settings: Option<String> },
    /// CPUs are balanced: one is to move, for this reason.
    BalanceProposed { operation: u64, from: String, to: String, why: String },
    /// Nothing came of such a move. `operation` is `None` if it was refused at once.
    BalanceFailed { operation: Option<u64>, from: String, to: String, reason: String },
    /// The ledger cannot be used: nothing can be started or moved until that is mended.
    LedgerUnusable { reason: String },
    /// The disk is full: the room kept for it was given up to record that something stops. Nothing else is recorded
    /// until there is room again.
    DiskReserveUsed { bytes: u64, reason: String },
    /// There is room on the disk again.
    DiskReserveRestored { bytes: u64 },
    /// Somebody asked for a change.
    Audit { verb: String, uid: u32, pid: i32, role: String, outcome: String },
}

impl EventKind {
    /// The name of the kind, as it stands in JSON.
    pub fn name(&self) -> String {
        self.to_name_and_fields().0
    }

    /// Whether it tells of an end, or of one that was wanted and failed: recorded even when the disk is full.
    pub fn is_of_an_end(&self) -> bool {
        match self {
            Self::DaemonStopped { .. }
            | Self::Fencing { .. }
            | Self::FenceFailed { .. }
            | Self::LastWords { .. }
            | Self::StepFailed { .. } => true,
            Self::Audit { verb, .. } => {
                matches!(verb.as_str(), "stop" | "kill" | "shutdown" | "balance off")
            }
            _ => false,
        }
    }

    /// Its name and its fields apart.
    pub fn to_name_and_fields(&self) -> (String, serde_json::Value) {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => (name, serde_json::Value::Object(serde_json::Map::new())),
            Ok(serde_json::Value::Object(map)) => map.into_iter().next().unwrap_or_default(),
            _ => Default::default(),
        }
    }
}

impl Event {
    /// The object that `tombolo events --json` prints: `{"seq":..,"at_unix_ns":..,"type":"died","instance":"db",..}`,
    /// the fields of the kind beside the common ones.
    pub fn to_json(&self) -> serde_json::Value {
        let (name, fields) = self.kind.to_name_and_fields();
        let mut object = serde_json::json!({
            "seq": self.seq,
            "at_unix_ns": self.at_unix_ns,
            "type": name,
            "instance": self.instance,
            "incarnation": self.incarnation,
        });
        if let (Some(object), serde_json::Value::Object(fields)) = (object.as_object_mut(), fields) {
            object.extend(fields);
        }
        object
    }

    /// One line for people, without time and number.
    pub fn to_line(&self) -> String {
        let (name, fields) = self.kind.to_name_and_fields();
        let mut line = format!("{:<12} {name}", self.instance.as_deref().unwrap_or("-"));
        if let Some(fields) = fields.as_object() {
            for (key, value) in fields {
                let text = match value {
                    serde_json::Value::Null => continue,
                    serde_json::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let text = if text.contains(' ') { format!("{text:?}") } else { text };
                line.push_str(&format!(" {key}={text}"));
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died() -> Event {
        let kind = EventKind::Died {
            end: End::Signaled(9),
            expected: false,
            last_beat_age_ms: Some(42),
            reaped_to_noticed_ms: None,
        };
        Event { seq: 7, at_unix_ns: 1, instance: Some("db".into()), incarnation: None, kind }
    }

    #[test]
    fn json_is_flat_and_names_the_type() {
        let json = died().to_json();
        assert_eq!(json["type"], "died");
        assert_eq!(json["seq"], 7);
        assert_eq!(json["last_beat_age_ms"], 42);
        assert_eq!(json["end"]["signaled"], 9);
        let created = Event { kind: EventKind::Created, ..died() };
        assert_eq!(created.to_json()["type"], "created");
    }

    #[test]
    fn a_line_leaves_out_what_is_not_known() {
        let line = died().to_line();
        assert!(line.starts_with("db           died"), "{line}");
        assert!(!line.contains("reaped"), "{line}");
    }

    #[test]
    fn events_survive_storage() {
        let stored = serde_json::to_vec(&died()).unwrap();
        assert_eq!(serde_json::from_slice::<Event>(&stored).unwrap(), died());
    }
}
