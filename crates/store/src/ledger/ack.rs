//! The promise that a batch is durable: a future that needs no runtime, and can be waited for without one.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::writer::CommitError;

/// The outcome of a commit, once there is one. A future for any runtime; [`Durable::wait`] blocks instead.
#[must_use = "a batch is durable only when this says so"]
pub struct Durable {
    slot: Arc<Slot>,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    answer: Option<Result<(), CommitError>>,
    waker: Option<Waker>,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's end. Dropped without an answer, it answers that the ledger is closed, so nobody waits for ever.
pub(super) struct Answer {
    slot: Option<Arc<Slot>>,
}

pub(super) fn pair() -> (Answer, Durable) {
    let slot = Arc::new(Slot::default());
    (Answer { slot: Some(slot.clone()) }, Durable { slot })
}

impl Durable {
    /// An outcome known at once.
    pub(super) fn answered(answer: Result<(), CommitError>) -> Self {
        let (to, durable) = pair();
        to.give(answer);
        durable
    }

    /// Blocks until the batch is durable or refused.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn wait(self) -> Result<(), CommitError> {
        let mut state = self.slot.state();
        loop {
            if let Some(answer) = state.answer.take() {
                return answer;
            }
            state = self.slot.answered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Future for Durable {
    type Output = Result<(), CommitError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.state();
        match state.answer.clone() {
            Some(answer) => Poll::Ready(answer),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Answer {
    pub(super) fn give(mut self, answer: Result<(), CommitError>) {
        self.give_once(answer);
    }

    fn give_once(&mut self, answer: Result<(), CommitError>) {
        let Some(slot) = self.slot.take() else { return };
        let waker = {
            let mut state = slot.state();
            state.answer = Some(answer);
            state.waker.take()
        };
        slot.answered.notify_all();
        // Outside the lock: a waker is foreign code.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.give_once(Err(CommitError::Closed));
    }
}
