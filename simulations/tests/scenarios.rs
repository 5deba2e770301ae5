//! Every scenario with 20 seeds; with 200 under `CI_LONG=1`. A failure names the command that replays it.
#![allow(missing_docs, clippy::unwrap_used)]

use kos_simulations::{scenario::Scenario, world};

fn seeds() -> std::ops::Range<u64> {
    let is_long = std::env::var("CI_LONG").is_ok_and(|value| value == "1");
    if is_long { 1..201 } else { 1..21 }
}

fn hold(name: &str, text: &str) {
    let scenario = Scenario::parse(text).unwrap();
    assert_eq!(scenario.name, name);
    let mut settled_ms = Vec::new();
    for seed in seeds() {
        match world::run(&scenario, seed) {
            Ok(outcome) => settled_ms.push(outcome.settled_ms),
            Err(violation) => panic!("{violation}"),
        }
    }
    settled_ms.sort_unstable();
    println!(
        "{name}: settled after {} ms, {} ms at the most",
        settled_ms[settled_ms.len() / 2],
        settled_ms.last().unwrap()
    );
}

macro_rules! scenarios {
    ($($test:ident $name:literal;)*) => {
        $(#[test]
        fn $test() {
            hold($name, include_str!(concat!("../scenarios/", $name, ".toml")));
        })*
    };
}

scenarios! {
    halves_that_changed_apart_agree_when_they_meet "partition-heals";
    nodes_crash_and_come_back "churn";
    members_break_the_rules "byzantine";
    a_starved_and_a_half_deaf_node_make_nobody_down "liveness";
    who_left_is_not_down_and_who_crashed_is "stops";
}

#[test]
fn a_run_can_be_had_again() {
    let scenario = Scenario::parse(include_str!("../scenarios/churn.toml")).unwrap();
    assert_eq!(world::run(&scenario, 7), world::run(&scenario, 7));
}

#[test]
fn what_is_no_scenario_is_told() {
    let text = include_str!("../scenarios/churn.toml");
    assert!(Scenario::parse(&text.replace("links", "link")).unwrap_err().contains("unknown field `link`"));
    let error = Scenario::parse(&format!("{text}\n[[fault]]\nkind = \"skew\"\nnode = 20\nahead_ms = 1\n"))
        .unwrap_err();
    assert_eq!(error, "a fault names node 20 of 20");
}
