//! Internet down, internet back: two halves of a federation lose each other, change records apart, and are one again.
//!
//! In the NAT laboratory, with the real binaries: three homes' servers on each of two LANs, and a relay between them.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    binaries, has,
    lab::Lab,
    lab_needs,
    node::{Kai, Relay, until, until_or},
    story::{invitation, one_at_a_time},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

const HOME: [&str; 3] = ["attic", "cellar", "den"];
const OFFICE: [&str; 3] = ["desk", "hall", "shed"];
/// Of these one is cut off from its own LAN as well.
const LONELY: &str = "shed";

/// How long after the path is back every node finds the same. Links are made anew, with pauses between two attempts that
/// grow while nobody answers; what follows takes seconds.
const CONVERGED_MAX: Duration = Duration::from_secs(60);

fn topology() -> String {
    let hosts = |gateway: &str, names: [&str; 3]| {
        names.map(|name| format!("[hosts.{name}]\nbehind = \"{gateway}\"\n")).concat()
    };
    format!(
        "[gateways.home]\nnat = \"port-restricted\"\n[gateways.office]\nnat = \"port-restricted\"\n[hosts.relay]\n{}{}",
        hosts("home", HOME),
        hosts("office", OFFICE)
    )
}

/// The members in both halves.
struct Halves<'a> {
    lab: &'a Lab,
    nodes: BTreeMap<&'static str, Kai<'a>>,
    _relay: Relay<'a>,
}

/// A record as a query finds it: its kind, its name and its member's, and its id.
type Found = BTreeSet<(String, String, String, String)>;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl<'a> Halves<'a> {
    fn up(lab: &'a Lab, place: &Path) -> Self {
        let binaries = binaries!();
        let relay = Relay::up(lab, "relay", &binaries, place);
        let names = HOME.iter().chain(&OFFICE).copied();
        let nodes: BTreeMap<_, _> = names.map(|name| (name, Kai::up(lab, name, &binaries, place))).collect();
        let steward = &nodes["attic"];
        steward.ask(&["relay", "add", &relay.line]);
        until("the steward has a place at the relay", || {
            steward.json(&["relay", "list"])["relays"][0]["reserved"] == true
        });
        for (name, node) in nodes.iter().filter(|(name, _)| **name != "attic") {
            let joined = node.run(&["join", "--yes", &invitation(steward)]);
            assert!(joined.status.success(), "{name}: {joined:?}");
        }
        Self { lab, nodes, _relay: relay }
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &Kai<'a>)> {
        self.nodes.iter().map(|(name, node)| (*name, node))
    }

    /// The internet is down, LANs go on: the halves lose each other and the relay.
    fn cut(&self) {
        self.lab.order(&["isolate", "relay"]);
        for (home, office) in HOME.iter().flat_map(|home| OFFICE.map(|office| (home, office))) {
            self.lab.order(&["partition", home, office]);
        }
    }

    fn start_agent(&self, node: &str, agent: &str) {
        succeeded(&self.nodes[node].run(&["agent", "start", agent, "--http", "http://127.0.0.1:8123"]));
    }

    fn states(&self) -> String {
        let state = |(name, node): (&str, &Kai<'_>)| {
            format!("{name}: {:?}\n{:?}\n{}\n", health(node), found(node), node.json(&["directory", "stats"]))
        };
        self.all().map(state).collect()
    }
}

fn find(node: &Kai<'_>, query: &str) -> Value {
    node.json(&["find", query, "--limit", "1000"])
}

/// Everything that is found at this node.
fn found(node: &Kai<'_>) -> Found {
    let answer = find(node, "");
    let hits = answer["hits"].as_array().unwrap_or_else(|| panic!("no answer: {answer}")).iter();
    hits.map(|hit| (text(&hit["kind"]), text(&hit["name"]), text(&hit["member_name"]), text(&hit["record"])))
        .collect()
}

/// The names of agents and services that are found at this node, without those that every node has.
fn offers(node: &Kai<'_>) -> BTreeSet<String> {
    let found =
        found(node).into_iter().filter(|(kind, name, ..)| kind != "node" && !name.starts_with("kSentinel:"));
    found.map(|(_, name, member, _)| format!("{name}@{member}")).collect()
}

/// The health of each other member.
fn health(node: &Kai<'_>) -> BTreeMap<String, String> {
    let members = node.json(&["members"]);
    let others = members["members"].as_array().unwrap().iter().filter(|member| member["me"] != true);
    others
        .map(|member| {
            assert_eq!(member["standing"], "active", "{member}");
            (text(&member["name"]), text(&member["health"]))
        })
        .collect()
}

fn all_alive(node: &Kai<'_>) -> bool {
    let health = health(node);
    // The relay is one of them.
    health.len() == HOME.len() + OFFICE.len() && health.values().all(|health| health == "alive")
}

fn nobody_left(node: &Kai<'_>) {
    let health = health(node);
    assert!(health.values().all(|health| health != "left"), "{health:?}");
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const CONTRACT: &str = "name = \"NAME\"\nversion = \"1.0.0\"\nagent = \"kBridge:AGENT\"\n[security]\n\
                        callers = [\"member\", \"steward\"]\n[[methods]]\nmethod = \"GET\"\npath = \"/\"\n";

#[test]
fn two_halves_that_changed_apart_become_one_again_and_lose_nothing() {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    let (lab, place) = (Lab::up(&topology()), tempfile::tempdir().unwrap());
    let halves = Halves::up(&lab, place.path());
    let publish = |node: &str, service: &str, agent: &str| {
        let file = place.path().join(format!("{service}.toml"));
        std::fs::write(&file, CONTRACT.replace("NAME", service).replace("AGENT", agent)).unwrap();
        let published =
            halves.nodes[node].run(&["agent", "publish", &file.display().to_string(), "--receipts", "1"]);
        succeeded(&published);
    };

    for (node, agent) in [
        ("attic", "kBridge:notes"),
        ("den", "kBridge:music"),
        ("desk", "kBridge:wiki"),
        ("hall", "kBridge:print"),
    ] {
        halves.start_agent(node, agent);
    }
    let before =
        set(&["kBridge:notes@attic", "kBridge:music@den", "kBridge:wiki@desk", "kBridge:print@hall"]);
    for (name, node) in halves.all() {
        until_or(
            "everybody is alive and finds the agents",
            || all_alive(node) && offers(node) == before,
            || format!("{name}:\n{}", halves.states()),
        );
    }

    halves.cut();
    let cut = Instant::now();
    lab.order(&["isolate", LONELY]);
    // Apart they change what is theirs: an agent more, a service, and an agent less in each half.
    halves.start_agent("cellar", "kBridge:photos");
    publish("attic", "notes", "notes");
    succeeded(&halves.nodes["den"].run(&["agent", "stop", "kBridge:music"]));
    halves.start_agent("desk", "kBridge:chat");
    publish("desk", "wiki", "wiki");
    succeeded(&halves.nodes["hall"].run(&["agent", "stop", "kBridge:print"]));

    let at_home = set(&[
        "kBridge:notes@attic",
        "notes@attic",
        "kBridge:photos@cellar",
        "kBridge:wiki@desk",
        "kBridge:print@hall",
    ]);
    let at_office = set(&[
        "kBridge:notes@attic",
        "kBridge:music@den",
        "kBridge:wiki@desk",
        "wiki@desk",
        "kBridge:chat@desk",
    ]);
    let expected = |name| match name {
        LONELY => &before,
        name if HOME.contains(&name) => &at_home,
        _ => &at_office,
    };
    for (name, node) in halves.all() {
        until_or(
            "a half knows what it did",
            || offers(node) == *expected(name),
            || format!("{name}:\n{}", halves.states()),
        );
    }
    // Until everybody has given up the other half: the answers of then are those that must say how true they are. At home
    // there are as many as it takes to say `down`, in the office there are not.
    for (name, node) in halves.all().filter(|(name, _)| *name != LONELY) {
        let is_home = HOME.contains(&name);
        let others = if is_home { OFFICE } else { HOME };
        let is_given_up = |health: &str| health == "down" || (!is_home && health == "suspect");
        until_or(
            "the other half is given up",
            || {
                let health = health(node);
                others.iter().all(|other| is_given_up(&health[*other]))
            },
            || format!("{name}:\n{}", halves.states()),
        );
    }
    println!("given up {:?} after the cut", cut.elapsed());
    until("who is alone knows that it is", || find(&halves.nodes[LONELY], "")["completeness"] == "stale");
    for (name, node) in halves.all() {
        nobody_left(node);
        assert_eq!(offers(node), *expected(name), "{name} lost something because the network was away");
        // Who has links with some says with how many, and of each record how its member is.
        let linked = match name {
            LONELY => 0,
            name if HOME.contains(&name) => 2,
            _ => 1,
        };
        until("its answers say with how many it is linked", || find(node, "kind:node")["linked"] == linked);
        let true_as = if name == LONELY { "stale" } else { "partial" };
        until("its answers say that most are out of reach", || {
            find(node, "kind:node")["completeness"] == true_as
        });
        let nodes = find(node, "kind:node");
        assert_eq!((&nodes["total"], &nodes["others"]), (&7.into(), &6.into()), "{name}: {nodes}");
        let stats = node.json(&["directory", "stats"]);
        assert_eq!(stats["expired"], 0, "{name}: {stats}");
        assert_eq!(stats["completeness"], nodes["completeness"], "{name}");
        println!("{name}: {} with {linked} of 6 linked", nodes["completeness"]);
    }

    lab.order(&["heal"]);
    let back = Instant::now();
    let after = set(&[
        "kBridge:notes@attic",
        "notes@attic",
        "kBridge:photos@cellar",
        "kBridge:wiki@desk",
        "wiki@desk",
        "kBridge:chat@desk",
    ]);
    until_or(
        "everybody finds the same",
        || {
            let all: Vec<Found> = halves.all().map(|(_, node)| found(node)).collect();
            halves.all().all(|(_, node)| offers(node) == after) && all.iter().all(|found| found == &all[0])
        },
        || halves.states(),
    );
    let same = back.elapsed();
    for (name, node) in halves.all() {
        until_or(
            "everybody is alive again",
            || {
                nobody_left(node);
                all_alive(node)
            },
            || format!("{name}:\n{}", halves.states()),
        );
    }
    println!(
        "everybody finds the same {same:?} after the path was back, and all are alive after {:?}",
        back.elapsed()
    );
    assert!(same < CONVERGED_MAX, "{same:?}");
    for (name, node) in halves.all() {
        until("it says that its answers are complete", || find(node, "")["completeness"] == "complete");
        let stats = node.json(&["directory", "stats"]);
        assert_eq!(
            (&stats["kinds"]["node-record"], &stats["expired"]),
            (&7.into(), &0.into()),
            "{name}: {stats}"
        );
        assert_eq!(stats["refused"], Value::Object(serde_json::Map::new()), "{name}: {stats}");
    }
}
