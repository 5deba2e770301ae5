//! Schema versions: older ledgers are migrated, newer ones refused untouched.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Place, child, contents, playing};
use kos_store::{
    Batch, Folder, Health, Ledger, Malformed, Migrating, Migration, MigrationError, OpenError, Schema, Table,
};

/// Version 1: a member's name under its number.
const NAMES_V1: Table<u64, str> = Table::new("names");
/// Version 2: names in lower case, in a table of another name.
const NAMES_V2: Table<u64, str> = Table::new("petnames");
/// Version 3: and the other way round.
const BY_NAME_V3: Table<str, u64> = Table::new("by_name");

fn lower(ledger: &mut Migrating<'_>) -> Result<(), MigrationError> {
    for (id, name) in ledger.rows(NAMES_V1)? {
        ledger.put(NAMES_V2, &id, &name.to_lowercase())?;
    }
    ledger.remove_table(NAMES_V1)
}

fn invert(ledger: &mut Migrating<'_>) -> Result<(), MigrationError> {
    for (id, name) in ledger.rows(NAMES_V2)? {
        if name == "forbidden" {
            return Err(MigrationError::Refused(format!("{id} has a forbidden name")));
        }
        ledger.put(BY_NAME_V3, &name, &id)?;
    }
    Ok(())
}

const LOWER: Migration = Migration { what: "names in lower case", run: lower };
const INVERT: Migration = Migration { what: "ids by name", run: invert };

const V1: Schema = Schema { migrations: &[] };
const V2: Schema = Schema { migrations: &[LOWER] };
const V3: Schema = Schema { migrations: &[LOWER, INVERT] };

fn open(place: &Place, schema: &Schema) -> Result<Ledger, OpenError> {
    Ledger::open(&place.folder(), schema)
}

fn names(rows: &[(u64, &str)]) -> Batch {
    let mut batch = Batch::new();
    for (id, name) in rows {
        batch.put(NAMES_V1, id, name);
    }
    batch
}

#[test]
fn an_older_ledger_is_migrated_through_every_version_between() {
    let place = Place::new();
    open(&place, &V1).unwrap().commit(names(&[(1, "Attic"), (2, "CELLAR")])).unwrap();
    let ledger = open(&place, &V3).unwrap();
    assert_eq!(ledger.range(NAMES_V1, ..).unwrap().count(), 0);
    assert_eq!(ledger.read(NAMES_V2, &2).unwrap().as_deref(), Some("cellar"));
    assert_eq!(ledger.read(BY_NAME_V3, "attic").unwrap(), Some(1));
    assert_eq!(ledger.health(), Health::Writable);
    drop(ledger);
    // Once only: a second run of the first migration would remove what has been written since.
    let ledger = open(&place, &V3).unwrap();
    ledger.commit(names(&[(3, "Shed")])).unwrap();
    drop(ledger);
    assert_eq!(open(&place, &V3).unwrap().read(NAMES_V1, &3).unwrap().as_deref(), Some("Shed"));
}

#[test]
fn migrating_step_by_step_comes_to_the_same() {
    let place = Place::new();
    open(&place, &V1).unwrap().commit(names(&[(1, "Attic")])).unwrap();
    drop(open(&place, &V2).unwrap());
    let ledger = open(&place, &V3).unwrap();
    assert_eq!(ledger.read(BY_NAME_V3, "attic").unwrap(), Some(1));
}

#[test]
fn a_new_ledger_has_the_newest_version_and_runs_no_migration() {
    let place = Place::new();
    const FAILING: Migration =
        Migration { what: "never run", run: |_| Err(MigrationError::Refused("run".to_owned())) };
    const SCHEMA: Schema = Schema { migrations: &[FAILING] };
    assert_eq!(SCHEMA.version(), 2);
    drop(open(&place, &SCHEMA).unwrap());
    drop(open(&place, &SCHEMA).unwrap());
    assert!(matches!(open(&place, &V1), Err(OpenError::Newer { found: 2, known: 1, .. })));
}

#[test]
fn a_failed_migration_leaves_every_row_as_it_was() {
    let place = Place::new();
    open(&place, &V1).unwrap().commit(names(&[(1, "Attic"), (2, "FORBIDDEN")])).unwrap();
    let Err(error) = open(&place, &V3) else { panic!("it must fail") };
    assert_eq!(
        error.to_string(),
        "migration to schema version 3 (ids by name) failed: 2 has a forbidden name"
    );
    let ledger = open(&place, &V1).unwrap();
    assert_eq!(ledger.read(NAMES_V1, &1).unwrap().as_deref(), Some("Attic"));
    assert_eq!(ledger.range(NAMES_V2, ..).unwrap().count(), 0);
    const AS_NUMBERS: Table<u64, u64> = Table::new("names");
    const WRONG: Migration =
        Migration { what: "reads what is not there", run: |ledger| ledger.rows(AS_NUMBERS).map(|_| ()) };
    drop(ledger);
    let refused = open(&place, &Schema { migrations: &[WRONG] }).map(|_| ());
    let Err(OpenError::Migration { to: 2, source, .. }) = refused else { panic!("{refused:?}") };
    assert!(matches!(source, MigrationError::Malformed { table: "names", source: Malformed(_) }));
}

#[test]
fn a_newer_folder_is_refused_untouched() {
    let place = Place::new();
    let ledger = open(&place, &V3).unwrap();
    ledger.commit(names(&[(1, "Attic")])).unwrap();
    drop(ledger);
    refused_untouched(&place);
}

#[test]
fn a_newer_folder_of_a_killed_process_is_refused_untouched() {
    const TEST: &str = "a_newer_folder_of_a_killed_process_is_refused_untouched";
    if let Some(path) = playing("die with an open ledger") {
        let ledger = Ledger::open(&Folder::open(path).unwrap(), &V3).unwrap();
        ledger.commit(names(&[(1, "Attic")])).unwrap();
        std::process::abort();
    }
    let place = Place::new();
    assert!(!child(TEST, "die with an open ledger", &place.path()).output().unwrap().status.success());
    // Opening it would mean repairing it, which writes.
    refused_untouched(&place);
}

fn refused_untouched(place: &Place) {
    let before = contents(&place.path());
    for schema in [V1, V2] {
        let Err(error) = open(place, &schema) else { panic!("it must be refused") };
        let text = error.to_string();
        assert!(
            text.contains(&format!("schema version 3, this program knows up to {}", schema.version())),
            "{text}"
        );
        assert!(text.contains("hint: use a newer version"), "{text}");
        assert_eq!(contents(&place.path()), before, "not a byte, not a mode, not a file has changed");
    }
    let ledger = open(place, &V3).unwrap();
    assert_eq!(ledger.read(NAMES_V1, &1).unwrap().as_deref(), Some("Attic"));
}
