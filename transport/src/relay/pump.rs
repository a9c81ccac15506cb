//! Carrying the bytes of a connection: between an application's socket and the stream to the next kernel, and between two streams.
//!
//! Each direction ends by itself. One that nobody reads any more is not carried further, while the other goes on; one that ends without its
//! last word takes both with it, so that a death here is a reset there.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::socket::{PACKET_BYTES_MAX, Packet, RelaySocket};
use crate::stream::Stream;

/// Bytes of a length, before the bytes it counts. 0: the end.
const LENGTH_BYTES: usize = 4;
/// Bytes taken at once between two streams.
const CHUNK_BYTES: usize = 16 * 1024;

/// One direction broke off: there is no connection any more.
struct Lost;

/// Between an application and another kernel, until both have ended.
pub(super) async fn carry(socket: RelaySocket, stream: Stream) {
    let (mut reader, mut writer) = stream.split();
    let _ = tokio::try_join!(outward(&socket, &mut writer), inward(&mut reader, &socket));
}

/// Between two kernels, until both have ended. What is said stays as it is.
pub(super) async fn carry_on(one: Stream, other: Stream) {
    let (mut from_one, mut to_one) = one.split();
    let (mut from_other, mut to_other) = other.split();
    let _ = tokio::try_join!(copy(&mut from_one, &mut to_other), copy(&mut from_other, &mut to_one));
}

async fn outward(socket: &RelaySocket, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), Lost> {
    let mut buffer = vec![0; LENGTH_BYTES + PACKET_BYTES_MAX];
    loop {
        let len = match socket.receive(&mut buffer[LENGTH_BYTES..]).await {
            Ok(Packet::Data(len)) => len,
            Ok(Packet::End) => 0,
            Ok(Packet::Lost) | Err(_) => return Err(Lost),
        };
        buffer[..LENGTH_BYTES].copy_from_slice(&(len as u32).to_le_bytes());
        if stream.write_all(&buffer[..LENGTH_BYTES + len]).await.is_err() {
            return Ok(());
        }
        if len == 0 {
            let _ = stream.shutdown().await;
            return Ok(());
        }
    }
}

async fn inward(stream: &mut (impl AsyncRead + Unpin), socket: &RelaySocket) -> Result<(), Lost> {
    let lost = |_: io::Error| Lost;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let len = stream.read_u32_le().await.map_err(lost)? as usize;
        if len == 0 {
            let _ = socket.end();
            return Ok(());
        }
        let packet = buffer.get_mut(..len).ok_or(Lost)?;
        stream.read_exact(packet).await.map_err(lost)?;
        if socket.send(packet).await.is_err() {
            return Ok(());
        }
    }
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Lost> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let len = from.read(&mut buffer).await.map_err(|_| Lost)?;
        if len == 0 {
            let _ = to.shutdown().await;
            return Ok(());
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Addr, Cid, Port};
    use crate::relay::socket::RelayStream;

    const ADDR: Addr = Addr { cid: Cid(3), port: Port(9) };

    /// An application whose other end is the bytes themselves.
    fn relayed() -> (RelayStream, tokio::io::DuplexStream) {
        let (near, far) = RelaySocket::pair(1).unwrap();
        let (_, far) = RelaySocket::recognise(far).unwrap();
        let (bytes, stream) = tokio::io::duplex(64);
        tokio::spawn(carry(near, Stream::from_io(stream, ADDR, ADDR)));
        (RelayStream::new(far, ADDR), bytes)
    }

    #[tokio::test]
    async fn each_direction_ends_by_itself_and_in_words() {
        let (mut app, mut bytes) = relayed();
        app.write_all(b"abc").await.unwrap();
        app.shutdown().await.unwrap();
        let mut read = Vec::new();
        bytes.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, [3, 0, 0, 0, b'a', b'b', b'c', 0, 0, 0, 0]);
        bytes.write_all(&[2, 0, 0, 0, b'd', b'e', 0, 0, 0, 0]).await.unwrap();
        let mut said = Vec::new();
        app.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"de");
    }

    #[tokio::test]
    async fn whatever_ends_without_its_last_word_is_a_reset() {
        let cut: [&[u8]; 5] = [b"", b"\x01\0\0", b"\x02\0\0\0d", b"\x01\0\0\0d", b"\x01\x40\0\0d"];
        for said in cut {
            let (mut app, mut bytes) = relayed();
            bytes.write_all(said).await.unwrap();
            bytes.shutdown().await.unwrap();
            let outcome = app.read_to_end(&mut Vec::new()).await;
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{said:?}");
        }
    }

    #[tokio::test]
    async fn what_was_sent_arrives_although_its_sender_is_gone_and_the_other_side_still_speaks() {
        let (mut app, mut bytes) = relayed();
        let sent = vec![7; 3 * PACKET_BYTES_MAX];
        app.write_all(&sent).await.unwrap();
        app.shutdown().await.unwrap();
        drop(app);
        bytes.write_all(&[0; LENGTH_BYTES]).await.unwrap();
        let mut read = Vec::new();
        bytes.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), sent.len() + 4 * LENGTH_BYTES);
    }

    #[tokio::test]
    async fn application_that_dies_leaves_no_last_word() {
        let (mut app, mut bytes) = relayed();
        app.write_all(b"a").await.unwrap();
        drop(app);
        let mut read = Vec::new();
        bytes.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, [1, 0, 0, 0, b'a']);
    }
}
