//! What a commit costs in system calls, and what is left when its process is killed.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;

use common::{Place, child, child_under, playing, skipped, succeeded, works};
use kos_store::{Batch, Folder, Ledger, Schema, Table};

const TABLES: [Table<u64, [u8]>; 3] = [Table::new("one"), Table::new("two"), Table::new("three")];
const LAST: Table<str, u64> = Table::new("last");

fn batch(n: u64) -> Batch {
    let mut batch = Batch::new();
    for table in TABLES {
        batch.put(table, &n, &n.to_be_bytes().repeat(40)).put(LAST, table.name(), &n);
    }
    batch
}

fn open(path: &Path) -> Ledger {
    Ledger::open(&Folder::open(path).unwrap(), &Schema::default()).unwrap()
}

/// The calls that make anything durable, and those that tell the phases of the child apart in the same log.
const TRACED: &str =
    "trace=fdatasync,fsync,msync,sync_file_range,sync,syncfs,ftruncate,openat,unlink,unlinkat";
const ALONE: u64 = 40;
const GROUPED: u64 = 400;
const THREADS: u64 = 8;

/// Where the child leaves a note in its own trace: a file that is looked for and never there.
fn note(name: &str) {
    let _ = std::fs::File::open(format!("/note/{name}"));
}

fn play_commits(path: &Path) {
    let ledger = open(path);
    note("alone");
    for n in 0..ALONE {
        ledger.commit(batch(n)).unwrap();
    }
    note("queued");
    let queued: Vec<_> = (0..GROUPED).map(|n| ledger.commit_async(batch(n))).collect();
    for durable in queued {
        durable.wait().unwrap();
    }
    note("threads");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let ledger = &ledger;
            scope.spawn(move || {
                for n in 0..GROUPED / THREADS {
                    ledger.commit(batch(n * THREADS + thread)).unwrap();
                }
            });
        }
    });
    note("end");
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Calls {
    fdatasync: usize,
    /// redb syncs once more when it has made the file longer; when it has made it shorter, it does not.
    ftruncate: usize,
    others: Vec<String>,
}

/// The syncing calls between two notes.
fn calls(log: &str, from: &str, to: &str) -> Calls {
    let phase =
        log.split(&format!("/note/{from}")).nth(1).unwrap().split(&format!("/note/{to}")).next().unwrap();
    let mut calls = Calls::default();
    // A call interrupted by another thread's is logged twice; its first line holds its name and bracket.
    for line in phase.lines().skip(1).filter(|line| !line.contains("resumed>")) {
        match line.split_whitespace().find_map(|word| word.split_once('(')).map(|call| call.0) {
            Some("fdatasync") => calls.fdatasync += 1,
            Some("ftruncate") => calls.ftruncate += 1,
            Some("openat" | "unlink" | "unlinkat") | None => {}
            Some(other) => calls.others.push(other.to_owned()),
        }
    }
    calls
}

#[test]
fn a_commit_is_one_fdatasync_and_commits_at_the_same_time_share_it() {
    const TEST: &str = "a_commit_is_one_fdatasync_and_commits_at_the_same_time_share_it";
    if let Some(path) = playing("commits") {
        return play_commits(&path);
    }
    if !works("strace", &["-f", "-o", "/dev/null", "true"]) {
        return skipped(TEST, "strace");
    }
    let place = Place::new();
    let log_path = place.path().with_extension("strace");
    let args = ["-f", "-e", TRACED, "-o", log_path.to_str().unwrap()];
    succeeded(child_under("strace", &args, TEST, "commits", &place.path()).output().unwrap());
    let log = std::fs::read_to_string(&log_path).unwrap();

    let alone = calls(&log, "alone", "queued");
    println!("{ALONE} commits of {} tables, one after the other: {alone:?}", TABLES.len() + 1);
    let commits = usize::try_from(ALONE).unwrap();
    assert!((commits..=commits + alone.ftruncate).contains(&alone.fdatasync) && alone.ftruncate < 5);
    let queued = calls(&log, "queued", "threads");
    println!("{GROUPED} commits queued at once: {queued:?}");
    assert!(queued.fdatasync - queued.ftruncate <= 40, "queued commits share their syncs");
    let threads = calls(&log, "threads", "end");
    println!("{GROUPED} commits by {THREADS} threads: {threads:?}");
    assert!(threads.fdatasync - threads.ftruncate <= usize::try_from(GROUPED / 2).unwrap());
    for calls in [alone, queued, threads] {
        assert!(calls.fdatasync > 0 && calls.others.is_empty(), "{calls:?}");
    }
}

/// Commits batches for ever, and says the number of each once it is acknowledged.
fn play_acknowledge(path: &Path) {
    let ledger = open(path);
    let first = ledger.read(LAST, "one").unwrap().map_or(0, |last| last + 1);
    let mut out = std::io::stdout();
    for group in (first..).step_by(3) {
        // One alone, then two that share a sync.
        ledger.commit(batch(group)).unwrap();
        writeln!(out, "acknowledged {group}").unwrap();
        let pair = [group + 1, group + 2].map(|n| (n, ledger.commit_async(batch(n))));
        for (n, durable) in pair {
            durable.wait().unwrap();
            writeln!(out, "acknowledged {n}").unwrap();
        }
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_process_has_lost_nothing_that_it_acknowledged() {
    const TEST: &str = "a_killed_process_has_lost_nothing_that_it_acknowledged";
    if let Some(path) = playing("acknowledge") {
        return play_acknowledge(&path);
    }
    let rounds = if std::env::var("CI_LONG").as_deref() == Ok("1") { 200 } else { 20 };
    let place = Place::new();
    let (mut last, mut unasked) = (None, 0);
    for round in 0..rounds {
        let mut child = child(TEST, "acknowledge", &place.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        // Killed at once, or after a number of acknowledgements that differs from round to round.
        let wait_for = (round * 7) % 31;
        let mut acknowledged = last;
        let mut take = |line: &str| {
            if let Some(n) = line.trim().strip_prefix("acknowledged ") {
                acknowledged = Some(n.parse::<u64>().unwrap());
            }
        };
        let mut line = String::new();
        let mut seen = 0;
        while seen < wait_for && lines.read_line(&mut line).unwrap() > 0 {
            seen += u64::from(line.starts_with("acknowledged"));
            take(&line);
            line.clear();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts as well; the last line may be cut short.
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        rest.split_inclusive('\n').filter(|line| line.ends_with('\n')).for_each(&mut take);

        let ledger = open(&place.path());
        let found = whole_batches(&ledger);
        assert!(found >= acknowledged, "round {round}: {found:?} where {acknowledged:?} was acknowledged");
        unasked += u64::from(found > acknowledged);
        last = found;
    }
    println!(
        "{rounds} kills; {last:?} was the last batch; {unasked} times one was there before it was acknowledged"
    );
    assert!(last.is_some());
}

/// The number of the last batch. Panics if any is there in part, or one before it is missing.
fn whole_batches(ledger: &Ledger) -> Option<u64> {
    let lasts: BTreeSet<_> = TABLES.iter().map(|table| ledger.read(LAST, table.name()).unwrap()).collect();
    assert_eq!(lasts.len(), 1, "a torn batch: {lasts:?}");
    let last = lasts.into_iter().next().flatten();
    for table in TABLES {
        let rows: Vec<_> = ledger.range(table, ..).unwrap().map(Result::unwrap).collect();
        assert!(rows.iter().map(|row| row.0).eq(0..last.map_or(0, |last| last + 1)));
        assert!(rows.iter().all(|(n, value)| *value == n.to_be_bytes().repeat(40)));
    }
    last
}
