//! How CPUs are balanced between running kernels: what operators set, and the daemon stores.

use std::fmt;
use std::time::Duration;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tombolo_handover::balance::Policy;

/// What balancing goes by, and how readily. Shares are in percent of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(default)]
pub struct BalanceSettings {
    /// What it goes by.
    pub policy: BalancePolicy,
    /// A kernel gets a CPU if its programs wait for one at least so much. Default 20.
    pub take_at_percent: u32,
    /// A kernel gives one if its programs wait at most so much. Default 2.
    pub give_at_percent: u32,
    /// Nor does it give if the CPUs it keeps would be busier than this. Default 75.
    pub busy_max_percent: u32,
    /// How long either must have been so, in milliseconds. Default 5000.
    pub hold_ms: u64,
    /// How long both kernels rest after a move, in milliseconds; longer after moves that undo each other or fail, up to 10 minutes
    /// (this, if it is more). Default 15 000.
    pub rest_ms: u64,
}

/// What balancing goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum BalancePolicy {
    /// How long programs wait for a CPU, as the kernels say (PSI).
    #[default]
    Pressure,
}

/// Such settings cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("CPUs cannot be balanced by these settings: {reason}")]
pub struct BalanceSettingsError {
    reason: String,
}

/// Longest hold and rest, in milliseconds: a day. Whoever wants longer ones wants no balancing.
const TIME_MS_MAX: u64 = 24 * 3_600_000;
const NS_PER_MS: u64 = 1_000_000;
/// Hundredths of a percent.
const BASIS_POINTS: u32 = 100;

impl Default for BalanceSettings {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            policy: BalancePolicy::Pressure,
            take_at_percent: policy.wants_at / BASIS_POINTS,
            give_at_percent: policy.gives_at / BASIS_POINTS,
            busy_max_percent: policy.busy_after_max / BASIS_POINTS,
            hold_ms: policy.hold_ns / NS_PER_MS,
            rest_ms: policy.rest_ns / NS_PER_MS,
        }
    }
}

impl BalanceSettings {
    /// The same for whoever decides.
    pub fn policy(&self) -> Policy {
        let default = Policy::default();
        let rest_ns = self.rest_ms.saturating_mul(NS_PER_MS);
        Policy {
            wants_at: self.take_at_percent.saturating_mul(BASIS_POINTS),
            gives_at: self.give_at_percent.saturating_mul(BASIS_POINTS),
            busy_after_max: self.busy_max_percent.saturating_mul(BASIS_POINTS),
            hold_ns: self.hold_ms.saturating_mul(NS_PER_MS),
            rest_ns,
            rest_max_ns: default.rest_max_ns.max(rest_ns),
            ..default
        }
    }

    /// Checks that they make sense together.
    ///
    /// # Errors
    /// [`BalanceSettingsError`] names the first thing that is wrong.
    pub fn validate(&self) -> Result<(), BalanceSettingsError> {
        let refuse = |reason: String| Err(BalanceSettingsError { reason });
        let Self { take_at_percent: take, give_at_percent: give, busy_max_percent: busy, .. } = *self;
        if !(1..=100).contains(&take) {
            return refuse(format!("a kernel would get a CPU at {take} % waiting; say 1 to 100"));
        }
        if give >= take {
            return refuse(format!(
                "a kernel would give a CPU at {give} % waiting and get one at {take} %; give at less than it gets at, or CPUs swing"
            ));
        }
        if !(1..=100).contains(&busy) {
            return refuse(format!("whoever gives would stay under {busy} % busy; say 1 to 100"));
        }
        for (what, ms) in [("hold", self.hold_ms), ("rest", self.rest_ms)] {
            if ms > TIME_MS_MAX {
                return refuse(format!("the {what} is {ms} ms, and may be a day at most"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for BalancePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pressure => "pressure",
        })
    }
}

/// On one line, for people.
impl fmt::Display for BalanceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "by {}: gets at {} % waiting, gives at {} % and under {} % busy, either for {:?}, then rests {:?}",
            self.policy,
            self.take_at_percent,
            self.give_at_percent,
            self.busy_max_percent,
            Duration::from_millis(self.hold_ms),
            Duration::from_millis(self.rest_ms)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_decision() {
        let settings = BalanceSettings::default();
        assert_eq!(settings.policy(), Policy::default());
        settings.validate().unwrap();
        let text = settings.to_string();
        assert!(text.contains("20 % waiting") && text.contains("for 5s, then rests 15s"), "{text}");
    }

    #[test]
    fn a_rest_longer_than_the_longest_is_kept() {
        let settings = BalanceSettings { rest_ms: 3_600_000, ..BalanceSettings::default() };
        assert_eq!(settings.policy().rest_max_ns, 3_600_000 * NS_PER_MS);
    }

    #[test]
    fn settings_that_would_swing_or_never_act_are_refused() {
        let fine = BalanceSettings::default();
        for wrong in [
            BalanceSettings { take_at_percent: 0, give_at_percent: 0, ..fine },
            BalanceSettings { take_at_percent: 101, ..fine },
            BalanceSettings { give_at_percent: 20, ..fine },
            BalanceSettings { busy_max_percent: 0, ..fine },
            BalanceSettings { busy_max_percent: 101, ..fine },
            BalanceSettings { hold_ms: u64::MAX, ..fine },
            BalanceSettings { rest_ms: u64::MAX, ..fine },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn settings_that_an_older_daemon_stored_are_read() {
        let stored: BalanceSettings = serde_json::from_str(r#"{"policy":"pressure","hold_ms":1}"#).unwrap();
        assert_eq!(stored, BalanceSettings { hold_ms: 1, ..BalanceSettings::default() });
    }
}
