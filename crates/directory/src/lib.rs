//! What nodes and agents there are: a set of signed records, the same at every member once they have spoken.
//!
//! Each record belongs to a [`Slot`] (author, kind, name within the kind). In a slot the highest sequence number
//! wins, then the smaller id, so records merge in any order to the same directory. A record lives until it expires,
//! until its author leaves, or until the author's key is replaced; a gone agent leaves a tombstone until then.
//! Records of kinds this version does not know are verified, kept and forwarded like all others, because every kind
//! has the same [`Header`].
//!
//! Not here: who may write (told through [`Authors`]), spreading, liveness and ranking.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod merge;
pub mod record;

pub use merge::{Authors, Directory, Found, MergeError, Merged, Stats};
pub use record::{AgentCert, AgentRecord, Capability, Content, Entry, Header, NodeRecord, Record, Slot};
