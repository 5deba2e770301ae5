//! fsck: it names what is wrong, changes nothing, and is not brought down by anything it reads.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Place, child, contents, playing, set_mode};
use kos_store::{
    Batch, Finding, Folder, Index, Ledger, Malformed, Migration, Report, Schema, Severity, Table, TableCheck,
    fsck,
};

const NAMES: Table<str, str> = Table::new("names");
const COUNTERS: Table<u64, u64> = Table::new("counters");
const SCHEMA: Schema = Schema { migrations: &[] };

/// Names must not be empty; counters may be anything that decodes.
fn checks() -> [TableCheck; 2] {
    let not_empty =
        |_, name: String| if name.is_empty() { Err(Malformed("empty".to_owned())) } else { Ok(()) };
    [NAMES.check(not_empty), COUNTERS.check(|_, _| Ok(()))]
}

/// Checks, and sees to it that not a byte has changed.
fn check(place: &Place) -> Report {
    let before = contents(&place.path());
    let report = fsck(place.path(), &SCHEMA, &checks());
    assert_eq!(contents(&place.path()), before);
    report
}

fn filled() -> Place {
    let place = Place::new();
    let folder = place.folder();
    let ledger = Ledger::open(&folder, &SCHEMA).unwrap();
    let (index, _) = Index::open(&folder, 1).unwrap();
    for n in 0..20 {
        let mut batch = Batch::new();
        batch.put(NAMES, &n.to_string(), &"name ".repeat(100)).put(COUNTERS, &n, &n);
        ledger.commit(batch).unwrap();
        index.put(COUNTERS, &n, &n).unwrap();
    }
    place
}

#[test]
fn a_sound_folder_has_no_findings() {
    let report = check(&filled());
    assert_eq!(report.findings, []);
    assert_eq!(report.worst(), None);
    assert_eq!(
        report.ledger_rows.into_iter().collect::<Vec<_>>(),
        [("counters".to_owned(), 20), ("names".to_owned(), 20)]
    );
}

#[test]
fn what_is_not_there_is_said() {
    let place = Place::new();
    assert!(matches!(fsck(place.path(), &SCHEMA, &[]).findings[..], [Finding::NoFolder { .. }]));
    assert!(!place.path().exists());
    fs::create_dir(place.path()).unwrap();
    set_mode(&place.path(), 0o700);
    assert_eq!(check(&place).findings, [Finding::LedgerMissing]);
}

#[test]
fn every_loose_mode_is_named() {
    let place = filled();
    fs::write(place.path().join("notes"), "mine").unwrap();
    set_mode(&place.path().join("notes"), 0o644);
    set_mode(&place.path().join("index"), 0o755);
    set_mode(&place.path(), 0o711);
    let findings = check(&place).findings;
    assert_eq!(findings.len(), 3, "{findings:?}");
    for (path, fix) in
        [(place.path(), "700"), (place.path().join("notes"), "600"), (place.path().join("index"), "700")]
    {
        let hint = format!("chmod {fix} '{}'", path.display());
        assert!(findings.iter().any(|finding| finding.to_string().contains(&hint)), "{hint} in {findings:?}");
    }
    assert!(findings.iter().all(|finding| finding.severity() == Severity::Error));
}

#[test]
fn a_folder_in_use_is_not_examined() {
    let place = filled();
    let folder = place.folder();
    let _ledger = Ledger::open(&folder, &SCHEMA).unwrap();
    assert_eq!(check(&place).findings, [Finding::InUse { pid: Some(std::process::id()) }]);
}

#[test]
fn a_ledger_that_was_not_closed_is_sound_all_the_same() {
    if let Some(path) = playing("die") {
        let ledger = Ledger::open(&Folder::open(path).unwrap(), &SCHEMA).unwrap();
        let mut batch = Batch::new();
        batch.put(COUNTERS, &1, &1);
        ledger.commit(batch).unwrap();
        std::process::abort();
    }
    let place = Place::new();
    let mut child = child("a_ledger_that_was_not_closed_is_sound_all_the_same", "die", &place.path());
    assert!(!child.output().unwrap().status.success());
    let report = check(&place);
    assert_eq!(report.findings, [Finding::LedgerNotClosed]);
    assert_eq!(report.worst(), Some(Severity::Note));
    assert_eq!(report.ledger_rows["counters"], 1);
}

#[test]
fn schema_versions_older_and_newer_are_told_apart() {
    const NEXT: Schema = Schema { migrations: &[Migration { what: "nothing", run: |_| Ok(()) }] };
    let place = filled();
    assert_eq!(fsck(place.path(), &NEXT, &checks()).findings, [Finding::SchemaOlder { found: 1, known: 2 }]);
    drop(Ledger::open(&place.folder(), &NEXT).unwrap());
    assert_eq!(check(&place).findings, [Finding::SchemaNewer { found: 2, known: 1 }]);
}

#[test]
fn rows_that_do_not_decode_or_are_refused_are_named() {
    let place = filled();
    let ledger = place.ledger();
    let mut batch = Batch::new();
    const RAW_COUNTERS: Table<u64, [u8]> = Table::new("counters");
    const STRANGE: Table<u64, [u8]> = Table::new("strange");
    batch.put(RAW_COUNTERS, &3, b"short").put(NAMES, "nameless", "").put(STRANGE, &1, b"");
    ledger.commit(batch).unwrap();
    drop(ledger);
    let findings = check(&place).findings;
    let named = |table: &str, key: &str, why: &str| Finding::RowMalformed {
        table: table.to_owned(),
        key: key.to_owned(),
        why: why.to_owned(),
    };
    let expected = [
        named("counters", "0000000000000003", "value of 5 bytes where 8 are due"),
        named("names", "6e616d656c6573730000", "empty"),
        Finding::TableUnknown { table: "strange".to_owned(), rows: 1 },
    ];
    assert_eq!(findings, expected);
    let ledger = place.ledger();
    let mut batch = Batch::new();
    for n in 100..150 {
        batch.put(RAW_COUNTERS, &n, b"short");
    }
    ledger.commit(batch).unwrap();
    drop(ledger);
    let findings = check(&place).findings;
    assert!(findings.contains(&Finding::RowsMalformed { table: "counters".to_owned(), rows: 51 }));
    assert_eq!(findings.len(), 10 + 1 + 1 + 1, "a flood is counted, not listed");
}

#[test]
fn damaged_and_set_aside_indexes_are_named() {
    let place = filled();
    fs::write(place.path().join("index/conf"), "not sled's").unwrap();
    let report = check(&place);
    assert!(matches!(report.findings[..], [Finding::IndexDamaged { .. }]), "{report:?}");
    assert_eq!(report.worst(), Some(Severity::Warning));
    drop(Index::open(&place.folder(), 1).unwrap());
    let set_aside = Finding::IndexSetAside { path: place.path().join("index.damaged-1") };
    assert_eq!(check(&place).findings, std::slice::from_ref(&set_aside));
    fs::write(place.path().join("index.closed"), "77").unwrap();
    let findings = check(&place).findings;
    assert!(
        matches!(&findings[..], [first, Finding::IndexDamaged { why }] if *first == set_aside && why.contains("lost rows"))
    );
    fs::write(place.path().join("index.suspect"), "").unwrap();
    set_mode(&place.path().join("index.suspect"), 0o600);
    assert!(matches!(check(&place).findings[..], [_, Finding::IndexDamaged { .. }]));
}

#[test]
fn a_damaged_ledger_is_found_or_harmless_wherever_it_is_damaged() {
    let place = filled();
    // Not what is tested here, and copying it takes most of the time.
    fs::remove_dir_all(place.path().join("index")).unwrap();
    let path = place.path().join("ledger.redb");
    let sound = fs::read(&path).unwrap();
    let sound_rows = check(&place).ledger_rows;
    let written: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let rounds = if std::env::var("CI_LONG").as_deref() == Ok("1") { 2000 } else { 200 };
    let (mut found, mut harmless) = (0, 0);
    for round in 0..rounds {
        let mut damaged = sound.clone();
        let at = written[(round * 7919) % written.len()];
        match round % 4 {
            0 => damaged.truncate(at),
            1 => damaged[at..].iter_mut().take(512).for_each(|byte| *byte = 0),
            _ => damaged[at] ^= 1 << (round % 8),
        }
        fs::write(&path, &damaged).unwrap();
        let report = check(&place);
        if report.findings.iter().any(|finding| matches!(finding, Finding::LedgerDamaged { .. })) {
            found += 1;
        } else {
            assert_eq!(
                report.ledger_rows, sound_rows,
                "round {round}, byte {at}: rows are missing without a word"
            );
            let ledger = place.ledger();
            let names: Vec<_> = ledger.range(NAMES, ..).unwrap().map(|row| row.unwrap().1).collect();
            assert!(
                names.len() == 20 && names.iter().all(|name| *name == "name ".repeat(100)),
                "round {round}"
            );
            drop(ledger);
            fs::write(&path, &damaged).unwrap();
            harmless += 1;
        }
        // Opening it for use must not panic either; a scan may find what opening does not look at.
        match Ledger::open(&place.folder(), &SCHEMA) {
            Ok(ledger) => {
                let _ = ledger.range(NAMES, ..).map(Iterator::count);
                let _ = ledger.read(COUNTERS, &7);
            }
            Err(error) => assert!(error.to_string().contains("ledger.redb"), "{error}"),
        }
    }
    println!("{found} found, {harmless} harmless");
    assert!(found > 0);
    fs::write(&path, b"").unwrap();
    assert!(
        matches!(check(&place).findings[..], [Finding::LedgerDamaged { .. }]),
        "an empty file is no new ledger"
    );
    assert!(Ledger::open(&place.folder(), &SCHEMA).is_err());
}
