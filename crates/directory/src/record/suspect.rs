//! Suspicions: what a watcher says of a member that it lost. The rules are in [`crate::liveness`].

use super::{Entry, Header, as_text, check};
use crate::{liveness::SUSPICION_LIFE_MS, merge::MergeError};
use kos_protocol::{id::MemberId, limits::RECORD_BYTES_MAX, object::Object};
use serde::{Deserialize, Serialize};

/// A watcher's word on a member it lost. One for each pair of them; the newest says whether it still stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspectRecord {
    /// The watcher.
    pub author: MemberId,
    /// As in [`Header`].
    pub key_seq: u64,
    /// Whom it lost; the slot.
    #[serde(rename = "slot", with = "as_text")]
    pub subject: MemberId,
    /// As in [`Header`].
    pub seq: u64,
    /// As in [`Header`].
    pub time_ms: u64,
    /// As in [`Header`].
    pub expires_ms: u64,
    /// The sequence number of the subject's newest node record that the watcher knows, at most `time_ms`; a newer one
    /// refutes.
    pub subject_seq: u64,
    /// Since when nothing was heard, in wall milliseconds; none where the suspicion is withdrawn.
    #[serde(deserialize_with = "Option::deserialize")]
    pub since_ms: Option<u64>,
}

impl Object for SuspectRecord {
    const DOMAIN: &'static str = "kos/suspect-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

impl Entry for SuspectRecord {
    const KIND: &'static str = "suspect-record";
    fn header(&self) -> Header {
        let Self { author, key_seq, seq, time_ms, expires_ms, .. } = *self;
        Header { author, key_seq, slot: self.subject.to_string(), seq, time_ms, expires_ms }
    }
}

impl SuspectRecord {
    pub(super) fn check(&self) -> Result<(), MergeError> {
        check(self.subject != self.author, "slot")?;
        // A number that no record of the subject can have yet could not be refuted.
        check(self.subject_seq <= self.time_ms, "subject_seq")?;
        check(self.expires_ms.saturating_sub(self.time_ms) <= SUSPICION_LIFE_MS, "expires_ms")?;
        check(self.since_ms.is_none_or(|since_ms| since_ms <= self.time_ms), "since_ms")
    }
}
