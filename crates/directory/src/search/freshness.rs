//! How true an answer is.

/// A catch-up that is older than this says little of now, in milliseconds: more than two of the shell's rounds.
pub const CAUGHT_UP_MS_MAX: u64 = 11 * 60 * 1000;

/// Whether an answer from local memory has everything there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Completeness {
    /// As of the last catch-up, and gossip since. Next: any other.
    Complete,
    /// No catch-up has come to its end since this node started, or most of the others are out of reach: rather a network in
    /// two than so many dead. Next: complete, stale.
    Partial,
    /// There is nobody to ask, or nobody was asked for long. Next: partial, complete.
    Stale,
}

/// What completeness depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Other active members.
    pub others: usize,
    /// Those of them that there is a direct link with.
    pub linked: usize,
    /// Those that are suspected or down.
    pub lost: usize,
    /// How long ago the last catch-up came to its end, in milliseconds; none since the start.
    pub caught_up_ms: Option<u64>,
}

impl Freshness {
    /// How true an answer is now.
    pub fn completeness(&self) -> Completeness {
        match (self.others, self.linked, self.caught_up_ms) {
            (0, ..) => Completeness::Complete,
            (_, 0, _) => Completeness::Stale,
            (_, _, None) => Completeness::Partial,
            (_, _, Some(ms)) if ms > CAUGHT_UP_MS_MAX => Completeness::Stale,
            (others, ..) if 2 * self.lost > others => Completeness::Partial,
            _ => Completeness::Complete,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_how_true_it_is() {
        let with = |others, linked, lost, caught_up_ms| {
            Freshness { others, linked, lost, caught_up_ms }.completeness()
        };
        let of = |others, linked, caught_up_ms| with(others, linked, 0, caught_up_ms);
        assert_eq!(with(6, 2, 3, Some(10)), Completeness::Complete);
        assert_eq!(with(6, 2, 4, Some(10)), Completeness::Partial, "a network in two");
        assert_eq!(of(0, 0, None), Completeness::Complete, "there is nobody else");
        assert_eq!(of(5, 0, Some(10)), Completeness::Stale);
        assert_eq!(of(5, 1, None), Completeness::Partial);
        assert_eq!(of(5, 1, Some(10)), Completeness::Complete);
        assert_eq!(of(5, 1, Some(CAUGHT_UP_MS_MAX + 1)), Completeness::Stale);
    }
}
