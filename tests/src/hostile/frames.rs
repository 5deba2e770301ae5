//! Frames that are none, too long, without an end, slow, or at the wrong time.

use super::{
    Stage, refused,
    speaker::{Actor, CARRY, Framed, KLP, Shaken, head},
    wire::{Link, varint},
};
use kos_protocol::{
    cbor,
    hello::Versions,
    limits::{DATA_BYTES_MAX, PARAMS_BYTES_MAX},
    message::{End, FrameKind, Head},
    preamble::{Pattern, Preamble},
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// A member's link with a session on it; the first exchange is over.
async fn begin(stage: &Stage) -> anyhow::Result<(Link, Shaken)> {
    let link = stage.target.link(&stage.actor).await?;
    let mut shaken = stage.actor.shake(&stage.target, link.open(KLP).await?, "kos.ping").await?;
    shaken.stream.answer().await?;
    Ok((link, shaken))
}

async fn write(link: &Link, protocol: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut raw = link.open(protocol).await?;
    raw.write_all(bytes).await?;
    raw.flush().await?;
    let _ = tokio::io::copy(&mut raw, &mut tokio::io::sink()).await;
    Ok(())
}

fn handshake_preamble(stage: &Stage) -> Vec<u8> {
    let federation_tag = stage.target.federation().tag();
    Preamble::Handshake { pattern: Pattern::Ik, versions: Versions::OURS, federation_tag }.to_bytes()
}

/// Bytes that are no preamble, no frame, no head.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn malformed(stage: &Stage) -> anyhow::Result<()> {
    let (link, mut shaken) = begin(stage).await?;
    while stage.goes_on().await {
        refused(write(&link, KLP, &[7; 21]).await);
        for frame in [&[0, 3, 1, 2, 3][..], &[0, 40].repeat(21), &[0xff; 700]] {
            let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
            refused(stream.raw.write_all(frame).await.map_err(Into::into));
            refused(stream.raw.shutdown().await.map_err(Into::into));
            stream.ended().await;
        }
        let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
        stream.frame(FrameKind::Head, b"\xbf\xff").await?;
        stream.frame(FrameKind::End, &cbor::encode(&End::ok())).await?;
        refused(stream.answer().await);
    }
    Ok(())
}

/// Lengths above every limit, with and without the bytes.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn oversized(stage: &Stage) -> anyhow::Result<()> {
    let (link, mut shaken) = begin(stage).await?;
    let handshake = [handshake_preamble(stage), vec![0xff; 70_000]].concat();
    let params = vec![0; PARAMS_BYTES_MAX + 1].into();
    let long_head = cbor::encode(&Head { intent: "kos.ping".into(), params, ..Head::default() });
    while stage.goes_on().await {
        refused(write(&link, KLP, &handshake).await);
        refused(write(&link, CARRY, &[0xff; 2_000]).await);
        let mut line = link.open_raw().await?;
        refused(line.write_all(&varint(1 << 40)).await.map_err(Into::into));
        drop(line);

        let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
        stream.frame(FrameKind::Head, &long_head).await?;
        stream.frame(FrameKind::End, &cbor::encode(&End::ok())).await?;
        refused(stream.answer().await);

        let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
        refused(stream.raw.write_all(&[0xff; 70_000]).await.map_err(Into::into));
        stream.ended().await;

        let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
        refused(stream.ask("kos.fetch", &vec![7; 700_000]).await);
        refused(stream.answer().await);
    }
    Ok(())
}

/// Bodies that never end: a member's, and a stranger's.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn endless(stage: &Stage) -> anyhow::Result<()> {
    let (link, mut shaken) = begin(stage).await?;
    while stage.goes_on().await {
        for intent in ["kos.ping", "kos.push"] {
            let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
            stream.frame(FrameKind::Head, &endless_head(intent)).await?;
            pour(&mut stream, 200).await;
        }
        let stranger = Actor::fresh();
        let Some(link) = refused(stage.target.link(&stranger).await) else { continue };
        let Some(raw) = refused(link.open(KLP).await) else { continue };
        let Some(mut stranger) = refused(stranger.shake(&stage.target, raw, "kos.hello").await) else {
            continue;
        };
        refused(stranger.stream.answer().await);
        refused(stranger.stream.frame(FrameKind::Head, &head("kos.join")).await);
        pour(&mut stranger.stream, 10).await;
    }
    Ok(())
}

/// A head behind which a body is taken.
pub(super) fn endless_head(intent: &str) -> Vec<u8> {
    // What a push needs; nobody minds them elsewhere.
    let params = cbor::encode(&std::collections::BTreeMap::<String, u8>::new()).into();
    cbor::encode(&Head { intent: intent.into(), params, ..Head::default() })
}

/// Data frames until the target has enough, at most so many.
async fn pour(stream: &mut Framed, frames: u32) {
    for _ in 0..frames {
        let sent = stream.frame(FrameKind::Data, &[0; DATA_BYTES_MAX]);
        if !matches!(tokio::time::timeout(Duration::from_secs(1), sent).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Streams that say next to nothing: in negotiation, in the preamble, in the handshake, in a frame.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn slow(stage: &Stage) -> anyhow::Result<()> {
    let (link, mut shaken) = begin(stage).await?;
    let mut held = Vec::new();
    for n in 0..200 {
        let Some(mut raw) = refused(match n % 4 {
            0 => link.open_raw().await,
            _ => link.open(KLP).await,
        }) else {
            break;
        };
        let beginning = match n % 4 {
            0 => b"\x13/multi".to_vec(),
            1 => vec![2, 9, 9],
            2 => [handshake_preamble(stage), vec![0xbf]].concat(),
            _ => {
                let mut stream = Framed::open(&mut shaken.session, raw).await?;
                stream.frame(FrameKind::Head, &head("kos.fetch")).await?;
                let frame = stream.seal(FrameKind::Data, &[0; 20_000])?;
                refused(stream.raw.write_all(&frame[..9_000]).await.map_err(Into::into));
                held.push(stream.raw);
                continue;
            }
        };
        refused(raw.write_all(&beginning).await.map_err(Into::into));
        refused(raw.flush().await.map_err(Into::into));
        held.push(raw);
    }
    while stage.goes_on().await {
        for raw in &mut held {
            refused(raw.write_all(&[0]).await.map_err(Into::into));
            refused(raw.flush().await.map_err(Into::into));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Sealed as they should be, and at the wrong time.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn out_of_order(stage: &Stage) -> anyhow::Result<()> {
    use FrameKind::{Data, End as Ended, Head as Begun};
    let (link, mut shaken) = begin(stage).await?;
    let orders: [&[FrameKind]; 5] =
        [&[Data], &[Data, Begun, Ended], &[Ended, Data], &[Begun, Begun], &[Begun, Data, Begun, Ended]];
    while stage.goes_on().await {
        for order in orders {
            let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
            for kind in order {
                let payload = match kind {
                    Begun => head("kos.fetch"),
                    Data => vec![0; 32],
                    Ended => cbor::encode(&End::ok()),
                };
                refused(stream.frame(*kind, &payload).await);
            }
            refused(stream.raw.shutdown().await.map_err(Into::into));
            stream.ended().await;
        }
        swapped(&link, &mut shaken).await?;
    }
    Ok(())
}

/// Two frames change places.
async fn swapped(link: &Link, shaken: &mut Shaken) -> anyhow::Result<()> {
    let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
    let first = stream.seal(FrameKind::Head, &head("kos.ping"))?;
    let second = stream.seal(FrameKind::End, &cbor::encode(&End::ok()))?;
    refused(stream.raw.write_all(&[second, first].concat()).await.map_err(Into::into));
    refused(stream.raw.shutdown().await.map_err(Into::into));
    stream.ended().await;
    Ok(())
}
