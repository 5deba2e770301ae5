use super::*;
use crate::record::{Capability, Entry, Header};
use kos_protocol::{
    cbor,
    key::SecretKey,
    limits::{ADDRESSES_MAX, RECORD_BYTES_MAX, RECORD_LIFE_MS_MAX},
    object::{Object, Scope, Signed},
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

const T0: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 86_400_000;
const FEDERATION: FederationId = FederationId::from_bytes([4; 32]);
const SCOPE: Scope = Scope::Federation(FEDERATION);

fn at(wall_ms: u64) -> Timestamp {
    Timestamp { monotonic_ms: wall_ms - T0, wall_ms }
}

fn now() -> Timestamp {
    at(T0)
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

fn member(n: u8) -> MemberId {
    MemberId::from_bytes([n; 32])
}

/// Members by number, each with the number of its key; member `n` signs with `key(n)`.
struct Roster(BTreeMap<MemberId, (u64, PublicKey)>);

impl Roster {
    fn of(members: impl IntoIterator<Item = u8>) -> Self {
        Self(members.into_iter().map(|n| (member(n), (0, key(n).public()))).collect())
    }
}

impl Authors for Roster {
    fn key_of(&self, member: &MemberId, key_seq: u64) -> Option<PublicKey> {
        self.0.get(member).filter(|(seq, _)| *seq == key_seq).map(|(_, key)| *key)
    }
}

fn node(author: u8, seq: u64) -> NodeRecord {
    NodeRecord {
        author: member(author),
        key_seq: 0,
        seq,
        time_ms: T0,
        expires_ms: T0 + DAY_MS,
        name: "attic".to_owned(),
        addresses: vec!["/ip4/203.0.113.7/udp/4001/quic-v1".to_owned()],
        relays: vec![member(9)],
        version: semver::Version::new(0, 1, 0),
        features: vec!["carry".to_owned()],
    }
}

fn cert(author: u8, name: &str) -> AgentCert {
    AgentCert {
        agent_key: key(50).public(),
        agent: name.parse().unwrap(),
        capabilities: vec!["http".to_owned()],
        not_before_ms: T0,
        until_ms: T0 + 30 * DAY_MS,
        member: member(author),
        key_seq: 0,
    }
}

fn agent(author: u8, name: &str, cert: AgentCert) -> AgentRecord {
    let cert = Signed::sign(cert, SCOPE, &key(author)).unwrap();
    AgentRecord {
        author: member(author),
        key_seq: 0,
        agent: name.parse().unwrap(),
        seq: T0,
        time_ms: T0,
        expires_ms: T0 + DAY_MS,
        cert: Some(ByteBuf::from(cert.bytes())),
        capabilities: vec![Capability { name: "http".to_owned(), version: semver::Version::new(1, 1, 0) }],
        description: "shared notes".to_owned(),
        protocol: "http".to_owned(),
    }
}

fn signed<T: Entry>(record: T) -> Vec<u8> {
    let author = record.header().author.as_bytes()[0];
    Signed::sign(record, SCOPE, &key(author)).unwrap().bytes().to_vec()
}

fn merge<T: Entry>(directory: &mut Directory, record: T) -> Result<Merged, MergeError> {
    directory.merge(now(), T::KIND, &signed(record), &Roster::of(1..4))
}

#[test]
fn the_newest_record_of_a_slot_is_found() {
    let mut directory = Directory::new(FEDERATION);
    assert!(matches!(merge(&mut directory, node(1, 10)), Ok(Merged::New(_))));
    assert_eq!(merge(&mut directory, node(1, 10)), Ok(Merged::Known));
    assert_eq!(merge(&mut directory, node(1, 9)), Ok(Merged::Known));
    assert!(matches!(merge(&mut directory, node(1, 11)), Ok(Merged::New(_))));
    merge(&mut directory, node(2, 5)).unwrap();
    let found = directory.node(at(T0 + 500), member(1)).unwrap();
    assert_eq!((found.entry.seq, found.age_ms), (11, 500));
    assert_eq!(directory.nodes(now()).count(), 2);
    assert_eq!(directory.stats().records, 2);
    let slot = Slot { author: member(1), kind: "node-record".to_owned(), name: String::new() };
    assert_eq!(directory.next_seq(at(T0), &slot), T0);
    merge(&mut directory, node(1, T0 + 7)).unwrap();
    assert_eq!(directory.next_seq(at(T0), &slot), T0 + 8, "the clock was set back");
}

#[test]
fn agents_are_found_by_class_until_their_tombstone() {
    let mut directory = Directory::new(FEDERATION);
    merge(&mut directory, agent(1, "kBridge:notes", cert(1, "kBridge:notes"))).unwrap();
    merge(&mut directory, agent(2, "kSentinel:node", cert(2, "kSentinel:node"))).unwrap();
    let notes = "kBridge:notes".parse().unwrap();
    let (found, cert) = directory.agent(now(), member(1), &notes).unwrap();
    assert_eq!((found.entry.description.as_str(), cert.agent_key), ("shared notes", key(50).public()));
    assert_eq!(directory.agents(now(), Some(AgentClass::Bridge)).count(), 1);
    assert_eq!(directory.agents(now(), None).count(), 2);

    let gone =
        AgentRecord { seq: T0 + 1, cert: None, ..agent(1, "kBridge:notes", self::cert(1, "kBridge:notes")) };
    assert!(gone.is_tombstone());
    merge(&mut directory, gone).unwrap();
    assert_eq!(directory.agent(now(), member(1), &notes), None);
    let old = agent(1, "kBridge:notes", self::cert(1, "kBridge:notes"));
    assert_eq!(merge(&mut directory, old), Ok(Merged::Known), "the tombstone holds");
}

#[test]
fn a_certificate_must_cover_its_agent() {
    let mut directory = Directory::new(FEDERATION);
    let name = "kBridge:notes";
    let bad = Err(MergeError::BadCert { author: member(1) });
    let changes: [fn(&mut AgentCert); 6] = [
        |cert| cert.member = member(2),
        |cert| cert.key_seq = 1,
        |cert| cert.agent = "kBridge:other".parse().unwrap(),
        |cert| cert.capabilities.clear(),
        |cert| cert.until_ms = T0 + DAY_MS - 1,
        |cert| cert.not_before_ms = T0 + DAY_MS,
    ];
    for change in changes {
        let mut cert = cert(1, name);
        change(&mut cert);
        assert_eq!(merge(&mut directory, agent(1, name, cert)), bad);
    }
    let by_other = Signed::sign(cert(1, name), SCOPE, &key(2)).unwrap();
    let record = AgentRecord { cert: Some(ByteBuf::from(by_other.bytes())), ..agent(1, name, cert(1, name)) };
    assert_eq!(merge(&mut directory, record), bad);
    let elsewhere = Scope::Federation(FederationId::from_bytes([5; 32]));
    let foreign = Signed::sign(cert(1, name), elsewhere, &key(1)).unwrap();
    let record = AgentRecord { cert: Some(ByteBuf::from(foreign.bytes())), ..agent(1, name, cert(1, name)) };
    assert_eq!(merge(&mut directory, record), bad);
}

#[test]
fn only_active_members_with_their_current_key_write() {
    let mut directory = Directory::new(FEDERATION);
    let not_an_author = |author, key_seq| Err(MergeError::NotAnAuthor { author: member(author), key_seq });
    assert_eq!(merge(&mut directory, node(7, 1)), not_an_author(7, 0));
    assert_eq!(merge(&mut directory, NodeRecord { key_seq: 1, ..node(1, 1) }), not_an_author(1, 1));

    let authors = Roster::of(1..4);
    let forged = Signed::sign(node(1, 1), SCOPE, &key(2)).unwrap();
    let refused = directory.merge(now(), "node-record", forged.bytes(), &authors);
    assert_eq!(refused, Err(MergeError::BadSignature { author: member(1) }));
    let mut garbled_stranger = signed(node(7, 1));
    *garbled_stranger.last_mut().unwrap() ^= 1;
    let refused = directory.merge(now(), "node-record", &garbled_stranger, &authors);
    assert_eq!(refused, not_an_author(7, 0), "membership before the signature");

    let elsewhere = Scope::Federation(FederationId::from_bytes([5; 32]));
    let foreign = Signed::sign(node(1, 1), elsewhere, &key(1)).unwrap();
    assert!(directory.merge(now(), "node-record", foreign.bytes(), &authors).is_err());
    let as_other_kind = directory.merge(now(), "agent-record", &signed(node(1, 1)), &authors);
    assert_eq!(as_other_kind, Err(MergeError::BadSignature { author: member(1) }));

    merge(&mut directory, node(1, 1)).unwrap();
    merge(&mut directory, node(2, 1)).unwrap();
    let mut later = Roster::of([2]);
    assert_eq!(directory.retain(&later).iter().map(|slot| slot.author).collect::<Vec<_>>(), [member(1)]);
    later.0.insert(member(2), (1, key(20).public()));
    assert_eq!(directory.retain(&later).len(), 1, "the key was replaced");
    assert_eq!(directory.stats(), Stats { merged: 2, ..Stats::default() });
}

#[test]
fn times_are_bounded() {
    let mut directory = Directory::new(FEDERATION);
    let author = member(1);
    let skew_ms = kos_protocol::limits::CLOCK_SKEW_MS_MAX;
    let future = Err(MergeError::Future { author, ahead_ms: skew_ms + 1 });
    assert_eq!(merge(&mut directory, node(1, T0 + skew_ms + 1)), future);
    let tomorrow = NodeRecord { time_ms: T0 + skew_ms + 1, expires_ms: T0 + DAY_MS, ..node(1, 1) };
    assert_eq!(merge(&mut directory, tomorrow), future);
    let immortal = NodeRecord { expires_ms: T0 + RECORD_LIFE_MS_MAX + 1, ..node(1, 1) };
    assert_eq!(merge(&mut directory, immortal), Err(MergeError::Content("expires_ms")));
    let backwards = NodeRecord { expires_ms: T0 - 1, ..node(1, 1) };
    assert_eq!(merge(&mut directory, backwards), Err(MergeError::Content("expires_ms")));
    let over = NodeRecord { time_ms: T0 - DAY_MS, expires_ms: T0, ..node(1, 1) };
    assert_eq!(merge(&mut directory, over), Err(MergeError::Expired { author, age_ms: 0 }));

    merge(&mut directory, node(1, 1)).unwrap();
    assert_eq!(directory.next_expiry_ms(), Some(T0 + DAY_MS));
    assert_eq!(directory.expire(at(T0 + DAY_MS - 1)), []);
    assert_eq!(directory.expire(at(T0 + DAY_MS)).len(), 1);
    assert_eq!((directory.next_expiry_ms(), directory.stats().records), (None, 0));
}

/// What is done to a record, and the field it is refused for.
type Change<T> = (fn(&mut T), &'static str);

#[test]
fn fields_are_bounded() {
    let mut directory = Directory::new(FEDERATION);
    let changes: [Change<NodeRecord>; 6] = [
        (|node| node.name = "\u{1b}[2J".to_owned(), "name"),
        (|node| node.addresses = vec!["/a".to_owned(); ADDRESSES_MAX + 1], "addresses"),
        (|node| node.addresses = vec!["x".repeat(257)], "addresses"),
        (|node| node.addresses = vec![String::new()], "addresses"),
        (|node| node.relays = vec![member(1); ADDRESSES_MAX + 1], "relays"),
        (|node| node.features = vec!["a b".to_owned()], "features"),
    ];
    for (change, field) in changes {
        let mut record = node(1, 1);
        change(&mut record);
        assert_eq!(merge(&mut directory, record), Err(MergeError::Content(field)));
    }
    let changes: [Change<AgentRecord>; 3] = [
        (|agent| agent.description = "x".repeat(513), "description"),
        (|agent| agent.description = "\u{1b}]0;".to_owned(), "description"),
        (|agent| agent.protocol = String::new(), "protocol"),
    ];
    for (change, field) in changes {
        let mut record = agent(1, "kBridge:notes", cert(1, "kBridge:notes"));
        change(&mut record);
        assert_eq!(merge(&mut directory, record), Err(MergeError::Content(field)));
    }
    let long = directory.merge(now(), "node-record", &[0; RECORD_BYTES_MAX + 1], &Roster::of([]));
    assert!(matches!(long, Err(MergeError::Decode(DecodeError::TooLarge { .. }))));
    let kind = directory.merge(now(), "Node Record", &signed(node(1, 1)), &Roster::of([1]));
    assert_eq!(kind, Err(MergeError::Content("kind")));
}

/// A kind this version does not know, with a field it does not know.
#[derive(Serialize, Deserialize)]
struct LinkRecord {
    author: MemberId,
    key_seq: u64,
    slot: String,
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
    rtt_us: u64,
}

impl Object for LinkRecord {
    const DOMAIN: &'static str = "kos/link-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for LinkRecord {
    const KIND: &'static str = "link-record";
    fn header(&self) -> Header {
        cbor::decode_message(&cbor::encode(self), RECORD_BYTES_MAX).unwrap()
    }
}

fn link(author: u8, slot: String, seq: u64) -> LinkRecord {
    let (time_ms, expires_ms) = (T0, T0 + DAY_MS);
    LinkRecord { author: member(author), key_seq: 0, slot, seq, time_ms, expires_ms, rtt_us: 80_000 }
}

#[test]
fn a_kind_of_a_later_version_is_judged_like_any_other_and_kept() {
    let mut directory = Directory::new(FEDERATION);
    let Ok(Merged::New(slot)) = merge(&mut directory, link(1, "peer".to_owned(), 1)) else { panic!("new") };
    assert_eq!(directory.get(&slot).unwrap().content(), &Content::Unknown);
    assert_eq!(directory.get(&slot).unwrap().bytes(), signed(link(1, "peer".to_owned(), 1)));
    assert_eq!(merge(&mut directory, link(1, "x".repeat(65), 1)), Err(MergeError::Content("slot")));
    assert!(matches!(merge(&mut directory, link(7, String::new(), 1)), Err(MergeError::NotAnAuthor { .. })));
}

#[test]
fn one_member_cannot_fill_the_directory() {
    let mut directory = Directory::new(FEDERATION);
    for n in 0..RECORDS_PER_AUTHOR_MAX {
        merge(&mut directory, link(1, n.to_string(), 1)).unwrap();
    }
    assert_eq!(merge(&mut directory, node(1, 1)), Err(MergeError::Quota { author: member(1) }));
    assert!(matches!(merge(&mut directory, link(1, "0".to_owned(), 2)), Ok(Merged::New(_))));
    assert!(matches!(merge(&mut directory, node(2, 1)), Ok(Merged::New(_))));
    directory.stats.bytes = RECORDS_BYTES_MAX;
    assert_eq!(merge(&mut directory, node(3, 1)), Err(MergeError::Full));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn merges_commute(
        made in prop::collection::vec((1..4_u8, 0..3_usize, 0..4_u64, 0..3_u64), 1..30),
        order in prop::collection::vec(any::<u32>(), 30),
    ) {
        // Several records with one number in one slot, told apart by their content.
        let records: Vec<_> = made
            .iter()
            .map(|(author, slot, seq, rtt_us)| {
                signed(LinkRecord { rtt_us: *rtt_us, ..link(*author, slot.to_string(), *seq) })
            })
            .collect();
        let mut shuffled: Vec<_> = records.iter().zip(&order).collect();
        shuffled.sort_by_key(|(_, place)| **place);
        let (mut one, mut other) = (Directory::new(FEDERATION), Directory::new(FEDERATION));
        for bytes in &records {
            one.merge(now(), "link-record", bytes, &Roster::of(1..4)).unwrap();
        }
        for (bytes, _) in shuffled {
            other.merge(now(), "link-record", bytes, &Roster::of(1..4)).unwrap();
        }
        prop_assert!(one.records().eq(other.records()));
        prop_assert_eq!(one.ids(), other.ids());
        prop_assert_eq!(one.stats().bytes, one.records().map(|record| record.bytes().len()).sum::<usize>());
    }

    #[test]
    fn no_bytes_make_it_panic_and_no_altered_record_is_taken(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut directory = Directory::new(FEDERATION);
        for kind in ["node-record", "agent-record", "link-record", ""] {
            prop_assert!(directory.merge(now(), kind, &bytes, &Roster::of(1..4)).is_err());
        }
        let mut altered = signed(agent(1, "kBridge:notes", cert(1, "kBridge:notes")));
        let place = place.index(altered.len());
        altered[place] ^= 1 << bit;
        prop_assert!(directory.merge(now(), "agent-record", &altered, &Roster::of(1..4)).is_err());
    }
}
