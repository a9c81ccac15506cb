//! Code for the peers whose calls are declared outside Rust, made without `protoc`.

use std::fs::File;
use std::path::PathBuf;

use capnpc::codegen::CodeGenerationCommand;
use tonic_build::manual::{Builder, Method, Service};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/calls/touch.proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .input("src/calls/touch.proto")
        .include("src/calls")
        .rust_protobuf()
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().gen_mod_rs(false))
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()?;
    // Files with attributes of their own are modules, not to be included.
    std::fs::write(out.join("ttrpc.rs"), "pub mod touch;\npub mod touch_ttrpc;\n")?;
    let method = |name: &str, route: &str, input: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type(input)
            .output_type(output)
            .codec_path("tonic_prost::ProstCodec")
            .build()
    };
    let service = Service::builder()
        .name("Touch")
        .package("tombolo.peers")
        .method(method("touch", "Touch", "crate::calls::tonic::Record", "crate::calls::tonic::Record"))
        .method(method("swallow", "Swallow", "crate::calls::tonic::Load", "crate::calls::tonic::Swallowed"))
        .build();
    Builder::new().out_dir(&out).compile(&[service]);

    // What `capnp compile -o-` says of `touch.capnp`, so that nobody needs that program to build.
    println!("cargo:rerun-if-changed=src/calls/touch.capnp.request");
    CodeGenerationCommand::new()
        .output_directory(&out)
        .default_parent_module(vec!["calls".into(), "capnp".into()])
        .run(File::open("src/calls/touch.capnp.request")?)?;
    Ok(())
}
