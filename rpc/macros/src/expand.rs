//! From a [`Service`] to code.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, Ident, Type};

use crate::parse::{Method, Service};

pub(crate) fn expand(service: &Service) -> TokenStream {
    let description = description(service);
    let definition = definition(service);
    let server = server(service);
    let client = client(service);
    let busy_client = busy_client(service);
    quote! { #definition #description #server #client #busy_client }
}

/// The trait, with futures that can move between threads.
fn definition(service: &Service) -> TokenStream {
    let Service { attributes, visibility, ident, .. } = service;
    let methods = service.methods.iter().map(|method| {
        let Method { attributes, ident, cx_type, answer, error, .. } = method;
        let arguments = method.arguments.iter().map(|a| {
            let (ident, ty) = (&a.ident, &a.ty);
            quote!(#ident: #ty)
        });
        let input = method.items_in.iter().map(|ty| quote!(input: ::tombolo_rpc::Receiver<#ty>));
        let out = method.items_out.iter().map(|ty| quote!(out: ::tombolo_rpc::Sender<#ty>));
        quote! {
            #(#attributes)*
            fn #ident(&self, cx: #cx_type #(, #arguments)* #(, #input)* #(, #out)*)
                -> impl ::core::future::Future<Output = ::core::result::Result<#answer, #error>> + ::core::marker::Send;
        }
    });
    quote! {
        #(#attributes)*
        #visibility trait #ident: ::core::marker::Send + ::core::marker::Sync + 'static {
            #(#methods)*
        }
    }
}

/// The constant that describes the service: names, types, hashes.
fn description(service: &Service) -> TokenStream {
    let Service { visibility, name, .. } = service;
    let constant = constant(service);
    let doc = format!("What `{}` is on the wire.", service.ident);
    let methods = service.methods.iter().map(|method| {
        let method_name = method.ident.to_string();
        let kind = kind(method);
        let names = method.arguments.iter().map(|a| a.ident.to_string());
        let types = method.arguments.iter().map(|a| schema(&a.ty));
        let items_in = optional_schema(method.items_in.as_ref());
        let items_out = optional_schema(method.items_out.as_ref());
        let answer = schema(&method.answer);
        let error = schema(&method.error);
        quote! {
            ::tombolo_rpc::__private::MethodInfo::new(
                #name, #method_name, #kind, &[#(#names),*], &[#(#types),*],
                #items_in, #items_out, #answer, #error,
            )
        }
    });
    quote! {
        #[doc = #doc]
        #[allow(dead_code, unreachable_pub, reason = "written for every user of the trait")]
        #visibility static #constant: ::tombolo_rpc::__private::ServiceInfo =
            ::tombolo_rpc::__private::ServiceInfo { name: #name, methods: &[#(#methods),*] };
    }
}

fn server(service: &Service) -> TokenStream {
    let Service { visibility, ident, .. } = service;
    let server = format_ident!("{ident}Server");
    let constant = constant(service);
    let doc = format!("Serves a [`{ident}`] on the links of a `Router`.");
    let arms = service.methods.iter().enumerate().map(|(index, method)| {
        let name = &method.ident;
        let idents: Vec<&Ident> = method.arguments.iter().map(|a| &a.ident).collect();
        let types = method.arguments.iter().map(|a| &a.ty);
        let parts = (method.items_in.is_some() || method.items_out.is_some()).then(|| {
            quote! {
                let __parts = match __call.parts() {
                    ::core::result::Result::Ok(__parts) => __parts,
                    ::core::result::Result::Err(__reply) => return __reply,
                };
            }
        });
        let input = method.items_in.iter().map(|_| quote!(::tombolo_rpc::Receiver::from_parts(__parts)));
        let out = method.items_out.iter().map(|_| quote!(::tombolo_rpc::Sender::from_parts(__parts)));
        quote! {
            #index => ::tombolo_rpc::__private::HandlerFuture::new(async move {
                let (#(#idents,)*) = match __call.args::<(#(#types,)*)>() {
                    ::core::result::Result::Ok(__args) => __args,
                    ::core::result::Result::Err(__reply) => return __reply,
                };
                #parts
                let __result = #ident::#name(&*__service, __call.cx() #(, #idents)* #(, #input)* #(, #out)*).await;
                ::tombolo_rpc::__private::Incoming::reply(&__result)
            }),
        }
    });
    quote! {
        #[doc = #doc]
        #[allow(dead_code, unreachable_pub, reason = "written for every user of the trait")]
        #visibility struct #server<T>(::std::sync::Arc<T>);

        #[allow(dead_code, unreachable_pub, reason = "written for every user of the trait")]
        impl<T: #ident> #server<T> {
            /// Serves `service`.
            #visibility fn new(service: T) -> Self {
                Self(::std::sync::Arc::new(service))
            }

            /// Serves a service that is shared with others.
            #visibility fn shared(service: ::std::sync::Arc<T>) -> Self {
                Self(service)
            }
        }

        impl<T> ::core::clone::Clone for #server<T> {
            fn clone(&self) -> Self {
                Self(::std::sync::Arc::clone(&self.0))
            }
        }

        impl<T> ::core::fmt::Debug for #server<T> {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(::core::stringify!(#server))
            }
        }

        impl<T: #ident> ::tombolo_rpc::Service for #server<T> {
            fn info(&self) -> &'static ::tombolo_rpc::__private::ServiceInfo {
                &#constant
            }

            fn call(
                &self,
                __method: usize,
                __call: ::tombolo_rpc::__private::Incoming,
            ) -> ::tombolo_rpc::__private::HandlerFuture {
                let __service = ::std::sync::Arc::clone(&self.0);
                match __method {
                    #(#arms)*
                    _ => ::tombolo_rpc::__private::HandlerFuture::new(::core::future::ready(
                        ::tombolo_rpc::__private::Incoming::no_such_method(),
                    )),
                }
            }
        }
    }
}

fn client(service: &Service) -> TokenStream {
    let Service { visibility, ident, .. } = service;
    let client = format_ident!("{ident}Client");
    let constant = constant(service);
    let doc = format!("Calls a [`{ident}`] over a link. Cheap to clone.");
    let methods = service.methods.iter().enumerate().map(|(index, method)| {
        let Method { ident: name, answer, error, .. } = method;
        let docs = docs(&method.attributes);
        let idents: Vec<&Ident> = method.arguments.iter().map(|a| &a.ident).collect();
        let types: Vec<&Type> = method.arguments.iter().map(|a| &a.ty).collect();
        let call = quote!(::tombolo_rpc::Call<#answer, #error>);
        let info = quote!(&#constant.methods[#index]);
        if method.items_in.is_none() && method.items_out.is_none() {
            return quote! {
                #(#docs)*
                #visibility fn #name(&self #(, #idents: #types)*) -> #call {
                    ::tombolo_rpc::__private::unary(&self.link, #info, &(#(#idents,)*))
                }
            };
        }
        // The caller sends what comes in at the server, and receives what goes out there.
        let types_out = method.items_in.iter().map(|ty| quote!(::tombolo_rpc::Sender<#ty>));
        let types_in = method.items_out.iter().map(|ty| quote!(::tombolo_rpc::Receiver<#ty>));
        let sender = method.items_in.iter().map(|_| quote!(::tombolo_rpc::Sender::from_parts(&__parts)));
        let receiver = method.items_out.iter().map(|_| quote!(::tombolo_rpc::Receiver::from_parts(&__parts)));
        quote! {
            #(#docs)*
            #visibility fn #name(&self #(, #idents: #types)*) -> (#call #(, #types_out)* #(, #types_in)*) {
                let (__call, __parts) =
                    ::tombolo_rpc::__private::stream(&self.link, #info, &(#(#idents,)*));
                (__call #(, #sender)* #(, #receiver)*)
            }
        }
    });
    quote! {
        #[doc = #doc]
        #[derive(Clone, Debug)]
        #[allow(dead_code, unreachable_pub, reason = "written for every user of the trait")]
        #visibility struct #client {
            link: ::tombolo_rpc::Link,
        }

        #[allow(dead_code, unreachable_pub, reason = "written for every user of the trait")]
        impl #client {
            /// A client on `link`.
            #visibility fn new(link: ::tombolo_rpc::Link) -> Self {
                Self { link }
            }

            /// The link that the calls go over.
            #visibility fn link(&self) -> &::tombolo_rpc::Link {
                &self.link
            }

            /// Asks the peer whether it serves every method as this client knows it.
            ///
            /// # Errors
            /// The first method that it lacks or that has another shape there.
            #visibility async fn check(&self) -> ::core::result::Result<(), ::tombolo_rpc::Failure> {
                ::tombolo_rpc::reflection::check(&self.link, &#constant).await
            }

            #(#methods)*
        }
    }
}

/// The client that polls: unary calls only.
fn busy_client(service: &Service) -> Option<TokenStream> {
    let Service { visibility, ident, .. } = service;
    let client = format_ident!("{ident}BusyClient");
    let constant = constant(service);
    let doc = format!("Calls a [`{ident}`] by polling, without a runtime.");
    let unary = |method: &Method| method.items_in.is_none() && method.items_out.is_none();
    if !service.methods.iter().any(unary) {
        return None;
    }
    let methods =
        service.methods.iter().enumerate().filter(|(_, method)| unary(method)).map(|(index, method)| {
            let Method { ident: name, answer, error, .. } = method;
            let docs = docs(&method.attributes);
            let idents: Vec<&Ident> = method.arguments.iter().map(|a| &a.ident).collect();
            let types = method.arguments.iter().map(|a| &a.ty);
            quote! {
                #(#docs)*
                #visibility fn #name(&mut self #(, #idents: #types)*)
                    -> ::core::result::Result<#answer, ::tombolo_rpc::CallError<#error>> {
                    self.client.call(&#constant.methods[#index], &(#(#idents,)*))
                }
            }
        });
    Some(quote! {
        #[doc = #doc]
        #[derive(Debug)]
        #[allow(dead_code, unreachable_pub, reason = "written for every user of the trait")]
        #visibility struct #client<'a, P: ::tombolo_rpc::FramePipe> {
            client: &'a mut ::tombolo_rpc::BusyClient<P>,
        }

        #[allow(dead_code, unreachable_pub, reason = "written for every user of the trait")]
        impl<'a, P: ::tombolo_rpc::FramePipe> #client<'a, P> {
            /// Calls over `client`.
            #visibility fn new(client: &'a mut ::tombolo_rpc::BusyClient<P>) -> Self {
                Self { client }
            }

            #(#methods)*
        }
    })
}

fn constant(service: &Service) -> Ident {
    let mut name = String::new();
    for (i, c) in service.ident.to_string().chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            name.push('_');
        }
        name.extend(c.to_uppercase());
    }
    format_ident!("{name}_SERVICE")
}

fn kind(method: &Method) -> TokenStream {
    let kind = match (&method.items_in, &method.items_out) {
        (None, None) => quote!(Unary),
        (None, Some(_)) => quote!(ServerStream),
        (Some(_), None) => quote!(ClientStream),
        (Some(_), Some(_)) => quote!(Bidirectional),
    };
    quote!(::tombolo_rpc::__private::MethodKind::#kind)
}

/// The schema of a type; a type without one is blamed where the trait names it.
fn schema(ty: &Type) -> TokenStream {
    quote_spanned!(ty.span()=> <#ty as ::tombolo_rpc::__private::Schema>::SCHEMA)
}

fn optional_schema(ty: Option<&Type>) -> TokenStream {
    match ty {
        None => quote!(::core::option::Option::None),
        Some(ty) => {
            let schema = schema(ty);
            quote!(::core::option::Option::Some(#schema))
        }
    }
}

fn docs(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("doc"))
}
