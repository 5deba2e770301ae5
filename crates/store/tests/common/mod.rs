//! What the tests of this package share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kos_store::{Folder, Ledger, Schema};
use tempfile::TempDir;

/// A data folder that is deleted at the end of the test.
pub struct Place {
    root: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { root: TempDir::new().unwrap() }
    }

    /// The data folder; it does not exist until it is opened.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub fn folder(&self) -> Folder {
        Folder::open(self.path()).unwrap()
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::open(&self.folder(), &Schema::default()).unwrap()
    }
}

/// Every file below a folder with its bytes and mode, but for the lock: that is no data, and names its holder.
pub fn contents(path: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    collect(path, &mut found);
    found.retain(|file, _| file != &path.join("lock"));
    found
}

fn collect(path: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            collect(&path, found);
        } else {
            found.insert(path.clone(), (metadata.mode(), fs::read(&path).unwrap()));
        }
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Set in the environment of a child: the part it plays. The child is this test binary run again with the name of one
/// test, which calls [`part`] first and returns at once when it is not a child.
const PART: &str = "KOS_STORE_TEST_PART";

/// The data folder a child works in, if this process is the child playing `part`.
pub fn playing(part: &str) -> Option<PathBuf> {
    let value = std::env::var(PART).ok()?;
    let (name, path) = value.split_once('=').unwrap();
    (name == part).then(|| PathBuf::from(path))
}

/// Arguments to run this binary again as a child; `test` is the full name of the test that plays the part.
pub fn child_args(test: &str) -> Vec<String> {
    vec![test.to_owned(), "--exact".to_owned(), "--nocapture".to_owned(), "--test-threads=1".to_owned()]
}

/// This binary, to be run as the child that plays `part` in `path`.
pub fn child(test: &str, part: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(child_args(test)).env(PART, part_value(part, path));
    command
}

/// The same child below another program, such as strace.
pub fn child_under(program: &str, args: &[&str], test: &str, part: &str, path: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(args).arg(std::env::current_exe().unwrap()).args(child_args(test));
    command.env(PART, part_value(part, path));
    command
}

fn part_value(part: &str, path: &Path) -> String {
    format!("{part}={}", path.display())
}

/// Says that a test needs what this machine lacks. In CI nothing may be lacking.
pub fn skipped(test: &str, lacks: &str) {
    println!("skipped: {test}: {lacks} missing");
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} must not be skipped in CI: {lacks} missing"
    );
}

/// Whether `program args` runs and succeeds here.
pub fn works(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// The output of a child that must succeed.
pub fn succeeded(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
