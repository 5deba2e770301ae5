//! Members with keys, and what they publish.

use kos_directory::{Authors, NodeRecord};
use kos_protocol::{
    id::{FederationId, MemberId, sha256},
    key::{PublicKey, SecretKey},
    key_log::KeyLog,
    limits::RECORD_LIFE_MS_MAX,
    object::{Scope, Signed},
};
use std::collections::BTreeMap;

/// When every simulation begins, in wall milliseconds.
pub const T0_MS: u64 = 1_800_000_000_000;

/// Somebody.
#[derive(Clone, Debug)]
pub struct Person {
    /// The key.
    pub key: SecretKey,
    /// Where it comes from.
    pub log: KeyLog,
}

impl Person {
    /// The person with a number.
    pub fn numbered(number: usize) -> Self {
        let seed = |purpose: &[u8]| sha256(&[purpose, &(number as u64).to_be_bytes()].concat());
        let (key, next) = (SecretKey::from_seed(&seed(b"key")), SecretKey::from_seed(&seed(b"next")));
        Self { log: KeyLog::incept(&key, &next.public()), key }
    }

    /// The member id.
    pub fn id(&self) -> MemberId {
        self.log.member()
    }
}

/// Members who stay, all with their first keys: a roster for networks too large for one each.
#[derive(Debug, Default)]
pub struct Everybody(BTreeMap<MemberId, PublicKey>);

impl FromIterator<(MemberId, PublicKey)> for Everybody {
    fn from_iter<T: IntoIterator<Item = (MemberId, PublicKey)>>(members: T) -> Self {
        Self(members.into_iter().collect())
    }
}

impl Authors for Everybody {
    fn key_of(&self, member: &MemberId, key_seq: u64) -> Option<PublicKey> {
        self.0.get(member).filter(|_| key_seq == 0).copied()
    }

    fn is_author(&self, member: &MemberId) -> bool {
        self.0.contains_key(member)
    }
}

/// A node's record of about `bytes`, signed.
pub fn node_record(
    person: &Person,
    federation: FederationId,
    seq: u64,
    time_ms: u64,
    bytes: usize,
    left: bool,
) -> Signed<NodeRecord> {
    // A record with no address has about 280 bytes, and every address a prefix.
    let addresses =
        (0..bytes.saturating_sub(290).div_ceil(100)).map(|n| format!("/dns/{n:03}{}", "x".repeat(88)));
    let record = NodeRecord {
        author: person.id(),
        key_seq: 0,
        seq,
        time_ms,
        expires_ms: time_ms + RECORD_LIFE_MS_MAX,
        name: format!("node-{}", seq % 1_000),
        addresses: addresses.collect(),
        relays: Vec::new(),
        version: semver::Version::new(0, 1, 0),
        features: Vec::new(),
        left,
    };
    Signed::sign(record, Scope::Federation(federation), &person.key)
        .expect("it is below the limit of a record")
}
