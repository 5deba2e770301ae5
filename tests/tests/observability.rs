//! What a node says of itself is true: one trace id in the logs of both ends of a call, and numbers that grow with it.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    lab::Background,
    local::{Local, free_port},
    node::{until, until_or},
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
};

/// A node that logs everything as JSON.
fn talkative(place: &Path, name: &str) -> Local {
    let kai = Path::new(env!("CARGO_BIN_EXE_kai-under-test"));
    let folder = place.join(name);
    for (key, value) in [("log.json", "true"), ("log.level", "debug")] {
        let set = Command::new(kai)
            .arg("--folder")
            .arg(&folder)
            .args(["config", "set", key, value])
            .output()
            .unwrap();
        assert!(set.status.success(), "{set:?}");
    }
    Local::up(kai, place, name)
}

/// The trace ids of the lines with this message about calls of agents.
fn traces(log: &str, message: &str) -> Vec<String> {
    // The last line may still be under way.
    log.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}"))
        })
        .filter(|line| line["message"] == message && line["span"]["intent"] == "agent.call")
        .map(|line| line["span"]["trace"].as_str().unwrap().to_owned())
        .collect()
}

fn get(mut stream: impl Read + Write, host: &str, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer
}

/// A sample's value in a text of Prometheus' format.
fn value(text: &str, sample: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {sample} in {text}")).parse().unwrap()
}

#[test]
fn a_call_has_one_trace_on_both_nodes_and_is_counted_by_both() {
    let place = tempfile::tempdir().unwrap();
    let (attic, cellar) = (talkative(place.path(), "attic"), talkative(place.path(), "cellar"));
    let joined = cellar.run(&["join", "--yes", &attic.invitation(&["--role", "member"])]);
    assert!(joined.status.success(), "{joined:?} {}", cellar.log());
    until("cellar calls attic", || cellar.run(&["call", "kSentinel:node@attic", "/status"]).status.success());
    // Who has its answer may look before either node has written what it did.
    let mut trace = String::new();
    until("the caller logs its call", || {
        trace = traces(&cellar.log(), "asked").pop().unwrap_or_default();
        !trace.is_empty()
    });
    assert_eq!(trace.len(), 32);
    until_or(
        "the callee logs the same trace",
        || traces(&attic.log(), "asked by a peer").contains(&trace),
        || format!("{trace} in {}", attic.log()),
    );
    for (name, direction) in [("attic", "in"), ("cellar", "out")] {
        let socket = UnixStream::connect(place.path().join(name).join("kai.sock")).unwrap();
        let metrics = get(socket, "kai", "/v1/metrics");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        assert!(
            value(&metrics, &format!("kos_exchanges_total{{direction=\"{direction}\"}}")) >= 1,
            "{metrics}"
        );
        assert!(value(&metrics, "kos_handshakes_total") >= 1);
        assert_eq!(value(&metrics, "kos_connections{path=\"relayed\",transport=\"circuit\"}"), 0);
        assert_eq!(value(&metrics, "kos_agents{state=\"running\"}"), 1);
        assert!(value(&metrics, "kos_resident_memory_bytes") > 0);
        assert!(value(&metrics, "kos_start_time_seconds") > 1_700_000_000);
    }
}

#[test]
fn a_call_of_an_own_agent_is_counted_and_its_trace_is_told() {
    let place = tempfile::tempdir().unwrap();
    let attic = talkative(place.path(), "attic");
    let count = |direction: &str| {
        let socket = UnixStream::connect(place.path().join("attic").join("kai.sock")).unwrap();
        value(
            &get(socket, "kai", "/v1/metrics"),
            &format!("kos_exchanges_total{{direction=\"{direction}\"}}"),
        )
    };
    let before = (count("in"), count("out"));
    // The answer is on standard output, what is told of it beside.
    let called = attic.run(&["call", "kSentinel:node", "/status", "--json"]);
    let said = String::from_utf8(called.stderr).unwrap();
    let head: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let trace = head["trace"].as_str().unwrap_or_default();
    assert_eq!(trace.len(), 32, "{said}");
    until_or(
        "the node logs the trace",
        || traces(&attic.log(), "asked by a peer").iter().any(|it| it == trace),
        || format!("{trace} in {}", attic.log()),
    );
    until_or(
        "the call is counted once in each direction",
        || (count("in"), count("out")) == (before.0 + 1, before.1 + 1),
        || format!("{:?} after {before:?}", (count("in"), count("out"))),
    );

    // Entries are written behind what they tell of.
    let mut log = serde_json::Value::Null;
    until("the audit log has two entries", || {
        log = attic.json(&["audit", "list"]);
        log["entries"].as_array().is_some_and(|entries| entries.len() > 1)
    });
    let prev = |at: usize| log["entries"][at]["prev"].as_str().unwrap_or_default().to_owned();
    assert_eq!(prev(0), "0".repeat(64));
    assert!(prev(1).len() == 64 && prev(1).bytes().all(|byte| byte.is_ascii_hexdigit()), "{log}");
}

#[test]
fn a_relay_that_would_carry_nothing_says_what_is_wrong() {
    let refused =
        Command::new(env!("CARGO_BIN_EXE_kai-relay-under-test")).args(["--rate", "0"]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2));
    assert!(said.contains("invalid value '0' for '--rate <BYTES>'"), "{said}");
}

#[test]
fn a_relay_tells_its_numbers_on_loopback_only() {
    let place = tempfile::tempdir().unwrap();
    let (port, metrics) = (free_port(), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let relay = |address: SocketAddr| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kai-relay-under-test"));
        command.arg("--folder").arg(place.path().join("relay")).args(["--loopback", "--port"]);
        command.arg(port.to_string()).arg("--metrics").arg(address.to_string()).stdin(Stdio::null());
        command
    };
    let refused = relay(SocketAddr::from(([0, 0, 0, 0], 9100))).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not loopback"), "{refused:?}");
    let mut child = relay(metrics).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let _relay = Background(child);
    let mut line = String::new();
    // The line is printed once everything listens.
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert!(line.starts_with("kai:"), "{line}");
    let text = get(TcpStream::connect(metrics).unwrap(), &metrics.to_string(), "/metrics");
    assert_eq!(value(&text, "kos_carried_bytes_total"), 0);
}
