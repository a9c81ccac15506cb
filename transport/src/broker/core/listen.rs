//! Listeners, their names, and finding them from elsewhere.

use std::time::{Duration, Instant};

use super::{BrokerCore, ClientId, Listener, ListenerId, Question};
use crate::addr::{Addr, Cid, Port};
use crate::broker::protocol::{Failure, Reply};
use crate::broker::record::{ConnKind, Record, SERVICE_NAME_BYTES_MAX};
use crate::pool::Member;
use crate::ring::HalfLayout;

/// How long a peer's broker may take to answer where a service listens.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest backlog; a larger one is cut.
const BACKLOG_MAX: u32 = 4096;

impl BrokerCore {
    pub(super) fn listen(
        &mut self,
        client: ClientId,
        port: Port,
        kind: ConnKind,
        backlog: u32,
        name: Option<String>,
        layout: u32,
    ) -> Result<Addr, Failure> {
        let invalid = |reason: String| Failure::Invalid { reason };
        let layout = HalfLayout::from_word(u64::from(layout)).map_err(|e| invalid(e.to_string()))?;
        if port.0 == 0 {
            return Err(invalid("port 0 is no port: ask for Port::ANY to get a free one".into()));
        }
        if backlog == 0 {
            return Err(invalid("a backlog of 0 would refuse everybody".into()));
        }
        let privileged = self.clients.get(&client).is_some_and(|client| client.privileged);
        if port.is_privileged() && !privileged {
            let reason = "ports below 1024 are for root and the broker's own user".into();
            return Err(Failure::Denied { reason });
        }
        if self.listeners.contains_key(&port) {
            return Err(Failure::PortInUse);
        }
        if let Some(name) = &name {
            if name.is_empty() || name.len() > SERVICE_NAME_BYTES_MAX || name.contains('/') {
                return Err(invalid(format!(
                    "`{name}` is no service name: 1 to {SERVICE_NAME_BYTES_MAX} bytes without `/`"
                )));
            }
            if self.names.contains_key(name) {
                return Err(Failure::NameInUse);
            }
        }
        let port = if port == Port::ANY { self.fresh_ephemeral() } else { port };
        if let Some(name) = &name {
            self.names.insert(name.clone(), port);
        }
        let id = ListenerId(self.fresh_id());
        let backlog = backlog.min(BACKLOG_MAX);
        self.listeners.insert(port, Listener { id, client, kind, layout, backlog, waiting: 0, name });
        Ok(Addr::new(self.own_cid(), port))
    }

    pub(super) fn unlisten(&mut self, client: ClientId, port: Port) {
        if self.listeners.get(&port).is_some_and(|listener| listener.client == client)
            && let Some(listener) = self.listeners.remove(&port)
        {
            self.relayed.retain(|_, waits_at| *waits_at != listener.id);
            if let Some(name) = listener.name {
                self.names.remove(&name);
            }
        }
    }

    pub(super) fn unlisten_all(&mut self, client: ClientId) {
        let ports: Vec<_> = self
            .listeners
            .iter()
            .filter(|(_, listener)| listener.client == client)
            .map(|(port, _)| *port)
            .collect();
        for port in ports {
            self.unlisten(client, port);
        }
    }

    pub(super) fn accepted(&mut self, client: ClientId, id: u64) {
        let waited = self.conns.get_mut(&id).filter(|conn| conn.client() == Some(client));
        let waits_at = waited.and_then(|conn| conn.waits_at.take());
        if let Some(listener) = waits_at.or_else(|| self.relayed_accepted(client, id)) {
            self.leave_backlog(listener);
        }
    }

    pub(super) fn leave_backlog(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.values_mut().find(|listener| listener.id == id) {
            listener.waiting = listener.waiting.saturating_sub(1);
        }
    }

    /// A port that nobody listens on.
    pub(super) fn fresh_ephemeral(&mut self) -> Port {
        loop {
            let port = self.next_ephemeral;
            self.next_ephemeral = port.next_ephemeral();
            if !self.listeners.contains_key(&port) {
                return port;
            }
        }
    }

    pub(super) fn resolve(&mut self, now: Instant, client: ClientId, request: u64, name: &str) {
        match self.find_service(name) {
            Ok(Found::Here(addr)) => self.answer(client, request, Ok(Reply::Resolved(addr))),
            Ok(Found::Ask(peer, service)) => {
                let id = self.fresh_id().get();
                let deadline = now + RESOLVE_TIMEOUT;
                let question = Question { client, request, peer, service: service.clone(), deadline };
                self.questions.insert(id, question);
                self.deadlines.insert((deadline, id));
                self.send(peer, Record::Resolve { from: id, name: service });
            }
            Err(failure) => self.resolve_elsewhere(client, request, name, failure),
        }
    }

    fn find_service(&self, name: &str) -> Result<Found, Failure> {
        let not_found = |reason: String| Failure::NotFound { reason };
        let (kernel, service) = match name.split_once('/') {
            Some((kernel, service)) => (Some(kernel), service),
            None => (None, name),
        };
        if service.is_empty() || service.len() > SERVICE_NAME_BYTES_MAX {
            return Err(not_found(format!("`{service}` is no service name")));
        }
        let peer = match kernel {
            None => self.member,
            Some(kernel) => self
                .find_kernel_by_name(kernel)
                .ok_or_else(|| not_found(format!("no kernel named `{kernel}` is in the pool")))?,
        };
        if peer == self.member {
            let port = self.names.get(service).ok_or_else(|| not_found(unknown_service(service)))?;
            return Ok(Found::Here(Addr::new(self.own_cid(), *port)));
        }
        if self.members[peer.index()].as_ref().is_none_or(|member| member.generation == 0) {
            return Err(not_found(format!("kernel `{}` is not up", kernel.unwrap_or_default())));
        }
        Ok(Found::Ask(peer, service.to_owned()))
    }

    pub(super) fn handle_resolved(&mut self, peer: Member, id: u64, port: Option<u32>) {
        if self.questions.get(&id).is_none_or(|question| question.peer != peer) {
            // The one who asked may have gone meanwhile, so this is no misbehaviour.
            return;
        }
        let Some(question) = self.questions.remove(&id) else { return };
        self.deadlines.remove(&(question.deadline, id));
        let cid = self.members[peer.index()].as_ref().map_or(Cid::ANY, |member| member.cid);
        let result = match port {
            Some(port) => Ok(Reply::Resolved(Addr::new(cid, Port(port)))),
            None => Err(Failure::NotFound { reason: unknown_service(&question.service) }),
        };
        self.answer(question.client, question.request, result);
    }

    /// `id`, if it is a question under way, has taken too long.
    pub(super) fn expire_question(&mut self, id: u64) {
        if let Some(question) = self.questions.remove(&id) {
            self.fail(question.client, question.request, Failure::TimedOut);
        }
    }

    pub(super) fn end_questions(&mut self, ends: impl Fn(&Question) -> bool, failure: &Failure) {
        for question in self.drop_questions(ends) {
            self.fail(question.client, question.request, failure.clone());
        }
    }

    /// Takes out the questions of that kind; nobody is answered.
    pub(super) fn drop_questions(&mut self, of_that_kind: impl Fn(&Question) -> bool) -> Vec<Question> {
        let dropped: Vec<u64> =
            self.questions.iter().filter(|(_, q)| of_that_kind(q)).map(|(id, _)| *id).collect();
        let mut questions = Vec::new();
        for id in dropped {
            if let Some(question) = self.questions.remove(&id) {
                self.deadlines.remove(&(question.deadline, id));
                questions.push(question);
            }
        }
        questions
    }
}

enum Found {
    Here(Addr),
    Ask(Member, String),
}

fn unknown_service(service: &str) -> String {
    format!("its kernel has no service named `{service}`")
}
