//! `kai bench directory`: the directory at the size it is made for.

use super::{Figure, Report};
use anyhow::{Context, ensure};
use kos_directory::{
    Authors, Claim, Directory, Entry, Query, Source,
    reconcile::{Initiator, Set, respond},
};
use kos_governance::act::Role;
use kos_protocol::{
    id::{FederationId, MemberId},
    key::PublicKey,
    time::Timestamp,
};
use kos_shell::{Extra, InviteOptions, NoApp, Options, Runtime};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Records of each author.
const EACH: usize = 200;
/// Queries of each kind.
const QUERIES: usize = 200;
const FEDERATION: FederationId = FederationId::from_bytes([9; 32]);
/// A guard against hanging.
const PATIENCE: Duration = Duration::from_secs(300);

/// Members that exist here only.
struct Everybody(BTreeMap<MemberId, PublicKey>);

impl Authors for Everybody {
    fn key_of(&self, member: &MemberId, _: u64) -> Option<PublicKey> {
        self.0.get(member).copied()
    }
    fn is_author(&self, member: &MemberId) -> bool {
        self.0.contains_key(member)
    }
}

fn figure(name: &str, value: f64, unit: &'static str, bar: &'static str) -> Figure {
    Figure { name: name.to_owned(), value, unit, peer: None, ratio: None, bar }
}

fn now() -> Timestamp {
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    Timestamp { monotonic_ms: 0, wall_ms }
}

fn resident_mb() -> anyhow::Result<f64> {
    let bytes = crate::os::resident_bytes().context("the system tells the memory of a process")?;
    Ok(bytes as f64 / 1e6)
}

/// Bytes the loopback interface has carried, packets and acknowledgements of everybody included.
fn loopback_bytes() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/dev")?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("a loopback interface")?;
    Ok(line.split_whitespace().next().context("its bytes")?.parse()?)
}

/// Runs every figure of `kai bench directory`.
///
/// # Errors
/// Whatever keeps two nodes on loopback from talking.
pub async fn run(folder: &Path, records: usize) -> anyhow::Result<Report> {
    let authors = records.div_ceil(EACH);
    let mut figures = core(authors)?;
    figures.extend(join(folder, authors).await?);
    Ok(Report::new(figures))
}

/// The core by itself.
fn core(authors: usize) -> anyhow::Result<Vec<Figure>> {
    let now = now();
    let extras: Vec<Extra> = (0..authors).map(Extra::numbered).collect();
    let everybody = Everybody(extras.iter().map(|extra| (extra.id(), extra.key())).collect());
    // First, while the process has freed nothing that it could use again.
    let before_mb = resident_mb()?;
    let mut directory = Directory::new(FEDERATION);
    for (number, extra) in extras.iter().enumerate() {
        for record in 0..EACH {
            let time_ms = now.wall_ms - (EACH - record) as u64;
            let record = extra.agent(FEDERATION, number * EACH + record, time_ms)?;
            let kind = kos_directory::AgentRecord::KIND;
            directory.merge(now, Source::Own, kind, record.bytes(), &everybody)?;
        }
    }
    let memory_mb = resident_mb()? - before_mb;

    let mut claims = Vec::new();
    for (number, extra) in extras.iter().enumerate() {
        for record in 0..EACH {
            let time_ms = now.wall_ms - (EACH - record) as u64;
            let record = extra.agent(FEDERATION, number * EACH + record, time_ms)?;
            claims.push((
                Claim::parse(FEDERATION, kos_directory::AgentRecord::KIND, record.bytes())?,
                extra.key(),
            ));
        }
    }
    let bytes: usize = claims.iter().map(|(claim, _)| claim.bytes().len()).sum();
    let count = claims.len();

    // As the shell does: on as many threads as there are cores.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = count.div_ceil(threads);
    let begun = Instant::now();
    let verified: Vec<_> = std::thread::scope(|scope| {
        let parts: Vec<Vec<_>> = claims.chunks(share).map(<[_]>::to_vec).collect();
        let verify = |part: Vec<(Claim, PublicKey)>| {
            part.into_iter().map(|(claim, key)| claim.verify(&key)).collect::<Result<Vec<_>, _>>()
        };
        let running: Vec<_> = parts.into_iter().map(|part| scope.spawn(move || verify(part))).collect();
        running.into_iter().map(|part| part.join().expect("verifying does not panic")).collect()
    });
    let verify_s = begun.elapsed().as_secs_f64();
    let verified = verified.into_iter().collect::<Result<Vec<_>, _>>()?;
    let records: Vec<Arc<_>> = verified.iter().flatten().map(|verified| verified.record().clone()).collect();
    let set = |names: &[Arc<kos_directory::Record>]| {
        Set::new(names.iter().map(|record| (record.time_ms(), *record.id().as_bytes())).collect())
    };
    let (all, older) = (set(&records), set(&newest_left_out(&records, 100)));
    drop((claims, verified, records));

    let (identical_bytes, identical_rounds, _) = reconcile(&all, &all)?;
    let (newest_bytes, newest_rounds, found) = reconcile(&older, &all)?;
    ensure!(identical_rounds == 1 && found == 100, "{identical_rounds} rounds, {found} found of 100");
    let per_100k = 100_000.0 / count as f64;
    let own = bytes as f64 / count as f64;
    eprintln!("{count} records of {own:.0} bytes; the newest 100 took {newest_rounds} rounds");
    Ok(vec![
        figure("verify_per_second", count as f64 / verify_s, "1/s", ""),
        figure("query_p99_ms", query_p99_ms(&directory)?, "ms", "≤ 5"),
        figure("reconcile_identical_bytes", identical_bytes as f64, "bytes", "≤ 1024"),
        figure("reconcile_newest100_bytes_per_difference", newest_bytes as f64 / 100.0, "bytes", "≤ 100"),
        figure("memory_mb_100k", memory_mb * per_100k, "MB", "≤ 150"),
    ])
}

fn newest_left_out(records: &[Arc<kos_directory::Record>], count: usize) -> Vec<Arc<kos_directory::Record>> {
    let mut records = records.to_vec();
    records.sort_by_key(|record| (record.time_ms(), record.id()));
    records.truncate(records.len() - count);
    records
}

/// Bytes of both directions, rounds, and how many names the first one lacks.
fn reconcile(ours: &Set, theirs: &Set) -> anyhow::Result<(usize, usize, usize)> {
    let (mut initiator, first) = Initiator::new(ours.clone());
    let (mut message, mut bytes, mut rounds, mut found) = (Some(first), 0, 0, 0);
    while let Some(asked) = message {
        let answer = respond(theirs, &asked)?;
        bytes += asked.len() + answer.len();
        rounds += 1;
        let step = initiator.step(&answer)?;
        found += step.need.len();
        message = step.message;
    }
    Ok((bytes, rounds, found))
}

/// The 99th percentile over queries narrow and broad, one after the other.
fn query_p99_ms(directory: &Directory) -> anyhow::Result<f64> {
    let texts = [
        "class:kBridge",
        "cap:http@^1.2",
        "cap:http@^2 class:kMemory",
        "notes",
        "gard",
        "photos house",
        "house 77",
        "class:kExecutor weather cap:http",
        "kind:agent",
        "",
    ];
    let mut took_ms = Vec::new();
    for turn in 0..QUERIES {
        for text in texts {
            let query = Query::parse(text, |_| None)?.page(turn % 5 * 20, 20);
            let begun = Instant::now();
            let hits = directory.find(&query);
            took_ms.push(begun.elapsed().as_secs_f64() * 1_000.0);
            ensure!(hits.total > 0, "`{text}` found nothing");
        }
    }
    took_ms.sort_by(f64::total_cmp);
    Ok(took_ms[took_ms.len() * 99 / 100])
}

async fn node(folder: &Path, name: &str) -> anyhow::Result<Runtime> {
    let begun = Instant::now();
    loop {
        let mut options = Options::new(folder.join(name));
        options.name = Some(name.to_owned());
        options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse()?]);
        (options.mdns, options.upnp, options.kad) = (false, false, false);
        match Runtime::start(options, Arc::new(NoApp)).await {
            Ok(runtime) => return Ok(runtime),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
            // The folder is free again a moment after the last task of the node before has ended.
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

fn total(runtime: &Runtime, id: &FederationId) -> usize {
    runtime.find(id, "kind:agent", 0, 1).and_then(Result::ok).map_or(0, |found| found.total)
}

/// A node joins a federation that has all the records, stops, and starts again.
async fn join(folder: &Path, authors: usize) -> anyhow::Result<Vec<Figure>> {
    let count = authors * EACH;
    let steward = node(folder, "steward").await?;
    let id = steward.me().federation;
    let bytes = steward.fill(&id, authors, EACH).await?;
    ensure!(total(&steward, &id) == count, "the steward has {} records of {count}", total(&steward, &id));
    let options =
        InviteOptions { role: Role::Member, uses: 1, ttl_ms: 600_000, until_ms: None, lan: true, note: None };
    let invitation = steward.invite(&id, options).await?;
    let joiner = node(folder, "joiner").await?;
    let before = loopback_bytes()?;
    let begun = Instant::now();
    joiner.join(&invitation.code, false).await?;
    while total(&joiner, &id) < count {
        ensure!(begun.elapsed() < PATIENCE, "{} records of {count} came", total(&joiner, &id));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let join_s = begun.elapsed().as_secs_f64();
    let moved = loopback_bytes()? - before;
    joiner.shutdown().await;
    drop(joiner);
    let folder_free = Instant::now();
    // Writes of the index end behind the node; the next start waits for the folder.
    while folder_free.elapsed() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let begun = Instant::now();
    let joiner = node(folder, "joiner").await?;
    ensure!(total(&joiner, &id) == count, "{} records of {count} were there again", total(&joiner, &id));
    let start_ms = begun.elapsed().as_secs_f64() * 1_000.0;
    joiner.shutdown().await;
    steward.shutdown().await;
    Ok(vec![
        figure("join_bytes_ratio", moved as f64 / bytes as f64, "", "≤ 1.15"),
        figure("join_seconds", join_s, "s", "≤ 10"),
        figure("start_ms_100k", start_ms * 100_000.0 / count as f64, "ms", "≤ 1000"),
    ])
}
