use super::*;
use proptest::prelude::*;

const FEDERATION: FederationId = FederationId::from_bytes([9; 32]);
const T0: u64 = 1_800_000_000_000;

fn at(wall_ms: u64) -> Timestamp {
    Timestamp { monotonic_ms: 0, wall_ms }
}

fn member(n: u8) -> MemberId {
    MemberId::from_bytes([n; 32])
}

fn head(key: &[u8]) -> Head {
    Head {
        intent: "agent.call".to_owned(),
        target: Some("kBridge:notes".to_owned()),
        idempotency_key: Some(ByteBuf::from(key)),
        ..Head::default()
    }
}

fn asked(caller: u8, key: u32) -> Asked {
    Asked::by(member(caller), &FEDERATION, &head(&key.to_be_bytes())).unwrap()
}

fn reply(bytes: usize) -> Reply {
    Reply { params: ByteBuf::from([1]), body: ByteBuf::from(vec![2; bytes - 1]) }
}

fn drain(outcomes: &mut Outcomes, store: &mut BTreeMap<Key, Vec<u8>>) {
    while let Some(output) = outcomes.poll_output() {
        match output {
            Output::Persist { key, bytes } => drop(store.insert(key, bytes)),
            Output::Forget { key } => drop(store.remove(&key)),
        }
    }
}

/// A node that starts with what the store holds.
fn restarted(store: &BTreeMap<Key, Vec<u8>>) -> Outcomes {
    let mut outcomes = Outcomes::new();
    store.iter().for_each(|(key, bytes)| outcomes.restore(at(T0), *key, bytes).unwrap());
    outcomes
}

fn answer(store: &BTreeMap<Key, Vec<u8>>, asked: &Asked) -> (Option<Reply>, End) {
    Row::decode(&store[&asked.key()]).unwrap().into_answer()
}

#[test]
fn a_request_runs_once_and_is_answered_the_same_from_then_on() {
    let (mut outcomes, mut store) = (Outcomes::new(), BTreeMap::new());
    let first = asked(1, 7);
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Run);
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Running);
    outcomes.finish(first.key(), Answer::Whole(reply(100)), End::ok());
    drain(&mut outcomes, &mut store);
    for mut node in [outcomes.clone(), restarted(&store)] {
        assert_eq!(node.ask(at(T0 + 1), &first), Decision::Replay);
        assert_eq!(answer(&store, &first), (Some(reply(100)), End::ok()));
        assert_eq!(node.ask(at(T0), &asked(2, 7)), Decision::Run, "another caller's key is another key");
    }
}

#[test]
fn a_refusal_is_an_outcome_too() {
    let (mut outcomes, mut store) = (Outcomes::new(), BTreeMap::new());
    let (first, end) = (asked(1, 7), End::because(Status::Denied, "no"));
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Run);
    outcomes.finish(first.key(), Answer::Refusal, end.clone());
    drain(&mut outcomes, &mut store);
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Replay);
    assert_eq!(answer(&store, &first), (None, end));
}

#[test]
fn what_a_crash_left_open_is_unknown_and_not_run_again() {
    let (mut outcomes, mut store) = (Outcomes::new(), BTreeMap::new());
    let first = asked(1, 7);
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Run);
    drain(&mut outcomes, &mut store);
    let mut after = restarted(&store);
    let decision = after.ask(at(T0 + OUTCOME_LIFE_MS - 1), &first);
    assert_eq!(decision, Decision::Unknown);
    let end = decision.refusal().unwrap();
    assert!(end.status == Status::Unavailable && end.text.starts_with("outcome unknown"), "{end}");
    assert_eq!(answer(&store, &first), (None, end));
    assert_eq!(after.ask(at(T0 + OUTCOME_LIFE_MS), &first), Decision::Run, "a day later it is forgotten");
}

#[test]
fn what_was_stopped_before_its_end_is_unknown_too() {
    let (mut outcomes, mut store) = (Outcomes::new(), BTreeMap::new());
    let first = asked(1, 7);
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Run);
    outcomes.lost(first.key());
    drain(&mut outcomes, &mut store);
    for mut node in [outcomes, restarted(&store)] {
        assert_eq!(node.ask(at(T0), &first), Decision::Unknown);
        assert_eq!(node.ask(at(T0 + OUTCOME_LIFE_MS), &first), Decision::Run);
    }
}

#[test]
fn a_damaged_row_lets_nothing_run_again() {
    let mut outcomes = Outcomes::new();
    let first = asked(1, 7);
    assert!(outcomes.restore(at(T0), first.key(), b"damaged").is_err());
    assert_eq!(outcomes.ask(at(T0 + OUTCOME_LIFE_MS - 1), &first), Decision::Unknown);
    assert_eq!(outcomes.ask(at(T0 + OUTCOME_LIFE_MS), &first), Decision::Run);
}

#[test]
fn what_could_not_be_stored_was_not_begun() {
    let (mut outcomes, mut store) = (Outcomes::new(), BTreeMap::new());
    let first = asked(1, 7);
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Run);
    outcomes.not_begun(first.key());
    drain(&mut outcomes, &mut store);
    assert!(store.is_empty() && outcomes.is_empty());
    assert_eq!(outcomes.ask(at(T0), &first), Decision::Run);
}

#[test]
fn a_key_names_one_request() {
    let mut outcomes = Outcomes::new();
    assert_eq!(outcomes.ask(at(T0), &asked(1, 7)), Decision::Run);
    let key = 7_u32.to_be_bytes();
    let other_params = Head { params: ByteBuf::from([1]), ..head(&key) };
    let other_target = Head { target: None, ..head(&key) };
    for head in [other_params, other_target] {
        let decision = outcomes.ask(at(T0), &Asked::by(member(1), &FEDERATION, &head).unwrap());
        assert_eq!(decision, Decision::Conflict);
        assert_eq!(decision.refusal().unwrap().status, Status::Invalid);
    }
    let other_intent = Head { intent: "other".to_owned(), ..head(&key) };
    assert_eq!(
        outcomes.ask(at(T0), &Asked::by(member(1), &FEDERATION, &other_intent).unwrap()),
        Decision::Run
    );
    let elsewhere = Asked::by(member(1), &FederationId::from_bytes([8; 32]), &head(&key)).unwrap();
    assert_eq!(outcomes.ask(at(T0), &elsewhere), Decision::Conflict);
    let unmarked = Head { idempotency_key: None, ..head(&key) };
    assert_eq!(Asked::by(member(1), &FEDERATION, &unmarked), None);
}

#[test]
fn one_caller_cannot_take_the_room_of_the_others() {
    let mut outcomes = Outcomes::new();
    for n in 0..OUTCOMES_PER_CALLER_MAX as u32 {
        assert_eq!(outcomes.ask(at(T0 + u64::from(n)), &asked(1, n)), Decision::Run);
    }
    let full = outcomes.ask(at(T0 + 10_000), &asked(1, u32::MAX));
    assert_eq!(full, Decision::Full { retry_after_ms: (OUTCOME_LIFE_MS - 10_000) as u32 });
    let end = full.refusal().unwrap();
    assert_eq!(
        (end.status, end.retry_after_ms),
        (Status::RateLimited, Some((OUTCOME_LIFE_MS - 10_000) as u32))
    );
    assert_eq!(outcomes.ask(at(T0 + 10_000), &asked(2, 0)), Decision::Run);
    assert_eq!(
        outcomes.ask(at(T0), &asked(1, 0)),
        Decision::Running,
        "those in use are answered all the same"
    );
}

#[test]
fn all_together_have_a_bound() {
    let mut outcomes = Outcomes::new();
    for n in 0..OUTCOMES_MAX {
        let caller = (n / OUTCOMES_PER_CALLER_MAX) as u8;
        assert_eq!(outcomes.ask(at(T0), &asked(caller, n as u32)), Decision::Run);
    }
    assert!(matches!(outcomes.ask(at(T0), &asked(99, 0)), Decision::Full { .. }));
    assert_eq!(outcomes.len(), OUTCOMES_MAX);
}

#[test]
fn an_answer_that_is_too_long_is_known_to_have_been_given() {
    let (mut outcomes, mut store) = (Outcomes::new(), BTreeMap::new());
    let mut run = |n: u32, bytes: usize| {
        let request = asked(1, n);
        assert_eq!(outcomes.ask(at(T0), &request), Decision::Run);
        outcomes.finish(request.key(), Answer::Whole(reply(bytes)), End::ok());
        drain(&mut outcomes, &mut store);
        assert_eq!(outcomes.ask(at(T0), &request), Decision::Replay);
        answer(&store, &request)
    };
    let (none, end) = run(0, OUTCOME_REPLY_BYTES_MAX + 1);
    assert!(none.is_none() && end.status == Status::Unavailable && end.text.contains("`ok`"), "{end}");
    let full = OUTCOME_REPLY_BYTES_PER_CALLER_MAX / OUTCOME_REPLY_BYTES_MAX;
    for n in 1..=full {
        assert_eq!(run(n as u32, OUTCOME_REPLY_BYTES_MAX).1, End::ok());
    }
    assert_eq!(run(full as u32 + 1, 2).1.status, Status::Unavailable, "all together have a bound");
    let longest = store.values().map(Vec::len).max().unwrap();
    assert!(longest <= OUTCOME_BYTES_MAX, "{longest}");
}

#[test]
fn what_runs_does_not_expire_and_the_rest_does() {
    let (mut outcomes, mut store) = (Outcomes::new(), BTreeMap::new());
    let (long, short) = (asked(1, 1), asked(1, 2));
    assert_eq!(
        (outcomes.ask(at(T0), &long), outcomes.ask(at(T0 + 5), &short)),
        (Decision::Run, Decision::Run)
    );
    outcomes.finish(short.key(), Answer::Refusal, End::ok());
    assert_eq!(outcomes.next_expiry_ms(), Some(T0 + OUTCOME_LIFE_MS));
    outcomes.expire(at(T0 + OUTCOME_LIFE_MS + 5));
    assert_eq!(outcomes.ask(at(T0 + OUTCOME_LIFE_MS + 5), &long), Decision::Running);
    outcomes.finish(long.key(), Answer::Refusal, End::ok());
    outcomes.expire(at(T0 + OUTCOME_LIFE_MS + 5));
    drain(&mut outcomes, &mut store);
    assert!(outcomes.is_empty() && store.is_empty());
}

/// What happens to one of a few requests, or to the node.
#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(u8, u32),
    /// Finish the longest running one with an answer of so many bytes.
    Finish(usize),
    Crash,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_u8, 0..4_u32).prop_map(|(caller, key)| Step::Ask(caller, key)),
        3 => (1..2 * OUTCOME_REPLY_BYTES_MAX).prop_map(Step::Finish),
        1 => Just(Step::Crash),
        1 => (0..OUTCOME_LIFE_MS / 4).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn no_request_runs_twice_within_its_life(
        steps in proptest::collection::vec(step(), 1..80),
        lost_writes in proptest::collection::vec(any::<bool>(), 80),
    ) {
        let (mut outcomes, mut store, mut wall_ms) = (Outcomes::new(), BTreeMap::new(), T0);
        // When each request last ran, what it answered, and what runs now.
        let mut ran: BTreeMap<Key, u64> = BTreeMap::new();
        let mut answered: BTreeMap<Key, End> = BTreeMap::new();
        let mut running: VecDeque<Asked> = VecDeque::new();
        for (step, write_fails) in steps.into_iter().zip(lost_writes) {
            match step {
                Step::Ask(caller, key) => {
                    let request = asked(caller, key);
                    let decision = outcomes.ask(at(wall_ms), &request);
                    if decision == Decision::Run && write_fails {
                        outcomes.not_begun(request.key());
                    }
                    drain(&mut outcomes, &mut store);
                    match decision {
                        Decision::Run if write_fails => prop_assert!(!store.contains_key(&request.key())),
                        Decision::Run => {
                            let last = ran.insert(request.key(), wall_ms);
                            prop_assert!(last.is_none_or(|last| wall_ms >= last + OUTCOME_LIFE_MS));
                            answered.remove(&request.key());
                            running.push_back(request);
                        }
                        Decision::Replay => {
                            let (_, end) = answer(&store, &request);
                            let given = &answered[&request.key()];
                            prop_assert!(end == *given || end.status == Status::Unavailable);
                        }
                        Decision::Running => prop_assert!(running.contains(&request)),
                        Decision::Unknown => prop_assert!(!answered.contains_key(&request.key())),
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Finish(bytes) => if let Some(request) = running.pop_front() {
                    let end = End::because(Status::Ok, bytes.to_string());
                    outcomes.finish(request.key(), Answer::Whole(reply(bytes)), end.clone());
                    answered.insert(request.key(), end);
                    // An end that is not durable yet may be lost with the node.
                    if !write_fails {
                        drain(&mut outcomes, &mut store);
                    }
                },
                Step::Crash => {
                    outcomes = restarted(&store);
                    running.clear();
                    let is_done = |key: &Key| store.get(key).is_some_and(|bytes| {
                        Row::decode(bytes).unwrap().stage != Stage::Begun
                    });
                    answered.retain(|key, _| is_done(key));
                }
                Step::Wait(ms) => wall_ms += ms,
            }
            prop_assert_eq!(outcomes.entries.len(), outcomes.expiries.len());
            let mut callers: BTreeMap<MemberId, Usage> = BTreeMap::new();
            for (key, entry) in &outcomes.entries {
                let usage = callers.entry(key.caller).or_default();
                *usage = Usage { keys: usage.keys + 1, kept_bytes: usage.kept_bytes + entry.kept_bytes };
            }
            prop_assert_eq!(&callers, &outcomes.callers);
        }
    }

    #[test]
    fn no_bytes_make_a_row_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Row::decode(&bytes).map(Row::into_answer);
    }
}
