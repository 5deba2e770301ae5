//! Data folders that earlier versions left open in this one, with everything that was in them.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_shell::tables;
use kos_tests::local::Local;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

const KAI: &str = env!("CARGO_BIN_EXE_kai-under-test");
/// Each folder in `tests/data`, and the member it belongs to.
const FOLDERS: [(&str, &str); 2] = [
    ("folder-1", "kos1ete92xg4yuw93cepd7nup4fg0fmn7t2e9ssjheg9x2pg6cah364szw8r0w"),
    ("folder-2", "kos1844y7jk240em9d0q7a82s6hz8h7ugcqu74xfntcq6zs53akjgmgqlxv0c7"),
];

/// A copy as private as a data folder has to be, whatever modes the checkout has.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let copied = to.join(file.file_name());
        fs::copy(file.path(), &copied).unwrap();
        fs::set_permissions(copied, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn folders_of_every_version_open_with_all_that_was_in_them() {
    for (name, member) in FOLDERS {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("attic");
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name), &folder);
        let mut attic = Local::down_in(Path::new(KAI), &folder, "attic");
        assert_eq!(attic.run(&["fsck"]).status.code(), Some(0), "{name}: fsck finds something");
        attic.start();
        assert_eq!(attic.json(&["id", "show"])["member"], member, "{name}");
        let members = attic.json(&["members"]);
        let mut names: Vec<_> = members["members"]
            .as_array()
            .unwrap()
            .iter()
            .map(|member| (member["name"].as_str().unwrap(), member["role"].as_str().unwrap()))
            .collect();
        names.sort_unstable();
        assert_eq!(names, [("attic", "steward"), ("cellar", "member")], "{name}");
        assert!(attic.ask(&["agent", "list"]).contains("kBridge:notes"), "{name}: an agent is gone");
        assert_eq!(
            attic.json(&["invite", "list"])["invites"][0]["used"],
            1,
            "{name}: the invitation is gone"
        );
        attic.ask(&["audit", "verify"]);
    }
}

#[test]
fn a_damaged_act_is_found_before_it_makes_a_removed_member_active() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("attic");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(FOLDERS[0].0), &path);
    let attic = Local::down_in(Path::new(KAI), &path, "attic");
    {
        let folder = kos_store::Folder::open(&path).unwrap();
        let ledger = kos_store::Ledger::open(&folder, &tables::schema()).unwrap();
        let rows = ledger.range(tables::LEDGER_ITEMS, ..).unwrap().map(Result::unwrap);
        let is_act = |bytes: &[u8]| kos_engine::Item::parse(bytes).is_ok_and(|item| item.kind == "act");
        let (key, mut bytes) = rows.into_iter().find(|(_, bytes)| is_act(bytes)).expect("an act");
        let end = bytes.len() / 2;
        bytes.truncate(end);
        let mut batch = kos_store::Batch::new();
        batch.put(tables::LEDGER_ITEMS, &key, &bytes);
        ledger.commit(batch).unwrap();
    }
    let found = attic.run(&["fsck"]);
    assert!(!found.status.success());
    assert!(String::from_utf8_lossy(&found.stdout).contains("items"), "{found:?}");
}
