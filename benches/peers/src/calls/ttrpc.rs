//! ttrpc over a Unix socket: its own frames around protocol buffers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use async_trait::async_trait;
use ttrpc::asynchronous::{Client, Server, TtrpcContext};

use tombolo_benches::calls;

use super::{Framework, swallowed};

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
    include!(concat!(env!("OUT_DIR"), "/ttrpc.rs"));
}

use generated::touch::{Load, Record, Swallowed};
use generated::touch_ttrpc::{Touch, TouchClient, create_touch};

#[derive(Clone)]
struct Toucher;

#[async_trait]
impl Touch for Toucher {
    async fn touch(&self, _: &TtrpcContext, mut record: Record) -> ttrpc::Result<Record> {
        record.count += 1;
        Ok(record)
    }

    async fn swallow(&self, _: &TtrpcContext, load: Load) -> ttrpc::Result<Swallowed> {
        let number = swallowed(&load.bytes).map_err(|error| ttrpc::Error::Others(error.to_string()))?;
        Ok(Swallowed { number, ..Default::default() })
    }
}

/// See the module.
pub(crate) struct Ttrpc;

impl Framework for Ttrpc {
    type Client = TouchClient;

    async fn serve(path: PathBuf, listening: Sender<()>) -> anyhow::Result<()> {
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))?
            .register_service(create_touch(Arc::new(Toucher)));
        server.start().await?;
        listening.send(())?;
        std::future::pending().await
    }

    async fn connect(path: &Path) -> anyhow::Result<TouchClient> {
        Ok(TouchClient::new(Client::connect(&format!("unix://{}", path.display())).await?))
    }

    async fn touch(client: &TouchClient, record: calls::Record) -> anyhow::Result<calls::Record> {
        let record = Record { count: record.count, key: record.key, ..Default::default() };
        let answer = client.touch(ttrpc::context::with_timeout(0), &record).await?;
        Ok(calls::Record { count: answer.count, key: answer.key })
    }

    async fn swallow(client: &TouchClient, bytes: &[u8]) -> anyhow::Result<u64> {
        let load = Load { bytes: bytes.to_vec(), ..Default::default() };
        Ok(client.swallow(ttrpc::context::with_timeout(0), &load).await?.number)
    }
}
