//! The two lines that open a hybrid connection: `CONNECT <port>\n` and `OK <port>\n`.

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::addr::Port;

/// Longest line either side may send, newline included: "CONNECT 4294967295\r\n" is 20 bytes.
pub(crate) const LINE_BYTES_MAX: usize = 32;

pub(crate) fn connect_line(port: Port) -> String {
    format!("CONNECT {port}\n")
}

pub(crate) fn ok_line(port: Port) -> String {
    format!("OK {port}\n")
}

/// The port of a `CONNECT` line. Like Firecracker, indifferent to case and surrounding spaces.
pub(crate) fn parse_connect(line: &[u8]) -> Option<Port> {
    parse(line, "CONNECT")
}

/// The port of an `OK` line.
pub(crate) fn parse_ok(line: &[u8]) -> Option<Port> {
    parse(line, "OK")
}

fn parse(line: &[u8], word: &str) -> Option<Port> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let named = words.next()?.eq_ignore_ascii_case(word);
    let digits = words.next()?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.parse().ok()?;
    (named && plain && words.next().is_none()).then_some(Port(port))
}

/// What came instead of a whole line.
#[derive(Debug)]
pub(crate) enum NoLine {
    /// The peer hung up first; true if it had sent something.
    HungUp {
        after_some: bool,
    },
    /// Longer than any line of this convention.
    TooLong,
    Io(std::io::Error),
}

/// Reads one line and nothing after it: what follows belongs to the connection.
pub(crate) async fn read_line(io: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, NoLine> {
    let mut line = Vec::with_capacity(LINE_BYTES_MAX);
    while line.len() < LINE_BYTES_MAX {
        let mut byte = [0];
        match io.read(&mut byte).await {
            Ok(0) => return Err(NoLine::HungUp { after_some: !line.is_empty() }),
            Ok(_) if byte[0] == b'\n' => return Ok(line),
            Ok(_) => line.push(byte[0]),
            Err(source) => return Err(NoLine::Io(source)),
        }
    }
    Err(NoLine::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_written_are_understood() {
        assert_eq!(parse_connect(connect_line(Port(52)).as_bytes()), Some(Port(52)));
        assert_eq!(parse_ok(ok_line(Port(u32::MAX)).as_bytes()), Some(Port(u32::MAX)));
        assert_eq!(parse_connect(b"connect 7\r"), Some(Port(7)));
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            &b""[..],
            b"CONNECT",
            b"CONNECT x",
            b"CONNECT 4294967296",
            b"CONNECT -1",
            b"CONNECT +1",
            b"CONNECT 1 2",
            b"OK",
            b"\xff",
            b"OK 1",
        ] {
            assert_eq!(parse_connect(line), None, "{line:?}");
        }
    }

    #[tokio::test]
    async fn reading_a_line_leaves_what_follows() {
        let mut io = &b"OK 5\nhello"[..];
        assert_eq!(read_line(&mut io).await.unwrap(), b"OK 5");
        assert_eq!(io, b"hello");
    }

    #[tokio::test]
    async fn endless_or_unfinished_line_is_an_error() {
        assert!(matches!(read_line(&mut &[b'A'; 100][..]).await, Err(NoLine::TooLong)));
        assert!(matches!(read_line(&mut &b"OK"[..]).await, Err(NoLine::HungUp { after_some: true })));
        assert!(matches!(read_line(&mut &b""[..]).await, Err(NoLine::HungUp { after_some: false })));
    }
}
