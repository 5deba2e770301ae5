//! Agents of this node: how they are called ([`Agent`]), kept ([`Host`]), and what the built-in ones do.
//!
//! Their rules are in `kos-agents`, which knows no socket; here they are carried out.

mod bridge;
mod host;
mod sentinel;
mod shares;
mod terms;
#[cfg(test)]
mod tests;

pub use bridge::HttpBridge;
pub use host::{
    Admitted, AgentView, CALLS_FEW, CALLS_PER_AGENT_MAX, CALLS_PER_MEMBER_MAX, CALLS_RESERVED, Denial,
    Denied, Host, HostError, Launcher, StartBridge,
};
pub use sentinel::Sentinel;

use kos_mesh::link::{Pending, RecvHalf, SendHalf};
use kos_protocol::{id::MemberId, message::Head};
use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half-way through a change: an agent's own panic happens outside these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One call: who, what, and the streams of its bodies.
pub struct Call {
    /// The calling member.
    pub caller: MemberId,
    /// What for.
    pub head: Head,
    /// The request's body.
    pub recv: RecvHalf,
    /// The answer.
    pub send: SendHalf,
}

/// Something that answers calls. Bodies stream both ways; halves dropped without an end are answered `internal`.
pub trait Agent: Send + Sync + 'static {
    /// Answers one call; many run at once. A call that is dropped was given up: by its caller, because the caller was
    /// removed, or because the agent was stopped. A panic fails the agent, which is then started again.
    fn call(&self, call: Call) -> Pending<'_, ()>;

    /// What the agent does beside calls. It returns, with the reason, only when it has failed and shall be started
    /// again.
    fn run(&self) -> Pending<'_, String> {
        Box::pin(std::future::pending())
    }
}
