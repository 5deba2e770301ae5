//! Transcripts of the command line: documentation that is run.
//!
//! `TRYCMD=overwrite cargo test -p kos-tests --test cli` writes them anew. What differs from run to run stands in them
//! as a name in brackets, or as `[..]`, which has to be put back by hand.

use kos_tests::lab::Background;
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use trycmd::TestCases;

const KAI: &str = env!("CARGO_BIN_EXE_kai-under-test");

/// Transcripts of commands to the node of `folder`.
fn transcripts(folder: &Path) -> TestCases {
    let cases = TestCases::new();
    cases
        .register_bin("kai", Path::new(KAI))
        .env("KAI_FOLDER", folder.display().to_string())
        // Help is wrapped for this many.
        .env("COLUMNS", "100")
        .insert_var("[FOLDER]", folder.display().to_string())
        .expect("a name in brackets");
    cases
}

/// A node that only this machine could reach.
struct Node {
    folder: PathBuf,
    _process: Background,
    _place: tempfile::TempDir,
}

impl Node {
    fn up() -> Self {
        let place = tempfile::tempdir().expect("a temporary folder");
        let folder = place.path().join("kai");
        let listen = "network.listen_addresses=/ip4/127.0.0.1/udp/0/quic-v1,/ip4/127.0.0.1/tcp/0";
        let settings = ["network.mdns=false", "network.upnp=false", "network.kad=false", listen];
        let mut child = Command::new(KAI)
            .args(["up", "--name", "attic"])
            .args(settings.map(|setting| format!("--set={setting}")))
            .env("KAI_FOLDER", &folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kai starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped above");
        let process = Background(child);
        BufReader::new(stdout).read_line(&mut line).expect("kai's output");
        assert!(line.starts_with("up: attic "), "kai said `{line}`");
        Self { folder, _process: process, _place: place }
    }

    fn transcripts(&self) -> TestCases {
        let shown = Command::new(KAI)
            .args(["id", "show", "--json"])
            .env("KAI_FOLDER", &self.folder)
            .output()
            .expect("kai runs");
        let me: serde_json::Value = serde_json::from_slice(&shown.stdout).expect("JSON");
        let cases = transcripts(&self.folder);
        let names = [
            ("[MEMBER]", "member"),
            ("[KEY]", "key"),
            ("[PEER]", "peer_id"),
            ("[FEDERATION]", "federation"),
            ("[LINE]", "line"),
        ];
        for (name, field) in names {
            let value = me[field].as_str().expect("text").to_owned();
            cases.insert_var(name, value).expect("a name in brackets");
        }
        cases
    }
}

#[test]
fn help_errors_and_settings_need_no_node() {
    let place = tempfile::tempdir().expect("a temporary folder");
    let folder = place.path().join("kai");
    let cases = transcripts(&folder);
    cases.case("tests/cli/help.md").case("tests/cli/no-node.md").run();
    // Not beside the others: it makes the folder.
    transcripts(&folder).case("tests/cli/settings.md").run();
}

#[test]
fn a_node_answers() {
    let node = Node::up();
    node.transcripts().case("tests/cli/node.md").run();
    // Not beside it: the list of agents changes in it.
    node.transcripts().case("tests/cli/json.md").run();
    node.transcripts().case("tests/cli/down.md").run();
}
