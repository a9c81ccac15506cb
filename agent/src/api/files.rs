//! `tombolo.agent.Files`: files inside the kernel.
//!
//! A put writes to a partial file beside the target and renames it into place once length and checksum agree, so a
//! reader sees the old file or the new one, whole. What an interrupted put has written stays, and
//! [`Files::partial`] tells from where to go on. The new file belongs to the agent's user; a link of that name is
//! replaced, not followed.

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};

use tombolo_rpc::{Blob, Ctx};

/// Files inside the kernel.
#[tombolo_rpc::service(name = "tombolo.agent.Files")]
pub trait Files {
    /// Writes a file. Chunks of up to 256 KiB serve best.
    async fn put(&self, cx: &Ctx, request: Put, input: Receiver<Blob>) -> Result<PutDone, FileError>;
    /// How much of an interrupted put is there: its length in bytes, 0 if there is none.
    async fn partial(&self, cx: &Ctx, path: String, resume_key: String) -> Result<u64, FileError>;
    /// Sends a file from an offset on.
    async fn get(&self, cx: &Ctx, request: Get, out: Sender<Blob>) -> Result<GetDone, FileError>;
    /// What there is at a path, without following a link in its last part.
    async fn stat(&self, cx: &Ctx, path: String) -> Result<FileInfo, FileError>;
    /// What is in a directory, by name.
    async fn list(&self, cx: &Ctx, path: String, out: Sender<FileInfo>) -> Result<u64, FileError>;
    /// The BLAKE3 checksum of a file.
    async fn checksum(&self, cx: &Ctx, path: String) -> Result<GetDone, FileError>;
    /// Makes a directory, with its parents; one that is there already is fine.
    async fn make_directory(&self, cx: &Ctx, path: String, mode: u32) -> Result<(), FileError>;
    /// Removes a file, link or empty directory.
    async fn remove(&self, cx: &Ctx, path: String) -> Result<(), FileError>;
}

/// Request of [`Files::put`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Put {
    /// Absolute path of the file.
    pub path: String,
    /// Permission bits, such as `0o644`.
    pub mode: u32,
    /// Length of the whole file, in bytes.
    pub len: u64,
    /// BLAKE3 of the whole file.
    pub blake3: [u8; 32],
    /// Names the partial file, so that a later put of the same content may go on from `offset`. At most 64 letters,
    /// digits and `-`; the digits of the checksum serve well.
    pub resume_key: String,
    /// Where the stream begins: 0, or what [`Files::partial`] said.
    pub offset: u64,
    /// Whether a file that is there may be replaced.
    pub replace: bool,
    /// Make missing parent directories.
    pub parents: bool,
}

/// Answer to [`Files::put`]: the file is in place and on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct PutDone {
    /// Its length, in bytes.
    pub len: u64,
}

/// Request of [`Files::get`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct Get {
    /// Absolute path of the file.
    pub path: String,
    /// First byte wanted.
    pub offset: u64,
}

/// Answer to [`Files::get`] and [`Files::checksum`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct GetDone {
    /// Length of the whole file, in bytes.
    pub len: u64,
    /// BLAKE3 of the whole file, from byte 0, also when an offset was asked for.
    pub blake3: [u8; 32],
    /// Permission bits.
    pub mode: u32,
}

/// What there is at a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
pub struct FileInfo {
    /// Its path, as asked for; in a listing, its name alone.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// In bytes.
    pub len: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Since 1970.
    pub modified_ms: i64,
    /// Where a link points.
    pub link_target: Option<String>,
}

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Schema)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, socket or pipe.
    Other,
}

/// What can go wrong in [`Files`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize, Schema)]
pub enum FileError {
    /// The path cannot be meant.
    #[error("`{path}` is not a usable path: {reason}; nothing was changed")]
    InvalidPath {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing at that path.
    #[error("there is no `{path}`")]
    NotFound {
        /// As it was given.
        path: String,
    },
    /// There is something already, and it may not be replaced.
    #[error("`{path}` is there already; nothing was changed")]
    Exists {
        /// As it was given.
        path: String,
    },
    /// It is a directory, or not one, or a device.
    #[error("`{path}` is {found}, not {wanted}")]
    WrongKind {
        /// As it was given.
        path: String,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// What arrived is not what was announced; the partial file was removed.
    #[error(
        "what arrived for `{path}` has another checksum than announced; nothing was replaced, send it again from the start"
    )]
    ChecksumMismatch {
        /// The target.
        path: String,
    },
    /// The stream ended early; the partial file is kept.
    #[error(
        "`{path}` was cut off after {received} of {announced} bytes; nothing was replaced, go on from there"
    )]
    Incomplete {
        /// The target.
        path: String,
        /// Bytes that are there.
        received: u64,
        /// Bytes that were announced.
        announced: u64,
    },
    /// More came than was announced; the partial file was removed.
    #[error("more than the announced {announced} bytes came for `{path}`; nothing was replaced")]
    TooLong {
        /// The target.
        path: String,
        /// Bytes that were announced.
        announced: u64,
    },
    /// The put would begin where the partial file does not end.
    #[error("cannot go on with `{path}` from byte {asked}: {there} bytes are there")]
    WrongOffset {
        /// The target.
        path: String,
        /// As it was asked for.
        asked: u64,
        /// Length of the partial file, or of the file to get.
        there: u64,
    },
    /// The file does not fit.
    #[error("`{path}` needs {needed} bytes more, and {available} are left {place}; nothing was changed")]
    NoSpace {
        /// The target.
        path: String,
        /// Bytes to come.
        needed: u64,
        /// Bytes that are left.
        available: u64,
        /// Of what: the file system, or the kernel's memory where the file system lies in it.
        place: String,
    },
    /// Another put writes the same file.
    #[error("another put writes `{path}`; nothing was changed")]
    Busy {
        /// The target.
        path: String,
    },
    /// As many puts and gets as may be are under way.
    #[error(
        "`{path}` must wait: {limit} transfers are under way already; nothing was changed, try again later"
    )]
    TooMany {
        /// As it was given.
        path: String,
        /// How many there may be.
        limit: u32,
    },
    /// The agent takes on no work now.
    #[error("this kernel is {state} and writes no files; nothing was changed")]
    NotAccepting {
        /// `quiesced` or `shutting down`.
        state: String,
    },
    /// The operating system refused something.
    #[error("{attempt} `{path}` failed: {reason}")]
    System {
        /// What was attempted.
        attempt: String,
        /// On what.
        path: String,
        /// What the system said.
        reason: String,
    },
}
