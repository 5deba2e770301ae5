//! What a node costs: start, status, memory, flows. The node measured is a real process of this very program; its
//! peers live in the benchmark's process.

use super::{
    Figure, RUNS, Report, median,
    subject::{Listen, PATIENCE, Subject},
};
use anyhow::{Context, ensure};
use kos_shell::{NoApp, Options, Runtime};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Peers of the idle node.
const PEERS: usize = 20;
/// Of those, the ones that are linked before memory is read for the first time.
const FEW: usize = 4;
/// How long a node is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(5);
/// How long after the last link came the flows of a minute are read.
const MINUTE: Duration = Duration::from_secs(65);
/// Runs every figure of `kai bench node`.
///
/// # Errors
/// Whatever keeps nodes on loopback from starting or joining.
pub async fn run(folder: &Path, runs: usize) -> anyhow::Result<Report> {
    let mut figures = Vec::new();
    let mut subject = Subject::new(folder, "start", Listen::Quic)?;
    subject.up().await?;
    subject.down().await?;
    let mut starts = Vec::new();
    for _ in 0..runs {
        starts.push(subject.up().await?.as_secs_f64() * 1000.0);
        subject.down().await?;
    }
    figures.push(figure("start_ms", median(starts), "ms", "≤ 500"));

    subject.up().await?;
    let mut statuses = Vec::new();
    for _ in 0..runs.max(RUNS) {
        let begun = Instant::now();
        subject.json(&["status"]).await?;
        statuses.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    figures.push(figure("status_ms", median(statuses), "ms", "≤ 30"));
    subject.down().await?;

    let quic = idle(&folder.join("quic"), Listen::Quic, Flows::Counted).await?;
    let tcp = idle(&folder.join("tcp"), Listen::Tcp, Flows::NotCounted).await?;
    figures.push(figure("rss_idle_mb", quic.resident_mb, "MB", "≤ 40"));
    figures.push(figure("rss_per_link_kib_quic", quic.per_link_kib, "KiB", "≤ 110"));
    figures.push(figure("rss_per_link_kib_tcp", tcp.per_link_kib, "KiB", "≤ 70"));
    figures.push(figure("flows_per_min", quic.flows, "1/min", "≤ 10"));
    Ok(Report::new(figures))
}

fn figure(name: &str, value: f64, unit: &'static str, bar: &'static str) -> Figure {
    Figure { name: name.to_owned(), value, unit, peer: None, ratio: None, bar }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flows {
    Counted,
    NotCounted,
}

struct Idle {
    resident_mb: f64,
    per_link_kib: f64,
    flows: f64,
}

/// A node that knows all its peers, with a link to a few, then with one to each.
async fn idle(folder: &Path, listen: Listen, flows: Flows) -> anyhow::Result<Idle> {
    let mut subject = Subject::new(folder, "subject", listen)?;
    subject.up().await?;
    let code = subject.invitation(PEERS).await?;
    for number in 0..PEERS {
        let peer = peer(folder, number).await?;
        peer.join(&code, false).await?;
        peer.shutdown().await;
    }
    subject.down().await?;

    subject.up().await?;
    let mut peers = Vec::new();
    let mut few_kib = 0.0;
    for number in 0..PEERS {
        if number == FEW {
            // The first links bring code and tables into memory that all others share.
            subject.until("a few links", |status| status["links"].as_u64() >= Some(FEW as u64)).await?;
            tokio::time::sleep(SETTLE).await;
            few_kib = subject.resident_kib().await?;
        }
        peers.push(peer(folder, number).await?);
    }
    subject.until("a link with each peer", |status| status["links"].as_u64() >= Some(PEERS as u64)).await?;
    tokio::time::sleep(if flows == Flows::Counted { MINUTE } else { SETTLE }).await;
    let status = subject.json(&["status"]).await?;
    ensure!(status["links"].as_u64() == Some(PEERS as u64), "{} links of {PEERS}", status["links"]);
    let with_kib = subject.resident_kib().await?;
    for peer in &peers {
        peer.shutdown().await;
    }
    subject.down().await?;
    Ok(Idle {
        resident_mb: with_kib * 1024.0 / 1e6,
        per_link_kib: (with_kib - few_kib) / (PEERS - FEW) as f64,
        flows: status["flows_per_minute"].as_f64().context("a node tells its flows")?,
    })
}

/// A member in this process. Its folder is free again a moment after its last task has ended.
async fn peer(folder: &Path, number: usize) -> anyhow::Result<Runtime> {
    let begun = Instant::now();
    loop {
        let mut options = Options::new(folder.join(format!("peer-{number}")));
        options.name = Some(format!("peer-{number}"));
        options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse()?, "/ip4/127.0.0.1/tcp/0".parse()?]);
        options.mdns = false;
        options.upnp = false;
        options.kad = false;
        match Runtime::start(options, Arc::new(NoApp)).await {
            Ok(peer) => return Ok(peer),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
