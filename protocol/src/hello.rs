//! What both sides say of themselves in a handshake, and how they agree on a version. SPEC §7.

use crate::{
    cbor::{self, DecodeError},
    id::MemberId,
    key::PublicKey,
    limits::{CAPABILITIES_MAX, HEAD_BYTES_MAX, NAME_BYTES_MAX},
};
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// The wire versions a node speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl Versions {
    /// What this release speaks.
    pub const OURS: Self = Self { min: 1, max: 1 };

    /// The newest version both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{},{}]", self.min, self.max)
    }
}

/// The capability of executing a request that carries an idempotency key at most once. SPEC §8.2.
pub const IDEMPOTENCY: &str = "idempotency";
/// Its version in this release.
pub const IDEMPOTENCY_VERSION: Version = Version::new(1, 0, 0);

/// One side's hello, always sealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions it speaks; the initiator's must be those of its clear preamble.
    pub versions: Versions,
    /// The version in use: from the responder its choice, from the initiator absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u16>,
    /// Who it is.
    pub member: MemberId,
    /// Its current Ed25519 key, whose Curve25519 form is the static key of the handshake.
    pub key: PublicKey,
    /// Persisted and strictly increasing for each member; orders its handshakes.
    pub counter: u64,
    /// From the responder: whether the early data was taken. If not, it must be sent again.
    #[serde(default)]
    pub early_taken: bool,
    /// Capabilities it has, with their versions.
    #[serde(default)]
    pub offers: BTreeMap<String, Version>,
    /// Capabilities it would like the other to have.
    #[serde(default)]
    pub wants: BTreeMap<String, VersionReq>,
    /// Streams it accepts at once from this peer.
    pub streams_max: u32,
    /// Its software, for people: `kos-node/0.1.0`.
    pub agent: String,
}

impl Hello {
    /// Reads a hello and checks it.
    ///
    /// # Errors
    /// [`DecodeError`], also when [`Hello::is_bounded`] does not hold.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let hello: Self = cbor::decode_message(bytes, HEAD_BYTES_MAX)?;
        if hello.is_bounded() {
            Ok(hello)
        } else {
            Err(DecodeError::Malformed("a part of the hello is above its limit".to_owned()))
        }
    }

    /// Whether it executes a request with an idempotency key at most once, as [`IDEMPOTENCY_VERSION`] says it.
    pub fn is_idempotent(&self) -> bool {
        self.offers.get(IDEMPOTENCY).is_some_and(|version| {
            version.major == IDEMPOTENCY_VERSION.major && *version >= IDEMPOTENCY_VERSION
        })
    }

    /// Whether every part is within its limit.
    pub fn is_bounded(&self) -> bool {
        let fits = |name: &String| name.len() <= NAME_BYTES_MAX;
        self.offers.len() <= CAPABILITIES_MAX
            && self.wants.len() <= CAPABILITIES_MAX
            && self.offers.keys().all(fits)
            && self.wants.keys().all(fits)
            && fits(&self.agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_wins() {
        let range = |min, max| Versions { min, max };
        assert_eq!(range(1, 2).common(range(1, 1)), Some(1));
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(2, 2).common(range(1, 1)), None);
    }
}
