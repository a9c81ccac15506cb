//! The tree of files, as `/sys/fs/multikernel` shows it.

use super::Errno;
use super::instance::Instance;
use super::machine::Machine;
use super::transaction::Transaction;
use super::trees;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder; mode 0755.
    Dir,
    /// A file of this mode.
    File {
        /// Permission bits.
        mode: u16,
    },
}

impl EntryKind {
    /// Whether it is a folder.
    pub fn is_dir(self) -> bool {
        self == Self::Dir
    }
}

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Without the path.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

const INSTANCE_FILES: [&str; 3] = ["id", "status", "device_tree"];
const TRANSACTION_FILES: [&str; 5] = ["id", "status", "instance", "resources", "dtbo"];

/// A path that was looked up.
enum Node<'a> {
    Root,
    DeviceTree,
    Instances,
    Instance,
    InstanceFile(&'a Instance, &'a str),
    Overlays,
    New,
    Transaction,
    TransactionFile(&'a Transaction, &'a str),
}

impl Machine {
    fn node<'a>(&'a self, path: &'a str) -> Result<Node<'a>, Errno> {
        let path = path.trim_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        let instance = |name: &str| self.instances.get(name).ok_or(Errno::NOENT);
        let transaction = |name: &str| {
            let id = name.strip_prefix("tx_").filter(|id| !id.starts_with(['0', '+']));
            let id = id.and_then(|id| id.parse().ok()).ok_or(Errno::NOENT)?;
            self.transactions.get(&id).ok_or(Errno::NOENT)
        };
        Ok(match parts[..] {
            [""] => Node::Root,
            ["device_tree"] => Node::DeviceTree,
            ["instances"] => Node::Instances,
            ["instances", name] => instance(name).map(|_| Node::Instance)?,
            ["instances", name, file] if INSTANCE_FILES.contains(&file) => {
                Node::InstanceFile(instance(name)?, file)
            }
            ["overlays"] => Node::Overlays,
            ["overlays", "new"] => Node::New,
            ["overlays", name] => transaction(name).map(|_| Node::Transaction)?,
            ["overlays", name, file] if TRANSACTION_FILES.contains(&file) => {
                Node::TransactionFile(transaction(name)?, file)
            }
            _ => return Err(Errno::NOENT),
        })
    }

    /// What is at a path, relative to the root of the tree (which is the empty path).
    ///
    /// # Errors
    /// ENOENT.
    pub fn entry(&self, path: &str) -> Result<EntryKind, Errno> {
        Ok(match self.node(path)? {
            Node::Root | Node::Instances | Node::Instance | Node::Overlays | Node::Transaction => {
                EntryKind::Dir
            }
            Node::DeviceTree => EntryKind::File { mode: 0o644 },
            Node::InstanceFile(..) | Node::TransactionFile(..) => EntryKind::File { mode: 0o444 },
            Node::New => EntryKind::File { mode: 0o200 },
        })
    }

    /// What is in a folder.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Errno> {
        let dir = |name: String| Entry { name, kind: EntryKind::Dir };
        let file = |name: &str, mode| Entry { name: name.to_owned(), kind: EntryKind::File { mode } };
        Ok(match self.node(path)? {
            Node::Root => {
                vec![file("device_tree", 0o644), dir("instances".into()), dir("overlays".into())]
            }
            Node::Instances => self.instances.keys().cloned().map(dir).collect(),
            Node::Instance => INSTANCE_FILES.iter().map(|name| file(name, 0o444)).collect(),
            Node::Overlays => {
                let transactions = self.transactions.keys().map(|id| dir(format!("tx_{id}")));
                std::iter::once(file("new", 0o200)).chain(transactions).collect()
            }
            Node::Transaction => TRANSACTION_FILES.iter().map(|name| file(name, 0o444)).collect(),
            Node::DeviceTree | Node::New | Node::InstanceFile(..) | Node::TransactionFile(..) => {
                return Err(Errno::NOTDIR);
            }
        })
    }

    /// Everything a file says now.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EACCES for what is only written.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let line = |text: &dyn std::fmt::Display| format!("{text}\n").into_bytes();
        Ok(match self.node(path)? {
            Node::DeviceTree => trees::pool_tree(&self.config, self.pool.as_ref()),
            Node::InstanceFile(instance, "id") => line(&instance.id),
            Node::InstanceFile(instance, "status") => line(&instance.state),
            Node::InstanceFile(instance, _) => trees::instance_tree(instance),
            Node::TransactionFile(tx, "id") => line(&tx.id),
            Node::TransactionFile(tx, "status") => line(&tx.status),
            Node::TransactionFile(tx, "instance") => line(&tx.target),
            Node::TransactionFile(tx, "resources") => line(&tx.resources),
            Node::TransactionFile(tx, _) => tx.dtbo.clone(),
            Node::New => return Err(Errno::ACCESS),
            Node::Root | Node::Instances | Node::Instance | Node::Overlays | Node::Transaction => {
                return Err(Errno::ISDIR);
            }
        })
    }
}
