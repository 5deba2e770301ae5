//! The vectors as a corpus: millions of small faults, no panic, and no altered object taken for a good one.

use crate::{
    build::{self, Note, local_of, unhex},
    dice::{corpus, dice},
    foreign, vectors,
};
use ipld_core::ipld::Ipld;
use kos_protocol::{
    carry, cbor,
    hello::Hello,
    id::{AgentId, FederationId, MemberId},
    key::PublicKey,
    key_log::KeyLog,
    message::{End, Head, ReplyHead},
    object::{Scope, Signed},
    preamble::{Notice, Preamble},
    session::{Received, Responder, parse_plain_frames},
};
use serde_json::Value;

#[test]
fn no_mutated_bytes_make_a_decoder_panic() {
    let corpus = corpus();
    let (mut dice, rounds) = dice("decoders");
    let federation = FederationId::from_bytes(foreign::sha256(&[b"first"]));
    let bob = build::local("bob", federation, kos_protocol::hello::Versions::OURS);
    let mut accepted = 0;
    for _ in 0..rounds {
        let (original, other) = (&corpus[dice.below(corpus.len())], &corpus[dice.below(corpus.len())]);
        let bytes = dice.mutate(original, other);
        if let Ok(item) = cbor::decode_message::<Ipld>(&bytes, 65_536) {
            // The check of the form and the encoder agree on what the one form is.
            assert_eq!(cbor::encode(&item), bytes);
            accepted += 1;
        }
        let _ = (Head::parse(&bytes), ReplyHead::parse(&bytes), End::parse(&bytes), Hello::parse(&bytes));
        let _ = (Notice::parse(&bytes), carry::Header::parse(&bytes), carry::parse_reply(&bytes));
        let _ = (parse_plain_frames(&bytes), KeyLog::parse(&[&bytes]));
        if let Ok(preamble) = Preamble::parse(&bytes) {
            assert_eq!(preamble.to_bytes(), bytes);
        }
        if let Ok(text) = std::str::from_utf8(&bytes) {
            let _ = (text.parse::<MemberId>(), text.parse::<AgentId>());
        }
        let (preamble, message) = bytes.split_at(bytes.len().min(14));
        let _ = Responder::receive(&bob, preamble, message, 1, [1; 32]);
    }
    println!("decoders: {accepted} of {rounds} were items all the same");
}

#[test]
fn no_altered_object_is_accepted() {
    let corpus = corpus();
    let (mut dice, rounds) = dice("objects");
    let good: Vec<Value> =
        vectors("objects.json").into_iter().filter(|vector| vector["valid"] == true).collect();
    let logs: Vec<Value> =
        vectors("key-logs.json").into_iter().filter(|vector| vector["valid"] == true).collect();
    for round in 0..rounds {
        let other = &corpus[dice.below(corpus.len())];
        let vector = &good[dice.below(good.len())];
        let original = unhex(&vector["envelope"]);
        let bytes = dice.mutate(&original, other);
        if vector["federation"].is_string() && bytes != original {
            let scope =
                Scope::Federation(FederationId::from_bytes(unhex(&vector["federation"]).try_into().unwrap()));
            let key = PublicKey::from_bytes(&unhex(&vector["key"]).try_into().unwrap()).unwrap();
            assert!(Signed::<Note>::verify(&bytes, scope, &key).is_err(), "round {round}: {bytes:02x?}");
        }
        let log = &logs[dice.below(logs.len())];
        let mut events: Vec<Vec<u8>> = log["events"].as_array().unwrap().iter().map(unhex).collect();
        let at = dice.below(events.len());
        let altered = dice.mutate(&events[at], other);
        if altered != events[at] {
            events[at] = altered;
            assert!(KeyLog::parse(&events).is_err(), "round {round}: event {at} of {}", log["name"]);
        }
    }
}

#[test]
fn no_altered_frame_or_handshake_is_accepted() {
    let corpus = corpus();
    let (mut dice, rounds) = dice("sealed");
    let all = vectors("frames.json");
    let frames: Vec<&Value> = all[1..].iter().filter(|vector| vector["valid"] == true).collect();
    let handshakes: Vec<Value> = vectors("handshakes.json")
        .into_iter()
        .filter(|vector| vector["kind"] == "handshake" && vector["pattern"] == "ik")
        .collect();
    for round in 0..rounds / 4 {
        let other = &corpus[dice.below(corpus.len())];
        let vector = frames[dice.below(frames.len())];
        let key = unhex(&all[0][format!("{}_key", vector["by"].as_str().unwrap())]).try_into().unwrap();
        let number = |field: &str| u32::try_from(vector[field].as_u64().unwrap()).unwrap();
        let original = unhex(&vector["bytes"]);
        let bytes = dice.mutate(&original[2..], other);
        if bytes != original[2..] {
            assert_eq!(foreign::open(&key, number("stream"), number("frame"), &bytes), None, "round {round}");
        }
        let vector = &handshakes[dice.below(handshakes.len())];
        let bob = local_of(&vector["responder"], &vector["federation"]);
        let original = [unhex(&vector["preamble"]), unhex(&vector["messages"][0])[2..].to_vec()].concat();
        let bytes = dice.mutate(&original, other);
        if bytes != original {
            let (preamble, message) = bytes.split_at(bytes.len().min(14));
            let received = Responder::receive(&bob, preamble, message, 1, [1; 32]);
            assert!(!matches!(received, Ok(Received::Offer(_))), "round {round}: an altered first message");
        }
    }
}
