//! The data folder: one holder, private, and clear words when it cannot be used.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, child, child_under, contents, playing, set_mode, skipped, succeeded, works};
use kos_store::{
    Batch, CommitError, FREE_RESERVE_BYTES, FileError, Folder, FolderError, Health, Index, IndexError,
    IndexOpenError, Ledger, OpenError, Schema, Table, fsck,
};

const ROWS: Table<u64, [u8]> = Table::new("rows");

fn put(n: u64, bytes: usize) -> Batch {
    let mut batch = Batch::new();
    batch.put(ROWS, &n, &vec![n as u8; bytes]);
    batch
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn folder_and_files_are_created_private() {
    let place = Place::new();
    let folder = place.folder();
    let ledger = Ledger::open(&folder, &Schema::default()).unwrap();
    let (index, _) = Index::open(&folder, 1).unwrap();
    folder.write_file("key", b"secret").unwrap();
    drop((ledger, index));
    assert_eq!(mode(&place.path()), 0o700);
    assert_eq!(mode(&place.path().join("index")), 0o700);
    for file in ["lock", "ledger.redb", "key", "index.closed"] {
        assert_eq!(mode(&place.path().join(file)), 0o600, "{file}");
    }
}

#[test]
fn folders_above_are_created_too() {
    let place = Place::new();
    drop(Folder::open(place.path().join("deep/deeper")).unwrap());
    assert_eq!(mode(&place.path().join("deep")), 0o700);
}

#[test]
fn a_file_is_replaced_whole_and_read_back() {
    let place = Place::new();
    let folder = place.folder();
    assert_eq!(folder.read_file("key", 10).unwrap(), None);
    folder.write_file("key", b"first").unwrap();
    fs::write(place.path().join("key.new"), "left by a crash").unwrap();
    folder.write_file("key", b"second").unwrap();
    assert_eq!(folder.read_file("key", 10).unwrap().as_deref(), Some(&b"second"[..]));
    assert!(!place.path().join("key.new").exists());
    assert!(matches!(
        folder.read_file("key", 5),
        Err(FileError::TooLarge { size_bytes: 6, limit_bytes: 5, .. })
    ));
}

#[test]
fn a_loose_folder_or_file_is_refused_with_the_command_that_mends_it() {
    let place = Place::new();
    let folder = place.folder();
    drop(Ledger::open(&folder, &Schema::default()).unwrap());
    folder.write_file("key", b"secret").unwrap();
    let says = |error: &dyn std::error::Error, file: &Path, fix: &str| {
        let text = error.to_string();
        assert!(text.contains(&format!("hint: chmod {fix} '{}'", file.display())), "{text}");
    };
    let ledger_path = place.path().join("ledger.redb");
    for loose in [0o640, 0o604, 0o620, 0o601] {
        set_mode(&ledger_path, loose);
        says(&Ledger::open(&folder, &Schema::default()).map(|_| ()).unwrap_err(), &ledger_path, "600");
        assert_eq!(mode(&ledger_path), loose, "refused, not mended");
    }
    set_mode(&ledger_path, 0o400);
    set_mode(&place.path().join("key"), 0o644);
    says(&folder.read_file("key", 100).unwrap_err(), &place.path().join("key"), "600");
    drop(folder);
    set_mode(&place.path().join("lock"), 0o660);
    says(&Folder::open(place.path()).unwrap_err(), &place.path().join("lock"), "600");
    set_mode(&place.path().join("lock"), 0o600);
    for loose in [0o750, 0o705, 0o701] {
        set_mode(&place.path(), loose);
        says(&Folder::open(place.path()).unwrap_err(), &place.path(), "700");
    }
    set_mode(&place.path(), 0o700);
    place.folder();
}

#[test]
fn what_is_not_a_file_or_folder_is_refused() {
    let place = Place::new();
    fs::write(place.path(), "a file").unwrap();
    assert!(matches!(
        Folder::open(place.path()),
        Err(FolderError::File(FileError::WrongKind { wanted: "folder", .. }))
    ));
    assert!(Folder::open(place.path().join("below")).is_err());
    let place = Place::new();
    let folder = place.folder();
    fs::write(place.path().join("elsewhere"), "").unwrap();
    symlink(place.path().join("elsewhere"), place.path().join("ledger.redb")).unwrap();
    let refused = Ledger::open(&folder, &Schema::default()).map(|_| ());
    assert!(matches!(refused, Err(OpenError::File(FileError::WrongKind { wanted: "file", .. }))));
    fs::create_dir(place.path().join("key")).unwrap();
    assert!(matches!(folder.read_file("key", 10), Err(FileError::WrongKind { .. })));
}

#[test]
fn a_second_process_is_told_who_holds_the_folder() {
    const TEST: &str = "a_second_process_is_told_who_holds_the_folder";
    if let Some(path) = playing("hold") {
        let _folder = Folder::open(path).unwrap();
        println!("held");
        // Until the parent closes its end or kills this process.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let place = Place::new();
    let mut holder =
        child(TEST, "hold", &place.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("held")));
    let error = Folder::open(place.path()).unwrap_err();
    let expected = format!("the data folder {} is in use by process {}", place.path().display(), holder.id());
    assert_eq!(error.to_string(), expected);
    holder.kill().unwrap();
    holder.wait().unwrap();
    place.folder();
}

#[test]
fn the_lock_is_held_until_the_last_part_of_the_folder_is_gone() {
    let place = Place::new();
    let folder = place.folder();
    let ledger = Ledger::open(&folder, &Schema::default()).unwrap();
    let (index, _) = Index::open(&folder, 1).unwrap();
    let held = || matches!(Folder::open(place.path()), Err(FolderError::InUse { pid, .. }) if pid == Some(std::process::id()));
    assert!(held());
    drop(folder);
    assert!(held());
    drop(ledger);
    assert!(held());
    drop(index);
    assert!(!held());
}

/// `unshare` with a mount namespace of its own, if this machine allows it to this user.
fn unshare() -> Option<&'static [&'static str]> {
    const AS_ROOT: &[&str] = &["--mount"];
    const AS_USER: &[&str] = &["--mount", "--user", "--map-root-user"];
    [AS_ROOT, AS_USER].into_iter().find(|args| {
        let mount = ["sh", "-c", "mount -t tmpfs tmpfs /mnt"];
        works("unshare", &[*args, &mount].concat())
    })
}

/// Runs the part in a mount namespace where a small file system of its own lies at the data folder.
fn on_small_disk(test: &str, part: &str, mebibytes: u64) {
    let Some(unshare) = unshare() else { return skipped(test, "unshare with a mount namespace") };
    let place = Place::new();
    fs::create_dir(place.path()).unwrap();
    let mount = format!(
        "mount -t tmpfs -o size={mebibytes}m,mode=0700 tmpfs '{}' && exec \"$@\"",
        place.path().display()
    );
    let args = [unshare, &["sh", "-c", &mount, "sh"]].concat();
    println!("{}", succeeded(child_under("unshare", &args, test, part, &place.path()).output().unwrap()));
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    const TEST: &str = "a_full_disk_refuses_writes_and_nothing_else";
    let Some(path) = playing("fill the disk") else { return on_small_disk(TEST, "fill the disk", 56) };
    let folder = Folder::open(&path).unwrap();
    let ledger = Ledger::open(&folder, &Schema::default()).unwrap();
    let (index, _) = Index::open(&folder, 1).unwrap();
    const MEBIBYTE: usize = 1024 * 1024;
    ledger.commit(put(0, MEBIBYTE)).unwrap();
    index.put(ROWS, &0, b"before").unwrap();
    index.flush().unwrap();

    let mut committed = 0;
    let refused = (1..1000).find_map(|n| {
        let outcome = ledger.commit(put(n, MEBIBYTE));
        committed = if outcome.is_ok() { n } else { committed };
        outcome.err()
    });
    let Some(CommitError::DiskFull { free_bytes, needed_bytes }) = refused else { panic!("{refused:?}") };
    assert!(free_bytes < needed_bytes && needed_bytes > FREE_RESERVE_BYTES);
    assert_eq!(ledger.health(), Health::Writable);
    // Below the reserve the index refuses as well, and both are read as before.
    fs::write(path.join("filler"), vec![1; usize::try_from(free_bytes - FREE_RESERVE_BYTES / 2).unwrap()])
        .unwrap();
    assert!(matches!(index.put(ROWS, &1, b"more"), Err(IndexError::DiskFull { .. })));
    assert_eq!(index.get(ROWS, &0).unwrap().as_deref(), Some(&b"before"[..]));
    assert!(matches!(ledger.commit(put(5000, 1)), Err(CommitError::DiskFull { .. })));
    for n in 0..=committed {
        assert_eq!(ledger.read(ROWS, &n).unwrap().unwrap().len(), MEBIBYTE);
    }
    // Filled to the last byte and started again: it opens and reads, and a new ledger is refused.
    drop((ledger, index));
    let _ = fs::write(path.join("filler"), vec![1; 56 * MEBIBYTE]);
    let ledger = Ledger::open(&folder, &Schema::default()).unwrap();
    assert_eq!(ledger.range(ROWS, ..).unwrap().count(), usize::try_from(committed + 1).unwrap());
    assert!(matches!(ledger.commit(put(5000, 1)), Err(CommitError::DiskFull { .. })));
    let index_when_full = Index::open(&folder, 1).map(|(_, origin)| origin);
    println!("index on a full disk: {index_when_full:?}");
    drop(ledger);
    drop(folder);
    let folder = Folder::open(&path).unwrap();
    let ledger = Ledger::open(&folder, &Schema::default()).unwrap();
    // Space comes back, and nothing has to be started again.
    fs::remove_file(path.join("filler")).unwrap();
    let (index, origin) = Index::open(&folder, 1).unwrap();
    println!("index after it: {origin:?}");
    assert_eq!(index.get(ROWS, &0).unwrap().as_deref(), Some(&b"before"[..]), "a full disk is no damage");
    drop(index);
    let mut batch = Batch::new();
    for n in 1..=committed {
        batch.delete(ROWS, &n);
    }
    match ledger.commit(batch) {
        Ok(()) => {}
        // The ledger itself fills the disk down to the reserve, and only a larger disk would help.
        Err(CommitError::DiskFull { .. }) => {
            assert!(works("mount", &["-o", "remount,size=96m", path.to_str().unwrap()]));
            ledger.commit(put(5000, 1)).unwrap();
        }
        Err(error) => panic!("{error}"),
    }
    drop(ledger);
    assert_eq!(
        fsck(&path, &Schema::default(), &[ROWS.check(|_, _| Ok(()))]).worst(),
        Some(kos_store::Severity::Note)
    );
}

#[test]
fn a_new_ledger_on_a_full_disk_is_refused() {
    const TEST: &str = "a_new_ledger_on_a_full_disk_is_refused";
    let Some(path) = playing("start full") else { return on_small_disk(TEST, "start full", 16) };
    let folder = Folder::open(&path).unwrap();
    let refused = Ledger::open(&folder, &Schema::default()).map(|_| ());
    assert!(
        matches!(refused, Err(OpenError::DiskFull { needed_bytes: FREE_RESERVE_BYTES, .. })),
        "{refused:?}"
    );
    assert!(!path.join("ledger.redb").exists());
}

#[test]
fn a_read_only_folder_is_named_as_such_and_left_alone() {
    const TEST: &str = "a_read_only_folder_is_named_as_such_and_left_alone";
    let Some(path) = playing("read only") else { return on_small_disk(TEST, "read only", 96) };
    let run = |command: &str| {
        let output = Command::new("sh").args(["-c", command, "sh"]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    // A file system with a file open for writing cannot be made read-only, but a second mount above it can.
    let read_only = || run("mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"");
    let folder = Folder::open(&path).unwrap();
    drop(Ledger::open(&folder, &Schema::default()).unwrap());
    let says = |error: &dyn std::error::Error| {
        let text = error.to_string();
        assert!(text.contains("is not writable") && text.contains("hint: mount it read-write"), "{text}");
    };
    // With the folder open: it became read-only later, as file systems do after an error.
    read_only();
    says(&Ledger::open(&folder, &Schema::default()).map(|_| ()).unwrap_err());
    let refused = Index::open(&folder, 1).map(|_| ());
    assert!(matches!(refused, Err(IndexOpenError::File(FileError::NotWritable { .. }))), "{refused:?}");
    run("umount \"$1\"");
    drop(folder);
    let before = contents(&path);
    read_only();
    let error = Folder::open(&path).unwrap_err();
    assert!(matches!(error, FolderError::File(FileError::NotWritable { .. })));
    says(&error);
    assert!(fsck(&path, &Schema::default(), &[]).findings.is_empty(), "fsck needs no writing");
    assert_eq!(contents(&path), before);
}
