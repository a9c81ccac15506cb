//! `tombolo forward`: a local port whose connections lead into an instance, as long as the command runs.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use super::args::ForwardArgs;
use super::error::CliError;
use super::target::{Route, Target, summary};
use super::{Context, Outcome};

pub(super) async fn forward(cx: &Context, args: ForwardArgs) -> Outcome {
    let route = args.target.parse::<Target>()?.route(cx).await?;
    let listen = args.listen.as_str();
    let cannot = |error: std::io::Error| CliError::failed(format!("listen on {listen}"), error);
    if listen.contains('/') {
        let listener = UnixListener::bind(listen).map_err(cannot)?;
        let _unlink = Unlink(Path::new(listen));
        announce(cx, listen, &args.target)?;
        loop {
            let (stream, _) = listener.accept().await.map_err(cannot)?;
            let (from, to) = stream.into_split();
            bridge(cx, &route, from, to);
        }
    }
    let address = match listen.parse::<u16>() {
        Ok(port) => format!("127.0.0.1:{port}"),
        Err(_) => listen.to_owned(),
    };
    let listener = TcpListener::bind(&address).await.map_err(cannot)?;
    let bound = listener.local_addr().map_err(cannot)?.to_string();
    announce(cx, &bound, &args.target)?;
    loop {
        let (stream, _) = listener.accept().await.map_err(cannot)?;
        let _ = stream.set_nodelay(true);
        let (from, to) = stream.into_split();
        bridge(cx, &route, from, to);
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

/// Removes the socket's file when the forward ends.
struct Unlink<'a>(&'a Path);

impl Drop for Unlink<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}
