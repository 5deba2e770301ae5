//! The discovery secret: what members know and others do not, from which topics and DHT keys are derived.
//!
//! It is no act, because acts can be shown to anybody. It travels in sealed sessions, to active members only.

use hmac::{Hmac, KeyInit, Mac};
use kos_protocol::{
    id::{MemberId, sha256},
    object::Object,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use std::fmt;
use zeroize::Zeroize;

/// A discovery secret, signed by the steward who drew it. Domain `kos/discovery-secret/1`. Wiped when dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscoverySecret {
    /// How many removals it takes into account: a removal makes every earlier secret out of date.
    pub epoch: u64,
    /// 32 random bytes.
    pub secret: ByteArray<32>,
    /// The steward who drew it.
    pub author: MemberId,
    /// The number of the steward's key that signs.
    pub key_seq: u64,
}

impl Object for DiscoverySecret {
    const DOMAIN: &'static str = "kos/discovery-secret/1";
    const BYTES_MAX: usize = 512;
}

impl DiscoverySecret {
    /// The name of a topic or DHT key on one day: HMAC-SHA256(secret, name ‖ 0 ‖ day) in hex.
    ///
    /// `day` counts days since 1970; around midnight a node uses two of them.
    pub fn derive(&self, name: &str, day: u64) -> String {
        let mut mac =
            Hmac::<sha2::Sha256>::new_from_slice(&*self.secret).expect("HMAC takes keys of any length");
        mac.update(name.as_bytes());
        mac.update(&[0]);
        mac.update(&day.to_be_bytes());
        data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes())
    }

    /// Whether everybody uses this one rather than `other`: the higher epoch, then the smaller hash.
    pub fn wins_over(&self, other: &Self) -> bool {
        let order = |secret: &Self| (std::cmp::Reverse(secret.epoch), sha256(&*secret.secret));
        order(self) < order(other)
    }
}

impl Drop for DiscoverySecret {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl fmt::Debug for DiscoverySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiscoverySecret(epoch {}, by {})", self.epoch, self.author.short())
    }
}

/// The day of [`DiscoverySecret::derive`] at a wall time.
pub fn day_of(wall_ms: u64) -> u64 {
    wall_ms / (24 * 60 * 60 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(epoch: u64, byte: u8) -> DiscoverySecret {
        let author = MemberId::from_bytes([1; 32]);
        DiscoverySecret { epoch, secret: ByteArray::new([byte; 32]), author, key_seq: 0 }
    }

    #[test]
    fn names_differ_by_secret_name_and_day() {
        let name = secret(0, 1).derive("records", 20_000);
        assert_eq!(name.len(), 64);
        assert_ne!(name, secret(0, 2).derive("records", 20_000));
        assert_ne!(name, secret(0, 1).derive("record", 20_000));
        assert_ne!(name, secret(0, 1).derive("records", 20_001));
    }

    #[test]
    fn of_two_secrets_everybody_picks_the_same() {
        assert!(secret(1, 9).wins_over(&secret(0, 1)));
        assert!(secret(0, 1).wins_over(&secret(0, 2)) != secret(0, 2).wins_over(&secret(0, 1)));
        assert!(!secret(0, 1).wins_over(&secret(0, 1)));
        assert_eq!(format!("{:?}", secret(0, 7)), "DiscoverySecret(epoch 0, by 0101010101)");
    }
}
