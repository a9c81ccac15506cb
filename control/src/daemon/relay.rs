//! Which kernels there are, for the relay between those that share no memory.

use std::sync::Arc;

use tombolo_transport::Cid;
use tombolo_transport::relay::{Directory, RelayHandle};

use super::shared::Shared;
use crate::core::name::HOST;

/// The names of running kernels.
struct Names(Arc<Shared>);

/// Relays for as long as this is kept.
pub(super) async fn start(shared: &Arc<Shared>) -> tombolo_transport::Result<RelayHandle> {
    let names = Arc::new(Names(shared.clone()));
    RelayHandle::of_primary(&shared.broker, shared.paced.links(), names).await
}

impl Directory for Names {
    fn name_of(&self, cid: Cid) -> Option<String> {
        if cid == Cid::HOST {
            return Some(HOST.to_owned());
        }
        self.0.name_of(cid).map(|name| name.to_string())
    }

    fn cid_of(&self, name: &str) -> Option<Cid> {
        if name == HOST { Some(Cid::HOST) } else { self.0.cid_of(name) }
    }
}
