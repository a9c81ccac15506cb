//! [`Router`]: which services a link offers, and who may call them.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::handler::{Handler, Started, panicked};
use super::reflection::{Reflected, ReflectionServer};
use super::{Ctx, Incoming, MethodCounters, Reply, Service};
use crate::clock;
use crate::connection::{IdHasher, PeerInfo};
use crate::link::{Cancel, Inner, StreamParts};
use crate::schema::{MethodInfo, MethodKind, ServiceInfo, method_id};
use crate::wire::fault::{Code, Fault};
use crate::wire::metadata::Metadata;

/// The services that a link offers. Cheap to clone; clones share services and counters.
///
/// Every router also serves [`reflection`](super::reflection).
#[derive(Clone)]
pub struct Router {
    table: Arc<Table>,
}

#[derive(Clone)]
struct Table {
    methods: HashMap<u64, Method, IdHasher>,
    services: Vec<&'static ServiceInfo>,
    interceptors: Vec<Interceptor>,
}

type Interceptor = Arc<dyn Fn(&CallInfo<'_>) -> Result<(), Reject> + Send + Sync>;

#[derive(Clone)]
struct Method {
    service: Arc<dyn Service>,
    index: usize,
    info: &'static MethodInfo,
    counters: Arc<MethodCounters>,
}

/// A call that is about to be started, for interceptors.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallInfo<'a> {
    /// Which method.
    pub method: &'static MethodInfo,
    /// Who calls.
    pub peer: &'a PeerInfo,
    /// What travels with the call.
    pub metadata: &'a Metadata,
    /// How many calls of this method are under way.
    pub in_flight: u64,
}

/// Why an interceptor refuses a call. The caller sees it; the handler is not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The caller may not do that.
    Refused(String),
    /// Not now.
    Overloaded {
        /// When to try again.
        retry_after: std::time::Duration,
    },
}

/// A call that has come in and is to be started.
pub(crate) struct ServeRequest {
    pub(crate) call: u32,
    pub(crate) method: u64,
    pub(crate) fingerprint: u64,
    pub(crate) deadline_ns: Option<u64>,
    pub(crate) metadata: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) cancel: Cancel,
}

impl Router {
    /// A router that serves nothing but reflection.
    pub fn new() -> Self {
        let table = Table { methods: HashMap::default(), services: Vec::new(), interceptors: Vec::new() };
        Self { table: Arc::new(table) }.service(ReflectionServer::new(Reflected::default()))
    }

    /// Adds a service.
    ///
    /// # Panics
    /// If a service of that name is there already: it would be unclear who serves it.
    pub fn service(mut self, service: impl Service) -> Self {
        let service: Arc<dyn Service> = Arc::new(service);
        let info = service.info();
        let table = Arc::make_mut(&mut self.table);
        table.services.push(info);
        for (index, method) in info.methods.iter().enumerate() {
            let counters = Arc::default();
            let entry = Method { service: service.clone(), index, info: method, counters };
            let before = table.methods.insert(method.id, entry);
            assert!(before.is_none(), "{}/{} is served twice", info.name, method.name);
        }
        let services = table.services.clone();
        if let Some(entry) = table.methods.get_mut(&super::reflection::LIST_ID) {
            // The service that lists services must know the new one.
            let reflection: Arc<dyn Service> = Arc::new(ReflectionServer::new(Reflected::new(services)));
            entry.service = reflection;
        }
        self
    }

    /// Adds an interceptor: it sees every call before its handler starts, and may refuse it. They run in the order added.
    pub fn intercept(
        mut self,
        interceptor: impl Fn(&CallInfo<'_>) -> Result<(), Reject> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.table).interceptors.push(Arc::new(interceptor));
        self
    }

    /// The services on offer.
    pub fn services(&self) -> &[&'static ServiceInfo] {
        &self.table.services
    }

    /// The counters of a method, such as `("tombolo.demo.Kv", "read")`.
    pub fn counters(&self, service: &str, method: &str) -> Option<&MethodCounters> {
        self.table.methods.get(&method_id(service, method)).map(|method| &*method.counters)
    }

    /// The counters of all methods.
    pub fn all_counters(&self) -> impl Iterator<Item = (&'static MethodInfo, &MethodCounters)> {
        self.table.methods.values().map(|method| (method.info, &*method.counters))
    }

    /// Starts the handler of a call. `inline`: a unary handler takes its first step here.
    pub(crate) fn start(&self, inner: &Arc<Inner>, request: ServeRequest, inline: bool) -> Started {
        let method = match self.find(request.method, request.fingerprint) {
            Ok(method) => method,
            Err(fault) => return Started::Done(Reply::fault(fault)),
        };
        let unary = method.info.kind == MethodKind::Unary;
        let parts = if unary {
            None
        } else {
            let Some(streams) = inner.served_streams(request.call) else {
                // Cancelled before it was started.
                return Started::Done(Reply::fault(Fault::new(Code::Cancelled, false, 0, "")));
            };
            Some(StreamParts { _link: None, inner: inner.clone(), streams })
        };
        let deadline = request.deadline_ns.and_then(clock::instant);
        let cx = Ctx {
            method: method.info,
            peer: inner.peer(),
            deadline,
            metadata: Metadata::new(),
            cancel: request.cancel,
            link: Some(inner.clone()),
        };
        self.begin(method, cx, request.metadata, request.payload, parts, inline)
    }

    /// Starts the handler of a call without a link and a runtime: its first step is taken here.
    pub(crate) fn start_polled(
        &self,
        peer: &Arc<PeerInfo>,
        deadline: Option<Instant>,
        request: ServeRequest,
    ) -> Started {
        let method = match self.find(request.method, request.fingerprint) {
            Ok(method) => method,
            Err(fault) => return Started::Done(Reply::fault(fault)),
        };
        let cx = Ctx {
            method: method.info,
            peer: peer.clone(),
            deadline,
            metadata: Metadata::new(),
            cancel: request.cancel,
            link: None,
        };
        self.begin(method, cx, request.metadata, request.payload, None, true)
    }

    fn begin(
        &self,
        method: &Method,
        cx: Ctx,
        metadata: Bytes,
        args: Bytes,
        parts: Option<StreamParts>,
        inline: bool,
    ) -> Started {
        // An interceptor that panics fails its call, like a handler that does.
        match catch_unwind(AssertUnwindSafe(|| self.prepare(method, cx, &metadata, args, parts))) {
            Err(panic) => Started::Done(panicked(&*panic)),
            Ok(Err(fault)) => Started::Done(Reply::fault(fault)),
            Ok(Ok(handler)) if inline && method.info.kind == MethodKind::Unary => handler.step(),
            Ok(Ok(handler)) => Started::Running(handler),
        }
    }

    fn find(&self, id: u64, fingerprint: u64) -> Result<&Method, Fault> {
        let Some(method) = self.table.methods.get(&id) else {
            // The high half of an id names the service.
            let known = self.table.methods.keys().any(|known| known >> 32 == id >> 32);
            let code = if known { Code::UnknownMethod } else { Code::UnknownService };
            return Err(Fault::new(code, false, 0, ""));
        };
        if method.info.fingerprint != fingerprint {
            return Err(Fault::new(Code::SchemaMismatch, false, method.info.fingerprint, ""));
        }
        Ok(method)
    }

    fn prepare(
        &self,
        method: &Method,
        mut cx: Ctx,
        metadata: &[u8],
        args: Bytes,
        parts: Option<StreamParts>,
    ) -> Result<Handler, Fault> {
        if !metadata.is_empty() {
            cx.metadata = Metadata::decode(metadata)
                .map_err(|why| Fault::new(Code::Malformed, false, 0, format!("metadata: {why}")))?;
        }
        for interceptor in &self.table.interceptors {
            let info = CallInfo {
                method: method.info,
                peer: &cx.peer,
                metadata: &cx.metadata,
                in_flight: method.counters.in_flight(),
            };
            interceptor(&info).map_err(|reject| match reject {
                Reject::Refused(why) => Fault::new(Code::Refused, false, 0, why),
                Reject::Overloaded { retry_after } => {
                    let us = u64::try_from(retry_after.as_micros()).unwrap_or(u64::MAX);
                    Fault::new(Code::Overloaded, false, us, "")
                }
            })?;
        }
        let future = method.service.call(method.index, Incoming { cx, args, parts });
        Ok(Handler::new(future, method.counters.clone()))
    }
}

impl Default for Router {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.table.services.iter().map(|service| service.name)).finish()
    }
}
