//! What takes how many round trips, in the laboratory at 80 ms. Prints the figures in the form of `kai bench`; asserts
//! outcomes, and times only at ten times their bar.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_tests::{
    binaries, has,
    lab::Lab,
    lab_needs,
    node::{Kai, PATIENCE, until},
    story::{CONE, NOTES, SYMMETRIC, Story, one_at_a_time, topology},
};
use std::time::{Duration, Instant};

/// The round trip between the two nodes; the relay is half as far from either.
const RTT: Duration = Duration::from_millis(80);
/// A time guards against hanging only.
const GUARD: f64 = 10.0;

/// How often each is tried: 3 times, or 20 with `CI_LONG=1`.
fn tries() -> u32 {
    if kos_tests::tries() > 1 { 20 } else { 3 }
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    values[((values.len() as f64 * share) as usize).min(last)]
}

/// Prints a figure and holds it to ten times its bar.
fn figure(name: &str, value: f64, unit: &str, bar: f64) {
    let figure = serde_json::json!({"name": name, "value": value, "unit": unit, "peer": null, "ratio": null, "bar": bar});
    println!("{}", serde_json::json!({"schema_version": 1, "results": [figure]}));
    assert!(value <= GUARD * bar, "{name} is {value} {unit}, more than ten times its bar of {bar}");
}

fn far_apart(lab: &Lab) {
    for host in ["attic", "cellar"] {
        lab.order(&["latency", host, "any", "40ms"]);
    }
}

#[test]
fn a_cold_call_takes_one_round_trip_more_than_its_handshake() {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    let topology = format!("[gateways.office]\n{CONE}\n[hosts.attic]\n[hosts.cellar]\nbehind = \"office\"\n");
    let (lab, place, binaries) = (Lab::up(&topology), tempfile::tempdir().unwrap(), binaries!());
    let attic = Kai::up(&lab, "attic", &binaries, place.path());
    let mut cellar = Kai::up(&lab, "cellar", &binaries, place.path());
    let mut code = String::new();
    until("attic knows its address", || {
        code = attic.json(&["invite", "--lan"])["code"].as_str().unwrap_or_default().to_owned();
        !code.is_empty()
    });
    cellar.ask(&["join", "--yes", &code]);
    cellar.down();
    far_apart(&lab);
    let folder = place.path().join("cellar").display().to_string();
    for (name, bar, unknown) in [("cold_known", 2.2, None), ("cold_unknown", 3.2, Some("--unknown"))] {
        let count = tries().to_string();
        let words: Vec<&str> = ["cold", &folder, "attic", &count].into_iter().chain(unknown).collect();
        let output = lab.run("cellar", &binaries.tool, &words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let times: Vec<f64> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(times.len(), tries() as usize);
        figure(name, quantile(times, 0.5) / (RTT.as_secs_f64() * 1000.0), "RTT", bar);
    }
}

#[test]
fn joining_and_punching_are_quick_between_far_homes() {
    let (mut joins, mut punches) = (Vec::new(), Vec::new());
    for _ in 0..tries() {
        let Some((join, punch)) = join_and_punch() else { return };
        joins.push(join);
        punches.push(punch);
    }
    figure("join_p50", quantile(joins.clone(), 0.5), "s", 2.0);
    figure("join_p95", quantile(joins, 0.95), "s", 4.0);
    figure("punch_p50", quantile(punches, 0.5), "s", 1.0);
}

/// Seconds from the join command to the first call that succeeded, and to a direct connection.
fn join_and_punch() -> Option<(f64, f64)> {
    if !has("the NAT laboratory", &lab_needs()) {
        return None;
    }
    let _turn = one_at_a_time();
    let (lab, place, binaries) =
        (Lab::up(&topology("", CONE, CONE)), tempfile::tempdir().unwrap(), binaries!());
    let begun = std::cell::Cell::new(Instant::now());
    let story = Story::begin_after(&lab, &binaries, place.path(), || {
        far_apart(&lab);
        begun.set(Instant::now());
    });
    story.call_goes_through();
    let join = begun.get().elapsed();
    until("a direct connection", || is_direct(&story.cellar));
    Some((join.as_secs_f64(), begun.get().elapsed().as_secs_f64()))
}

fn is_direct(node: &Kai<'_>) -> bool {
    let members = node.json(&["members"]);
    let attic = members["members"].as_array().unwrap().iter().find(|member| member["name"] == "attic");
    attic.is_some_and(|attic| attic["link"]["path"] == "direct")
}

#[test]
fn a_call_between_symmetric_nats_is_carried_at_once() {
    if !has("the NAT laboratory", &lab_needs()) {
        return;
    }
    let _turn = one_at_a_time();
    let (lab, place, binaries) =
        (Lab::up(&topology("", SYMMETRIC, SYMMETRIC)), tempfile::tempdir().unwrap(), binaries!());
    let mut story = Story::begin(&lab, &binaries, place.path());
    story.call_goes_through();
    far_apart(&lab);
    let mut times = Vec::new();
    for _ in 0..tries() {
        // Without a session: only the key is known.
        story.cellar.down();
        story.cellar.start();
        until("cellar has its relay", || {
            story.cellar.json(&["relay", "list"])["relays"][0]["reserved"] == true
        });
        let begun = Instant::now();
        let output = story.cellar.run(&["call", NOTES, "/"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        times.push(begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < PATIENCE);
    }
    assert_eq!(story.cellar.path_to("attic"), "carried");
    figure("relayed_call_p95", quantile(times, 0.95), "s", 0.6);
}

#[test]
fn quantiles_are_of_the_sorted_values() {
    assert!((quantile(vec![3.0, 1.0, 2.0], 0.5) - 2.0).abs() < f64::EPSILON);
    assert!((quantile(vec![3.0, 1.0, 2.0], 0.95) - 3.0).abs() < f64::EPSILON);
}
