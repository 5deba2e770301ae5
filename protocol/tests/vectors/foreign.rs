//! KLP's handshake and frames a second time, from SPEC §6 and the Noise specification alone: no line of it is shared
//! with the implementation under test.

use hmac::{Hmac, KeyInit, Mac};
use ring::aead;
use sha2::{Digest, Sha256};
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256>>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn hkdf(chaining_key: &[u8], input: &[u8]) -> ([u8; 32], [u8; 32]) {
    let secret = hmac(chaining_key, &[input]);
    let first = hmac(&secret, &[&[1]]);
    (first, hmac(&secret, &[&first, &[2]]))
}

fn nonce(n: u64) -> aead::Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&n.to_le_bytes());
    aead::Nonce::assume_unique_for_key(bytes)
}

fn cipher(key: &[u8; 32]) -> aead::LessSafeKey {
    aead::LessSafeKey::new(aead::UnboundKey::new(&aead::CHACHA20_POLY1305, key).unwrap())
}

/// One frame of a stream (SPEC §6.5), its length bytes included.
pub fn seal(key: &[u8; 32], stream: u32, frame: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut sealed = vec![kind];
    sealed.extend_from_slice(payload);
    let n = u64::from(stream) << 32 | u64::from(frame);
    cipher(key).seal_in_place_append_tag(nonce(n), aead::Aad::empty(), &mut sealed).unwrap();
    let mut bytes = u16::try_from(sealed.len()).unwrap().to_be_bytes().to_vec();
    bytes.append(&mut sealed);
    bytes
}

/// The kind and payload of a frame, without its length bytes.
pub fn open(key: &[u8; 32], stream: u32, frame: u32, sealed: &[u8]) -> Option<(u8, Vec<u8>)> {
    let n = u64::from(stream) << 32 | u64::from(frame);
    let mut bytes = sealed.to_vec();
    let plain = cipher(key).open_in_place(nonce(n), aead::Aad::empty(), &mut bytes).ok()?;
    let (kind, payload) = plain.split_first()?;
    Some((*kind, payload.to_vec()))
}

/// The `SymmetricState` of Noise.
struct Symmetric {
    chaining_key: [u8; 32],
    hash: [u8; 32],
    key: Option<[u8; 32]>,
    n: u64,
}

impl Symmetric {
    fn mix_hash(&mut self, bytes: &[u8]) {
        self.hash = sha256(&[&self.hash, bytes]);
    }

    fn mix_key(&mut self, secret: [u8; 32], point: [u8; 32]) {
        let (chaining_key, key) = hkdf(&self.chaining_key, &x25519(secret, point));
        (self.chaining_key, self.key, self.n) = (chaining_key, Some(key), 0);
    }

    fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut bytes = plain.to_vec();
        if let Some(key) = self.key {
            cipher(&key)
                .seal_in_place_append_tag(nonce(self.n), aead::Aad::from(self.hash), &mut bytes)
                .unwrap();
            self.n += 1;
        }
        self.mix_hash(&bytes);
        bytes
    }
}

/// What one side brings: its static and its ephemeral secret, as X25519 takes them.
pub struct Side {
    pub fixed: [u8; 32],
    pub ephemeral: [u8; 32],
}

impl Side {
    fn public(&self) -> ([u8; 32], [u8; 32]) {
        (x25519(self.fixed, X25519_BASEPOINT_BYTES), x25519(self.ephemeral, X25519_BASEPOINT_BYTES))
    }
}

/// What a handshake comes to.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// Without their length bytes.
    pub messages: Vec<Vec<u8>>,
    pub hash: [u8; 32],
    pub session_id: [u8; 16],
    /// What the initiator seals with.
    pub initiator_key: [u8; 32],
    /// What the responder seals with.
    pub responder_key: [u8; 32],
}

/// Plays both sides of a handshake. `pattern` is the preamble's byte, 1 for IK and 2 for XX.
pub fn shake(
    pattern: u8,
    prologue: &[u8],
    initiator: &Side,
    responder: &Side,
    payloads: &[Vec<u8>],
) -> Outcome {
    let name: [u8; 32] = *match pattern {
        1 => b"Noise_IK_25519_ChaChaPoly_SHA256",
        _ => b"Noise_XX_25519_ChaChaPoly_SHA256",
    };
    let mut state = Symmetric { chaining_key: name, hash: name, key: None, n: 0 };
    state.mix_hash(prologue);
    let ((i_static, i_ephemeral), (r_static, r_ephemeral)) = (initiator.public(), responder.public());
    let mut messages = Vec::new();
    let mut message = i_ephemeral.to_vec();
    if pattern == 1 {
        state.mix_hash(&r_static);
        state.mix_hash(&i_ephemeral);
        state.mix_key(initiator.ephemeral, r_static);
        message.append(&mut state.seal(&i_static));
        state.mix_key(initiator.fixed, r_static);
    } else {
        state.mix_hash(&i_ephemeral);
    }
    message.append(&mut state.seal(&payloads[0]));
    messages.push(message);

    let mut message = r_ephemeral.to_vec();
    state.mix_hash(&r_ephemeral);
    state.mix_key(responder.ephemeral, i_ephemeral);
    if pattern == 1 {
        state.mix_key(responder.ephemeral, i_static);
    } else {
        message.append(&mut state.seal(&r_static));
        state.mix_key(responder.fixed, i_ephemeral);
    }
    message.append(&mut state.seal(&payloads[1]));
    messages.push(message);

    if pattern == 2 {
        let mut message = state.seal(&i_static);
        state.mix_key(initiator.fixed, r_ephemeral);
        message.append(&mut state.seal(&payloads[2]));
        messages.push(message);
    }
    let (initiator_key, responder_key) = hkdf(&state.chaining_key, &[]);
    let session_id = sha256(&[b"klp/1 session id", &state.hash])[..16].try_into().unwrap();
    Outcome { messages, hash: state.hash, session_id, initiator_key, responder_key }
}
