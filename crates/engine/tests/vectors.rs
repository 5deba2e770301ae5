//! Runs the vectors of SPEC §9 that need a whole federation: welcomes, discovery secrets, items.
//! `cargo test -p kos-protocol --test vectors` makes them, without any of this code.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_types, clippy::disallowed_methods)]

use kos_engine::{Federation, Input, Item, Verdict, item};
use kos_governance::{genesis::Genesis, join::JoinReply};
use kos_protocol::{
    id::{FederationId, MemberId},
    time::Timestamp,
};
use serde_json::{Value, json};

fn vectors(file: &str) -> Vec<Value> {
    let path = format!("{}/../../protocol/vectors/{file}", env!("CARGO_MANIFEST_DIR"));
    let whole: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    whole["vectors"].as_array().unwrap().clone()
}

fn unhex(value: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn now(vector: &Value) -> Timestamp {
    Timestamp { monotonic_ms: 0, wall_ms: vector["now_ms"].as_u64().unwrap() }
}

/// The federation of a vector's genesis, as its founder sees it.
fn founded(vector: &Value) -> Federation {
    let genesis = Genesis::parse(&unhex(&vector["genesis"])).unwrap();
    let founder = genesis.charter().roster[0].member;
    Federation::new(now(vector), genesis, founder)
}

#[test]
fn welcomes() {
    for vector in vectors("joining.json").iter().filter(|vector| vector["kind"] == "welcome") {
        let me: MemberId = vector["me"].as_str().unwrap().parse().unwrap();
        let invited_to = FederationId::from_bytes(unhex(&vector["invited_to"]).try_into().unwrap());
        let welcome = JoinReply::decode(&unhex(&vector["cbor"])).unwrap();
        let entered = Federation::welcomed(now(vector), me, Some(invited_to), &welcome);
        assert_eq!(entered.is_ok(), vector["valid"] == true, "{}: {:?}", vector["name"], entered.err());
    }
}

#[test]
fn secrets() {
    let vectors = vectors("secrets.json");
    let mut federation: Option<Federation> = None;
    for vector in vectors.iter().filter(|vector| vector["kind"] == "secret") {
        let federation = federation.get_or_insert_with(|| {
            let mut federation = founded(vector);
            for act in vector["before"].as_array().unwrap() {
                let item = Item::new("act", &unhex(act)).to_bytes();
                assert_eq!(
                    federation.handle(now(vector), Input::Heard { from: None, item: &item }),
                    Verdict::New
                );
            }
            federation
        });
        federation.handle(now(vector), Input::Secret(&unhex(&vector["envelope"])));
        let used = federation.secret().map(|secret| data_encoding::HEXLOWER.encode(secret.id().as_bytes()));
        assert_eq!(json!(used), vector["used"], "{}", vector["name"]);
    }
}

#[test]
fn items() {
    for vector in vectors("items.json").iter().filter(|vector| vector["item"].is_string()) {
        let bytes = unhex(&vector["item"]);
        let item = Item::parse(&bytes);
        assert_eq!(item.is_ok(), vector["valid"] == true, "{}: {item:?}", vector["name"]);
        let Ok(item) = item else { continue };
        assert_eq!(item.kind, vector["kind"].as_str().unwrap());
        assert_eq!(item.body[..], unhex(&vector["body"]));
        let mut federation = founded(vector);
        assert_eq!(
            federation.handle(now(vector), Input::Heard { from: None, item: &bytes }),
            Verdict::New,
            "{}",
            vector["name"]
        );
        let called = <[u8; 32]>::try_from(unhex(&vector["called"])).unwrap();
        let names: Vec<_> = federation.set().after(None).iter().map(|(_, name)| *name).collect();
        assert_eq!(names, [called]);
        let (packed, count) = federation.items(&[called], 0);
        let items: Vec<_> = item::unpack(&packed.kinds, &packed.body).map(|piece| piece.to_bytes()).collect();
        assert_eq!((items, count), (vec![bytes], 1), "{}", vector["name"]);
    }
}
