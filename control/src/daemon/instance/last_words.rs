//! What is kept of a kernel that died: its black box, and the end of what it wrote to its console.

use std::io::SeekFrom;
use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tombolo_transport::pool::Member;

use super::Instance;
use crate::api::LastWord;
use crate::core::EventKind;
use crate::keeper::write_atomically;

/// Where the black box is kept, in the instance's folder.
const BLACK_BOX: &str = "last-words.json";
/// Where the end of the console is kept, beside it.
const CONSOLE: &str = "last-console.txt";
/// Records kept: the end of the story. 200 x 256 bytes.
const RECORDS_MAX: usize = 200;
/// How much of the console is kept, in bytes.
const CONSOLE_BYTES: u64 = 4096;

impl Instance {
    /// What was kept of the last kernel that died.
    pub(super) async fn last_words(&self) -> (Vec<LastWord>, String) {
        let folder = self.shared.places.instance(&self.record.name);
        let words = tokio::fs::read(folder.join(BLACK_BOX)).await.unwrap_or_default();
        let console = tokio::fs::read(folder.join(CONSOLE)).await.unwrap_or_default();
        let words = serde_json::from_slice(&words).unwrap_or_default();
        (words, String::from_utf8_lossy(&console).into_owned())
    }

    pub(super) async fn keep_last_words(&mut self) {
        self.keep_console().await;
        self.keep_black_box().await;
    }

    async fn keep_black_box(&mut self) {
        let words = self.black_box();
        if words.is_empty() {
            // It never got as far as to say anything; what an earlier kernel said stays.
            return;
        }
        let (count, last) =
            (words.len() as u32, words.last().map(|word| word.text.clone()).unwrap_or_default());
        let folder = self.shared.places.instance(&self.record.name);
        if let Ok(json) = serde_json::to_vec(&words)
            && let Err(error) = write_atomically(&folder.join(BLACK_BOX), &json)
        {
            tracing::warn!(instance = %self.record.name, %error, "its last words could not be kept");
        }
        self.shared.note(Some(&self.record.name), EventKind::LastWords { records: count, last }).await;
    }

    async fn keep_console(&mut self) {
        let Some(kernel) = &self.kernel else { return };
        let mut text = tail_of(&kernel.console_log()).await.unwrap_or_default();
        if let Some(registers) = self.last_registers.take() {
            text.extend_from_slice(b"\n[where its CPUs stood when it was ended by force]\n");
            text.extend_from_slice(registers.as_bytes());
        }
        let path = self.shared.places.instance(&self.record.name).join(CONSOLE);
        if let Err(error) = write_atomically(&path, &text) {
            tracing::warn!(instance = %self.record.name, %error, "the end of its console could not be kept");
        }
    }

    /// What the present or last kernel wrote to its black box, oldest first.
    fn black_box(&self) -> Vec<LastWord> {
        let since_ns = self.record.spawned_unix_ns.unwrap_or(0);
        let records = self.shared.pool.black_box(Member(self.record.member));
        // What an earlier boot of this member wrote may still stand before it.
        let of_this_boot = records.into_iter().filter(|record| record.unix_ns >= since_ns);
        let mut words: Vec<LastWord> = of_this_boot
            .map(|record| LastWord {
                at_ns: record.unix_ns,
                level: format!("{:?}", record.level).to_lowercase(),
                text: record.text,
            })
            .collect();
        words.drain(..words.len().saturating_sub(RECORDS_MAX));
        words
    }
}

/// The end of a console's record.
async fn tail_of(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(log).await?;
    let from = file.metadata().await?.len().saturating_sub(CONSOLE_BYTES);
    file.seek(SeekFrom::Start(from)).await?;
    let mut tail = Vec::new();
    file.take(CONSOLE_BYTES).read_to_end(&mut tail).await?;
    Ok(tail)
}
