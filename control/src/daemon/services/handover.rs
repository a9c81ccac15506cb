//! `tombolo.control.Handover`.

use tombolo_handover::{AdminError, OpId, Operation, Party, Plan, Refusal, Request, Side, UnitId};
use tombolo_rpc::{Ctx, Sender};

use super::Session;
use crate::api::handover::{Books, Handover};
use crate::api::{ControlError, Role};
use crate::daemon::handover::{GRANULE_BYTES, LedgerError};

impl Handover for Session {
    async fn pool(&self, _cx: &Ctx) -> Result<Books, ControlError> {
        let coordinator = self.shared.ledger.coordinator()?;
        let ledger = coordinator.ledger();
        Ok(Books {
            meta: ledger.meta().clone(),
            units: ledger.entries().cloned().collect(),
            instances: ledger.instances().cloned().collect(),
        })
    }

    async fn plan(&self, _cx: &Ctx, request: Request) -> Result<Plan, ControlError> {
        let plan = self.shared.ledger.coordinator()?.plan(&request);
        Ok(plan.map_err(LedgerError::from)?)
    }

    async fn submit(&self, _cx: &Ctx, request: Request) -> Result<Operation, ControlError> {
        self.require(Role::Operator, "move")?;
        let (verb, name) =
            (format!("move from {:?} to {:?}", request.from, request.to), name_of(&request.from));
        let outcome = self.shared.ledger.submit(request).await.map_err(ControlError::from);
        self.audit(&verb, name.as_deref(), &outcome).await;
        outcome
    }

    async fn operations(&self, _cx: &Ctx) -> Result<Vec<Operation>, ControlError> {
        Ok(self.shared.ledger.coordinator()?.operations().cloned().collect())
    }

    async fn operation(&self, _cx: &Ctx, id: OpId) -> Result<Operation, ControlError> {
        let coordinator = self.shared.ledger.coordinator()?;
        coordinator.operation(id).cloned().ok_or_else(|| no_operation(id))
    }

    async fn watch(&self, _cx: &Ctx, id: OpId, out: Sender<Operation>) -> Result<Operation, ControlError> {
        let mut books = self.shared.ledger.watch();
        let mut sent = None;
        loop {
            books.mark_unchanged();
            let found = self.shared.ledger.coordinator()?.operation(id).cloned();
            let operation = found.ok_or_else(|| no_operation(id))?;
            if sent.as_ref() != Some(&operation) && out.send(operation.clone()).await.is_err() {
                return Ok(operation);
            }
            if operation.phase.is_terminal() {
                return Ok(operation);
            }
            sent = Some(operation);
            if books.changed().await.is_err() {
                return Err(LedgerError::Ending.into());
            }
        }
    }

    async fn cancel(&self, _cx: &Ctx, id: OpId) -> Result<Operation, ControlError> {
        self.require(Role::Operator, "cancel")?;
        let outcome = self.shared.ledger.cancel(id).await.map_err(ControlError::from);
        self.audit(&format!("cancel {id}"), None, &outcome).await;
        outcome
    }

    async fn repair(&self, _cx: &Ctx, unit: UnitId, owner: Side) -> Result<(), ControlError> {
        self.require(Role::Admin, "repair")?;
        let party = match &owner {
            Side::Host => Party::Host,
            Side::Pool => Party::Pool,
            Side::Instance(name) => {
                let coordinator = self.shared.ledger.coordinator()?;
                let row = coordinator.ledger().instance_named(name);
                Party::Instance(row.ok_or_else(|| ControlError::no_instance(name))?.kernel())
            }
        };
        let outcome = self.shared.ledger.repair(unit, party).await.map_err(ControlError::from);
        self.audit(&format!("repair {unit}"), name_of(&owner).as_deref(), &outcome).await;
        outcome
    }

    async fn search(&self, _cx: &Ctx, unit: UnitId) -> Result<Side, ControlError> {
        self.require(Role::Operator, "repair")?;
        let found = self.shared.ledger.search(unit).await.map_err(ControlError::from);
        self.audit(&format!("repair {unit}"), None, &found).await;
        let owner = found?;
        Ok(Side::named(&self.shared.ledger.coordinator()?.ledger().name(owner)))
    }
}

fn name_of(side: &Side) -> Option<String> {
    match side {
        Side::Instance(name) => Some(name.clone()),
        Side::Host | Side::Pool => None,
    }
}

fn no_operation(id: OpId) -> ControlError {
    ControlError::NotFound { what: "operation".into(), name: id.0.to_string() }
}

impl From<LedgerError> for ControlError {
    fn from(error: LedgerError) -> Self {
        let reason = in_granules(error.to_string());
        match error {
            LedgerError::Refused(Refusal::NoSuchInstance { name }) => Self::no_instance(name),
            LedgerError::Refused(Refusal::NoSuchUnit { unit }) => {
                Self::NotFound { what: "unit of this machine".into(), name: unit.to_string() }
            }
            LedgerError::Refused(
                Refusal::BadKey { .. }
                | Refusal::NamedTwice { .. }
                | Refusal::Nothing
                | Refusal::OddSize { .. }
                | Refusal::SameParty { .. },
            ) => Self::Invalid { reason },
            LedgerError::Admin(AdminError::NoSuchOperation { operation }) => no_operation(operation),
            LedgerError::Admin(AdminError::NoSuchUnit { unit }) => {
                Self::NotFound { what: "unit of this machine".into(), name: unit.to_string() }
            }
            LedgerError::Refused(_) | LedgerError::Admin(_) | LedgerError::Ending => Self::Refused { reason },
            LedgerError::Store(error) => error.into(),
            LedgerError::Unusable(_) | LedgerError::Unproven(_) => Self::Operator { reason },
        }
    }
}

/// The ledger counts memory in granules; people do not.
fn in_granules(message: String) -> String {
    if message.contains("granules") {
        format!("{message} (a granule is {} MiB)", GRANULE_BYTES >> 20)
    } else {
        message
    }
}
