//! Programs that know nothing of Tombolo's fabric: they use the AF_VSOCK of the kernel they run on.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tombolo_transport::vsock::VsockConfig;
use tombolo_transport::{Addr, Cid, ConnectOptions, Endpoint, ListenOptions, Port};

/// How long the host may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Listens at a port, and sends back to every caller what it sends, until killed.
///
/// # Errors
/// When the kernel has no AF_VSOCK or the port is taken.
pub async fn echo(port: Port) -> Result<()> {
    let mut listener =
        Endpoint::vsock(VsockConfig::default())?.listen(port, ListenOptions::default()).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::io::split(stream);
            // A caller that is gone is its own affair.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    }
}

/// Sends a text to a port of the host, and reads as much back.
///
/// # Errors
/// When nobody listens there, or it does not answer in time.
pub async fn call_host(port: Port, text: &str) -> Result<String> {
    let answered = tokio::time::timeout(ANSWER_MAX, async {
        let endpoint = Endpoint::vsock(VsockConfig::default())?;
        let options = ConnectOptions { timeout: ANSWER_MAX, ..ConnectOptions::default() };
        let mut stream = endpoint.connect_with(Addr::new(Cid::HOST, port), &options).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await?;
        Ok(String::from_utf8(answer)?)
    });
    answered.await.context("the host does not answer")?
}
