//! What others say about the same bytes: RFC 8032, Wycheproof, Cacophony, the libp2p specification, COSE's examples.
#![allow(clippy::unwrap_used, clippy::disallowed_types, clippy::disallowed_methods)]

use data_encoding::HEXLOWER;
use kos_protocol::{
    id::{FederationId, sha256},
    key::{PublicKey, SecretKey},
    noise::Resolver,
    object::{PROTECTED, sig_structure},
};
use ring::aead;
use serde_json::Value;
use snow::{
    params::{CipherChoice, DHChoice},
    resolvers::CryptoResolver,
};
use std::collections::BTreeMap;
use wycheproof::TestResult;

fn vectors(json: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(json).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap_or_default().as_bytes()).unwrap()
}

fn hex32(value: &Value) -> [u8; 32] {
    hex(value).try_into().unwrap()
}

#[test]
fn ed25519_is_that_of_rfc_8032() {
    for vector in vectors(include_str!("../vectors/outside/rfc8032-ed25519.json")) {
        let key = SecretKey::from_seed(&hex32(&vector["seed"]));
        let message = hex(&vector["message"]);
        assert_eq!(key.public().as_bytes()[..], hex(&vector["public"]), "{vector}");
        assert_eq!(key.sign(&message)[..], hex(&vector["signature"]), "{vector}");
        assert_eq!(key.public().verify(&message, &key.sign(&message)), Ok(()), "{vector}");
    }
}

/// Wycheproof's verdicts that strict verification does not share, each with the reason. There are none: its set holds no
/// signature that is valid without the cofactor and yet has parts of small order.
const STRICTER_THAN_WYCHEPROOF: &[(usize, &str)] = &[];

#[test]
fn ed25519_agrees_with_wycheproof() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    for group in set.test_groups {
        let key: [u8; 32] = group.key.pk.to_vec().try_into().unwrap();
        let key = PublicKey::from_bytes(&key).unwrap();
        for test in group.tests {
            let signature: Result<[u8; 64], _> = test.sig.to_vec().try_into();
            let verified = signature.is_ok_and(|signature| key.verify(&test.msg, &signature).is_ok());
            let stricter = STRICTER_THAN_WYCHEPROOF.iter().any(|(id, _)| *id == test.tc_id);
            let expected = test.result == TestResult::Valid && !stricter;
            assert_eq!(verified, expected, "test {}: {}", test.tc_id, test.comment);
            if verified { valid += 1 } else { invalid += 1 }
        }
    }
    println!("ed25519: {valid} valid, {invalid} invalid, {} differences", STRICTER_THAN_WYCHEPROOF.len());
    assert!(valid > 50 && invalid > 50, "the set was there");
}

/// The eight small-order points of Speccheck (Chalkias, Garillot, Nikolaenko 2020) and their non-canonical forms.
#[test]
fn points_of_small_order_are_no_keys() {
    let points = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in points {
        let bytes = HEXLOWER.decode(point.as_bytes()).unwrap().try_into().unwrap();
        assert!(PublicKey::from_bytes(&bytes).is_err(), "{point}");
    }
}

#[test]
fn x25519_agrees_with_wycheproof_and_refuses_zero() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let (mut same, mut refused) = (0, 0);
    for test in set.test_groups.into_iter().flat_map(|group| group.tests) {
        let mut dh = Resolver::seeded([0; 32]).resolve_dh(&DHChoice::Curve25519).unwrap();
        dh.set(&test.private_key);
        let mut shared = [0; 32];
        if test.shared_secret.iter().all(|byte| *byte == 0) {
            assert!(dh.dh(&test.public_key, &mut shared).is_err(), "test {}", test.tc_id);
            refused += 1;
        } else {
            dh.dh(&test.public_key, &mut shared).unwrap();
            assert_eq!(shared[..], test.shared_secret[..], "test {}: {}", test.tc_id, test.comment);
            same += 1;
        }
    }
    println!("x25519: {same} alike, {refused} zero results refused");
    assert!(same > 400 && refused > 10, "the set was there");
}

#[test]
fn chacha20_poly1305_agrees_with_wycheproof() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::ChaCha20Poly1305).unwrap();
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for group in set.test_groups {
        for test in group.tests {
            let mut sealed = test.ct.to_vec();
            sealed.extend_from_slice(&test.tag);
            let Ok(nonce) = <[u8; 12]>::try_from(test.nonce.to_vec()) else {
                assert!(test.result.must_fail());
                *counts.entry("nonces of another length").or_default() += 1;
                continue;
            };
            let expected = (!test.result.must_fail()).then(|| test.pt.to_vec());
            // The cipher beneath ours takes every nonce.
            let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, &test.key).unwrap();
            let mut in_place = sealed.clone();
            let opened = aead::LessSafeKey::new(key)
                .open_in_place(
                    aead::Nonce::assume_unique_for_key(nonce),
                    aead::Aad::from(&test.aad[..]),
                    &mut in_place,
                )
                .ok()
                .map(|opened| opened.to_vec());
            assert_eq!(opened, expected, "test {}: {}", test.tc_id, test.comment);
            *counts.entry("through ring").or_default() += 1;
            // Noise's cipher can express a nonce whose first four bytes are zero.
            if let [0, 0, 0, 0, counter @ ..] = nonce {
                let counter = u64::from_le_bytes(counter);
                let mut cipher = Resolver::seeded([0; 32]).resolve_cipher(&CipherChoice::ChaChaPoly).unwrap();
                cipher.set(test.key[..].try_into().unwrap());
                let mut out = vec![0; sealed.len()];
                let opened = cipher.decrypt(counter, &test.aad, &sealed, &mut out).ok();
                assert_eq!(opened.map(|length| out[..length].to_vec()), expected, "test {}", test.tc_id);
                if let Some(plain) = expected {
                    let mut out = vec![0; plain.len() + 16];
                    cipher.encrypt(counter, &test.aad, &plain, &mut out);
                    assert_eq!(out, sealed, "test {}", test.tc_id);
                }
                *counts.entry("through noise").or_default() += 1;
            }
        }
    }
    println!("chacha20-poly1305: {counts:?}");
    assert!(counts["through ring"] > 200 && counts["through noise"] > 0, "the set was there");
}

#[test]
fn noise_with_our_primitives_is_that_of_cacophony() {
    let vectors = vectors(include_str!("../vectors/outside/noise-cacophony.json"));
    assert_eq!(vectors.len(), 2);
    for vector in vectors {
        let side = |who: &str, seed| {
            let params = vector["protocol_name"].as_str().unwrap().parse().unwrap();
            let keys: Vec<Vec<u8>> = ["prologue", "static", "ephemeral", "remote_static"]
                .map(|key| hex(&vector[format!("{who}_{key}")]))
                .to_vec();
            let mut builder = snow::Builder::with_resolver(params, Box::new(Resolver::seeded([seed; 32])))
                .prologue(&keys[0])
                .and_then(|builder| builder.local_private_key(&keys[1]))
                .unwrap()
                .fixed_ephemeral_key_for_testing_only(&keys[2]);
            if !keys[3].is_empty() {
                builder = builder.remote_public_key(&keys[3]).unwrap();
            }
            if who == "init" { builder.build_initiator() } else { builder.build_responder() }.unwrap()
        };
        let mut handshake = [side("init", 1), side("resp", 2)];
        let mut messages = vector["messages"].as_array().unwrap().iter().enumerate();
        let mut out = vec![0; 65_535];
        while !handshake[0].is_handshake_finished() {
            let (n, message) = messages.next().unwrap();
            let (payload, expected) = (hex(&message["payload"]), hex(&message["ciphertext"]));
            let length = handshake[n % 2].write_message(&payload, &mut out).unwrap();
            assert_eq!(out[..length], expected);
            let length = handshake[1 - n % 2].read_message(&expected, &mut out).unwrap();
            assert_eq!(out[..length], payload);
        }
        for side in &handshake {
            assert_eq!(side.get_handshake_hash(), hex(&vector["handshake_hash"]));
        }
        let transport = handshake.map(|side| side.into_stateless_transport_mode().unwrap());
        let mut nonces = [0, 0];
        for (n, message) in messages {
            let (payload, expected) = (hex(&message["payload"]), hex(&message["ciphertext"]));
            let nonce = nonces[n % 2];
            nonces[n % 2] += 1;
            let length = transport[n % 2].write_message(nonce, &payload, &mut out).unwrap();
            assert_eq!(out[..length], expected);
            let length = transport[1 - n % 2].read_message(nonce, &expected, &mut out).unwrap();
            assert_eq!(out[..length], payload);
        }
    }
}

#[test]
fn peer_ids_are_those_of_libp2p() {
    for vector in vectors(include_str!("../vectors/outside/libp2p-peer-ids.json")) {
        let protobuf = hex(&vector["public_protobuf"]);
        let key = PublicKey::from_bytes(protobuf[4..].try_into().unwrap()).unwrap();
        let theirs = libp2p_identity::PublicKey::try_decode_protobuf(&protobuf).unwrap().to_peer_id();
        assert_eq!(key.to_peer_id()[..], theirs.to_bytes(), "{vector}");
        assert_eq!(PublicKey::from_peer_id(&theirs.to_bytes()), Some(key));
        if let Some(text) = vector["peer_id"].as_str() {
            assert_eq!(theirs.to_string(), text);
        }
        if let [0x08, 0x01, 0x12, 0x40, seed @ ..] = &hex(&vector["private_protobuf"])[..] {
            assert_eq!(SecretKey::from_seed(seed[..32].try_into().unwrap()).public(), key);
        }
    }
    for n in 0..20 {
        let seed = sha256(&[n]);
        let theirs = libp2p_identity::Keypair::ed25519_from_bytes(seed).unwrap();
        let ours = SecretKey::from_seed(&seed);
        assert_eq!(ours.public().to_peer_id()[..], theirs.public().to_peer_id().to_bytes());
        assert_eq!(theirs.sign(b"both").unwrap(), ours.sign(b"both"));
    }
}

#[test]
fn signatures_cover_what_cose_says() {
    for vector in vectors(include_str!("../vectors/outside/cose-wg.json")) {
        let (aad, payload) = (hex(&vector["external_aad"]), hex(&vector["payload"]));
        let ours = sig_structure(&aad, &payload);
        // The header's one differing byte, where the example is of another algorithm.
        let mut expected = hex(&vector["to_be_signed"]);
        let at = expected.windows(3).position(|part| part == hex(&vector["protected"])).unwrap();
        expected[at..at + 3].copy_from_slice(&PROTECTED);
        assert_eq!(ours, expected, "{vector}");
        // And the second implementation reads the example as its authors meant it.
        let theirs =
            <coset::CoseSign1 as coset::TaggedCborSerializable>::from_tagged_slice(&hex(&vector["cbor"]))
                .unwrap();
        assert_eq!(theirs.tbs_data(&aad), hex(&vector["to_be_signed"]));
    }
}

#[test]
fn coset_makes_and_verifies_the_same_objects() {
    use coset::CborSerializable as _;
    use kos_protocol::{
        cbor,
        key_log::KeyEvent,
        object::{Scope, Signed},
    };
    let key = SecretKey::from_seed(&[1; 32]);
    let event =
        KeyEvent { seq: 0, prev: None, key: key.public(), next: serde_bytes::ByteArray::new([2; 32]) };
    let ours = Signed::sign(event.clone(), Scope::Global, &key).unwrap();
    let aad = b"kos/key-event/1";
    let header = coset::HeaderBuilder::new().algorithm(coset::iana::Algorithm::EdDSA).build();
    let theirs = coset::CoseSign1Builder::new()
        .protected(header)
        .payload(cbor::encode(&event))
        .create_signature(aad, |message| key.sign(message).to_vec())
        .build();
    let parsed = coset::CoseSign1::from_slice(ours.bytes()).unwrap();
    let verified = parsed.verify_signature(aad, |signature, message| {
        key.public().verify(message, signature.try_into().unwrap())
    });
    assert_eq!(verified, Ok(()));
    assert_eq!(sha256(&parsed.tbs_data(aad)), *ours.id().as_bytes());
    assert_eq!(theirs.to_vec().unwrap(), ours.bytes());
    assert!(
        Signed::<KeyEvent>::verify(
            ours.bytes(),
            Scope::Federation(FederationId::from_bytes([0; 32])),
            &key.public()
        )
        .is_err()
    );
}
