//! Saying no.

use tombolo_handover::operation::Veto;

/// It may be worth asking again after so many ms.
pub(super) fn later(reason: String, retry_after_ms: u64) -> Veto {
    Veto { reason, retry_after_ms: Some(retry_after_ms) }
}

/// Asking again is of no use.
pub(super) fn never(reason: String) -> Veto {
    Veto { reason, retry_after_ms: None }
}
