//! Shared memory between real kernels: two are booted by a control plane of their own, with this program in both.
//!
//! In `b` it is the peer. The suite is driven once from here, the primary kernel, and once from within `a`, so that the
//! doorbells pass through the primary.

use anyhow::{Context as _, Result, ensure};
use tombolo_tests::bed::Bed;
use tombolo_transport::Cid;

const GUEST_PROGRAM: &str = "/bin/conformance";
const GUEST_BROKER: &str = "/run/tombolo/broker.sock";

pub(crate) async fn run(spawner: &'static str, filter: &str) -> Result<()> {
    // The bed waits for other programs and does not yield.
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(in_bed(spawner, filter)))
}

async fn in_bed(spawner: &'static str, filter: &str) -> Result<()> {
    let bed = Bed::start(spawner).context("this needs a kernel image and static programs; see above")?;
    let program = std::env::current_exe()?;
    let file = format!("{}:{GUEST_PROGRAM}", program.display());
    let peer = ["--", GUEST_PROGRAM, "peer", "shm", GUEST_BROKER];
    let up = ["--memory", "160", "--restart", "never", "--file", &file];
    bed.must(&[&["up", "a"], &up[..]].concat());
    bed.must(&[&["up", "b"], &up[..], &peer[..]].concat());
    bed.must(&["policy", "allow", "a", "b"]);
    bed.must(&["policy", "allow", "b", "a"]);
    let cid = bed.view("b")["cid"].as_u64().context("b has no cid")?;

    println!("shm, this kernel and a spawned one");
    let host = super::between_shm(bed.dir().join("run/broker.sock"), Cid(u32::try_from(cid)?), filter).await;

    println!("shm, two spawned kernels");
    let cid = cid.to_string();
    let mut drive = vec!["exec", "a", "--", GUEST_PROGRAM, "between", "shm", GUEST_BROKER, &cid];
    if !filter.is_empty() {
        drive.extend(["--filter", filter]);
    }
    let said = bed.tombolo(&drive);
    print!("{}{}", said.stdout, said.stderr);
    bed.nothing_is_left();
    host?;
    ensure!(said.code == 0, "the suite did not pass between two spawned kernels");
    Ok(())
}
