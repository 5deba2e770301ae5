//! A muxer whose streams may be dropped by who only wrote on them.
//!
//! With lazy negotiation (`V1Lazy`) who opens a stream writes at once, and need not read the other end's consent.
//! identify's push and the hash table's announcements never do: they write, close and drop the stream. Dropping it
//! tells the other end to stop sending, which is then still about to send its consent, fails, and throws away what
//! it was sent. So a stream that was closed without a single read is read to its end in the background first.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::io::AsyncReadExt;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::limits::{LINGERING_MAX, LINGERING_TIME};

/// See the module.
pub(crate) struct Linger<M> {
    inner: M,
    places: Arc<Semaphore>,
}

impl<M> Linger<M> {
    pub(crate) fn new(inner: M) -> Self {
        Self { inner, places: Arc::new(Semaphore::new(LINGERING_MAX)) }
    }
}

impl<M> StreamMuxer for Linger<M>
where
    M: StreamMuxer + Unpin,
    M::Substream: Send + Unpin + 'static,
{
    type Substream = Substream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let inner = Pin::new(&mut self.inner).poll_inbound(cx);
        inner.map_ok(|stream| Substream::new(stream, self.places.clone()))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let inner = Pin::new(&mut self.inner).poll_outbound(cx);
        inner.map_ok(|stream| Substream::new(stream, self.places.clone()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// A stream that remembers whether it was read.
pub(crate) struct Substream<S: AsyncRead + Send + Unpin + 'static> {
    /// Taken only by `drop`.
    inner: Option<S>,
    read: bool,
    closed: bool,
    places: Arc<Semaphore>,
}

impl<S: AsyncRead + Send + Unpin + 'static> Substream<S> {
    fn new(inner: S, places: Arc<Semaphore>) -> Self {
        Self { inner: Some(inner), read: false, closed: false, places }
    }

    fn with<T>(&mut self, poll: impl FnOnce(Pin<&mut S>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut self.inner {
            Some(inner) => poll(Pin::new(inner)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl<S: AsyncRead + Send + Unpin + 'static> Drop for Substream<S> {
    fn drop(&mut self) {
        if self.read || !self.closed {
            return;
        }
        // Without a free place it is dropped like any other.
        if let (Some(mut stream), Ok(place), Ok(runtime)) =
            (self.inner.take(), self.places.clone().try_acquire_owned(), Handle::try_current())
        {
            runtime.spawn(async move {
                let mut rest = [0; 64];
                let end = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
                let _ = tokio::time::timeout(LINGERING_TIME, end).await;
                drop(place);
            });
        }
    }
}

impl<S: AsyncRead + Send + Unpin + 'static> AsyncRead for Substream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let poll = self.with(|inner| inner.poll_read(cx, buf));
        self.read |= poll.is_ready();
        poll
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = self.with(|inner| inner.poll_read_vectored(cx, bufs));
        self.read |= poll.is_ready();
        poll
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> AsyncWrite for Substream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|inner| inner.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|inner| inner.poll_write_vectored(cx, bufs))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|inner| inner.poll_flush(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = self.with(|inner| inner.poll_close(cx));
        self.closed |= matches!(poll, Poll::Ready(Ok(())));
        poll
    }
}

#[cfg(test)]
mod tests {
    use futures::AsyncWriteExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

    use super::*;

    /// Room for less than what the other end has to say, so that it needs a reader.
    const ROOM: usize = 8;

    fn pair(places: usize) -> (Substream<Compat<DuplexStream>>, DuplexStream) {
        let (ours, theirs) = duplex(ROOM);
        (Substream::new(ours.compat(), Arc::new(Semaphore::new(places))), theirs)
    }

    #[tokio::test]
    async fn a_message_arrives_although_its_sender_never_reads_the_consent() {
        let (mut ours, mut theirs) = pair(1);
        ours.write_all(b"push").await.unwrap();
        ours.close().await.unwrap();
        drop(ours);
        theirs.write_all(&[0; 4 * ROOM]).await.unwrap();
        let mut heard = [0; 4];
        theirs.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"push");
    }

    #[tokio::test]
    async fn a_stream_that_was_read_or_not_closed_or_is_one_too_many_goes_at_once() {
        let (mut read, mut theirs) = pair(1);
        theirs.write_all(b"consent!").await.unwrap();
        read.read_exact(&mut [0; ROOM]).await.unwrap();
        read.close().await.unwrap();
        drop(read);
        assert!(theirs.write_all(&[0; 4 * ROOM]).await.is_err());

        let (open, mut theirs) = pair(1);
        drop(open);
        assert!(theirs.write_all(&[0; 4 * ROOM]).await.is_err());

        let (mut surplus, mut theirs) = pair(0);
        surplus.close().await.unwrap();
        drop(surplus);
        assert!(theirs.write_all(&[0; 4 * ROOM]).await.is_err());
    }
}
