//! The one task of an attachment that listens to its bell, and looks around by itself in case a bell was lost.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::doorbell::watch;
use crate::error::{Error, Result};
use crate::rhythm;
use crate::shm::client::Client;

pub(super) fn spawn(client: Weak<Client>, eventfd: OwnedFd, recheck: Duration) -> Result<JoinHandle<()>> {
    let bell = watch(eventfd).map_err(|e| Error::io("watching the bell of this process", e))?;
    Ok(tokio::spawn(run(client, bell, recheck)))
}

async fn run(client: Weak<Client>, bell: AsyncFd<OwnedFd>, recheck: Duration) {
    let Some(first_parked) = client.upgrade().map(|client| Arc::clone(&client.first_parked)) else { return };
    let mut found = Vec::new();
    loop {
        let Some(is_anyone_parked) = client.upgrade().map(|client| client.is_anyone_parked()) else { return };
        let by_timer = tokio::select! {
            () = rung(&bell) => false,
            () = tokio::time::sleep_until(rhythm::next(recheck)), if is_anyone_parked => true,
            // Nobody sleeps, so nobody needs a timer.
            () = first_parked.notified(), if !is_anyone_parked => continue,
        };
        let Some(client) = client.upgrade() else { return };
        client.look(by_timer, &mut found);
    }
}

/// Waits for the bell and silences it.
async fn rung(bell: &AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut guard) = bell.readable().await else { return std::future::pending().await };
        match rustix::io::read(bell.get_ref(), &mut [0; 8]) {
            Ok(_) => return,
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(_) => {}
        }
    }
}
