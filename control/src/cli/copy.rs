//! `tombolo cp`: a file into an instance or out of it, checked by its checksum. One that breaks off is resumed when the
//! same command is given again.

use std::io::{IsTerminal, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde_json::json;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tombolo_agent::api::files::{FileInfo, Get, Put};
use tombolo_rpc::Blob;

use super::args::CopyArgs;
use super::client::Client;
use super::error::CliError;
use super::output::bytes;
use super::{Context, Outcome};
use crate::api::ExitKind;
use crate::core::InstanceName;

/// Bytes sent at once: what serves an agent best.
const CHUNK_BYTES: usize = 256 * 1024;

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Here(PathBuf),
    Inside(InstanceName, String),
}

pub(super) async fn copy(cx: &Context, args: CopyArgs) -> Outcome {
    let (source, target) = (End::parse(&args.source)?, End::parse(&args.target)?);
    match (source, target) {
        (End::Here(from), End::Inside(name, to)) => put(cx, &from, &name, to, !args.no_clobber).await,
        (End::Inside(name, from), End::Here(to)) => get(cx, &name, from, to, !args.no_clobber).await,
        (End::Here(_), End::Here(_)) => {
            Err(CliError::usage("one side must be NAME:PATH, inside an instance; `cp` copies on this host"))
        }
        (End::Inside(..), End::Inside(..)) => Err(CliError::usage(
            "one side must be a path of this host; copy out of one instance, then into the other",
        )),
    }
}

impl End {
    /// `NAME:/PATH` is inside, everything else here. A path of this host with a colon can be written `./a:b`.
    fn parse(text: &str) -> Result<Self, CliError> {
        let Some((name, path)) = text.split_once(':') else { return Ok(Self::Here(text.into())) };
        match name.parse() {
            Ok(name) if path.starts_with('/') => Ok(Self::Inside(name, path.to_owned())),
            Ok(name) => Err(CliError::usage(format!("`{path}` is not an absolute path inside {name}"))),
            Err(_) => Ok(Self::Here(text.into())),
        }
    }
}

async fn put(cx: &Context, from: &Path, name: &InstanceName, to: String, replace: bool) -> Outcome {
    let unreadable =
        |error: std::io::Error| CliError::new(ExitKind::NotFound, format!("{}: {error}", from.display()));
    let mut file = File::open(from).await.map_err(unreadable)?;
    let metadata = file.metadata().await.map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(CliError::usage(format!("{} is not a regular file", from.display())));
    }
    let path = match (to.ends_with('/'), from.file_name()) {
        (true, Some(file_name)) => format!("{to}{}", file_name.to_string_lossy()),
        _ => to,
    };
    let client = cx.client().await?;
    let len = metadata.len();
    let bar = progress(cx, "checking", len);
    let checksum = hash(&mut file, &bar).await.map_err(unreadable)?;
    let resume_key = checksum.to_hex()[..32].to_owned();
    let there = client.ask(client.inside.partial(name.to_string(), path.clone(), resume_key.clone())).await?;
    let offset = if there <= len { there } else { 0 };
    file.seek(SeekFrom::Start(offset)).await.map_err(unreadable)?;
    let request = Put {
        path: path.clone(),
        mode: std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o7777,
        len,
        blake3: *checksum.as_bytes(),
        resume_key,
        offset,
        replace,
        parents: true,
    };
    let bar = progress(cx, "copying", len);
    bar.set_position(offset);
    let started = std::time::Instant::now();
    let (call, input) = client.inside.put(name.to_string(), request);
    let sending = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut chunk).await {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    // A refusal shows in the answer, not here.
                    if input.send(Blob(chunk[..read].to_vec().into())).await.is_err() {
                        break Ok(());
                    }
                    bar.inc(read as u64);
                }
                Err(error) => break Err(unreadable(error)),
            }
        }?;
        drop(input);
        std::future::pending::<Result<std::convert::Infallible, CliError>>().await
    };
    let done = tokio::select! {
        done = call.no_deadline() => done?,
        failed = sending => match failed { Err(error) => return Err(error), Ok(never) => match never {} },
    };
    bar.finish_and_clear();
    report(cx, &from.display().to_string(), &format!("{name}:{path}"), done.len, offset, &checksum, started)
}

async fn get(cx: &Context, name: &InstanceName, from: String, to: PathBuf, replace: bool) -> Outcome {
    let target = match (to.is_dir(), Path::new(&from).file_name()) {
        (true, Some(file_name)) => to.join(file_name),
        _ => to,
    };
    if !replace && target.exists() {
        return Err(CliError::new(
            ExitKind::Conflict,
            format!("{} is there already; nothing was changed", target.display()),
        ));
    }
    let client = cx.client().await?;
    let info = client.ask(client.inside.stat(name.to_string(), from.clone())).await?;
    let partial = Partial::open(&target, name, &info).await?;
    let path = partial.path.clone();
    let outcome = receive(cx, &client, name, &from, partial, &target, info.len).await;
    outcome.map_err(|error| match std::fs::metadata(&path).map(|metadata| metadata.len()) {
        Ok(0) => {
            let _ = std::fs::remove_file(&path);
            error
        }
        Ok(kept) => error.and(format!("{} are kept; the same command goes on from there", bytes(kept))),
        Err(_) => error,
    })
}

/// What has arrived so far, beside the target, so that a reader sees the old file or the new one, whole. It is named after
/// what is copied, so that the same command finds it again.
struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: blake3::Hasher,
}

impl Partial {
    async fn open(target: &Path, name: &InstanceName, info: &FileInfo) -> Result<Self, CliError> {
        let source = format!("{name}:{} {} {}", info.name, info.len, info.modified_ms);
        let key = blake3::hash(source.as_bytes()).to_hex();
        let mut path = target.as_os_str().to_owned();
        path.push(format!(".partial-{}", &key[..16]));
        let path = PathBuf::from(path);
        let unwritable = |error: std::io::Error| CliError::failed(format!("write {}", path.display()), error);
        let file = open_own(&path).map_err(unwritable)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let message = format!("another `tombolo cp` is writing {}; nothing was changed", path.display());
            return Err(CliError::new(ExitKind::Conflict, message));
        }
        let mut file = File::from_std(file);
        let mut len = file.metadata().await.map_err(unwritable)?.len();
        if len > info.len {
            file.set_len(0).await.map_err(unwritable)?;
            len = 0;
        }
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut chunk).await.map_err(unwritable)? {
                0 => break,
                read => drop(hasher.update(&chunk[..read])),
            }
        }
        Ok(Self { path, file, len, hasher })
    }
}

/// Opens the file, or makes it, readable by nobody else until all of it is there. Whatever is not a plain file of ours (a link, say, that
/// somebody put there to have us write elsewhere) makes way.
fn open_own(path: &Path) -> std::io::Result<std::fs::File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = std::fs::File::options();
    options.read(true).write(true).custom_flags(flags.bits() as i32);
    let is_ours = |meta: &std::fs::Metadata| {
        meta.is_file() && meta.nlink() == 1 && meta.uid() == rustix::process::geteuid().as_raw()
    };
    match options.open(path) {
        Ok(file) if is_ours(&file.metadata()?) => return Ok(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Ok(_) | Err(_) => std::fs::remove_file(path)?,
    }
    options.create_new(true).mode(0o600).open(path)
}

async fn receive(
    cx: &Context,
    client: &Client,
    name: &InstanceName,
    from: &str,
    partial: Partial,
    target: &Path,
    len: u64,
) -> Outcome {
    let unwritable = |error: std::io::Error| CliError::failed(format!("write {}", target.display()), error);
    let Partial { path, mut file, len: offset, mut hasher } = partial;
    let bar = progress(cx, "copying", len);
    bar.set_position(offset);
    let started = std::time::Instant::now();
    let (call, mut out) = client.inside.get(name.to_string(), Get { path: from.to_owned(), offset });
    let call = call.no_deadline();
    while let Ok(Some(chunk)) = out.recv().await {
        hasher.update(&chunk.0);
        file.write_all(&chunk.0).await.map_err(unwritable)?;
        bar.inc(chunk.0.len() as u64);
    }
    file.flush().await.map_err(unwritable)?;
    let done = call.await?;
    let checksum = hasher.finalize();
    if *checksum.as_bytes() != done.blake3 {
        let _ = tokio::fs::remove_file(&path).await;
        let message = format!(
            "what arrived of {name}:{from} has another checksum than what is there, perhaps because it was written \
             meanwhile; nothing was written here, try again"
        );
        return Err(CliError::new(ExitKind::Failed, message));
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(done.mode & 0o777);
    file.set_permissions(mode).await.map_err(unwritable)?;
    file.sync_all().await.map_err(unwritable)?;
    tokio::fs::rename(&path, target).await.map_err(unwritable)?;
    bar.finish_and_clear();
    let (source, target) = (format!("{name}:{from}"), target.display().to_string());
    report(cx, &source, &target, done.len, offset, &checksum, started)
}

async fn hash(file: &mut File, bar: &ProgressBar) -> std::io::Result<blake3::Hash> {
    let (mut hasher, mut chunk) = (blake3::Hasher::new(), vec![0; CHUNK_BYTES]);
    loop {
        match file.read(&mut chunk).await? {
            0 => return Ok(hasher.finalize()),
            read => {
                hasher.update(&chunk[..read]);
                bar.inc(read as u64);
            }
        }
    }
}

fn progress(cx: &Context, verb: &'static str, len: u64) -> ProgressBar {
    if cx.output.quiet || cx.output.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{prefix:8} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style).with_prefix(verb)
}

fn report(
    cx: &Context,
    source: &str,
    target: &str,
    len: u64,
    resumed_at: u64,
    checksum: &blake3::Hash,
    started: std::time::Instant,
) -> Outcome {
    let seconds = started.elapsed().as_secs_f64();
    if cx.output.json {
        let document = json!({
            "source": source, "target": target, "bytes": len, "resumed_at": resumed_at,
            "blake3": checksum.to_hex().as_str(), "seconds": seconds,
        });
        cx.output.document("copied", &document)?;
    } else {
        let rate = (len.saturating_sub(resumed_at) as f64 / seconds.max(1e-9)) as u64;
        cx.output.note(format!("{source} -> {target}: {}, {}/s", bytes(len), bytes(rate)));
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_inside_are_told_from_paths_here() {
        assert_eq!(End::parse("web:/etc/x").unwrap(), End::Inside("web".parse().unwrap(), "/etc/x".into()));
        for here in ["/etc/x", "x", "./a:b", "C:/x"] {
            assert_eq!(End::parse(here).unwrap(), End::Here(here.into()));
        }
        assert!(End::parse("web:relative").is_err());
    }

    #[test]
    fn a_link_that_waits_under_the_name_of_a_partial_copy_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (precious, partial) = (dir.path().join("precious"), dir.path().join("partial"));
        std::fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, &partial).unwrap();
        let file = open_own(&partial).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        std::fs::write(&partial, "so far").unwrap();
        assert_eq!(open_own(&partial).unwrap().metadata().unwrap().len(), 6, "what is ours is gone on with");
    }
}
