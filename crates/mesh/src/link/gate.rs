//! What the links must ask others.

use super::Pending;
use kos_protocol::{
    id::{FederationId, MemberId},
    key::PublicKey,
    session::Local,
};

/// Who holds a key, in one federation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// An active member.
    Member(MemberId),
    /// Nobody we know: may only join.
    Stranger,
    /// A member that was suspended or expelled: may do nothing.
    Removed,
}

/// The links' window on the federation, the ledger and the operating system.
pub trait Gate: Send + Sync + 'static {
    /// What we bring to handshakes in this federation; none when we are not in it.
    fn local(&self, federation: &FederationId) -> Option<Local>;
    /// The federation with this tag, among ours.
    fn federation_by_tag(&self, tag: &[u8; 8]) -> Option<FederationId>;
    /// Who holds `key` now.
    fn standing(&self, federation: &FederationId, key: &PublicKey) -> Standing;
    /// The current key of an active member.
    fn key_of(&self, federation: &FederationId, member: &MemberId) -> Option<PublicKey>;
    /// A counter above all this member ever used; persisted before it is returned.
    fn next_counter(&self) -> Pending<'_, u64>;
    /// Whether `counter` is above all that `peer` used before; if so it is persisted as the greatest.
    fn is_fresh(&self, federation: FederationId, peer: PublicKey, counter: u64) -> Pending<'_, bool>;
    /// 32 bytes from the operating system's random source.
    fn seed(&self) -> [u8; 32];
    /// Whether a request of this intent may be executed twice without harm.
    fn is_replay_safe(&self, intent: &str) -> bool;
}
