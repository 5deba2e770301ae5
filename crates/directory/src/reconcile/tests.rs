use super::*;
use kos_protocol::id::sha256;
use proptest::prelude::*;
use std::collections::BTreeSet;

const T0: u64 = 1_800_000_000_000;

fn element(n: u64) -> (u64, Name) {
    (T0 + n, sha256(&n.to_be_bytes()))
}

#[derive(Default)]
struct Outcome {
    have: BTreeSet<Name>,
    need: BTreeSet<Name>,
    bytes: usize,
    rounds: usize,
}

fn reconcile(ours: &Set, theirs: &Set) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut initiator, first) = Initiator::new(ours.clone());
    let mut message = Some(first);
    while let Some(asked) = message {
        let answer = respond(theirs, &asked).unwrap();
        outcome.bytes += asked.len() + answer.len();
        outcome.rounds += 1;
        let step = initiator.step(&answer).unwrap();
        outcome.have.extend(step.have);
        outcome.need.extend(step.need);
        message = step.message;
    }
    outcome
}

fn check_difference(ours: &BTreeSet<(u64, Name)>, theirs: &BTreeSet<(u64, Name)>) -> Outcome {
    let set = |elements: &BTreeSet<_>| Set::new(elements.iter().copied().collect());
    let outcome = reconcile(&set(ours), &set(theirs));
    let only = |one: &BTreeSet<(u64, Name)>, other| one.difference(other).map(|(_, name)| *name).collect();
    assert_eq!((&outcome.have, &outcome.need), (&only(ours, theirs), &only(theirs, ours)));
    outcome
}

#[test]
fn identical_sets_cost_a_kilobyte_and_one_round() {
    let all: BTreeSet<_> = (0..100_000).map(element).collect();
    let outcome = check_difference(&all, &all);
    println!("{} bytes", outcome.bytes);
    assert!(
        outcome.bytes <= 1024 && outcome.rounds == 1,
        "{} bytes, {} rounds",
        outcome.bytes,
        outcome.rounds
    );
}

#[test]
fn the_newest_hundred_cost_less_than_a_hundred_bytes_each() {
    let all: BTreeSet<_> = (0..100_000).map(element).collect();
    let older: BTreeSet<_> = (0..99_900).map(element).collect();
    for (ours, theirs, rounds_max) in [(&older, &all, 3), (&all, &older, 2)] {
        let outcome = check_difference(ours, theirs);
        println!("{} bytes, {} rounds", outcome.bytes, outcome.rounds);
        assert!(outcome.bytes <= 100 * 100 && outcome.rounds <= rounds_max);
    }
}

#[test]
fn a_long_list_comes_in_frames() {
    let all: BTreeSet<_> = (0..20_000).map(element).collect();
    let outcome = check_difference(&BTreeSet::new(), &all);
    assert!(outcome.rounds > 1, "{} rounds", outcome.rounds);
    check_difference(&all, &BTreeSet::new());
}

#[test]
fn elements_follow_each_other_from_any_of_them() {
    let set = Set::new((0..10).rev().map(element).collect());
    assert_eq!(set.after(None).len(), 10);
    assert_eq!(
        set.after(Some(element(3))),
        &[element(4), element(5), element(6), element(7), element(8), element(9)]
    );
    assert!(set.after(Some((u64::MAX, [0; 32]))).is_empty());
}

/// Far more differences than one message names, so that every message of both ends is cut at its frame.
#[test]
fn differences_everywhere_are_found_in_frames() {
    for every in [2, 3, 10] {
        let of = |left_out: u64| (0..20_000).filter(|n| n % every != left_out).map(element).collect();
        let outcome = check_difference(&of(0), &of(1));
        assert!(outcome.rounds > 5, "{} rounds", outcome.rounds);
    }
}

#[test]
fn the_worst_of_a_hundred_thousand_elements_takes_half_of_the_rounds() {
    let all = || (0..100_000).map(element).collect::<BTreeSet<_>>();
    let missing_every_tenth = all().into_iter().filter(|(order, _)| order % 10 != 7).collect();
    let others = (100_000..200_000).map(element).map(|(order, name)| (order - 100_000, name)).collect();
    for theirs in [missing_every_tenth, others] {
        for (ours, theirs) in [(&all(), &theirs), (&theirs, &all())] {
            let outcome = check_difference(ours, theirs);
            println!("{} bytes, {} rounds", outcome.bytes, outcome.rounds);
            assert!(outcome.rounds <= RECONCILE_ROUNDS_MAX as usize / 2, "{} rounds", outcome.rounds);
        }
    }
}

/// The error that ends a reconciliation with an end that gives the same answer for ever, and the rounds it took.
fn answered_for_ever(answer: &[u8]) -> (ReconcileError, u32) {
    let set = Set::new((0..1_000).map(element).collect());
    let (mut initiator, _) = Initiator::new(set);
    for round in 1.. {
        match initiator.step(answer) {
            Ok(step) => assert!(step.message.is_some()),
            Err(error) => return (error, round),
        }
    }
    unreachable!("the numbers end before it does");
}

#[test]
fn an_end_that_names_no_difference_is_left() {
    let mut answer = vec![0x61, 0, 0, 1];
    answer.extend([0xee; 16]);
    assert_eq!(answered_for_ever(&answer), (ReconcileError::Idle, RECONCILE_IDLE_ROUNDS_MAX));
}

#[test]
fn an_end_that_invents_names_for_ever_is_left() {
    // Below T0 it has one name, behind it something else than we have.
    let mut answer = vec![0x61, 0x02, 0, 2, 1];
    answer.extend([0xaa; NAME_BYTES]);
    answer.extend([0, 0, 1]);
    answer.extend([0xee; 16]);
    assert_eq!(answered_for_ever(&answer), (ReconcileError::Rounds, RECONCILE_ROUNDS_MAX + 1));
}

/// Whoever does not speak this version is told which one we speak, as the format says.
#[test]
fn another_version_is_answered_with_ours() {
    let set = Set::new((0..10).map(element).collect());
    assert_eq!(respond(&set, &[0x62, 0, 0, 0]), Ok(vec![0x61]));
    let (mut initiator, _) = Initiator::new(set);
    assert!(matches!(initiator.step(&[0x62]), Err(ReconcileError::Malformed(_))));
}

#[test]
fn what_is_no_message_is_told() {
    let set = Set::new(Vec::new());
    assert!(matches!(respond(&set, &[]), Err(ReconcileError::Malformed(_))));
    assert!(matches!(respond(&set, &[0x50]), Err(ReconcileError::Malformed(_))));
    let long = vec![0x61; RECONCILE_BYTES_MAX + 1];
    assert_eq!(respond(&set, &long), Err(ReconcileError::TooLong(RECONCILE_BYTES_MAX + 1)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_difference_is_found(
        shared in prop::collection::btree_set(0..5_000_u64, 0..400),
        ours in prop::collection::btree_set(0..5_000_u64, 0..60),
        theirs in prop::collection::btree_set(0..5_000_u64, 0..60),
    ) {
        let of = |own: &BTreeSet<u64>| shared.union(own).map(|n| element(*n)).collect();
        check_difference(&of(&ours), &of(&theirs));
    }

    #[test]
    fn no_bytes_make_either_end_panic(
        elements in 0..200_u64,
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let set = Set::new((0..elements).map(element).collect());
        let (mut initiator, mut message) = Initiator::new(set.clone());
        let _ = respond(&set, &bytes);
        let _ = initiator.step(&bytes);
        let other = Set::new((0..elements * 2).step_by(2).map(element).collect());
        let mut answer = respond(&other, &message).unwrap();
        for (place, byte) in flips {
            let place_in_message = place.index(message.len());
            message[place_in_message] ^= byte;
            let place_in_answer = place.index(answer.len());
            answer[place_in_answer] ^= byte;
        }
        let _ = respond(&other, &message);
        let _ = initiator.step(&answer);
    }
}
