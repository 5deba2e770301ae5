//! Services: what an agent of a member promises to answer. SPEC §9.16.

use super::{Entry, Header};
use crate::{
    contract::{Checked, Contract},
    merge::MergeError,
};
use kos_protocol::{id::MemberId, limits::RECORD_BYTES_MAX, object::Object};
use serde::{Deserialize, Serialize};

/// A service with its contract. One for each service of each member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    /// Whose service.
    pub author: MemberId,
    /// As in [`Header`].
    pub key_seq: u64,
    /// The service's name; the slot.
    #[serde(rename = "slot")]
    pub name: String,
    /// As in [`Header`].
    pub seq: u64,
    /// As in [`Header`].
    pub time_ms: u64,
    /// As in [`Header`].
    pub expires_ms: u64,
    /// What it promises; none in a tombstone: the service is gone.
    #[serde(deserialize_with = "Option::deserialize")]
    pub contract: Option<Contract>,
}

impl Object for ServiceRecord {
    const DOMAIN: &'static str = "kos/service-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for ServiceRecord {
    const KIND: &'static str = "service-record";
    fn header(&self) -> Header {
        let Self { author, key_seq, seq, time_ms, expires_ms, .. } = *self;
        Header { author, key_seq, slot: self.name.clone(), seq, time_ms, expires_ms }
    }
}

impl ServiceRecord {
    /// Its contract, checked; none in a tombstone.
    pub(super) fn check(self) -> Result<Option<Checked>, MergeError> {
        let Some(contract) = self.contract else { return Ok(None) };
        super::check(contract.name == self.name, "slot")?;
        contract.check_by(self.author).map(Some).map_err(MergeError::Contract)
    }
}
