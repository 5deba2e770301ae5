//! Makes the vectors of SPEC §9. None of the crates that implement it is used: every object is put together field by
//! field as the tables say, and what is expected of it is written here by hand. `crates/governance`, `crates/directory`
//! and `crates/engine` run the files in their own tests.

mod acts;
mod admission;
mod records;

pub use acts::acts;
pub use admission::{codes, invitations, joining, secrets};
pub use records::{items, records};

use crate::build::{aad, bytes, hex, list, map, unhex};
use hmac::{Hmac, KeyInit, Mac};
use ipld_core::ipld::Ipld;
use kos_protocol::{
    cbor,
    id::{FederationId, MemberId, ObjectId, sha256},
    key::SecretKey,
    key_log::KeyLog,
    limits::{ADDRESSES_MAX, FOUNDERS_MAX, INVITE_USES_MAX, RECORD_LIFE_MS_MAX, WHY_BYTES_MAX},
    object::{PROTECTED, sig_structure},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// When everything here takes place.
const NOW_MS: u64 = 1_800_000_000_000;
const HOUR_MS: u64 = 3_600_000;
const SKEW_MS: u64 = 600_000;
/// The handshake hash of the session in which newcomers ask.
const HASH: [u8; 32] = [5; 32];

type Fields = BTreeMap<String, Ipld>;

fn b(content: impl AsRef<[u8]>) -> Ipld {
    Ipld::Bytes(content.as_ref().to_vec())
}

fn t(content: &str) -> Ipld {
    Ipld::String(content.to_owned())
}

fn n(number: u64) -> Ipld {
    Ipld::Integer(number.into())
}

fn m<const N: usize>(entries: [(&str, Ipld); N]) -> Ipld {
    Ipld::Map(fields(entries))
}

fn fields<const N: usize>(entries: [(&str, Ipld); N]) -> Fields {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn blobs<B: AsRef<[u8]>>(items: impl IntoIterator<Item = B>) -> Ipld {
    Ipld::List(items.into_iter().map(b).collect())
}

fn texts(items: &[&str]) -> Ipld {
    Ipld::List(items.iter().map(|item| t(item)).collect())
}

/// A map with some entries changed; `None` takes one out.
fn but<const N: usize>(fields: &Fields, changes: [(&str, Option<Ipld>); N]) -> Fields {
    let mut changed = fields.clone();
    for (key, value) in changes {
        match value {
            Some(value) => changed.insert(key.to_owned(), value),
            None => changed.remove(key),
        };
    }
    changed
}

fn encoded(fields: &Fields) -> Vec<u8> {
    cbor::encode(fields)
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32])
}

/// Somebody whose key number `i` is `key(base + i)`.
#[derive(Clone)]
struct Person {
    name: &'static str,
    base: u8,
    log: KeyLog,
}

impl Person {
    fn new(name: &'static str, base: u8) -> Self {
        Self { name, base, log: KeyLog::incept(&key(base), &key(base + 1).public()) }
    }

    fn id(&self) -> MemberId {
        self.log.member()
    }

    fn key_seq(&self) -> u8 {
        u8::try_from(self.log.seq()).unwrap()
    }

    fn key(&self) -> SecretKey {
        key(self.base + self.key_seq())
    }

    fn rotated(&self) -> Self {
        let next = self.base + self.key_seq() + 1;
        Self { log: self.log.rotate(&key(next), &key(next + 1).public()).unwrap(), ..self.clone() }
    }

    fn events(&self) -> Ipld {
        blobs(self.log.to_list())
    }
}

fn ann() -> Person {
    Person::new("ann", 1)
}
fn bob() -> Person {
    Person::new("bob", 11)
}
fn cem() -> Person {
    Person::new("cem", 21)
}
fn dan() -> Person {
    Person::new("dan", 31)
}
fn eve() -> Person {
    Person::new("eve", 41)
}
/// The one-time key of invitations.
fn invite_key() -> SecretKey {
    key(77)
}

/// An object with its signature, as every vector here shows one.
struct Envelope {
    bytes: Vec<u8>,
    id: ObjectId,
    shown: Value,
}

/// Signs a payload of any kind; `key` is the one it ought to be signed with.
fn sign(
    domain: &str,
    federation: &FederationId,
    signer: &SecretKey,
    key: &SecretKey,
    payload: &[u8],
) -> Envelope {
    let signed = sig_structure(&aad(domain, Some(*federation)), payload);
    let signature = signer.sign(&signed);
    let envelope = list(&[bytes(&PROTECTED), map(&[]), bytes(payload), bytes(&signature)]);
    let id = ObjectId::from_bytes(sha256(&signed));
    let shown = json!({
        "domain": domain, "federation": hex(federation.as_bytes()), "key": hex(key.public().as_bytes()),
        "envelope": hex(&envelope), "payload": hex(payload), "id": hex(id.as_bytes()),
        "genuine": signer.public() == key.public(),
    });
    Envelope { bytes: envelope, id, shown }
}

fn merged(mut into: Value, more: Value) -> Value {
    let target = into.as_object_mut().unwrap();
    target.extend(more.as_object().unwrap().clone());
    into
}

fn fraction(numerator: u64, denominator: u64) -> Ipld {
    Ipld::List(vec![n(numerator), n(denominator)])
}

fn track(minutes: [u64; 4], approval: Ipld, turnout: Ipld, veto: Ipld) -> Ipld {
    let [prepare, decide, confirm, enact] = minutes.map(|minutes| n(minutes * 60));
    m([
        ("prepare_s", prepare),
        ("decide_s", decide),
        ("confirm_s", confirm),
        ("enact_s", enact),
        ("approval", approval),
        ("turnout", turnout),
        ("veto", veto),
    ])
}

fn tracks() -> Fields {
    fields([
        ("routine", track([0, 5, 1, 0], fraction(1, 2), fraction(1, 10), Ipld::Null)),
        ("policy", track([1, 10, 2, 1], fraction(1, 2), fraction(1, 3), fraction(1, 3))),
        ("membership", track([1, 10, 2, 1], fraction(1, 2), fraction(1, 3), fraction(1, 3))),
        ("constitution", track([5, 30, 5, 5], fraction(2, 3), fraction(1, 2), fraction(1, 3))),
        ("emergency", track([0, 2, 0, 0], fraction(2, 3), fraction(1, 2), Ipld::Null)),
    ])
}

fn founder(person: &Person, name: &str, role: &str) -> Fields {
    fields([
        ("member", b(person.id().as_bytes())),
        ("role", t(role)),
        ("weight", n(1)),
        ("name", t(name)),
        ("key_log", person.events()),
    ])
}

fn founders(list: impl IntoIterator<Item = Fields>) -> Option<Ipld> {
    Some(Ipld::List(list.into_iter().map(Ipld::Map).collect()))
}

fn charter() -> Fields {
    let mut charter = fields([
        ("v", n(1)),
        ("nonce", b([7; 32])),
        ("name", t("home")),
        ("profile", t("household")),
        ("constitution", m([("tracks", Ipld::Map(tracks()))])),
        ("council", blobs::<[u8; 0]>([])),
        ("witnesses", blobs::<[u8; 0]>([])),
    ]);
    charter.extend([("roster".to_owned(), founders([founder(&ann(), "attic", "steward")]).unwrap())]);
    charter
}

fn federation() -> FederationId {
    FederationId::from_bytes(sha256(&encoded(&charter())))
}

pub fn genesis() -> Vec<Value> {
    let taken = |name: &str, charter: &Fields| {
        let bytes = encoded(charter);
        let id = FederationId::from_bytes(sha256(&bytes));
        json!({
            "name": name, "spec": "§9.2", "genesis": hex(&bytes), "valid": true, "id": hex(id.as_bytes()),
            "text": id.to_string(), "tag": hex(id.tag()), "cddl": {"genesis": "genesis"},
        })
    };
    let refused = |name: &str, bytes: Vec<u8>| json!({"name": name, "spec": "§9.2", "genesis": hex(bytes), "valid": false});
    let no = |name: &str, field: &str, value: Option<Ipld>| {
        refused(name, encoded(&but(&charter(), [(field, value)])))
    };
    // What has the wrong shape does not match the CDDL either.
    let no_shape = |name: &str, field: &str, value: Option<Ipld>| {
        merged(no(name, field, value), json!({"cddl_refuses": {"genesis": "genesis"}}))
    };
    let first = founder(&ann(), "attic", "steward");
    let roster = |name: &str, list: Vec<Fields>| no(name, "roster", founders(list));
    let constitution = |tracks: Fields| Some(m([("tracks", Ipld::Map(tracks))]));
    let share = |share: Ipld| {
        let bent = track([1, 10, 2, 1], share, fraction(1, 3), Ipld::Null);
        constitution(but(&tracks(), [("policy", Some(bent))]))
    };
    let crowd = |count: usize| {
        let one = |i: usize| {
            let seed = sha256(&u64::try_from(i).unwrap().to_be_bytes());
            let log = KeyLog::incept(&SecretKey::from_seed(&seed), &key(1).public());
            but(
                &first,
                [("member", Some(b(log.member().as_bytes()))), ("key_log", Some(blobs(log.to_list())))],
            )
        };
        (0..count).map(one).collect::<Vec<_>>()
    };
    let extra = track([0, 1, 0, 0], fraction(1, 1), fraction(0, 1), Ipld::Null);
    let bytes = encoded(&charter());
    let mut altered_log = ann().log.to_list();
    *altered_log[0].last_mut().unwrap() ^= 1;
    vec![
        taken("a household", &charter()),
        taken(
            "with a field of a later version, which counts in the id",
            &but(&charter(), [("motto", Some(t("later")))]),
        ),
        taken(
            "with a track more",
            &but(&charter(), [("constitution", constitution(but(&tracks(), [("garden", Some(extra))])))]),
        ),
        taken(
            "two founders, the second of whom has rotated",
            &but(
                &charter(),
                [("roster", founders([first.clone(), founder(&bob().rotated(), "barn", "relay")]))],
            ),
        ),
        no("a later version", "v", Some(n(2))),
        no("the profile of a later version", "profile", Some(t("community"))),
        no_shape("no nonce", "nonce", None),
        no_shape("a nonce of 31 bytes", "nonce", Some(b([7; 31]))),
        no("a name that is none", "name", Some(t("\u{1b}[2J"))),
        no("a track missing", "constitution", constitution(but(&tracks(), [("routine", None)]))),
        no("a division by zero", "constitution", share(fraction(1, 0))),
        no("a share above one", "constitution", share(fraction(2, 1))),
        no(
            "an impossible share in a track of its own",
            "constitution",
            constitution(but(
                &tracks(),
                [("garden", Some(track([0, 1, 0, 0], fraction(1, 0), fraction(0, 1), Ipld::Null)))],
            )),
        ),
        no_shape("a share that is no fraction", "constitution", share(n(1))),
        no("`veto` left out instead of null", "constitution", {
            let Ipld::Map(whole) = tracks()["routine"].clone() else { unreachable!() };
            constitution(but(&tracks(), [("routine", Some(Ipld::Map(but(&whole, [("veto", None)]))))]))
        }),
        roster("no founders", vec![]),
        roster("a founder twice", vec![first.clone(), first.clone()]),
        roster("no steward among the founders", vec![but(&first, [("role", Some(t("member")))])]),
        roster("a role that there is not", vec![but(&first, [("role", Some(t("king")))])]),
        roster(
            "a founder with the key log of another",
            vec![but(&first, [("key_log", Some(bob().events()))])],
        ),
        roster("a key log that does not verify", vec![but(&first, [("key_log", Some(blobs(altered_log)))])]),
        roster("a founder without a key log", vec![but(&first, [("key_log", Some(blobs::<[u8; 0]>([])))])]),
        roster("one founder too many", crowd(FOUNDERS_MAX + 1)),
        refused("bytes behind", [&bytes[..], &[0]].concat()),
        refused("cut short", bytes[..bytes.len() - 1].to_vec()),
    ]
}
