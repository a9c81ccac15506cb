//! Programs, for whoever looks who has something or names them.

use std::fs;
use std::path::Path;

/// How many are named in one answer.
const NAMED_MAX: usize = 3;

/// What a folder of /proc holds that is named by a number: the processes, or the threads of one.
pub(super) fn numbered(folder: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The first few of these on one line, with how many more there are; `None` if there are none.
pub(super) fn named(programs: &[String]) -> Option<String> {
    let (first, more) = programs.split_at(programs.len().min(NAMED_MAX));
    match (first, more.len()) {
        ([], _) => None,
        (first, 0) => Some(first.join(", ")),
        (first, more) => Some(format!("{} and {more} more", first.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_named_and_the_others_counted() {
        let named = |names: &[&str]| named(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(named(&[]), None);
        assert_eq!(named(&["a", "b", "c"]).unwrap(), "a, b, c");
        assert_eq!(named(&["a", "b", "c", "d", "e"]).unwrap(), "a, b, c and 2 more");
    }
}
