//! Connections made by hand, so that every byte on them can be a wrong one.
//!
//! Nothing here is a libp2p swarm: a connection is dialed, secured and multiplexed step by step, and can be taken over
//! after each of them.

use anyhow::{Context as _, ensure};
use futures::future::poll_fn;
use kos_protocol::key::SecretKey;
use libp2p::{
    Multiaddr, PeerId,
    core::{
        Endpoint, Transport,
        muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox},
        transport::{DialOpts, PortUse},
        upgrade::OutboundConnectionUpgrade,
    },
    identity, noise, quic, yamux,
};
use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    task::Poll,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

const MULTISTREAM: &str = "/multistream/1.0.0";
/// Streams of the target's that wait for the attack to look at them.
const INBOUND_MAX: usize = 64;

/// A stream on which nothing was agreed yet.
pub type Raw = Compat<SubstreamBox>;
/// A connection with Noise and nothing else.
pub type Secured = Compat<noise::Output<Compat<TcpStream>>>;

/// A stream the target opened, once its protocol was agreed on.
pub struct Inbound {
    /// Which.
    pub protocol: String,
    /// The stream behind the agreement.
    pub stream: Raw,
}

/// A multiplexed connection to the target; it ends with the value.
pub struct Link {
    opens: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
    /// What the target opens, of the protocols that were named when the link was made.
    pub inbound: mpsc::Receiver<Inbound>,
}

/// The libp2p form of a key.
pub fn keypair(secret: &SecretKey) -> identity::Keypair {
    identity::Keypair::ed25519_from_bytes(secret.to_seed().to_vec()).expect("32 bytes are an Ed25519 seed")
}

/// An address of this machine that is the attacker's own: limits by address shall not meet honest nodes.
pub fn own_address(n: u32) -> IpAddr {
    let [_, b, c, d] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 66u8.wrapping_add(b), c, d.max(1)))
}

/// A TCP connection without a byte on it.
///
/// # Errors
/// The system's.
pub async fn connect(to: SocketAddr, from: IpAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Agrees on a protocol as the one who dialed.
///
/// # Errors
/// When the other end does not speak it, or the stream fails.
pub async fn select<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, protocol: &str) -> anyhow::Result<()> {
    let mut bytes = line(MULTISTREAM);
    bytes.extend(line(protocol));
    io.write_all(&bytes).await?;
    io.flush().await?;
    ensure!(read_line(io).await? == MULTISTREAM, "no multistream");
    let answer = read_line(io).await?;
    ensure!(answer == protocol, "{protocol} was answered {answer}");
    Ok(())
}

/// A message of multistream-select.
pub fn line(text: &str) -> Vec<u8> {
    let mut bytes = varint(text.len() as u64 + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(b'\n');
    bytes
}

/// An unsigned varint.
pub fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Reads an unsigned varint.
///
/// # Errors
/// When the stream ends, or the number is above 2^63.
pub async fn read_varint<S: AsyncRead + Unpin>(io: &mut S) -> anyhow::Result<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = io.read_u8().await?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    anyhow::bail!("a varint without an end")
}

async fn read_line<S: AsyncRead + Unpin>(io: &mut S) -> anyhow::Result<String> {
    let length = read_varint(io).await?;
    ensure!((1..=1024).contains(&length), "a line of {length} bytes");
    let mut text = vec![0; length as usize];
    io.read_exact(&mut text).await?;
    text.pop();
    Ok(String::from_utf8(text)?)
}

/// A TCP connection up to the point where a multiplexer would begin.
///
/// # Errors
/// When the target does not take it.
pub async fn secured(secret: &SecretKey, to: SocketAddr, from: IpAddr) -> anyhow::Result<Secured> {
    let mut io = connect(to, from).await?;
    select(&mut io, "/noise").await?;
    let noise = noise::Config::new(&keypair(secret))?;
    let (_, io): (PeerId, _) = noise.upgrade_outbound(io.compat(), "/noise").await?;
    let mut io = io.compat();
    select(&mut io, "/yamux/1.0.0").await?;
    Ok(io)
}

impl Link {
    /// Over TCP, Noise and Yamux; `speaks` are the protocols the target may open streams of.
    ///
    /// # Errors
    /// When the target does not take it.
    pub async fn tcp(
        secret: &SecretKey,
        to: SocketAddr,
        from: IpAddr,
        speaks: &'static [&'static str],
    ) -> anyhow::Result<Self> {
        let io = secured(secret, to, from).await?;
        let mut config = yamux::Config::default();
        config.set_max_num_streams(4_096);
        let muxer = config.upgrade_outbound(io.into_inner(), "/yamux/1.0.0").await?;
        Ok(Self::begin(StreamMuxerBox::new(muxer), speaks))
    }

    /// Over QUIC, where the target may send `window_bytes` on each stream before it must wait.
    ///
    /// # Errors
    /// When the target does not take it.
    pub async fn quic(secret: &SecretKey, to: SocketAddr, window_bytes: u32) -> anyhow::Result<Self> {
        let mut config = quic::Config::new(&keypair(secret));
        config.max_stream_data = window_bytes;
        let mut transport = quic::tokio::Transport::new(config);
        let address: Multiaddr = format!("/ip4/{}/udp/{}/quic-v1", to.ip(), to.port()).parse()?;
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (_, connection) = transport.dial(address, options)?.await?;
        Ok(Self::begin(StreamMuxerBox::new(connection), &[]))
    }

    fn begin(muxer: StreamMuxerBox, speaks: &'static [&'static str]) -> Self {
        let (opens, orders) = mpsc::channel(1);
        let (told, inbound) = mpsc::channel(INBOUND_MAX);
        tokio::spawn(drive(muxer, orders, told, speaks));
        Self { opens, inbound }
    }

    /// A stream on which nothing is said yet.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn open_raw(&self) -> anyhow::Result<Raw> {
        let (reply, stream) = oneshot::channel();
        self.opens.send(reply).await.context("the connection has ended")?;
        Ok(stream.await.context("the connection has ended")?.compat())
    }

    /// A stream of a protocol.
    ///
    /// # Errors
    /// When the target refuses it.
    pub async fn open(&self, protocol: &str) -> anyhow::Result<Raw> {
        let mut stream = self.open_raw().await?;
        select(&mut stream, protocol).await?;
        Ok(stream)
    }

    /// Whether the target has not ended the connection.
    pub fn is_open(&self) -> bool {
        !self.opens.is_closed()
    }
}

async fn drive(
    mut muxer: StreamMuxerBox,
    mut orders: mpsc::Receiver<oneshot::Sender<SubstreamBox>>,
    told: mpsc::Sender<Inbound>,
    speaks: &'static [&'static str],
) {
    let mut waiting = VecDeque::new();
    poll_fn(|cx| {
        loop {
            while let Poll::Ready(order) = orders.poll_recv(cx) {
                match order {
                    Some(reply) => waiting.push_back(reply),
                    None => return Poll::Ready(()),
                }
            }
            match muxer.poll_unpin(cx) {
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            match muxer.poll_inbound_unpin(cx) {
                Poll::Ready(Ok(stream)) => {
                    tokio::spawn(answer(stream.compat(), told.clone(), speaks));
                    continue;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if waiting.is_empty() {
                return Poll::Pending;
            }
            match muxer.poll_outbound_unpin(cx) {
                Poll::Ready(Ok(stream)) => {
                    let reply: oneshot::Sender<_> = waiting.pop_front().expect("it is not empty");
                    let _ = reply.send(stream);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

/// Agrees on a protocol as the one who was dialed.
async fn answer(mut stream: Raw, told: mpsc::Sender<Inbound>, speaks: &[&str]) -> anyhow::Result<()> {
    ensure!(read_line(&mut stream).await? == MULTISTREAM, "no multistream");
    stream.write_all(&line(MULTISTREAM)).await?;
    loop {
        let protocol = read_line(&mut stream).await?;
        let known = speaks.contains(&protocol.as_str());
        stream.write_all(&line(if known { &protocol } else { "na" })).await?;
        stream.flush().await?;
        if known {
            let _ = told.send(Inbound { protocol, stream }).await;
            return Ok(());
        }
    }
}
