use super::*;
use crate::record::{AgentCert, Capability, Entry, Header};
use kos_protocol::{
    cbor,
    key::SecretKey,
    limits::{
        ADDRESSES_MAX, RECORD_BYTES_MAX, RECORD_EVERY_MS_PER_AUTHOR, RECORD_LIFE_MS_MAX,
        RECORDS_BURST_PER_AUTHOR,
    },
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

    fn is_author(&self, member: &MemberId) -> bool {
        self.0.contains_key(member)
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
        left: false,
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
    directory.merge(now(), Source::Heard, T::KIND, &signed(record), &Roster::of(1..4))
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
    let slot = Slot::only(member(1), Kind::Node);
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
    let (found, agent_key) = directory.agent(now(), member(1), &notes).unwrap();
    assert_eq!((found.entry.description.as_str(), agent_key), ("shared notes", key(50).public()));
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
    let refused = directory.merge(now(), Source::Heard, "node-record", forged.bytes(), &authors);
    assert_eq!(refused, Err(MergeError::BadSignature { author: member(1) }));
    let mut garbled_stranger = signed(node(7, 1));
    *garbled_stranger.last_mut().unwrap() ^= 1;
    let refused = directory.merge(now(), Source::Heard, "node-record", &garbled_stranger, &authors);
    assert_eq!(refused, not_an_author(7, 0), "membership before the signature");

    let elsewhere = Scope::Federation(FederationId::from_bytes([5; 32]));
    let foreign = Signed::sign(node(1, 1), elsewhere, &key(1)).unwrap();
    assert!(directory.merge(now(), Source::Heard, "node-record", foreign.bytes(), &authors).is_err());
    let as_other_kind = directory.merge(now(), Source::Heard, "agent-record", &signed(node(1, 1)), &authors);
    assert_eq!(as_other_kind, Err(MergeError::BadSignature { author: member(1) }));

    merge(&mut directory, node(1, 1)).unwrap();
    merge(&mut directory, node(2, 1)).unwrap();
    let mut later = Roster::of([2]);
    let both = [member(1), member(2)];
    assert_eq!(
        directory.retain(&later, &both).iter().map(|slot| slot.author).collect::<Vec<_>>(),
        [member(1)]
    );
    later.0.insert(member(2), (1, key(20).public()));
    assert_eq!(directory.retain(&later, &both).len(), 1, "the key was replaced");
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
    let long =
        directory.merge(now(), Source::Heard, "node-record", &[0; RECORD_BYTES_MAX + 1], &Roster::of([]));
    assert!(matches!(long, Err(MergeError::Decode(DecodeError::TooLarge { .. }))));
    let kind = directory.merge(now(), Source::Heard, "Node Record", &signed(node(1, 1)), &Roster::of([1]));
    assert_eq!(kind, Err(MergeError::Content("kind")));
}

/// A kind this version does not know, with a field it does not know.
#[derive(Serialize, Deserialize)]
struct WeatherRecord {
    author: MemberId,
    key_seq: u64,
    slot: String,
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
    kelvin: u64,
    note: String,
}

impl Object for WeatherRecord {
    const DOMAIN: &'static str = "kos/weather-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for WeatherRecord {
    const KIND: &'static str = "weather-record";
    fn header(&self) -> Header {
        cbor::decode_message(&cbor::encode(self), RECORD_BYTES_MAX).unwrap()
    }
}

fn weather(author: u8, slot: String, seq: u64) -> WeatherRecord {
    let (time_ms, expires_ms) = (T0, T0 + DAY_MS);
    WeatherRecord {
        author: member(author),
        key_seq: 0,
        slot,
        seq,
        time_ms,
        expires_ms,
        kelvin: 280,
        note: String::new(),
    }
}

#[test]
fn a_kind_of_a_later_version_is_judged_like_any_other_and_kept() {
    let mut directory = Directory::new(FEDERATION);
    let Ok(Merged::New(verified)) = merge(&mut directory, weather(1, "peer".to_owned(), 1)) else {
        panic!("new")
    };
    let slot = verified.record().slot();
    assert_eq!(directory.get(slot).unwrap().content(), &Content::Unknown);
    assert_eq!(directory.get(slot).unwrap().bytes(), signed(weather(1, "peer".to_owned(), 1)));
    assert_eq!(merge(&mut directory, weather(1, "x".repeat(65), 1)), Err(MergeError::Content("slot")));
    assert!(matches!(
        merge(&mut directory, weather(7, String::new(), 1)),
        Err(MergeError::NotAnAuthor { .. })
    ));
}

#[test]
fn of_more_records_than_fit_all_keep_the_same() {
    let records: Vec<_> = (0..RECORDS_PER_AUTHOR_MAX + 40)
        .map(|n| signed(WeatherRecord { time_ms: T0 - n as u64 % 7, ..weather(1, n.to_string(), 1) }))
        .collect();
    let kept = |order: &mut dyn Iterator<Item = &Vec<u8>>| {
        let mut directory = Directory::new(FEDERATION);
        for bytes in order {
            let _ = directory.merge(now(), Source::Own, "weather-record", bytes, &Roster::of([1]));
        }
        assert_eq!(directory.stats().records, RECORDS_PER_AUTHOR_MAX);
        directory.ids().copied().collect::<Vec<_>>()
    };
    assert_eq!(kept(&mut records.iter()), kept(&mut records.iter().rev()));
}

#[test]
fn one_member_cannot_fill_the_directory() {
    let mut directory = Directory::new(FEDERATION);
    for n in 0..RECORDS_PER_AUTHOR_MAX {
        merge(&mut directory, weather(1, n.to_string(), 1)).unwrap();
    }
    let older = WeatherRecord { time_ms: T0 - 1, ..weather(1, "more".to_owned(), 1) };
    assert_eq!(merge(&mut directory, older), Err(MergeError::Quota { author: member(1) }));
    assert!(merge(&mut directory, node(1, 1)).is_ok(), "a node is worth more than the weather");
    assert_eq!((directory.stats().records, directory.take_evicted().len()), (RECORDS_PER_AUTHOR_MAX, 1));
    assert!(matches!(merge(&mut directory, weather(1, "0".to_owned(), 2)), Ok(Merged::New(_))));
    assert!(matches!(merge(&mut directory, node(2, 1)), Ok(Merged::New(_))));
    let refused = &directory.accounts().iter().next().unwrap().1.refused;
    assert_eq!(refused.get("record_quota"), Some(&2), "held against its author");
    directory.accounts = Accounts::holding(RECORDS_BYTES_MAX);
    assert_eq!(merge(&mut directory, node(3, 1)), Err(MergeError::Full));
}

#[test]
fn one_member_cannot_fill_the_room_of_others_with_long_records() {
    let mut directory = Directory::new(FEDERATION);
    let long = |n: usize| weather(1, format!("{n:064}"), 1);
    let bytes = signed(long(0)).len();
    let mut padded = 0;
    for n in 0.. {
        let record = WeatherRecord { note: "x".repeat(3000), ..long(n) };
        match merge(&mut directory, record) {
            Ok(_) => padded += 1,
            Err(error) => {
                assert_eq!(error, MergeError::Quota { author: member(1) });
                break;
            }
        }
    }
    assert!((RECORDS_BYTES_PER_AUTHOR_MAX / (bytes + 3100)..RECORDS_PER_AUTHOR_MAX).contains(&padded));
    assert!(directory.stats().bytes <= RECORDS_BYTES_PER_AUTHOR_MAX);
}

#[test]
fn what_one_member_publishes_too_fast_is_not_taken_until_later() {
    let mut directory = Directory::new(FEDERATION);
    let taken = |directory: &mut Directory, now: Timestamp, seq| {
        directory.merge(now, Source::Heard, "node-record", &signed(node(1, seq)), &Roster::of(1..4))
    };
    for seq in 0..u64::from(RECORDS_BURST_PER_AUTHOR) {
        assert!(matches!(taken(&mut directory, now(), seq), Ok(Merged::New(_))));
    }
    assert_eq!(taken(&mut directory, now(), 9_999), Err(MergeError::Rate { author: member(1) }));
    assert!(matches!(merge(&mut directory, node(2, 1)), Ok(Merged::New(_))), "others are");
    assert!(matches!(taken(&mut directory, at(T0 + RECORD_EVERY_MS_PER_AUTHOR), 9_999), Ok(Merged::New(_))));
    let own = signed(node(1, 10_000));
    let own = directory.merge(now(), Source::Own, "node-record", &own, &Roster::of(1..4));
    assert!(matches!(own, Ok(Merged::New(_))));
    let forged: Vec<_> = (0..2_000).map(|seq| Signed::sign(node(3, seq), SCOPE, &key(2)).unwrap()).collect();
    for forged in forged {
        let refused = directory.merge(now(), Source::Heard, "node-record", forged.bytes(), &Roster::of(1..4));
        assert_eq!(refused, Err(MergeError::BadSignature { author: member(3) }));
    }
    assert!(matches!(merge(&mut directory, node(3, 1)), Ok(Merged::New(_))), "others cannot use its rate up");
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
            .map(|(author, slot, seq, kelvin)| {
                signed(WeatherRecord { kelvin: *kelvin, ..weather(*author, slot.to_string(), *seq) })
            })
            .collect();
        let mut shuffled: Vec<_> = records.iter().zip(&order).collect();
        shuffled.sort_by_key(|(_, place)| **place);
        let (mut one, mut other) = (Directory::new(FEDERATION), Directory::new(FEDERATION));
        let merge = |directory: &mut Directory, bytes: &Vec<u8>| {
            let merged = directory.merge(now(), Source::Heard, "weather-record", bytes, &Roster::of(1..4));
            merged.is_ok() || matches!(merged, Err(MergeError::Equivocation { .. }))
        };
        prop_assert!(records.iter().all(|bytes| merge(&mut one, bytes)));
        prop_assert!(shuffled.into_iter().all(|(bytes, _)| merge(&mut other, bytes)));
        prop_assert!(one.records().eq(other.records()));
        prop_assert!(one.ids().eq(other.ids()));
        prop_assert!(one.ids().all(|id| one.get_by_id(id).unwrap().id() == *id));
        prop_assert_eq!(one.stats().bytes, one.records().map(|record| record.bytes().len()).sum::<usize>());
    }

    #[test]
    fn no_bytes_make_it_panic_and_no_altered_record_is_taken(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        place in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut directory = Directory::new(FEDERATION);
        for kind in ["node-record", "agent-record", "link-record", "suspect-record", "weather-record", ""] {
            prop_assert!(directory.merge(now(), Source::Heard, kind, &bytes, &Roster::of(1..4)).is_err());
        }
        let mut altered = signed(agent(1, "kBridge:notes", cert(1, "kBridge:notes")));
        let place = place.index(altered.len());
        altered[place] ^= 1 << bit;
        prop_assert!(directory.merge(now(), Source::Heard, "agent-record", &altered, &Roster::of(1..4)).is_err());
    }
}
