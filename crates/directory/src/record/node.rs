//! Nodes.

use super::{Entry, Header, check, is_word};
use crate::merge::MergeError;
use kos_protocol::{
    id::{MemberId, check_name},
    limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, RECORD_BYTES_MAX, RECORD_CAPABILITIES_MAX},
    object::Object,
};
use serde::{Deserialize, Serialize};

/// Where a member's node can be reached and what it can do. One for each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Whose node.
    pub author: MemberId,
    /// As in [`Header`].
    pub key_seq: u64,
    /// As in [`Header`].
    pub seq: u64,
    /// As in [`Header`].
    pub time_ms: u64,
    /// As in [`Header`].
    pub expires_ms: u64,
    /// What the node calls itself; the roster's name is the one that counts.
    pub name: String,
    /// Where it listens, multiaddr texts, best first.
    pub addresses: Vec<String>,
    /// Through whom it can be reached.
    pub relays: Vec<MemberId>,
    /// The version of its program.
    pub version: semver::Version,
    /// What it can do beyond the basics, names of up to `NAME_BYTES_MAX` bytes.
    pub features: Vec<String>,
    /// Whether it was stopped on purpose: it is away, not down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
}

impl Object for NodeRecord {
    const DOMAIN: &'static str = "kos/node-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for NodeRecord {
    const KIND: &'static str = "node-record";
    fn header(&self) -> Header {
        let Self { author, key_seq, seq, time_ms, expires_ms, .. } = *self;
        Header { author, key_seq, slot: String::new(), seq, time_ms, expires_ms }
    }
}

impl NodeRecord {
    pub(super) fn check(&self) -> Result<(), MergeError> {
        let is_address = |text: &String| {
            (1..=ADDRESS_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        check(check_name(&self.name).is_ok(), "name")?;
        check(self.addresses.len() <= ADDRESSES_MAX && self.addresses.iter().all(is_address), "addresses")?;
        check(self.relays.len() <= ADDRESSES_MAX, "relays")?;
        let features_fit = self.features.iter().all(|feature| is_word(feature));
        check(self.features.len() <= RECORD_CAPABILITIES_MAX && features_fit, "features")
    }
}
