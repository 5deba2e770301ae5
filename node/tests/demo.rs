//! `kai demo` as a process that is told to stop in the middle.
#![allow(clippy::unwrap_used)]

use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

#[test]
fn a_signal_in_the_middle_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = tempfile::tempdir().unwrap();
        let mut demo = Command::new(env!("CARGO_BIN_EXE_kai"))
            .args(["demo"])
            .env("TMPDIR", place.path())
            .env("HOME", place.path().join("home"))
            .env_remove("XDG_DATA_HOME")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("a relay is up"));
        kill_process(Pid::from_child(&demo), signal).unwrap();
        drop(lines);
        let output = demo.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{signal:?}: {said}");
        assert!(said.contains("nothing stays behind"), "{said}");
        let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
        assert!(left.is_empty(), "{signal:?} left {left:?}");
    }
}
