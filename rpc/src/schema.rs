//! What a method is, and the two numbers it goes by on the wire.
//!
//! - Its **id** hashes the names of service and method: which method is meant.
//! - Its **fingerprint** hashes the shape of everything that it carries: arguments, items, answer, error. postcard is
//!   positional, so two sides whose types differ would misread each other; they compare fingerprints at every call
//!   and refuse instead.
//!
//! Both are FNV-1a over 64 bits, computed at compile time.

use std::fmt::Write;

use postcard_schema::schema::{DataModelType, DataModelVariant, NamedType};

/// How a method's arguments and answer flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, crate::Schema)]
#[repr(u8)]
pub enum MethodKind {
    /// One request, one answer.
    Unary = 0,
    /// Items from the server, then the answer.
    ServerStream = 1,
    /// Items from the client, then the answer.
    ClientStream = 2,
    /// Items both ways, then the answer.
    Bidirectional = 3,
}

/// One method of a service, as its trait declares it.
#[derive(Debug)]
pub struct MethodInfo {
    /// The service's full name, such as `tombolo.demo.Kv`.
    pub service: &'static str,
    /// The method's name.
    pub name: &'static str,
    /// Unary or which kind of stream.
    pub kind: MethodKind,
    /// Names of the arguments, without context and streams.
    pub argument_names: &'static [&'static str],
    /// Types of the arguments, in order.
    pub arguments: &'static [&'static NamedType],
    /// Type of the items from the client.
    pub items_in: Option<&'static NamedType>,
    /// Type of the items from the server.
    pub items_out: Option<&'static NamedType>,
    /// Type of the answer.
    pub answer: &'static NamedType,
    /// Type of the application's error.
    pub error: &'static NamedType,
    /// Hash of `service/method`.
    pub id: u64,
    /// Hash of the shape of all the types above.
    pub fingerprint: u64,
}

/// A service, as its trait declares it.
#[derive(Debug)]
pub struct ServiceInfo {
    /// The full name, such as `tombolo.demo.Kv`.
    pub name: &'static str,
    /// Its methods, in the order of the trait.
    pub methods: &'static [MethodInfo],
}

impl MethodInfo {
    /// Puts a method together and computes its two hashes.
    #[allow(clippy::too_many_arguments, reason = "called by the macro only")]
    pub const fn new(
        service: &'static str,
        name: &'static str,
        kind: MethodKind,
        argument_names: &'static [&'static str],
        arguments: &'static [&'static NamedType],
        items_in: Option<&'static NamedType>,
        items_out: Option<&'static NamedType>,
        answer: &'static NamedType,
        error: &'static NamedType,
    ) -> Self {
        let mut hash = Fnv::new().byte(kind as u8).types(arguments);
        hash = hash.optional(items_in).optional(items_out).ty(answer).ty(error);
        Self {
            service,
            name,
            kind,
            argument_names,
            arguments,
            items_in,
            items_out,
            answer,
            error,
            id: method_id(service, name),
            fingerprint: hash.0,
        }
    }

    /// The method in words: `scan(prefix: String, out: stream of Entry { .. }) -> u64, or error ..`.
    pub fn signature(&self) -> String {
        let mut text = format!("{}(", self.name);
        let mut parts: Vec<String> = Vec::new();
        for (name, ty) in self.argument_names.iter().zip(self.arguments) {
            parts.push(format!("{name}: {}", describe(ty)));
        }
        if let Some(ty) = self.items_in {
            parts.push(format!("stream in of {}", describe(ty)));
        }
        if let Some(ty) = self.items_out {
            parts.push(format!("stream out of {}", describe(ty)));
        }
        text += &parts.join(", ");
        let _ = write!(text, ") -> {}, or error {}", describe(self.answer), describe(self.error));
        text
    }
}

/// The stable 64-bit id of a method. High half: the service's name, low half: `service/method`, each FNV-1a of 64 bits
/// with its two halves exclusive-ored. So a server that does not know a method still sees whether it knows the service.
pub const fn method_id(service: &str, method: &str) -> u64 {
    let service = Fnv::new().bytes(service.as_bytes());
    let method = service.byte(b'/').bytes(method.as_bytes());
    (service.folded() << 32) | method.folded()
}

/// A type in words, as it lies on the wire: `Entry { key: String, value: bytes }`.
pub fn describe(ty: &NamedType) -> String {
    let fields = |types: &[&NamedType]| types.iter().map(|t| describe(t)).collect::<Vec<_>>().join(", ");
    match ty.ty {
        DataModelType::ByteArray => "bytes".to_owned(),
        DataModelType::Unit => "()".to_owned(),
        DataModelType::Option(inner) => format!("Option<{}>", describe(inner)),
        DataModelType::Seq(inner) => format!("[{}]", describe(inner)),
        DataModelType::NewtypeStruct(inner) => format!("{}({})", ty.name, describe(inner)),
        DataModelType::Tuple(types) => format!("({})", fields(types)),
        DataModelType::TupleStruct(types) => format!("{}({})", ty.name, fields(types)),
        DataModelType::Map { key, val } => format!("{{{}: {}}}", describe(key), describe(val)),
        DataModelType::Struct(values) => {
            let fields: Vec<_> = values.iter().map(|v| format!("{}: {}", v.name, describe(v.ty))).collect();
            format!("{} {{ {} }}", ty.name, fields.join(", "))
        }
        DataModelType::Enum(variants) => {
            let variants: Vec<_> = variants
                .iter()
                .map(|v| match v.ty {
                    DataModelVariant::UnitVariant => v.name.to_owned(),
                    DataModelVariant::NewtypeVariant(inner) => format!("{}({})", v.name, describe(inner)),
                    DataModelVariant::TupleVariant(types) => format!("{}({})", v.name, fields(types)),
                    DataModelVariant::StructVariant(values) => {
                        let fields: Vec<_> =
                            values.iter().map(|v| format!("{}: {}", v.name, describe(v.ty))).collect();
                        format!("{} {{ {} }}", v.name, fields.join(", "))
                    }
                })
                .collect();
            format!("{} {{ {} }}", ty.name, variants.join(" | "))
        }
        _ => ty.name.to_owned(),
    }
}

/// FNV-1a, 64 bits. postcard-schema has a hash of types too, but it does not hash counts, so that
/// `[{a}], b` and `[{a, b}]` would be the same; here every list is preceded by its length.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    const fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// Both halves in one, as 32 bits.
    const fn folded(self) -> u64 {
        (self.0 >> 32) ^ (self.0 & 0xffff_ffff)
    }

    const fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut i = 0;
        while i < bytes.len() {
            self = self.byte(bytes[i]);
            i += 1;
        }
        self
    }

    /// A length, as four bytes, little endian.
    const fn count(self, count: usize) -> Self {
        self.bytes(&(count as u32).to_le_bytes())
    }

    const fn name(self, name: &str) -> Self {
        self.count(name.len()).bytes(name.as_bytes())
    }

    const fn types(mut self, types: &[&NamedType]) -> Self {
        self = self.count(types.len());
        let mut i = 0;
        while i < types.len() {
            self = self.ty(types[i]);
            i += 1;
        }
        self
    }

    const fn optional(self, ty: Option<&NamedType>) -> Self {
        match ty {
            None => self.byte(0),
            Some(ty) => self.byte(1).ty(ty),
        }
    }

    const fn values(mut self, values: &[&postcard_schema::schema::NamedValue]) -> Self {
        self = self.count(values.len());
        let mut i = 0;
        while i < values.len() {
            self = self.name(values[i].name).ty(values[i].ty);
            i += 1;
        }
        self
    }

    /// A type's shape. Its own name does not count (renaming a type changes no byte); names of fields and variants do.
    const fn ty(self, ty: &NamedType) -> Self {
        use DataModelType as T;
        match ty.ty {
            T::Bool => self.byte(1),
            T::I8 => self.byte(2),
            T::U8 => self.byte(3),
            T::I16 => self.byte(4),
            T::I32 => self.byte(5),
            T::I64 => self.byte(6),
            T::I128 => self.byte(7),
            T::U16 => self.byte(8),
            T::U32 => self.byte(9),
            T::U64 => self.byte(10),
            T::U128 => self.byte(11),
            T::Usize => self.byte(12),
            T::Isize => self.byte(13),
            T::F32 => self.byte(14),
            T::F64 => self.byte(15),
            T::Char => self.byte(16),
            T::String => self.byte(17),
            T::ByteArray => self.byte(18),
            T::Option(inner) => self.byte(19).ty(inner),
            T::Unit => self.byte(20),
            T::UnitStruct => self.byte(21),
            T::NewtypeStruct(inner) => self.byte(22).ty(inner),
            T::Seq(inner) => self.byte(23).ty(inner),
            T::Tuple(types) => self.byte(24).types(types),
            T::TupleStruct(types) => self.byte(25).types(types),
            T::Map { key, val } => self.byte(26).ty(key).ty(val),
            T::Struct(values) => self.byte(27).values(values),
            T::Enum(variants) => {
                let mut hash = self.byte(28).count(variants.len());
                let mut i = 0;
                while i < variants.len() {
                    hash = hash.name(variants[i].name);
                    hash = match variants[i].ty {
                        DataModelVariant::UnitVariant => hash.byte(1),
                        DataModelVariant::NewtypeVariant(inner) => hash.byte(2).ty(inner),
                        DataModelVariant::TupleVariant(types) => hash.byte(3).types(types),
                        DataModelVariant::StructVariant(values) => hash.byte(4).values(values),
                    };
                    i += 1;
                }
                hash
            }
            T::Schema => self.byte(29),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Blob, Schema};

    #[derive(Schema)]
    #[allow(dead_code)]
    struct Narrow {
        a: u8,
    }
    #[derive(Schema)]
    #[allow(dead_code)]
    struct Wide {
        a: u8,
        b: u8,
    }
    #[derive(Schema)]
    #[allow(dead_code)]
    enum Shape {
        Dot,
        Circle { radius: f32 },
        Path(Vec<Narrow>),
    }

    fn print(arguments: &'static [&'static NamedType]) -> u64 {
        MethodInfo::new("s", "m", MethodKind::Unary, &[], arguments, None, None, <()>::SCHEMA, <()>::SCHEMA)
            .fingerprint
    }

    #[test]
    fn method_id_is_folded_fnv1a_of_service_and_method() {
        let fold = |hash: u64| (hash >> 32) ^ (hash & 0xffff_ffff);
        assert_eq!(method_id("a", "b"), fold(fnv_of(b"a")) << 32 | fold(fnv_of(b"a/b")));
    }

    fn fnv_of(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
    }

    #[test]
    fn field_moved_out_of_a_list_changes_the_fingerprint() {
        let inside = print(&[<Vec<Wide>>::SCHEMA]);
        let outside = print(&[<Vec<Narrow>>::SCHEMA, u8::SCHEMA]);
        assert_ne!(inside, outside);
    }

    #[test]
    fn kind_and_types_change_the_fingerprint() {
        let unary = print(&[u8::SCHEMA]);
        assert_ne!(unary, print(&[u16::SCHEMA]));
        assert_ne!(unary, print(&[<Option<u8>>::SCHEMA]));
        let stream = MethodInfo::new(
            "s",
            "m",
            MethodKind::ServerStream,
            &[],
            &[u8::SCHEMA],
            None,
            None,
            <()>::SCHEMA,
            <()>::SCHEMA,
        );
        assert_ne!(unary, stream.fingerprint);
    }

    #[test]
    fn types_are_described_in_words() {
        assert_eq!(describe(Blob::SCHEMA), "bytes");
        assert_eq!(
            describe(<Option<Shape>>::SCHEMA),
            "Option<Shape { Dot | Circle { radius: f32 } | Path([Narrow { a: u8 }]) }>"
        );
    }
}
