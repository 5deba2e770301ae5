//! Engines that talk to each other only through the bytes they would put on the wire.
#![allow(clippy::unwrap_used, missing_docs)]

use kos_directory::{AgentCert, AgentRecord, Entry, Kind, NodeRecord, Slot, reconcile};
use kos_engine::{
    Federation, Input, Item, Output, PublishError, Refusal, Stamp, Table, Verdict, WelcomeError, item,
};
use kos_governance::{
    act::{Action, Admit, Role},
    acts::ActError,
    code::Invitation,
    genesis::Genesis,
    invite::{Invite, InviteError, InviteProof},
    join::{JoinError, JoinReply, JoinRequest},
    roster::Standing,
    secret::DiscoverySecret,
};
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId, ObjectId, sha256},
    key::SecretKey,
    key_log::KeyLog,
    limits::{ITEM_BYTES_MAX, UNKNOWN_ITEMS_MAX},
    object::{Object, Scope, Signed},
    time::Timestamp,
};
use proptest::prelude::*;
use serde_bytes::{ByteArray, ByteBuf};
use std::collections::{BTreeMap, BTreeSet};

const T0: u64 = 1_800_000_000_000;
const HOUR_MS: u64 = 3_600_000;

fn at(after_ms: u64) -> Timestamp {
    Timestamp { monotonic_ms: after_ms, wall_ms: T0 + after_ms }
}

fn now() -> Timestamp {
    at(0)
}

fn key(seed: u64) -> SecretKey {
    SecretKey::from_seed(&sha256(&seed.to_be_bytes()))
}

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
    fn rotate(&mut self) {
        let next = self.seed + self.log.seq() + 1;
        self.log = self.log.rotate(&key(next), &key(next + 1).public()).unwrap();
    }
}

/// What the shell does, with a store that is a map.
#[derive(Clone)]
struct Node {
    person: Person,
    federation: Federation,
    store: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    draws: u64,
}

impl Node {
    fn founder(number: u64) -> Self {
        let person = Person::new(number);
        let genesis = Genesis::household([9; 32], "home", "attic", &person.log).unwrap();
        let federation = Federation::found(now(), genesis, person.id());
        Self { person, federation, store: BTreeMap::new(), draws: 0 }
    }

    fn sign<T: Object>(&self, object: T) -> Signed<T> {
        Signed::sign(object, Scope::Federation(self.federation.id()), &self.person.key()).unwrap()
    }

    /// Carries out every order and returns them, those of signing included.
    fn drain(&mut self, now: Timestamp) -> Vec<Output> {
        let mut seen = Vec::new();
        while let Some(output) = self.federation.poll_output() {
            match &output {
                Output::Persist { table, key, bytes } => {
                    self.store.insert((*table, key.clone()), bytes.clone());
                }
                Output::Forget { table, key } => {
                    self.store.remove(&(*table, key.clone()));
                }
                Output::DrawSecret => {
                    self.draws += 1;
                    let random = sha256(&[self.person.seed, self.draws].map(u64::to_be_bytes).concat());
                    let secret = self.sign(self.federation.draft_secret(random));
                    self.federation.handle(now, Input::Secret(secret.bytes()));
                }
                Output::RecordRotation(action) => {
                    // Refused when it was overtaken by other news before it was carried out.
                    let _ = self.act(now, action);
                }
                _ => {}
            }
            seen.push(output);
        }
        seen
    }

    fn act(&mut self, now: Timestamp, action: &Action) -> Result<(), ActError> {
        let act = self.sign(self.federation.draft_act(now, action)?);
        self.federation.handle(now, Input::Acted(&act)).acted().unwrap();
        Ok(())
    }

    fn admit(&mut self, person: &Person, role: Role, name: &str) {
        let admit = Admit {
            member: person.id(),
            role,
            name: name.to_owned(),
            key_log: person.log.to_list(),
            invite: None,
            proof: None,
            until_ms: None,
        };
        self.act(now(), &Action::Admit(Box::new(admit))).unwrap();
    }

    /// A newcomer who was admitted by this node and welcomed.
    fn welcome(&mut self, number: u64, role: Role, name: &str) -> Node {
        let person = Person::new(number);
        self.drain(now());
        self.admit(&person, role, name);
        let reply = JoinReply::decode(&cbor::encode(&self.federation.welcome())).unwrap();
        let expected = Some(self.federation.id());
        let federation = Federation::welcomed(now(), person.id(), expected, &reply).unwrap();
        let mut node = Node { person, federation, store: BTreeMap::new(), draws: 0 };
        node.drain(now());
        node
    }

    fn node_record(&self, now: Timestamp) -> NodeRecord {
        let Stamp { author, key_seq, seq, time_ms, expires_ms } =
            self.federation.stamp::<NodeRecord>(now, "", HOUR_MS, 0);
        NodeRecord {
            author,
            key_seq,
            seq,
            time_ms,
            expires_ms,
            name: "attic".to_owned(),
            addresses: vec!["/ip4/203.0.113.7/udp/4001/quic-v1".to_owned()],
            relays: Vec::new(),
            version: semver::Version::new(0, 1, 0),
            features: Vec::new(),
            left: false,
        }
    }

    fn publish(&mut self, now: Timestamp) -> Result<(), PublishError> {
        let record = self.sign(self.node_record(now));
        self.federation.handle(now, Input::Published((&record).into())).published()
    }

    fn standing(&self, member: MemberId) -> Option<Standing> {
        self.federation.roster().member(&member).map(|member| member.standing)
    }

    fn restarted(&self, now: Timestamp) -> Node {
        let genesis = Genesis::parse(&self.store[&(Table::Genesis, Vec::new())]).unwrap();
        let mut federation = Federation::new(now, genesis, self.person.id());
        for ((table, _), bytes) in &self.store {
            federation.restore(now, *table, bytes).unwrap();
        }
        federation.start(now);
        Node { federation, ..self.clone() }
    }
}

/// Everything an engine has.
fn set_of(federation: &Federation) -> reconcile::Set {
    federation.clone().set()
}

/// What `b` lacks and `a` has.
fn missing(a: &mut Node, b: &mut Node) -> Vec<Vec<u8>> {
    let theirs = a.federation.set();
    let (mut initiator, first) = reconcile::Initiator::new(b.federation.set());
    let (mut message, mut items) = (Some(first), Vec::new());
    while let Some(asked) = message {
        let step = initiator.step(&reconcile::respond(&theirs, &asked).unwrap()).unwrap();
        let (packed, _) = a.federation.items(&step.need, 1 << 20);
        items.extend(item::unpack(&packed.kinds, &packed.body).map(|piece| piece.to_bytes()));
        message = step.message;
    }
    items
}

/// One catch-up in both directions; returns how many items were news. Secrets are exchanged as in a session.
fn catch_up(now: Timestamp, a: &mut Node, b: &mut Node) -> usize {
    let mut news = 0;
    for _ in 0..2 {
        for bytes in missing(a, b) {
            news += usize::from(
                b.federation.handle(now, Input::Heard { from: None, item: &bytes }) == Verdict::New,
            );
        }
        if b.standing(b.person.id()) == Some(Standing::Active)
            && let Some(secret) = a.federation.secret()
        {
            let secret = secret.bytes().to_vec();
            b.federation.handle(now, Input::Secret(&secret));
        }
        b.drain(now);
        std::mem::swap(a, b);
    }
    news
}

fn household() -> (Node, Node, Node) {
    let mut ann = Node::founder(1);
    let mut bob = ann.welcome(2, Role::Steward, "bob");
    let mut cem = ann.welcome(3, Role::Member, "cem");
    while catch_up(now(), &mut ann, &mut bob) + catch_up(now(), &mut bob, &mut cem) > 0 {}
    (ann, bob, cem)
}

fn changes(outputs: &[Output]) -> Vec<&kos_engine::RosterChange> {
    let all = outputs.iter().filter_map(|output| match output {
        Output::RosterChanged(change) => Some(change),
        _ => None,
    });
    all.collect()
}

#[test]
fn a_newcomer_joins_with_a_code_and_both_list_each_other() {
    let mut attic = Node::founder(1);
    assert!(attic.drain(now()).contains(&Output::DrawSecret));
    let invite = Invite {
        federation: attic.federation.id(),
        federation_name: "home".to_owned(),
        invite_key: key(77).public(),
        role: Role::Member,
        uses: 1,
        expires_ms: T0 + HOUR_MS,
        until_ms: None,
        author: attic.person.id(),
        key_seq: 0,
        note: None,
    };
    let invite = attic.sign(invite);
    let code = Invitation::new(invite, key(77), attic.person.key().public(), Vec::new()).unwrap().to_text();

    let code = Invitation::parse(&code).unwrap();
    let cellar = Person::new(2);
    let handshake_hash = [5; 32];
    let request = |federation| JoinRequest {
        federation,
        name: "cellar".to_owned(),
        key_log: cellar.log.to_list(),
        invite: ByteBuf::from(code.invite().bytes()),
        proof: InviteProof::sign(code.invite_key(), code.federation(), handshake_hash, cellar.id()),
    };
    let acts = |attic: &Node| attic.federation.acts().clone();
    let stray = request(FederationId::from_bytes([1; 32])).to_action(&acts(&attic), &handshake_hash);
    assert_eq!(stray, Err(JoinError::OtherFederation));
    let replayed = request(code.federation()).to_action(&acts(&attic), &[6; 32]);
    assert_eq!(replayed, Err(JoinError::Forged), "a proof from another session");

    let request = JoinRequest::decode(&cbor::encode(&request(code.federation()))).unwrap();
    let action = request.to_action(&acts(&attic), &handshake_hash).unwrap();
    attic.act(now(), &action).unwrap();
    let outputs = attic.drain(now());
    assert_eq!(changes(&outputs)[0].admitted, [cellar.id()]);
    assert_eq!(
        JoinError::from(&attic.federation.draft_act(now(), &action).unwrap_err()),
        JoinError::AlreadyMember
    );

    let reply = attic.federation.welcome();
    let expected = Some(code.federation());
    let joined = Federation::welcomed(now(), cellar.id(), expected, &reply).unwrap();
    assert_eq!(joined.roster(), attic.federation.roster());
    assert_eq!(joined.secret(), attic.federation.secret());
    assert_eq!(set_of(&joined), set_of(&attic.federation));
    let stranger = Person::new(3).id();
    let refused = Federation::welcomed(now(), stranger, expected, &reply).unwrap_err();
    assert_eq!(refused, WelcomeError::NotAdmitted);
    let other = FederationId::from_bytes([1; 32]);
    let refused = Federation::welcomed(now(), cellar.id(), Some(other), &reply).unwrap_err();
    assert!(matches!(refused, WelcomeError::OtherFederation { .. }));
    let mut altered = reply;
    altered.acts[0][40] ^= 1;
    let refused = Federation::welcomed(now(), cellar.id(), expected, &altered).unwrap_err();
    assert!(matches!(refused, WelcomeError::Act(_)));
}

#[test]
fn a_used_invitation_gives_its_own_error() {
    let error = ActError::Invite(InviteError::Used { uses: 1 });
    assert_eq!(JoinError::from(&error), JoinError::Used);
    assert_eq!(Refusal::Act(error).label(), "invite_used");
}

#[test]
fn a_removal_closes_out_and_draws_a_new_secret() {
    let (mut ann, mut bob, mut cem) = household();
    cem.publish(now()).unwrap();
    cem.drain(now());
    while catch_up(now(), &mut cem, &mut ann) + catch_up(now(), &mut ann, &mut bob) > 0 {}
    assert_eq!(ann.federation.directory().stats().records, 1);
    let old = ann.federation.secret().cloned().unwrap();

    ann.act(now(), &Action::Expel { member: cem.person.id(), why: String::new() }).unwrap();
    let outputs = ann.drain(now());
    assert_eq!(changes(&outputs)[0].removed, [cem.person.id()]);
    assert!(outputs.contains(&Output::DrawSecret) && outputs.contains(&Output::SecretChanged));
    assert_eq!(ann.federation.directory().stats().records, 0, "what it published is gone");
    assert!(!ann.store.keys().any(|(table, _)| *table == Table::Records));
    let new = ann.federation.secret().cloned().unwrap();
    assert_eq!((old.epoch, new.epoch), (0, 1));

    // The others follow, however often the expelled one offers the old secret or a record of its own.
    while catch_up(now(), &mut ann, &mut bob) > 0 {}
    assert_eq!(bob.federation.secret(), Some(&new));
    assert_eq!(bob.federation.handle(now(), Input::Secret(old.bytes())), Verdict::Known);
    cem.publish(at(1)).unwrap();
    catch_up(now(), &mut cem, &mut bob);
    assert_eq!(bob.federation.directory().stats().records, 0);
    assert_eq!(bob.federation.stats().refused.get("record_not_an_author"), Some(&1));
    assert_eq!(cem.standing(cem.person.id()), Some(Standing::Expelled));
    assert_ne!(cem.federation.secret(), Some(&new));
    let forbidden = cem.publish(at(2)).unwrap_err();
    assert!(matches!(forbidden, PublishError::Merge(_)));
}

#[test]
fn if_the_remover_draws_no_secret_the_next_steward_does() {
    let (mut ann, mut bob, cem) = household();
    ann.act(now(), &Action::Suspend { member: cem.person.id(), why: String::new() }).unwrap();
    let act = ann.federation.acts().in_order().last().unwrap().0.bytes().to_vec();
    // Ann stops before it draws; bob hears of the act only.
    assert_eq!(
        bob.federation
            .handle(now(), Input::Heard { from: None, item: &Item::new(item::ACT, &act).to_bytes() }),
        Verdict::New
    );
    let outputs = bob.drain(now());
    assert_eq!(changes(&outputs)[0].suspended, [cem.person.id()]);
    assert!(!outputs.contains(&Output::DrawSecret));
    let due_ms = bob.federation.next_deadline_ms(now());
    assert!((1..=60_000).contains(&due_ms));
    bob.federation.handle(at(due_ms), Input::DeadlineReached);
    assert!(bob.drain(at(due_ms)).contains(&Output::DrawSecret));
    assert_eq!(bob.federation.secret().unwrap().epoch, 1);
    // And ann, back again, takes it over instead of its own.
    let mut ann = ann.restarted(at(due_ms));
    let secret = bob.federation.secret().unwrap().bytes().to_vec();
    catch_up(at(due_ms), &mut bob, &mut ann);
    while catch_up(at(due_ms), &mut ann, &mut bob) > 0 {}
    assert_eq!(ann.federation.secret(), bob.federation.secret());
    assert!(ann.federation.secret().unwrap().epoch == 1 && !secret.is_empty());
}

#[test]
fn a_secret_comes_from_stewards_only_and_is_not_ahead_of_the_removals() {
    let (mut ann, bob, cem) = household();
    let draft = |author: &Node, epoch| DiscoverySecret {
        epoch,
        secret: ByteArray::new([0; 32]),
        author: author.person.id(),
        key_seq: 0,
    };
    let scope = Scope::Federation(ann.federation.id());
    let signed = |secret: DiscoverySecret, by: &Node| {
        Signed::sign(secret, scope, &by.person.key()).unwrap().bytes().to_vec()
    };
    for bytes in [
        signed(draft(&cem, 0), &cem),
        signed(draft(&bob, u64::MAX), &bob),
        signed(draft(&bob, 0), &cem),
        vec![1],
    ] {
        assert_eq!(ann.federation.handle(now(), Input::Secret(&bytes)), Verdict::Refused(Refusal::Secret));
    }
    assert_eq!(ann.federation.stats().refused.get("secret"), Some(&4));
}

#[test]
fn a_new_key_is_recorded_by_a_steward_and_old_records_go() {
    let (mut ann, mut bob, mut cem) = household();
    cem.publish(now()).unwrap();
    cem.drain(now());
    while catch_up(now(), &mut cem, &mut ann) > 0 {}
    cem.person.rotate();
    cem.federation.handle(now(), Input::Rotated(&cem.person.log)).taken().unwrap();
    let outputs = cem.drain(now());
    assert_eq!(changes(&outputs)[0].rotated, [cem.person.id()]);
    assert!(outputs.iter().any(|output| matches!(output, Output::Broadcast(_))));
    cem.publish(at(5)).unwrap();
    cem.drain(at(5));

    while catch_up(at(5), &mut cem, &mut ann) + catch_up(at(5), &mut ann, &mut bob) > 0 {}
    assert_eq!(ann.federation.acts().unrecorded().count(), 0, "the most senior steward recorded it");
    assert_eq!(set_of(&bob.federation), set_of(&cem.federation));
    let key_seq = bob.federation.directory().node(at(5), cem.person.id()).unwrap().entry.key_seq;
    assert_eq!(key_seq, 1);
    let known = bob.federation.roster().by_key(&cem.person.key().public());
    assert_eq!(known, Some((cem.person.id(), Role::Member, Standing::Active)));

    // A steward records its own, and acts with the new key right after.
    bob.person.rotate();
    bob.federation.handle(now(), Input::Rotated(&bob.person.log)).taken().unwrap();
    let outputs = bob.drain(now());
    assert!(outputs.iter().any(|output| matches!(output, Output::RecordRotation(_))));
    bob.act(now(), &Action::Suspend { member: cem.person.id(), why: String::new() }).unwrap();
    while catch_up(now(), &mut bob, &mut ann) > 0 {}
    assert_eq!(ann.standing(cem.person.id()), Some(Standing::Suspended));
}

#[test]
fn a_second_machine_with_the_same_keys_is_noticed() {
    let (mut ann, mut bob, _) = household();
    let mut twin = bob.restarted(now());
    bob.publish(now()).unwrap();
    bob.drain(now());
    twin.publish(at(1)).unwrap();
    twin.drain(at(1));
    catch_up(at(1), &mut twin, &mut ann);
    for bytes in missing(&mut ann, &mut bob) {
        bob.federation.handle(at(1), Input::Heard { from: None, item: &bytes });
    }
    let slot = Slot::only(bob.person.id(), Kind::Node);
    assert!(bob.drain(at(1)).contains(&Output::SeenMyself(slot)));
}

#[test]
fn an_own_record_from_before_a_restart_only_raises_the_number() {
    let (mut ann, mut bob, _) = household();
    bob.publish(at(500)).unwrap();
    bob.drain(at(500));
    catch_up(at(500), &mut bob, &mut ann);
    // The index was deleted and the clock set back.
    bob.store.retain(|(table, _), _| *table != Table::Records);
    let mut bob = bob.restarted(now());
    catch_up(now(), &mut ann, &mut bob);
    assert_eq!(bob.federation.stamp::<NodeRecord>(now(), "", HOUR_MS, 0).seq, T0 + 501);
    assert_eq!(bob.federation.stamp::<NodeRecord>(now(), "", HOUR_MS, T0 + 900).seq, T0 + 901);
    bob.publish(now()).unwrap();
    let outputs = bob.drain(now());
    assert!(!outputs.iter().any(|output| matches!(output, Output::SeenMyself(_))));
    let mut again = bob.node_record(now());
    again.seq = 3;
    let again = bob.sign(again);
    let refused = bob.federation.handle(now(), Input::Published((&again).into())).published();
    assert_eq!(refused, Err(PublishError::Outdated));
}

#[test]
fn a_clock_that_was_ahead_once_makes_nobody_mute() {
    const YEAR_MS: u64 = 365 * 24 * HOUR_MS;
    let (mut ann, mut bob, _) = household();
    bob.publish(at(YEAR_MS)).unwrap();
    bob.drain(at(YEAR_MS));
    let greatest = T0 + YEAR_MS;
    assert_eq!(bob.federation.stamp::<NodeRecord>(now(), "", HOUR_MS, greatest).seq, T0);
    bob.publish(now()).expect("its own record of the future is in nobody's way");
    bob.drain(now());
    catch_up(now(), &mut bob, &mut ann);
    let slot = Slot::only(bob.person.id(), Kind::Node);
    assert_eq!(ann.federation.directory().get(&slot).map(|record| record.seq()), Some(T0));
}

#[test]
fn what_this_node_signed_before_its_clock_went_back_is_no_twin() {
    let (mut ann, mut bob, _) = household();
    bob.publish(at(HOUR_MS)).unwrap();
    bob.drain(at(HOUR_MS));
    catch_up(at(HOUR_MS), &mut bob, &mut ann);
    // The clock was set back, and again to the right time.
    bob.publish(now()).unwrap();
    bob.drain(now());
    for bytes in missing(&mut ann, &mut bob) {
        bob.federation.handle(at(HOUR_MS), Input::Heard { from: None, item: &bytes });
    }
    let outputs = bob.drain(at(HOUR_MS));
    assert!(!outputs.iter().any(|output| matches!(output, Output::SeenMyself(_))));
    assert_eq!(bob.federation.stamp::<NodeRecord>(at(HOUR_MS), "", HOUR_MS, 0).seq, T0 + HOUR_MS + 1);
}

#[test]
fn what_was_persisted_restores_the_same_federation() {
    let (mut ann, _, mut cem) = household();
    cem.publish(now()).unwrap();
    let later = Item::new("moon-phase", b"full").to_bytes();
    assert_eq!(cem.federation.handle(now(), Input::Heard { from: None, item: &later }), Verdict::New);
    cem.drain(now());
    cem.person.rotate();
    cem.federation.handle(now(), Input::Rotated(&cem.person.log)).taken().unwrap();
    cem.publish(at(1)).unwrap();
    cem.drain(at(1));
    let restored = cem.restarted(at(1));
    assert_eq!(restored.federation.roster(), cem.federation.roster());
    assert_eq!(set_of(&restored.federation), set_of(&cem.federation));
    assert_eq!(restored.federation.secret(), cem.federation.secret());
    assert_eq!(catch_up(at(1), &mut restored.clone(), &mut cem), 0);
    catch_up(at(1), &mut cem, &mut ann);
    let ann = ann.restarted(at(1));
    assert_eq!(ann.federation.acts().unrecorded().count(), 0);
}

#[test]
fn a_clock_set_back_loses_no_act() {
    let mut ann = Node::founder(1);
    ann.admit(&Person::new(2), Role::Member, "bob");
    ann.drain(now());
    let years_ago = Timestamp { monotonic_ms: 0, wall_ms: 1 };
    assert_eq!(ann.restarted(years_ago).federation.roster(), ann.federation.roster());
}

#[test]
fn an_agent_is_published_found_and_expires() {
    let (mut ann, _, mut cem) = household();
    let agent: kos_protocol::id::AgentId = "kBridge:notes".parse().unwrap();
    let Stamp { author, key_seq, seq, time_ms, expires_ms } =
        cem.federation.stamp::<AgentRecord>(now(), &agent.to_string(), HOUR_MS, 0);
    let cert = AgentCert {
        agent_key: key(90).public(),
        agent: agent.clone(),
        capabilities: Vec::new(),
        not_before_ms: time_ms,
        until_ms: expires_ms,
        member: author,
        key_seq,
    };
    let cert = Some(ByteBuf::from(cem.sign(cert).bytes()));
    let record = AgentRecord {
        author,
        key_seq,
        agent: agent.clone(),
        seq,
        time_ms,
        expires_ms,
        cert,
        capabilities: Vec::new(),
        description: "notes".to_owned(),
        protocol: "http".to_owned(),
    };
    let record = cem.sign(record);
    cem.federation.handle(now(), Input::Published((&record).into())).published().unwrap();
    cem.drain(now());
    catch_up(now(), &mut cem, &mut ann);
    assert!(ann.federation.directory().agent(now(), cem.person.id(), &agent).is_some());
    assert_eq!(cem.restarted(now()).federation.own_agents().count(), 1);
    ann.federation.handle(at(HOUR_MS), Input::DeadlineReached);
    let outputs = ann.drain(at(HOUR_MS));
    assert!(outputs.iter().any(|output| matches!(output, Output::Forget { table: Table::Records, .. })));
    assert!(ann.federation.directory().agent(at(HOUR_MS), cem.person.id(), &agent).is_none());
}

#[test]
fn a_membership_that_ends_by_date_is_told_when_it_does() {
    let mut ann = Node::founder(1);
    let dan = Person::new(4);
    let admit = Admit {
        member: dan.id(),
        role: Role::Member,
        name: "dan".to_owned(),
        key_log: dan.log.to_list(),
        invite: None,
        proof: None,
        until_ms: Some(T0 + 5_000),
    };
    ann.act(now(), &Action::Admit(Box::new(admit))).unwrap();
    ann.drain(now());
    assert_eq!(ann.federation.next_deadline_ms(now()), 5_000);
    ann.federation.handle(at(5_000), Input::DeadlineReached);
    assert_eq!(changes(&ann.drain(at(5_000)))[0].removed, [dan.id()]);
}

#[test]
fn items_of_later_versions_are_kept_up_to_a_bound_that_everybody_draws_alike() {
    let (mut ann, mut bob, _) = household();
    let items: Vec<_> = (0..UNKNOWN_ITEMS_MAX as u64 + 20)
        .map(|n| Item::new("moon-phase", &n.to_be_bytes()).to_bytes())
        .collect();
    for bytes in &items {
        ann.federation.handle(now(), Input::Heard { from: None, item: bytes });
    }
    for bytes in items.iter().rev() {
        bob.federation.handle(now(), Input::Heard { from: None, item: bytes });
    }
    assert_eq!(set_of(&ann.federation), set_of(&bob.federation));
    ann.drain(now());
    let kept = ann.store.keys().filter(|(table, _)| *table == Table::Unknown).count();
    assert_eq!(kept, UNKNOWN_ITEMS_MAX);
}

#[test]
fn hostile_items_are_refused_and_counted_by_reason() {
    let (mut ann, _, cem) = household();
    let stranger = Person::new(8);
    let scope = Scope::Federation(ann.federation.id());
    let record = NodeRecord { author: stranger.id(), ..cem.node_record(now()) };
    let record = Signed::sign(record, scope, &stranger.key()).unwrap();
    let forged = Signed::sign(cem.node_record(now()), scope, &stranger.key()).unwrap();
    let act =
        ann.federation.draft_act(now(), &Action::Revoke { invite: ObjectId::from_bytes([0; 32]) }).unwrap();
    let foreign = Scope::Federation(FederationId::from_bytes([0; 32]));
    let foreign = Signed::sign(act, foreign, &ann.person.key()).unwrap();
    let cases = [
        (vec![0xff; 10], "item_malformed", true),
        (vec![0; ITEM_BYTES_MAX + 1], "item_malformed", true),
        (Item::new("NODE", b"").to_bytes(), "item_malformed", true),
        (Item::new(item::ACT, b"").to_bytes(), "act_malformed", true),
        (Item::new(item::ACT, foreign.bytes()).to_bytes(), "act_signature", true),
        (Item::new(item::KEY_LOG, b"").to_bytes(), "item_malformed", true),
        (Item::new(item::KEY_LOG, &[0x80]).to_bytes(), "key_log_malformed", true),
        (Item::key_log(&stranger.log).to_bytes(), "key_log_not_a_member", false),
        (Item::new(NodeRecord::KIND, record.bytes()).to_bytes(), "record_not_an_author", false),
        (Item::new(NodeRecord::KIND, forged.bytes()).to_bytes(), "record_signature", true),
    ];
    let before = set_of(&ann.federation);
    for (bytes, label, hostile) in cases {
        let Verdict::Refused(refusal) =
            ann.federation.handle(now(), Input::Heard { from: None, item: &bytes })
        else {
            panic!("{label}")
        };
        assert_eq!((refusal.label(), refusal.is_hostile()), (label, hostile));
    }
    assert_eq!(set_of(&ann.federation), before);
    assert_eq!(ann.federation.stats().refused.get("item_malformed"), Some(&4));
    assert_eq!(ann.drain(now()), []);
}

#[derive(Clone, Debug)]
enum Deed {
    Admit(u64, Role),
    Expel(usize),
    Suspend(usize),
    Reinstate(usize),
    Rotate,
    Publish,
    CatchUp(usize),
    Wait,
}

fn deeds() -> impl Strategy<Value = Vec<(usize, Deed)>> {
    let deed = prop_oneof![
        (4..8_u64, prop_oneof![Just(Role::Steward), Just(Role::Member)])
            .prop_map(|(n, role)| Deed::Admit(n, role)),
        (0..3_usize).prop_map(Deed::Expel),
        (0..3_usize).prop_map(Deed::Suspend),
        (0..3_usize).prop_map(Deed::Reinstate),
        Just(Deed::Rotate),
        Just(Deed::Publish),
        (0..3_usize).prop_map(Deed::CatchUp),
        Just(Deed::Wait),
    ];
    prop::collection::vec((0..3_usize, deed), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn engines_that_catch_up_agree(deeds in deeds()) {
        let (ann, bob, cem) = household();
        let mut nodes = [ann, bob, cem];
        let ids = [0, 1, 2].map(|n: usize| nodes[n].person.id());
        let why = String::new;
        for (step, (who, deed)) in deeds.into_iter().enumerate() {
            let now = at(step as u64 * 10_000);
            let action = match deed {
                Deed::Admit(number, role) => {
                    let person = Person::new(number);
                    let admit = Admit {
                        member: person.id(),
                        role,
                        name: "new".to_owned(),
                        key_log: person.log.to_list(),
                        invite: None,
                        proof: None,
                        until_ms: None,
                    };
                    Some(Action::Admit(Box::new(admit)))
                }
                Deed::Expel(whom) => Some(Action::Expel { member: ids[whom], why: why() }),
                Deed::Suspend(whom) => Some(Action::Suspend { member: ids[whom], why: why() }),
                Deed::Reinstate(whom) => Some(Action::Reinstate { member: ids[whom] }),
                Deed::Rotate => {
                    nodes[who].person.rotate();
                    let log = nodes[who].person.log.clone();
                    nodes[who].federation.handle(now, Input::Rotated(&log)).taken().unwrap();
                    None
                }
                Deed::Publish => {
                    let _ = nodes[who].publish(now);
                    None
                }
                Deed::CatchUp(with) if with != who => {
                    let [one, other] = nodes.get_disjoint_mut([who, with]).unwrap();
                    catch_up(now, one, other);
                    None
                }
                Deed::CatchUp(_) => None,
                Deed::Wait => {
                    nodes[who].federation.handle(now, Input::DeadlineReached);
                    None
                }
            };
            nodes[who].drain(now);
            if let Some(action) = action {
                let _ = nodes[who].act(now, &action);
            }
            nodes[who].drain(now);
        }
        // Then faults stop: what they still owe each other must get everywhere, and then nothing more.
        let mut quiet = false;
        for round in 0..20_u64 {
            let now = at(HOUR_MS / 2 + round * 60_000);
            let mut news = 0;
            for (one, other) in [(0, 1), (1, 2), (0, 2)] {
                let [one, other] = nodes.get_disjoint_mut([one, other]).unwrap();
                news += catch_up(now, one, other);
            }
            for node in &mut nodes {
                node.federation.handle(now, Input::DeadlineReached);
                news += node.drain(now).len();
            }
            quiet = news == 0;
            if quiet {
                break;
            }
        }
        prop_assert!(quiet, "they never stop telling each other news");
        for node in &nodes[1..] {
            prop_assert_eq!(node.federation.roster(), nodes[0].federation.roster());
            prop_assert_eq!(set_of(&node.federation), set_of(&nodes[0].federation));
        }
        let active = |node: &&Node| node.standing(node.person.id()) == Some(Standing::Active);
        let secrets: BTreeSet<_> =
            nodes.iter().filter(active).map(|node| node.federation.secret().unwrap().bytes().to_vec()).collect();
        prop_assert!(secrets.len() <= 1, "active members share one secret");
        let epoch = nodes[0].federation.secret().unwrap().epoch;
        if active(&&nodes[0]) {
            prop_assert_eq!(epoch, nodes[0].federation.acts().removals());
        }
        for node in &nodes {
            let restored = node.restarted(at(HOUR_MS / 2 + 20 * 60_000));
            prop_assert_eq!(set_of(&restored.federation), set_of(&node.federation));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in "[a-z-]{0,20}") {
        let mut node = Node::founder(1);
        node.federation.handle(now(), Input::Heard { from: None, item: &bytes });
        for kind in [kind.as_str(), item::ACT, item::KEY_LOG, NodeRecord::KIND] {
            node.federation.handle(now(), Input::Heard { from: None, item: &Item::new(kind, &bytes).to_bytes() });
        }
        node.federation.handle(now(), Input::Secret(&bytes));
        let _ = JoinReply::decode(&bytes);
        let _ = JoinRequest::decode(&bytes);
        node.drain(now());
    }
}
