//! At most once: requests with an idempotency key on their way to what answers them. SPEC §8.2.
//!
//! What to do with one is decided by [`Outcomes`]. Here its orders go to the ledger, in their order; a request that may
//! run waits until it is on record, and its answer is kept while it goes out.

use crate::{
    intents::is_replay_safe,
    keep::{Keeper, Row as Kept, outcome_key},
    state::{State, lock},
    tables::OUTCOMES,
};
use kos_mesh::link::{Deed, Request, Sent};
use kos_protocol::{
    id::MemberId,
    limits::OUTCOME_REPLY_BYTES_MAX,
    message::Status,
    outcomes::{Answer, Asked, Decision, Key, Outcomes, Output, Reply, Row},
};
use kos_store::ReadError;
use serde_bytes::ByteBuf;
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// How long a request with a key goes on when its caller has gone, so that it finds an answer when it asks again.
const GRACE: Duration = Duration::from_secs(60);

/// Every idempotency key in use, and the way of its row into the ledger.
pub(crate) struct Once(Arc<Inner>);

struct Inner {
    state: Arc<State>,
    keeper: Keeper,
    outcomes: Mutex<Outcomes>,
}

impl Once {
    /// With what an earlier run of this node left.
    pub fn open(state: Arc<State>, keeper: Keeper) -> Result<Self, ReadError> {
        let (now, mut outcomes) = (state.now(), Outcomes::new());
        for row in state.ledger.range(OUTCOMES, ..)? {
            let ((caller, request), bytes) = row?;
            let key = Key { caller: MemberId::from_bytes(caller), request };
            if let Err(error) = outcomes.restore(now, key, &bytes) {
                tracing::error!(%error, caller = %key.caller, "what became of a request cannot be read; it is not run again");
            }
        }
        let once = Self(Arc::new(Inner { state, keeper, outcomes: Mutex::new(outcomes) }));
        once.expire();
        Ok(once)
    }

    /// Forgets what is over.
    pub fn expire(&self) {
        let now = self.0.state.now();
        self.0.change(|outcomes| outcomes.expire(now));
    }

    /// Lets a request through that may run now; one without a key, or whose key is of no meaning, always. Any other is
    /// answered here.
    pub async fn pass(&self, request: Request) -> Option<Request> {
        if is_replay_safe(&request.head.intent) {
            return Some(request);
        }
        let caller = &request.caller;
        let asked = caller.member.and_then(|member| Asked::by(member, &caller.federation, &request.head));
        let Some(asked) = asked else { return Some(request) };
        let now = self.0.state.now();
        let end = match self.0.change(|outcomes| outcomes.ask(now, &asked)) {
            Decision::Run => return self.begin(asked.key(), request).await,
            Decision::Replay => return self.replay(&asked.key(), request).await,
            decision => decision.refusal().expect("what neither runs nor is replayed is refused"),
        };
        answered(request.send.end(&end).await);
        None
    }

    /// The request runs when it is on record, and its answer is kept.
    async fn begin(&self, key: Key, mut request: Request) -> Option<Request> {
        let begun = Begun { inner: self.0.clone(), key, is_over: false };
        if let Err(error) = self.0.keeper.settle().await {
            tracing::warn!(%error, "a request with a key was refused: it could not be recorded");
            drop(begun);
            let text = "not executed: the idempotency key could not be recorded";
            answered(request.send.refuse(Status::Unavailable, text).await);
            return None;
        }
        request.recv.outlive(GRACE);
        request.send.record(OUTCOME_REPLY_BYTES_MAX, Box::new(move |sent| begun.end(sent)));
        Some(request)
    }

    async fn replay(&self, key: &Key, request: Request) -> Option<Request> {
        let unknown = || (None, Decision::Unknown.refusal().expect("an unknown outcome is refused"));
        let (reply, end) = self.row(key).map_or_else(unknown, Row::into_answer);
        let mut send = request.send;
        let sending = async {
            if let Some(reply) = &reply {
                send.head(&reply.head())?;
                send.data(&reply.body).await?;
            }
            send.end(&end).await
        };
        answered(sending.await);
        None
    }

    fn row(&self, key: &Key) -> Option<Row> {
        let bytes = match self.0.keeper.unwritten(&Kept::Outcome(*key)) {
            Some(unwritten) => unwritten,
            None => self.0.state.ledger.read(OUTCOMES, &outcome_key(key)).ok().flatten(),
        };
        Row::decode(&bytes?).ok()
    }
}

fn answered(outcome: Result<(), kos_mesh::link::StreamError>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "an answer was not delivered");
    }
}

impl Inner {
    /// Changes what is known; what that orders is on its way into the ledger when this returns.
    fn change<T>(&self, change: impl FnOnce(&mut Outcomes) -> T) -> T {
        // Held until the orders are handed on, or two tasks could hand them on in another order.
        let mut outcomes = lock(&self.outcomes);
        let changed = change(&mut outcomes);
        while let Some(output) = outcomes.poll_output() {
            self.keeper.put([match output {
                Output::Persist { key, bytes } => (Kept::Outcome(key), Some(bytes)),
                Output::Forget { key } => (Kept::Outcome(key), None),
            }]);
        }
        changed
    }
}

/// A request that may run. Dropped without an end, it was not begun.
struct Begun {
    inner: Arc<Inner>,
    key: Key,
    is_over: bool,
}

impl Begun {
    fn end(mut self, sent: Sent) {
        self.is_over = true;
        let key = self.key;
        self.inner.change(|outcomes| match (sent.end, sent.deed, sent.head, sent.body) {
            (_, Deed::NotBegun, ..) => outcomes.not_begun(key),
            (None, ..) => outcomes.lost(key),
            (Some(end), _, None, _) => outcomes.finish(key, Answer::Refusal, end),
            (Some(end), _, Some(_), None) => outcomes.finish(key, Answer::TooLong, end),
            (Some(end), _, Some(head), Some(body)) => {
                let reply = Reply { params: head.params, body: ByteBuf::from(body) };
                outcomes.finish(key, Answer::Whole(reply), end);
            }
        });
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.change(|outcomes| outcomes.not_begun(self.key));
        }
    }
}

#[cfg(test)]
mod tests;
