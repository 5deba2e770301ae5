//! Runs the vectors of SPEC §9.11. `cargo test -p kos-protocol --test vectors` makes them, without any of this code.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_types, clippy::disallowed_methods)]

use kos_directory::{
    AgentCert, Authors, Claim, Content, Directory, MergeError, Merged, Record, Source, Verified,
};
use kos_protocol::{
    id::{FederationId, MemberId},
    key::PublicKey,
    object::{Scope, Signed},
    time::Timestamp,
};
use serde_json::Value;

fn vectors() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../protocol/vectors/records.json");
    let whole: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    whole["vectors"].as_array().unwrap().clone()
}

fn unhex(value: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

/// The one author a vector knows.
struct Author(MemberId, u64, PublicKey);

impl Author {
    fn of(vector: &Value, key: &str) -> Self {
        let member = vector["author"].as_str().unwrap().parse().unwrap();
        let key = PublicKey::from_bytes(&unhex(&vector[key]).try_into().unwrap()).unwrap();
        Self(member, vector["key_seq"].as_u64().unwrap(), key)
    }
}

impl Authors for Author {
    fn key_of(&self, member: &MemberId, key_seq: u64) -> Option<PublicKey> {
        ((*member, key_seq) == (self.0, self.1)).then_some(self.2)
    }

    fn is_author(&self, member: &MemberId) -> bool {
        *member == self.0
    }
}

fn federation(vector: &Value) -> FederationId {
    FederationId::from_bytes(unhex(&vector["federation"]).try_into().unwrap())
}

fn now(vector: &Value) -> Timestamp {
    Timestamp { monotonic_ms: 0, wall_ms: vector["now_ms"].as_u64().unwrap() }
}

fn check_merge(vector: &Value) {
    let author = Author::of(vector, "author_key");
    let records: Vec<Vec<u8>> = vector["records"].as_array().unwrap().iter().map(unhex).collect();
    let kind = vector["record_kind"].as_str().unwrap();
    for order in [[0, 1], [1, 0]] {
        let mut directory = Directory::new(federation(vector));
        // Of two with one number the loser is refused where it comes second, and tells of its author.
        let mut merge = |place: usize| match directory.merge(
            now(vector),
            Source::Heard,
            kind,
            &records[place],
            &author,
        ) {
            Ok(merged) => Some(merged),
            Err(MergeError::Equivocation { .. }) => None,
            Err(error) => panic!("{}: {error}", vector["name"]),
        };
        order.into_iter().for_each(|place| drop(merge(place)));
        assert!(matches!(merge(order[0]), None | Some(Merged::Known)), "it comes again");
        let stays: Vec<_> = directory.ids().map(|id| id.as_bytes().to_vec()).collect();
        assert_eq!(stays, [unhex(&vector["stays"])], "{}, {order:?}", vector["name"]);
    }
}

fn check_record(vector: &Value) {
    let (author, bytes) = (Author::of(vector, "key"), unhex(&vector["envelope"]));
    let kind = vector["kind"].as_str().unwrap();
    let record = Record::verify(now(vector), federation(vector), kind, &bytes, &author);
    assert_eq!(record.is_ok(), vector["valid"] == true, "{}: {record:?}", vector["name"]);
    if let Ok(record) = &record {
        assert_eq!(record.id().as_bytes()[..], unhex(&vector["id"]));
        assert_eq!(record.bytes(), bytes);
        let known = match record.content() {
            Content::Node(_) => "node-record",
            Content::Agent(..) => "agent-record",
            _ => kind,
        };
        assert_eq!(known, kind);
        // What this node keeps of it gives it back as it was, and damage gives an error.
        let claim = Claim::parse(federation(vector), kind, bytes.as_slice()).unwrap();
        let verified = claim.verify(&author.2).unwrap();
        let row = verified.to_row();
        assert_eq!(Verified::from_row(now(vector), &row), Ok(verified), "{}", vector["name"]);
        for cut in 0..row.len() {
            assert!(Verified::from_row(now(vector), &row[..cut]).is_err());
        }
        let late = Timestamp { monotonic_ms: 0, wall_ms: record.expires_ms() };
        assert!(matches!(Verified::from_row(late, &row), Err(MergeError::Expired { .. })));
    }
}

#[test]
fn records() {
    let mut kinds = std::collections::BTreeSet::new();
    for vector in vectors() {
        kinds.insert(vector["kind"].as_str().unwrap().to_owned());
        match vector["kind"].as_str().unwrap() {
            "merge" => check_merge(&vector),
            "agent-cert" => {
                let key = PublicKey::from_bytes(&unhex(&vector["key"]).try_into().unwrap()).unwrap();
                let scope = Scope::Federation(federation(&vector));
                let cert = Signed::<AgentCert>::verify(&unhex(&vector["envelope"]), scope, &key).unwrap();
                assert_eq!(cert.id().as_bytes()[..], unhex(&vector["id"]));
            }
            _ => check_record(&vector),
        }
    }
    assert!(kinds.len() >= 5, "{kinds:?}");
}
