//! Where `connect` and `forward` lead: a port of the fabric, or something inside an instance.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tombolo_agent::api::forward::{ForwardConnect, ForwardTarget};
use tombolo_rpc::Blob;
use tombolo_transport::{Addr, Cid, Endpoint, Port};

use super::client::{self, Client};
use super::error::CliError;
use super::{Context, output};
use crate::api::ExitKind;
use crate::core::InstanceName;

/// Bytes carried at once into an instance.
const CHUNK_BYTES: usize = 64 * 1024;

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A port of the fabric, by CID.
    Addr(Addr),
    /// A port of the fabric, by the name of its kernel.
    Port(InstanceName, u32),
    /// A service of the fabric, `KERNEL/SERVICE`.
    Service(String),
    /// A socket inside an instance.
    Inside(InstanceName, ForwardTarget),
}

/// A target that is ready to be connected to, many times over.
#[derive(Clone, Debug)]
pub(super) enum Route {
    Fabric(Endpoint, Goal),
    Inside(Client, InstanceName, ForwardTarget),
}

#[derive(Clone, Debug)]
pub(super) enum Goal {
    Addr(Addr),
    Service(String),
}

impl std::str::FromStr for Target {
    type Err = CliError;

    fn from_str(text: &str) -> Result<Self, CliError> {
        let wrong = || {
            CliError::usage(format!(
                "`{text}` is not CID:PORT, NAME:PORT, NAME/SERVICE, NAME:tcp:PORT or NAME:unix:PATH"
            ))
        };
        if let Ok(addr) = text.parse() {
            return Ok(Self::Addr(addr));
        }
        if let Some((kernel, service)) = text.split_once('/')
            && !kernel.contains(':')
        {
            let valid = kernel.parse::<InstanceName>().is_ok() && !service.is_empty();
            return if valid { Ok(Self::Service(text.to_owned())) } else { Err(wrong()) };
        }
        let (name, rest) = text.split_once(':').ok_or_else(wrong)?;
        let name = name.parse().map_err(|_| wrong())?;
        if let Some(port) = rest.strip_prefix("tcp:") {
            let (host, port) = port.rsplit_once(':').unwrap_or(("127.0.0.1", port));
            let port = port.parse().map_err(|_| wrong())?;
            return Ok(Self::Inside(name, ForwardTarget::Tcp { host: host.to_owned(), port }));
        }
        if let Some(path) = rest.strip_prefix("unix:") {
            return Ok(Self::Inside(name, ForwardTarget::Unix { path: path.to_owned() }));
        }
        rest.parse().map(|port| Self::Port(name, port)).map_err(|_| wrong())
    }
}

impl Target {
    /// Finds out how to get there.
    pub(super) async fn route(self, cx: &Context) -> Result<Route, CliError> {
        Ok(match self {
            Self::Addr(addr) => Route::Fabric(client::attach(&cx.global).await?, Goal::Addr(addr)),
            Self::Service(name) => Route::Fabric(client::attach(&cx.global).await?, Goal::Service(name)),
            Self::Port(name, port) => {
                let client = cx.client().await?;
                let view = client.ask(client.fleet.inspect(name.to_string())).await?.view;
                let addr = Addr::new(Cid(view.cid), Port(port));
                Route::Fabric(client::attach(&cx.global).await?, Goal::Addr(addr))
            }
            Self::Inside(name, target) => Route::Inside(cx.client().await?, name, target),
        })
    }
}

impl Route {
    /// Connects, and carries bytes both ways between there and `local` until both are done. Returns how many went there
    /// and how many came back.
    pub(super) async fn carry<R, W>(&self, mut from: R, mut to: W) -> Result<(u64, u64), CliError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match self {
            Self::Fabric(endpoint, goal) => {
                let addr = match goal {
                    Goal::Addr(addr) => *addr,
                    Goal::Service(name) => endpoint.resolve(name).await.map_err(refused)?,
                };
                let (mut reader, mut writer) = endpoint.connect(addr).await.map_err(refused)?.split();
                let there = async {
                    let sent = tokio::io::copy(&mut from, &mut writer).await;
                    let _ = writer.shutdown().await;
                    sent
                };
                let back = async {
                    let received = copy_eagerly(&mut reader, &mut to).await;
                    let _ = to.shutdown().await;
                    received
                };
                // Whoever serves us may end without waiting for the end of our input.
                tokio::pin!(there);
                let mut sent = None;
                tokio::pin!(back);
                let received = loop {
                    tokio::select! {
                        received = &mut back => break received,
                        done = &mut there, if sent.is_none() => sent = Some(done),
                    }
                };
                let received =
                    received.map_err(|error| CliError::failed(format!("read from {addr}"), error))?;
                Ok((sent.and_then(Result::ok).unwrap_or(0), received))
            }
            Self::Inside(client, name, target) => {
                let request = ForwardConnect { target: target.clone(), timeout_ms: 0 };
                let (call, input, mut out) = client.inside.connect(name.to_string(), request);
                let call = call.no_deadline();
                let feeding = async {
                    let mut chunk = vec![0; CHUNK_BYTES];
                    while let Ok(read @ 1..) = from.read(&mut chunk).await {
                        if input.send(Blob(chunk[..read].to_vec().into())).await.is_err() {
                            break;
                        }
                    }
                    drop(input);
                    std::future::pending::<()>().await;
                };
                let receiving = async {
                    while let Ok(Some(bytes)) = out.recv().await {
                        if to.write_all(&bytes.0).await.is_err() || to.flush().await.is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown().await;
                    call.await
                };
                tokio::select! {
                    done = receiving => {
                        let done = done?;
                        Ok((done.sent, done.received))
                    }
                    () = feeding => Ok((0, 0)),
                }
            }
        }
    }
}

/// As `tokio::io::copy`, but what came is passed on before more is waited for: the other end may be a person.
async fn copy_eagerly<R, W>(from: &mut R, to: &mut W) -> std::io::Result<u64>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut chunk, mut copied) = (vec![0; CHUNK_BYTES], 0);
    loop {
        match from.read(&mut chunk).await? {
            0 => return Ok(copied),
            read => {
                to.write_all(&chunk[..read]).await?;
                to.flush().await?;
                copied += read as u64;
            }
        }
    }
}

fn refused(error: tombolo_transport::Error) -> CliError {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ExitKind::NotFound,
        std::io::ErrorKind::PermissionDenied => ExitKind::Denied,
        _ => ExitKind::Failed,
    };
    CliError::new(kind, crate::daemon::chain(&error))
}

/// What went through, for people.
pub(super) fn summary((sent, received): (u64, u64)) -> String {
    format!("{} there, {} back", output::bytes(sent), output::bytes(received))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_target_is_understood() {
        let web = || -> InstanceName { "web".parse().unwrap() };
        let tcp = |host: &str, port| ForwardTarget::Tcp { host: host.into(), port };
        for (text, expected) in [
            ("3:80", Target::Addr(Addr::new(Cid(3), Port(80)))),
            ("web:80", Target::Port(web(), 80)),
            ("web/kv", Target::Service("web/kv".into())),
            ("web:tcp:22", Target::Inside(web(), tcp("127.0.0.1", 22))),
            ("web:tcp:10.0.0.1:22", Target::Inside(web(), tcp("10.0.0.1", 22))),
            ("web:unix:/run/x", Target::Inside(web(), ForwardTarget::Unix { path: "/run/x".into() })),
        ] {
            assert_eq!(text.parse::<Target>().unwrap(), expected, "{text}");
        }
        for text in ["", "web", "web:", "web:tcp:", "web/", "/kv", "web:80:90", "web:http"] {
            assert!(text.parse::<Target>().is_err(), "{text} was accepted");
        }
    }
}
