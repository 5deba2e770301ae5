//! The first story, in the NAT laboratory, with the real binaries: two home servers behind different NATs join one
//! federation and use each other's services.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    binaries, has,
    lab::Lab,
    lab_needs,
    node::{Binaries, Kai, until, until_or},
    story::{CONE, NOTES, PAGE, SYMMETRIC, Story, invitation_as, one_at_a_time, topology},
    tries,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// What a relay has passed on.
const CARRIED: &str = "kos_carried_bytes_total";

struct Cell {
    name: &'static str,
    topology: String,
    /// What calls must end up on.
    path: &'static str,
}

fn cells() -> Vec<Cell> {
    let cell = |name, internet, attic: &str, cellar: &str, path| Cell {
        name,
        topology: topology(internet, attic, cellar),
        path,
    };
    vec![
        cell("port-restricted x port-restricted", "", CONE, CONE, "direct"),
        cell("symmetric x symmetric", "", SYMMETRIC, SYMMETRIC, "carried"),
        cell(
            "cgnat x firewall",
            "[gateways.carrier]\nnat = \"port-restricted\"\nlan4 = \"100.64.0.0/24\"",
            "nat = \"port-restricted\"\nbehind = \"carrier\"",
            "nat = \"firewall\"",
            "direct",
        ),
        cell("udp blocked on one side", "", "nat = \"port-restricted\"\nblock_udp = true", CONE, "direct"),
        cell(
            "a cone nat that changes ports",
            "",
            "nat = \"port-restricted\"\npreserve_ports = false",
            "nat = \"port-restricted\"\npreserve_ports = false",
            "direct",
        ),
        cell(
            "ipv6 with firewalls",
            "[internet]\nipv6 = true",
            "nat = \"symmetric\"\nipv6 = \"firewall\"",
            "nat = \"symmetric\"\nipv6 = \"firewall\"",
            "direct",
        ),
    ]
}

fn names(node: &Kai<'_>) -> Vec<String> {
    let members = node.json(&["members"]);
    let active =
        members["members"].as_array().unwrap().iter().filter(|member| member["standing"] == "active");
    active.map(|member| member["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_story_holds_behind_every_pair_of_nats() {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    let only = std::env::var("NAT_CELL").unwrap_or_default();
    for cell in cells().iter().filter(|cell| cell.name.contains(&only)) {
        for attempt in 1..=tries() {
            println!("-- {} ({attempt})", cell.name);
            walk(cell);
        }
    }
}

fn walk(cell: &Cell) {
    let (lab, place, binaries) = (Lab::up(&cell.topology), tempfile::tempdir().unwrap(), binaries!());
    let story = Story::begin(&lab, &binaries, place.path());
    println!("join took {:?}", story.join_took);
    let (attic, cellar) = (&story.attic, &story.cellar);

    for node in [attic, cellar] {
        until("both list each other", || {
            let names = names(node);
            names.contains(&"attic".to_owned()) && names.contains(&"cellar".to_owned())
        });
    }
    until("cellar sees the agent", || cellar.ask(&["agent", "list", "--all"]).contains(NOTES));
    println!("first call after {:?}", story.call_goes_through());
    println!("{} after {:?}", cell.path, story.path_becomes(cell.path));
    assert_eq!(cellar.ask(&["call", NOTES, "/"]), PAGE);

    let carried = story.relay.metric(CARRIED);
    let downloaded = use_forward(&lab, &story, &binaries, cell);
    let carried = story.relay.metric(CARRIED) - carried;
    println!("the relay carried {carried} bytes of a download of {downloaded}");
    match cell.path {
        "carried" => assert!(carried >= downloaded, "not all of it went over the relay"),
        // The catch-ups of nodes with the relay itself are not carried.
        _ => assert!(carried < downloaded / 100, "a direct download went over the relay"),
    }

    attic.ask(&["members", "remove", "cellar"]);
    let begun = Instant::now();
    until("cellar can do nothing any more", || !story.call_succeeds());
    assert!(begun.elapsed() < Duration::from_secs(20), "removal took {:?}", begun.elapsed());
    println!("removed after {:?}", begun.elapsed());
}

/// Returns the size of the download: a page, a download, an upload, an event stream and a WebSocket, through curl.
fn use_forward(lab: &Lab, story: &Story<'_>, binaries: &Binaries, cell: &Cell) -> u64 {
    let _forward = story.forward(9000);
    let curl = |words: &[&str]| {
        let output = lab.run(
            "cellar",
            Path::new("/usr/bin/curl"),
            &[&["-sS", "--fail", "--max-time", "120"], words].concat(),
        );
        assert!(
            output.status.success(),
            "{}: curl {words:?}: {}",
            cell.name,
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    assert_eq!(curl(&["http://127.0.0.1:9000/"]), PAGE.as_bytes());
    let bytes = 200_000_000;
    let begun = Instant::now();
    let big = curl(&[&format!("http://127.0.0.1:9000/big?bytes={bytes}")]);
    println!("{} MB in {:?}", bytes / 1_000_000, begun.elapsed());
    assert_eq!(big.len(), bytes);
    let whole =
        big.chunks(8).enumerate().all(|(n, word)| word == &(n as u64 * 8).to_be_bytes()[..word.len()]);
    assert!(whole, "a hole or a swap in the download");
    let events = String::from_utf8(curl(&["-N", "http://127.0.0.1:9000/events?count=5"])).unwrap();
    assert_eq!(events.matches("data: ").count(), 5);
    let uploaded = curl(&["-d", &"x".repeat(100_000), "http://127.0.0.1:9000/upload"]);
    assert_eq!(uploaded, b"100000\n");
    let echoed = lab.run("cellar", &binaries.tool, &["ws", "ws://127.0.0.1:9000/ws"]);
    assert!(echoed.status.success(), "{}", String::from_utf8_lossy(&echoed.stderr));
    bytes as u64
}

#[test]
fn the_lan_works_with_the_internet_down() {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    for attempt in 1..=tries() {
        println!("-- same lan with the internet cut ({attempt})");
        walk_with_the_internet_down();
    }
}

fn walk_with_the_internet_down() {
    let topology = "[gateways.home]\nnat = \"port-restricted\"\n\
                    [hosts.relay]\n[hosts.attic]\nbehind = \"home\"\n[hosts.cellar]\nbehind = \"home\"\n";
    let (lab, place, binaries) = (Lab::up(topology), tempfile::tempdir().unwrap(), binaries!());
    let mut story = Story::begin(&lab, &binaries, place.path());
    story.call_goes_through();
    story.cellar.down();
    lab.order(&["isolate", "relay"]);
    story.cellar.start();
    println!("with the internet down a call goes through after {:?}", story.call_goes_through());
    assert_eq!(story.cellar.path_to("attic"), "direct");
}

/// Three homes whose holes cannot be punched towards each other: every word between them goes over the relay. porch, a
/// steward, removes cellar; attic hears of it only over the relay. The cellar that is then started knows nothing of
/// that: its folder is a copy from before, and nobody tells a removed member anything.
#[test]
fn a_removal_reaches_members_over_the_relay_and_holds_against_one_that_ignores_it() {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    let topology = format!(
        "{}[gateways.garden]\n{SYMMETRIC}\n[hosts.porch]\nbehind = \"garden\"\n",
        topology("", SYMMETRIC, SYMMETRIC)
    );
    let (lab, place, binaries) = (Lab::up(&topology), tempfile::tempdir().unwrap(), binaries!());
    let mut story = Story::begin(&lab, &binaries, place.path());
    let porch = Kai::up(&lab, "porch", &binaries, place.path());
    porch.ask(&["join", "--yes", &invitation_as(&story.attic, "steward")]);
    story.call_goes_through();
    for name in ["attic", "cellar"] {
        until_or(
            "porch reaches everybody over the relay",
            || porch.path_to(name) == "carried",
            || format!("{name}: {}\n{}", porch.path_to(name), porch.log()),
        );
    }
    assert_eq!(story.cellar.path_to("attic"), "carried");
    story.cellar.down();
    let (folder, copy) = (story.cellar.folder().to_owned(), place.path().join("copy"));
    copy_folder(&folder, &copy);
    story.cellar.start();
    story.call_goes_through();

    porch.ask(&["members", "remove", "cellar"]);
    let begun = Instant::now();
    until("attic knows of it", || !names(&story.attic).contains(&"cellar".to_owned()));
    let told = begun.elapsed();
    until("cellar can do nothing any more", || !story.call_succeeds());
    let ended = begun.elapsed();
    println!("attic heard over the relay after {told:?}, the last call succeeded before {ended:?}");
    assert!(told < Duration::from_secs(20), "attic heard after {told:?}");

    story.cellar.kill();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(&copy, &folder).unwrap();
    let refused = |node: &Kai<'_>| node.metric(REFUSED);
    let before = (story.relay.metric(REFUSED), story.relay.metric(CARRIED));
    story.cellar.start();
    assert!(names(&story.cellar).contains(&"attic".to_owned()), "cellar believes to be a member");
    for _ in 0..3 {
        assert!(!story.call_succeeds());
        for name in ["attic", "porch"] {
            let path = story.cellar.path_to(name);
            assert!(path != "direct" && path != "carried", "{name} answered a removed member: {path}");
        }
    }
    let after = (story.relay.metric(REFUSED), story.relay.metric(CARRIED));
    println!(
        "the relay refused {} times and carried {} bytes; attic refused {}, porch {}",
        after.0 - before.0,
        after.1 - before.1,
        refused(&story.attic),
        refused(&porch),
    );
    assert!(after.0 > before.0, "the relay let a removed member in");
    assert!(names(&story.cellar).contains(&"attic".to_owned()), "cellar still ignores it");
    assert_eq!(porch.path_to("attic"), "carried");
}

/// Refused because the key is a removed member's.
const REFUSED: &str = "kos_refusals_total{layer=\"link\",reason=\"removed\"}";

fn copy_folder(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}
