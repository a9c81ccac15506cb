//! The `#[tombolo_rpc::service]` attribute: turns a trait into a service, its client and its server.

mod expand;
mod parse;

use proc_macro::TokenStream;

/// Makes a service of a trait. See the front page of `tombolo-rpc`.
///
/// For `trait Kv` it writes, with the trait's visibility:
/// - the trait itself, each `async fn` as a method that returns a `Send` future (implement it with plain `async fn`),
/// - `KvServer`, to be given to a `Router`,
/// - `KvClient`, with one method per call,
/// - `KvBusyClient`, with the unary calls, for callers that poll without a runtime.
///
/// `name = ".."` is the service's name on the wire; it and the names of the methods must never be given another meaning.
#[proc_macro_attribute]
pub fn service(attribute: TokenStream, item: TokenStream) -> TokenStream {
    parse::Service::parse(attribute.into(), item.into())
        .map(|service| expand::expand(&service))
        .unwrap_or_else(|error| error.into_compile_error())
        .into()
}
