//! What a hostile message makes reconciliation hold: a bounded multiple of the longest message, and room for the names of
//! the set, whatever lengths and counts the bytes announce.
#![allow(missing_docs, unsafe_code, clippy::unwrap_used)]

use kos_directory::reconcile::{Initiator, NAME_BYTES, Set, respond};
use kos_protocol::{id::sha256, limits::RECONCILE_BYTES_MAX};
use memory::peak;
use proptest::prelude::*;

#[path = "../../../protocol/tests/hostile/memory.rs"]
mod memory;

const T0: u64 = 1_800_000_000_000;
const ELEMENTS: u64 = 4_000;
/// The names of a message in an ordered set, and an answer that grows by doubling.
const MESSAGES_HELD: usize = 8;
/// Names that the other end claims to lack, growing by doubling, and their sorted copy.
const NAMES_HELD: usize = 5 * NAME_BYTES;

fn set() -> Set {
    Set::new((0..ELEMENTS).map(|n| (T0 + n, sha256(&n.to_be_bytes()))).collect())
}

fn varint(number: u64) -> Vec<u8> {
    let mut digits = vec![(number & 127) as u8];
    let mut rest = number >> 7;
    while rest > 0 {
        digits.insert(0, (rest & 127) as u8 | 128);
        rest >>= 7;
    }
    digits
}

/// Where a range ends, as the step from the one before: a little further on, at the end, or anywhere.
fn bound() -> impl Strategy<Value = Vec<u8>> {
    let time = prop_oneof![8 => 1..60_u64, 2 => Just(T0), 1 => Just(0), 1 => any::<u64>()];
    let prefix = prop_oneof![8 => Just(0), 8 => 0..33_usize];
    (time, prefix)
        .prop_map(|(time, prefix)| [varint(time), varint(prefix as u64), vec![0x5a; prefix]].concat())
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    (0..64_usize, any::<u8>())
        .prop_map(|(names, byte)| [vec![2], varint(names as u64), vec![byte; names * NAME_BYTES]].concat())
}

/// What is wrong in itself: a mode there is not, a list shorter than it says, a prefix longer than a name.
fn lie() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<u64>().prop_map(varint),
        any::<u64>().prop_map(|count| [vec![2], varint(count), vec![7; NAME_BYTES]].concat()),
        any::<u64>().prop_map(|prefix| [vec![0], varint(prefix)].concat()),
    ]
}

fn range() -> impl Strategy<Value = Vec<u8>> {
    let fingerprint = prop::collection::vec(any::<u8>(), 16).prop_map(|print| [vec![1], print].concat());
    let content = prop_oneof![30 => Just(vec![0]), 60 => fingerprint, 60 => names(), 1 => lie()];
    (bound(), content).prop_map(|(bound, content)| [bound, content].concat())
}

fn hear(set: &Set, message: &[u8]) -> Result<(), TestCaseError> {
    let bytes_max = MESSAGES_HELD * RECONCILE_BYTES_MAX + set.len();
    let mut answer = None;
    let held = peak(|| answer = respond(set, message).ok());
    prop_assert!(held <= bytes_max, "{held} bytes to answer {}", message.len());
    prop_assert!(answer.is_none_or(|answer| answer.len() <= RECONCILE_BYTES_MAX));

    let (mut initiator, _) = Initiator::new(set.clone());
    let mut step = None;
    let held = peak(|| step = initiator.step(message).ok());
    prop_assert!(
        held <= bytes_max + NAMES_HELD * set.len(),
        "{held} bytes for an answer of {}",
        message.len()
    );
    if let Some(step) = step {
        prop_assert!(step.need.len() * NAME_BYTES <= message.len() && step.have.len() <= set.len());
        prop_assert!(step.message.is_none_or(|message| message.len() <= RECONCILE_BYTES_MAX));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn hostile_ranges_hold_a_bounded_amount(ranges in prop::collection::vec(range(), 0..200)) {
        let mut message = [vec![0x61], ranges.concat()].concat();
        message.truncate(RECONCILE_BYTES_MAX);
        hear(&set(), &message)?;
    }

    /// The messages of a real reconciliation, each with some bytes altered or cut off.
    #[test]
    fn altered_messages_hold_a_bounded_amount(
        every in 2..300_u64,
        alterations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let ours = set();
        let theirs: Vec<_> = ours.after(None).iter().filter(|(time, _)| time % every != 0).copied().collect();
        let theirs = Set::new(theirs);
        let alter = |message: &[u8]| {
            let mut message = message.to_vec();
            for (place, byte) in &alterations {
                let place = place.index(message.len());
                message[place] = *byte;
            }
            message.truncate(cut.map_or(message.len(), |cut| cut.index(message.len())));
            message
        };
        let (mut initiator, first) = Initiator::new(ours.clone());
        let mut asked = Some(first);
        while let Some(message) = asked {
            let answer = respond(&theirs, &message).unwrap();
            hear(&theirs, &alter(&message))?;
            hear(&ours, &alter(&answer))?;
            asked = initiator.step(&answer).unwrap().message;
        }
    }
}

#[test]
fn a_count_of_names_that_are_not_there_reserves_nothing() {
    let set = set();
    for count in [1, 2_000, 1 << 40, u64::MAX] {
        let message = [vec![0x61, 0, 0, 2], varint(count)].concat();
        let held = peak(|| assert!(respond(&set, &message).is_err()));
        assert!(held <= 1_024, "{held} bytes for {count}");
    }
}
