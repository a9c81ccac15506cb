//! Our own terminal: raw while a program inside has it, as before afterwards, whatever happens in between.

use std::io::{IsTerminal, stdin, stdout};
use std::sync::{Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;
use tombolo_agent::api::exec::WindowSize;

/// How our terminal was before it was made raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps our terminal raw until dropped.
#[derive(Debug)]
pub(super) struct RawMode(());

impl RawMode {
    /// Makes our terminal raw; `None` if stdin is not one.
    pub(super) fn enter() -> Option<Self> {
        if !stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes our terminal as it was, if it is raw.
pub(super) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}

/// The size of our terminal; that of a VT100 if we have none.
pub(super) fn window_size() -> WindowSize {
    match tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize { rows: size.ws_row, cols: size.ws_col },
        _ => WindowSize { rows: 24, cols: 80 },
    }
}

/// What is typed, piece by piece, then the end. Read by a thread of its own: stdin knows no other way.
pub(super) fn typed() -> mpsc::Receiver<Vec<u8>> {
    // A few pieces ahead; more would outrun the program that reads them.
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = std::io::Read::read(&mut stdin().lock(), &mut chunk) {
            if sender.blocking_send(chunk[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
