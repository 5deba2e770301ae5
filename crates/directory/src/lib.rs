//! What nodes, agents and services there are: a set of signed records, the same at every member once they have spoken.
//!
//! Each record belongs to a [`Slot`] (author, kind, name within the kind). In a slot the highest sequence number
//! wins, then the smaller id, so records merge in any order to the same directory. A record lives until it expires,
//! until its author leaves, or until the author's key is replaced; a gone agent leaves a tombstone until then.
//! Records of kinds this version does not know are verified, kept and forwarded like all others, because every kind
//! has the same [`Header`].
//!
//! Not here: who may write (told through [`Authors`]), and spreading.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod accounts;
pub mod contract;
pub mod liveness;
pub mod merge;
pub mod reconcile;
pub mod record;
pub mod search;

pub use accounts::{Account, Accounts};
pub use merge::{Authors, Directory, Found, MergeError, Merged, Screened, Source, Stats};
pub use record::{
    AgentCert, AgentRecord, Capability, Claim, Content, Entry, Header, Kind, LinkRecord, MeasuredLink,
    NodeRecord, Record, ServiceRecord, Slot, SuspectRecord, Verified,
};
pub use search::{Completeness, Freshness, Health, Hits, Query, QueryError};
