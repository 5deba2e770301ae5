//! Makes every file of `protocol/vectors`. What it writes is reviewed once, in the commit that changes it; afterwards a
//! test compares it byte for byte.

use crate::{
    federation,
    foreign::{self, Side},
};
use data_encoding::HEXLOWER;
use kos_protocol::{
    carry, cbor,
    hello::{Hello, Versions},
    id::{AgentClass, AgentId, FederationId, MemberId, ObjectId, sha256},
    key::{PublicKey, SecretKey},
    key_log::{KeyEvent, KeyLog},
    limits::{
        CAPABILITIES_MAX, CARRY_HOPS_MAX, CBOR_DEPTH_MAX, NAME_BYTES_MAX, PARAMS_BYTES_MAX,
        STATUS_TEXT_BYTES_MAX,
    },
    message::{End, FrameKind, Head, ReplyHead, Status},
    object::{Object, PROTECTED, Scope, Signed, sig_structure},
    preamble::{Notice, Pattern, Preamble, SessionId},
    replay::ReplayWindow,
    session::{Accepted, Early, Initiated, Initiator, Local, Received, Responder, Session, plain_frame},
};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    HEXLOWER.encode(bytes.as_ref())
}

/// Every file: its name and its content.
pub fn files() -> Vec<(&'static str, String)> {
    let file = |about: &str, vectors: Vec<Value>| {
        let whole = json!({"about": about, "protocol": "KLP 1", "vectors": vectors});
        serde_json::to_string_pretty(&whole).unwrap() + "\n"
    };
    vec![
        (
            "cbor.json",
            file("items and their one form; `valid` says whether a decoder takes them", cbor_items()),
        ),
        ("ids.json", file("ids, federation tags and agent ids, and texts that are none", ids())),
        (
            "keys.json",
            file("Ed25519 keys with their X25519 and libp2p forms, and bytes that are no key", keys()),
        ),
        ("objects.json", file("signed objects; an invalid one has one fault", objects())),
        ("key-logs.json", file("key-event logs, events in order; an invalid one has one fault", key_logs())),
        ("preambles.json", file("what a stream begins with", preambles())),
        ("notices.json", file("clear refusals, with their four length bytes", notices())),
        ("hello.json", file("hellos, and which version two ranges choose", hellos())),
        ("handshakes.json", file("whole handshakes from fixed secrets, and refused ones", handshakes())),
        ("frames.json", file("sealed frames of one session, in the order of their direction", frames())),
        ("replay.json", file("stream numbers as they come, and whether the window takes each in", replay())),
        ("messages.json", file("heads, reply heads and ends; orders of frames", messages())),
        (
            "carry.json",
            file("headers and replies of carried streams, with their two length bytes", carries()),
        ),
        (
            "genesis.json",
            file("first bytes of federations; an invalid one has one fault", federation::genesis()),
        ),
        (
            "acts.json",
            file("histories: acts as they arrive, what becomes of each, and the roster", federation::acts()),
        ),
        (
            "invitations.json",
            file("signed invitations; an invalid one has one fault", federation::invitations()),
        ),
        (
            "codes.json",
            file("invitation codes and relay lines, and texts that are none", federation::codes()),
        ),
        ("joining.json", file("join requests with their refusal, and welcomes", federation::joining())),
        (
            "secrets.json",
            file("discovery secrets in the order in which they arrive; topics", federation::secrets()),
        ),
        (
            "records.json",
            file("records of nodes and agents, and of later kinds; merges", federation::records()),
        ),
        ("items.json", file("items with the names they are listed under", federation::items())),
    ]
}

// ---------------------------------------------------------------- raw CBOR

/// The head of an item in its shortest form.
fn head(major: u8, argument: u64) -> Vec<u8> {
    let all = argument.to_be_bytes();
    let (info, width) = match argument {
        0..24 => return vec![major << 5 | all[7]],
        24..0x100 => (24, 1),
        0x100..0x1_0000 => (25, 2),
        0x1_0000..0x1_0000_0000 => (26, 4),
        _ => (27, 8),
    };
    [&[major << 5 | info], &all[8 - width..]].concat()
}

pub fn bytes(content: &[u8]) -> Vec<u8> {
    [&head(2, content.len() as u64), content].concat()
}

fn text(content: &str) -> Vec<u8> {
    [&head(3, content.len() as u64), content.as_bytes()].concat()
}

pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len() as u64), items.concat()].concat()
}

/// A map as given: neither sorted nor checked.
pub fn map(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let content = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat());
    head(5, entries.len() as u64).into_iter().chain(content).collect()
}

fn cbor_items() -> Vec<Value> {
    let ok =
        |name: &str, item: Vec<u8>| json!({"name": name, "spec": "§2", "cbor": hex(item), "valid": true});
    let no = |name: &str, item: &[u8]| json!({"name": name, "spec": "§2", "cbor": hex(item), "valid": false});
    let mut vectors: Vec<Value> = [0, 23, 24, 255, 256, 65_535, 65_536, 0xffff_ffff, 0x1_0000_0000, u64::MAX]
        .into_iter()
        .flat_map(|n| [ok(&format!("{n}"), head(0, n)), ok(&format!("-1-{n}"), head(1, n))])
        .collect();
    let nested = |depth: usize| [vec![0x81; depth], vec![0]].concat();
    vectors.extend([
        ok("no bytes", bytes(b"")),
        ok("bytes", bytes(&[0, 255])),
        ok("no text", text("")),
        ok("text in two scripts, not normalised", text("a\u{308}\u{4e16}")),
        ok("false", vec![0xf4]),
        ok("true", vec![0xf5]),
        ok("null", vec![0xf6]),
        ok("an empty list", list(&[])),
        ok("an empty map", map(&[])),
        ok("a list of 24", list(&vec![vec![0]; 24])),
        ok("shorter keys come first", map(&[("b", vec![1]), ("aa", vec![2])])),
        ok("keys of one length in byte order", map(&[("Z", vec![1]), ("a", vec![2]), ("\u{7f}", vec![3])])),
        ok("the deepest nesting", nested(CBOR_DEPTH_MAX)),
        no("one level deeper", &nested(CBOR_DEPTH_MAX + 1)),
        no("nothing", &[]),
        no("two items", &[0, 0]),
        no("23 in two bytes", &[0x18, 23]),
        no("255 in three bytes", &[0x19, 0, 255]),
        no("65535 in five bytes", &[0x1a, 0, 0, 255, 255]),
        no("4294967295 in nine bytes", &[0x1b, 0, 0, 0, 0, 255, 255, 255, 255]),
        no("-1 in two bytes", &[0x38, 0]),
        no("a length in a longer form", &[0x58, 1, 0]),
        no("a reserved length", &[0x1c]),
        no("bytes cut short", &[0x42, 0]),
        no("bytes of four gibibytes that are not there", &[0x5a, 255, 255, 255, 255]),
        no("a list of 2^64-1 items that are not there", &[0x9b, 255, 255, 255, 255, 255, 255, 255, 255]),
        no("a map without its last value", &[0xa1, 0x61, 0x61]),
        no("indefinite bytes", &[0x5f, 0x41, 0, 0xff]),
        no("indefinite text", &[0x7f, 0x61, 0x61, 0xff]),
        no("an indefinite list", &[0x9f, 0, 0xff]),
        no("an indefinite map", &[0xbf, 0x61, 0x61, 0, 0xff]),
        no("a break on its own", &[0xff]),
        no("keys out of order", &map(&[("b", vec![1]), ("a", vec![2])])),
        no("a longer key first", &map(&[("aa", vec![1]), ("b", vec![2])])),
        no("a key twice", &map(&[("a", vec![1]), ("a", vec![1])])),
        no("a key that is a number", &[0xa1, 1, 1]),
        no("a key that is bytes", &[0xa1, 0x41, 0x61, 1]),
        no("text that is not UTF-8", &[0x61, 0xff]),
        no("a surrogate in text", &[0x63, 0xed, 0xa0, 0x80]),
        no("a key that is not UTF-8", &[0xa1, 0x61, 0xff, 1]),
        no("a half float", &[0xf9, 0x3c, 0]),
        no("a single float", &[0xfa, 0x3f, 0x80, 0, 0]),
        no("a double float", &[0xfb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]),
        no("undefined", &[0xf7]),
        no("a simple value", &[0xe0]),
        no("null in two bytes", &[0xf8, 22]),
        no("a tag", &[0xc0, 0x60]),
        no("a link, tag 42", &[&[0xd8, 42][..], &bytes(&[&[0, 1, 0x55, 0, 1][..], b"a"].concat())].concat()),
        no("a big number, tag 2", &[0xc2, 0x41, 1]),
    ]);
    vectors
}

// ---------------------------------------------------------------- names and keys

fn ids() -> Vec<Value> {
    let mut vectors = Vec::new();
    for seed in ["first", "second"] {
        let id = sha256(seed.as_bytes());
        let federation = FederationId::from_bytes(id);
        let texts = [
            ("member", MemberId::from_bytes(id).to_string()),
            ("federation", federation.to_string()),
            ("object", ObjectId::from_bytes(id).to_string()),
        ];
        for (kind, text) in texts {
            vectors.push(json!({"name": format!("a {kind} id"), "spec": "§3.1", "kind": kind, "bytes": hex(id), "text": text, "valid": true}));
        }
        vectors.push(json!({"name": "a federation's tag", "spec": "§3.1", "kind": "tag", "bytes": hex(id), "tag": hex(federation.tag())}));
    }
    let good = MemberId::from_bytes(sha256(b"first")).to_string();
    let upper = good.to_uppercase();
    let mut mixed = good.clone();
    mixed.replace_range(0..1, "K");
    let typo = good.replacen('q', "p", 1);
    let bech32_of = |prefix: &str, data: &[u8]| {
        bech32::encode::<bech32::Bech32m>(bech32::Hrp::parse(prefix).unwrap(), data).unwrap()
    };
    let old_checksum =
        bech32::encode::<bech32::Bech32>(bech32::Hrp::parse("kos").unwrap(), &sha256(b"first")).unwrap();
    vectors.push(json!({"name": "all upper case", "spec": "§3.1", "kind": "member", "bytes": hex(sha256(b"first")), "text": upper, "valid": true}));
    for (name, text) in [
        ("mixed case", mixed),
        ("a typing error", typo),
        ("an id of another kind", FederationId::from_bytes(sha256(b"first")).to_string()),
        ("bech32 instead of bech32m", old_checksum),
        ("31 bytes", bech32_of("kos", &[1; 31])),
        ("33 bytes", bech32_of("kos", &[1; 33])),
        ("no bytes", bech32_of("kos", &[])),
        ("no checksum", "kos1".to_owned()),
        ("nothing", String::new()),
        ("spaces around", format!(" {good}")),
    ] {
        vectors.push(json!({"name": name, "spec": "§3.1", "kind": "member", "text": text, "valid": false}));
    }
    for (_, class) in AgentClass::ALL {
        let text = format!("{class}:notes-2");
        assert_eq!(text.parse::<AgentId>().unwrap().to_string(), text);
        vectors.push(
            json!({"name": "an agent id", "spec": "§3.2", "kind": "agent", "text": text, "valid": true}),
        );
    }
    let longest = "a".repeat(32);
    vectors.push(json!({"name": "the longest name", "spec": "§3.2", "kind": "agent", "text": format!("kBridge:{longest}"), "valid": true}));
    for (name, text) in [
        ("no class", "notes".to_owned()),
        ("an unknown class", "kOther:notes".to_owned()),
        ("a class in other case", "kbridge:notes".to_owned()),
        ("no name", "kBridge:".to_owned()),
        ("a name too long", format!("kBridge:{longest}a")),
        ("upper case in the name", "kBridge:Notes".to_owned()),
        ("a dash in front", "kBridge:-notes".to_owned()),
        ("a dash behind", "kBridge:notes-".to_owned()),
        ("a second colon", "kBridge:a:b".to_owned()),
        ("a letter outside ASCII", "kBridge:n\u{f6}tes".to_owned()),
        ("a terminal escape", "kBridge:\u{1b}[2J".to_owned()),
    ] {
        vectors.push(json!({"name": name, "spec": "§3.2", "kind": "agent", "text": text, "valid": false}));
    }
    vectors
}

fn keys() -> Vec<Value> {
    let mut vectors: Vec<Value> = ["one", "two", "three"]
        .into_iter()
        .map(|name| {
            let secret = SecretKey::from_seed(&sha256(name.as_bytes()));
            let public = secret.public();
            json!({
                "name": format!("key {name}"), "spec": "§3.3", "valid": true,
                "seed": hex(*secret.to_seed()), "ed25519": hex(public.as_bytes()),
                "x25519_secret": hex(*secret.to_x25519()), "x25519": hex(public.to_x25519()),
                "peer_id": hex(public.to_peer_id()),
                "signature_of_klp": hex(secret.sign(b"klp")),
            })
        })
        .collect();
    let small_order = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05";
    for (name, key) in [
        ("the neutral element", hex([&[1][..], &[0; 31]].concat())),
        ("a point of order 8", small_order.to_owned()),
        ("y above the prime", hex([&[0xee][..], &[0xff; 30], &[0x7f]].concat())),
        ("no point", hex([&[2][..], &[0; 31]].concat())),
    ] {
        vectors.push(json!({"name": name, "spec": "§3.3", "ed25519": key, "valid": false}));
    }
    vectors
}

// ---------------------------------------------------------------- signed objects

/// A kind of object for the vectors alone: counts in one federation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    pub text: String,
    pub n: u64,
}

impl Object for Note {
    const DOMAIN: &'static str = "kos/vector-note/1";
    const BYTES_MAX: usize = 4096;
}

/// An order of the group of Ed25519, little-endian.
const GROUP_ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// The same signature with its scalar one group order higher: many verifiers take both.
fn malleated(signature: &[u8; 64]) -> [u8; 64] {
    let mut out = *signature;
    let mut carry = 0;
    for (byte, order) in out[32..].iter_mut().zip(GROUP_ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    out
}

pub fn aad(domain: &str, federation: Option<FederationId>) -> Vec<u8> {
    let id = federation.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
    [domain.as_bytes(), &id].concat()
}

fn objects() -> Vec<Value> {
    let key = SecretKey::from_seed(&sha256(b"one"));
    let other_key = SecretKey::from_seed(&sha256(b"two"));
    let federation = FederationId::from_bytes(sha256(b"first"));
    let elsewhere = FederationId::from_bytes(sha256(b"second"));
    let scope = Scope::Federation(federation);
    let domain = Note::DOMAIN;
    let signing_input = |payload: &[u8]| sig_structure(&aad(domain, Some(federation)), payload);
    let vector = |name: &str, spec: &str, envelope: &[u8], payload: Option<&[u8]>, valid: bool| {
        let mut vector = json!({
            "name": name, "spec": spec, "domain": domain, "federation": hex(federation.as_bytes()),
            "key": hex(key.public().as_bytes()), "envelope": hex(envelope), "valid": valid,
        });
        if let Some(payload) = payload {
            let signed = signing_input(payload);
            vector["payload"] = hex(payload).into();
            vector["sig_structure"] = hex(&signed).into();
            vector["id"] = hex(sha256(&signed)).into();
            vector["cddl"] = json!({"envelope": "signed-object", "sig_structure": "sig-structure"});
        }
        vector
    };
    let note = Note { text: "hello".to_owned(), n: 7 };
    let good = Signed::sign(note.clone(), scope, &key).unwrap();
    let payload = cbor::encode(&note);
    let signature = key.sign(&signing_input(&payload));
    let envelope = |parts: [&[u8]; 4]| list(&parts.map(<[u8]>::to_vec));
    let (protected, empty) = (bytes(&PROTECTED), map(&[]));
    assert_eq!(envelope([&protected, &empty, &bytes(&payload), &bytes(&signature)]), good.bytes());

    let later = map(&[("n", vec![7]), ("new", vec![0x81, 0xf6]), ("text", text("hello"))]);
    let with_later = |payload: &[u8]| {
        let signature = key.sign(&signing_input(payload));
        envelope([&protected, &empty, &bytes(payload), &bytes(&signature)])
    };
    let event = KeyEvent {
        seq: 0,
        prev: None,
        key: key.public(),
        next: ByteArray::new(sha256(other_key.public().as_bytes())),
    };
    let global_payload = cbor::encode(&event);
    let global = Signed::sign(event, Scope::Global, &key).unwrap();
    let mut vectors = vec![
        vector("an object", "§4", good.bytes(), Some(&payload), true),
        vector("a field of a later version is kept", "§2", &with_later(&later), Some(&later), true),
    ];
    let global_aad = aad(KeyEvent::DOMAIN, None);
    vectors.push(json!({
        "name": "an object that counts everywhere", "spec": "§4", "domain": KeyEvent::DOMAIN, "federation": null,
        "key": hex(key.public().as_bytes()), "envelope": hex(global.bytes()), "payload": hex(&global_payload),
        "sig_structure": hex(sig_structure(&global_aad, &global_payload)), "id": hex(global.id().as_bytes()),
        "cddl": {"envelope": "signed-object", "sig_structure": "sig-structure", "payload": "key-event"}, "valid": true,
    }));

    let bad = |name: &str, spec: &str, envelope: Vec<u8>| vector(name, spec, &envelope, None, false);
    let altered = |at: usize| {
        let mut bytes = good.bytes().to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let long = good.bytes().len();
    vectors.extend([
        bad("an altered payload", "§4", altered(20)),
        bad("an altered signature", "§4", altered(long - 1)),
        bad("a signature with an altered first half", "§4", altered(long - 64)),
        bad(
            "a signature whose scalar is above the group order",
            "§3.3",
            envelope([&protected, &empty, &bytes(&payload), &bytes(&malleated(&signature))]),
        ),
        bad(
            "a signature of zeros",
            "§3.3",
            envelope([&protected, &empty, &bytes(&payload), &bytes(&[0; 64])]),
        ),
        bad(
            "a signature by another key",
            "§4",
            Signed::sign(note.clone(), scope, &other_key).unwrap().bytes().to_vec(),
        ),
        bad(
            "signed for another federation",
            "§4",
            Signed::sign(note.clone(), Scope::Federation(elsewhere), &key).unwrap().bytes().to_vec(),
        ),
        bad(
            "signed for no federation",
            "§4",
            Signed::sign(note.clone(), Scope::Global, &key).unwrap().bytes().to_vec(),
        ),
        bad("signed as another kind", "§4", {
            let signature = key.sign(&sig_structure(&aad("kos/vector-other/1", Some(federation)), &payload));
            envelope([&protected, &empty, &bytes(&payload), &bytes(&signature)])
        }),
        bad(
            "signed without a Sig_structure",
            "§4",
            envelope([&protected, &empty, &bytes(&payload), &bytes(&key.sign(&payload))]),
        ),
        bad(
            "a payload with its keys out of order, correctly signed",
            "§2",
            with_later(&map(&[("text", text("hello")), ("n", vec![7])])),
        ),
        bad(
            "a payload with a number in a longer form, correctly signed",
            "§2",
            with_later(&map(&[("n", vec![0x18, 7]), ("text", text("hello"))])),
        ),
        bad(
            "a payload with a float, correctly signed",
            "§2",
            with_later(&map(&[
                ("n", vec![7]),
                ("f", vec![0xfb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]),
                ("text", text("hello")),
            ])),
        ),
        bad(
            "a payload with bytes behind it, correctly signed",
            "§2",
            with_later(&[payload.clone(), vec![0]].concat()),
        ),
        bad("no payload", "§4", envelope([&protected, &empty, &[0xf6], &bytes(&signature)])),
        bad("a length in a longer form in the envelope", "§2", {
            let long_head = [&[0x59, 0][..], &[u8::try_from(payload.len()).unwrap()], &payload].concat();
            envelope([&protected, &empty, &long_head, &bytes(&signature)])
        }),
        bad("an indefinite envelope", "§2", [&[0x9f][..], &good.bytes()[1..], &[0xff]].concat()),
        bad("the tag of COSE_Sign1 in front", "§4", [&[0xd2][..], good.bytes()].concat()),
        bad("bytes behind", "§2", [good.bytes(), &[0]].concat()),
        bad("cut short", "§2", good.bytes()[..long - 1].to_vec()),
        bad(
            "five parts",
            "§4",
            list(&[protected.clone(), empty.clone(), bytes(&payload), bytes(&signature), vec![0xf6]]),
        ),
        bad("three parts", "§4", list(&[protected.clone(), empty.clone(), bytes(&payload)])),
        bad(
            "a signature of 63 bytes",
            "§4",
            envelope([&protected, &empty, &bytes(&payload), &bytes(&signature[..63])]),
        ),
        bad(
            "a filled unprotected header",
            "§4",
            envelope([&protected, &map(&[("x", vec![1])]), &bytes(&payload), &bytes(&signature)]),
        ),
        bad(
            "a key id in the unprotected header",
            "§4",
            envelope([&protected, &[0xa1, 4, 0x42, 0x31, 0x31], &bytes(&payload), &bytes(&signature)]),
        ),
        bad("the header of another algorithm, correctly signed", "§4", {
            let header = [0xa1, 0x01, 0x26];
            let signed = list(&[
                text("Signature1"),
                bytes(&header),
                bytes(&aad(domain, Some(federation))),
                bytes(&payload),
            ]);
            envelope([&bytes(&header), &empty, &bytes(&payload), &bytes(&key.sign(&signed))])
        }),
        bad("an empty protected header, correctly signed", "§4", {
            let signed = list(&[
                text("Signature1"),
                bytes(&[]),
                bytes(&aad(domain, Some(federation))),
                bytes(&payload),
            ]);
            envelope([&bytes(&[]), &empty, &bytes(&payload), &bytes(&key.sign(&signed))])
        }),
        bad(
            "a protected header that is a map",
            "§4",
            envelope([&[0xa1, 1, 0x27], &empty, &bytes(&payload), &bytes(&signature)]),
        ),
        bad("a payload of another type, correctly signed", "§4", with_later(&text("hello"))),
        bad(
            "above its limit",
            "§4",
            with_later(&map(&[("n", vec![7]), ("text", text(&"x".repeat(Note::BYTES_MAX)))])),
        ),
    ]);
    vectors
}

fn member(name: &str) -> (SecretKey, SecretKey, KeyLog) {
    let secret = SecretKey::from_seed(&sha256(name.as_bytes()));
    let next = SecretKey::from_seed(&sha256(format!("{name}, next").as_bytes()));
    let log = KeyLog::incept(&secret, &next.public());
    (secret, next, log)
}

fn key_logs() -> Vec<Value> {
    let key = |n: u8| SecretKey::from_seed(&sha256(&[n]));
    let one = KeyLog::incept(&key(1), &key(2).public());
    let two = one.rotate(&key(2), &key(3).public()).unwrap();
    let three = two.rotate(&key(3), &key(4).public()).unwrap();
    let vector = |name: &str, events: &[Vec<u8>]| {
        let events: Vec<String> = events.iter().map(hex).collect();
        json!({"name": name, "spec": "§5", "events": events, "valid": false})
    };
    let list_of = |log: &KeyLog| log.to_list().into_iter().map(ByteBuf::into_vec).collect::<Vec<_>>();
    let mut vectors: Vec<Value> = [("an inception", &one), ("a rotation", &two), ("two rotations", &three)]
        .into_iter()
        .map(|(name, log)| {
            let mut vector = vector(name, &list_of(log));
            vector["valid"] = true.into();
            vector["member"] = log.member().to_string().into();
            vector["current_key"] = hex(log.current().as_bytes()).into();
            vector["next"] = hex(log.next_hash()).into();
            vector["cddl"] = json!({"events": "signed-object"});
            vector
        })
        .collect();
    let sign = |event: KeyEvent, secret: &SecretKey| Signed::sign(event, Scope::Global, secret).unwrap();
    let first = &list_of(&one)[0];
    let first_id = ObjectId::from_bytes(*one.member().as_bytes());
    let event = |seq, prev, by: u8, next: u8| KeyEvent {
        seq,
        prev,
        key: key(by).public(),
        next: ByteArray::new(sha256(key(next).public().as_bytes())),
    };
    let after = |event: KeyEvent, by: u8| [first.clone(), sign(event, &key(by)).bytes().to_vec()];
    let all = list_of(&three);
    let raw_signed = |payload: &[u8], by: u8| {
        let signature = key(by).sign(&sig_structure(KeyEvent::DOMAIN.as_bytes(), payload));
        list(&[bytes(&PROTECTED), map(&[]), bytes(payload), bytes(&signature)])
    };
    let inception = event(0, None, 1, 2);
    let parts = |prev: Option<Vec<u8>>, seq: Vec<u8>| {
        let mut entries = vec![
            ("key", bytes(inception.key.as_bytes())),
            ("seq", seq),
            ("next", bytes(&inception.next[..])),
        ];
        if let Some(prev) = prev {
            entries.push(("prev", prev));
        }
        map(&entries)
    };
    assert_eq!(&raw_signed(&parts(Some(vec![0xf6]), vec![0]), 1), first);
    vectors.extend([
        vector("no events", &[]),
        vector("events out of order", &[all[1].clone(), all[0].clone()]),
        vector("an event left out", &[all[0].clone(), all[2].clone()]),
        vector("an event twice", &[all[0].clone(), all[0].clone()]),
        vector("without its inception", &all[1..]),
        vector("a rotation by the current key", &after(event(1, Some(first_id), 1, 9), 1)),
        vector("a rotation by a key nobody announced", &after(event(1, Some(first_id), 9, 9), 9)),
        vector("a rotation that skips a number", &after(event(2, Some(first_id), 2, 3), 2)),
        vector(
            "a rotation that follows another event",
            &after(event(1, Some(ObjectId::from_bytes([7; 32])), 2, 3), 2),
        ),
        vector("a rotation that follows nothing", &after(event(1, None, 2, 3), 2)),
        vector("an event signed by another key than its own", &after(event(1, Some(first_id), 2, 3), 1)),
        vector("an inception with a number", &[sign(event(1, None, 1, 2), &key(1)).bytes().to_vec()]),
        vector(
            "an inception that follows something",
            &[sign(event(0, Some(first_id), 1, 2), &key(1)).bytes().to_vec()],
        ),
        vector("an inception without `prev`", &[raw_signed(&parts(None, vec![0]), 1)]),
        vector(
            "an inception whose `prev` is empty bytes",
            &[raw_signed(&parts(Some(bytes(&[])), vec![0]), 1)],
        ),
        vector("an inception with a negative number", &[raw_signed(&parts(Some(vec![0xf6]), vec![0x20]), 1)]),
        vector(
            "an inception above its limit",
            &[raw_signed(
                &map(&[
                    ("key", bytes(inception.key.as_bytes())),
                    ("pad", bytes(&[0; 1024])),
                    ("seq", vec![0]),
                    ("next", bytes(&inception.next[..])),
                    ("prev", vec![0xf6]),
                ]),
                1,
            )],
        ),
        vector(
            "an inception for one federation",
            &[Signed::sign(inception.clone(), Scope::Federation(FederationId::from_bytes([1; 32])), &key(1))
                .unwrap()
                .bytes()
                .to_vec()],
        ),
    ]);
    vectors
}

// ---------------------------------------------------------------- the clear part of streams

fn preambles() -> Vec<Value> {
    let versions = |min, max| Versions { min, max };
    let federation = FederationId::from_bytes(sha256(b"first"));
    let handshake =
        |pattern, versions| Preamble::Handshake { pattern, versions, federation_tag: federation.tag() };
    let exchange = |stream| Preamble::Exchange { session: SessionId([7; 16]), stream };
    let mut vectors: Vec<Value> = [
        ("IK", handshake(Pattern::Ik, versions(1, 1))),
        ("XX", handshake(Pattern::Xx, versions(1, 2))),
        ("the widest range", handshake(Pattern::Ik, versions(0, u16::MAX))),
        ("an exchange", exchange(2)),
        ("the last stream", exchange(u32::MAX)),
    ]
    .into_iter()
    .map(|(name, preamble)| {
        let bytes = hex(preamble.to_bytes());
        match preamble {
            Preamble::Handshake { pattern, versions, federation_tag } => json!({
                "name": name, "spec": "§6.2", "bytes": bytes, "valid": true, "kind": "handshake",
                "pattern": format!("{pattern:?}").to_lowercase(), "versions": [versions.min, versions.max],
                "federation_tag": hex(federation_tag),
            }),
            Preamble::Exchange { session, stream } => json!({
                "name": name, "spec": "§6.2", "bytes": bytes, "valid": true, "kind": "exchange",
                "session": hex(session.0), "stream": stream,
            }),
        }
    })
    .collect();
    let good = handshake(Pattern::Ik, versions(1, 1)).to_bytes();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (name, bytes) in [
        ("nothing", vec![]),
        ("kind 0", with(0, 0)),
        ("kind 3", with(0, 3)),
        ("pattern 0", with(1, 0)),
        ("pattern 3", with(1, 3)),
        ("newest below oldest", with(3, 2)),
        ("a handshake a byte short", good[..13].to_vec()),
        ("a handshake a byte long", [&good[..], &[0]].concat()),
        ("an exchange a byte short", exchange(2).to_bytes()[..20].to_vec()),
        ("an exchange a byte long", [exchange(2).to_bytes(), vec![0]].concat()),
        ("an HTTP request", b"GET / HTTP/1.1".to_vec()),
    ] {
        vectors.push(json!({"name": name, "spec": "§6.2", "bytes": hex(bytes), "valid": false}));
    }
    vectors
}

fn notices() -> Vec<Value> {
    let mut vectors: Vec<Value> = [
        ("reset", Notice::Reset),
        ("retry-xx", Notice::RetryXx),
        ("versions", Notice::Versions { versions: Versions { min: 1, max: 3 } }),
        ("unknown-federation", Notice::UnknownFederation),
        ("busy", Notice::Busy { retry_after_ms: 60_000 }),
    ]
    .into_iter()
    .map(|(name, notice)| {
        let bytes = notice.to_bytes();
        json!({
            "name": name, "spec": "§6.2", "bytes": hex(&bytes), "body": hex(&bytes[4..]), "notice": serde_json::to_value(&notice).unwrap(),
            "cddl": {"body": "notice"}, "valid": true,
        })
    })
    .collect();
    let later = map(&[("why", text("later")), ("notice", text("reset"))]);
    vectors.push(json!({"name": "a reset with a field of a later version", "spec": "§2", "bytes": hex([&[0, 0, 0, u8::try_from(later.len()).unwrap()][..], &later].concat()), "body": hex(&later), "notice": {"notice": "reset"}, "cddl": {"body": "notice"}, "valid": true}));
    for (name, body) in [
        ("a notice nobody knows", map(&[("notice", text("tired"))])),
        ("no name", map(&[])),
        ("versions without them", map(&[("notice", text("versions"))])),
        (
            "a version above 65535",
            map(&[
                ("notice", text("versions")),
                ("versions", map(&[("max", head(0, 65_536)), ("min", vec![1])])),
            ]),
        ),
        ("busy with a negative time", map(&[("notice", text("busy")), ("retry_after_ms", vec![0x20])])),
        ("not a map", text("reset")),
        ("above its limit", map(&[("notice", text("reset")), ("padding", bytes(&[0; 256]))])),
    ] {
        let shape_is_fine = name == "above its limit";
        let mut vector = json!({"name": name, "spec": "§6.2", "body": hex(body), "valid": false});
        if !shape_is_fine {
            vector["cddl_refuses"] = json!({"body": "notice"});
        }
        vectors.push(vector);
    }
    vectors
}

// ---------------------------------------------------------------- hello

pub fn local(name: &str, federation: FederationId, versions: Versions) -> Local {
    let (secret, _, log) = member(name);
    Local {
        secret,
        member: log.member(),
        federation,
        versions,
        offers: [("klp.carry".to_owned(), "1.2.0".parse().unwrap())].into(),
        wants: [("klp.mailbox".to_owned(), "^1".parse().unwrap())].into(),
        streams_max: 200,
        agent: format!("{name}/1"),
    }
}

fn hello(local: &Local, counter: u64, version: Option<u16>, early_taken: bool) -> Hello {
    Hello {
        versions: local.versions,
        version,
        member: local.member,
        key: local.secret.public(),
        counter,
        early_taken,
        offers: local.offers.clone(),
        wants: local.wants.clone(),
        streams_max: local.streams_max,
        agent: local.agent.clone(),
    }
}

fn hellos() -> Vec<Value> {
    let mut vectors = Vec::new();
    for (ours, theirs) in [
        ((1, 1), (1, 1)),
        ((1, 2), (1, 1)),
        ((1, 1), (1, 2)),
        ((1, 3), (2, 5)),
        ((2, 2), (1, 1)),
        ((1, 1), (2, 9)),
    ] {
        let range = |(min, max)| Versions { min, max };
        vectors.push(json!({
            "name": format!("{} meets {}", range(ours), range(theirs)), "spec": "§7", "kind": "versions",
            "ours": [ours.0, ours.1], "theirs": [theirs.0, theirs.1], "common": range(ours).common(range(theirs)),
        }));
    }
    let alice = local("alice", FederationId::from_bytes(sha256(b"first")), Versions::OURS);
    let first = hello(&alice, 5, None, false);
    let ok = |name: &str, cbor: Vec<u8>| json!({"name": name, "spec": "§7", "kind": "hello", "cbor": hex(cbor), "cddl": {"cbor": "hello"}, "valid": true});
    let shape = |name: &str, cbor: Vec<u8>| json!({"name": name, "spec": "§7", "kind": "hello", "cbor": hex(cbor), "cddl_refuses": {"cbor": "hello"}, "valid": false});
    let no = |name: &str, cbor: Vec<u8>| json!({"name": name, "spec": "§7", "kind": "hello", "cbor": hex(cbor), "valid": false});
    let many =
        |count: usize| (0..count).map(|n| (format!("capability-{n}"), "1.0.0".parse().unwrap())).collect();
    let entries = |left_out: &str, extra: Option<(&'static str, Vec<u8>)>| {
        let mut entries = vec![
            ("key", bytes(first.key.as_bytes())),
            ("agent", text("x/1")),
            ("member", bytes(first.member.as_bytes())),
            ("counter", vec![5]),
            ("versions", map(&[("max", vec![1]), ("min", vec![1])])),
            ("streams_max", vec![1]),
        ];
        entries.retain(|(name, _)| *name != left_out);
        entries.extend(extra);
        entries.sort_by_key(|(name, _)| (name.len(), *name));
        map(&entries)
    };
    vectors.extend([
        ok("of an initiator", cbor::encode(&first)),
        ok("of a responder that took early data", cbor::encode(&hello(&alice, 6, Some(1), true))),
        ok("with nothing that may be left out", entries("", None)),
        ok("with a field of a later version", entries("", Some(("zone", text("blue"))))),
        ok(
            "with as many capabilities as may be",
            cbor::encode(&Hello { offers: many(CAPABILITIES_MAX), ..first.clone() }),
        ),
        shape("without a key", entries("key", None)),
        shape("without a counter", entries("counter", None)),
        shape("with a member id of 31 bytes", entries("member", Some(("member", bytes(&[1; 31]))))),
        shape("with a negative counter", entries("counter", Some(("counter", vec![0x20])))),
        shape("with a version above 65535", entries("", Some(("version", head(0, 65_536))))),
        shape(
            "with a streams_max above 2^32-1",
            entries("streams_max", Some(("streams_max", head(0, 1 << 32)))),
        ),
        no("with a key of small order", entries("key", Some(("key", bytes(&[0; 32]))))),
        no(
            "with a capability that has no version",
            entries("", Some(("offers", map(&[("a", text("new"))])))),
        ),
        no(
            "with a requirement that is none",
            entries("", Some(("wants", map(&[("a", text("at least 1"))])))),
        ),
        no(
            "with one capability too many",
            cbor::encode(&Hello { offers: many(CAPABILITIES_MAX + 1), ..first.clone() }),
        ),
        no(
            "with an agent that is too long",
            cbor::encode(&Hello { agent: "x".repeat(NAME_BYTES_MAX + 1), ..first.clone() }),
        ),
        no(
            "with a name that is too long",
            cbor::encode(&Hello {
                offers: [("x".repeat(NAME_BYTES_MAX + 1), "1.0.0".parse().unwrap())].into(),
                ..first
            }),
        ),
    ]);
    vectors
}

// ---------------------------------------------------------------- handshakes

/// What a handshake vector is made from.
struct Shaken {
    vector: Value,
    initiator: Session,
    responder: Session,
    outcome: foreign::Outcome,
}

pub fn ephemeral(seed: [u8; 32]) -> [u8; 32] {
    sha256(&[b"klp/1 random".as_slice(), &seed, &[0; 8]].concat())
}

fn side(local: &Local, seed: [u8; 32]) -> Side {
    Side { fixed: *local.secret.to_x25519(), ephemeral: ephemeral(seed) }
}

fn described(local: &Local, seed: [u8; 32], counter: u64) -> Value {
    let side = side(local, seed);
    json!({
        "seed": hex(*local.secret.to_seed()), "member": local.member.to_string(), "key": hex(local.secret.public().as_bytes()),
        "x25519_secret": hex(side.fixed), "ephemeral_secret": hex(side.ephemeral), "random_seed": hex(seed),
        "versions": [local.versions.min, local.versions.max], "counter": counter,
    })
}

fn early_frames() -> Vec<u8> {
    let mut early = Vec::new();
    let head =
        Head { intent: "agent.call".to_owned(), target: Some("kBridge:notes".to_owned()), ..Head::default() };
    plain_frame(FrameKind::Head, &cbor::encode(&head), &mut early);
    plain_frame(FrameKind::Data, b"a body", &mut early);
    plain_frame(FrameKind::End, &cbor::encode(&End::ok()), &mut early);
    early
}

fn payload(hello: &Hello, early: &[u8]) -> Vec<u8> {
    let hello = cbor::encode(hello);
    [&u16::try_from(hello.len()).unwrap().to_be_bytes()[..], &hello, early].concat()
}

fn shake(name: &str, pattern: Pattern, early: &[u8], take: Early, ranges: [(u16, u16); 2]) -> Shaken {
    let federation = FederationId::from_bytes(sha256(b"first"));
    let [alice, bob] = [("alice", ranges[0]), ("bob", ranges[1])]
        .map(|(name, (min, max))| local(name, federation, Versions { min, max }));
    let seeds =
        [sha256(format!("{name}, initiator").as_bytes()), sha256(format!("{name}, responder").as_bytes())];
    let known = (pattern == Pattern::Ik).then(|| bob.secret.public());
    let (initiator, opening) = Initiator::start(&alice, known, 5, early, seeds[0]).unwrap();
    let (preamble, first) = opening.split_at(14);
    let received =
        Responder::receive(&bob, preamble, &first[2..], 7, seeds[1]).map_err(|(error, _)| error).unwrap();
    let (accepted, initiated, written): (Accepted, Initiated, _) = match received {
        Received::Offer(offer) => {
            let accepted = offer.accept(take).unwrap();
            let initiated = initiator.finish(&accepted.answer[2..]).unwrap();
            let written = vec![first.to_vec(), accepted.answer.clone()];
            (accepted, initiated, written)
        }
        Received::Answer(responder, answer) => {
            let initiated = initiator.finish(&answer[2..]).unwrap();
            let third = initiated.last_message.clone();
            let accepted = responder.finish(&third[2..]).unwrap().accept(take).unwrap();
            (accepted, initiated, vec![first.to_vec(), answer, third])
        }
    };
    let version = alice.versions.common(bob.versions);
    let taken = take == Early::Take && !early.is_empty();
    let of_alice = hello(&alice, 5, None, false);
    let of_bob = payload(&hello(&bob, 7, version, taken), &[]);
    let payloads = match pattern {
        Pattern::Ik => vec![payload(&of_alice, early), of_bob],
        Pattern::Xx => vec![vec![], of_bob, payload(&of_alice, &[])],
    };
    let outcome =
        foreign::shake(preamble[1], preamble, &side(&alice, seeds[0]), &side(&bob, seeds[1]), &payloads);
    assert_eq!(initiated.early_taken, taken);
    let vector = json!({
        "name": name, "spec": "§6.3", "kind": "handshake", "valid": true, "pattern": format!("{pattern:?}").to_lowercase(),
        "federation": hex(federation.as_bytes()), "preamble": hex(preamble),
        "initiator": described(&alice, seeds[0], 5), "responder": described(&bob, seeds[1], 7),
        "early": hex(early), "early_taken": taken,
        "payloads": payloads.iter().map(hex).collect::<Vec<_>>(),
        "messages": written.iter().map(hex).collect::<Vec<_>>(),
        "version": version, "handshake_hash": hex(outcome.hash), "session_id": hex(outcome.session_id),
        "initiator_key": hex(outcome.initiator_key), "responder_key": hex(outcome.responder_key),
    });
    Shaken { vector, initiator: initiated.session, responder: accepted.session, outcome }
}

fn handshakes() -> Vec<Value> {
    let early = early_frames();
    let ours = [(1, 1); 2];
    let mut vectors = vec![
        shake("IK", Pattern::Ik, &[], Early::Drop, ours).vector,
        shake("IK, early data taken", Pattern::Ik, &early, Early::Take, ours).vector,
        shake("IK, early data dropped", Pattern::Ik, &early, Early::Drop, ours).vector,
        shake("IK, speaking [1,2] with [1,1]", Pattern::Ik, &[], Early::Drop, [(1, 2), (1, 1)]).vector,
        shake("XX", Pattern::Xx, &[], Early::Drop, ours).vector,
        shake("XX, speaking [1,1] with [1,2]", Pattern::Xx, &[], Early::Drop, [(1, 1), (1, 2)]).vector,
    ];
    vectors.extend(refused_first_messages());
    vectors.extend(refused_answers());
    vectors
}

/// First messages that a responder refuses.
fn refused_first_messages() -> Vec<Value> {
    let federation = FederationId::from_bytes(sha256(b"first"));
    let (one, two) = (Versions::OURS, Versions { min: 2, max: 2 });
    let (alice, bob, carol) =
        (local("alice", federation, one), local("bob", federation, one), local("carol", federation, one));
    let seed = sha256(b"refused");
    let start =
        |from: &Local, to: &Local| Initiator::start(from, Some(to.secret.public()), 5, &[], seed).unwrap().1;
    let honest = start(&alice, &bob);
    let prologue = &honest[..14];
    // A message of alice's with any payload, by the second implementation.
    let forged = |payload: Vec<u8>| {
        let outcome = foreign::shake(1, prologue, &side(&alice, seed), &side(&bob, seed), &[payload, vec![]]);
        let message = &outcome.messages[0];
        [prologue, &u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
    };
    let flipped = |at: usize| {
        let mut bytes = honest.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut other_key = hello(&alice, 5, None, false);
    other_key.key = carol.secret.public();
    let mut other_range = hello(&alice, 5, None, false);
    other_range.versions = Versions { min: 1, max: 2 };
    let too_much = vec![0; kos_protocol::limits::EARLY_BYTES_MAX + 1];
    let hello_bytes = cbor::encode(&hello(&alice, 5, None, false));
    let mut small_order = honest.clone();
    small_order[16..48].fill(0);
    let retry = Some(Notice::RetryXx);
    [
        ("to another key", start(&alice, &carol), "crypto", retry.clone()),
        ("an altered ephemeral key", flipped(16), "crypto", retry.clone()),
        ("an ephemeral key of small order", small_order, "crypto", retry.clone()),
        ("an altered static key", flipped(50), "crypto", retry.clone()),
        ("an altered payload", flipped(120), "crypto", retry.clone()),
        ("cut short", { let mut bytes = honest[..honest.len() - 1].to_vec(); let length = u16::try_from(bytes.len() - 16).unwrap().to_be_bytes(); bytes[14..16].copy_from_slice(&length); bytes }, "crypto", retry),
        ("a newest version raised on the way", flipped(4), "crypto", Some(Notice::RetryXx)),
        ("no version in common", start(&local("alice", federation, two), &bob), "versions", Some(Notice::Versions { versions: one })),
        ("another federation", start(&local("alice", FederationId::from_bytes(sha256(b"second")), one), &bob), "refused", Some(Notice::UnknownFederation)),
        ("a hello that names another key", forged(payload(&other_key, &[])), "key-mismatch", None),
        ("a hello with another range than the preamble", forged(payload(&other_range, &[])), "downgrade", None),
        ("no hello", forged(vec![]), "hello", None),
        ("a hello longer than the payload", forged([&[0xff, 0xff][..], &hello_bytes].concat()), "hello", None),
        ("a hello that is malformed", forged([&[0, 1][..], &[0xf6]].concat()), "hello", None),
        ("too much early data", forged(payload(&hello(&alice, 5, None, false), &too_much)), "early-too-large", None),
    ]
    .into_iter()
    .map(|(name, bytes, error, notice)| {
        json!({
            "name": name, "spec": "§6.3", "kind": "refused-by-responder", "valid": false, "federation": hex(federation.as_bytes()),
            "responder": described(&bob, seed, 7), "preamble": hex(&bytes[..14]), "message": hex(&bytes[14..]),
            "error": error, "notice": notice.map(|notice| hex(notice.to_bytes())),
        })
    })
    .collect()
}

/// Answers that an initiator refuses.
fn refused_answers() -> Vec<Value> {
    let federation = FederationId::from_bytes(sha256(b"first"));
    let wide = Versions { min: 1, max: 2 };
    let (alice, bob, carol) =
        (local("alice", federation, wide), local("bob", federation, wide), local("carol", federation, wide));
    let (seed, bob_seed) = (sha256(b"refused, initiator"), sha256(b"refused, responder"));
    let (_, opening) = Initiator::start(&alice, Some(bob.secret.public()), 5, &[], seed).unwrap();
    let first = payload(&hello(&alice, 5, None, false), &[]);
    let answer = |payload: Vec<u8>| {
        let outcome = foreign::shake(
            1,
            &opening[..14],
            &side(&alice, seed),
            &side(&bob, bob_seed),
            &[first.clone(), payload],
        );
        let message = &outcome.messages[1];
        [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
    };
    let honest = hello(&bob, 7, Some(2), false);
    let mut altered = answer(payload(&honest, &[]));
    altered[60] ^= 1;
    let other_key = Hello { key: carol.secret.public(), ..honest.clone() };
    let mut negative = *honest.key.as_bytes();
    negative[31] ^= 0x80;
    let negative = Hello { key: PublicKey::from_bytes(&negative).unwrap(), ..honest.clone() };
    [
        ("an altered answer", altered, "crypto"),
        ("an answer that names another key", answer(payload(&other_key, &[])), "key-mismatch"),
        ("an answer that names the negative of the key", answer(payload(&negative, &[])), "key-mismatch"),
        ("an answer that chooses an older version", answer(payload(&Hello { version: Some(1), ..honest.clone() }, &[])), "downgrade"),
        ("an answer that chooses a version nobody offered", answer(payload(&Hello { version: Some(3), ..honest.clone() }, &[])), "downgrade"),
        ("an answer that chooses none", answer(payload(&Hello { version: None, ..honest.clone() }, &[])), "downgrade"),
        ("an answer without a hello", answer(vec![]), "hello"),
    ]
    .into_iter()
    .map(|(name, bytes, error)| {
        json!({
            "name": name, "spec": "§6.3", "kind": "refused-by-initiator", "valid": false, "federation": hex(federation.as_bytes()),
            "initiator": described(&alice, seed, 5), "expected_key": hex(bob.secret.public().as_bytes()),
            "opening": hex(&opening), "answer": hex(bytes), "error": error,
        })
    })
    .collect()
}

// ---------------------------------------------------------------- frames and streams

fn frames() -> Vec<Value> {
    let Shaken { mut initiator, mut responder, outcome, .. } =
        shake("frames", Pattern::Xx, &[], Early::Drop, [(1, 1); 2]);
    let mut vectors = vec![json!({
        "name": "the session", "spec": "§6.4", "kind": "session", "handshake_hash": hex(outcome.hash), "session_id": hex(outcome.session_id),
        "initiator_key": hex(outcome.initiator_key), "responder_key": hex(outcome.responder_key),
    })];
    let head = cbor::encode(&Head { intent: "node.status".to_owned(), ..Head::default() });
    let reply = cbor::encode(&ReplyHead::default());
    let end = cbor::encode(&End::ok());
    let request = [(FrameKind::Head, &head[..]), (FrameKind::Data, b"request"), (FrameKind::End, &end)];
    let answer = [
        (FrameKind::Head, &reply[..]),
        (FrameKind::Data, b""),
        (FrameKind::Data, &[0x55; 300]),
        (FrameKind::End, &end),
    ];
    let mut write = |by: &str,
                     stream: u32,
                     sealer: &mut kos_protocol::session::Sealer,
                     from: usize,
                     frames: &[(FrameKind, &[u8])]| {
        for (n, (kind, payload)) in frames.iter().enumerate() {
            let mut wire = Vec::new();
            sealer.seal(*kind, payload, &mut wire).unwrap();
            vectors.push(json!({
                "name": format!("stream {stream}, frame {} of the {by}", from + n), "spec": "§6.5", "kind": "frame", "valid": true,
                "by": by, "stream": stream, "frame": from + n, "type": kind.to_byte(), "payload": hex(payload), "bytes": hex(wire),
            }));
        }
    };
    let ((mut asks, _), (mut answers, _)) = (initiator.first_stream(), responder.first_stream());
    write("initiator", 0, &mut asks, 0, &request);
    write("responder", 0, &mut answers, 0, &answer);
    write("initiator", 0, &mut asks, 3, &request);
    for (by, other) in [("initiator", "responder"), ("responder", "initiator")] {
        for _ in 0..2 {
            let (opener, accepter) = if by == "initiator" {
                (&mut initiator, &mut responder)
            } else {
                (&mut responder, &mut initiator)
            };
            let (preamble, mut asks, _) = opener.open_stream().unwrap();
            let Ok(Preamble::Exchange { stream, .. }) = Preamble::parse(&preamble) else { unreachable!() };
            let (mut answers, mut reads) = accepter.accept_stream(stream).unwrap();
            // The accepting side may answer once a frame has opened; a copy of the first one is as good for that.
            let sealing_key = if by == "initiator" { &outcome.initiator_key } else { &outcome.responder_key };
            reads.open(&mut foreign::seal(sealing_key, stream, 0, 1, &head)[2..]).unwrap();
            write(by, stream, &mut asks, 0, &request);
            write(other, stream, &mut answers, 0, &answer[..1]);
        }
    }
    let key = &outcome.initiator_key;
    let sealed = |stream, frame, kind| foreign::seal(key, stream, frame, kind, b"x");
    let mut flipped = sealed(6, 0, 2);
    flipped[5] ^= 1;
    let empty = {
        // A tag and nothing else: not even a type.
        let whole = foreign::seal(key, 6, 0, 2, b"");
        [&[0, 16][..], &whole[whole.len() - 16..]].concat()
    };
    for (name, bytes) in [
        ("a frame of another number", sealed(6, 1, 2)),
        ("a frame of another stream", sealed(8, 0, 2)),
        ("a frame of the other direction", foreign::seal(&outcome.responder_key, 6, 0, 2, b"x")),
        ("an altered frame", flipped),
        ("a type nobody knows", sealed(6, 0, 4)),
        ("type 0", sealed(6, 0, 0)),
        ("a tag alone", empty),
    ] {
        vectors.push(json!({"name": name, "spec": "§6.5", "kind": "frame", "valid": false, "by": "initiator", "stream": 6, "frame": 0, "bytes": hex(bytes)}));
    }
    vectors
}

fn replay() -> Vec<Value> {
    let run = |name: &str, starts_with_zero: bool, streams: &[u32]| {
        let mut window = ReplayWindow::default();
        if starts_with_zero {
            window.accept(0).unwrap();
        }
        let steps: Vec<Value> =
            streams.iter().map(|stream| json!([stream, window.accept(*stream).is_ok()])).collect();
        json!({"name": name, "spec": "§6.4", "window_of": if starts_with_zero { "responder" } else { "initiator" }, "streams": steps})
    };
    vec![
        run("in order", true, &[2, 4, 6, 8]),
        run("stream 0 is taken", true, &[0, 2, 0]),
        run("each number counts once", true, &[2, 2, 4, 2, 4]),
        run("out of order", true, &[10, 4, 8, 2, 6, 4, 10]),
        run("the responder's numbers", false, &[1, 3, 1, 5, 3]),
        run("the left edge", true, &[4000, 1950, 1952, 1954, 1952, 1948]),
        run("a jump past the whole window", true, &[2, 100_000, 2, 97_954, 97_952, 97_950, 100_000]),
        run("the last number", true, &[u32::MAX - 1, u32::MAX - 1, 2, u32::MAX - 2047, u32::MAX - 2049]),
    ]
}

// ---------------------------------------------------------------- messages

fn messages() -> Vec<Value> {
    let ok = |kind: &str, name: &str, cbor: Vec<u8>| json!({"name": name, "spec": "§8", "kind": kind, "cbor": hex(cbor), "cddl": {"cbor": kind}, "valid": true});
    let no = |kind: &str, name: &str, cbor: Vec<u8>| json!({"name": name, "spec": "§8", "kind": kind, "cbor": hex(cbor), "cddl_refuses": {"cbor": kind}, "valid": false});
    let full = Head {
        intent: "agent.call".to_owned(),
        target: Some("kBridge:notes".to_owned()),
        deadline_ms: Some(30_000),
        token: Some(ByteBuf::from([1, 2, 3])),
        trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        idempotency_key: Some(ByteBuf::from([9; 16])),
        priority: Some(7),
        params: ByteBuf::from(b"GET /".to_vec()),
    };
    let intent = || ("intent", text("a.b"));
    let params = |count: usize| Head {
        intent: "a.b".to_owned(),
        params: ByteBuf::from(vec![0; count]),
        ..Head::default()
    };
    let mut vectors = vec![
        ok("head", "the shortest head", map(&[intent()])),
        ok("head", "a head with everything", cbor::encode(&full)),
        ok("head", "a head with a field of a later version", map(&[("zone", text("blue")), intent()])),
        ok("head", "the longest params", cbor::encode(&params(PARAMS_BYTES_MAX))),
        no("head", "params above their limit", cbor::encode(&params(PARAMS_BYTES_MAX + 1))),
        no("head", "no intent", map(&[])),
        no("head", "an empty intent", map(&[("intent", text(""))])),
        no("head", "an intent above its limit", map(&[("intent", text(&"x".repeat(NAME_BYTES_MAX + 1)))])),
        no(
            "head",
            "a target above its limit",
            map(&[intent(), ("target", text(&"x".repeat(NAME_BYTES_MAX + 1)))]),
        ),
        no(
            "head",
            "a trace above its limit",
            map(&[("trace", text(&"x".repeat(NAME_BYTES_MAX + 1))), intent()]),
        ),
        no("head", "priority 8", map(&[intent(), ("priority", vec![8])])),
        no("head", "a deadline above 2^32-1", map(&[intent(), ("deadline_ms", head(0, 1 << 32))])),
        no(
            "head",
            "an idempotency key above its limit",
            map(&[intent(), ("idempotency_key", bytes(&[0; NAME_BYTES_MAX + 1]))]),
        ),
        ok("reply-head", "the shortest reply head", map(&[])),
        ok(
            "reply-head",
            "a reply head with params",
            cbor::encode(&ReplyHead { params: ByteBuf::from(b"200".to_vec()) }),
        ),
        no(
            "reply-head",
            "reply params above their limit",
            cbor::encode(&ReplyHead { params: ByteBuf::from(vec![0; PARAMS_BYTES_MAX + 1]) }),
        ),
        ok(
            "end",
            "an end with a text and a time",
            cbor::encode(&End {
                retry_after_ms: Some(1500),
                ..End::because(Status::RateLimited, "slow down")
            }),
        ),
        ok(
            "end",
            "the longest text",
            cbor::encode(&End::because(Status::Denied, "x".repeat(STATUS_TEXT_BYTES_MAX))),
        ),
        no(
            "end",
            "a text above its limit",
            map(&[("text", text(&"x".repeat(STATUS_TEXT_BYTES_MAX + 1))), ("status", text("ok"))]),
        ),
        no("end", "no status", map(&[])),
        no("end", "a status that is a number", map(&[("status", vec![0])])),
    ];
    // Without a rule: RFC 8610's cut forbids it, but the validator falls back to `* tstr => any` for optional keys.
    let text_params = map(&[intent(), ("params", text("x"))]);
    vectors.push(json!({"name": "params that are text", "spec": "§8", "kind": "head", "cbor": hex(text_params), "valid": false}));
    for (status, name) in Status::ALL {
        let mut vector = ok("end", &format!("status {name}"), cbor::encode(&End::because(status, "")));
        vector["status"] = name.into();
        vectors.push(vector);
    }
    let mut unknown =
        ok("end", "a status of a later version reads as internal", map(&[("status", text("tired"))]));
    unknown["status"] = "internal".into();
    vectors.push(unknown);
    for (name, kinds, valid) in [
        ("a message", &[1, 2, 2, 3][..], true),
        ("without data", &[1, 3], true),
        ("a lone end", &[3], true),
        ("two exchanges", &[1, 3, 1, 2, 3], true),
        ("nothing", &[], true),
        ("data first", &[2], false),
        ("two heads", &[1, 1], false),
        ("data behind the end", &[1, 3, 2], false),
        ("no end", &[1, 2], false),
    ] {
        vectors.push(json!({"name": name, "spec": "§8.1", "kind": "order", "types": kinds, "valid": valid}));
    }
    vectors
}

fn carries() -> Vec<Value> {
    let federation = FederationId::from_bytes(sha256(b"first"));
    let [from, to] = ["alice", "bob"].map(|name| member(name).2.member());
    let header = |route: Vec<MemberId>| carry::Header { federation_tag: federation.tag(), from, route };
    let ok = |name: &str, rule: &str, bytes: Vec<u8>| json!({"name": name, "spec": "§6.7", "kind": rule, "bytes": hex(&bytes), "body": hex(&bytes[2..]), "cddl": {"body": rule}, "valid": true});
    let no = |name: &str, body: Vec<u8>| json!({"name": name, "spec": "§6.7", "kind": "carry-header", "body": hex(body), "cddl_refuses": {"body": "carry-header"}, "valid": false});
    let raw = |tag: Vec<u8>, route: Vec<Vec<u8>>| {
        map(&[("from", bytes(from.as_bytes())), ("route", list(&route)), ("federation_tag", tag)])
    };
    let hop = || bytes(to.as_bytes());
    vec![
        ok("to the carrier", "carry-header", header(vec![to]).to_bytes()),
        ok("to the far end", "carry-header", header(vec![]).to_bytes()),
        ok("the longest route", "carry-header", header(vec![to; CARRY_HOPS_MAX]).to_bytes()),
        ok("the way is open", "end", carry::reply_to_bytes(&End::ok())),
        ok(
            "the next hop cannot be reached",
            "end",
            carry::reply_to_bytes(&End::because(Status::Unavailable, "bob is not linked")),
        ),
        no("a route too long", raw(bytes(&federation.tag()), (0..=CARRY_HOPS_MAX).map(|_| hop()).collect())),
        no("a tag of 7 bytes", raw(bytes(&[1; 7]), vec![hop()])),
        no("a hop of 31 bytes", raw(bytes(&federation.tag()), vec![bytes(&[1; 31])])),
        no(
            "no route",
            map(&[("from", bytes(from.as_bytes())), ("federation_tag", bytes(&federation.tag()))]),
        ),
    ]
}

/// The responder's or initiator's side of a vector, read back.
pub fn local_of(side: &Value, federation: &Value) -> Local {
    let seed: [u8; 32] = unhex(&side["seed"]).try_into().unwrap();
    let range = |n: usize| u16::try_from(side["versions"][n].as_u64().unwrap()).unwrap();
    Local {
        secret: SecretKey::from_seed(&seed),
        member: side["member"].as_str().unwrap().parse().unwrap(),
        federation: FederationId::from_bytes(unhex(federation).try_into().unwrap()),
        versions: Versions { min: range(0), max: range(1) },
        offers: BTreeMap::new(),
        wants: BTreeMap::new(),
        streams_max: 200,
        agent: "reader/1".to_owned(),
    }
}

pub fn unhex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}
