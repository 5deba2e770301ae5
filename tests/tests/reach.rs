//! How nodes come to be found and reached, in the NAT laboratory with the real binaries: the hash table, and a router
//! that forwards a port when it is asked.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    binaries, has,
    igd::{self, Igd},
    lab::Lab,
    lab_needs,
    node::{Kai, Relay, until, until_or},
    story::{SYMMETRIC, Story, one_at_a_time, topology},
};
use std::path::Path;

/// The public host of the hash table: a relay nobody has claimed, in nobody's federation.
const TOWER: &str = "tower";

fn ip(lab: &Lab, host: &str, words: &[&str]) -> String {
    let output = lab.run(host, Path::new("/usr/sbin/ip"), words);
    assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Gives a public host another address, and takes the old one.
fn move_public_host(lab: &Lab, host: &str, new: &str) {
    let shown = ip(lab, host, &["-4", "-o", "address", "show", "scope", "global"]);
    let words: Vec<&str> = shown.split_whitespace().collect();
    let (device, old) = (words[1], words[3]);
    let gateway = ip(lab, host, &["-4", "route", "show", "default"]);
    let gateway = gateway.split_whitespace().nth(2).unwrap();
    ip(lab, "internet", &["route", "add", &format!("{new}/32"), "dev", host]);
    ip(lab, "internet", &["route", "del", old.split('/').next().unwrap()]);
    ip(lab, host, &["address", "del", old, "dev", device]);
    ip(lab, host, &["address", "add", &format!("{new}/32"), "dev", device]);
    ip(lab, host, &["route", "replace", "default", "via", gateway, "dev", device, "onlink"]);
}

fn role(node: &Kai<'_>) -> String {
    node.json(&["status"])["hash_table"]["role"].as_str().unwrap_or_default().to_owned()
}

fn external(node: &Kai<'_>) -> String {
    node.json(&["status"])["reachability"]["external"].to_string()
}

/// attic is public, cellar behind a NAT; both know a relay of theirs and, from their settings, a server of the hash
/// table that is in no federation of theirs.
#[test]
fn a_member_that_moved_is_found_through_the_hash_table_when_the_relay_is_gone() {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    let topology = "[gateways.office]\nnat = \"port-restricted\"\n[hosts.relay]\n[hosts.tower]\n[hosts.attic]\n\
                    [hosts.cellar]\nbehind = \"office\"\n";
    let (lab, place, binaries) = (Lab::up(topology), tempfile::tempdir().unwrap(), binaries!());
    let tower = Relay::up(&lab, TOWER, &binaries, place.path());
    let bootstrap = format!("network.bootstrap={:?}", tower.bootstrap());
    assert!(bootstrap.contains("/p2p/"), "{bootstrap}: {}", tower.log());
    let mut story = Story::begin_with(&lab, &binaries, place.path(), &[bootstrap]);
    story.call_goes_through();
    story.path_becomes("direct");

    let (attic, cellar) = (&story.attic, &story.cellar);
    println!("attic serves after {:?}", until("AutoNAT makes attic a server", || role(attic) == "server"));
    assert_eq!(attic.metric("kos_hash_table_role{role=\"server\"}"), 1);
    until("AutoNAT found that nobody comes in to cellar", || {
        cellar.metric("kos_nat_filtering{filtering=\"restricted\"}") == 1
    });
    assert_eq!(role(cellar), "client");
    assert_eq!(cellar.metric("kos_hash_table_role{role=\"client\"}"), 1);
    until("somebody keeps attic's names", || attic.json(&["status"])["hash_table"]["names_ours"] == 2);

    let pid = story.cellar.pid();
    lab.order(&["isolate", "cellar"]);
    story.relay.kill();
    let new = "198.51.100.200";
    move_public_host(&lab, "attic", new);
    let (attic, cellar) = (&story.attic, &story.cellar);
    let took = until_or(
        "attic is confirmed where it is now",
        || external(attic).contains(new),
        || format!("{}\n{}", attic.json(&["status"]), attic.log()),
    );
    println!("confirmed at the new address after {took:?}: {}", external(attic));
    assert!(!external(attic).contains("198.51.100.1"), "an address that leads nowhere is still told");
    lab.order(&["heal", "cellar"]);
    let took = until_or(
        "cellar finds attic",
        || story.call_succeeds(),
        || format!("cellar:\n{}\nattic:\n{}\ntower:\n{}", cellar.log(), attic.log(), tower.log()),
    );
    println!("found through the hash table {took:?} after cellar was back");
    assert_eq!(story.cellar.pid(), pid);
    let members = story.cellar.json(&["members"]);
    let attic =
        members["members"].as_array().unwrap().iter().find(|member| member["name"] == "attic").unwrap();
    assert!(attic["link"]["address"].to_string().contains(new), "{attic}");
    // A lookup is counted when it ends; its first answer is enough for the call.
    until("a lookup has ended", || story.cellar.metric("kos_deeds_total{deed=\"looked_up\"}") > 0);
    assert!(tower.metric("kos_hash_table_names{whose=\"others\"}") > 0);
}

/// Two symmetric NATs cannot be punched. The router before attic forwards a port for whoever asks, so cellar comes in.
///
/// The internet has addresses that are none of documentation here: libp2p, and the router, ask whether the router's
/// outer address is a global one. AutoNAT does not probe the port: libp2p takes the router's word, and probes candidates only.
#[test]
fn a_router_that_is_asked_for_a_port_lets_others_in() {
    if !has("a router with UPnP", &[lab_needs(), vec![igd::needs()]].concat()) {
        return;
    }
    let _turn = one_at_a_time();
    let topology = topology("[internet]\nipv4 = \"9.9.9.0/24\"", SYMMETRIC, SYMMETRIC);
    let (lab, place, binaries) = (Lab::up(&topology), tempfile::tempdir().unwrap(), binaries!());
    let _igd = Igd::up(&lab, "home");
    let story = Story::begin_with(&lab, &binaries, place.path(), &["network.upnp=true".to_owned()]);
    let (attic, cellar) = (&story.attic, &story.cellar);
    let took = until_or(
        "the router forwards a port",
        // It exits with 7: the recovery key is not written down.
        || {
            let shown = attic.run(&["status"]).stdout;
            String::from_utf8_lossy(&shown).contains("the router forwards /ip4/9.9.9.")
        },
        || format!("{}\n{}", attic.json(&["status"]), attic.log()),
    );
    let reach = attic.json(&["status"])["reachability"].clone();
    println!("{} after {took:?}", reach["port_mapping"]);
    assert_eq!(reach["class"], "public", "{reach}");
    assert_eq!(attic.metric("kos_port_mapping{state=\"mapped\"}"), 1);
    println!("direct after {:?}", story.path_becomes("direct"));
    until("cellar's router cannot be asked", || cellar.metric("kos_port_mapping{state=\"no_gateway\"}") == 1);
    let forwarded = reach["external"].to_string();
    let members = cellar.json(&["members"]);
    let seen =
        members["members"].as_array().unwrap().iter().find(|member| member["name"] == "attic").unwrap();
    let address = seen["link"]["address"].as_str().unwrap();
    assert!(forwarded.contains(address), "cellar is at {address}, forwarded is {forwarded}");
    assert!(story.call_succeeds());
}
