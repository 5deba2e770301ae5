//! Denied calls, counted: a member that calls what it may not, over and over, must not fill the log.
//!
//! The first denial of a caller and an agent is an entry at once. Further ones are counted, and the count becomes an
//! entry after a minute, then after two, four and so on up to an hour; after an hour without any the pair is forgotten.
//! Pairs are bounded by caller, who can make up agents' names, and altogether; what finds no place is counted as one.
//! So a caller costs at most [`PAIRS_PER_CALLER_MAX`] entries an hour in the long run.

use crate::agents::Denial;
use kos_protocol::id::{AgentId, MemberId};
use std::collections::BTreeMap;

/// Agents counted apart, of one caller.
pub(super) const PAIRS_PER_CALLER_MAX: usize = 8;
/// Pairs of caller and agent counted apart.
pub(super) const PAIRS_MAX: usize = 256;
/// The first wait before a count becomes an entry.
const FIRST_MS: u64 = 60_000;
/// The longest.
const MOST_MS: u64 = 3_600_000;

/// Who was denied what; none for all that finds no place of its own.
type Pair = Option<(MemberId, AgentId)>;

/// Counts denied calls. Sans-IO: each deed brings the time, and gives the texts of the entries that are due.
#[derive(Default)]
pub(super) struct Denials(BTreeMap<Pair, Counted>);

struct Counted {
    /// Why the last of them was.
    why: String,
    count: u64,
    wait_ms: u64,
    due_ms: u64,
}

impl Denials {
    /// Takes in a denial; returns the text of an entry when it is the first of its kind.
    pub fn add(&mut self, now_ms: u64, denial: Denial) -> Option<String> {
        let pair = self.place(&denial);
        if let Some(counted) = self.0.get_mut(&pair) {
            counted.count += 1;
            counted.why = denial.why;
            return None;
        }
        let text = format!("{} called {}: {}", denial.caller, denial.agent, denial.why);
        let counted = Counted { why: denial.why, count: 0, wait_ms: FIRST_MS, due_ms: now_ms + FIRST_MS };
        self.0.insert(pair, counted);
        Some(text)
    }

    fn place(&self, denial: &Denial) -> Pair {
        let pair = Some((denial.caller, denial.agent.clone()));
        let of_caller = self.0.keys().flatten().filter(|(caller, _)| *caller == denial.caller).count();
        let has_room = of_caller < PAIRS_PER_CALLER_MAX && self.0.len() < PAIRS_MAX;
        if has_room || self.0.contains_key(&pair) { pair } else { None }
    }

    /// The entries due at `now_ms`, which may be [`u64::MAX`] for all that is counted.
    pub fn due(&mut self, now_ms: u64) -> Vec<String> {
        let mut texts = Vec::new();
        self.0.retain(|pair, counted| {
            if counted.due_ms > now_ms {
                return true;
            }
            if counted.count == 0 && counted.wait_ms == MOST_MS {
                return false;
            }
            if counted.count > 0 {
                texts.push(counted.text(pair));
            }
            counted.count = 0;
            counted.wait_ms = (counted.wait_ms * 2).min(MOST_MS);
            counted.due_ms = now_ms.saturating_add(counted.wait_ms);
            true
        });
        texts
    }
}

impl Counted {
    fn text(&self, pair: &Pair) -> String {
        let (count, minutes) = (self.count, self.wait_ms / 60_000);
        let (who, what) = match pair {
            Some((caller, agent)) => (caller.to_string(), agent.to_string()),
            None => ("callers without an entry of their own".to_owned(), "agents".to_owned()),
        };
        format!("{who} called {what} {count} times more within {minutes} min: {}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(caller: u8, agent: &str) -> Denial {
        Denial {
            caller: MemberId::from_bytes([caller; 32]),
            agent: agent.parse().unwrap(),
            why: "no".to_owned(),
        }
    }

    #[test]
    fn the_first_denial_is_told_at_once_and_the_rest_is_counted() {
        let mut denials = Denials::default();
        let first = denials.add(0, denial(1, "kBridge:notes")).unwrap();
        assert!(first.ends_with("called kBridge:notes: no"), "{first}");
        for _ in 0..1_000 {
            assert_eq!(denials.add(10, denial(1, "kBridge:notes")), None);
        }
        assert!(denials.add(10, denial(2, "kBridge:notes")).is_some(), "another caller");
        assert!(denials.due(59_999).is_empty());
        let told = denials.due(60_000);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("1000 times more within 1 min"), "{told:?}");
        assert_eq!(denials.add(60_001, denial(1, "kBridge:notes")), None);
        assert!(denials.due(179_999).is_empty());
        assert!(denials.due(180_000)[0].contains("1 times more within 2 min"));
    }

    #[test]
    fn one_caller_costs_a_few_entries_an_hour_whatever_names_it_makes_up() {
        let mut denials = Denials::default();
        let (mut entries, hours) = (0, 24);
        for second in 0..hours * 3_600_u64 {
            let agent = format!("kBridge:a{}", second % 1_000);
            entries += usize::from(denials.add(second * 1_000, denial(1, &agent)).is_some());
            entries += denials.due(second * 1_000).len();
        }
        let bound = (PAIRS_PER_CALLER_MAX + 1) * (usize::try_from(hours).unwrap() + 8);
        assert!(entries <= bound, "{entries} entries, bound {bound}");
    }

    #[test]
    fn a_quiet_pair_is_forgotten_and_places_are_bounded() {
        let mut denials = Denials::default();
        for caller in 0..=255 {
            for agent in ["kBridge:a", "kBridge:b"] {
                let _ = denials.add(0, denial(caller, agent));
            }
        }
        assert!(denials.0.len() <= PAIRS_MAX + 1);
        let mut now_ms = 0;
        while !denials.0.is_empty() {
            now_ms += MOST_MS;
            denials.due(now_ms);
            assert!(now_ms < 20 * MOST_MS, "forgotten in the end");
        }
    }
}
