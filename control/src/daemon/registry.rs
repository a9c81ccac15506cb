//! All instances: names, addresses, members of the pool, and the tasks behind them.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use tokio::sync::Mutex;
use tombolo_transport::Cid;

use super::instance::{self, Command, Handle};
use super::shared::Shared;
use crate::api::beside::AdoptRequest;
use crate::api::{ControlError, CreateRequest, InstanceView};
use crate::core::{EventKind, InstanceName, InstanceSpec};
use crate::spawner::SpawnerKind;
use crate::spawner::multikernel::OfferError;
use crate::store::{Batch, InstanceRecord};
use crate::time::unix_ns;

/// All instances.
#[derive(Debug)]
pub(crate) struct Registry {
    shared: Arc<Shared>,
    handles: RwLock<BTreeMap<InstanceName, Handle>>,
    /// Held while a record is made or deleted: names, CIDs and members are given to one instance each. Instances'
    /// own tasks never take it, so a mute kernel cannot hold it up.
    births: Mutex<()>,
}

impl Registry {
    /// Starts a task for every record, which goes on where the last daemon left it.
    pub(crate) fn resume(shared: Arc<Shared>, records: Vec<InstanceRecord>) -> Arc<Self> {
        let handles = records
            .into_iter()
            .map(|record| (record.name.clone(), instance::start(shared.clone(), record, true)))
            .collect();
        Arc::new(Self { shared, handles: RwLock::new(handles), births: Mutex::new(()) })
    }

    /// The instance of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Handle, ControlError> {
        let parsed: InstanceName = name.parse().map_err(|_| ControlError::no_instance(name))?;
        let handles = self.handles.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        handles.get(&parsed).cloned().ok_or_else(|| ControlError::no_instance(name))
    }

    /// The instance with this CID.
    pub(crate) fn find_by_cid(&self, cid: Cid) -> Option<Handle> {
        self.all().into_iter().find(|handle| handle.face.borrow().view.cid == cid.0)
    }

    /// All instances, by name.
    pub(crate) fn all(&self) -> Vec<Handle> {
        self.handles.read().unwrap_or_else(|poisoned| poisoned.into_inner()).values().cloned().collect()
    }

    /// All instances at a glance, by name.
    pub(crate) fn views(&self) -> Vec<InstanceView> {
        self.all().iter().map(|handle| handle.face.borrow().view.clone()).collect()
    }

    /// Records a new instance.
    pub(crate) async fn create(&self, request: CreateRequest) -> Result<InstanceView, ControlError> {
        let (name, spec) = parse(&request.name, &request.spec_json)?;
        spec.validate(&name).map_err(|error| invalid(error.to_string()))?;
        let key = match request.idempotency_key {
            Some(key) if key.is_empty() || key.len() > KEY_BYTES_MAX => {
                return Err(invalid(format!("an idempotency key has 1 to {KEY_BYTES_MAX} bytes")));
            }
            other => other.map(|key| format!("create/{key}")),
        };

        let _birth = self.births.lock().await;
        if let Some(key) = &key
            && let Some(fingerprint) = self.shared.store.receipt::<String>(key)?
        {
            return match self.find(name.as_str()) {
                Ok(handle) if fingerprint == fingerprint_of(&name, &spec) => {
                    Ok(handle.face.borrow().view.clone())
                }
                _ => Err(ControlError::Conflict {
                    verb: "create".into(),
                    name: name.to_string(),
                    reason:
                        "this idempotency key was used for another request, or its instance was removed since"
                            .into(),
                }),
            };
        }
        if self.find(name.as_str()).is_ok() {
            return Err(ControlError::Conflict {
                verb: "create".into(),
                name: name.to_string(),
                reason: "an instance of this name exists".into(),
            });
        }
        let drivers = &self.shared.drivers;
        let kind = drivers.choose(&spec).await;
        spec.check_for(kind, &name).map_err(|error| invalid(error.to_string()))?;
        self.can_have_devices(kind, false, &name, &spec)?;
        let next = self.shared.store.next_cid()?;
        let ours = self.views().iter().map(|view| view.cid).collect();
        let cid = drivers.number_from(kind, next, ours).await;
        let member = self.free_member("create", &name)?;
        let record = InstanceRecord::new(name.clone(), Cid(cid), member, spec, unix_ns());
        let mut batch = Batch::new().put_instance(&record).next_cid(next.max(cid + 1)).event(
            Some(&name),
            None,
            EventKind::Created,
        );
        if let Some(key) = &key {
            batch = batch.put_receipt(key, &fingerprint_of(&name, &record.spec));
        }
        self.shared.store.commit(batch).await?;
        Ok(self.enter(record))
    }

    /// Whether this daemon has devices to give to kernels of this spawner, if it is to have any.
    fn can_have_devices(
        &self,
        kind: SpawnerKind,
        is_taken_over: bool,
        name: &InstanceName,
        spec: &InstanceSpec,
    ) -> Result<(), ControlError> {
        match self.shared.ledger.units_are().device_refusal(kind, is_taken_over, spec) {
            None => Ok(()),
            Some(reason) => Err(invalid(format!("the specification of `{name}` cannot be: {reason}"))),
        }
    }

    /// Records an instance that another program made in the kernel, as the kernel has it. That record is all that taking over is: until it is
    /// stored nothing has happened, and then it is ours.
    pub(crate) async fn adopt(&self, request: AdoptRequest) -> Result<InstanceView, ControlError> {
        let (name, mut spec) = parse(&request.name, &request.spec_json)?;
        let conflict =
            |reason: String| ControlError::Conflict { verb: "adopt".into(), name: name.to_string(), reason };
        let kind = SpawnerKind::Multikernel;
        if let Some(other) = spec.spawner.filter(|spawner| *spawner != kind) {
            return Err(invalid(format!(
                "only instances of the kernel's own can be taken over, which the spawner `{kind}` starts, and not `{other}`"
            )));
        }
        let _birth = self.births.lock().await;
        if self.find(name.as_str()).is_ok() {
            return Err(conflict("an instance of this name exists".into()));
        }
        let offer = self.shared.drivers.multikernel().offer(name.to_string(), request.force).await;
        let offer = offer.map_err(|error| match error {
            OfferError::NotFound => {
                ControlError::NotFound { what: "instance of the kernel".into(), name: name.to_string() }
            }
            OfferError::Refused(reason) => conflict(reason),
            OfferError::Failed(reason) => {
                ControlError::failed(format!("take over `{name}` (nothing was changed)"), reason)
            }
        })?;
        spec.spawner = Some(kind);
        (spec.memory_mib, spec.memory_min_mib, spec.memory_max_mib) = (offer.memory_bytes >> 20, None, None);
        (spec.cpus, spec.cpus_min, spec.cpus_max) = (offer.cpus, None, None);
        spec.validate(&name).map_err(|error| conflict(format!("as the kernel has it, {error}")))?;
        spec.check_for(kind, &name).map_err(|error| invalid(error.to_string()))?;
        self.can_have_devices(kind, true, &name, &spec)?;
        if let Some(other) = self.find_by_cid(Cid(offer.id)) {
            let reason = format!(
                "its number, {}, is the address of `{}`: remove that one first",
                offer.id, other.name
            );
            return Err(conflict(reason));
        }
        let member = self.free_member("adopt", &name)?;
        let next = self.shared.store.next_cid()?;
        let mut record = InstanceRecord::new(name.clone(), Cid(offer.id), member, spec, unix_ns());
        record.spawner = Some(kind);
        record.taken_over = Some(offer.taken_over.clone());
        let event = EventKind::TakenOver {
            transaction: format!("tx_{}", offer.taken_over.transaction),
            status: offer.status.clone(),
        };
        let batch = Batch::new().put_instance(&record).next_cid(next.max(offer.id + 1)).event(
            Some(&name),
            None,
            event,
        );
        // Under the lock of the offer: what is recorded is still so.
        self.shared.store.commit(batch).await?;
        drop(offer);
        Ok(self.enter(record))
    }

    /// Starts the task of an instance that was just recorded.
    fn enter(&self, record: InstanceRecord) -> InstanceView {
        let handle = instance::start(self.shared.clone(), record, false);
        let view = handle.face.borrow().view.clone();
        let mut handles = self.handles.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        handles.insert(handle.name.clone(), handle);
        view
    }

    /// Deletes the record of an instance that does not run.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), ControlError> {
        let handle = self.find(name)?;
        let _birth = self.births.lock().await;
        handle.mailbox.command(name, Command::Remove).await?;
        self.handles.write().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&handle.name);
        Ok(())
    }

    /// The lowest member of the pool that no record holds; 0 is the primary.
    fn free_member(&self, verb: &str, name: &InstanceName) -> Result<u16, ControlError> {
        let taken: Vec<u32> = self.views().iter().map(|view| view.member).collect();
        let members_max = self.shared.pool.geometry().members_max;
        (1..members_max).find(|member| !taken.contains(member)).and_then(|member| u16::try_from(member).ok()).ok_or_else(
            || ControlError::Conflict {
                verb: verb.into(),
                name: name.to_string(),
                reason: format!(
                    "the pool has room for {} instances and holds as many; remove one, or begin a new pool with --pool-members",
                    members_max.saturating_sub(1)
                ),
            },
        )
    }
}

fn invalid(reason: String) -> ControlError {
    ControlError::Invalid { reason }
}

/// What a caller says of an instance.
fn parse(name: &str, spec_json: &str) -> Result<(InstanceName, InstanceSpec), ControlError> {
    let name: InstanceName = name.parse().map_err(|error| invalid(format!("{error}")))?;
    let spec = serde_json::from_str(spec_json)
        .map_err(|error| invalid(format!("the specification of `{name}` cannot be understood: {error}")))?;
    Ok((name, spec))
}

/// Longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 128;

fn fingerprint_of(name: &InstanceName, spec: &InstanceSpec) -> String {
    let document = serde_json::to_vec(&(name, spec)).unwrap_or_default();
    blake3::hash(&document).to_hex().to_string()
}
