//! Device trees that came from outside, copied into plain values.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node as _, Property as _};

use super::Errno;

/// How deep a tree may be. What the kernel looks for is at most six deep.
const DEPTH_MAX: u32 = 16;
/// Sizes and offsets of the header, in bytes (devicetree specification 5.2).
const HEADER_BYTES: usize = 40;
const MAGIC: u32 = 0xd00d_feed;

/// A node, with copies of all it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) name: String,
    properties: Vec<(String, Vec<u8>)>,
    pub(super) children: Vec<Self>,
}

/// What `fdt_check_header` looks at: it does not compare `totalsize` with what there is.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), Errno> {
    let word = |index: usize| {
        let field = bytes.get(index * 4..index * 4 + 4)?;
        Some(u32::from_be_bytes(field.try_into().ok()?))
    };
    let (Some(magic), Some(total), Some(version), Some(compatible)) = (word(0), word(1), word(5), word(6))
    else {
        return Err(Errno::INVAL);
    };
    let within = |offset: Option<u32>| offset.is_some_and(|offset| offset >= 40 && offset <= total);
    let sound = bytes.len() >= HEADER_BYTES
        && magic == MAGIC
        && version >= 17
        && compatible <= 17
        && total as usize >= HEADER_BYTES
        && within(word(2))
        && within(word(3))
        && within(word(4));
    if sound { Ok(()) } else { Err(Errno::INVAL) }
}

/// How long the tree says it is, in bytes.
pub(super) fn total_bytes(bytes: &[u8]) -> Option<usize> {
    let field = bytes.get(4..8)?;
    Some(u32::from_be_bytes(field.try_into().ok()?) as usize)
}

impl Tree {
    /// Reads a flattened tree. Whatever follows `totalsize` is not looked at.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Errno> {
        check_header(bytes)?;
        let total = total_bytes(bytes).ok_or(Errno::INVAL)?;
        let bytes = bytes.get(..total).ok_or(Errno::INVAL)?;
        let fdt = Fdt::new(bytes).map_err(|_| Errno::INVAL)?;
        Self::copy(&fdt.root(), 0)
    }

    fn copy(node: &FdtNode<'_>, depth: u32) -> Result<Self, Errno> {
        if depth > DEPTH_MAX {
            return Err(Errno::INVAL);
        }
        let properties = node
            .properties()
            .map(|property| (property.name().to_owned(), property.value().to_vec()))
            .collect();
        let children: Result<_, _> = node.children().map(|child| Self::copy(&child, depth + 1)).collect();
        Ok(Self { name: node.name().to_owned(), properties, children: children? })
    }

    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Children whose name begins so, in the order they are in.
    pub(super) fn items<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name.starts_with(prefix))
    }

    pub(super) fn properties(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.properties.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.properties().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// A string that ends with a NUL; EINVAL if it does not.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Errno> {
        let Some(value) = self.bytes(name) else { return Ok(None) };
        let end = value.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        std::str::from_utf8(&value[..end]).map(Some).map_err(|_| Errno::INVAL)
    }

    pub(super) fn u32(&self, name: &str) -> Result<Option<u32>, Errno> {
        let Some(value) = self.bytes(name) else { return Ok(None) };
        value.try_into().map(|value| Some(u32::from_be_bytes(value))).map_err(|_| Errno::INVAL)
    }

    pub(super) fn u64(&self, name: &str) -> Result<Option<u64>, Errno> {
        let Some(value) = self.bytes(name) else { return Ok(None) };
        value.try_into().map(|value| Some(u64::from_be_bytes(value))).map_err(|_| Errno::INVAL)
    }

    /// An array of u64; EINVAL if its length is no multiple of 8.
    pub(super) fn u64s(&self, name: &str) -> Result<Option<Vec<u64>>, Errno> {
        let Some(value) = self.bytes(name) else { return Ok(None) };
        let (words, rest) = value.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Errno::INVAL);
        }
        Ok(Some(words.iter().map(|word| u64::from_be_bytes(*word)).collect()))
    }

    /// A physical CPU id: `reg` as u32 or u64.
    pub(super) fn cpu(&self) -> Result<u64, Errno> {
        match self.bytes("reg") {
            Some(value) if value.len() == 4 => Ok(self.u32("reg")?.map_or(0, u64::from)),
            Some(_) => self.u64("reg")?.ok_or(Errno::INVAL),
            None => Err(Errno::INVAL),
        }
    }
}
