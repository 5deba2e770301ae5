use super::*;
use crate::{
    act::{Admit, Role},
    invite::{Invite, InviteProof},
    roster::Standing,
};
use kos_protocol::{id::sha256, key::SecretKey};
use proptest::prelude::*;

const HOUR_MS: u64 = 3_600_000;
const T0: u64 = 1_800_000_000_000;

fn at(wall_ms: u64) -> Timestamp {
    Timestamp { monotonic_ms: wall_ms - T0, wall_ms }
}

fn now() -> Timestamp {
    at(T0)
}

fn key(seed: u64) -> SecretKey {
    SecretKey::from_seed(&sha256(&seed.to_be_bytes()))
}

/// Somebody with keys: `keys[n]` is the one with number n, and there is always a next one.
#[derive(Clone)]
struct Person {
    seed: u64,
    log: KeyLog,
}

impl Person {
    fn new(number: u64) -> Self {
        let seed = number * 1_000;
        Self { seed, log: KeyLog::incept(&key(seed), &key(seed + 1).public()) }
    }
    fn id(&self) -> MemberId {
        self.log.member()
    }
    fn key(&self) -> SecretKey {
        key(self.seed + self.log.seq())
    }
    fn rotated(&self) -> Self {
        let next = self.seed + self.log.seq() + 1;
        Self { log: self.log.rotate(&key(next), &key(next + 1).public()).unwrap(), ..self.clone() }
    }
    /// The rotation from `old` to this.
    fn rotation(&self, old: &Self) -> Action {
        let events = self.log.to_list().split_off(old.log.to_list().len());
        Action::Rotate { member: self.id(), events }
    }
    fn admitted_as(&self, role: Role, name: &str) -> Action {
        Action::Admit(Box::new(Admit {
            member: self.id(),
            role,
            name: name.to_owned(),
            key_log: self.log.to_list(),
            invite: None,
            proof: None,
            until_ms: None,
        }))
    }
    fn expelled(&self) -> Action {
        Action::Expel { member: self.id(), why: "tests".to_owned() }
    }
    fn suspended(&self) -> Action {
        Action::Suspend { member: self.id(), why: "tests".to_owned() }
    }
}

fn founded_by(founder: &Person) -> Acts {
    Acts::new(Genesis::household([9; 32], "home", "attic", &founder.log).unwrap())
}

fn sign(acts: &Acts, act: Act, author: &Person) -> Vec<u8> {
    Signed::sign(act, Scope::Federation(acts.federation()), &author.key()).unwrap().bytes().to_vec()
}

/// `author` acts on what `acts` knows; the others may hear of it later through the bytes.
fn acted(acts: &mut Acts, author: &Person, action: &Action) -> Result<Vec<u8>, ActError> {
    let act = acts.draft(now(), author.id(), action)?;
    let bytes = sign(acts, act, author);
    assert!(matches!(acts.insert(now(), &bytes), Ok(Inserted::New(_))), "a draft is accepted");
    Ok(bytes)
}

fn standing(acts: &Acts, person: &Person) -> Option<Standing> {
    acts.roster(T0).member(&person.id()).map(|member| member.standing)
}

/// A founder, a second steward and a member, and the acts that made them so.
fn household() -> (Person, Person, Person, Acts) {
    let (ann, bob, cem) = (Person::new(1), Person::new(2), Person::new(3));
    let mut acts = founded_by(&ann);
    acted(&mut acts, &ann, &bob.admitted_as(Role::Steward, "bob")).unwrap();
    acted(&mut acts, &ann, &cem.admitted_as(Role::Member, "cem")).unwrap();
    (ann, bob, cem, acts)
}

struct Offer {
    key: SecretKey,
    bytes: Vec<u8>,
    id: ObjectId,
}

fn invited_by(acts: &Acts, steward: &Person, change: impl FnOnce(&mut Invite)) -> Offer {
    let invite_key = key(77);
    let mut invite = Invite {
        federation: acts.federation(),
        federation_name: "home".to_owned(),
        invite_key: invite_key.public(),
        role: Role::Member,
        uses: 1,
        expires_ms: T0 + HOUR_MS,
        until_ms: None,
        author: steward.id(),
        key_seq: steward.log.seq(),
        note: None,
    };
    change(&mut invite);
    let signed = Signed::sign(invite, Scope::Federation(acts.federation()), &steward.key()).unwrap();
    Offer { key: invite_key, bytes: signed.bytes().to_vec(), id: signed.id() }
}

fn joining(acts: &Acts, person: &Person, offer: &Offer) -> Action {
    let proof = InviteProof::sign(&offer.key, acts.federation(), [5; 32], person.id());
    let Action::Admit(mut admit) = person.admitted_as(Role::Member, "newcomer") else { unreachable!() };
    admit.invite = Some(ByteBuf::from(offer.bytes.clone()));
    admit.proof = Some(proof);
    Action::Admit(admit)
}

fn refused(acts: &Acts, author: &Person, action: &Action) -> ActError {
    acts.draft(now(), author.id(), action).unwrap_err()
}

#[test]
fn an_invitation_lets_one_newcomer_in() {
    let (ann, _, _, mut acts) = household();
    let (dan, eve) = (Person::new(4), Person::new(5));
    let offer = invited_by(&acts, &ann, |_| {});
    let join = joining(&acts, &dan, &offer);
    acted(&mut acts, &ann, &join).unwrap();
    assert_eq!(standing(&acts, &dan), Some(Standing::Active));
    assert_eq!(acts.invite_uses(&offer.id), 1);
    let second = refused(&acts, &ann, &joining(&acts, &eve, &offer));
    assert_eq!(second, InviteError::Used { uses: 1 }.into());
    let again = refused(&acts, &ann, &joining(&acts, &dan, &offer));
    assert_eq!(again, ActError::AlreadyMember(dan.id()));
}

#[test]
fn each_fault_of_an_invitation_has_its_own_error() {
    let (ann, bob, cem, mut acts) = household();
    let dan = Person::new(4);
    let fault = |acts: &Acts, offer: &Offer| match refused(acts, &ann, &joining(acts, &dan, offer)) {
        ActError::Invite(error) => error,
        other => panic!("{other}"),
    };
    let late = invited_by(&acts, &ann, |invite| invite.expires_ms = T0 - 5);
    assert_eq!(fault(&acts, &late), InviteError::Expired { late_ms: 5 });

    let terms = invited_by(&acts, &ann, |invite| invite.role = Role::Steward);
    assert_eq!(fault(&acts, &terms), InviteError::Terms);

    let mut forged = invited_by(&acts, &ann, |_| {});
    *forged.bytes.last_mut().unwrap() ^= 1;
    assert_eq!(fault(&acts, &forged), InviteError::Forged);

    let by_member = invited_by(&acts, &cem, |_| {});
    assert_eq!(fault(&acts, &by_member), InviteError::IssuerGone);

    let stray = FederationId::from_bytes([1; 32]);
    let other = invited_by(&acts, &ann, |invite| invite.federation = stray);
    assert_eq!(fault(&acts, &other), InviteError::OtherFederation { invited_to: stray });

    let mut unproven = invited_by(&acts, &ann, |_| {});
    unproven.key = key(78);
    assert_eq!(fault(&acts, &unproven), InviteError::Unproven);

    let revoked = invited_by(&acts, &ann, |invite| invite.note = Some("for dan".to_owned()));
    acted(&mut acts, &bob, &Action::Revoke { invite: revoked.id }).unwrap();
    assert_eq!(fault(&acts, &revoked), InviteError::Revoked);

    let by_bob = invited_by(&acts, &bob, |_| {});
    let bob_again = bob.rotated();
    acts.learn_key_log(&bob_again.log).unwrap();
    acted(&mut acts, &bob_again, &bob_again.rotation(&bob)).unwrap();
    assert_eq!(fault(&acts, &by_bob), InviteError::OldKey);
    acted(&mut acts, &ann, &bob.suspended()).unwrap();
    assert_eq!(fault(&acts, &by_bob), InviteError::IssuerGone);
}

#[test]
fn of_two_uses_at_once_the_senior_stewards_counts() {
    let (ann, bob, _, acts) = household();
    let (dan, eve) = (Person::new(4), Person::new(5));
    let offer = invited_by(&acts, &ann, |_| {});
    let (mut at_ann, mut at_bob) = (acts.clone(), acts.clone());
    let by_ann = acted(&mut at_ann, &ann, &joining(&acts, &dan, &offer)).unwrap();
    let by_bob = acted(&mut at_bob, &bob, &joining(&acts, &eve, &offer)).unwrap();
    at_ann.insert(now(), &by_bob).unwrap();
    at_bob.insert(now(), &by_ann).unwrap();
    assert_eq!(at_ann.roster(T0), at_bob.roster(T0));
    assert_eq!(standing(&at_bob, &dan), Some(Standing::Active));
    assert_eq!(standing(&at_bob, &eve), None);
}

#[test]
fn an_expelled_steward_cannot_return() {
    let (ann, bob, _, acts) = household();
    let (dan, eve) = (Person::new(4), Person::new(5));
    let mut at_ann = acts.clone();
    let expulsion = acted(&mut at_ann, &ann, &bob.expelled()).unwrap();

    // It acts as if it had not heard, on what it knew then.
    let mut at_bob = acts.clone();
    let own_goal = acted(&mut at_bob, &bob, &dan.admitted_as(Role::Steward, "dan")).unwrap();
    let through_dan = acted(&mut at_bob, &dan, &eve.admitted_as(Role::Steward, "eve")).unwrap();
    for late in [&own_goal, &through_dan] {
        at_ann.insert(now(), late).unwrap();
    }
    assert_eq!(standing(&at_ann, &bob), Some(Standing::Expelled));
    assert_eq!(standing(&at_ann, &dan), None);
    assert_eq!(standing(&at_ann, &eve), None);
    let id = |bytes: &[u8]| Unverified::<Act>::parse(bytes, at_ann.scope()).unwrap().id();
    assert!(at_ann.counts(&id(&expulsion)) && !at_ann.counts(&id(&own_goal)));

    // It cannot act with the expulsion in sight, and no invitation brings it back.
    assert_eq!(
        refused(&at_ann, &bob, &dan.admitted_as(Role::Member, "dan")),
        ActError::NotASteward(bob.id())
    );
    let offer = invited_by(&at_ann, &ann, |_| {});
    assert_eq!(refused(&at_ann, &ann, &joining(&at_ann, &bob, &offer)), ActError::Expelled(bob.id()));
    at_bob.insert(now(), &expulsion).unwrap();
    assert_eq!(at_bob.roster(T0), at_ann.roster(T0));

    acted(&mut at_ann, &ann, &Action::Reinstate { member: bob.id() }).unwrap();
    assert_eq!(standing(&at_ann, &bob), Some(Standing::Active));
    acted(&mut at_ann, &bob, &dan.admitted_as(Role::Member, "dan")).unwrap();
    assert_eq!(standing(&at_ann, &dan), Some(Standing::Active));
}

#[test]
fn a_junior_cannot_touch_a_senior_and_wins_no_race_against_one() {
    let (ann, bob, _, mut acts) = household();
    let dan = Person::new(4);
    acted(&mut acts, &ann, &dan.admitted_as(Role::Steward, "dan")).unwrap();
    for action in [ann.expelled(), ann.suspended()] {
        assert_eq!(refused(&acts, &bob, &action), ActError::Senior(ann.id()));
    }
    assert_eq!(refused(&acts, &dan, &bob.expelled()), ActError::Senior(bob.id()));
    let (mut at_ann, mut at_bob) = (acts.clone(), acts.clone());
    let by_bob = acted(&mut at_bob, &bob, &dan.expelled()).unwrap();
    acted(&mut at_ann, &ann, &bob.expelled()).unwrap();
    at_ann.insert(now(), &by_bob).unwrap();
    assert_eq!(standing(&at_ann, &dan), Some(Standing::Active), "bob was removed at the same time");
    assert_eq!(standing(&at_ann, &bob), Some(Standing::Expelled));
}

#[test]
fn a_removal_wins_over_a_reinstatement_that_did_not_know_it() {
    let (ann, bob, cem, mut acts) = household();
    acted(&mut acts, &ann, &cem.suspended()).unwrap();
    let (mut at_ann, mut at_bob) = (acts.clone(), acts.clone());
    acted(&mut at_ann, &ann, &cem.expelled()).unwrap();
    let back = acted(&mut at_bob, &bob, &Action::Reinstate { member: cem.id() }).unwrap();
    assert_eq!(standing(&at_bob, &cem), Some(Standing::Active));
    at_ann.insert(now(), &back).unwrap();
    assert_eq!(standing(&at_ann, &cem), Some(Standing::Expelled));
    assert_eq!(
        refused(&at_bob, &bob, &Action::Reinstate { member: cem.id() }),
        ActError::NotRemoved(cem.id())
    );
}

#[test]
fn a_thief_of_an_old_key_cannot_backdate() {
    let (ann, bob, _, mut acts) = household();
    let before = acts.clone();
    let ann_again = ann.rotated();
    acts.learn_key_log(&ann_again.log).unwrap();
    assert_eq!(refused(&acts, &ann, &bob.expelled()), ActError::OldKey(ann.id()), "not recorded yet");
    acted(&mut acts, &ann_again, &ann_again.rotation(&ann)).unwrap();

    // With the old key, as if the rotation had not happened: expel bob, leave in the owner's name, admit a friend.
    let friend = Person::new(6);
    acted(&mut acts, &bob, &Person::new(4).admitted_as(Role::Member, "dan")).unwrap();
    for theft in [bob.expelled(), ann.expelled(), friend.admitted_as(Role::Steward, "friend")] {
        let stolen = acted(&mut before.clone(), &ann, &theft).unwrap();
        assert!(
            matches!(acts.insert(now(), &stolen), Ok(Inserted::New(_))),
            "kept, so that everybody agrees"
        );
    }
    assert_eq!(standing(&acts, &bob), Some(Standing::Active));
    assert_eq!(standing(&acts, &ann), Some(Standing::Active));
    assert_eq!(standing(&acts, &friend), None);
    assert_eq!(acts.roster(T0).by_key(&ann.log.current()), None);
    assert_eq!(
        acts.roster(T0).by_key(&ann_again.log.current()),
        Some((ann.id(), Role::Steward, Standing::Active))
    );
}

#[test]
fn of_two_forked_key_logs_the_one_seen_first_stands() {
    let (ann, bob, cem, mut acts) = household();
    let cem_again = cem.rotated();
    let mut forked = cem.clone();
    forked.log = cem.log.rotate(&key(cem.seed + 1), &key(999).public()).unwrap();
    acted(&mut acts, &bob, &cem_again.rotation(&cem)).unwrap();
    assert_eq!(acts.learn_key_log(&forked.log), Err(LogError::Forked(cem.id())));
    assert_eq!(refused(&acts, &ann, &forked.rotation(&cem)), ActError::Forked(cem.id()));
    assert_eq!(acts.key_log(&cem.id()), Some(&cem_again.log));
    assert_eq!(refused(&acts, &ann, &cem_again.rotation(&cem)), ActError::NothingNew(cem.id()));
    assert_eq!(acts.learn_key_log(&Person::new(8).log), Err(LogError::NotAMember(Person::new(8).id())));
}

#[test]
fn a_recorded_log_replaces_a_forked_one_that_was_only_heard() {
    let (_, bob, cem, mut acts) = household();
    let mut forked = cem.clone();
    forked.log = cem.log.rotate(&key(cem.seed + 1), &key(999).public()).unwrap();
    assert_eq!(acts.learn_key_log(&forked.log), Ok(true));
    assert_eq!(acts.unrecorded().count(), 1);
    let cem_again = cem.rotated();
    acted(&mut acts, &bob, &cem_again.rotation(&cem)).unwrap();
    assert_eq!(acts.key_log(&cem.id()), Some(&cem_again.log));
    assert_eq!(acts.unrecorded().count(), 0);
}

#[test]
fn a_membership_ends_by_date_and_can_begin_again() {
    let (ann, _, _, mut acts) = household();
    let dan = Person::new(4);
    let Action::Admit(mut admit) = dan.admitted_as(Role::Member, "dan") else { unreachable!() };
    admit.until_ms = Some(T0 + 10);
    acted(&mut acts, &ann, &Action::Admit(admit.clone())).unwrap();
    assert_eq!(acts.roster(T0).next_lapse_ms(), Some(T0 + 10));
    assert_eq!(acts.roster(T0 + 10).member(&dan.id()).unwrap().standing, Standing::Lapsed);
    admit.until_ms = None;
    let act = acts.draft(at(T0 + 20), ann.id(), &Action::Admit(admit)).unwrap();
    let bytes = sign(&acts, act, &ann);
    acts.insert(at(T0 + 20), &bytes).unwrap();
    assert_eq!(acts.roster(T0 + 20).member(&dan.id()).unwrap().standing, Standing::Active);
}

#[test]
fn who_left_comes_back_with_an_invitation_and_as_a_junior() {
    let (ann, bob, cem, mut acts) = household();
    acted(&mut acts, &ann, &Person::new(4).admitted_as(Role::Steward, "dan")).unwrap();
    acted(&mut acts, &bob, &Action::Release { member: bob.id() }).unwrap();
    acted(&mut acts, &ann, &Action::Release { member: cem.id() }).unwrap();
    assert_eq!((standing(&acts, &bob), standing(&acts, &cem)), (Some(Standing::Left), Some(Standing::Left)));
    assert_eq!(refused(&acts, &bob, &cem.expelled()), ActError::NotASteward(bob.id()));
    let offer = invited_by(&acts, &ann, |_| {});
    let join = joining(&acts, &cem, &offer);
    acted(&mut acts, &ann, &join).unwrap();
    acted(&mut acts, &ann, &bob.admitted_as(Role::Steward, "bob")).unwrap();
    assert_eq!(
        (standing(&acts, &bob), standing(&acts, &cem)),
        (Some(Standing::Active), Some(Standing::Active))
    );
    assert_eq!(refused(&acts, &bob, &Person::new(4).expelled()), ActError::Senior(Person::new(4).id()));
    acted(&mut acts, &bob, &cem.expelled()).unwrap();
}

#[test]
fn hostile_acts_are_refused_each_for_its_reason() {
    let (ann, bob, cem, mut acts) = household();
    let dan = Person::new(4);
    let action = dan.admitted_as(Role::Member, "dan");
    let draft = acts.draft(now(), ann.id(), &action).unwrap();
    let altered = |change: &dyn Fn(&mut Act)| {
        let mut act = draft.clone();
        change(&mut act);
        act
    };
    let refusal = |acts: &mut Acts, bytes: &[u8]| acts.insert(now(), bytes).unwrap_err();

    let forged = sign(&acts, draft.clone(), &bob);
    assert!(matches!(refusal(&mut acts, &forged), ActError::Object(ObjectError::Signature(_))));
    let elsewhere = Scope::Federation(FederationId::from_bytes([1; 32]));
    let foreign = Signed::sign(draft.clone(), elsewhere, &ann.key()).unwrap();
    assert!(matches!(refusal(&mut acts, foreign.bytes()), ActError::Object(ObjectError::Signature(_))));
    let as_member = sign(&acts, altered(&|act| act.author = cem.id()), &cem);
    assert_eq!(refusal(&mut acts, &as_member), ActError::NotASteward(cem.id()));
    let stranger = sign(&acts, altered(&|act| act.author = dan.id()), &dan);
    assert_eq!(refusal(&mut acts, &stranger), ActError::NotASteward(dan.id()));
    for change in [&(|act: &mut Act| act.seq += 1) as &dyn Fn(&mut Act), &|act| act.prev.push(act.prev[0])] {
        let misplaced = sign(&acts, altered(change), &ann);
        assert_eq!(refusal(&mut acts, &misplaced), ActError::Place);
    }
    let early = sign(&acts, altered(&|act| act.time_ms += 11 * 60_000), &ann);
    assert_eq!(refusal(&mut acts, &early), ActError::Future { ahead_ms: 11 * 60_000 });
    let council = sign(&acts, altered(&|act| act.authority = "council".to_owned()), &ann);
    assert_eq!(refusal(&mut acts, &council), ActError::Authority("council".to_owned()));
    let old_key = sign(&acts, altered(&|act| act.key_seq = 3), &ann);
    assert_eq!(refusal(&mut acts, &old_key), ActError::OldKey(ann.id()));
    let not_cbor = sign(&acts, altered(&|act| act.action = ByteBuf::from([0xff])), &ann);
    assert!(matches!(refusal(&mut acts, &not_cbor), ActError::Action(_)));
    assert_eq!(refused(&acts, &ann, &cem.admitted_as(Role::Member, "x")), ActError::AlreadyMember(cem.id()));
    assert!(matches!(refused(&acts, &ann, &dan.admitted_as(Role::Member, "No")), ActError::Name(_)));
    assert_eq!(refused(&acts, &ann, &dan.expelled()), ActError::NotAMember(dan.id()));
    let long = Action::Expel { member: cem.id(), why: "x".repeat(257) };
    assert_eq!(refused(&acts, &ann, &long), ActError::WhyTooLong(257));
    acted(&mut acts, &ann, &bob.expelled()).unwrap();
    assert_eq!(refused(&acts, &ann, &ann.expelled()), ActError::LastSteward(ann.id()));
    let mut twin = Person::new(9);
    twin.log = KeyLog::incept(&cem.key(), &key(12).public());
    assert_eq!(refused(&acts, &ann, &twin.admitted_as(Role::Member, "t")), ActError::KeyInUse(cem.id()));
}

#[test]
fn an_action_of_a_later_version_is_kept_without_effect() {
    let (ann, _, _, mut acts) = household();
    let later = kos_protocol::cbor::encode(&[("dissolve", 1)].into_iter().collect::<BTreeMap<_, _>>());
    let action = Action::from_bytes(&later).unwrap();
    assert_eq!(action, Action::Unknown(later.clone()));
    let before = acts.roster(T0);
    let bytes = acted(&mut acts, &ann, &action).unwrap();
    assert_eq!(acts.roster(T0), before);
    assert!(acts.in_order().iter().any(|(act, _)| act.bytes() == bytes));
}

#[test]
fn acts_that_come_too_early_wait_in_bounded_room() {
    let (ann, _, _, mut acts) = household();
    let empty = founded_by(&ann);
    let list: Vec<Vec<u8>> = acts.in_order().iter().map(|(act, _)| act.bytes().to_vec()).collect();
    let mut backwards = empty.clone();
    assert_eq!(backwards.insert(now(), &list[1]), Ok(Inserted::Held));
    assert_eq!(backwards.insert(now(), &list[1]), Ok(Inserted::Held));
    assert_eq!(backwards.held(), 1);
    assert!(matches!(backwards.insert(now(), &list[0]), Ok(Inserted::New(placed)) if placed.len() == 2));
    assert_eq!(backwards.roster(T0), acts.roster(T0));

    let mut waiting = empty;
    waiting.insert(now(), &list[1]).unwrap();
    assert!(waiting.expire_held(at(T0 + ACTS_HELD_MS_MAX - 1)));
    assert!(!waiting.expire_held(at(T0 + ACTS_HELD_MS_MAX)));
    acts.expire_held(now());
}

/// Acts that follow one nobody has, `count` of them, in the name of `author` and signed by `signer`.
fn orphans(acts: &Acts, author: &Person, signer: &Person, count: usize) -> Vec<Vec<u8>> {
    let orphan = |n: u64| Act {
        seq: 2,
        prev: vec![ObjectId::from_bytes([7; 32])],
        authority: STEWARD.to_owned(),
        author: author.id(),
        key_seq: author.log.seq(),
        time_ms: T0 - n,
        action: ByteBuf::from(Action::Revoke { invite: ObjectId::from_bytes([1; 32]) }.to_bytes()),
    };
    (0..count as u64).map(|n| sign(acts, orphan(n), signer)).collect()
}

/// How many of these find a place; those that do not are refused for want of room.
fn held_of(acts: &mut Acts, orphans: &[Vec<u8>]) -> usize {
    let outcomes: Vec<_> = orphans.iter().map(|bytes| acts.insert(now(), bytes)).collect();
    let held = outcomes.iter().take_while(|outcome| **outcome == Ok(Inserted::Held)).count();
    assert!(outcomes[held..].iter().all(|outcome| *outcome == Err(ActError::HeldFull)), "{outcomes:?}");
    held
}

#[test]
fn junk_in_anybodys_name_leaves_room_for_the_acts_of_stewards() {
    let (ann, bob, cem, acts) = household();
    let mut full = acts.clone();
    // A member's own acts, a stranger's, and ones by keys of a steward that nobody has recorded.
    for (n, junk) in [cem, Person::new(8), ann.rotated().rotated()].iter().enumerate() {
        let held = held_of(&mut full, &orphans(&acts, junk, junk, ACTS_HELD_MAX));
        assert_eq!(held, if n == 0 { ACTS_HELD_UNPROVEN_MAX } else { 0 });
    }
    // In a steward's name it has to be the steward's signature.
    for forged in orphans(&acts, &ann, &bob, 3) {
        assert!(matches!(full.insert(now(), &forged), Err(ActError::Object(ObjectError::Signature(_)))));
    }
    // One steward out of its mind takes its own share.
    assert_eq!(held_of(&mut full, &orphans(&acts, &bob, &bob, ACTS_HELD_MAX)), ACTS_HELD_PER_AUTHOR_MAX);
    assert_eq!(held_of(&mut full, &orphans(&acts, &ann, &ann, 1)), 1);
    assert_eq!(full.held(), ACTS_HELD_UNPROVEN_MAX + ACTS_HELD_PER_AUTHOR_MAX + 1);
}

#[test]
fn an_act_may_come_before_the_admission_of_its_author() {
    let ann = Person::new(1);
    let (bob, mut acts) = (Person::new(2), founded_by(&ann));
    let mut late = acts.clone();
    let admission = acted(&mut acts, &ann, &bob.admitted_as(Role::Steward, "bob")).unwrap();
    let by_bob = acted(&mut acts, &bob, &Person::new(3).admitted_as(Role::Member, "cem")).unwrap();
    assert_eq!(late.insert(now(), &by_bob), Ok(Inserted::Held));
    assert!(matches!(late.insert(now(), &admission), Ok(Inserted::New(placed)) if placed.len() == 2));
    assert_eq!(late.roster(T0), acts.roster(T0));
}

#[test]
fn one_steward_cannot_fill_the_federation() {
    let (_, bob, _, mut acts) = household();
    acts.by_author.insert(bob.id(), ACTS_PER_AUTHOR_MAX);
    let act = acts.draft(now(), bob.id(), &Action::Revoke { invite: ObjectId::from_bytes([1; 32]) }).unwrap();
    let bytes = sign(&acts, act, &bob);
    assert_eq!(acts.insert(now(), &bytes), Err(ActError::Full));
}

/// One step of a random history: somebody who knows the acts of state `on`, and perhaps of state `also`, acts.
#[derive(Clone, Debug)]
struct Step {
    on: prop::sample::Index,
    also: Option<prop::sample::Index>,
    author: usize,
    target: usize,
    kind: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (
        any::<prop::sample::Index>(),
        any::<Option<prop::sample::Index>>(),
        0..5_usize,
        0..5_usize,
        0..10_u8,
    );
    let step = step.prop_map(|(on, also, author, target, kind)| Step { on, also, author, target, kind });
    prop::collection::vec(step, 1..40)
}

/// Everything that was ever signed in such a history, much of it by people who did not know of each other.
fn history(people: &[Person], steps: &[Step]) -> Vec<Vec<u8>> {
    let mut states = vec![founded_by(&people[0])];
    let mut signed = Vec::new();
    for step in steps {
        let mut state = states[step.on.index(states.len())].clone();
        if let Some(also) = &step.also {
            for (act, _) in states[also.index(states.len())].in_order() {
                let _ = state.insert(now(), act.bytes());
            }
        }
        let (author, target) = (&people[step.author], &people[step.target]);
        let action = match step.kind {
            0..=2 => target.admitted_as(Role::Steward, "s"),
            3 => target.admitted_as(Role::Member, "m"),
            4 => target.expelled(),
            5 => target.suspended(),
            6 => Action::Reinstate { member: target.id() },
            8 => Action::Release { member: target.id() },
            7 => joining(&state, target, &invited_by(&state, author, |_| {})),
            _ => target.rotated().rotation(target),
        };
        // After a rotation either key may act: the owner's, or a thief's with the old one.
        for author in [author.clone(), author.rotated()] {
            let mut state = state.clone();
            let _ = state.learn_key_log(&author.log);
            if state.key_log(&author.id()) != Some(&author.log) {
                continue;
            }
            if let Ok(bytes) = acted(&mut state, &author, &action) {
                signed.push(bytes);
                states.push(state);
            }
        }
    }
    signed
}

fn outcome(acts: &Acts) -> (Roster, Vec<(ObjectId, bool)>) {
    let counted = acts.in_order().iter().map(|(act, _)| (act.id(), acts.counts(&act.id()))).collect();
    (acts.roster(T0), counted)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn the_same_acts_in_any_order_give_the_same_roster(
        steps in steps(),
        order in prop::collection::vec(any::<u32>(), 80),
    ) {
        let people: Vec<_> = (1..=5).map(Person::new).collect();
        let signed = history(&people, &steps);
        let mut one = founded_by(&people[0]);
        for bytes in &signed {
            one.insert(now(), bytes).unwrap();
        }
        let mut shuffled: Vec<_> = signed.iter().zip(&order).collect();
        shuffled.sort_by_key(|(_, place)| **place);
        let mut other = founded_by(&people[0]);
        for (bytes, _) in shuffled {
            other.insert(now(), bytes).unwrap();
        }
        prop_assert_eq!(one.held() + other.held(), 0);
        prop_assert_eq!(outcome(&one), outcome(&other));
    }

    #[test]
    fn whoever_the_founder_expels_stays_out(steps in steps(), cut in any::<prop::sample::Index>()) {
        let people: Vec<_> = (1..=5).map(Person::new).collect();
        let signed = history(&people, &steps);
        // The founder knows only some of the history when it expels person 1; all acts of the others come later.
        let mut acts = founded_by(&people[0]);
        let from_others = |bytes: &&Vec<u8>| {
            let read = Unverified::<Act>::parse(bytes, founded_by(&people[0]).scope()).unwrap();
            read.claim().author != people[0].id()
        };
        let known = cut.index(signed.len() + 1).min(signed.len());
        for bytes in &signed[..known] {
            acts.insert(now(), bytes).unwrap();
        }
        let founder = if acts.key_log(&people[0].id()) == Some(&people[0].log) {
            people[0].clone()
        } else {
            people[0].rotated()
        };
        if acted(&mut acts, &founder, &people[1].expelled()).is_ok() {
            let admitted_by = |acts: &Acts| -> Vec<MemberId> {
                let roster = acts.roster(T0);
                let of_person_1 = roster.members().filter(|member| member.admitted_by == Some(people[1].id()));
                of_person_1.map(|member| member.id).collect()
            };
            let before = admitted_by(&acts);
            for bytes in signed[known..].iter().filter(from_others) {
                let _ = acts.insert(now(), bytes);
            }
            // Nobody at all, should its own admission have lost its effect meanwhile.
            prop_assert!(matches!(standing(&acts, &people[1]), None | Some(Standing::Expelled)));
            let back = refused(&acts, &founder, &people[1].admitted_as(Role::Member, "back"));
            let rekeyed = ActError::OldKey(founder.id());
            prop_assert!(back == ActError::Expelled(people[1].id()) || back == rekeyed, "{}", back);
            prop_assert!(admitted_by(&acts).iter().all(|member| before.contains(member)));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut acts = founded_by(&Person::new(1));
        prop_assert!(acts.insert(now(), &bytes).is_err());
        let _ = Action::from_bytes(&bytes);
        let _ = Genesis::parse(&bytes);
        let _ = Invite::read(&bytes, acts.federation());
    }

    #[test]
    fn an_altered_act_is_never_taken(place in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let (ann, _, _, mut acts) = household();
        let act = acts.draft(now(), ann.id(), &Person::new(4).admitted_as(Role::Member, "dan")).unwrap();
        let mut bytes = sign(&acts, act, &ann);
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert!(!matches!(acts.insert(now(), &bytes), Ok(Inserted::New(_) | Inserted::Known)));
    }
}
