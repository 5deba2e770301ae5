//! Small faults, chosen by a seed, and the vectors as a corpus to make them in. For tests of this and other packages, which
//! name this file by its path.

use serde_json::Value;
use std::path::Path;

/// SplitMix64: enough to choose faults by.
pub struct Dice(u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[0]
    }

    /// One to three faults: a flipped bit, a byte, a cut, an insertion, a piece twice, a piece of another vector.
    pub fn mutate(&mut self, original: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..1 + self.below(3) {
            let at = self.below(bytes.len());
            let end =
                at + self.below(bytes.len() - at.min(bytes.len()) + 1).min(bytes.len() - at.min(bytes.len()));
            match self.below(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.byte(),
                2 => bytes.truncate(at),
                3 => bytes.insert(at, self.byte()),
                4 => drop(bytes.drain(at.min(bytes.len())..end.min(bytes.len()))),
                5 => {
                    let piece = bytes[at.min(bytes.len())..end.min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let from = self.below(other.len());
                    let to = from + self.below(other.len() - from + 1);
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
            }
            bytes.truncate(65_536);
        }
        bytes
    }
}

/// Rounds, from the environment or few enough for every run, more with `CI_LONG=1`; and the seed, printed so that a failure can be run again.
pub fn dice(what: &str) -> (Dice, usize) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("KLP_SEED").unwrap_or(clock.as_micros() as u64);
    let is_long = std::env::var("CI_LONG").is_ok_and(|value| value == "1");
    let rounds = number("KLP_MUTATION_ROUNDS").unwrap_or(if is_long { 200_000 } else { 4_000 });
    println!("{what}: KLP_SEED={seed} KLP_MUTATION_ROUNDS={rounds}");
    (Dice(seed), usize::try_from(rounds).unwrap())
}

/// Every byte string in the vectors, once.
pub fn corpus() -> Vec<Vec<u8>> {
    fn collect(value: &Value, into: &mut Vec<Vec<u8>>) {
        match value {
            Value::String(text) => {
                into.extend(data_encoding::HEXLOWER.decode(text.as_bytes()).ok().filter(|b| !b.is_empty()))
            }
            Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
            Value::Object(fields) => fields.values().for_each(|field| collect(field, into)),
            _ => {}
        }
    }
    // Of whichever package's test this is.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = package.ancestors().map(|folder| folder.join("protocol/vectors"));
    let folder = folders.find(|folder| folder.is_dir()).unwrap();
    let mut corpus = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|extension| extension == "json") {
            let whole: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            collect(&whole["vectors"], &mut corpus);
        }
    }
    corpus.sort();
    corpus.dedup();
    corpus
}
