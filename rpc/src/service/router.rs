//! [`Router`]: which services a link offers, and who may call them.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::handler::{Handler, HandlerFuture, Started, panicked};
use super::reflection::{Reflected, ReflectionServer};
use super::replay::Replays;
use super::{Ctx, Incoming, MethodCounters, Origin, ReplayLimits, Reply, Service, once};
use crate::connection::{IdHasher, PeerInfo};
use crate::link::{Cancel, Inner, StreamParts};
use crate::schema::{MethodInfo, MethodKind, ServiceInfo, method_id};
use crate::scratch::Body;
use crate::wire::fault::{Code, Fault};
use crate::wire::metadata::{IDEMPOTENCY_KEY, Metadata};

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
    layers: Vec<Layer>,
    replays: Option<Arc<Mutex<Replays>>>,
}

type Interceptor = Arc<dyn Fn(&CallInfo<'_>) -> Result<(), Reject> + Send + Sync>;
type Layer = Arc<dyn Fn(&CallInfo<'_>, HandlerFuture) -> HandlerFuture + Send + Sync>;

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
    pub(crate) metadata: Body,
    pub(crate) payload: Body,
    pub(crate) cancel: Cancel,
}

impl Router {
    /// A router that serves nothing but reflection.
    pub fn new() -> Self {
        let table = Table {
            methods: HashMap::default(),
            services: Vec::new(),
            interceptors: Vec::new(),
            layers: Vec::new(),
            replays: None,
        };
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
    ///
    /// ```
    /// use std::time::Duration;
    /// use tombolo_rpc::{Reject, Router};
    ///
    /// // Nobody who has not proven the per-boot secret, and at most 8 calls of a method at once.
    /// let router = Router::new().intercept(|call| match call.in_flight {
    ///     _ if !call.peer.authenticated => Err(Reject::Refused("prove who you are".into())),
    ///     8.. => Err(Reject::Overloaded { retry_after: Duration::from_millis(20) }),
    ///     _ => Ok(()),
    /// });
    /// ```
    pub fn intercept(
        mut self,
        interceptor: impl Fn(&CallInfo<'_>) -> Result<(), Reject> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.table).interceptors.push(Arc::new(interceptor));
        self
    }

    /// Adds a layer: it gets the future of every call that is not refused, and gives back the one that is run: the same,
    /// or one around it that measures it, runs it in a span or bounds its time. The first one added is innermost.
    ///
    /// This is what a `tower::Layer` does, without tower: there a service is asked for readiness and cloned for each
    /// request, and each layer boxes its future. Here limits are the link's ([`LinkConfig::calls_max`](crate::LinkConfig::calls_max)) and the
    /// interceptors', handlers are shared, and there is one box for each call whatever is around it, until a layer adds its own.
    ///
    /// ```
    /// use tombolo_rpc::{HandlerFuture, Router};
    ///
    /// let router = Router::new().layer(|call, next| {
    ///     let method = call.method.name;
    ///     HandlerFuture::new(async move {
    ///         let reply = next.await;
    ///         eprintln!("{method}: {}", if reply.is_answer() { "answered" } else { "failed" });
    ///         reply
    ///     })
    /// });
    /// ```
    pub fn layer(
        mut self,
        layer: impl Fn(&CallInfo<'_>, HandlerFuture) -> HandlerFuture + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.table).layers.push(Arc::new(layer));
        self
    }

    /// Honours idempotency keys ([`IDEMPOTENCY_KEY`] in a call's metadata) of unary methods: a call that is sent again with the same key
    /// is not run again but gets the answer that the first one had. Without this, keys are just metadata.
    ///
    /// A key stands for one method with the same arguments; with others it is refused. See [`ReplayLimits`] for how
    /// long and how many. A call with a key goes on when its caller or its link is gone, until its deadline.
    pub fn replay(mut self, limits: ReplayLimits) -> Self {
        Arc::make_mut(&mut self.table).replays = Some(Arc::new(Mutex::new(Replays::new(limits))));
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
        self.begin(method, Origin::Link(inner.clone()), request, parts, inline)
    }

    /// Starts the handler of a call without a link and a runtime: its first step is taken here.
    pub(crate) fn start_polled(&self, peer: &Arc<PeerInfo>, request: ServeRequest) -> Started {
        match self.find(request.method, request.fingerprint) {
            Ok(method) => self.begin(method, Origin::Polled(peer.clone()), request, None, true),
            Err(fault) => Started::Done(Reply::fault(fault)),
        }
    }

    fn begin(
        &self,
        method: &Method,
        origin: Origin,
        request: ServeRequest,
        parts: Option<StreamParts>,
        inline: bool,
    ) -> Started {
        // An interceptor that panics fails its call, like a handler that does.
        match catch_unwind(AssertUnwindSafe(|| self.prepare(method, origin, request, parts))) {
            Err(panic) => Started::Done(panicked(&*panic)),
            Ok(Err(reply)) => Started::Done(reply),
            Ok(Ok(future)) if inline && method.info.kind == MethodKind::Unary => {
                Handler::start(future, &method.counters)
            }
            Ok(Ok(future)) => Started::Running(Handler::new(future, method.counters.clone())),
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
        origin: Origin,
        request: ServeRequest,
        parts: Option<StreamParts>,
    ) -> Result<HandlerFuture, Reply> {
        let ServeRequest { deadline_ns, metadata, payload, cancel, .. } = request;
        let metadata = if metadata.is_empty() {
            Metadata::new()
        } else {
            Metadata::decode(&metadata).map_err(|why| {
                Reply::fault(Fault::new(Code::Malformed, false, 0, format!("metadata: {why}")))
            })?
        };
        let cx = Ctx { method: method.info, origin, deadline_ns, metadata, cancel };
        let Table { interceptors, layers, replays, .. } = &*self.table;
        if interceptors.is_empty() && layers.is_empty() {
            return Self::call(replays.as_ref(), method, cx, payload, parts);
        }
        // What is around the call outlives its context.
        let about = cx.clone();
        let info = CallInfo {
            method: method.info,
            peer: about.peer(),
            metadata: &about.metadata,
            in_flight: method.counters.in_flight(),
        };
        for interceptor in interceptors {
            interceptor(&info).map_err(|reject| Reply::fault(reject.into_fault()))?;
        }
        let handler = Self::call(replays.as_ref(), method, cx, payload, parts)?;
        Ok(layers.iter().fold(handler, |next, layer| layer(&info, next).dropped_at_end()))
    }

    fn call(
        replays: Option<&Arc<Mutex<Replays>>>,
        method: &Method,
        cx: Ctx,
        args: Body,
        parts: Option<StreamParts>,
    ) -> Result<HandlerFuture, Reply> {
        let unary = parts.is_none() && method.info.kind == MethodKind::Unary;
        if let Some(replays) = replays.filter(|_| unary)
            && let Some(key) = cx.metadata.value(IDEMPOTENCY_KEY).map(<[u8]>::to_vec)
        {
            return once::start(replays, &key, &*method.service, method.index, cx, args);
        }
        Ok(method.service.call(method.index, Incoming { cx, args, parts }))
    }
}

impl Reject {
    fn into_fault(self) -> Fault {
        match self {
            Self::Refused(why) => Fault::new(Code::Refused, false, 0, why),
            Self::Overloaded { retry_after } => {
                let us = u64::try_from(retry_after.as_micros()).unwrap_or(u64::MAX);
                Fault::new(Code::Overloaded, false, us, "")
            }
        }
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
