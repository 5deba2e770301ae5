//! The sets that are reconciled in front of the reference.

use super::{Lacks, Scenario};

/// Times in seconds, as the reference was made for.
const SECONDS: u64 = 1_700_000_000;
/// Times in milliseconds, as records have them.
const MILLISECONDS: u64 = 1_800_000_000_000;
const MANY: u64 = 10_000;

/// Which elements the initiator lacks, and which the responder.
type Shape = (&'static str, u64, Lacks, Lacks);

const ALL_THERE: Lacks = Vec::new();

fn none_of(count: u64) -> Lacks {
    vec![(0, count, 1)]
}

fn small() -> Vec<Shape> {
    vec![
        ("two empty sets", 0, ALL_THERE, ALL_THERE),
        ("one element at the initiator", 1, ALL_THERE, none_of(1)),
        ("one element at the responder", 1, none_of(1), ALL_THERE),
        ("as many as one list of names has", 31, ALL_THERE, vec![(7, 8, 1)]),
        ("one more than that", 32, vec![(7, 8, 1)], ALL_THERE),
        ("a hundred at the initiator", 100, ALL_THERE, none_of(100)),
        ("a hundred at the responder", 100, none_of(100), ALL_THERE),
    ]
}

fn large() -> Vec<Shape> {
    let newest = || vec![(MANY - 100, MANY, 1)];
    let spread = |first| vec![(first, MANY, 100)];
    vec![
        ("equal sets", MANY, ALL_THERE, ALL_THERE),
        ("the newest hundred at the responder", MANY, newest(), ALL_THERE),
        ("the newest hundred at the initiator", MANY, ALL_THERE, newest()),
        ("a hundred here and there at either end", MANY, spread(7), spread(63)),
        ("every third lacking at either end", MANY, vec![(0, MANY, 3)], vec![(1, MANY, 3)]),
    ]
}

fn one_sided() -> Vec<Shape> {
    vec![
        ("everything at the initiator", MANY, ALL_THERE, none_of(MANY)),
        ("everything at the responder", MANY, none_of(MANY), ALL_THERE),
    ]
}

pub fn all() -> Vec<Scenario> {
    let times = [
        ("seconds", SECONDS, 1, 1, [small(), large(), one_sided()].concat()),
        ("fifty of the same second", SECONDS, 60, 50, large()),
        ("all of one second", SECONDS, 1, MANY, large()),
        ("milliseconds", MILLISECONDS, 86_399, 1, [small(), large()].concat()),
    ];
    let mut all = Vec::new();
    for (times, first_time, step, same_time, shapes) in times {
        all.extend(shapes.into_iter().map(|(name, count, initiator_lacks, responder_lacks)| Scenario {
            name: format!("{name}, {times}"),
            first_time,
            step,
            same_time,
            count,
            initiator_lacks,
            responder_lacks,
        }));
    }
    all
}
