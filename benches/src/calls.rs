//! One typed call, served twice: by tombolo-rpc, and by tarpc over a Unix socket with the codec its users take.

use std::path::Path;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tombolo_rpc::{Ctx, Never, Router, Schema};

/// What travels both ways: a small record, as a lookup has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Record {
    /// A number that the callee adds one to.
    pub count: u64,
    /// A key of 16 characters.
    pub key: String,
}

impl Record {
    /// The record that every measurement sends.
    pub fn sample() -> Self {
        Self { count: 41, key: "user:00000000042".into() }
    }

    fn answered(self) -> Self {
        Self { count: self.count + 1, key: self.key }
    }

    /// Whether this is the answer to [`Record::sample`].
    pub fn answers_sample(&self) -> bool {
        *self == Self::sample().answered()
    }
}

/// The call as tombolo-rpc has it.
#[tombolo_rpc::service(name = "tombolo.bench.Touch")]
pub trait Touch {
    /// Gives the record back with its count one higher.
    async fn touch(&self, cx: &Ctx, record: Record) -> Result<Record, Never>;
}

/// Answers calls, on either framework.
#[derive(Clone, Copy, Debug)]
pub struct Toucher;

impl Touch for Toucher {
    async fn touch(&self, _: &Ctx, record: Record) -> Result<Record, Never> {
        Ok(record.answered())
    }
}

/// A router with [`Touch`] on it.
pub fn router() -> Router {
    Router::new().service(TouchServer::new(Toucher))
}

/// The rival, in a module of its own because it makes the same names.
pub mod rival {
    #![allow(missing_docs, reason = "written by tarpc's macro")]
    use super::Record;

    #[tarpc::service]
    pub trait Touch {
        async fn touch(record: Record) -> Record;
    }

    impl Touch for super::Toucher {
        async fn touch(self, _: tarpc::context::Context, record: Record) -> Record {
            record.answered()
        }
    }
}

use rival::Touch as _;

/// Serves the rival's calls at the Unix socket `path`, for ever.
pub async fn serve_rival(path: &Path) -> anyhow::Result<()> {
    let mut arrivals = tarpc::serde_transport::unix::listen(path, Bincode::default).await?;
    while let Some(transport) = arrivals.next().await {
        let answering = BaseChannel::with_defaults(transport?).execute(Toucher.serve());
        tokio::spawn(answering.for_each(|answer| async {
            tokio::spawn(answer);
        }));
    }
    Ok(())
}

/// A client of [`serve_rival`].
pub async fn connect_rival(path: &Path) -> anyhow::Result<rival::TouchClient> {
    let transport = tarpc::serde_transport::unix::connect(path, Bincode::default).await?;
    Ok(rival::TouchClient::new(tarpc::client::Config::default(), transport).spawn())
}
