//! Agents and their certificates.

use super::{Entry, Header, check, is_word};
use crate::merge::MergeError;
use kos_protocol::{
    id::{AgentId, FederationId, MemberId},
    key::PublicKey,
    limits::{CLOCK_SKEW_MS_MAX, DESCRIPTION_BYTES_MAX, RECORD_BYTES_MAX, RECORD_CAPABILITIES_MAX},
    object::{Object, Scope, Unverified},
    text::is_display_safe,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Something an agent can do, with the version of how it does it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    /// Its name, up to `NAME_BYTES_MAX` bytes.
    pub name: String,
    /// Its version.
    pub version: semver::Version,
}

/// A member's word that an agent is its own. Domain `kos/agent-cert/1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCert {
    /// The agent's own key.
    pub agent_key: PublicKey,
    /// Class and name.
    pub agent: AgentId,
    /// What it may say it can do, names.
    pub capabilities: Vec<String>,
    /// From when, in wall milliseconds.
    pub not_before_ms: u64,
    /// Until when, in wall milliseconds.
    pub until_ms: u64,
    /// Whose agent.
    pub member: MemberId,
    /// The number of the member's key that signs. A certificate ends when that key is replaced.
    pub key_seq: u64,
}

impl Object for AgentCert {
    const DOMAIN: &'static str = "kos/agent-cert/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX / 2;
}

/// An agent that can be called. One for each agent of each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Whose agent.
    pub author: MemberId,
    /// As in [`Header`].
    pub key_seq: u64,
    /// Class and name; the slot.
    #[serde(rename = "slot")]
    pub agent: AgentId,
    /// As in [`Header`].
    pub seq: u64,
    /// As in [`Header`].
    pub time_ms: u64,
    /// As in [`Header`].
    pub expires_ms: u64,
    /// The envelope of its [`AgentCert`]; none in a tombstone: the agent is gone.
    #[serde(deserialize_with = "Option::deserialize")]
    pub cert: Option<ByteBuf>,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// For people.
    pub description: String,
    /// How it is spoken to, for instance `http`.
    pub protocol: String,
}

impl AgentRecord {
    /// Whether it only says that the agent is gone.
    pub fn is_tombstone(&self) -> bool {
        self.cert.is_none()
    }

    pub(super) fn check(&self) -> Result<(), MergeError> {
        let names_fit = self.capabilities.iter().all(|capability| is_word(&capability.name));
        check(self.capabilities.len() <= RECORD_CAPABILITIES_MAX && names_fit, "capabilities")?;
        let is_text = self.description.len() <= DESCRIPTION_BYTES_MAX && is_display_safe(&self.description);
        check(is_text, "description")?;
        check(is_word(&self.protocol), "protocol")
    }

    /// The key in its certificate, if it has one, checked with the author's `key`; costs a signature check.
    pub(super) fn certified_key(
        &self,
        federation: FederationId,
        key: &PublicKey,
    ) -> Result<Option<[u8; 32]>, MergeError> {
        let Some(bytes) = &self.cert else { return Ok(None) };
        let fault = MergeError::BadCert { author: self.author };
        let Ok(cert) = Unverified::<AgentCert>::parse(bytes, Scope::Federation(federation)) else {
            return Err(fault);
        };
        let claim = cert.claim();
        let covers = (claim.member, claim.key_seq, &claim.agent) == (self.author, self.key_seq, &self.agent)
            && claim.not_before_ms <= self.time_ms.saturating_add(CLOCK_SKEW_MS_MAX)
            && claim.until_ms >= self.expires_ms
            && self.capabilities.iter().all(|capability| claim.capabilities.contains(&capability.name));
        if !covers || cert.check(key).is_err() {
            return Err(fault);
        }
        Ok(Some(*claim.agent_key.as_bytes()))
    }
}

impl Object for AgentRecord {
    const DOMAIN: &'static str = "kos/agent-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for AgentRecord {
    const KIND: &'static str = "agent-record";
    fn header(&self) -> Header {
        let Self { author, key_seq, seq, time_ms, expires_ms, .. } = *self;
        Header { author, key_seq, slot: self.agent.to_string(), seq, time_ms, expires_ms }
    }
}
