//! From a trait to a [`Service`], with errors that say what a method must look like.

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, ItemTrait, LitStr, Pat, PathArguments, Result,
    ReturnType, TraitItem, TraitItemFn, Type, TypePath, Visibility,
};

/// The shape every method must have, for error messages.
const SHAPE: &str = "a method looks like `async fn name(&self, cx: &Ctx, arg: Type, .., [input: Receiver<Item>], \
                     [out: Sender<Item>]) -> Result<Answer, Error>`";

/// A trait that is a service.
pub(crate) struct Service {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) visibility: Visibility,
    pub(crate) ident: Ident,
    pub(crate) name: String,
    pub(crate) methods: Vec<Method>,
}

/// One method of it.
pub(crate) struct Method {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) ident: Ident,
    pub(crate) cx_type: Type,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) items_in: Option<Type>,
    pub(crate) items_out: Option<Type>,
    pub(crate) answer: Type,
    pub(crate) error: Type,
}

/// One argument that travels with the request.
pub(crate) struct Argument {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
}

impl Service {
    pub(crate) fn parse(attribute: TokenStream, item: TokenStream) -> Result<Self> {
        let item: ItemTrait = syn::parse2(item).map_err(|error| {
            Error::new(error.span(), "`#[service]` goes on a trait: its methods are the calls")
        })?;
        let mut name = None;
        let options = syn::meta::parser(|meta| {
            if !meta.path.is_ident("name") {
                return Err(meta.error("the only option is `name = \"..\"`"));
            }
            name = Some(meta.value()?.parse::<LitStr>()?);
            Ok(())
        });
        syn::parse::Parser::parse2(options, attribute)?;
        let name = match name {
            Some(literal) => check_name(&literal)?,
            None => item.ident.to_string(),
        };
        if !item.generics.params.is_empty() {
            return Err(Error::new(
                item.generics.span(),
                "a service has no type parameters: its types are fixed on the wire",
            ));
        }
        // Everything that is wrong is said at once.
        let mut wrong: Option<Error> = None;
        let mut methods = Vec::new();
        for parsed in item.items.into_iter().map(Method::parse) {
            match (parsed, &mut wrong) {
                (Ok(method), _) => methods.push(method),
                (Err(error), Some(first)) => first.combine(error),
                (Err(error), None) => wrong = Some(error),
            }
        }
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        if methods.is_empty() {
            return Err(Error::new(item.ident.span(), format!("a service has at least one method; {SHAPE}")));
        }
        Ok(Self { attributes: item.attrs, visibility: item.vis, ident: item.ident, name, methods })
    }
}

fn check_name(literal: &LitStr) -> Result<String> {
    let name = literal.value();
    let good = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if name.split('.').all(good) {
        return Ok(name);
    }
    Err(Error::new(
        literal.span(),
        "a service's name is made of letters, digits and `_`, in parts joined by dots",
    ))
}

impl Method {
    fn parse(item: TraitItem) -> Result<Self> {
        let TraitItem::Fn(TraitItemFn { attrs, sig, default, .. }) = item else {
            return Err(Error::new_spanned(&item, format!("a service has only methods; {SHAPE}")));
        };
        if sig.asyncness.is_none() {
            return Err(Error::new(sig.fn_token.span, format!("must be an `async fn`; {SHAPE}")));
        }
        if let Some(body) = default {
            return Err(Error::new(
                body.span(),
                "a service's methods have no default body: peers could not know it",
            ));
        }
        if !sig.generics.params.is_empty() {
            return Err(Error::new(
                sig.generics.span(),
                "a method has no type parameters: its types are fixed on the wire",
            ));
        }
        let mut inputs = sig.inputs.iter();
        match inputs.next() {
            Some(FnArg::Receiver(receiver))
                if receiver.reference.is_some() && receiver.mutability.is_none() => {}
            other => {
                let at = other.map_or_else(|| sig.ident.to_token_stream(), ToTokens::to_token_stream);
                return Err(Error::new_spanned(at, format!("the first argument must be `&self`; {SHAPE}")));
            }
        }
        let cx_type = match inputs.next() {
            Some(FnArg::Typed(argument)) if matches!(&*argument.ty, Type::Reference(r) if r.mutability.is_none()) => {
                (*argument.ty).clone()
            }
            other => {
                let at = other.map_or_else(|| sig.ident.to_token_stream(), ToTokens::to_token_stream);
                return Err(Error::new_spanned(
                    at,
                    format!("the second argument must be `cx: &Ctx`; {SHAPE}"),
                ));
            }
        };
        let mut method = Self {
            attributes: attrs,
            cx_type,
            arguments: Vec::new(),
            items_in: None,
            items_out: None,
            answer: syn::parse_quote!(()),
            error: syn::parse_quote!(()),
            ident: sig.ident.clone(),
        };
        for input in inputs {
            method.argument(input)?;
        }
        (method.answer, method.error) = answer(&sig.output, sig.ident.span())?;
        Ok(method)
    }

    fn argument(&mut self, input: &FnArg) -> Result<()> {
        let FnArg::Typed(argument) = input else {
            return Err(Error::new_spanned(input, SHAPE));
        };
        let Pat::Ident(pattern) = &*argument.pat else {
            return Err(Error::new_spanned(&argument.pat, "an argument is a plain name"));
        };
        let ty = (*argument.ty).clone();
        if let Some(item) = generic(&ty, "Receiver") {
            if self.items_in.is_some() || self.items_out.is_some() {
                return Err(Error::new_spanned(&ty, "at most one `Receiver`, before the `Sender`"));
            }
            self.items_in = Some(item);
        } else if let Some(item) = generic(&ty, "Sender") {
            if self.items_out.is_some() {
                return Err(Error::new_spanned(&ty, "at most one `Sender`"));
            }
            self.items_out = Some(item);
        } else if self.items_in.is_some() || self.items_out.is_some() {
            return Err(Error::new_spanned(&ty, "the streams come last, after the arguments"));
        } else if matches!(ty, Type::Reference(_)) {
            return Err(Error::new_spanned(
                &ty,
                "arguments travel: they are owned types, such as `String` for `&str` or `Blob` for `&[u8]`",
            ));
        } else {
            self.arguments.push(Argument { ident: pattern.ident.clone(), ty });
        }
        Ok(())
    }
}

/// `Item`, if `ty` is `..::name<Item>`.
fn generic(ty: &Type, name: &str) -> Option<Type> {
    let Type::Path(TypePath { path, .. }) = ty else { return None };
    let last = path.segments.last().filter(|segment| segment.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first() {
        Some(GenericArgument::Type(item)) if arguments.args.len() == 1 => Some(item.clone()),
        _ => None,
    }
}

fn answer(output: &ReturnType, at: Span) -> Result<(Type, Type)> {
    let message =
        "must return `Result<Answer, Error>` with both types named (`Never` if it has no error of its own)";
    let ReturnType::Type(_, ty) = output else {
        return Err(Error::new(at, message));
    };
    if let Type::Path(TypePath { path, .. }) = &**ty
        && let Some(last) = path.segments.last().filter(|segment| segment.ident == "Result")
        && let PathArguments::AngleBracketed(arguments) = &last.arguments
    {
        let types: Vec<_> = arguments.args.iter().collect();
        if let [GenericArgument::Type(answer), GenericArgument::Type(error)] = types[..] {
            return Ok((answer.clone(), error.clone()));
        }
    }
    Err(Error::new_spanned(ty, message))
}

#[cfg(test)]
mod tests {
    use quote::quote;

    use super::*;

    fn refusal(method: TokenStream) -> String {
        let item = quote!(trait Kv { #method });
        Service::parse(quote!(name = "a.Kv"), item).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn method_is_taken_apart() {
        let item = quote! {
            pub trait Kv {
                /// Doc.
                async fn attach(&self, cx: &Ctx, id: u64, input: Receiver<In>, out: rpc::Sender<Out>) -> Result<i32, E>;
            }
        };
        let service = Service::parse(quote!(name = "a.b.Kv"), item).ok().unwrap();
        let method = &service.methods[0];
        assert_eq!((&*service.name, method.ident.to_string()), ("a.b.Kv", "attach".to_owned()));
        let arguments: Vec<_> = method.arguments.iter().map(|a| a.ident.to_string()).collect();
        assert_eq!(arguments, ["id"]);
        assert!(method.items_in.is_some() && method.items_out.is_some());
    }

    #[test]
    fn wrong_signatures_are_refused_with_what_to_write_instead() {
        let cases = [
            (
                quote!(
                    fn f(&self, cx: &Ctx) -> Result<(), E>;
                ),
                "must be an `async fn`",
            ),
            (
                quote!(
                    async fn f(cx: &Ctx) -> Result<(), E>;
                ),
                "first argument must be `&self`",
            ),
            (
                quote!(
                    async fn f(&mut self, cx: &Ctx) -> Result<(), E>;
                ),
                "first argument must be `&self`",
            ),
            (
                quote!(
                    async fn f(&self, key: String) -> Result<(), E>;
                ),
                "second argument must be `cx: &Ctx`",
            ),
            (
                quote!(
                    async fn f(&self, cx: &Ctx, key: &str) -> Result<(), E>;
                ),
                "`String` for `&str`",
            ),
            (
                quote!(
                    async fn f(&self, cx: &Ctx) -> u32;
                ),
                "must return `Result<Answer, Error>`",
            ),
            (
                quote!(
                    async fn f(&self, cx: &Ctx) -> Result<u32>;
                ),
                "both types named",
            ),
            (
                quote!(
                    async fn f(&self, cx: &Ctx);
                ),
                "must return `Result<Answer, Error>`",
            ),
            (
                quote!(
                    async fn f(&self, cx: &Ctx, o: Sender<A>, i: Receiver<B>) -> R;
                ),
                "before the `Sender`",
            ),
            (
                quote!(
                    async fn f(&self, cx: &Ctx, o: Sender<A>, n: u8) -> R;
                ),
                "the streams come last",
            ),
            (
                quote!(
                    async fn f<T>(&self, cx: &Ctx, t: T) -> Result<(), E>;
                ),
                "no type parameters",
            ),
            (
                quote!(
                    async fn f(&self, cx: &Ctx) -> Result<(), E> {
                        Ok(())
                    }
                ),
                "no default body",
            ),
            (
                quote!(
                    const N: u32;
                ),
                "a service has only methods",
            ),
            (quote!(), "at least one method"),
        ];
        for (method, expected) in cases {
            let text = refusal(method);
            assert!(text.contains(expected), "expected `{expected}`, got `{text}`");
        }
    }

    #[test]
    fn names_that_others_could_not_write_are_refused() {
        for name in ["", "a..b", "a b", "a/b", "ä"] {
            let item = quote!(
                trait Kv {
                    async fn f(&self, cx: &Ctx) -> Result<(), E>;
                }
            );
            assert!(Service::parse(quote!(name = #name), item).is_err(), "{name} was accepted");
        }
    }
}
