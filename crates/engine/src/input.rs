//! What goes into a federation: things that happened.

use crate::{
    item::Item,
    output::{Refusal, Verdict},
};
use kos_directory::{Claim, Entry, MergeError, Verified, liveness};
use kos_governance::act::Act;
use kos_protocol::{
    id::{MemberId, ObjectId},
    key::PublicKey,
    key_log::KeyLog,
    object::Signed,
    time::Timestamp,
};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// An item came, by push or catch-up.
    Heard {
        /// The member that passed it on, where that is known: what is wrong with it is counted against it.
        from: Option<MemberId>,
        /// The item.
        item: &'a [u8],
    },
    /// An item came by gossip, which takes it to everybody: what is to stay near is refused.
    Gossiped {
        /// As above.
        from: Option<MemberId>,
        /// The item.
        item: &'a [u8],
    },
    /// A record came whose signature was checked elsewhere.
    Checked(Checked),
    /// A discovery secret came, given inside a session, or drawn and signed here.
    Secret(&'a [u8]),
    /// This node signed an act that [`crate::Federation::draft_act`] drafted.
    Acted(&'a Signed<Act>),
    /// A key was rotated: this node's own, or that of a member that we know under an older one and that shows us so.
    Rotated(&'a KeyLog),
    /// This node signed a record that begins with [`crate::Federation::stamp`].
    Published(Published<'a>),
    /// A link came or went, a heartbeat came or was answered, a probe came to its end.
    Liveness(liveness::Input),
    /// The time of [`crate::Federation::next_deadline_ms`] has come.
    DeadlineReached,
}

/// A record that was persisted, read again.
#[derive(Clone, Debug)]
pub struct Stored(pub(crate) Verified);

impl Stored {
    /// Reads a row of [`crate::Table::Records`]: the part of restoring it that any thread can do.
    ///
    /// # Errors
    /// [`Refusal`]: damaged, or out of date; it may be forgotten.
    pub fn read(now: Timestamp, bytes: &[u8]) -> Result<Self, Refusal> {
        Ok(Self(Verified::from_row(now, bytes)?))
    }
}

/// A record this node signed.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    pub(crate) kind: &'static str,
    pub(crate) seq: u64,
    pub(crate) id: ObjectId,
    pub(crate) bytes: &'a [u8],
}

impl<'a, T: Entry> From<&'a Signed<T>> for Published<'a> {
    fn from(record: &'a Signed<T>) -> Self {
        Self { kind: T::KIND, seq: record.header().seq, id: record.id(), bytes: record.bytes() }
    }
}

/// What is left to do with an item.
#[derive(Debug)]
pub enum Screened {
    /// Nothing.
    Done(Verdict),
    /// Its signature is to be checked, on any thread; then it is [`Input::Checked`].
    Check(Box<Check>),
}

/// A record whose signature is to be checked.
#[derive(Debug)]
pub struct Check {
    pub(crate) from: Option<MemberId>,
    pub(crate) claim: Claim,
    pub(crate) key: PublicKey,
}

impl Check {
    /// Checks it: one signature, two for an agent.
    pub fn run(self) -> Checked {
        Checked { from: self.from, outcome: self.claim.verify(&self.key) }
    }
}

/// A record whose signature was checked.
#[derive(Clone, Debug)]
pub struct Checked {
    pub(crate) from: Option<MemberId>,
    pub(crate) outcome: Result<Verified, MergeError>,
}

impl Checked {
    /// The record as it travels; none where the signature did not verify.
    pub fn to_item(&self) -> Option<Vec<u8>> {
        let record = self.outcome.as_ref().ok()?.record();
        Some(Item::new(record.kind().as_str(), record.bytes()).to_bytes())
    }
}
