//! Runs the vectors of SPEC §9 that this crate implements. `cargo test -p kos-protocol --test vectors` makes them, without
//! any of this code.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_types, clippy::disallowed_methods)]

use kos_governance::{
    act::Act,
    acts::{Acts, Inserted},
    code::{Invitation, RelayLine},
    genesis::Genesis,
    invite::Invite,
    join::{JoinError, JoinReply, JoinRequest},
    secret::DiscoverySecret,
};
use kos_protocol::{
    id::{FederationId, MemberId, ObjectId},
    key::{PublicKey, SecretKey},
    key_log::KeyLog,
    object::{Object, Scope, Signed},
    time::Timestamp,
};
use serde_bytes::ByteArray;
use serde_json::{Value, json};

fn vectors(file: &str) -> Vec<Value> {
    let path = format!("{}/../../protocol/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let whole: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    whole["vectors"].as_array().unwrap().clone()
}

fn unhex(value: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    unhex(value).try_into().unwrap()
}

fn now(vector: &Value) -> Timestamp {
    Timestamp { monotonic_ms: 0, wall_ms: vector["now_ms"].as_u64().unwrap() }
}

fn acts_of(vector: &Value) -> Acts {
    Acts::new(Genesis::parse(&unhex(&vector["genesis"])).unwrap())
}

fn is_genuine<T: Object>(object: &Value) -> bool {
    let scope = Scope::Federation(FederationId::from_bytes(array(&object["federation"])));
    let key = PublicKey::from_bytes(&array(&object["key"])).unwrap();
    Signed::<T>::verify(&unhex(&object["envelope"]), scope, &key)
        .is_ok_and(|signed| signed.id().as_bytes()[..] == unhex(&object["id"]))
}

#[test]
fn geneses() {
    for vector in vectors("genesis.json") {
        let bytes = unhex(&vector["genesis"]);
        let genesis = Genesis::parse(&bytes);
        assert_eq!(genesis.is_ok(), vector["valid"] == true, "{}: {:?}", vector["name"], genesis.err());
        if let Ok(genesis) = Genesis::parse(&bytes) {
            assert_eq!(genesis.id().as_bytes()[..], unhex(&vector["id"]));
            assert_eq!(genesis.id().to_string(), vector["text"].as_str().unwrap());
            assert_eq!(genesis.id().tag()[..], unhex(&vector["tag"]));
            assert_eq!(genesis.bytes(), bytes);
        }
    }
}

#[test]
fn the_bytes_of_a_household_never_change() {
    let key = |n| SecretKey::from_seed(&[n; 32]);
    let founder = KeyLog::incept(&key(1), &key(2).public());
    let genesis = Genesis::household([7; 32], "home", "attic", &founder).unwrap();
    let vectors = vectors("genesis.json");
    let vector = vectors.iter().find(|vector| vector["name"] == "a household").unwrap();
    assert_eq!(genesis.bytes(), unhex(&vector["genesis"]));
    assert_eq!(vector["id"], "a922b6bd520aa9aeb9e6db87da1d43be7931c924f94e5580b42bee4328c5e36e");
}

fn outcome(inserted: &Result<Inserted, kos_governance::acts::ActError>) -> &'static str {
    match inserted {
        Ok(Inserted::New(_)) => "new",
        Ok(Inserted::Held) => "held",
        Ok(Inserted::Known) => "known",
        Err(_) => "refused",
    }
}

fn roster_of(acts: &Acts, now: Timestamp) -> Vec<Value> {
    let roster = acts.roster(now.wall_ms);
    let shown = |member: &kos_governance::roster::Member| {
        json!({
            "member": member.id.to_string(), "name": member.name, "role": member.role.to_string(),
            "standing": member.standing.label(), "key_seq": member.key_log.seq(),
        })
    };
    roster.members().map(shown).collect()
}

fn sorted(mut members: Vec<Value>) -> Vec<Value> {
    members.sort_by_key(|member| member["member"].as_str().unwrap().to_owned());
    members
}

#[test]
fn histories() {
    for vector in vectors("acts.json") {
        let (mut acts, now, name) = (acts_of(&vector), now(&vector), &vector["name"]);
        assert_eq!(acts.federation().as_bytes()[..], unhex(&vector["id"]));
        let list = vector["acts"].as_array().unwrap();
        for (place, act) in list.iter().enumerate() {
            assert_eq!(is_genuine::<Act>(act), act["genuine"] == true, "{name}, act {place}");
            let inserted = acts.insert(now, &unhex(&act["envelope"]));
            assert_eq!(outcome(&inserted), act["outcome"], "{name}, act {place}: {inserted:?}");
        }
        for (place, act) in list.iter().enumerate() {
            let counts = acts.counts(&ObjectId::from_bytes(array(&act["id"])));
            assert_eq!(counts, act["counts"] == true, "{name}, act {place}");
        }
        let expected = sorted(vector["roster"].as_array().unwrap().clone());
        assert_eq!(sorted(roster_of(&acts, now)), expected, "{name}");
        // Those that are here, in any order, add up to the same.
        let mut backwards = acts_of(&vector);
        let here = list.iter().filter(|act| act["outcome"] != "refused").rev();
        here.for_each(|act| drop(backwards.insert(now, &unhex(&act["envelope"])).unwrap()));
        assert_eq!(roster_of(&backwards, now), roster_of(&acts, now), "{name}, backwards");
    }
}

#[test]
fn invitations() {
    for vector in vectors("invitations.json") {
        let federation = FederationId::from_bytes(array(&vector["federation"]));
        let key = PublicKey::from_bytes(&array(&vector["key"])).unwrap();
        let invite = Invite::verify(&unhex(&vector["envelope"]), federation, &key);
        assert_eq!(invite.is_ok(), vector["valid"] == true, "{}: {:?}", vector["name"], invite.err());
        if vector["valid"] == true {
            assert!(is_genuine::<Invite>(&vector), "{}", vector["name"]);
        }
    }
}

#[test]
fn codes() {
    for vector in vectors("codes.json") {
        let text = vector["text"].as_str().unwrap();
        let is_relay = text.to_lowercase().trim().starts_with("kai:relay/");
        let written = match is_relay {
            true => RelayLine::parse(text).map(|line| line.to_text().unwrap()),
            false => Invitation::parse(text).map(|code| code.to_text()),
        };
        assert_eq!(written.is_ok(), vector["valid"] == true, "{}: {written:?}", vector["name"]);
        if let Ok(written) = written {
            let bare: String = text.split_whitespace().collect();
            assert_eq!(written, bare.to_lowercase(), "{}", vector["name"]);
        }
    }
}

/// What a steward answers: it also compares the key log with the session.
fn refusal(vector: &Value, request: &JoinRequest) -> Option<JoinError> {
    let acts = acts_of(vector);
    let steward = acts.genesis().charter().roster[0].member;
    let judged = request.to_action(&acts, &array(&vector["handshake_hash"])).and_then(|action| {
        let log = KeyLog::parse(&request.key_log).map_err(|_| JoinError::KeyLog)?;
        if log.current().as_bytes()[..] != unhex(&vector["session_key"]) {
            return Err(JoinError::KeyLog);
        }
        acts.draft(now(vector), steward, &action).map_err(|error| JoinError::from(&error))
    });
    judged.err()
}

#[test]
fn join_requests_and_welcomes() {
    for vector in vectors("joining.json") {
        let bytes = unhex(&vector["cbor"]);
        match vector["kind"].as_str().unwrap() {
            "join-request" => {
                let refusal = refusal(&vector, &JoinRequest::decode(&bytes).unwrap());
                let word = refusal.map(|error| serde_json::to_value(error).unwrap());
                assert_eq!(word.unwrap_or_default(), vector["refusal"], "{}", vector["name"]);
            }
            "malformed-request" => assert!(JoinRequest::decode(&bytes).is_err(), "{}", vector["name"]),
            "malformed-welcome" => assert!(JoinReply::decode(&bytes).is_err(), "{}", vector["name"]),
            // Whether it lets us in is for the engine to say.
            _ => assert!(JoinReply::decode(&bytes).is_ok(), "{}", vector["name"]),
        }
    }
}

#[test]
fn topics_and_signatures_of_secrets() {
    for vector in vectors("secrets.json") {
        if vector["kind"] == "secret" {
            if vector["valid"] == true {
                assert!(is_genuine::<DiscoverySecret>(&vector), "{}", vector["name"]);
            }
            continue;
        }
        let secret = DiscoverySecret {
            epoch: 0,
            secret: ByteArray::new(array(&vector["secret"])),
            author: MemberId::from_bytes([0; 32]),
            key_seq: 0,
        };
        let topic = secret.derive(vector["topic_name"].as_str().unwrap(), vector["day"].as_u64().unwrap());
        assert_eq!(topic, vector["topic"].as_str().unwrap());
    }
}
