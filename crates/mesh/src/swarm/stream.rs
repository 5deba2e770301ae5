//! A stream and the place it takes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use libp2p::swarm::ConnectionId;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::shared::LinkState;

/// A bidirectional stream with a peer. It implements the `futures` IO traits.
///
/// Dropping it breaks it off. What the peer sees then depends on the transport: TCP resets, QUIC ends the stream as
/// if it had been closed. So only a message that says so (KLP's sealed `End`) tells an end from a break. A stream
/// gives its place in the connection back when dropped, so finished ones must not be kept.
#[derive(Debug)]
pub struct Stream {
    inner: libp2p::Stream,
    connection: ConnectionId,
    ended: Ended,
    _place: Place,
}

/// The end of a stream's connection. What waits then waits no longer: a TCP connection that is closed because its peer is
/// silent lingers until the system gives it up, a quarter of an hour, and its streams would with it.
#[derive(Debug)]
struct Ended(Option<Pin<Box<WaitForCancellationFutureOwned>>>);

impl Ended {
    /// What the stream has comes first; only what is to be waited for fails.
    fn unless_ready<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            return polled;
        }
        let waiting = self.0.as_mut().is_some_and(|ended| ended.as_mut().poll(cx).is_pending());
        if waiting {
            return Poll::Pending;
        }
        self.0 = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection has ended")))
    }
}

impl Stream {
    pub(crate) fn new(inner: libp2p::Stream, link: &LinkState, place: Place) -> Self {
        let ended = Ended(Some(Box::pin(link.ended.clone().cancelled_owned())));
        Self { inner, connection: link.connection, ended, _place: place }
    }

    /// The connection it runs on.
    pub fn connection(&self) -> ConnectionId {
        self.connection
    }
}

/// A counted place among a connection's streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    count: Arc<AtomicU32>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// An outbound place, whose bound the semaphore keeps.
    pub(crate) fn outbound(count: Arc<AtomicU32>, permit: OwnedSemaphorePermit) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count, _permit: Some(permit) }
    }

    /// An inbound place, if fewer than `limit` are taken.
    pub(crate) fn inbound(count: &Arc<AtomicU32>, limit: u32) -> Option<Self> {
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < limit).then_some(taken + 1))
            .ok()
            .map(|_| Self { count: count.clone(), _permit: None })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.ended.unless_ready(polled, cx)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_read_vectored(cx, bufs);
        self.ended.unless_ready(polled, cx)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.ended.unless_ready(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.ended.unless_ready(polled, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.ended.unless_ready(polled, cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_close(cx);
        self.ended.unless_ready(polled, cx)
    }
}
