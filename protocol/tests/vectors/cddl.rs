//! `klp.cddl` against the vectors: what is valid matches its rule; what has the wrong shape does not.

use crate::{
    build::{self, unhex},
    vectors,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const CDDL: &str = include_str!("../../klp.cddl");

/// Every rule of the file: its name and its text.
fn rules() -> BTreeMap<&'static str, String> {
    let mut rules = BTreeMap::new();
    let mut current = None;
    for line in CDDL.lines().filter(|line| !line.starts_with(';')) {
        if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with(' ')) {
            current = Some(name);
        }
        if let Some(name) = current {
            *rules.entry(name).or_insert_with(String::new) += &format!("{line}\n");
        }
    }
    rules
}

/// A rule and what it names, as a text of its own with that rule as its root. The validator reads its text anew for each
/// item, which takes far longer than matching.
fn text_of(rule: &str) -> String {
    let rules = rules();
    let (mut wanted, mut text) = (vec![rule.to_owned()], format!("root = {rule}\n"));
    let mut taken = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        let Some(rule) = rules.get(name.as_str()).filter(|_| taken.insert(name.clone())) else { continue };
        text += rule;
        let words = rule.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
        wanted.extend(words.map(str::to_owned));
    }
    text
}

fn matches(text: &str, item: &[u8]) -> Result<(), String> {
    cddl::validate_cbor_from_slice(text, item, None).map_err(|error| error.to_string())
}

/// A vector, and the acts of a history one by one.
fn with_parts(vector: &Value) -> Vec<Value> {
    let acts = vector["acts"].as_array().into_iter().flatten();
    let named = acts.enumerate().map(|(place, act)| {
        let mut act = act.clone();
        act["name"] = format!("{}, act {place}", vector["name"]).into();
        act
    });
    std::iter::once(vector.clone()).chain(named).collect()
}

#[test]
fn the_whole_file_is_cddl() {
    assert_eq!(matches(CDDL, &[5]), Ok(()), "its first rule is u16");
    assert_eq!(
        rules().len(),
        CDDL.lines()
            .filter(|line| line.contains(" = ") && line.starts_with(|c: char| c.is_ascii_lowercase()))
            .count()
    );
}

#[test]
fn the_cddl_describes_the_vectors() {
    let (mut accepted, mut refused) = (BTreeSet::new(), BTreeSet::new());
    // The same act is in many histories.
    let (mut seen, mut texts) = (BTreeSet::new(), BTreeMap::new());
    for (file, _) in build::files() {
        for vector in vectors(file).iter().flat_map(with_parts) {
            for (expected, rules) in [(true, &vector["cddl"]), (false, &vector["cddl_refuses"])] {
                for (field, rule) in rules.as_object().into_iter().flatten() {
                    let rule = rule.as_str().unwrap();
                    let text = texts.entry(rule.to_owned()).or_insert_with(|| text_of(rule));
                    let items = match &vector[field] {
                        Value::Array(items) => items.iter().collect(),
                        item => vec![item],
                    };
                    for item in
                        items.into_iter().filter(|item| seen.insert((rule.to_owned(), item.to_string())))
                    {
                        let outcome = matches(text, &unhex(item));
                        assert_eq!(
                            outcome.is_ok(),
                            expected,
                            "{file}: {}: {rule}: {outcome:?}",
                            vector["name"]
                        );
                    }
                    if expected { &mut accepted } else { &mut refused }.insert(rule.to_owned());
                }
            }
        }
    }
    let all = [
        "signed-object",
        "sig-structure",
        "key-event",
        "notice",
        "carry-header",
        "hello",
        "head",
        "reply-head",
        "end",
        "genesis",
        "act",
        "action",
        "invite",
        "join-code",
        "relay-line",
        "join-request",
        "welcome",
        "discovery-secret",
        "record",
        "node-record",
        "agent-record",
        "agent-cert",
        "item",
        "items",
        "fetch",
        "fetched",
        "stored",
        "reconciled",
        "link-record",
        "suspect-record",
        "service-record",
    ];
    assert_eq!(accepted, all.map(str::to_owned).into(), "every rule has an item that matches");
    println!("rules that also refused something: {refused:?}");
}
