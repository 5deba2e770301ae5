//! The index through its public face: rows, versions, and above all that damage never gets further than a rebuild.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::{Place, child, contents, playing, set_mode};
use kos_store::{Folder, Index, IndexError, IndexOpenError, Origin, SET_ASIDE_MAX, Table};

const NAMES: Table<str, u64> = Table::new("names");
const RECORDS: Table<(u8, u64), [u8]> = Table::new("records");

fn open(place: &Place) -> (Index, Origin) {
    Index::open(&place.folder(), 1).unwrap()
}

fn rebuilt(origin: &Origin) -> Option<&str> {
    match origin {
        Origin::Rebuilt { why, .. } => Some(why),
        Origin::Created | Origin::Kept | Origin::Recovered => None,
    }
}

#[test]
fn rows_are_read_back_also_after_reopening() {
    let place = Place::new();
    let (index, origin) = open(&place);
    assert_eq!(origin, Origin::Created);
    for n in [1, 256, 2, 300] {
        index.put(RECORDS, &(1, n), &n.to_be_bytes()).unwrap();
        index.put(RECORDS, &(2, n), b"").unwrap();
    }
    index.put(NAMES, "attic", &1).unwrap();
    index.put(NAMES, "attic", &2).unwrap();
    index.delete(RECORDS, &(1, 2)).unwrap();
    drop(index);
    let (index, origin) = open(&place);
    assert_eq!(origin, Origin::Kept);
    assert_eq!(index.get(NAMES, "attic").unwrap(), Some(2));
    assert_eq!(index.get(NAMES, "cellar").unwrap(), None);
    let keys =
        |rows: kos_store::IndexRows<(u8, u64), [u8], _>| rows.map(|row| row.unwrap().0).collect::<Vec<_>>();
    assert_eq!(keys(index.prefix(RECORDS, &1).unwrap()), [(1, 1), (1, 256), (1, 300)]);
    assert_eq!(keys(index.range(RECORDS, (1, 300)..=(2, 1)).unwrap()), [(1, 300), (2, 1)]);
    assert_eq!(keys(index.range(RECORDS, (2, 1)..(1, 1)).unwrap()), []);
    assert_eq!(index.range(RECORDS, ..).unwrap().next_back().unwrap().unwrap().0, (2, 300));
    index.clear(RECORDS).unwrap();
    index.flush().unwrap();
    assert_eq!(keys(index.range(RECORDS, ..).unwrap()), []);
    assert_eq!(index.get(NAMES, "attic").unwrap(), Some(2));
}

#[test]
fn a_row_of_another_type_is_an_error_and_not_a_panic() {
    let place = Place::new();
    let (index, _) = open(&place);
    index.put(NAMES, "a", &1).unwrap();
    const WRONG: Table<(u8, u64), str> = Table::new("names");
    assert!(matches!(
        index.range(WRONG, ..).unwrap().next(),
        Some(Err(IndexError::Malformed { table: "names", .. }))
    ));
}

#[test]
fn an_index_deleted_at_any_time_starts_empty() {
    let place = Place::new();
    let (index, _) = open(&place);
    index.put(NAMES, "a", &1).unwrap();
    drop(index);
    fs::remove_dir_all(place.path().join("index")).unwrap();
    let (index, origin) = open(&place);
    assert_eq!(origin, Origin::Created);
    assert_eq!(index.get(NAMES, "a").unwrap(), None);
    index.put(NAMES, "b", &2).unwrap();
    // Under a running process as well.
    fs::remove_dir_all(place.path().join("index")).unwrap();
    let _ = index.put(NAMES, "c", &3);
    let _ = index.flush();
    drop(index);
    assert_ne!(open(&place).1, Origin::Kept);
}

#[test]
fn an_index_of_another_version_is_replaced_and_not_kept() {
    let place = Place::new();
    let (index, _) = Index::open(&place.folder(), 7).unwrap();
    index.put(NAMES, "a", &1).unwrap();
    drop(index);
    for (version, expected) in [(8, "version 7"), (7, "version 8")] {
        let (index, origin) = Index::open(&place.folder(), version).unwrap();
        assert!(rebuilt(&origin).unwrap().contains(expected), "{origin:?}");
        assert!(matches!(origin, Origin::Rebuilt { set_aside: None, .. }));
        assert_eq!(index.get(NAMES, "a").unwrap(), None);
        drop(index);
        assert_eq!(Index::open(&place.folder(), version).unwrap().1, Origin::Kept);
    }
}

#[test]
fn an_index_whose_opening_never_ended_is_not_tried_again() {
    let place = Place::new();
    drop(open(&place));
    fs::write(place.path().join("index.suspect"), "").unwrap();
    set_mode(&place.path().join("index.suspect"), 0o600);
    assert!(rebuilt(&open(&place).1).unwrap().contains("did not end"));
    assert_eq!(open(&place).1, Origin::Kept);
}

#[test]
fn an_index_of_a_killed_process_is_recovered() {
    if let Some(path) = playing("die with an open index") {
        let (index, _) = Index::open(&Folder::open(path).unwrap(), 1).unwrap();
        index.put(NAMES, "flushed", &1).unwrap();
        index.flush().unwrap();
        std::process::abort();
    }
    let place = Place::new();
    let mut child =
        child("an_index_of_a_killed_process_is_recovered", "die with an open index", &place.path());
    assert!(!child.output().unwrap().status.success());
    let (index, origin) = open(&place);
    assert_eq!(origin, Origin::Recovered);
    assert_eq!(index.get(NAMES, "flushed").unwrap(), Some(1));
    drop(index);
    assert_eq!(open(&place).1, Origin::Kept);
}

#[test]
fn no_more_than_two_damaged_indexes_are_kept() {
    let place = Place::new();
    for round in 0..4 {
        assert_eq!(open(&place).1, if round == 0 { Origin::Created } else { Origin::Kept });
        fs::write(place.path().join("index/conf"), "not sled's").unwrap();
        let (_, origin) = open(&place);
        let Origin::Rebuilt { set_aside: Some(set_aside), .. } = origin else { panic!("{origin:?}") };
        assert!(set_aside.exists());
    }
    assert_eq!(
        set_asides(&place),
        [place.path().join("index.damaged-3"), place.path().join("index.damaged-4")]
    );
}

fn set_asides(place: &Place) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("index.damaged-"))
        .collect();
    found.sort();
    found
}

#[test]
fn a_loose_or_misplaced_index_is_refused_and_not_replaced() {
    let place = Place::new();
    drop(open(&place));
    set_mode(&place.path().join("index"), 0o755);
    let refused = Index::open(&place.folder(), 1).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("chmod 700"), "{refused}");
    let place = Place::new();
    place.folder();
    fs::write(place.path().join("index"), "a file").unwrap();
    assert!(matches!(Index::open(&place.folder(), 1), Err(IndexOpenError::File(_))));
    assert_eq!(fs::read_to_string(place.path().join("index")).unwrap(), "a file");
}

/// An index that was closed, as files relative to the data folder, and its rows.
struct Sample {
    files: BTreeMap<PathBuf, Vec<u8>>,
    rows: BTreeMap<(u8, u64), Vec<u8>>,
    /// Everything ever put, replaced or deleted since or not.
    put: BTreeSet<((u8, u64), Vec<u8>)>,
}

impl Sample {
    /// Writes rows in rounds, each in an index opened anew, so that sled leaves segments and snapshots behind.
    fn of(rounds: u64, rows_per_round: u64, value_bytes: usize) -> Self {
        let place = Place::new();
        let (mut rows, mut put) = (BTreeMap::new(), BTreeSet::new());
        for round in 0..rounds {
            let (index, origin) = open(&place);
            assert!(matches!(origin, Origin::Created | Origin::Kept));
            for n in 0..rows_per_round {
                let (key, value) = ((u8::try_from(n % 3).unwrap(), n), vec![(round + n) as u8; value_bytes]);
                index.put(RECORDS, &key, &value).unwrap();
                put.insert((key, value.clone()));
                rows.insert(key, value);
            }
            // Large values lie in files of their own.
            let (key, value) = ((9, round), vec![round as u8; 600_000]);
            index.put(RECORDS, &key, &value).unwrap();
            put.insert((key, value.clone()));
            rows.insert(key, value);
            for n in 0..rows_per_round / 10 {
                let key = (u8::try_from(n % 3).unwrap(), n);
                index.delete(RECORDS, &key).unwrap();
                rows.remove(&key);
            }
        }
        let root = place.path();
        let files = contents(&root)
            .into_iter()
            .map(|(path, (_, bytes))| (path.strip_prefix(&root).unwrap().to_owned(), bytes))
            .collect();
        Self { files, rows, put }
    }

    /// A place with this index, but for one file.
    fn place(&self, victim: &Path, damaged: &[u8]) -> Place {
        let place = Place::new();
        place.folder();
        for (path, bytes) in &self.files {
            let target = place.path().join(path);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::write(&target, if path == victim { damaged } else { bytes }).unwrap();
            set_mode(&target, 0o600);
        }
        set_mode(&place.path().join("index"), 0o700);
        place
    }

    /// Reads every row. Each must once have been put, or the index must say that it is damaged.
    fn check(&self, index: &Index) -> Result<Read, IndexError> {
        let read = index.range(RECORDS, ..)?.collect::<Result<BTreeMap<_, _>, _>>()?;
        for (key, value) in &read {
            assert!(self.put.contains(&(*key, value.clone())), "{key:?} has a value that was never put");
        }
        Ok(if read == self.rows { Read::Whole } else { Read::Stale })
    }
}

enum Read {
    Whole,
    Stale,
}

/// A small generator, so that a failure names its seed and nothing else.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    /// Cuts, flips or overwrites, half of the time where something is written.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let written: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        let at =
            if self.below(2) == 0 { self.below(bytes.len()) } else { written[self.below(written.len())] };
        let mut damaged = bytes.to_vec();
        match self.below(4) {
            0 => damaged.truncate(at),
            1 => damaged[at..].iter_mut().take(4096).for_each(|byte| *byte = self.below(256) as u8),
            2 => damaged[at..].iter_mut().take(4096).for_each(|byte| *byte = 0),
            _ => damaged[at] ^= 1 << self.below(8),
        }
        damaged
    }
}

fn survives_damage(sample: &Sample, seeds: std::ops::Range<u64>) {
    let (mut whole, mut stale, mut found_late, mut replaced) = (0, 0, 0, 0);
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        random.below(2);
        let paths: Vec<_> = sample.files.keys().collect();
        let victim = paths[random.below(paths.len())];
        let damaged = random.damage(&sample.files[victim]);
        let place = sample.place(victim, &damaged);
        let (index, origin) = open(&place);
        println!("seed {seed}: {} {origin:?}", victim.display());
        match origin {
            Origin::Created => panic!("it was there"),
            Origin::Kept | Origin::Recovered => match sample.check(&index) {
                Ok(Read::Whole) => whole += 1,
                Ok(Read::Stale) => stale += 1,
                Err(IndexError::Damaged { .. }) => {
                    found_late += 1;
                    let origin = index.rebuild().unwrap();
                    assert!(rebuilt(&origin).is_some());
                }
                Err(error) => panic!("{error}"),
            },
            Origin::Rebuilt { set_aside, .. } => {
                replaced += 1;
                assert!(set_aside.is_none_or(|path| path.exists()));
                assert_eq!(index.range(RECORDS, ..).unwrap().count(), 0);
            }
        }
        index.put(NAMES, "after", &seed).unwrap();
        drop(index);
        let (index, origin) = open(&place);
        assert!(matches!(origin, Origin::Kept), "{origin:?}");
        assert_eq!(index.get(NAMES, "after").unwrap(), Some(seed));
        assert!(set_asides(&place).len() <= SET_ASIDE_MAX);
    }
    println!(
        "{whole} unharmed, {stale} with rows of old, {found_late} found damaged when read, {replaced} rebuilt at opening"
    );
}

fn rounds() -> u64 {
    if std::env::var("CI_LONG").as_deref() == Ok("1") { 400 } else { 40 }
}

#[test]
fn a_small_index_survives_damage_anywhere() {
    survives_damage(&Sample::of(1, 300, 100), 0..rounds() * 2);
}

#[test]
fn an_index_of_many_segments_survives_damage_anywhere() {
    let sample = Sample::of(4, 3000, 700);
    let files: Vec<_> = sample.files.iter().map(|(path, bytes)| (path, bytes.len())).collect();
    println!("{files:?}");
    survives_damage(&sample, 1000..1000 + rounds());
}
