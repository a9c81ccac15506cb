//! Cap'n Proto's calls over a Unix socket.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::Sender;

use anyhow::Context;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::twoparty::VatNetwork;
use capnp_rpc::{RpcSystem, new_client};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::compat::{TokioAsyncReadCompatExt, TokioAsyncWriteCompatExt};
use tombolo_benches::calls::Record;

use super::{Framework, swallowed};

pub(crate) mod touch_capnp {
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
        unsafe_code,
        unused,
        reason = "written by its compiler"
    )]
    include!(concat!(env!("OUT_DIR"), "/touch_capnp.rs"));
}

use touch_capnp::touch;

struct Toucher;

impl touch::Server for Toucher {
    async fn touch(
        self: Rc<Self>,
        params: touch::TouchParams,
        mut results: touch::TouchResults,
    ) -> Result<(), capnp::Error> {
        let record = params.get()?;
        let mut answer = results.get();
        answer.set_count(record.get_count() + 1);
        answer.set_key(record.get_key()?);
        Ok(())
    }

    async fn swallow(
        self: Rc<Self>,
        params: touch::SwallowParams,
        mut results: touch::SwallowResults,
    ) -> Result<(), capnp::Error> {
        let number =
            swallowed(params.get()?.get_bytes()?).map_err(|error| capnp::Error::failed(error.to_string()))?;
        results.get().set_number(number);
        Ok(())
    }
}

/// See the module.
pub(crate) struct Capnp;

fn network(
    socket: UnixStream,
    side: Side,
) -> Box<VatNetwork<tokio_util::compat::Compat<tokio::net::unix::OwnedReadHalf>>> {
    let (from, to) = socket.into_split();
    Box::new(VatNetwork::new(from.compat(), to.compat_write(), side, capnp::message::ReaderOptions::new()))
}

impl Framework for Capnp {
    type Client = touch::Client;

    async fn serve(path: PathBuf, listening: Sender<()>) -> anyhow::Result<()> {
        let listener = UnixListener::bind(path)?;
        listening.send(())?;
        let client: touch::Client = new_client(Toucher);
        loop {
            let (socket, _) = listener.accept().await?;
            let network = network(socket, Side::Server);
            tokio::task::spawn_local(RpcSystem::new(network, Some(client.clone().client)));
        }
    }

    async fn connect(path: &Path) -> anyhow::Result<touch::Client> {
        let network = network(UnixStream::connect(path).await?, Side::Client);
        let mut system = RpcSystem::new(network, None);
        let client = system.bootstrap(Side::Server);
        tokio::task::spawn_local(system);
        Ok(client)
    }

    async fn touch(client: &touch::Client, record: Record) -> anyhow::Result<Record> {
        let mut request = client.touch_request();
        let mut params = request.get();
        params.set_count(record.count);
        params.set_key(record.key.as_str());
        let response = request.send().promise.await?;
        let answer = response.get()?;
        let key = answer.get_key()?.to_string().context("a key that is no text")?;
        Ok(Record { count: answer.get_count(), key })
    }

    async fn swallow(client: &touch::Client, bytes: &[u8]) -> anyhow::Result<u64> {
        let mut request = client.swallow_request();
        request.get().set_bytes(bytes);
        let response = request.send().promise.await?;
        Ok(response.get()?.get_number())
    }
}
