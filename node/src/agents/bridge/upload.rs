//! A request's body on its way to an origin: out of the exchange, through a channel of one part, into hyper.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use kos_mesh::link::RecvHalf;
use kos_protocol::message::Status;
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::sync::mpsc;

/// What hyper sends. It ends cleanly only when the caller's message did: else the connection is cut, so that an origin
/// never takes half a body for a whole one.
pub struct Upload {
    /// None for a request without a body.
    parts: Option<mpsc::Receiver<Part>>,
    length: Option<u64>,
}

enum Part {
    Data(Bytes),
    End,
}

/// The body was cut short.
#[derive(Debug, thiserror::Error)]
#[error("the caller broke off")]
pub struct Cut;

/// Why a body did not arrive whole.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// The caller gave up.
    #[error("the caller broke off")]
    CallerGone,
    /// The body is not as long as was promised.
    #[error("the body is not as long as its content-length says")]
    Length,
    /// The caller sends nothing any more.
    #[error("the caller sends no more of the request")]
    Silent,
    /// The origin takes nothing any more.
    #[error("the service takes no more of the request")]
    Stalled,
}

/// Fills an [`Upload`].
pub struct Pump {
    parts: mpsc::Sender<Part>,
    length: Option<u64>,
    stall: Duration,
}

/// A body of this length, or of any, and what fills it. The origin may keep one part waiting for `stall`, and so may the
/// caller.
pub fn upload(length: Option<u64>, stall: Duration) -> (Upload, Pump) {
    let (parts, received) = mpsc::channel(1);
    (Upload { parts: Some(received), length }, Pump { parts, length, stall })
}

impl Upload {
    /// No body.
    pub fn none() -> Self {
        Self { parts: None, length: Some(0) }
    }
}

impl Pump {
    /// Moves a whole message, `first` before the rest. Returns early, without an error, when the origin has stopped
    /// reading: it may have answered already.
    ///
    /// # Errors
    /// [`UploadError`]; the [`Upload`] is then cut.
    pub async fn run(self, first: Option<Bytes>, recv: &mut RecvHalf) -> Result<Uploaded, UploadError> {
        let mut left = self.length;
        let mut next = first;
        loop {
            let data = match next.take() {
                Some(data) => data,
                None => match tokio::time::timeout(self.stall, recv.next()).await {
                    Ok(Ok(Some(data))) => data,
                    Ok(Ok(None)) if recv.ended().is_some_and(|end| end.status == Status::Ok) => break,
                    Ok(Ok(None) | Err(_)) => return Err(UploadError::CallerGone),
                    Err(_) => return Err(UploadError::Silent),
                },
            };
            if let Some(left) = &mut left {
                *left = left.checked_sub(data.len() as u64).ok_or(UploadError::Length)?;
            }
            if !data.is_empty() && !self.give(Part::Data(data)).await? {
                return Ok(Uploaded::Partly);
            }
        }
        if left.is_some_and(|left| left > 0) {
            return Err(UploadError::Length);
        }
        // With a known length hyper stops reading at its last byte, and the end finds nobody.
        self.give(Part::End).await?;
        Ok(Uploaded::Whole)
    }

    async fn give(&self, part: Part) -> Result<bool, UploadError> {
        match tokio::time::timeout(self.stall, self.parts.send(part)).await {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => Err(UploadError::Stalled),
        }
    }
}

/// How much of a body the origin took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// All.
    Whole,
    /// It stopped reading before the end.
    Partly,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(parts) = &mut self.parts else { return Poll::Ready(None) };
        match ready!(parts.poll_recv(cx)) {
            Some(Part::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Part::End) => {
                self.parts = None;
                Poll::Ready(None)
            }
            None => Poll::Ready(Some(Err(Cut))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
