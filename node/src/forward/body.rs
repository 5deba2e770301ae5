//! Response bodies: whole ones of our own, and those that stream in from an exchange.

use super::StreamCut;
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use kos_mesh::link::{RecvHalf, StreamError};
use kos_protocol::message::Status;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// The body of a response to a local client.
pub enum Reply {
    /// Ours.
    Whole(BoxBody<Bytes, StreamCut>),
    /// The agent's.
    Streamed(Inbound),
}

type Reading = Pin<Box<dyn Future<Output = (RecvHalf, Result<Option<Bytes>, StreamError>)> + Send>>;

/// What comes in from an exchange, part by part, only as fast as it is taken.
pub struct Inbound {
    first: Option<Bytes>,
    state: State,
}

enum State {
    Idle(Box<RecvHalf>),
    Reading(Reading),
    Done,
}

impl Inbound {
    /// The body behind a head that was read.
    pub fn new(recv: RecvHalf) -> Self {
        Self::after(None, recv)
    }

    /// As [`Inbound::new`], where one part was taken already.
    pub fn after(first: Option<Bytes>, recv: RecvHalf) -> Self {
        Self { first, state: State::Idle(Box::new(recv)) }
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamCut>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Idle(mut recv) => {
                    self.state = State::Reading(Box::pin(async move {
                        let part = recv.next().await;
                        (*recv, part)
                    }));
                }
                State::Reading(mut reading) => {
                    let Poll::Ready((recv, part)) = reading.as_mut().poll(cx) else {
                        self.state = State::Reading(reading);
                        return Poll::Pending;
                    };
                    return Poll::Ready(match part {
                        Ok(Some(part)) => {
                            self.state = State::Idle(Box::new(recv));
                            Some(Ok(part))
                        }
                        // The body ends cleanly only with the sealed word that it was all of it.
                        Ok(None) => match recv.ended() {
                            Some(end) if end.status == Status::Ok => None,
                            Some(end) => Some(Err(StreamCut(end.to_string()))),
                            None => Some(Err(StreamCut("no end".to_owned()))),
                        },
                        Err(error) => Some(Err(StreamCut(error.to_string()))),
                    });
                }
                State::Done => return Poll::Ready(None),
            }
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = StreamCut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamCut>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Streamed(inbound) => {
                Poll::Ready(ready!(inbound.poll_part(cx)).map(|part| part.map(Frame::data)))
            }
        }
    }
}
