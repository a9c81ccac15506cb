//! What is measured once in a run and is no matter of two processes: how cost grows with connections and kernels.
//!
//! ```text
//! tombolo-bench-scale TASK [--quick]     one JSON object per line: the figures
//! ```
//! A task that cannot be measured says why on standard error and exits with 1.

use serde::{Deserialize, Serialize};

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What, as `task/quantity`.
    pub name: String,
    /// Of how many connections or kernels, where it depends on that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub of: Option<u64>,
    /// How much.
    pub value: f64,
    /// In which unit.
    pub unit: String,
    /// What a reader of the figure has to know.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}
