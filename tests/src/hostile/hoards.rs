//! Whatever costs the target memory for as long as it is kept.

use super::{
    Stage,
    frames::endless_head,
    refused,
    speaker::{Actor, Framed, KLP, next_counter, open_carried},
    wire::{Link, Raw, line},
};
use kos_protocol::{limits::DATA_BYTES_MAX, message::FrameKind};
use tokio::io::AsyncWriteExt;

/// What the target may answer on a stream before it must wait.
const SMALL_WINDOW_BYTES: u32 = 64;
/// Protocols asked for on one stream: more than there is room for answers.
const ASKED: usize = 100;
/// What is behind them.
const UNREAD_BYTES: usize = 1 << 20;

/// Sessions: a member that shakes hands all the time, and keeps the streams.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn sessions(stage: &Stage) -> anyhow::Result<()> {
    let link = stage.target.link(&stage.actor).await?;
    let mut held = Vec::new();
    while stage.goes_on().await {
        let Some(raw) = refused(link.open(KLP).await) else {
            held.clear();
            continue;
        };
        held.extend(refused(stage.actor.shake_only(&stage.target, raw, next_counter()).await));
    }
    Ok(())
}

/// Streams: as many as are let in, each with an exchange that never ends, in as many sessions as there may be.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn streams(stage: &Stage) -> anyhow::Result<()> {
    let links = [stage.target.link(&stage.actor).await?, stage.target.link(&stage.actor).await?];
    let mut sessions = Vec::new();
    for link in &links {
        for _ in 0..3 {
            sessions
                .push(stage.actor.shake_only(&stage.target, link.open(KLP).await?, next_counter()).await?);
        }
    }
    let mut held: Vec<Raw> = Vec::new();
    let mut n = 0;
    while stage.goes_on().await {
        n += 1;
        let link = &links[n % links.len()];
        // First what is above the bound on a member's exchanges, then what is above that on its streams of any kind.
        if held.len() > 300 {
            let Some(mut raw) = refused(link.open_raw().await) else { continue };
            refused(raw.write_all(&[0x13]).await.map_err(Into::into));
            refused(raw.flush().await.map_err(Into::into));
            held.push(raw);
        } else {
            let Some(raw) = refused(link.open(KLP).await) else { continue };
            let count = sessions.len();
            let shaken = &mut sessions[n % count];
            let Some(mut stream) = refused(Framed::open(&mut shaken.session, raw).await) else { continue };
            refused(stream.frame(FrameKind::Head, &super::speaker::head("kos.fetch")).await);
            held.push(stream.raw);
        }
        if held.len() > 400 {
            held.clear();
        }
    }
    Ok(())
}

/// Bodies that nobody reads: a window full on every stream that may be open, and two that are read and never end.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn unread_bodies(stage: &Stage) -> anyhow::Result<()> {
    let link = stage.target.link(&stage.actor).await?;
    let mut shaken = stage.actor.shake(&stage.target, link.open(KLP).await?, "kos.ping").await?;
    shaken.stream.answer().await?;
    let mut held = tokio::task::JoinSet::new();
    while stage.goes_on().await {
        let Some(raw) = refused(link.open(KLP).await) else { continue };
        let Some(mut stream) = refused(Framed::open(&mut shaken.session, raw).await) else { continue };
        held.spawn(async move {
            refused(stream.frame(FrameKind::Head, &endless_head("kos.push")).await);
            // Below what a push may hold, so that it is not refused for that.
            for _ in 0..100 {
                if stream.frame(FrameKind::Data, &[0; DATA_BYTES_MAX]).await.is_err() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        });
    }
    Ok(())
}

/// Strangers that stop in the middle of negotiations, with a window full behind.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn unread_negotiations(stage: &Stage) -> anyhow::Result<()> {
    while stage.goes_on().await {
        futures::future::join_all((0..20).map(|_| stop_in_negotiation(stage))).await;
    }
    Ok(())
}

/// Streams that ask for protocols nobody speaks, where the target must wait with its answers.
async fn stop_in_negotiation(stage: &Stage) -> Option<()> {
    let stranger = Actor::fresh();
    let link = refused(Link::quic(&stranger.secret, stage.target.quic, SMALL_WINDOW_BYTES).await)?;
    let asking = [line("/multistream/1.0.0"), line("/none").repeat(ASKED), vec![0; UNREAD_BYTES]].concat();
    let mut held = tokio::task::JoinSet::new();
    while link.is_open() && stage.goes_on().await {
        let mut raw = refused(link.open_raw().await)?;
        let asking = asking.clone();
        held.spawn(async move {
            let _ = raw.write_all(&asking).await;
            std::future::pending::<()>().await;
        });
        if held.len() > 100 {
            held.abort_all();
        }
    }
    Some(())
}

/// Handshakes over carried streams, where no address is seen, each left where it hurts.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn carried(stage: &Stage) -> anyhow::Result<()> {
    let link = stage.target.link(&stage.actor).await?;
    let mut held = std::collections::VecDeque::new();
    while stage.goes_on().await {
        let Some(mut raw) = refused(open_carried(&link, &stage.target, &stage.actor).await) else { continue };
        let Ok(first) = Actor::fresh().first_message(&stage.target, "kos.hello") else { continue };
        refused(raw.write_all(&first[..first.len() / 2]).await.map_err(Into::into));
        refused(raw.flush().await.map_err(Into::into));
        held.push_back(raw);
        if held.len() > 150 {
            held.pop_front();
        }
    }
    Ok(())
}
