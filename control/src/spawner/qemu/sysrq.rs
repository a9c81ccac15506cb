//! Speaking to a machine's kernel itself, past its user space: magic SysRq keys, and the registers of its CPUs.
//!
//! A kernel takes the character that follows a *break* on its serial console for such a key. The monitor makes the break, the
//! character goes the way of all console input, by the keeper.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::qmp::session;
use super::{CONSOLE, MONITOR, cpu};
use crate::spawner::Kernel;
use crate::spawner::distress::Key;

/// Longest answer to one key that is read before the next is pressed, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Presses magic SysRq keys, each when the one before was taken. The error is for people.
pub(in crate::spawner) async fn press(kernel: &Kernel, keys: &[Key], limit: Duration) -> Result<(), String> {
    let console = kernel.console().await.map_err(|error| error.to_string())?;
    let mut console = UnixStream::from_std(console).map_err(|error| error.to_string())?;
    for Key { key, said } in keys {
        let send_break = |mut session: super::qmp::Session<_>| async move {
            session.run("chardev-send-break", json!({ "id": CONSOLE })).await
        };
        let sent = session(kernel.runtime_dir(), MONITOR, limit, send_break).await;
        sent.map_err(|error| error.to_string())?;
        let pressed = async {
            console.write_all(key.to_string().as_bytes()).await?;
            await_words(&mut console, said.as_bytes()).await
        };
        let broke = |error| format!("its console broke off at `{key}`: {error}");
        pressed.await.map_err(broke)?;
    }
    Ok(())
}

/// Reads until these words came.
async fn await_words(console: &mut UnixStream, words: &[u8]) -> std::io::Result<()> {
    let mut said = Vec::new();
    while !said.windows(words.len()).any(|window| window == words) {
        if said.len() > ANSWER_BYTES_MAX || console.read_buf(&mut said).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Which instruction each CPU of the machine is at, with its flags. A machine that is frozen shows them, too.
pub(in crate::spawner) async fn registers(runtime_dir: &Path, limit: Duration) -> Option<String> {
    let look = |mut session: super::qmp::Session<_>| async move { cpu::registers(&mut session).await };
    let told = instruction_pointers(&session(runtime_dir, MONITOR, limit, look).await.ok()?);
    (!told.is_empty()).then_some(told)
}

/// Of `info registers -a` the lines that name a CPU or hold its instruction pointer.
fn instruction_pointers(registers: &str) -> String {
    let tells =
        |line: &&str| line.starts_with("CPU#") || line.starts_with("RIP=") || line.starts_with("EIP=");
    let lines: Vec<&str> = registers.lines().map(str::trim).filter(tells).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_registers_the_instruction_pointers_are_kept() {
        let said = "\r\nCPU#0\r\nRAX=1 RBX=2\r\nRIP=ffffffffb2c0cf9b RFL=00000246 HLT=1\r\nES =0\r\n\r\nCPU#1\r\nEIP=0000fff0 EFL=2\r\n";
        assert_eq!(
            instruction_pointers(said),
            "CPU#0\nRIP=ffffffffb2c0cf9b RFL=00000246 HLT=1\nCPU#1\nEIP=0000fff0 EFL=2"
        );
        assert_eq!(instruction_pointers("nonsense"), "");
    }

    #[tokio::test]
    async fn a_key_is_taken_when_the_kernel_says_so_and_a_console_that_ends_is_an_error() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"noise [ 1.0] sysrq: Emergency Sync").await.unwrap();
        await_words(&mut ours, b"Emergency Sync").await.unwrap();
        theirs.write_all(b"more").await.unwrap();
        drop(theirs);
        assert!(await_words(&mut ours, b"Emergency Sync").await.is_err());
    }
}
