//! The vectors of `protocol/vectors`: made, compared, run as another implementation would, held against the CDDL, given to
//! Python, and mutated. `KLP_VECTORS_WRITE=1 cargo test -p kos-protocol --test vectors` writes them anew.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_types, clippy::disallowed_methods)]

mod build;
mod cddl;
#[path = "../hostile/dice.rs"]
mod dice;
mod federation;
mod foreign;
mod mutate;
mod python;
mod run;
mod spec;

use serde_json::Value;
use std::path::PathBuf;

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// The vectors of one file, as they lie in the tree.
pub fn vectors(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder().join(file)).unwrap();
    let whole: Value = serde_json::from_str(&text).unwrap();
    whole["vectors"].as_array().unwrap().clone()
}

#[test]
fn the_files_are_what_we_make() {
    let write = std::env::var("KLP_VECTORS_WRITE").is_ok_and(|value| value == "1");
    for (name, content) in build::files() {
        let path = folder().join(name);
        if write {
            std::fs::write(&path, &content).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == content, "{name} differs from what the code makes; KLP_VECTORS_WRITE=1 writes it");
    }
    let mut there: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    there.sort();
    let mut made: Vec<&str> = build::files().into_iter().map(|(name, _)| name).collect();
    made.sort();
    assert_eq!(there, made, "no file lies there that nobody makes");
}
