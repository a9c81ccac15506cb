//! tarpc over a Unix socket, with bincode.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use futures_util::StreamExt;
use serde_bytes::ByteBuf;
use tarpc::context::{self, Context};
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;

use tombolo_benches::calls::Record;

use super::{Framework, swallowed};

mod service {
    #![allow(missing_docs, reason = "written by tarpc's macro")]
    use serde_bytes::ByteBuf;
    use tombolo_benches::calls::Record;

    #[tarpc::service]
    pub(crate) trait Touch {
        async fn touch(record: Record) -> Record;
        async fn swallow(bytes: ByteBuf) -> Result<u64, String>;
    }
}

use service::{Touch, TouchClient};

#[derive(Clone)]
struct Toucher;

impl Touch for Toucher {
    async fn touch(self, _: Context, record: Record) -> Record {
        record.answered()
    }

    async fn swallow(self, _: Context, bytes: ByteBuf) -> Result<u64, String> {
        swallowed(&bytes).map_err(|error| error.to_string())
    }
}

/// See the module.
pub(crate) struct Tarpc;

impl Framework for Tarpc {
    type Client = TouchClient;

    async fn serve(path: PathBuf, listening: Sender<()>) -> anyhow::Result<()> {
        let mut arrivals = tarpc::serde_transport::unix::listen(path, Bincode::default).await?;
        listening.send(())?;
        while let Some(transport) = arrivals.next().await {
            let answering = BaseChannel::with_defaults(transport?).execute(Toucher.serve());
            tokio::spawn(answering.for_each(|answer| async {
                tokio::spawn(answer);
            }));
        }
        Ok(())
    }

    async fn connect(path: &Path) -> anyhow::Result<TouchClient> {
        let transport = tarpc::serde_transport::unix::connect(path, Bincode::default).await?;
        Ok(TouchClient::new(tarpc::client::Config::default(), transport).spawn())
    }

    async fn touch(client: &TouchClient, record: Record) -> anyhow::Result<Record> {
        Ok(client.touch(context::current(), record).await?)
    }

    async fn swallow(client: &TouchClient, bytes: &[u8]) -> anyhow::Result<u64> {
        let answer = client.swallow(context::current(), ByteBuf::from(bytes)).await?;
        answer.map_err(anyhow::Error::msg)
    }
}
