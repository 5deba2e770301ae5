//! A muxer that takes only so many streams of a peer at once, over all its connections.
//!
//! Each open stream may hold a window of bytes that nobody reads: a protocol that is never agreed on, a request whose
//! handler waits. What is above the bound is dropped before it is negotiated, so that the bound on streams is one on
//! memory, too.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

use super::counters::Refusal;
use super::shared::Shared;
use super::stream::Place;
use crate::limits::{STREAMS_INBOUND_PEER_MAX, STREAMS_INBOUND_STRANGER_MAX};

/// See the module.
pub(crate) struct Bounded<M> {
    inner: M,
    peer: PeerId,
    shared: Arc<Shared>,
    open: Arc<AtomicU32>,
}

impl<M> Bounded<M> {
    pub(crate) fn new(inner: M, peer: PeerId, shared: Arc<Shared>) -> Self {
        let open = shared.inbound_of(&peer);
        Self { inner, peer, shared, open }
    }

    fn place(&self) -> Option<Place> {
        let (limit, refusal) = match self.shared.is_member(&self.peer) {
            true => (STREAMS_INBOUND_PEER_MAX, Refusal::StreamsMember),
            false => (STREAMS_INBOUND_STRANGER_MAX, Refusal::StreamsStranger),
        };
        let place = Place::inbound(&self.open, limit);
        if place.is_none() {
            self.shared.counters.refuse(refusal);
        }
        place
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for Bounded<M>
where
    M::Substream: Unpin,
{
    type Substream = Substream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        loop {
            let inner = ready!(Pin::new(&mut self.inner).poll_inbound(cx))?;
            if let Some(place) = self.place() {
                return Poll::Ready(Ok(Substream { inner, _place: Some(place) }));
            }
        }
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let inner = ready!(Pin::new(&mut self.inner).poll_outbound(cx))?;
        Poll::Ready(Ok(Substream { inner, _place: None }))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// A stream, with the place an inbound one takes.
pub(crate) struct Substream<S> {
    inner: S,
    _place: Option<Place>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Substream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read_vectored(cx, bufs)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Substream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
