//! Sealed frames over a byte stream. Both directions are cancel-safe: a dropped future loses nothing.

use bytes::Bytes;
use kos_protocol::{
    limits::{DATA_BYTES_MAX, NOTICE_BYTES_MAX},
    message::{FrameKind, OutOfOrder, Phase},
    preamble::Notice,
    session::{FrameError, Opener, Sealer},
};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// Both directions of a stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
/// A stream of any kind.
pub type BoxedStream = Box<dyn Duplex>;

/// Why a stream is of no more use. Its session still is.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection failed or the peer reset the stream.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
    /// The peer stopped in the middle of a message.
    #[error("the peer stopped in the middle of a message")]
    CutShort,
    /// A frame that does not open.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame at the wrong time.
    #[error(transparent)]
    Order(#[from] OutOfOrder),
    /// A head, an end or a notice that does not decode, or is above its limit.
    #[error("malformed message: {0}")]
    Message(String),
    /// The peer refused the stream in the clear.
    #[error("the peer refused the stream: {0:?}")]
    Refused(Notice),
}

/// The sending half: seals frames into a buffer and writes them out.
pub struct FrameWriter {
    io: WriteHalf<BoxedStream>,
    sealer: Sealer,
    buffer: Vec<u8>,
    written: usize,
    phase: Phase,
    ended: u64,
}

impl FrameWriter {
    /// `buffer` is what must go out before the first frame: a preamble, or nothing.
    pub fn new(io: WriteHalf<BoxedStream>, sealer: Sealer, buffer: Vec<u8>) -> Self {
        Self { io, sealer, buffer, written: 0, phase: Phase::BeforeHead, ended: 0 }
    }

    /// Seals one frame into the buffer.
    ///
    /// # Errors
    /// [`StreamError::Frame`] and [`StreamError::Order`].
    pub fn push(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), StreamError> {
        self.phase = self.phase.after(kind)?;
        self.ended += u64::from(kind == FrameKind::End);
        Ok(self.sealer.seal(kind, payload, &mut self.buffer)?)
    }

    /// Seals `data` as one or more frames, writing out as it goes.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn data(&mut self, data: &[u8]) -> Result<(), StreamError> {
        for chunk in data.chunks(DATA_BYTES_MAX) {
            // What a cancelled call left behind goes out first, so the buffer never holds more than two frames.
            self.write_out().await?;
            self.push(FrameKind::Data, chunk)?;
        }
        self.write_out().await
    }

    /// Writes the buffer to the stream.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub async fn write_out(&mut self) -> Result<(), StreamError> {
        while self.written < self.buffer.len() {
            match self.io.write(&self.buffer[self.written..]).await? {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                length => self.written += length,
            }
        }
        self.buffer.clear();
        self.written = 0;
        Ok(())
    }

    /// Writes the buffer and hands it to the network.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.write_out().await?;
        Ok(self.io.flush().await?)
    }

    /// Whether a message is under way.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many messages were ended on this stream.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// For early frames that travelled inside the handshake: they count for the order, not for the nonces.
    pub fn note_early(&mut self, phase: Phase) {
        self.phase = phase;
        self.ended += u64::from(phase == Phase::BeforeHead);
    }

    /// Gives back the room of a large message: the stream waits for its next exchange.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > SMALL_BYTES {
            self.buffer = Vec::new();
        }
    }

    /// Whether everything sealed was written.
    pub fn is_written_out(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Ends our direction cleanly.
    ///
    /// # Errors
    /// [`StreamError::Io`].
    pub async fn close(&mut self) -> Result<(), StreamError> {
        self.write_out().await?;
        Ok(self.io.shutdown().await?)
    }
}

/// Room for small frames; kept while a stream waits.
const SMALL_BYTES: usize = 4096;
/// Room for one whole frame with its length.
const READ_BYTES: usize = 2 + kos_protocol::limits::FRAME_BYTES_MAX;

/// The receiving half: reads bytes and opens frames, one at a time.
pub struct FrameReader {
    io: ReadHalf<BoxedStream>,
    opener: Opener,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    phase: Phase,
    received: u64,
    ended: u64,
    failed: bool,
}

impl FrameReader {
    /// Reads frames of `opener` from `io`.
    pub fn new(io: ReadHalf<BoxedStream>, opener: Opener) -> Self {
        Self {
            io,
            opener,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            phase: Phase::BeforeHead,
            received: 0,
            ended: 0,
            failed: false,
        }
    }

    /// The next frame, or `None` where the peer may stop and did.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn next(&mut self) -> Result<Option<(FrameKind, Bytes)>, StreamError> {
        let frame = self.read_frame().await;
        self.failed |= !matches!(frame, Ok(Some(_)));
        frame
    }

    async fn read_frame(&mut self) -> Result<Option<(FrameKind, Bytes)>, StreamError> {
        let Some(length) = self.length().await? else { return Ok(None) };
        if length == 0 {
            return Err(self.notice().await?);
        }
        if !self.fill(2 + length).await? {
            return Err(StreamError::CutShort);
        }
        let frame = &mut self.buffer[self.start + 2..self.start + 2 + length];
        let (kind, payload) = self.opener.open(frame)?;
        let payload = Bytes::copy_from_slice(payload);
        self.start += 2 + length;
        self.received += length as u64;
        self.phase = self.phase.after(kind)?;
        self.ended += u64::from(kind == FrameKind::End);
        Ok(Some((kind, payload)))
    }

    async fn length(&mut self) -> Result<Option<usize>, StreamError> {
        if self.fill(2).await? {
            let bytes = [self.buffer[self.start], self.buffer[self.start + 1]];
            return Ok(Some(usize::from(u16::from_be_bytes(bytes))));
        }
        let between_messages = self.phase == Phase::BeforeHead && self.start == self.end;
        if between_messages { Ok(None) } else { Err(StreamError::CutShort) }
    }

    /// A notice stands where a frame would; it is clear, so it only tells why the stream is of no use.
    async fn notice(&mut self) -> Result<StreamError, StreamError> {
        if !self.fill(4).await? {
            return Err(StreamError::CutShort);
        }
        let at = self.start;
        let length = usize::from(u16::from_be_bytes([self.buffer[at + 2], self.buffer[at + 3]]));
        if length > NOTICE_BYTES_MAX || !self.fill(4 + length).await? {
            return Err(StreamError::CutShort);
        }
        let body = &self.buffer[self.start + 4..self.start + 4 + length];
        Ok(match Notice::parse(body) {
            Ok(notice) => StreamError::Refused(notice),
            Err(error) => StreamError::Message(error.to_string()),
        })
    }

    /// Reads until `wanted` bytes are there; false when the peer stopped before.
    async fn fill(&mut self, wanted: usize) -> Result<bool, StreamError> {
        while self.end - self.start < wanted {
            if self.start == self.end {
                self.start = 0;
                self.end = 0;
            }
            if self.start + wanted > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
                // Small frames need little room; a bulk stream grows to a whole frame once.
                let room = if wanted <= SMALL_BYTES { SMALL_BYTES } else { READ_BYTES };
                if self.buffer.len() < room {
                    self.buffer.resize(room, 0);
                }
            }
            match self.io.read(&mut self.buffer[self.end..]).await? {
                0 => return Ok(false),
                length => self.end += length,
            }
        }
        Ok(true)
    }

    /// Whether a message is under way.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many messages ended on this stream.
    pub fn ended(&self) -> u64 {
        self.ended
    }

    /// Whether the stream is of no more use: it failed, or the peer has ended it.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// As [`FrameWriter::note_early`].
    pub fn note_early(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// As [`FrameWriter::rest`].
    pub fn rest(&mut self) {
        if self.start == self.end && self.buffer.len() > SMALL_BYTES {
            self.buffer = Vec::new();
            (self.start, self.end) = (0, 0);
        }
    }

    /// Sealed bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }
}
