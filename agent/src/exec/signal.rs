//! Signals by name or number.

use std::str::FromStr;

use nix::sys::signal::Signal as Known;

use crate::api::exec::{ExecError, Signal};

/// The number of a signal.
///
/// # Errors
/// [`ExecError::Invalid`] for a name nobody knows, 0, a negative number, or one that cannot be sent (real-time signals).
pub fn number(signal: &Signal) -> Result<i32, ExecError> {
    let invalid = |reason: String| ExecError::Invalid { field: "signal".to_owned(), reason };
    match signal {
        Signal::Number(number) => match Known::try_from(*number) {
            Ok(known) => Ok(known as i32),
            Err(_) => Err(invalid(format!("there is no signal {number}; they go from 1 to 31"))),
        },
        Signal::Name(name) => {
            let upper = name.to_ascii_uppercase();
            let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
            Known::from_str(&full).map(|known| known as i32).map_err(|_| {
                invalid(format!("there is no signal `{name}`; try TERM, INT, HUP, KILL, USR1 or a number"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_mean_the_same() {
        for signal in [
            Signal::Number(15),
            Signal::Name("TERM".into()),
            Signal::Name("SIGTERM".into()),
            Signal::Name("sigterm".into()),
        ] {
            assert_eq!(number(&signal).unwrap(), 15);
        }
    }

    #[test]
    fn signals_that_do_not_exist_are_refused() {
        for signal in [Signal::Number(0), Signal::Number(-9), Signal::Number(65), Signal::Name("NOPE".into())]
        {
            assert!(number(&signal).is_err());
        }
    }
}
