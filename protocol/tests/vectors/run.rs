//! Runs every vector, as somebody would who has the files and SPEC and wants to know whether they read it right.

use crate::{
    build::{self, Note, local_of, unhex},
    foreign::{self, Side},
    vectors,
};
use ipld_core::ipld::Ipld;
use kos_protocol::{
    carry,
    cbor::{decode_canonical, encode},
    hello::{Hello, Versions},
    id::{AgentId, FederationId, MemberId, ObjectId},
    key::{PublicKey, SecretKey},
    key_log::{KeyEvent, KeyLog},
    message::{End, FrameKind, Head, Phase, ReplyHead},
    object::{Object, ObjectError, Scope, Signed, Unverified},
    preamble::{Notice, Preamble},
    replay::ReplayWindow,
    session::{Early, HandshakeError, Initiator, Received, Responder, parse_plain_frames},
};
use serde_json::Value;

fn array<const N: usize>(value: &Value) -> [u8; N] {
    unhex(value).try_into().unwrap()
}

fn is_valid(vector: &Value) -> bool {
    vector["valid"].as_bool().unwrap()
}

fn name(vector: &Value) -> &str {
    vector["name"].as_str().unwrap()
}

#[test]
fn each_vector_names_its_section() {
    let spec = include_str!("../../SPEC.md");
    for (file, _) in build::files() {
        let vectors = vectors(file);
        assert!(!vectors.is_empty());
        for vector in vectors {
            let section = vector["spec"].as_str().unwrap().strip_prefix('§').unwrap().to_owned();
            let heading = [format!("\n## {section}. "), format!("\n### {section} ")];
            assert!(
                heading.iter().any(|heading| spec.contains(heading)),
                "{file}: §{section}: {}",
                name(&vector)
            );
        }
    }
}

#[test]
fn items() {
    for vector in vectors("cbor.json") {
        let bytes = unhex(&vector["cbor"]);
        let decoded = decode_canonical::<Ipld>(&bytes, 65_536);
        assert_eq!(decoded.is_ok(), is_valid(&vector), "{}: {decoded:?}", name(&vector));
        if let Ok(item) = decoded {
            assert_eq!(encode(&item), bytes, "{}", name(&vector));
        }
    }
}

#[test]
fn ids_and_names() {
    for vector in vectors("ids.json") {
        let text = vector["text"].as_str().unwrap_or_default();
        let parsed = match vector["kind"].as_str().unwrap() {
            "member" => text.parse::<MemberId>().ok().map(|id| (*id.as_bytes(), id.to_string())),
            "federation" => text.parse::<FederationId>().ok().map(|id| (*id.as_bytes(), id.to_string())),
            "object" => text.parse::<ObjectId>().ok().map(|id| (*id.as_bytes(), id.to_string())),
            "tag" => {
                let id = unhex(&vector["bytes"]);
                let tag = &foreign::sha256(&[b"klp/1 federation tag", &id])[..8];
                assert_eq!(tag, unhex(&vector["tag"]));
                assert_eq!(tag, FederationId::from_bytes(array(&vector["bytes"])).tag());
                continue;
            }
            _ => {
                let agent = text.parse::<AgentId>();
                assert_eq!(agent.is_ok(), is_valid(&vector), "{}", name(&vector));
                continue;
            }
        };
        assert_eq!(parsed.is_some(), is_valid(&vector), "{}", name(&vector));
        if let Some((bytes, written)) = parsed {
            assert_eq!(bytes[..], unhex(&vector["bytes"]));
            assert_eq!(written, text.to_lowercase());
        }
    }
}

#[test]
fn keys() {
    for vector in vectors("keys.json") {
        let public = PublicKey::from_bytes(&array(&vector["ed25519"]));
        assert_eq!(public.is_ok(), is_valid(&vector), "{}", name(&vector));
        let Ok(public) = public else { continue };
        let secret = SecretKey::from_seed(&array(&vector["seed"]));
        assert_eq!(secret.public(), public);
        assert_eq!(secret.to_x25519()[..], unhex(&vector["x25519_secret"]));
        assert_eq!(public.to_x25519()[..], unhex(&vector["x25519"]));
        // The other way round: X25519 itself makes the same public key of the secret.
        let made =
            x25519_dalek::x25519(array(&vector["x25519_secret"]), x25519_dalek::X25519_BASEPOINT_BYTES);
        assert_eq!(made[..], unhex(&vector["x25519"]));
        assert_eq!(public.to_peer_id()[..], unhex(&vector["peer_id"]));
        let peer_id = libp2p_identity::PeerId::from_bytes(&unhex(&vector["peer_id"])).unwrap();
        let theirs: libp2p_identity::PublicKey =
            libp2p_identity::ed25519::PublicKey::try_from_bytes(public.as_bytes()).unwrap().into();
        assert_eq!(theirs.to_peer_id(), peer_id);
        assert_eq!(secret.sign(b"klp")[..], unhex(&vector["signature_of_klp"]));
    }
}

fn check_object<T: Object>(vector: &Value) -> Result<Signed<T>, ObjectError> {
    let scope = match vector["federation"].as_str() {
        Some(_) => Scope::Federation(FederationId::from_bytes(array(&vector["federation"]))),
        None => Scope::Global,
    };
    let key = PublicKey::from_bytes(&array(&vector["key"])).unwrap();
    let envelope = unhex(&vector["envelope"]);
    let verified = Signed::<T>::verify(&envelope, scope, &key)?;
    assert_eq!(verified.bytes(), envelope);
    assert_eq!(verified.id(), Unverified::<T>::parse(&envelope, scope)?.id());
    assert_eq!(verified.id().as_bytes()[..], unhex(&vector["id"]), "{}", name(vector));
    assert_eq!(foreign::sha256(&[&unhex(&vector["sig_structure"])])[..], unhex(&vector["id"]));
    Ok(verified)
}

#[test]
fn objects() {
    let mut headers = 0;
    for vector in vectors("objects.json") {
        assert_eq!(
            vector["domain"] == Note::DOMAIN,
            vector["federation"].is_string(),
            "one kind for each scope"
        );
        let outcome = if vector["domain"] == Note::DOMAIN {
            check_object::<Note>(&vector).map(drop)
        } else {
            check_object::<KeyEvent>(&vector).map(drop)
        };
        assert_eq!(outcome.is_ok(), is_valid(&vector), "{}: {outcome:?}", name(&vector));
        headers += u32::from(outcome == Err(ObjectError::Header));
    }
    assert!(headers >= 3, "wrong headers are told apart from wrong signatures");
}

#[test]
fn key_logs() {
    for vector in vectors("key-logs.json") {
        let events: Vec<Vec<u8>> = vector["events"].as_array().unwrap().iter().map(unhex).collect();
        let log = KeyLog::parse(&events);
        assert_eq!(log.is_ok(), is_valid(&vector), "{}: {log:?}", name(&vector));
        if let Ok(log) = log {
            assert_eq!(log.member().to_string(), vector["member"].as_str().unwrap());
            assert_eq!(log.current().as_bytes()[..], unhex(&vector["current_key"]));
            assert_eq!(log.next_hash()[..], unhex(&vector["next"]));
        }
    }
}

#[test]
fn preambles() {
    for vector in vectors("preambles.json") {
        let bytes = unhex(&vector["bytes"]);
        let parsed = Preamble::parse(&bytes);
        assert_eq!(parsed.is_ok(), is_valid(&vector), "{}", name(&vector));
        match parsed {
            Ok(Preamble::Handshake { pattern, versions, federation_tag }) => {
                assert_eq!(Preamble::length(bytes[0]), Ok(14));
                assert_eq!(format!("{pattern:?}").to_lowercase(), vector["pattern"].as_str().unwrap());
                assert_eq!(serde_json::json!([versions.min, versions.max]), vector["versions"]);
                assert_eq!(federation_tag[..], unhex(&vector["federation_tag"]));
            }
            Ok(Preamble::Exchange { session, stream }) => {
                assert_eq!(Preamble::length(bytes[0]), Ok(21));
                assert_eq!(session.0[..], unhex(&vector["session"]));
                assert_eq!(u64::from(stream), vector["stream"].as_u64().unwrap());
            }
            Err(_) => {}
        }
    }
}

#[test]
fn notices() {
    for vector in vectors("notices.json") {
        let body = unhex(&vector["body"]);
        let parsed = Notice::parse(&body);
        assert_eq!(parsed.is_ok(), is_valid(&vector), "{}: {parsed:?}", name(&vector));
        if let Ok(notice) = parsed {
            let length = u8::try_from(body.len()).unwrap();
            assert_eq!(unhex(&vector["bytes"]), [&[0, 0, 0, length][..], &body].concat());
            assert_eq!(serde_json::to_value(&notice).unwrap(), vector["notice"]);
        }
    }
}

#[test]
fn hellos() {
    for vector in vectors("hello.json") {
        if vector["kind"] == "versions" {
            let range = |side: &Value| Versions {
                min: side[0].as_u64().unwrap().try_into().unwrap(),
                max: side[1].as_u64().unwrap().try_into().unwrap(),
            };
            let common = range(&vector["ours"]).common(range(&vector["theirs"]));
            assert_eq!(common.map(u64::from), vector["common"].as_u64(), "{}", name(&vector));
            continue;
        }
        let parsed = Hello::parse(&unhex(&vector["cbor"]));
        assert_eq!(parsed.is_ok(), is_valid(&vector), "{}: {parsed:?}", name(&vector));
    }
}

/// The name an error has in the vectors.
fn error_name(error: &HandshakeError) -> &'static str {
    match error {
        HandshakeError::Crypto => "crypto",
        HandshakeError::Hello(_) => "hello",
        HandshakeError::KeyMismatch => "key-mismatch",
        HandshakeError::Versions { .. } => "versions",
        HandshakeError::Downgrade => "downgrade",
        HandshakeError::Refused(_) => "refused",
        HandshakeError::EarlyTooLarge { .. } => "early-too-large",
    }
}

fn random_seed(side: &Value) -> [u8; 32] {
    array(&side["random_seed"])
}

fn counter(side: &Value) -> u64 {
    side["counter"].as_u64().unwrap()
}

/// The handshake from the files alone: secrets and payloads in, messages and keys out.
fn check_with_foreign(vector: &Value) {
    let side = |side: &Value| Side {
        fixed: array(&side["x25519_secret"]),
        ephemeral: array(&side["ephemeral_secret"]),
    };
    let preamble = unhex(&vector["preamble"]);
    let list = |key: &str| vector[key].as_array().unwrap().iter().map(unhex).collect::<Vec<_>>();
    let outcome = foreign::shake(
        preamble[1],
        &preamble,
        &side(&vector["initiator"]),
        &side(&vector["responder"]),
        &list("payloads"),
    );
    for (message, written) in outcome.messages.iter().zip(list("messages")) {
        assert_eq!(usize::from(u16::from_be_bytes([written[0], written[1]])), message.len());
        assert_eq!(message[..], written[2..], "{}", name(vector));
    }
    assert_eq!(outcome.messages.len(), list("messages").len());
    assert_eq!(outcome.hash[..], unhex(&vector["handshake_hash"]));
    assert_eq!(outcome.session_id[..], unhex(&vector["session_id"]));
    assert_eq!(outcome.initiator_key[..], unhex(&vector["initiator_key"]));
    assert_eq!(outcome.responder_key[..], unhex(&vector["responder_key"]));
    for side in ["initiator", "responder"] {
        assert_eq!(
            build::ephemeral(random_seed(&vector[side]))[..],
            unhex(&vector[side]["ephemeral_secret"])
        );
    }
}

/// The same handshake by the implementation, both sides: the messages it writes are those of the file.
fn check_with_implementation(vector: &Value) {
    let federation = FederationId::from_bytes(array(&vector["federation"]));
    let side = |role: &str, name: &str| {
        let versions = local_of(&vector[role], &vector["federation"]).versions;
        let local = build::local(name, federation, versions);
        assert_eq!(local.secret.to_seed()[..], unhex(&vector[role]["seed"]));
        (local, counter(&vector[role]), random_seed(&vector[role]))
    };
    let ((alice, alice_counter, alice_seed), (bob, bob_counter, bob_seed)) =
        (side("initiator", "alice"), side("responder", "bob"));
    let messages: Vec<Vec<u8>> = vector["messages"].as_array().unwrap().iter().map(unhex).collect();
    let (early, taken) = (unhex(&vector["early"]), vector["early_taken"].as_bool().unwrap());
    let known = (vector["pattern"] == "ik").then(|| bob.secret.public());
    let (initiator, opening) = Initiator::start(&alice, known, alice_counter, &early, alice_seed).unwrap();
    assert_eq!(opening, [unhex(&vector["preamble"]), messages[0].clone()].concat(), "{}", name(vector));
    let received = Responder::receive(&bob, &opening[..14], &messages[0][2..], bob_counter, bob_seed);
    let take = if taken { Early::Take } else { Early::Drop };
    let (initiated, accepted) = match received.map_err(|(error, _)| error).unwrap() {
        Received::Offer(offer) => {
            assert_eq!(offer.has_early(), !early.is_empty());
            let accepted = offer.accept(take).unwrap();
            assert_eq!(accepted.answer, messages[1]);
            (initiator.finish(&messages[1][2..]).unwrap(), accepted)
        }
        Received::Answer(responder, answer) => {
            assert_eq!(answer, messages[1]);
            let initiated = initiator.finish(&messages[1][2..]).unwrap();
            assert_eq!(initiated.last_message, messages[2]);
            (initiated, responder.finish(&messages[2][2..]).unwrap().accept(take).unwrap())
        }
    };
    assert_eq!(initiated.early_taken, taken);
    assert_eq!(accepted.early, if taken { early } else { Vec::new() });
    for session in [&initiated.session, &accepted.session] {
        assert_eq!(session.id().0[..], unhex(&vector["session_id"]));
        assert_eq!(session.handshake_hash()[..], unhex(&vector["handshake_hash"]));
        assert_eq!(u64::from(session.version()), vector["version"].as_u64().unwrap());
    }
    let frames = parse_plain_frames(&accepted.early).unwrap();
    let phase = frames.iter().try_fold(Phase::BeforeHead, |phase, (kind, _)| phase.after(*kind));
    assert_eq!(phase, Ok(Phase::BeforeHead));
}

#[test]
fn handshakes() {
    for vector in vectors("handshakes.json") {
        match vector["kind"].as_str().unwrap() {
            "handshake" => {
                check_with_foreign(&vector);
                check_with_implementation(&vector);
            }
            "refused-by-responder" => {
                let (bob, side) =
                    (local_of(&vector["responder"], &vector["federation"]), &vector["responder"]);
                let message = unhex(&vector["message"]);
                assert_eq!(usize::from(u16::from_be_bytes([message[0], message[1]])), message.len() - 2);
                let received = Responder::receive(
                    &bob,
                    &unhex(&vector["preamble"]),
                    &message[2..],
                    counter(side),
                    random_seed(side),
                );
                let Err((error, notice)) = received else { panic!("{} was taken", name(&vector)) };
                assert_eq!(error_name(&error), vector["error"].as_str().unwrap(), "{}", name(&vector));
                let notice = notice.map(|notice| notice.to_bytes());
                assert_eq!(
                    notice,
                    vector["notice"].as_str().map(|_| unhex(&vector["notice"])),
                    "{}",
                    name(&vector)
                );
            }
            _ => {
                let side = &vector["initiator"];
                let mut alice = build::local(
                    "alice",
                    FederationId::from_bytes(array(&vector["federation"])),
                    Versions::OURS,
                );
                alice.versions = local_of(side, &vector["federation"]).versions;
                let expected = PublicKey::from_bytes(&array(&vector["expected_key"])).unwrap();
                let (initiator, opening) =
                    Initiator::start(&alice, Some(expected), counter(side), &[], random_seed(side)).unwrap();
                assert_eq!(opening, unhex(&vector["opening"]));
                let error = initiator.finish(&unhex(&vector["answer"])[2..]).map(drop).unwrap_err();
                assert_eq!(error_name(&error), vector["error"].as_str().unwrap(), "{}", name(&vector));
            }
        }
    }
}

#[test]
fn frames() {
    let vectors = vectors("frames.json");
    let session = &vectors[0];
    let hash = unhex(&session["handshake_hash"]);
    assert_eq!(foreign::sha256(&[b"klp/1 session id", &hash])[..16], unhex(&session["session_id"]));
    let number = |vector: &Value, key: &str| u32::try_from(vector[key].as_u64().unwrap()).unwrap();
    for vector in &vectors[1..] {
        let key = array(&session[format!("{}_key", vector["by"].as_str().unwrap())]);
        let (stream, frame) = (number(vector, "stream"), number(vector, "frame"));
        let bytes = unhex(&vector["bytes"]);
        assert_eq!(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), bytes.len() - 2);
        let opened = foreign::open(&key, stream, frame, &bytes[2..]);
        let opened = opened.and_then(|(kind, payload)| Some((FrameKind::from_byte(kind)?, payload)));
        assert_eq!(opened.is_some(), is_valid(vector), "{}", name(vector));
        if let Some((kind, payload)) = opened {
            assert_eq!(number(vector, "type"), u32::from(kind.to_byte()));
            assert_eq!(payload, unhex(&vector["payload"]));
            assert_eq!(foreign::seal(&key, stream, frame, kind.to_byte(), &payload), bytes);
        }
    }
}

#[test]
fn replay_windows() {
    for vector in vectors("replay.json") {
        let mut window = ReplayWindow::default();
        // SPEC §6.4 once more, with a set instead of a window.
        let (mut end, mut seen) = (0, std::collections::BTreeSet::new());
        if vector["window_of"] == "responder" {
            window.accept(0).unwrap();
            (end, _) = (1, seen.insert(0));
        }
        for step in vector["streams"].as_array().unwrap() {
            let stream = u32::try_from(step[0].as_u64().unwrap()).unwrap();
            let index = u64::from(stream / 2);
            let taken = index + 1024 >= end && seen.insert(index);
            if taken {
                end = end.max(index + 1);
            }
            assert_eq!(step[1].as_bool(), Some(taken), "{}: {stream}", name(&vector));
            assert_eq!(window.check(stream).is_ok(), taken, "{}: {stream}", name(&vector));
            assert_eq!(window.accept(stream).is_ok(), taken, "{}: {stream}", name(&vector));
        }
    }
}

#[test]
fn messages() {
    for vector in vectors("messages.json") {
        let cbor = || unhex(&vector["cbor"]);
        let accepted = match vector["kind"].as_str().unwrap() {
            "head" => Head::parse(&cbor()).is_ok(),
            "reply-head" => ReplyHead::parse(&cbor()).is_ok(),
            "end" => {
                let end = End::parse(&cbor());
                if let (Ok(end), Some(status)) = (&end, vector["status"].as_str()) {
                    assert_eq!(end.status.as_str(), status);
                }
                end.is_ok()
            }
            _ => {
                let types = vector["types"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|kind| u8::try_from(kind.as_u64().unwrap()).unwrap());
                let end = types
                    .map(|kind| FrameKind::from_byte(kind).unwrap())
                    .try_fold(Phase::default(), Phase::after);
                end == Ok(Phase::BeforeHead)
            }
        };
        assert_eq!(accepted, is_valid(&vector), "{}", name(&vector));
    }
}

#[test]
fn carries() {
    for vector in vectors("carry.json") {
        let body = unhex(&vector["body"]);
        if vector["kind"] == "carry-header" {
            let parsed = carry::Header::parse(&body);
            assert_eq!(parsed.is_ok(), is_valid(&vector), "{}", name(&vector));
            if let Ok(header) = parsed {
                assert_eq!(header.to_bytes(), unhex(&vector["bytes"]));
            }
        } else {
            let reply = carry::parse_reply(&body).unwrap();
            assert_eq!(carry::reply_to_bytes(&reply), unhex(&vector["bytes"]));
        }
    }
}

#[test]
fn what_spreads() {
    let mut kinds = Vec::new();
    for vector in vectors("items.json").iter().filter(|vector| vector["kind"].is_string()) {
        match vector["kind"].as_str().unwrap() {
            "gossip" => {
                let (topic, message) = (vector["topic"].as_str().unwrap(), unhex(&vector["message"]));
                let length = u64::try_from(topic.len()).unwrap().to_be_bytes();
                let id = foreign::sha256(&[&length, topic.as_bytes(), &message]);
                assert_eq!(id[..], unhex(&vector["message_id"]));
                kinds.push("gossip");
            }
            "items" => {
                let (mut rest, mut items) = (&unhex(&vector["body"])[..], Vec::new());
                while let [number, high, low, more @ ..] = rest {
                    let (bytes, behind) = more.split_at(usize::from(u16::from_be_bytes([*high, *low])));
                    items.push(match *number {
                        255 => bytes.to_vec(),
                        number => {
                            let kind = vector["kinds"][usize::from(number)].as_str().unwrap();
                            let parts = [
                                ("body", ipld_core::ipld::Ipld::Bytes(bytes.to_vec())),
                                ("kind", ipld_core::ipld::Ipld::String(kind.to_owned())),
                            ];
                            kos_protocol::cbor::encode(&std::collections::BTreeMap::from(parts))
                        }
                    });
                    rest = behind;
                }
                assert!(rest.is_empty());
                let expected: Vec<_> = vector["items"].as_array().unwrap().iter().map(unhex).collect();
                assert_eq!(items, expected, "{}", name(vector));
                kinds.push("items");
            }
            _ => {}
        }
    }
    assert_eq!(kinds, ["gossip", "items", "items", "items", "items"]);
}
