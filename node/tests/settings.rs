//! A running node takes settings that are changed on the command line, and its audit log tells of them.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

/// `kai up` in a folder of its own, on loopback, knowing nobody.
struct Node {
    folder: PathBuf,
    process: Child,
}

const FLAGS: [&str; 4] = [
    "network.mdns=false",
    "network.upnp=false",
    "network.kad=false",
    "network.listen_addresses=/ip4/127.0.0.1/udp/0/quic-v1",
];

impl Node {
    fn up(folder: PathBuf) -> Self {
        let mut process = kai(&folder)
            .args(["up", "--name", "attic"])
            .args(FLAGS.iter().flat_map(|flag| ["--set", flag]))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let line = BufReader::new(process.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        assert!(line.starts_with("up: attic"), "{line}");
        Self { folder, process }
    }

    fn run(&self, words: &[&str]) -> Output {
        kai(&self.folder).args(words).output().unwrap()
    }

    /// What a command that succeeds says on standard error.
    fn said(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kai {words:?}: {said}");
        said
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.run(&[&["--json"], words].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn down(mut self) -> PathBuf {
        assert!(self.run(&["down"]).status.success());
        self.process.wait().unwrap();
        std::mem::take(&mut self.folder)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ends it where a test failed; after `down` there is nothing to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn kai(folder: &PathBuf) -> Command {
    let mut kai = Command::new(env!("CARGO_BIN_EXE_kai"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KAI_")) {
        kai.env_remove(name);
    }
    kai.arg("--folder").arg(folder).stdin(Stdio::null());
    kai
}

fn config_entries(node: &Node) -> Vec<String> {
    let answer = node.json(&["audit", "list"]);
    let entries = answer["entries"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "config");
    entries.map(|entry| entry["text"].as_str().unwrap().to_owned()).collect()
}

/// The entries, once the last one holds `last`: they are written behind the command that makes them.
fn config_entries_up_to(node: &Node, last: &str) -> Vec<String> {
    let begun = std::time::Instant::now();
    loop {
        let noted = config_entries(node);
        if noted.last().is_some_and(|entry| entry.contains(last)) {
            return noted;
        }
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(20),
            "`{last}` is not the last of {noted:?}"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_running_node_goes_by_a_changed_setting_at_once() {
    let place = tempfile::tempdir().unwrap();
    let node = Node::up(place.path().join("kai"));
    let me = node.json(&["id", "show"])["member"].as_str().unwrap().to_owned();

    assert!(node.said(&["config", "set", "calls.default", "attic,stewards"]).contains("goes by it"));
    assert!(node.said(&["config", "set", "network.port", "4999"]).contains("started again"));
    assert!(node.said(&["config", "set", "network.mdns", "true"]).contains("beats the file"));
    let file = std::fs::read_to_string(node.folder.join("config.toml")).unwrap();
    assert!(file.contains(&format!("default = [\"{me}\", \"stewards\"]")), "a name became an id: {file}");

    let unknown = node.run(&["config", "set", "calls.default", "cellar"]);
    assert_eq!(unknown.status.code(), Some(5), "{unknown:?}");
    assert!(node.said(&["agent", "start", "kBridge:notes", "--http", "http://127.0.0.1:1"]).contains("runs"));

    let noted = config_entries_up_to(&node, "kBridge:notes stands in front of http://127.0.0.1:1");
    for text in [
        &format!("calls.default = [\"{me}\", \"stewards\"] (config.toml)"),
        "network.port = 4999 (config.toml)",
    ] {
        assert!(noted.iter().any(|entry| entry == text), "{text}: {noted:?}");
    }
    let page = node.json(&["audit", "list", "--after", "0", "--limit", "1"]);
    assert_eq!((page["entries"][0]["kind"].as_str(), page["next"].as_u64()), (Some("start"), Some(1)));

    let folder = node.down();
    let away = kai(&folder).args(["config", "set", "calls.default", "attic"]).output().unwrap();
    assert_eq!(away.status.code(), Some(3), "names need a running node: {away:?}");
    let set = kai(&folder).args(["config", "set", "log.level", "warn"]).output().unwrap();
    assert!(set.status.success());

    let node = Node::up(folder);
    config_entries_up_to(&node, "log.level = \"warn\" (config.toml)");
    assert_eq!(node.json(&["audit", "verify"])["holds"], true);
    node.down();
}
