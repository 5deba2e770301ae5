//! Calls held against the contracts of the services that their agent answers. SPEC §9.16.
//!
//! The head is held against them when the call is admitted; the body, where a contract describes it, before the agent
//! sees anything of the call. Only such bodies are collected.

use super::shares::{Bounds, Share, Shares};
use bytes::Bytes;
use kos_agents::http::HttpRequest;
use kos_directory::contract::{Caller, Checked, Violation};
use kos_governance::act::Role;
use kos_mesh::link::RecvHalf;
use kos_protocol::{
    id::MemberId,
    limits::CHECKED_BODY_BYTES_MAX,
    message::{End, Head, Status},
};
use std::{num::NonZeroUsize, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Bytes of bodies that are collected and checked at once, of all agents together.
const BODIES: Bounds = Bounds {
    all: 32 * 1024 * 1024,
    per_member: 4 * 1024 * 1024,
    reserved: 8 * 1024 * 1024,
    few: CHECKED_BODY_BYTES_MAX,
};
/// How long the next part of such a body may be in coming; as long as the next part of any.
const PART_TIMEOUT: Duration = Duration::from_millis(kos_agents::manifest::Bridge::ANSWER_MS as u64);
/// When a caller for whose body there is no room may come back.
const RETRY_AFTER_MS: u32 = 1_000;

/// What a call comes under: the contracts of its agent that list it.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    method: String,
    path: String,
    contracts: Vec<Checked>,
}

impl Terms {
    /// Holds the head of a call against the contracts of its agent; none where it has none, so that everything goes. A
    /// call that several of them list has to be what each of them says.
    ///
    /// # Errors
    /// What it is answered with.
    pub fn of(mut contracts: Vec<Checked>, role: Role, head: &Head) -> Result<Option<Self>, End> {
        let Some(first) = contracts.first().cloned() else { return Ok(None) };
        let request = HttpRequest::decode(&head.params)
            .map_err(|error| End::because(Status::Invalid, error.to_string()))?;
        let HttpRequest { method, path, .. } = request;
        contracts.retain(|contract| contract.offers(&method, &path));
        let key = head.idempotency_key.as_deref().map(Vec::as_slice);
        let held = match contracts.is_empty() {
            true => first.validate_request(&method, &path, b""),
            false => contracts.iter().try_for_each(|contract| contract.admit(caller(role), key)),
        };
        held.map_err(|violation| refusal(&violation))?;
        Ok(Some(Self { method, path, contracts }))
    }

    /// The longest body that can be what the contracts say; none where none of them describes it.
    fn body_bytes_max(&self) -> Option<usize> {
        let limits =
            self.contracts.iter().map(|contract| contract.request_bytes_max(&self.method, &self.path));
        limits.flatten().min()
    }

    fn validate(&self, body: &[u8]) -> Result<(), Violation> {
        self.contracts
            .iter()
            .try_for_each(|contract| contract.validate_request(&self.method, &self.path, body))
    }
}

fn caller(role: Role) -> Caller {
    match role {
        Role::Member => Caller::Member,
        Role::Relay => Caller::Relay,
        Role::Steward => Caller::Steward,
    }
}

fn refusal(violation: &Violation) -> End {
    End::because(violation.status(), violation.to_string())
}

/// Why a body did not pass.
pub(super) enum NotPassed {
    /// It is not what its contract says.
    Violated(End),
    /// It did not arrive, or there was no room for it.
    NotTaken(End),
}

/// Collects and checks bodies, a bounded number of bytes and of checks at once.
pub(super) struct Checks {
    room: Arc<Shares>,
    turns: Arc<Semaphore>,
}

impl Checks {
    /// As many checks at once as there are processors: a check waits for nothing.
    pub fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { room: Shares::new(BODIES), turns: Arc::new(Semaphore::new(processors)) }
    }

    /// Reads the body of a call, if its contracts describe it, holds it against them, and gives it back to be read again.
    /// Any other stays unread.
    pub async fn pass(&self, member: MemberId, terms: &Terms, recv: &mut RecvHalf) -> Result<(), NotPassed> {
        let Some(bytes_max) = terms.body_bytes_max() else { return Ok(()) };
        let mut share = self.room.open(member);
        let body = collect(recv, &mut share, bytes_max).await?;
        let turn = self.turns.clone().acquire_owned().await;
        let (terms, held) = (terms.clone(), body.clone());
        // Some milliseconds of work at most, kept away from the threads that serve everybody.
        let check = tokio::task::spawn_blocking(move || {
            let outcome = terms.validate(&held);
            // Given back here: the work goes on where the call is given up.
            drop((turn, share));
            outcome
        });
        match check.await {
            Ok(Ok(())) => {
                recv.unread(body);
                Ok(())
            }
            Ok(Err(violation)) => Err(NotPassed::Violated(refusal(&violation))),
            Err(error) => {
                tracing::error!(%error, "a body could not be checked");
                Err(NotPassed::NotTaken(End::because(Status::Internal, "the body could not be checked")))
            }
        }
    }
}

async fn collect(recv: &mut RecvHalf, share: &mut Share, bytes_max: usize) -> Result<Bytes, NotPassed> {
    let not_taken = |status, text: &str| Err(NotPassed::NotTaken(End::because(status, text)));
    let mut body = Vec::new();
    loop {
        match tokio::time::timeout(PART_TIMEOUT, recv.next()).await {
            Ok(Ok(Some(part))) if body.len() + part.len() > bytes_max => {
                let text = format!("the body is above {bytes_max} bytes, the most its contract can check");
                return Err(NotPassed::Violated(End::because(Status::TooLarge, text)));
            }
            Ok(Ok(Some(part))) if share.grow(part.len()) => body.extend_from_slice(&part),
            Ok(Ok(Some(_))) => {
                let busy = End::because(Status::RateLimited, "too many bodies are being checked");
                return Err(NotPassed::NotTaken(End { retry_after_ms: Some(RETRY_AFTER_MS), ..busy }));
            }
            Ok(Ok(None)) if recv.ended().is_some_and(|end| end.status == Status::Ok) => {
                return Ok(body.into());
            }
            Ok(Ok(None) | Err(_)) => return not_taken(Status::Cancelled, "the caller broke off"),
            Err(_) => return not_taken(Status::Timeout, "the caller sends no more of the request"),
        }
    }
}
