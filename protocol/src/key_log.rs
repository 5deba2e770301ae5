//! The key-event log: who a member is, through every change of its key. SPEC §5.
//!
//! After KERI's pre-rotation: each event commits to the hash of the *next* key, so whoever steals the current key
//! cannot rotate away from its owner. The 24 recovery words are the seed of that next key.

use crate::{
    id::ObjectId,
    id::{MemberId, sha256},
    key::{PublicKey, SecretKey},
    limits::{KEY_EVENT_BYTES_MAX, KEY_EVENTS_MAX},
    object::{Object, ObjectError, Scope, Signed, Unverified},
};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

/// One event: from here on `key` signs, and only the key that hashes to `next` may follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEvent {
    /// Zero at the inception, one more at each rotation.
    pub seq: u64,
    /// The event before; null at the inception, never absent: one meaning has one encoding.
    #[serde(deserialize_with = "Option::deserialize")]
    pub prev: Option<ObjectId>,
    /// The key that signs this event, and all that its member signs until the next one.
    pub key: PublicKey,
    /// SHA-256 of the 32 bytes of the next key.
    pub next: ByteArray<32>,
}

impl Object for KeyEvent {
    const DOMAIN: &'static str = "kos/key-event/1";
    const BYTES_MAX: usize = KEY_EVENT_BYTES_MAX;
}

/// Why a list of events is no key log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyLogError {
    /// An event that is no signed key event.
    #[error("key event {seq}: {error}")]
    Event {
        /// Its place in the list.
        seq: usize,
        /// What is wrong with it.
        error: ObjectError,
    },
    /// An event that does not follow from the one before.
    #[error("key event {seq} does not follow from the one before")]
    Broken {
        /// Its place in the list.
        seq: usize,
    },
    /// No events, or more than a member may have.
    #[error("a key log has 1 to {KEY_EVENTS_MAX} events, this one {0}")]
    Length(usize),
}

/// A verified key log: never empty, every event follows from the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyLog(Vec<Signed<KeyEvent>>);

impl KeyLog {
    /// Begins a member: `current` signs from now on, `next` is the key only its owner can rotate to.
    pub fn incept(current: &SecretKey, next: &PublicKey) -> Self {
        Self(vec![event(0, None, current, next)])
    }

    /// Reads and verifies a list of envelopes.
    ///
    /// # Errors
    /// [`KeyLogError`].
    pub fn parse<B: AsRef<[u8]>>(events: &[B]) -> Result<Self, KeyLogError> {
        if events.is_empty() || events.len() > KEY_EVENTS_MAX {
            return Err(KeyLogError::Length(events.len()));
        }
        let mut log = Self(Vec::with_capacity(events.len()));
        for bytes in events {
            log.push(bytes.as_ref())?;
        }
        Ok(log)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), KeyLogError> {
        let seq = self.0.len();
        let fault = |error| KeyLogError::Event { seq, error };
        let claim = Unverified::<KeyEvent>::parse(bytes, Scope::Global).map_err(fault)?;
        let key = claim.claim().key;
        let event = claim.verify(&key).map_err(|error| fault(error.into()))?;
        let follows = match self.0.last() {
            None => event.prev.is_none(),
            Some(last) => event.prev == Some(last.id()) && sha256(key.as_bytes()) == *last.next,
        };
        if !follows || event.seq != seq as u64 {
            return Err(KeyLogError::Broken { seq });
        }
        self.0.push(event);
        Ok(())
    }

    /// The log with one more event: `next_key` is the key the last event committed to.
    ///
    /// # Errors
    /// [`KeyLogError::Broken`] when it is another key, [`KeyLogError::Length`] when the log is full.
    pub fn rotate(&self, next_key: &SecretKey, after_next: &PublicKey) -> Result<Self, KeyLogError> {
        if self.0.len() >= KEY_EVENTS_MAX {
            return Err(KeyLogError::Length(self.0.len() + 1));
        }
        let mut log = self.clone();
        let event = event(self.0.len() as u64, Some(self.last().id()), next_key, after_next);
        log.push(event.bytes())?;
        Ok(log)
    }

    /// Whom the log is of.
    pub fn member(&self) -> MemberId {
        MemberId::from_bytes(*self.0[0].id().as_bytes())
    }

    /// The key that signs now.
    pub fn current(&self) -> PublicKey {
        self.last().key
    }

    /// The hash the next key must have.
    pub fn next_hash(&self) -> [u8; 32] {
        *self.last().next
    }

    /// How many rotations there were; also the number of the current key.
    pub fn seq(&self) -> u64 {
        self.last().seq
    }

    /// The key with number `seq`.
    pub fn key_at(&self, seq: u64) -> Option<PublicKey> {
        self.0.get(usize::try_from(seq).ok()?).map(|event| event.key)
    }

    /// Whether `self` is `other` with zero or more events added.
    pub fn extends(&self, other: &Self) -> bool {
        self.0.len() >= other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.id() == b.id())
    }

    /// The envelopes, for storing and sending.
    pub fn to_list(&self) -> Vec<ByteBuf> {
        self.0.iter().map(|event| ByteBuf::from(event.bytes())).collect()
    }

    fn last(&self) -> &Signed<KeyEvent> {
        self.0.last().expect("a key log is never empty")
    }
}

fn event(seq: u64, prev: Option<ObjectId>, key: &SecretKey, next: &PublicKey) -> Signed<KeyEvent> {
    let next = ByteArray::new(sha256(next.as_bytes()));
    Signed::sign(KeyEvent { seq, prev, key: key.public(), next }, Scope::Global, key)
        .expect("a key event is far below its limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&[n; 32])
    }

    #[test]
    fn a_member_keeps_its_id_through_rotations() {
        let log = KeyLog::incept(&key(1), &key(2).public());
        let rotated =
            log.rotate(&key(2), &key(3).public()).unwrap().rotate(&key(3), &key(4).public()).unwrap();
        assert_eq!(rotated.member(), log.member());
        assert_eq!(rotated.current(), key(3).public());
        assert_eq!(rotated.key_at(1), Some(key(2).public()));
        assert!(rotated.extends(&log) && !log.extends(&rotated));
        assert_eq!(KeyLog::parse(&rotated.to_list()), Ok(rotated));
    }

    #[test]
    fn only_the_committed_key_can_rotate() {
        let log = KeyLog::incept(&key(1), &key(2).public());
        assert_eq!(
            log.rotate(&key(1), &key(9).public()),
            Err(KeyLogError::Broken { seq: 1 }),
            "a stolen current key"
        );
        assert_eq!(log.rotate(&key(9), &key(9).public()), Err(KeyLogError::Broken { seq: 1 }));
    }

    #[test]
    fn an_event_without_prev_is_no_event() {
        let event = crate::cbor::encode(&serde_json::json!({"seq": 0, "prev": null}));
        let missing = |bytes: &[u8]| {
            let error = crate::cbor::decode_canonical::<KeyEvent>(bytes, KEY_EVENT_BYTES_MAX);
            error.unwrap_err().to_string()
        };
        assert!(missing(&event).contains("missing field `key`"), "{}", missing(&event));
        let whole = KeyEvent { seq: 0, prev: None, key: key(1).public(), next: ByteArray::new([0; 32]) };
        let mut bytes = crate::cbor::encode(&whole);
        let at = bytes.windows(6).position(|part| part == b"\x64prev\xf6").unwrap();
        bytes.drain(at..at + 6);
        bytes[0] -= 1;
        assert!(missing(&bytes).contains("missing field `prev`"), "{}", missing(&bytes));
    }

    #[test]
    fn a_list_out_of_order_or_empty_is_no_log() {
        let log = KeyLog::incept(&key(1), &key(2).public()).rotate(&key(2), &key(3).public()).unwrap();
        let mut list = log.to_list();
        list.swap(0, 1);
        assert_eq!(KeyLog::parse(&list), Err(KeyLogError::Broken { seq: 0 }));
        assert_eq!(KeyLog::parse::<Vec<u8>>(&[]), Err(KeyLogError::Length(0)));
    }
}
