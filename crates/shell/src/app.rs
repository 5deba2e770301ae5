//! What an application on top of the runtime brings.

use kos_mesh::link::{Caller, Pending, Request};
use kos_protocol::{
    id::{FederationId, MemberId},
    message::{End, Head, Status},
};

/// Something worth a line in the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    /// A member was admitted.
    Admitted {
        /// Where.
        federation: FederationId,
        /// Who.
        member: MemberId,
    },
    /// A member was removed or suspended.
    Removed {
        /// Where.
        federation: FederationId,
        /// Who.
        member: MemberId,
    },
    /// A member has a new key.
    Rotated {
        /// Where.
        federation: FederationId,
        /// Who.
        member: MemberId,
    },
}

/// Something that views of the node may want to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Members came or went.
    Members,
    /// Records changed.
    Directory,
    /// Links came or went.
    Links,
    /// We are no member of this federation any more.
    Removed(FederationId),
    /// A steward claimed this relay; the line it showed is used up.
    Claimed,
    /// Another machine runs with our keys: stop, exit 1 and say so.
    Twin,
}

/// Answers one request that was let in.
pub type Answering = Box<dyn FnOnce(Request) -> Pending<'static, ()> + Send>;

/// The application on top of a [`crate::Runtime`].
pub trait App: Send + Sync + 'static {
    /// Lets a member's request in, of an intent that is not `kos.*`. `caller.member` is always there. Nothing may be
    /// executed before what is returned is called: the request may turn out to be a copy of one that ran already.
    ///
    /// # Errors
    /// What it is refused with. Its idempotency key is not used up by that.
    fn admit(&self, caller: &Caller, head: &Head) -> Result<Answering, End>;
    /// Notes something in the audit log.
    fn audit(&self, event: AuditEvent);
    /// Hears of a change.
    fn changed(&self, change: Change);
}

/// No application: a relay. Refuses every call.
pub struct NoApp;

impl App for NoApp {
    fn admit(&self, _: &Caller, head: &Head) -> Result<Answering, End> {
        let text = format!("this node does not answer `{}`", head.intent.escape_default());
        Err(End::because(Status::NotFound, text))
    }
    fn audit(&self, event: AuditEvent) {
        tracing::info!(?event, "audit");
    }
    fn changed(&self, _: Change) {}
}
