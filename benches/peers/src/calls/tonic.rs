//! tonic: gRPC, so HTTP/2 and protocol buffers, over a Unix socket.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tombolo_benches::calls;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use super::{Framework, swallowed};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Record {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(string, tag = "2")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Load {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Swallowed {
    #[prost(uint64, tag = "1")]
    number: u64,
}

mod generated {
    #![allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        reason = "written by its compiler"
    )]
    #![allow(
        clippy::all,
        clippy::or_fun_call,
        clippy::semicolon_if_nothing_returned,
        clippy::unimplemented,
        clippy::use_self,
        reason = "written by its compiler"
    )]
    include!(concat!(env!("OUT_DIR"), "/tombolo.peers.Touch.rs"));
}

use generated::touch_client::TouchClient;
use generated::touch_server::{Touch, TouchServer};

/// Its default is one byte too small for the call with bytes, which would wait for the window to be opened again.
const WINDOW_BYTES: u32 = 1 << 20;

struct Toucher;

#[tonic::async_trait]
impl Touch for Toucher {
    async fn touch(&self, request: Request<Record>) -> Result<Response<Record>, Status> {
        let mut record = request.into_inner();
        record.count += 1;
        Ok(Response::new(record))
    }

    async fn swallow(&self, request: Request<Load>) -> Result<Response<Swallowed>, Status> {
        let number =
            swallowed(&request.get_ref().bytes).map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Response::new(Swallowed { number }))
    }
}

/// See the module.
pub(crate) struct Tonic;

impl Framework for Tonic {
    type Client = TouchClient<Channel>;

    async fn serve(path: PathBuf, listening: Sender<()>) -> anyhow::Result<()> {
        let arrivals = UnixListenerStream::new(UnixListener::bind(path)?);
        listening.send(())?;
        Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_service(TouchServer::new(Toucher))
            .serve_with_incoming(arrivals)
            .await?;
        Ok(())
    }

    async fn connect(path: &Path) -> anyhow::Result<Self::Client> {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is of no use to a Unix socket, but has to be one.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
        Ok(TouchClient::new(channel))
    }

    async fn touch(client: &Self::Client, record: calls::Record) -> anyhow::Result<calls::Record> {
        // Its clients are cloned for each call: their methods take them for themselves.
        let record = Record { count: record.count, key: record.key };
        let answer = client.clone().touch(record).await?.into_inner();
        Ok(calls::Record { count: answer.count, key: answer.key })
    }

    async fn swallow(client: &Self::Client, bytes: &[u8]) -> anyhow::Result<u64> {
        Ok(client.clone().swallow(Load { bytes: bytes.to_vec() }).await?.into_inner().number)
    }
}
