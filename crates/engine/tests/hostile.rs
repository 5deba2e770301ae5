//! Bytes that nobody honest sends, into every decoder of SPEC §9: no panic, no altered object taken for a good one, and
//! memory in proportion to what arrived. `KLP_MUTATION_ROUNDS`, `CI_LONG=1` and `KLP_SEED` as in `kos-protocol`.
#![allow(
    missing_docs,
    unsafe_code,
    clippy::unwrap_used,
    clippy::disallowed_types,
    clippy::disallowed_methods
)]

#[path = "../../../protocol/tests/hostile/dice.rs"]
mod dice;
#[path = "../../../protocol/tests/hostile/memory.rs"]
mod memory;

use dice::{corpus, dice};
use kos_directory::{AgentCert, Authors, Directory, Source};
use kos_engine::{Federation, Input, Item, Table};
use kos_governance::{
    act::{Act, Action},
    acts::Acts,
    code::{Invitation, RelayLine},
    genesis::Genesis,
    invite::Invite,
    join::{JoinReply, JoinRequest},
    secret::DiscoverySecret,
};
use kos_protocol::{
    id::{FederationId, MemberId, sha256},
    key::PublicKey,
    key_log::KeyLog,
    limits::{
        ACT_BYTES_MAX, CODE_CHARS_MAX, GENESIS_BYTES_MAX, INVITE_BYTES_MAX, ITEM_BYTES_MAX,
        JOIN_REPLY_BYTES_MAX, JOIN_REQUEST_BYTES_MAX, RECORD_BYTES_MAX,
    },
    object::{Object, Scope, Signed, Unverified},
    time::Timestamp,
};
use memory::peak;
use proptest::prelude::*;
use serde_json::Value;

const NOW: Timestamp = Timestamp { monotonic_ms: 0, wall_ms: 1_800_000_000_000 };

fn vectors(file: &str) -> Vec<Value> {
    let path = format!("{}/../../protocol/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let whole: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    whole["vectors"].as_array().unwrap().clone()
}

fn unhex(value: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

/// The first history of the vectors: a household in which everything has happened.
fn household() -> (Genesis, Vec<Vec<u8>>) {
    let history = &vectors("acts.json")[0];
    let acts = history["acts"].as_array().unwrap().iter().map(|act| unhex(&act["envelope"]));
    (Genesis::parse(&unhex(&history["genesis"])).unwrap(), acts.collect())
}

fn federation() -> Federation {
    let (genesis, acts) = household();
    let founder = genesis.charter().roster[0].member;
    let mut federation = Federation::new(NOW, genesis, founder);
    for act in acts {
        federation.handle(NOW, Input::Heard { from: None, item: &Item::new("act", &act).to_bytes() });
    }
    federation
}

fn acts() -> Acts {
    let (genesis, list) = household();
    let mut acts = Acts::new(genesis);
    list.iter().for_each(|act| drop(acts.insert(NOW, act).unwrap()));
    acts
}

/// Everybody writes with the founder's key.
struct Anybody(PublicKey);

impl Authors for Anybody {
    fn key_of(&self, _: &MemberId, _: u64) -> Option<PublicKey> {
        Some(self.0)
    }

    fn is_author(&self, _: &MemberId) -> bool {
        true
    }
}

/// What there is before hostile bytes come.
struct Target {
    federation: Federation,
    acts: Acts,
    directory: Directory,
    authors: Anybody,
    id: FederationId,
}

impl Target {
    fn new() -> Self {
        let (federation, acts) = (federation(), acts());
        let id = acts.federation();
        let founder = acts.genesis().charter().roster[0].member;
        let authors = Anybody(acts.key_log(&founder).unwrap().key_at(0).unwrap());
        Self { federation, acts, directory: Directory::new(id), authors, id }
    }

    fn scope(&self) -> Scope {
        Scope::Federation(self.id)
    }
}

/// Copies of a text, an envelope and its payload, and an error that quotes some of it.
const COPIES: usize = 10;
/// The shortest item of a list is one byte on the wire and a `Vec` in memory, twice while the list grows.
const LISTS: usize = 80;
/// For an empty input too: an error's text, the parts of a key, a view of the acts.
const BYTES_AT_LEAST: usize = 64 * 1024;

struct Decoder {
    name: &'static str,
    limit: usize,
    /// What it may hold for each byte it was given.
    factor: usize,
    run: fn(&mut Target, &[u8]),
}

/// A code that holds these bytes, with the right checksum; and the bytes as they are, as far as they are text.
fn codes(prefix: &str, bytes: &[u8]) -> [String; 2] {
    let bytes = &bytes[..bytes.len().min(CODE_CHARS_MAX)];
    let mut payload = [&[1], bytes].concat();
    let sum = sha256(&[prefix.as_bytes(), &payload].concat());
    payload.extend(&sum[..4]);
    let code = format!("{prefix}{}", data_encoding::BASE32_NOPAD.encode(&payload));
    [code, String::from_utf8_lossy(bytes).into_owned()]
}

/// Every way in for bytes of a peer, or of a person, with its limit.
const DECODERS: [Decoder; 17] = [
    Decoder {
        name: "genesis",
        limit: GENESIS_BYTES_MAX,
        factor: COPIES,
        run: |_, bytes| drop(Genesis::parse(bytes)),
    },
    Decoder {
        name: "action",
        limit: ACT_BYTES_MAX,
        factor: LISTS,
        run: |_, bytes| drop(Action::from_bytes(bytes)),
    },
    Decoder {
        name: "act",
        limit: ACT_BYTES_MAX,
        factor: COPIES,
        run: |target, bytes| drop(Unverified::<Act>::parse(bytes, target.scope())),
    },
    Decoder {
        name: "act into the graph",
        limit: ACT_BYTES_MAX,
        factor: LISTS,
        run: |target, bytes| drop(target.acts.insert(NOW, bytes)),
    },
    Decoder {
        name: "invitation",
        limit: INVITE_BYTES_MAX,
        factor: COPIES,
        run: |target, bytes| drop((Invite::read(bytes, target.id), Invite::claimed_federation(bytes))),
    },
    Decoder {
        name: "invitation code",
        limit: CODE_CHARS_MAX,
        factor: COPIES,
        run: |_, bytes| codes("kai:join/", bytes).iter().for_each(|text| drop(Invitation::parse(text))),
    },
    Decoder {
        name: "relay line",
        limit: CODE_CHARS_MAX,
        factor: LISTS,
        run: |_, bytes| codes("kai:relay/", bytes).iter().for_each(|text| drop(RelayLine::parse(text))),
    },
    Decoder {
        name: "join request",
        limit: JOIN_REQUEST_BYTES_MAX,
        factor: COPIES,
        run: |target, bytes| {
            if let Ok(request) = JoinRequest::decode(bytes) {
                let hash = *request.proof.handshake_hash;
                let _ = request.to_action(&target.acts, &hash);
            }
        },
    },
    Decoder {
        name: "welcome",
        limit: JOIN_REPLY_BYTES_MAX,
        factor: COPIES,
        run: |_, bytes| drop(JoinReply::decode(bytes)),
    },
    Decoder {
        name: "discovery secret",
        limit: 512,
        factor: COPIES,
        run: |target, bytes| drop(Unverified::<DiscoverySecret>::parse(bytes, target.scope())),
    },
    Decoder {
        name: "discovery secret into the federation",
        limit: 512,
        factor: COPIES,
        run: |target, bytes| drop(target.federation.handle(NOW, Input::Secret(bytes))),
    },
    Decoder {
        name: "agent certificate",
        limit: RECORD_BYTES_MAX / 2,
        factor: LISTS,
        run: |target, bytes| drop(Unverified::<AgentCert>::parse(bytes, target.scope())),
    },
    Decoder {
        name: "record",
        limit: RECORD_BYTES_MAX,
        factor: LISTS,
        run: |target, bytes| {
            for kind in ["node-record", "agent-record", "tower-record"] {
                let _ = target.directory.merge(NOW, Source::Heard, kind, bytes, &target.authors);
            }
        },
    },
    Decoder { name: "item", limit: ITEM_BYTES_MAX, factor: COPIES, run: |_, bytes| drop(Item::parse(bytes)) },
    Decoder {
        name: "item into the federation",
        limit: ITEM_BYTES_MAX,
        factor: LISTS,
        run: |target, bytes| {
            target.federation.handle(NOW, Input::Heard { from: None, item: bytes });
            while target.federation.poll_output().is_some() {}
        },
    },
    Decoder {
        name: "body of an item",
        limit: ITEM_BYTES_MAX,
        factor: LISTS,
        run: |target, bytes| {
            if bytes.len() > ITEM_BYTES_MAX {
                return; // The item around it would be the test's own.
            }
            for kind in ["act", "key-log", "node-record", "agent-record", "tower-record", "poem"] {
                target
                    .federation
                    .handle(NOW, Input::Heard { from: None, item: &Item::new(kind, bytes).to_bytes() });
            }
            while target.federation.poll_output().is_some() {}
        },
    },
    Decoder {
        name: "row of the store",
        limit: ITEM_BYTES_MAX,
        factor: LISTS,
        run: |target, bytes| {
            for table in [Table::Acts, Table::KeyLogs, Table::Secret, Table::Records, Table::Unknown] {
                let _ = target.federation.restore(NOW, table, bytes);
            }
        },
    },
];

fn check(target: &mut Target, bytes: &[u8]) {
    for Decoder { name, limit, factor, run } in DECODERS {
        let held = peak(|| run(target, bytes));
        let allowed = BYTES_AT_LEAST + factor * bytes.len().min(limit);
        assert!(held <= allowed, "{name}: held {held} bytes for {} of input, allowed {allowed}", bytes.len());
    }
}

#[test]
fn announced_lengths_cost_nothing() {
    let mut target = Target::new();
    for major in [2_u8, 3, 4, 5] {
        for (info, width) in [(24_u8, 1), (25, 2), (26, 4), (27, 8)] {
            let announced = [&[major << 5 | info][..], &vec![0xff; width]].concat();
            check(&mut target, &announced);
            check(&mut target, &announced.repeat(1000));
            for field in ["acts", "key_log", "prev", "key_logs", "roster", "addresses", "body"] {
                let key = [&[0xa1, 0x60 | u8::try_from(field.len()).unwrap()][..], field.as_bytes()].concat();
                check(&mut target, &[&key[..], &announced].concat());
            }
        }
    }
}

fn head(major: u8, length: usize) -> Vec<u8> {
    [&[major << 5 | 26][..], &u32::try_from(length).unwrap().to_be_bytes()].concat()
}

fn map(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let key = |key: &str| [&[0x60 | u8::try_from(key.len()).unwrap()][..], key.as_bytes()].concat();
    let entry = |(name, value): &(&str, &[u8])| [&key(name)[..], value].concat();
    let entries: Vec<_> = entries.iter().map(entry).collect();
    [&[0xa0 | u8::try_from(entries.len()).unwrap()][..], &entries.concat()].concat()
}

/// Messages of the right form around a list; where the list's items are bytes, they are of the right shape as well.
fn around(list: &[u8]) -> Vec<Vec<u8>> {
    const NULL: &[u8] = &[0xf6];
    const ONE: &[u8] = &[1];
    const NONE: &[u8] = &[0x80];
    let bytes = |length: u8| [&[0x58, length][..], &vec![7; usize::from(length)]].concat();
    let text = |text: &str| [&[0x60 | u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    let (id, name, nested) = (bytes(32), text("attic"), [&[0x81], list].concat());
    let proof = map(&[("signature", &bytes(64)), ("handshake_hash", &id)]);
    let welcome = |acts: &[u8], key_logs: &[u8]| {
        map(&[("acts", acts), ("secret", NULL), ("genesis", &[0x40]), ("key_logs", key_logs)])
    };
    let request = map(&[
        ("name", &name),
        ("proof", &proof),
        ("invite", &[0x40]),
        ("key_log", list),
        ("federation", &id),
    ]);
    let steward = text("steward");
    let founder =
        map(&[("name", &name), ("role", &steward), ("member", &id), ("weight", ONE), ("key_log", list)]);
    let genesis = |roster: &[u8]| map(&[("v", ONE), ("name", &name), ("nonce", &id), ("roster", roster)]);
    let admit = map(&[
        ("name", &name),
        ("role", &steward),
        ("proof", NULL),
        ("invite", NULL),
        ("member", &id),
        ("key_log", list),
        ("until_ms", NULL),
    ]);
    let rotate = map(&[("events", list), ("member", &id)]);
    let cert = map(&[("agent", &text("kBridge:notes")), ("member", &id), ("capabilities", list)]);
    let envelope = [&[0x84, 0x43, 0xa1, 1, 0x27, 0xa0][..], &head(2, cert.len()), &cert, &bytes(64)].concat();
    vec![
        list.to_vec(),
        welcome(list, NONE),
        welcome(NONE, list),
        welcome(NONE, &nested),
        request,
        genesis(list),
        genesis(&[&[0x81], &founder[..]].concat()),
        map(&[("admit", &admit)]),
        map(&[("rotate", &rotate)]),
        envelope,
        [&[0x84][..], &name, list, NONE, &bytes(16)].concat(),
    ]
}

#[test]
fn full_inputs_cost_a_multiple_of_their_length() {
    let mut target = Target::new();
    let limits = [
        INVITE_BYTES_MAX,
        RECORD_BYTES_MAX,
        JOIN_REQUEST_BYTES_MAX,
        ACT_BYTES_MAX,
        GENESIS_BYTES_MAX,
        JOIN_REPLY_BYTES_MAX,
    ];
    for limit in limits {
        // Short bytes and texts, lists and maps of nothing, numbers, nulls.
        let items: &[u8] =
            if limit > ITEM_BYTES_MAX { &[0x40] } else { &[0x00, 0x40, 0x60, 0x80, 0xa0, 0xf6] };
        for item in items {
            let count = limit.saturating_sub(512);
            let list = [head(4, count), vec![*item; count]].concat();
            around(&list).iter().for_each(|bytes| check(&mut target, bytes));
        }
        check(&mut target, &vec![b'q'; limit]);
    }
}

#[test]
fn no_mutated_bytes_make_a_decoder_panic_or_cost_too_much() {
    let corpus = corpus();
    let (mut dice, rounds) = dice("federation objects");
    let mut target = Target::new();
    for round in 0..rounds {
        if round % 500 == 0 {
            target = Target::new();
        }
        let (original, other) = (&corpus[dice.below(corpus.len())], &corpus[dice.below(corpus.len())]);
        check(&mut target, &dice.mutate(original, other));
    }
}

/// Every signed object of the vectors that is taken, or would be in its place.
fn genuine() -> Vec<Value> {
    let files = ["acts.json", "invitations.json", "secrets.json", "records.json"];
    let all = files.into_iter().flat_map(vectors).flat_map(|vector| match vector["acts"].as_array() {
        Some(acts) => acts.clone(),
        None => vec![vector],
    });
    all.filter(|object| object["genuine"] == true).collect()
}

fn is_taken<T: Object>(bytes: &[u8], object: &Value, key: &PublicKey) -> bool {
    let id = FederationId::from_bytes(unhex(&object["federation"]).try_into().unwrap());
    Signed::<T>::verify(bytes, Scope::Federation(id), key).is_ok()
}

#[test]
fn no_altered_object_is_taken() {
    let (corpus, objects) = (corpus(), genuine());
    let (mut dice, rounds) = dice("altered federation objects");
    for round in 0..rounds {
        let object = &objects[dice.below(objects.len())];
        let original = unhex(&object["envelope"]);
        let other = &corpus[dice.below(corpus.len())];
        let bytes = dice.mutate(&original, other);
        if bytes == original {
            continue;
        }
        let key = PublicKey::from_bytes(&unhex(&object["key"]).try_into().unwrap()).unwrap();
        let domain = object["domain"].as_str().unwrap();
        let taken = match domain {
            Act::DOMAIN => is_taken::<Act>(&bytes, object, &key),
            Invite::DOMAIN => is_taken::<Invite>(&bytes, object, &key),
            DiscoverySecret::DOMAIN => is_taken::<DiscoverySecret>(&bytes, object, &key),
            AgentCert::DOMAIN => is_taken::<AgentCert>(&bytes, object, &key),
            _ => {
                let id = FederationId::from_bytes(unhex(&object["federation"]).try_into().unwrap());
                let kind = object["kind"].as_str().unwrap();
                Directory::new(id).merge(NOW, Source::Heard, kind, &bytes, &Anybody(key)).is_ok()
            }
        };
        assert!(!taken, "round {round}: {domain}: {bytes:02x?}");
    }
}

#[test]
fn no_altered_genesis_is_the_same_federation() {
    let (corpus, (genesis, _)) = (corpus(), household());
    let (mut dice, rounds) = dice("altered geneses");
    for _ in 0..rounds {
        let other = &corpus[dice.below(corpus.len())];
        let bytes = dice.mutate(genesis.bytes(), other);
        if let Ok(altered) = Genesis::parse(&bytes) {
            assert_eq!(altered.id() == genesis.id(), bytes == genesis.bytes());
            assert!(
                altered.founders().all(|(founder, log)| KeyLog::parse(&founder.key_log).as_ref() == Ok(log))
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_that_begin_like_cbor_cost_more_than_their_length_allows(
        heads in proptest::collection::vec((0_u8..8, 0_u8..28, any::<u64>()), 0..200),
    ) {
        let bytes: Vec<u8> = heads
            .into_iter()
            .flat_map(|(major, info, argument)| {
                let width = if info < 24 { 0 } else { 1 << (info - 24) };
                [&[major << 5 | info][..], &argument.to_be_bytes()[8 - width..]].concat()
            })
            .collect();
        check(&mut Target::new(), &bytes);
    }
}
