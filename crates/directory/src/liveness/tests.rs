use super::*;

const T0: u64 = 1_800_000_000_000;
const S: u64 = 1_000;

fn at(ms: u64) -> Timestamp {
    Timestamp { monotonic_ms: ms, wall_ms: T0 + ms }
}

fn member(n: usize) -> MemberId {
    MemberId::from_bytes(sha256(&(n as u64).to_be_bytes()))
}

/// Member 0 among `count`.
fn alone_among(count: usize) -> Liveness {
    let mut liveness = Liveness::new(member(0));
    liveness.handle(at(0), Input::Members(Arc::new((0..count).map(member).collect())));
    liveness
}

fn outputs(liveness: &mut Liveness) -> Vec<Output> {
    std::iter::from_fn(|| liveness.poll_output()).collect()
}

fn suspicion(by: usize, subject: usize, subject_seq: u64, since_ms: Option<u64>) -> Input {
    Input::Suspicion { by: member(by), subject: member(subject), subject_seq, time_ms: T0, since_ms }
}

fn node(n: usize, seq: u64, time_ms: u64, left: bool) -> Input {
    Input::Node { member: member(n), seq, time_ms, left }
}

fn health(liveness: &Liveness, n: usize) -> Health {
    liveness.observed(&member(n)).health
}

/// Handles deadlines up to `until_ms`.
fn run(liveness: &mut Liveness, until_ms: u64) -> Vec<Output> {
    let mut all = outputs(liveness);
    while let Some(due_ms) = liveness.next_deadline_ms().filter(|due_ms| *due_ms <= until_ms) {
        liveness.handle(at(due_ms), Input::DeadlineReached);
        all.extend(outputs(liveness));
    }
    all
}

#[test]
fn nothing_is_claimed_that_nobody_observed() {
    let mut liveness = alone_among(10);
    assert_eq!(liveness.observed(&member(1)), Observed::default());
    liveness.handle(at(5), node(1, 7, T0 - FRESH_MS, false));
    assert_eq!(health(&liveness, 1), Health::Unknown, "its record is old");
    liveness.handle(at(5), node(1, 8, T0 + 1, false));
    let observed = liveness.observed(&member(1));
    assert_eq!((observed.health, observed.since_ms), (Health::Alive, T0 + 5));
    liveness.handle(at(6), Input::Linked(member(2)));
    let observers = vec![member(0)];
    assert_eq!(
        liveness.observed(&member(2)),
        Observed { health: Health::Alive, since_ms: T0 + 6, observers }
    );
    assert_eq!(liveness.observed(&member(99)), Observed::default(), "a stranger");
}

#[test]
fn a_quorum_that_is_not_refuted_in_time_makes_a_member_down() {
    let mut liveness = alone_among(10);
    liveness.handle(at(0), node(1, 7, T0, false));
    for by in [2, 3] {
        liveness.handle(at(10), suspicion(by, 1, 7, Some(T0)));
    }
    liveness.handle(at(10), suspicion(3, 1, 7, Some(T0 + 5)));
    liveness.handle(at(10), suspicion(1, 1, 7, Some(T0)));
    run(&mut liveness, 60 * S);
    assert_eq!(
        health(&liveness, 1),
        Health::Suspect,
        "two accusers are no quorum, however often they say it"
    );
    liveness.handle(at(61 * S), suspicion(4, 1, 7, Some(T0)));
    run(&mut liveness, 61 * S + REFUTE_MS - 1);
    assert_eq!(health(&liveness, 1), Health::Suspect);
    run(&mut liveness, 61 * S + REFUTE_MS);
    let observed = liveness.observed(&member(1));
    assert_eq!((observed.health, observed.since_ms), (Health::Down, T0 + 61 * S + REFUTE_MS));
    assert_eq!(observed.observers.len(), 3);
    liveness.handle(at(70 * S), node(1, 8, T0 + 70 * S, false));
    assert_eq!(health(&liveness, 1), Health::Alive, "it is back");
    liveness.handle(at(70 * S), suspicion(5, 1, 7, Some(T0)));
    assert_eq!(health(&liveness, 1), Health::Alive, "that was about an older record");
}

#[test]
fn a_refutation_in_time_and_a_withdrawal_end_it() {
    let mut liveness = alone_among(10);
    liveness.handle(at(0), node(1, 7, T0, false));
    for by in 2..5 {
        liveness.handle(at(0), suspicion(by, 1, 7, Some(T0)));
    }
    liveness.handle(at(REFUTE_MS - 1), node(1, 8, T0 + REFUTE_MS - 1, false));
    run(&mut liveness, 60 * S);
    assert_eq!(health(&liveness, 1), Health::Alive);
    for by in 2..5 {
        liveness.handle(at(60 * S), suspicion(by, 1, 8, Some(T0)));
    }
    liveness.handle(at(61 * S), suspicion(4, 1, 8, None));
    run(&mut liveness, 120 * S);
    assert_eq!(health(&liveness, 1), Health::Suspect);
    liveness.handle(at(120 * S), suspicion(2, 1, 8, None));
    liveness.handle(at(120 * S), suspicion(3, 1, 8, None));
    assert_eq!(health(&liveness, 1), Health::Alive, "those who had lost it are in touch with it");
    let day = 24 * 3600 * S;
    for by in 2..5 {
        liveness.handle(at(day), suspicion(by, 1, 8, Some(T0)));
        liveness.handle(at(day), suspicion(by, 1, 8, None));
    }
    assert_eq!(health(&liveness, 1), Health::Unknown, "that they said long ago");
}

#[test]
fn who_left_is_never_down() {
    let mut liveness = alone_among(10);
    liveness.handle(at(0), Input::Linked(member(1)));
    liveness.handle(at(1), node(1, 7, T0, true));
    liveness.handle(at(2), Input::Unlinked(member(1)));
    for by in 2..9 {
        liveness.handle(at(3), suspicion(by, 1, 7, Some(T0)));
    }
    let orders = run(&mut liveness, 600 * S);
    assert!(
        !orders.iter().any(|order| matches!(order, Output::Suspect { .. } | Output::Probe(_))),
        "{orders:?}"
    );
    assert_eq!(health(&liveness, 1), Health::Left);
    liveness.handle(at(601 * S), node(1, 8, T0 + 601 * S, false));
    assert_eq!(health(&liveness, 1), Health::Alive);
}

#[test]
fn a_lost_link_is_told_of_after_a_grace_and_taken_back_when_it_returns() {
    let mut liveness = alone_among(10);
    liveness.handle(at(0), node(1, 7, T0, false));
    for n in [1, 2] {
        liveness.handle(at(0), Input::Linked(member(n)));
    }
    liveness.handle(at(S), Input::Unlinked(member(1)));
    assert_eq!(health(&liveness, 1), Health::Alive, "it may come back");
    let told = |orders: Vec<Output>| {
        let told = |order: &Output| matches!(order, Output::Suspect { .. });
        orders.into_iter().filter(told).collect::<Vec<_>>()
    };
    let suspect = |since_ms| Output::Suspect { subject: member(1), subject_seq: 7, since_ms };
    assert_eq!(told(run(&mut liveness, S + GRACE_MS - 1)), []);
    assert_eq!(told(run(&mut liveness, S + GRACE_MS)), [suspect(Some(T0))]);
    assert_eq!(told(run(&mut liveness, 600 * S)), [], "once");
    liveness.handle(at(601 * S), Input::Linked(member(1)));
    assert_eq!(told(outputs(&mut liveness)), [suspect(None)]);
    assert_eq!(health(&liveness, 1), Health::Alive);
}

#[test]
fn who_loses_everybody_accuses_nobody() {
    let mut liveness = alone_among(10);
    for n in 1..8 {
        liveness.handle(at(0), Input::Linked(member(n)));
    }
    for n in 1..8 {
        liveness.handle(at(S + n as u64), Input::Unlinked(member(n)));
    }
    let orders = run(&mut liveness, 3600 * S);
    assert!(!orders.iter().any(|order| matches!(order, Output::Suspect { .. })), "{orders:?}");
    assert_eq!(liveness.doubt(), DOUBT_MAX);
    assert!((1..8).all(|n| health(&liveness, n) == Health::Suspect), "we cannot know");
}

#[test]
fn a_suspect_refutes() {
    let mut liveness = alone_among(10);
    liveness.handle(at(0), node(0, 7, T0, false));
    liveness.handle(at(0), suspicion(1, 0, 6, Some(T0)));
    liveness.handle(at(0), suspicion(1, 0, 7, None));
    assert_eq!(outputs(&mut liveness), []);
    liveness.handle(at(0), suspicion(1, 0, 7, Some(T0)));
    assert_eq!(outputs(&mut liveness), [Output::Refute]);
}

#[test]
fn our_own_lateness_makes_us_patient() {
    let mut liveness = alone_among(10);
    for n in 1..=5 {
        liveness.handle(at(0), Input::Linked(member(n)));
    }
    for _ in 0..4 {
        for _ in 0..WATCHERS {
            liveness.handle(at(0), Input::Unacknowledged);
        }
        let due_ms = liveness.next_deadline_ms().unwrap();
        liveness.handle(at(due_ms), Input::DeadlineReached);
    }
    assert_eq!(liveness.doubt(), 4);
    let due_ms = liveness.next_deadline_ms().unwrap();
    liveness.handle(at(due_ms + 5 * S), Input::DeadlineReached);
    assert!(liveness.doubt() >= 4, "a late timer is a reason of its own");
    for _ in 0..20 {
        liveness.handle(at(0), Input::Acknowledged { after_ms: 50 });
        let due_ms = liveness.next_deadline_ms().unwrap();
        liveness.handle(at(due_ms), Input::DeadlineReached);
    }
    assert_eq!(liveness.doubt(), 0);
}

#[test]
fn a_burst_of_suspicions_is_bounded() {
    let mut liveness = alone_among(200);
    liveness.handle(at(0), Input::Linked(member(199)));
    for n in 1..150 {
        liveness.handle(at(0), Input::Probed { member: member(n), outcome: Reached::No });
    }
    let told = outputs(&mut liveness).into_iter().filter(|order| matches!(order, Output::Suspect { .. }));
    assert_eq!(told.count(), SUSPICIONS_PER_MINUTE);
    for by in 1..150 {
        liveness.handle(at(0), suspicion(by, 198, 0, Some(T0)));
    }
    assert_eq!(liveness.observed(&member(198)).observers.len(), SUSPICIONS_OF_MEMBER_MAX);
}
