//! postcard-rpc over a Unix socket. It brings no transport for sockets: ours puts four bytes of length before each of its frames.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "its macros make public items of private ones"
)]

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender as Listening;

use anyhow::anyhow;
use postcard_rpc::header::{VarHeader, VarKeyKind, VarSeqKind};
use postcard_rpc::host_client::{HostClient, WireRx, WireSpawn, WireTx};
use postcard_rpc::server::{
    AsWireRxErrorKind, AsWireTxErrorKind, Dispatch, Server, WireRxErrorKind, WireTxErrorKind,
};
use postcard_rpc::standard_icd::{ERROR_PATH, WireError};
use postcard_rpc::{TopicDirection, define_dispatch, endpoints, server, topics};
use postcard_schema::Schema;
use postcard_schema::schema::{DataModelType, NamedType};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tombolo_benches::calls::Record;

use super::{Framework, swallowed};

/// Bytes as bytes, with the schema that it asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Load(#[serde(with = "serde_bytes")] Vec<u8>);

impl Schema for Load {
    const SCHEMA: &'static NamedType = &NamedType { name: "Load", ty: &DataModelType::ByteArray };
}

/// None if what arrived was not what was sent.
type Receipt = Option<u64>;

endpoints! {
    list = ENDPOINTS;
    | EndpointTy | RequestTy | ResponseTy | Path      |
    | ---------- | --------- | ---------- | ----      |
    | Touch      | Record    | Record     | "touch"   |
    | Swallow    | Load      | Receipt    | "swallow" |
}

topics! {
    list = TOPICS_IN;
    direction = TopicDirection::ToServer;
    | TopicTy | MessageTy | Path |
    | ------- | --------- | ---- |
}

topics! {
    list = TOPICS_OUT;
    direction = TopicDirection::ToClient;
    | TopicTy | MessageTy | Path |
    | ------- | --------- | ---- |
}

pub struct Context;

fn on_touch(_: &mut Context, _: VarHeader, record: Record) -> Record {
    record.answered()
}

fn on_swallow(_: &mut Context, _: VarHeader, load: Load) -> Receipt {
    swallowed(&load.0).ok()
}

define_dispatch! {
    app: App;
    spawn_fn: spawn;
    tx_impl: Sending;
    spawn_impl: Tasks;
    context: Context;

    endpoints: {
        list: ENDPOINTS;
        | EndpointTy | kind     | handler    |
        | ---------- | ----     | -------    |
        | Touch      | blocking | on_touch   |
        | Swallow    | blocking | on_swallow |
    };
    topics_in: {
        list: TOPICS_IN;
        | TopicTy | kind | handler |
        | ------- | ---- | ------- |
    };
    topics_out: {
        list: TOPICS_OUT;
    };
}

/// The largest frame: the bytes of `swallow`, and a little.
const FRAME_MAX: usize = (1 << 20) + 64;
/// As its own transports for hosts have it.
const OUTGOING: usize = 64;

/// What a socket says, in its terms.
#[derive(Debug)]
pub struct Broken(io::Error);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Broken {}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl AsWireTxErrorKind for Broken {
    fn as_kind(&self) -> WireTxErrorKind {
        WireTxErrorKind::ConnectionClosed
    }
}

impl AsWireRxErrorKind for Broken {
    fn as_kind(&self) -> WireRxErrorKind {
        WireRxErrorKind::ConnectionClosed
    }
}

/// The sending half of a socket.
#[derive(Clone)]
pub struct Sending(Arc<Mutex<OwnedWriteHalf>>);

impl Sending {
    /// A frame whose first four bytes are left for its length.
    async fn frame(&self, mut frame: Vec<u8>) -> Result<(), Broken> {
        let bytes = (frame.len() - 4) as u32;
        frame[..4].copy_from_slice(&bytes.to_le_bytes());
        Ok(self.0.lock().await.write_all(&frame).await?)
    }

    async fn parts(&self, parts: &[&[u8]]) -> Result<(), Broken> {
        let mut frame = vec![0; 4];
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        self.frame(frame).await
    }
}

impl server::WireTx for Sending {
    type Error = Broken;

    async fn send<T: Serialize + ?Sized>(&self, header: VarHeader, message: &T) -> Result<(), Broken> {
        let mut frame = vec![0; 4];
        frame.extend_from_slice(&header.write_to_vec());
        let frame = postcard::to_extend(message, frame).map_err(|error| Broken(io::Error::other(error)))?;
        self.frame(frame).await
    }

    async fn send_raw(&self, bytes: &[u8]) -> Result<(), Broken> {
        self.parts(&[bytes]).await
    }

    async fn send_log_str(&self, _: VarKeyKind, _: &str) -> Result<(), Broken> {
        Ok(())
    }

    async fn send_log_fmt<'a>(&self, _: VarKeyKind, _: std::fmt::Arguments<'a>) -> Result<(), Broken> {
        Ok(())
    }
}

impl WireTx for Sending {
    type Error = Broken;

    async fn send(&mut self, data: Vec<u8>) -> Result<(), Broken> {
        self.parts(&[&data]).await
    }
}

/// The receiving half of a socket.
struct Receiving(BufReader<OwnedReadHalf>);

impl Receiving {
    async fn length(&mut self) -> Result<usize, Broken> {
        let bytes = self.0.read_u32_le().await? as usize;
        if bytes > FRAME_MAX {
            return Err(Broken(io::Error::other(format!("a frame of {bytes} bytes"))));
        }
        Ok(bytes)
    }
}

impl server::WireRx for Receiving {
    type Error = Broken;

    async fn receive<'a>(&mut self, into: &'a mut [u8]) -> Result<&'a mut [u8], Broken> {
        let bytes = self.length().await?;
        let frame = into.get_mut(..bytes).ok_or_else(|| io::Error::other("a frame without room for it"))?;
        self.0.read_exact(frame).await?;
        Ok(frame)
    }
}

impl WireRx for Receiving {
    type Error = Broken;

    async fn receive(&mut self) -> Result<Vec<u8>, Broken> {
        let mut frame = vec![0; self.length().await?];
        self.0.read_exact(&mut frame).await?;
        Ok(frame)
    }
}

#[derive(Clone)]
pub struct Tasks;

impl server::WireSpawn for Tasks {
    type Error = Infallible;
    type Info = ();

    fn info(&self) -> &() {
        &()
    }
}

/// For handlers that are tasks, of which there is none.
#[allow(dead_code, reason = "the macro wants its name")]
fn spawn(_: &Tasks, task: impl Future<Output = ()> + Send + 'static) -> Result<(), Infallible> {
    tokio::spawn(task);
    Ok(())
}

impl WireSpawn for Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

fn halves(socket: UnixStream) -> (Sending, Receiving) {
    let (from, to) = socket.into_split();
    (Sending(Arc::new(Mutex::new(to))), Receiving(BufReader::new(from)))
}

/// See the module.
pub(crate) struct PostcardRpc;

impl Framework for PostcardRpc {
    type Client = HostClient<WireError>;

    async fn serve(path: PathBuf, listening: Listening<()>) -> anyhow::Result<()> {
        let listener = UnixListener::bind(path)?;
        listening.send(())?;
        loop {
            let (tx, rx) = halves(listener.accept().await?.0);
            let app = App::new(Context, Tasks);
            let kind = app.min_key_len();
            let mut server = Server::new(tx, rx, vec![0; FRAME_MAX], app, kind);
            tokio::task::spawn_local(async move { server.run().await });
        }
    }

    async fn connect(path: &Path) -> anyhow::Result<Self::Client> {
        let (tx, rx) = halves(UnixStream::connect(path).await?);
        Ok(HostClient::new_with_wire(tx, rx, Tasks, VarSeqKind::Seq2, ERROR_PATH, OUTGOING))
    }

    async fn touch(client: &Self::Client, record: Record) -> anyhow::Result<Record> {
        client.send_resp::<Touch>(&record).await.map_err(|error| anyhow!("{error:?}"))
    }

    async fn swallow(client: &Self::Client, bytes: &[u8]) -> anyhow::Result<u64> {
        let answer = client.send_resp::<Swallow>(&Load(bytes.to_vec())).await;
        answer
            .map_err(|error| anyhow!("{error:?}"))?
            .ok_or_else(|| anyhow!("what arrived is not what was sent"))
    }
}
