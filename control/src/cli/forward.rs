//! `tombolo forward`: a local port whose connections lead into an instance, as long as the command runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tombolo_transport::unix_socket::{self, BACKLOG_MAX};

use super::args::ForwardArgs;
use super::error::CliError;
use super::target::{Route, Target, summary};
use super::{Context, Outcome};
use crate::api::ExitKind;

pub(super) async fn forward(cx: &Context, args: ForwardArgs) -> Outcome {
    let listen = args.listen.as_str();
    let place = Place::parse(listen)?;
    let route = args.target.parse::<Target>()?.route(cx).await?;
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            CliError::new(ExitKind::Conflict, format!("could not listen on {listen}: it is in use"))
        }
        _ => CliError::failed(format!("listen on {listen}"), error),
    };
    let Place::Address(address) = place else {
        let (listener, _file) = unix_socket::listen(Path::new(listen), BACKLOG_MAX).map_err(cannot)?;
        announce(cx, listen, &args.target)?;
        loop {
            let (stream, _) = listener.accept().await.map_err(cannot)?;
            let (from, to) = stream.into_split();
            bridge(cx, &route, from, to);
        }
    };
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?.to_string();
    announce(cx, &bound, &args.target)?;
    loop {
        let (stream, _) = listener.accept().await.map_err(cannot)?;
        let _ = stream.set_nodelay(true);
        let (from, to) = stream.into_split();
        bridge(cx, &route, from, to);
    }
}

/// Where to listen.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Address(SocketAddr),
    Socket,
}

impl Place {
    fn parse(text: &str) -> Result<Self, CliError> {
        if text.contains('/') {
            return Ok(Self::Socket);
        }
        let address = match text.parse::<u16>() {
            Ok(port) => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            Err(_) => text.parse().ok(),
        };
        address.map(Self::Address).ok_or_else(|| {
            let wrong = "is not PORT (0 to 65535), ADDRESS:PORT, or the path of a Unix socket with a `/`";
            CliError::usage(format!("`{text}` {wrong}"))
        })
    }
}

fn announce(cx: &Context, listen: &str, target: &str) -> Result<ExitCode, CliError> {
    match cx.output.json {
        true => cx.output.item(&json!({ "type": "listening", "listen": listen, "target": target }))?,
        false => cx.output.note(format!("{listen} -> {target}; Ctrl-C ends it")),
    }
    Ok(ExitCode::SUCCESS)
}

fn bridge<R, W>(cx: &Context, route: &Route, from: R, to: W)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let (route, output) = (route.clone(), cx.output);
    tokio::spawn(async move {
        match route.carry(from, to).await {
            Ok(bytes) => output.note(format!("a connection is over: {}", summary(bytes))),
            Err(error) => output.note(format!("a connection failed: {}", error.message())),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_listen_are_understood_or_refused() {
        for (text, address) in
            [("80", "127.0.0.1:80"), ("0.0.0.0:80", "0.0.0.0:80"), ("[::1]:80", "[::1]:80")]
        {
            assert_eq!(Place::parse(text).unwrap(), Place::Address(address.parse().unwrap()));
        }
        assert_eq!(Place::parse("./80").unwrap(), Place::Socket);
        for text in ["65536", "localhost", "127.0.0.1", "127.0.0.1:x", ""] {
            assert_eq!(Place::parse(text).unwrap_err().kind(), ExitKind::Usage, "{text}");
        }
    }
}
