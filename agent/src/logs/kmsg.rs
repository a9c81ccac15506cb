//! The kernel's own log, from `/dev/kmsg`.

use std::fs::File;
use std::io;

use tokio::io::Interest;

use super::Log;
use crate::api::logs::{LogLevel, LogSource};

/// Longest record of `/dev/kmsg` (`PRINTK_MESSAGE_MAX`); a shorter buffer makes reads fail.
const RECORD_BYTES_MAX: usize = 8 * 1024;

/// Appends what the kernel logged and logs to `log`, for ever. Cancel safe.
///
/// # Errors
/// If `/dev/kmsg` cannot be read: none here, or not permitted.
pub async fn follow_kernel_log(log: Log) -> io::Result<()> {
    let kmsg = crate::sys::watched(File::open("/dev/kmsg")?.into(), Interest::READABLE)?;
    let mut buffer = vec![0; RECORD_BYTES_MAX];
    loop {
        match kmsg.async_io(Interest::READABLE, |kmsg| Ok(rustix::io::read(kmsg, &mut buffer)?)).await {
            Ok(len) => {
                if let Some((level, text)) = parse_record(&buffer[..len]) {
                    log.push(LogSource::Kernel, level, text);
                }
            }
            // The kernel's buffer wrapped before we read: the next read goes on with the oldest there is.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EPIPE as i32) => {
                log.push(LogSource::Kernel, LogLevel::Warn, "(kernel messages were lost here)".to_owned());
            }
            Err(error) => return Err(error),
        }
    }
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,...];TEXT\n[ KEY=VALUE\n...]`
fn parse_record(record: &[u8]) -> Option<(LogLevel, String)> {
    let record = String::from_utf8_lossy(record);
    let (prefix, rest) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let micros: u64 = fields.nth(1)?.parse().ok()?;
    let text = rest.split('\n').next()?;
    let level = match priority & 7 {
        0..=3 => LogLevel::Error,
        4 => LogLevel::Warn,
        5 | 6 => LogLevel::Info,
        _ => LogLevel::Debug,
    };
    Some((level, format!("[{:5}.{:06}] {text}", micros / 1_000_000, micros % 1_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_taken_apart() {
        let record = b"4,339,5140900,-;NET: Registered PF_VSOCK\n SUBSYSTEM=net\n";
        let (level, text) = parse_record(record).unwrap();
        assert_eq!((level, text.as_str()), (LogLevel::Warn, "[    5.140900] NET: Registered PF_VSOCK"));
    }

    #[test]
    fn what_is_no_record_is_skipped() {
        for record in [&b""[..], b"no semicolon", b"x,1,2,-;text", b"4;text"] {
            assert_eq!(parse_record(record), None);
        }
    }
}
