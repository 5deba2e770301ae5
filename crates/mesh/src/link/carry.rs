//! Carry: a member pipes a sealed stream between two others. SPEC §6.7.
//!
//! The header is clear, the rest opaque; a carrier learns who talks to whom and how much, nothing else.

use super::{
    BoxedStream, Gate, Pending, Standing, Unreachable,
    stats::{Refusal, Stats},
};
pub use kos_protocol::carry::Header as CarryHeader;
use kos_protocol::{
    carry::{parse_reply, reply_to_bytes},
    id::{FederationId, MemberId},
    key::PublicKey,
    limits::{CARRY_HEADER_BYTES_MAX, CARRY_REPLY_BYTES_MAX},
    message::{End, Status},
};
use std::{
    collections::BTreeMap,
    io,
    num::NonZeroU64,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Why a stream was not carried.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The header is malformed, or the route too long.
    #[error("malformed carry header: {0}")]
    Header(String),
    /// Refused, with the answer that was given.
    #[error("refused: {0}")]
    Refused(End),
}

/// Reads the header of a stream that a peer opened.
///
/// # Errors
/// [`CarryError`].
pub async fn read_header(stream: &mut BoxedStream) -> Result<CarryHeader, CarryError> {
    let length = usize::from(stream.read_u16().await?);
    if length > CARRY_HEADER_BYTES_MAX {
        return Err(CarryError::Header("above its limit".to_owned()));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    CarryHeader::parse(&bytes).map_err(|error| CarryError::Header(error.to_string()))
}

/// At the end of the route: says so, and gives the stream to be served.
///
/// # Errors
/// [`CarryError::Io`].
pub async fn accept_carried(stream: &mut BoxedStream) -> Result<(), CarryError> {
    stream.write_all(&reply_to_bytes(&End::ok())).await?;
    Ok(stream.flush().await?)
}

/// At the beginning: writes the header and returns the stream that goes on behind it. The reply is read with the first
/// bytes of the far end, so the way costs no round trip of its own.
///
/// # Errors
/// [`CarryError::Io`].
pub async fn carried(mut stream: BoxedStream, header: &CarryHeader) -> Result<BoxedStream, CarryError> {
    stream.write_all(&header.to_bytes()).await?;
    Ok(Box::new(Carried { stream, reply: Some(Vec::new()) }))
}

struct Carried {
    stream: BoxedStream,
    /// What of the reply has come; none once it is through.
    reply: Option<Vec<u8>>,
}

impl Carried {
    /// Reads the reply byte-exactly, so that nothing behind it is taken.
    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(got) = &mut self.reply {
            let wanted = match got.as_slice() {
                [a, b, ..] => 2 + usize::from(u16::from_be_bytes([*a, *b])),
                _ => 2,
            };
            if wanted > 2 + CARRY_REPLY_BYTES_MAX {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a carry reply above its limit",
                )));
            }
            if got.len() >= 2 && got.len() == wanted {
                let reply = parse_reply(&got[2..])
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                self.reply = None;
                if reply.status != Status::Ok {
                    let text = format!("not carried: {reply}");
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionRefused, text)));
                }
                return Poll::Ready(Ok(()));
            }
            let mut chunk = vec![0; wanted - got.len()];
            let mut buffer = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the carrier closed the stream",
                )));
            }
            got.extend_from_slice(buffer.filled());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Carried {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_reply(cx))?;
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Carried {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// A token bucket: `rate` bytes a second, one second's worth at once.
struct Bucket {
    rate: NonZeroU64,
    level: f64,
    at: Instant,
}

impl Bucket {
    /// Takes `bytes` and returns how long the sender must wait for them.
    fn take(&mut self, bytes: usize, now: Instant) -> Duration {
        let rate = self.rate.get() as f64;
        self.level = (self.level + now.duration_since(self.at).as_secs_f64() * rate).min(rate);
        self.at = now;
        self.level -= bytes as f64;
        if self.level >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.level / rate) }
    }
}

/// Carries streams between members, within a byte rate for each of them.
pub struct Carrier {
    gate: Arc<dyn Gate>,
    stats: Arc<Stats>,
    /// Bytes a second each member may have carried, both directions together.
    rate_per_member: NonZeroU64,
    streams_per_member: usize,
    members: Mutex<BTreeMap<(FederationId, MemberId), Account>>,
}

struct Account {
    bucket: Arc<Mutex<Bucket>>,
    streams: usize,
    closed: CancellationToken,
}

/// Opens `/klp/carry/1` streams to the next hop.
pub trait CarryWire: Send + Sync {
    /// A stream to the holder of `key`, over an existing connection.
    fn open_carry(&self, key: PublicKey) -> Pending<'_, Result<BoxedStream, Unreachable>>;
}

impl Carrier {
    /// A carrier for the members `gate` knows.
    pub fn new(
        gate: Arc<dyn Gate>,
        stats: Arc<Stats>,
        rate_per_member: NonZeroU64,
        streams_per_member: usize,
    ) -> Self {
        Self { gate, stats, rate_per_member, streams_per_member, members: Mutex::default() }
    }

    /// Carries a stream whose header was read, from the peer that proved `key`, until it ends.
    ///
    /// # Errors
    /// [`CarryError`].
    pub async fn carry(
        &self,
        mut stream: BoxedStream,
        header: CarryHeader,
        key: &PublicKey,
        wire: &dyn CarryWire,
    ) -> Result<u64, CarryError> {
        let (account, next, onward) = match self.admit(&header, key) {
            Ok(admitted) => admitted,
            Err(end) => {
                self.stats.refuse(Refusal::Carry);
                stream.write_all(&reply_to_bytes(&end)).await?;
                stream.shutdown().await?;
                return Err(CarryError::Refused(end));
            }
        };
        let outcome = tokio::select! {
            outcome = self.pipe(stream, &account, next, onward, wire) => outcome,
            () = account.closed.cancelled() => Err(CarryError::Refused(End::because(Status::Denied, "removed"))),
        };
        self.release(&account);
        outcome
    }

    /// Cuts whatever is carried for `member` now: it was removed.
    pub fn close(&self, federation: &FederationId, member: &MemberId) {
        if let Some(account) = super::pool::lock(&self.members).remove(&(*federation, *member)) {
            account.closed.cancel();
        }
    }

    /// Checks membership and budget; returns whose account it is, the next hop's key and the header for it.
    fn admit(&self, header: &CarryHeader, key: &PublicKey) -> Result<(Ticket, PublicKey, CarryHeader), End> {
        let denied = |text: &str| End::because(Status::Denied, text);
        let federation = self
            .gate
            .federation_by_tag(&header.federation_tag)
            .ok_or_else(|| denied("not in this federation"))?;
        let Standing::Member(member) = self.gate.standing(&federation, key) else {
            return Err(denied("not a member of this federation"));
        };
        if member != header.from {
            return Err(denied("the header names another member"));
        }
        let [next, rest @ ..] = header.route.as_slice() else {
            return Err(End::because(Status::Invalid, "the route ends here"));
        };
        if !rest.is_empty() {
            return Err(End::because(Status::Invalid, "only one hop is carried"));
        }
        let next_key = self
            .gate
            .key_of(&federation, next)
            .ok_or_else(|| End::because(Status::NotFound, "the next hop is no member of this federation"))?;
        let mut members = super::pool::lock(&self.members);
        let account = members.entry((federation, member)).or_insert_with(|| Account {
            bucket: Arc::new(Mutex::new(Bucket {
                rate: self.rate_per_member,
                level: self.rate_per_member.get() as f64,
                at: Instant::now(),
            })),
            streams: 0,
            closed: CancellationToken::new(),
        });
        if account.streams >= self.streams_per_member {
            return Err(End::because(Status::RateLimited, "too many carried streams"));
        }
        account.streams += 1;
        let onward = CarryHeader { route: rest.to_vec(), ..header.clone() };
        Ok((
            Ticket {
                owner: (federation, member),
                bucket: account.bucket.clone(),
                closed: account.closed.clone(),
            },
            next_key,
            onward,
        ))
    }

    fn release(&self, ticket: &Ticket) {
        let mut members = super::pool::lock(&self.members);
        if let Some(account) = members.get_mut(&ticket.owner) {
            account.streams = account.streams.saturating_sub(1);
            if account.streams == 0 && members.len() > 1024 {
                members.remove(&ticket.owner);
            }
        }
    }

    async fn pipe(
        &self,
        mut near: BoxedStream,
        ticket: &Ticket,
        next: PublicKey,
        onward: CarryHeader,
        wire: &dyn CarryWire,
    ) -> Result<u64, CarryError> {
        let mut far = match wire.open_carry(next).await {
            Ok(far) => far,
            Err(unreachable) => {
                let end = End::because(Status::Unavailable, unreachable.to_string());
                near.write_all(&reply_to_bytes(&end)).await?;
                near.shutdown().await?;
                return Err(CarryError::Refused(end));
            }
        };
        far.write_all(&onward.to_bytes()).await?;
        far.flush().await?;
        let (mut near_read, mut near_write) = tokio::io::split(near);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        // The far end's reply passes through like everything behind it.
        let (out, back) = tokio::join!(
            self.copy(&mut near_read, &mut far_write, ticket),
            self.copy(&mut far_read, &mut near_write, ticket)
        );
        Ok(out? + back?)
    }

    async fn copy<R, W>(&self, from: &mut R, to: &mut W, ticket: &Ticket) -> io::Result<u64>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buffer = vec![0; 32 * 1024];
        let mut total = 0;
        loop {
            let length = match from.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => length,
                // A reset on one side becomes the end on the other; sealed frames tell an end from a cut.
                Err(_) => break,
            };
            let wait = super::pool::lock(&ticket.bucket).take(length, Instant::now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            to.write_all(&buffer[..length]).await?;
            to.flush().await?;
            Stats::add(&self.stats.bytes_carried, length);
            total += length as u64;
        }
        to.shutdown().await?;
        Ok(total)
    }
}

struct Ticket {
    owner: (FederationId, MemberId),
    closed: CancellationToken,
    bucket: Arc<Mutex<Bucket>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_held_to_its_byte_rate() {
        let begun = Instant::now();
        let mut bucket = Bucket { rate: NonZeroU64::new(1_000).unwrap(), level: 1_000.0, at: begun };
        assert_eq!(bucket.take(1_000, begun), Duration::ZERO, "a second's worth at once");
        assert_eq!(bucket.take(500, begun), Duration::from_millis(500));
        assert_eq!(bucket.take(500, begun), Duration::from_secs(1), "who does not wait waits longer");
        let later = begun + Duration::from_secs(2);
        assert_eq!(bucket.take(1_000, later), Duration::ZERO);
        let idle = later + Duration::from_secs(3_600);
        assert_eq!(
            bucket.take(1_500, idle),
            Duration::from_millis(500),
            "an idle hour saves up a second's worth"
        );
        // Over a minute in small parts it comes to the rate, whatever the waits are rounded to.
        let (mut now, mut taken) = (idle + Duration::from_secs(10), 0);
        let end = now + Duration::from_secs(60);
        while now < end {
            now += bucket.take(100, now);
            taken += 100;
        }
        assert!((60_000..=61_200).contains(&taken), "{taken}");
    }
}
