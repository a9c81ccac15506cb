//! Bytes that must never change within version 1 (`docs/rpc-wire.md` section 12 shows them), and bytes that nobody should send.

use std::fmt::Write;

use tombolo_transport::{Cid, Incarnation};

use proptest::prelude::*;

use super::fault::Fault;
use super::frame::{Header, Open};
use super::hello::{Hello, Limits, Side, proof};
use super::metadata::Metadata;
use super::trace::TraceContext;
use crate::schema::{MethodInfo, MethodKind, method_id};
use crate::{Blob, Schema};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[derive(Schema)]
#[allow(dead_code, reason = "only its shape counts")]
enum KvError {
    NoSuchStore(String),
}

static READ: MethodInfo = MethodInfo::new(
    "tombolo.demo.Kv",
    "read",
    MethodKind::Unary,
    &["key"],
    &[String::SCHEMA],
    None,
    None,
    <Option<Blob>>::SCHEMA,
    KvError::SCHEMA,
);

#[test]
fn method_ids_and_fingerprints_are_pinned() {
    assert_eq!(method_id("tombolo.demo.Kv", "read"), READ.id);
    assert_eq!(format!("{:016x} {:016x}", READ.id, READ.fingerprint), "6a3d710f315fa16d 0a129ec6eeffebca");
}

#[test]
fn open_is_pinned() {
    let mut bytes = Vec::new();
    Open { method: READ.id, fingerprint: READ.fingerprint, remaining_ns: Some(10_000_000_000) }
        .put(&mut bytes, 1, 0, false);
    bytes.extend(postcard::to_allocvec(&("k",)).unwrap());
    assert_eq!(hex(&bytes), "03000000010000006da15f310f713d6acaebffeec69e120a80969800016b");
}

#[test]
fn hello_and_proofs_are_pinned() {
    let hello = |side: Side, fill: u8| Hello {
        versions: (1, 1),
        side,
        proves: true,
        features: 0,
        cid: Cid(u32::from(fill)),
        incarnation: Incarnation([fill; 16]),
        nonce: [fill; 32],
        limits: Limits {
            frame_bytes: 65536,
            message_bytes: 16 << 20,
            metadata_bytes: 4096,
            calls: 1024,
            window_bytes: 262144,
        },
        role: "r".into(),
        build: "b".into(),
    };
    let (c, a) = (hello(Side::Connector, 3).encode(), hello(Side::Acceptor, 2).encode());
    let expected = "544d424c01000100010100100300000000000000000000000303030303030303030303030303030303030303\
                    0303030303030303030303030303030303030303030303030303030300000100000000010004000000000400\
                    01720162";
    assert_eq!(hex(&c), expected);
    let secret = [7; 32];
    let proofs = [Side::Connector, Side::Acceptor].map(|side| proof(&secret, side, &c, &a).to_string());
    let expected = [
        "1db91b1ee8090d3a82d92a48e7c8525eff5e4ad294ecabddb455e1d7816bcb38",
        "ee97df771a7fede34a501743a31eebfd274cec809d329a33d7bb0ac767642c77",
    ];
    assert_eq!(proofs, expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// Whatever comes is read or refused; what is read is what was written.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), more in any::<bool>()) {
        if let Ok((header, body)) = Header::parse(&bytes) {
            prop_assert_eq!(body.len() + 8, bytes.len());
            if let Ok((open, metadata, payload)) = Open::parse(&header, body) {
                let mut again = Vec::new();
                open.put(&mut again, header.call, header.aux, more);
                again.extend_from_slice(metadata);
                again.extend_from_slice(payload);
                let (header, body) = Header::parse(&again).unwrap();
                prop_assert_eq!(Open::parse(&header, body).unwrap().1, metadata);
            }
            let _ = Fault::parse(header.aux, body);
        }
        if let Ok(metadata) = Metadata::decode(&bytes) {
            prop_assert_eq!(metadata.encode(), bytes.clone());
        }
        let _ = String::from_utf8_lossy(&bytes).parse::<TraceContext>();
        // A HELLO that begins right is the more likely to be read wrongly.
        let mut hello = b"TMBL\x01\x00\x01\x00\x01\x00".to_vec();
        hello.extend_from_slice(&bytes);
        for hello in [&hello, &bytes] {
            if let Ok(read) = Hello::parse(hello) {
                prop_assert!(read.role.len() <= 3 * 255 && read.build.len() <= 3 * 255);
            }
        }
    }

    #[test]
    fn any_arguments_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        type Args = (String, Vec<Option<Blob>>, std::collections::BTreeMap<u32, (char, bool)>);
        let body = crate::scratch::Body::from(bytes);
        let _ = crate::link::decode::<Args>(&body, "the arguments");
        let _ = crate::link::decode::<Blob>(&body, "an item");
    }
}
