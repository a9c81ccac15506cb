//! A primary and kernels around it, all in this process, whose applications reach each other by relay.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;

use super::{Directory, RelayHandle, RelayedBroker, RelayedBrokerConfig};
use crate::addr::Cid;
use crate::broker::{Broker, BrokerConfig, BrokerHandle, Policy};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::framed::IoStream;
use crate::incarnation::Incarnation;
use crate::paced::{PacedConfig, PacedEndpoint};
use crate::pool::{Geometry, Member, Pool, PoolSource};

/// Kernels that share no memory with the primary.
pub(crate) const APART: [Cid; 2] = [Cid(3), Cid(4)];
/// The one that does.
pub(crate) const MEMBER: Cid = Cid(5);

/// What becomes of the sockets of paced links, each with a seed of its own.
pub(crate) type Spoil = fn(UnixStream, u64) -> Box<dyn IoStream>;

/// They stay as they are.
pub(crate) const SOUND: Spoil = |socket, _| Box::new(socket);

/// Dropped, all of it goes, its pool too.
#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "the suite only keeps them"))]
pub(crate) struct Kernels {
    /// Those of the primary.
    pub(crate) links: PacedEndpoint,
    pub(crate) relays: Vec<RelayHandle>,
    pub(crate) apart: Vec<RelayedBroker>,
    brokers: Vec<BrokerHandle>,
    prefix: PathBuf,
}

/// Every kernel is called after its CID.
#[derive(Debug)]
struct ByNumber;

impl Directory for ByNumber {
    fn name_of(&self, cid: Cid) -> Option<String> {
        Some(format!("kernel{cid}"))
    }

    fn cid_of(&self, name: &str) -> Option<Cid> {
        name.strip_prefix("kernel")?.parse().ok().map(Cid)
    }
}

fn at(prefix: &Path, what: impl std::fmt::Display) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("-{what}"));
    path.into()
}

impl Kernels {
    /// Their sockets and their pool begin with `prefix`.
    pub(crate) async fn start(
        prefix: PathBuf,
        has_member: bool,
        policy: &Policy,
        spoil: Spoil,
    ) -> Result<Self> {
        let pool = at(&prefix, "pool");
        Pool::create(&pool, Geometry { members_max: 2, ..Geometry::default() })?;
        let config = |member, cid: Cid| {
            let mut config = BrokerConfig::new(PoolSource::path(&pool), member);
            config.name = format!("kernel{}", Cid::HOST);
            (config.socket, config.policy) = (Some(at(&prefix, cid)), policy.clone());
            config
        };
        let primary = Broker::start(config(Member::PRIMARY, Cid::HOST)).await?;
        // What is lost at the end of a conversation is noticed by what is said next.
        let pace = PacedConfig {
            keepalive: Duration::from_millis(100),
            silence: Duration::from_secs(2),
            redial_max: Duration::from_millis(50),
            ..PacedConfig::default()
        };
        let links = PacedEndpoint::new(Cid::HOST, pace)?;
        let mut relays = vec![RelayHandle::of_primary(&primary, links.clone(), Arc::new(ByNumber)).await?];
        let mut brokers = vec![primary];
        let failed = |source| Error::io("making a pair of sockets", source);
        if has_member {
            let name = format!("kernel{MEMBER}");
            brokers[0].admit(Member(1), MEMBER, &name, Incarnation::random()?).await?;
            let member = Broker::start(config(Member(1), MEMBER)).await?;
            let (near, far) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
            brokers[0].add_line(Member(1), near.into())?;
            member.add_line(Member::PRIMARY, far.into())?;
            relays.push(RelayHandle::of_member(&member, Cid::HOST).await?);
            brokers.push(member);
        }
        let mut apart = Vec::new();
        for cid in APART {
            let acceptor = links.expect(cid)?;
            let link = PacedEndpoint::new(cid, pace)?;
            let mut seed = u64::from(cid.0) << 32;
            link.dial(Cid::HOST, move || {
                let acceptor = acceptor.clone();
                seed += 2;
                let sockets = UnixStream::pair();
                async move {
                    let (near, far) = sockets?;
                    acceptor.replace(spoil(far, seed));
                    Ok(spoil(near, seed + 1))
                }
            })?;
            let mut config =
                RelayedBrokerConfig::new(cid, format!("kernel{cid}"), Cid::HOST, at(&prefix, cid));
            config.policy = policy.clone();
            apart.push(RelayedBroker::start(config, link).await?);
        }
        Ok(Self { links, relays, apart, brokers, prefix })
    }

    /// An application of that kernel.
    pub(crate) async fn attach(&self, cid: Cid) -> Result<Endpoint> {
        Endpoint::attach(at(&self.prefix, cid)).await
    }

    #[cfg(test)]
    pub(crate) fn primary(&self) -> &BrokerHandle {
        &self.brokers[0]
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(at(&self.prefix, "pool"));
    }
}
