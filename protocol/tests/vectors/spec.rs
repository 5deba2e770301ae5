//! What SPEC says and the code holds are the same numbers.

use std::collections::BTreeMap;

/// `NAME: value` of every constant in `limits.rs`, computed from its text.
fn limits() -> BTreeMap<String, u64> {
    let mut values = BTreeMap::new();
    for line in include_str!("../../src/limits.rs").lines() {
        let Some(rest) = line.strip_prefix("pub const ") else { continue };
        let (name, rest) = rest.split_once(':').unwrap();
        let expression = rest.split_once(" = ").unwrap().1.trim_end_matches(';');
        let term = |term: &str| match term {
            "u32::MAX" => u64::from(u32::MAX),
            name if values.contains_key(name) => values[name],
            number => {
                number.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}: cannot read `{number}`"))
            }
        };
        let mut words = expression.split(' ');
        let mut value = term(words.next().unwrap());
        while let (Some(operator), Some(operand)) = (words.next(), words.next()) {
            let operand = term(operand);
            value = match operator {
                "*" => value * operand,
                "-" => value - operand,
                "+" => value + operand,
                "<<" => value << operand,
                other => panic!("{name}: cannot read `{other}`"),
            };
        }
        values.insert(name.to_owned(), value);
    }
    values
}

#[test]
fn every_limit_is_in_the_table_with_its_value() {
    let spec = include_str!("../../SPEC.md");
    let section = spec.split("\n## 10. Limits").nth(1).unwrap().split("\n## ").next().unwrap();
    let table: BTreeMap<String, u64> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            let (name, rest) = row.split_once("` | ").unwrap();
            let value = rest.split(" |").next().unwrap().replace(',', "");
            (name.to_owned(), value.parse().unwrap())
        })
        .collect();
    let limits = limits();
    assert!(limits.len() > 20 && limits["DATA_BYTES_MAX"] == kos_protocol::limits::DATA_BYTES_MAX as u64);
    let differences: Vec<String> = limits
        .iter()
        .filter(|(name, value)| table.get(*name) != Some(value))
        .map(|(name, value)| format!("add to SPEC §10: | `{name}` | {value} |"))
        .chain(
            table
                .keys()
                .filter(|name| !limits.contains_key(*name))
                .map(|name| format!("remove from SPEC §10: {name}")),
        )
        .collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn every_limit_the_text_names_exists() {
    let limits = limits();
    let spec = include_str!("../../SPEC.md");
    let words = spec.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_limit =
        |word: &&str| word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    for word in words.filter(is_limit) {
        assert!(limits.contains_key(word), "`{word}` is in SPEC, not in limits.rs");
    }
}

#[test]
fn every_section_the_code_cites_exists() {
    let spec = include_str!("../../SPEC.md");
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let mut cited = 0;
    for path in sources.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(&path).unwrap();
        for rest in text.split("SPEC §").skip(1) {
            let section: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            let section = section.trim_end_matches('.');
            let headings = [format!("\n## {section}. "), format!("\n### {section} ")];
            assert!(headings.iter().any(|heading| spec.contains(heading)), "{}: §{section}", path.display());
            cited += 1;
        }
    }
    assert!(cited > 8);
}
