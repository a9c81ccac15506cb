//! A connection between the two processes, as applications have it: the leader runs the broker and connects, the follower listens.

use anyhow::{Context, ensure};
use tokio::runtime::Runtime;
use tombolo_benches::fabric::{self, Fabric};
use tombolo_benches::probe::{Probe, Test};
use tombolo_benches::turns::{Following, Leading, Order};
use tombolo_transport::{ConnectOptions, ListenOptions, Listener, MessageListener, Messages, Sizes, Stream};

/// How many loans one way: what limits their rate is how long one takes to come back.
const LOANS_UNDER_WAY: u32 = 12;

/// The memory of each direction: the defaults, and buffers where they are what is measured. Few where time is, since few lines in turn are
/// fastest; for rates as many megabytes as the peers have.
fn sizes(probe: &Probe) -> Sizes {
    let sizes = Sizes::default();
    let loan_bytes = u32::try_from(probe.bytes).unwrap_or(u32::MAX);
    match probe.test {
        Test::LoanRoundTrip => Sizes { loans: 4, loan_bytes, ..sizes },
        Test::LoanOneWay => Sizes { loans: LOANS_UNDER_WAY, loan_bytes, ..sizes },
        Test::OneWay => Sizes { slots: 1024, ..sizes },
        _ => sizes,
    }
}

/// The leader's end. The connection lives no longer than this.
pub(crate) struct Near<T> {
    pub(crate) connection: T,
    pub(crate) kept: Kept,
}

/// What a connection needs beside itself.
pub(crate) struct Kept {
    _fabric: Option<Fabric>,
    _beside: Runtime,
}

impl Near<Messages> {
    /// Connects; what readies the connection runs on `home`, or beside if there is none.
    pub(crate) fn messages(leading: &mut Leading, home: Option<&Runtime>) -> anyhow::Result<Self> {
        let options = ConnectOptions { sizes: sizes(leading.probe()), ..ConnectOptions::default() };
        connect(leading, home, async |endpoint, addr| {
            Ok(endpoint.connect_messages_with(addr, &options).await?)
        })
    }
}

impl Near<Stream> {
    /// As [`Near::messages`].
    pub(crate) fn stream(leading: &mut Leading, home: Option<&Runtime>) -> anyhow::Result<Self> {
        connect(leading, home, async |endpoint, addr| Ok(endpoint.connect(addr).await?))
    }
}

fn connect<T>(
    leading: &mut Leading,
    home: Option<&Runtime>,
    connect: impl AsyncFnOnce(&tombolo_transport::Endpoint, tombolo_transport::Addr) -> anyhow::Result<T>,
) -> anyhow::Result<Near<T>> {
    let waiting = leading.probe().waiting;
    let beside = fabric::beside()?;
    let fabric = beside.block_on(Fabric::start())?;
    leading.order(&format!("listen {}", fabric.socket().display()))?;
    let connection = home.unwrap_or(&beside).block_on(async {
        let (endpoint, addr) = fabric::attach(&fabric.socket(), waiting).await?;
        connect(&endpoint, addr).await
    })?;
    leading.order("accept")?;
    Ok(Near { connection, kept: Kept { _fabric: Some(fabric), _beside: beside } })
}

/// The follower's end.
pub(crate) struct Far<T> {
    pub(crate) connection: T,
    pub(crate) kept: Kept,
}

impl Far<Messages> {
    /// Accepts the leader's connection; what readies it runs on `home`, or beside if there is none.
    pub(crate) fn messages(
        probe: &Probe,
        following: &mut Following,
        home: Option<&Runtime>,
    ) -> anyhow::Result<Self> {
        let options = ListenOptions { sizes: sizes(probe), ..ListenOptions::default() };
        accept(
            probe,
            following,
            home,
            async |endpoint| Ok(endpoint.listen_messages(fabric::PORT, options).await?),
            async |mut listener: MessageListener| Ok(listener.accept().await?.0),
        )
    }
}

impl Far<Stream> {
    /// As [`Far::messages`].
    pub(crate) fn stream(
        probe: &Probe,
        following: &mut Following,
        home: Option<&Runtime>,
    ) -> anyhow::Result<Self> {
        accept(
            probe,
            following,
            home,
            async |endpoint| Ok(endpoint.listen(fabric::PORT, ListenOptions::default()).await?),
            async |mut listener: Listener| Ok(listener.accept().await?.0),
        )
    }
}

fn accept<L, T>(
    probe: &Probe,
    following: &mut Following,
    home: Option<&Runtime>,
    listen: impl AsyncFnOnce(&tombolo_transport::Endpoint) -> anyhow::Result<L>,
    accept: impl AsyncFnOnce(L) -> anyhow::Result<T>,
) -> anyhow::Result<Far<T>> {
    let beside = fabric::beside()?;
    let home = home.unwrap_or(&beside);
    let order = expect(following, "listen")?;
    let socket = order.words.first().context("no socket to listen at")?;
    let listener = home.block_on(async {
        let (endpoint, _) = fabric::attach(socket.as_ref(), probe.waiting).await?;
        listen(&endpoint).await
    })?;
    following.ready()?;
    expect(following, "accept")?;
    let connection = home.block_on(accept(listener))?;
    following.ready()?;
    Ok(Far { connection, kept: Kept { _fabric: None, _beside: beside } })
}

/// The next order, which must be this one.
pub(crate) fn expect(following: &mut Following, word: &str) -> anyhow::Result<Order> {
    let order =
        following.next_order()?.with_context(|| format!("the leader ended before it said `{word}`"))?;
    ensure!(order.word == word, "the leader said `{}` where `{word}` was due", order.word);
    Ok(order)
}

/// The next order, which must be for a batch of this name; `None` when there are no more.
pub(crate) fn next_batch(following: &mut Following, word: &str) -> anyhow::Result<Option<Order>> {
    let Some(order) = following.next_order()? else { return Ok(None) };
    ensure!(order.word == word, "the leader said `{}` where `{word}` was due", order.word);
    Ok(Some(order))
}
