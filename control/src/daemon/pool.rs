//! The pool of this daemon: found again where kernels may map it, else made anew.

use std::path::{Path, PathBuf};

use tombolo_transport::broker::Policy;
use tombolo_transport::pool::{Geometry, Member, Pool, PoolSource};
use tombolo_transport::{Broker, BrokerConfig, BrokerHandle};

use super::options::{Options, Places};
use super::{StartError, chain, groups};
use crate::spawner::MultikernelSettings;
use crate::spawner::multikernel::shared::{self, Made, Refusal, Shared, ThisHost, Wish};
use crate::store::InstanceRecord;

/// What is locked instead of a pool that is no file of its own, in the state folder.
const LOCKS: &str = "pool.locks";

/// A pool that is mapped.
pub(super) struct OpenPool {
    pub(super) pool: Pool,
    pub(super) bytes: u64,
    /// Memory that kernels beside this one have in common with it; `None`: an ordinary file.
    shared: Option<Shared>,
}

/// Opens the pool that running kernels map, or makes a new one where none runs. `places` and `settings` become what came of what they ask for.
pub(super) fn open(
    places: &mut Places,
    options: &Options,
    records: &[InstanceRecord],
    settings: &mut MultikernelSettings,
) -> Result<OpenPool, StartError> {
    let in_use = records.iter().any(|record| record.life.state().may_have_kernel());
    let geometry = Geometry {
        members_max: options.pool_members,
        extent_bytes: options.pool_extent << 20,
        ..Geometry::default()
    };
    let bytes = geometry.pool_bytes().map_err(|error| StartError::Pool(chain(&error)))?;
    let wish = Wish { pool: settings.pool.as_ref(), file: &places.pool, bytes, in_use };
    let host = host(places);
    match shared::take(&host, &places.state_dir, wish) {
        Ok(Some(found)) => match open_shared(&found, geometry) {
            Ok((pool, bytes)) => {
                if found.is_new {
                    // What there was while there was nothing to share.
                    let _ = std::fs::remove_file(crate::paths::pool(&places.state_dir));
                }
                settings.pool = Some(found.inside.clone());
                places.pool.clone_from(&found.path);
                tracing::info!(path = %found.path.display(), bytes, "kernels share memory with this one");
                return Ok(OpenPool { pool, bytes, shared: Some(found) });
            }
            Err(reason) if !found.is_new => return Err(lost(places, &reason)),
            Err(reason) => {
                let reason = match shared::give_back(&host, &places.state_dir) {
                    Ok(()) => reason,
                    Err(kept) => format!("{reason}; {kept}"),
                };
                without(settings, reason);
            }
        },
        Ok(None) if in_use && settings.pool.as_ref().is_some_and(|pool| !pool.is_path()) => {
            without(
                settings,
                "kernels run that were started when there was none: stop them all, then restart tombolod"
                    .into(),
            );
        }
        Ok(None) => {}
        Err(Refusal::Lost(reason)) => return Err(lost(places, &reason)),
        Err(Refusal::NotHad(reason)) => without(settings, reason),
    }
    if settings.why_no_pool.is_some() {
        // What was named is of no use to kernels, and may be no place for a file; one in use stays what it is.
        let own = crate::paths::pool(&places.state_dir);
        if !in_use || own.exists() {
            places.pool = own;
        }
    }
    let (pool, bytes) = open_file(&places.pool, geometry, in_use)?;
    Ok(OpenPool { pool, bytes, shared: None })
}

/// Everything goes over the kernels' one socket, and whoever asks is told why.
fn without(settings: &mut MultikernelSettings, reason: String) {
    tracing::warn!(reason, "kernels share no memory with this one");
    settings.pool = None;
    settings.why_no_pool = Some(reason);
}

fn lost(places: &Places, reason: &str) -> StartError {
    StartError::Pool(format!(
        "{reason}. Kernels of ours may map it still, and write to whatever is there by now, so nothing else is made: end them by force (`kerf kill --force NAME`), remove {}, and start tombolod again",
        Made::path(&places.state_dir).display()
    ))
}

fn open_shared(found: &Shared, geometry: Geometry) -> Result<(Pool, u64), String> {
    let source = found.source().map_err(|error| error.to_string())?;
    let opened = match found.is_new {
        true => Pool::format(source, geometry),
        false => Pool::attach(source, Member::PRIMARY),
    };
    let pool = opened.map_err(|error| chain(&error))?;
    Ok((pool, found.bytes))
}

fn open_file(path: &Path, geometry: Geometry, in_use: bool) -> Result<(Pool, u64), StartError> {
    let fresh = |reason: &str| {
        tracing::info!(path = %path.display(), reason, "making a new pool");
        Pool::create(path, geometry)
    };
    let opened = match (path.exists(), in_use) {
        (false, _) => fresh("there is none"),
        (true, false) => fresh("no kernel maps the old one"),
        (true, true) => Pool::attach(PoolSource::path(path), Member::PRIMARY),
    };
    let pool = opened.map_err(|error| {
        let hint = match in_use {
            true => "; instances of ours may map it: stop them by hand (their folders tell the process ids), then remove it",
            false => "",
        };
        StartError::Pool(format!("{}{hint}", chain(&error)))
    })?;
    let look = StartError::host(format!("look at {}", path.display()));
    let bytes = std::fs::metadata(path).map_err(look)?.len();
    Ok((pool, bytes))
}

/// Starts the primary's broker on it.
pub(super) async fn start_broker(
    open: &OpenPool,
    places: &Places,
    policy: Policy,
    options: &Options,
) -> Result<BrokerHandle, StartError> {
    let source = match &open.shared {
        Some(shared) => shared.source().map_err(StartError::host("open the pool"))?,
        None => PoolSource::path(&places.pool),
    };
    let mut config = BrokerConfig::new(source, Member::PRIMARY);
    config.locks = locks(open, places);
    config.socket = Some(places.broker_socket());
    config.allowed_gid = groups::gid_of(&options.operators);
    config.policy = policy;
    config.name = crate::core::name::HOST.to_owned();
    Broker::start(config).await.map_err(|error| StartError::Pool(chain(&error)))
}

fn locks(open: &OpenPool, places: &Places) -> Option<PathBuf> {
    let needs_a_file = open.shared.as_ref().is_some_and(|shared| !shared.can_be_locked());
    needs_a_file.then(|| places.state_dir.join(LOCKS))
}

/// Gives the memory back: nobody maps it any more, and the next daemon makes a new pool.
pub(super) fn remove(places: &Places) {
    match Made::read(&places.state_dir) {
        Ok(None) => drop(std::fs::remove_file(&places.pool)),
        _ => {
            if let Err(reason) = shared::give_back(&host(places), &places.state_dir) {
                tracing::warn!(reason, "shared memory is kept");
            }
        }
    }
}

fn host(places: &Places) -> ThisHost {
    ThisHost { program: places.keeper_binary.clone(), state_dir: places.state_dir.clone() }
}
