//! Which paths a caller may mean, and what an error of the system says about one.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::api::files::FileError;

/// Longest path, in bytes (`PATH_MAX` without its zero byte).
const PATH_BYTES_MAX: usize = 4095;

/// An absolute path without `..`.
///
/// # Errors
/// [`FileError::InvalidPath`].
pub(crate) fn checked(path: &str) -> Result<PathBuf, FileError> {
    let refuse =
        |reason: &str| Err(FileError::InvalidPath { path: path.to_owned(), reason: reason.to_owned() });
    if path.contains('\0') {
        return refuse("it holds a zero byte");
    }
    if path.len() > PATH_BYTES_MAX {
        return refuse("it is longer than 4095 bytes");
    }
    let candidate = Path::new(path);
    if !candidate.is_absolute() {
        return refuse("it must begin with `/`");
    }
    if candidate.components().any(|part| part == Component::ParentDir) {
        return refuse("it must not hold `..`");
    }
    Ok(candidate.to_owned())
}

/// As [`checked`], and it must name something within a directory.
///
/// # Errors
/// [`FileError::InvalidPath`].
pub(crate) fn checked_file(path: &str) -> Result<PathBuf, FileError> {
    let checked = checked(path)?;
    if checked.file_name().is_none() || path.ends_with('/') {
        let reason = "it must end in the name of a file".to_owned();
        return Err(FileError::InvalidPath { path: path.to_owned(), reason });
    }
    Ok(checked)
}

/// What an error of the system means for whoever asked for `path`.
pub(crate) fn system(attempt: &str, path: &Path, error: &io::Error) -> FileError {
    let path = path.display().to_string();
    let wrong_kind = |found: &str, wanted: &str| FileError::WrongKind {
        path: path.clone(),
        found: found.to_owned(),
        wanted: wanted.to_owned(),
    };
    match error.kind() {
        io::ErrorKind::NotFound => FileError::NotFound { path },
        io::ErrorKind::AlreadyExists => FileError::Exists { path },
        io::ErrorKind::IsADirectory => wrong_kind("a directory", "a file"),
        io::ErrorKind::NotADirectory => wrong_kind("not below a directory", "a directory"),
        _ => FileError::System { attempt: attempt.to_owned(), path, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_cannot_be_meant_are_refused() {
        let long = format!("/{}", "x".repeat(5000));
        for path in ["", "relative", "/a/../b", "/a\0b", &long] {
            assert!(checked(path).is_err(), "{path:?}");
        }
        for path in ["/", "/a/", "/."] {
            assert!(checked_file(path).is_err(), "{path:?}");
        }
        assert_eq!(checked_file("/a//b").unwrap(), Path::new("/a//b"));
    }
}
