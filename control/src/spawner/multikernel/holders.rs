//! Who has which PCI function of the pool, by all trees together.
//!
//! The pool's tree does not say which of its functions instances have; and whether it tells of those at all is not known. So a function is of the pool if the
//! pool's tree or an instance's tells of it, and free if no instance's does, which is so either way. One tree that cannot be read or understood makes all of it
//! unknown: what it would have told of is not free. So do two instances whose trees tell of the same one.

use tombolo_handover::PciAddress;

use super::functions::Function;
use super::ids::InstanceName;
use super::interface::{self, AskError, Interface};
use super::tree::{InstanceTree, TreeError};

/// A function of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) function: Function,
    /// The instance that has it, whoever made that.
    pub(super) by: Option<String>,
}

/// All functions of the pool, in order.
pub(super) fn held(kernel: &impl Interface) -> Result<Vec<Held>, AskError> {
    let of_instances = functions_of_instances(kernel)?;
    // Read last: one that an instance gave back meanwhile is in one of them at least.
    let pool = interface::pool_or_none(kernel)?;
    let free = pool.functions.all().map_err(of_pool)?.iter();
    let mut held: Vec<Held> = free.map(|function| Held { function: function.clone(), by: None }).collect();
    for (name, function) in of_instances {
        match held.iter_mut().find(|held| held.function.address == function.address) {
            Some(Held { by: Some(other), .. }) => return Err(in_two(other, &name, function.address)),
            Some(held) => held.by = Some(name),
            None => held.push(Held { function, by: Some(name) }),
        }
    }
    held.sort_by_key(|held| held.function.address);
    Ok(held)
}

/// Whether the instance of this name has a function; one that is gone has none.
pub(super) fn has(
    kernel: &impl Interface,
    name: &InstanceName,
    function: PciAddress,
) -> Result<bool, AskError> {
    let tree = interface::instance(kernel, name)?;
    let path = || format!("instances/{name}/device_tree");
    tree.map_or(Ok(false), |tree| tree.functions.has(function))
        .map_err(|source| AskError::Tree { path: path(), source })
}

/// Whether the pool's own tree tells of a function.
pub(super) fn is_in_pool(kernel: &impl Interface, function: PciAddress) -> Result<bool, AskError> {
    interface::pool_or_none(kernel)?.functions.has(function).map_err(of_pool)
}

/// Two instances cannot have one function: what is wrong of that nobody can tell.
fn in_two(one: &str, other: &str, function: PciAddress) -> AskError {
    let source = TreeError::Shape {
        what: "pci@N",
        found: format!("one with {function}, which instance `{one}` has by its own tree"),
        expected: "a function in one instance",
    };
    AskError::Tree { path: format!("instances/{other}/device_tree"), source }
}

fn of_pool(source: TreeError) -> AskError {
    AskError::Tree { path: "device_tree".into(), source }
}

fn functions_of_instances(kernel: &impl Interface) -> Result<Vec<(String, Function)>, AskError> {
    let mut found = Vec::new();
    // Also those whose names could not be ours.
    for name in interface::instances(kernel)? {
        let path = format!("instances/{name}/device_tree");
        let blob = match kernel.read(&path) {
            Ok(blob) => blob,
            Err(_) if !interface::instances(kernel)?.contains(&name) => continue,
            Err(source) => return Err(AskError::Read { path, source }),
        };
        let functions = InstanceTree::parse(&blob, &name).and_then(|tree| Ok(tree.functions.all()?.to_vec()));
        let functions = functions.map_err(|source| AskError::Tree { path, source })?;
        found.extend(functions.into_iter().map(|function| (name.clone(), function)));
    }
    Ok(found)
}
