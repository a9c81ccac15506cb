//! The service that every link offers: it lists the others.

use serde::{Deserialize, Serialize};

use super::Ctx;
use crate::Schema;
use crate::error::{CallError, Failure, Never};
use crate::link::Link;
use crate::schema::{MethodKind, ServiceInfo, method_id};

/// A service on offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct ServiceListing {
    /// Its full name.
    pub name: String,
    /// Its methods.
    pub methods: Vec<MethodListing>,
}

/// A method on offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct MethodListing {
    /// Its name.
    pub name: String,
    /// Unary, or which kind of stream.
    pub kind: MethodKind,
    /// Its id on the wire.
    pub id: u64,
    /// The hash of its shape.
    pub fingerprint: u64,
    /// Its arguments, items, answer and error, in words.
    pub signature: String,
}

/// Lists what a link offers.
#[crate::service(name = "tombolo.Reflection")]
pub trait Reflection {
    /// All services, in the order they were added.
    async fn list(&self, cx: &Ctx) -> Result<Vec<ServiceListing>, Never>;
}

/// The id of the one method, by which a router finds it to tell it of new services.
pub(super) const LIST_ID: u64 = method_id("tombolo.Reflection", "list");

/// Serves [`Reflection`] for a router.
#[derive(Debug, Default)]
pub struct Reflected(Vec<&'static ServiceInfo>);

impl Reflected {
    pub(super) fn new(services: Vec<&'static ServiceInfo>) -> Self {
        Self(services)
    }
}

impl Reflection for Reflected {
    async fn list(&self, _: &Ctx) -> Result<Vec<ServiceListing>, Never> {
        Ok(self.0.iter().map(|service| listing(service)).collect())
    }
}

/// A service as reflection tells it.
pub fn listing(service: &ServiceInfo) -> ServiceListing {
    let methods = service
        .methods
        .iter()
        .map(|method| MethodListing {
            name: method.name.to_owned(),
            kind: method.kind,
            id: method.id,
            fingerprint: method.fingerprint,
            signature: method.signature(),
        })
        .collect();
    ServiceListing { name: service.name.to_owned(), methods }
}

/// Whether the peer of `link` serves every method of `service` as it is known here.
///
/// # Errors
/// The first method that it lacks or that has another shape there; or why it cannot be asked.
pub async fn check(link: &Link, service: &ServiceInfo) -> Result<(), Failure> {
    let services = match ReflectionClient::new(link.clone()).list().await {
        Ok(services) => services,
        Err(CallError::Failed(failure)) => return Err(failure),
        Err(CallError::App(never)) => match never {},
    };
    let Some(theirs) = services.iter().find(|known| known.name == service.name) else {
        return Err(Failure::UnknownService { service: service.name.to_owned() });
    };
    for method in service.methods {
        match theirs.methods.iter().find(|known| known.id == method.id) {
            None => {
                return Err(Failure::UnknownMethod {
                    service: service.name.to_owned(),
                    method: method.name.to_owned(),
                });
            }
            Some(known) if known.fingerprint != method.fingerprint => {
                return Err(Failure::SchemaMismatch {
                    method: format!("{}/{}", service.name, method.name),
                    ours: method.fingerprint,
                    theirs: known.fingerprint,
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
