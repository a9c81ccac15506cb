//! The service [`Files`]: streams on one side, a thread for blocking file work on the other.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tombolo_rpc::{Blob, Ctx, Receiver, Sender};

use super::look;
use super::path::checked_file;
use super::put::{PutFile, PutLocks, partial_len, partial_path};
use crate::api::files::{FileError, FileInfo, Files, Get, GetDone, Put, PutDone};
use crate::state::Lifecycle;

/// Pieces between the stream and the thread: enough that neither waits for the other all the time.
const PIECES: usize = 2;
/// Puts and gets at a time: each holds a thread and about a MiB, also while its caller does nothing, and the smallest
/// kernel has 64 MiB.
const TRANSFERS_MAX: usize = 16;

/// Serves [`Files`].
#[derive(Clone, Debug)]
pub struct FilesService {
    lifecycle: Lifecycle,
    locks: PutLocks,
    transfers: Arc<Semaphore>,
}

impl FilesService {
    /// Serves the files of this kernel.
    pub fn new(lifecycle: Lifecycle) -> Self {
        Self { lifecycle, locks: PutLocks::default(), transfers: Arc::new(Semaphore::new(TRANSFERS_MAX)) }
    }

    fn transfer(&self, path: &str) -> Result<OwnedSemaphorePermit, FileError> {
        let too_many = |_| FileError::TooMany { path: path.to_owned(), limit: TRANSFERS_MAX as u32 };
        Arc::clone(&self.transfers).try_acquire_owned().map_err(too_many)
    }

    fn accepts_work(&self) -> Result<(), FileError> {
        self.lifecycle.accepts_work().map_err(|state| FileError::NotAccepting { state })
    }
}

impl Files for FilesService {
    async fn put(&self, _cx: &Ctx, request: Put, mut input: Receiver<Blob>) -> Result<PutDone, FileError> {
        self.accepts_work()?;
        let transfer = self.transfer(&request.path)?;
        let locks = self.locks.clone();
        let (pieces, mut inbox) = mpsc::channel::<Blob>(PIECES);
        let path = request.path.clone();
        let writer = blocking(&path, "writing", move || {
            let _transfer = transfer;
            let mut put = PutFile::begin(request, &locks)?;
            while let Some(piece) = inbox.blocking_recv() {
                put.write(&piece)?;
            }
            // If the caller went away early, this says so to nobody and keeps the partial file.
            put.finish()
        });
        let feed = async move {
            while let Ok(Some(piece)) = input.recv().await {
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
        };
        // The writer ends early when it fails: then nothing more need come.
        tokio::pin!(writer);
        tokio::select! {
            biased;
            done = &mut writer => return done,
            () = feed => {}
        }
        writer.await
    }

    async fn partial(&self, _cx: &Ctx, path: String, resume_key: String) -> Result<u64, FileError> {
        let target = checked_file(&path)?;
        let partial = partial_path(&target, &resume_key)?;
        blocking(&path, "looking at", move || partial_len(&partial)).await
    }

    async fn get(&self, _cx: &Ctx, request: Get, out: Sender<Blob>) -> Result<GetDone, FileError> {
        let transfer = self.transfer(&request.path)?;
        let (pieces, mut inbox) = mpsc::channel::<Vec<u8>>(PIECES);
        let path = request.path.clone();
        let reader = blocking(&path, "reading", move || {
            let _transfer = transfer;
            look::read_file(&request.path, request.offset, |piece| pieces.blocking_send(piece).is_ok())
        });
        let send = async {
            while let Some(piece) = inbox.recv().await {
                if out.send(Blob::from(piece)).await.is_err() {
                    // Dropping the inbox tells the reader.
                    inbox.close();
                    break;
                }
            }
        };
        let (done, ()) = tokio::join!(reader, send);
        done?.ok_or_else(|| FileError::System {
            attempt: "sending".to_owned(),
            path,
            reason: "the caller stopped reading".to_owned(),
        })
    }

    async fn stat(&self, _cx: &Ctx, path: String) -> Result<FileInfo, FileError> {
        blocking(&path.clone(), "looking at", move || look::stat(&path)).await
    }

    async fn list(&self, _cx: &Ctx, path: String, out: Sender<FileInfo>) -> Result<u64, FileError> {
        let infos = blocking(&path.clone(), "listing", move || look::list(&path)).await?;
        let count = infos.len() as u64;
        for info in infos {
            if out.send(info).await.is_err() {
                break;
            }
        }
        Ok(count)
    }

    async fn checksum(&self, _cx: &Ctx, path: String) -> Result<GetDone, FileError> {
        blocking(&path.clone(), "reading", move || look::checksum(&path)).await
    }

    async fn make_directory(&self, _cx: &Ctx, path: String, mode: u32) -> Result<(), FileError> {
        self.accepts_work()?;
        blocking(&path.clone(), "making the directory", move || look::make_directory(&path, mode)).await
    }

    async fn remove(&self, _cx: &Ctx, path: String) -> Result<(), FileError> {
        self.accepts_work()?;
        blocking(&path.clone(), "removing", move || look::remove(&path)).await
    }
}

/// Runs `work` on a thread where it may block.
async fn blocking<T: Send + 'static>(
    path: &str,
    attempt: &str,
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(FileError::System {
            attempt: attempt.to_owned(),
            path: path.to_owned(),
            reason: format!("the thread for it failed: {error}"),
        }),
    }
}
