//! Who claims to be somebody, or asks for what is not for it.

use super::{
    Stage, refused,
    speaker::{Actor, KLP, next_counter},
    wire::Link,
};
use kos_protocol::{
    hello::Versions,
    id::FederationId,
    preamble::{Pattern, Preamble},
};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Strangers that call agents and ask for the federation's state, from many addresses and from one.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn strangers(stage: &Stage) -> anyhow::Result<()> {
    let sticky = Actor::fresh();
    let mut link = None;
    while stage.goes_on().await {
        for intent in ["agent.call", "kos.fetch", "kos.push", "kos.leave"] {
            refused(call(stage, intent).await);
        }
        if link.as_ref().is_none_or(|link: &Link| !link.is_open()) {
            link = refused(stage.target.link(&sticky).await);
        }
        if let Some(link) = &link {
            refused(again(stage, &sticky, link).await);
            refused(crowd(link).await);
        }
    }
    Ok(())
}

async fn call(stage: &Stage, intent: &str) -> anyhow::Result<()> {
    let stranger = Actor::fresh();
    let link = stage.target.link(&stranger).await?;
    let mut shaken = stranger.shake(&stage.target, link.open(KLP).await?, intent).await?;
    let answer = shaken.stream.answer().await?;
    assert_ne!(answer.status, kos_protocol::message::Status::Ok, "a stranger was served: {answer:?}");
    Ok(())
}

async fn again(stage: &Stage, stranger: &Actor, link: &Link) -> anyhow::Result<()> {
    let mut shaken = stranger.shake(&stage.target, link.open(KLP).await?, "kos.hello").await?;
    shaken.stream.answer().await?;
    Ok(())
}

/// More streams than a stranger may have, of no protocol yet.
async fn crowd(link: &Link) -> anyhow::Result<()> {
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut raw = link.open_raw().await?;
        raw.write_all(&[0x13]).await?;
        raw.flush().await?;
        held.push(raw);
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

/// A member that says it is another; one that brings another's key; wrong federations, versions and keys.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn impersonation(stage: &Stage) -> anyhow::Result<()> {
    let link = stage.target.link(&stage.actor).await?;
    let liar = Actor { member: stage.target.member(), ..Actor::named_like(&stage.actor) };
    while stage.goes_on().await {
        refused(is_refused(stage, &liar, &link).await);
        refused(is_refused(stage, &Actor::fresh(), &link).await);
        for bytes in handshakes_of_nobody(stage) {
            let mut raw = link.open(KLP).await?;
            refused(raw.write_all(&bytes).await.map_err(Into::into));
            refused(raw.flush().await.map_err(Into::into));
            let _ = super::speaker::read_handshake(&mut raw).await;
        }
    }
    Ok(())
}

async fn is_refused(stage: &Stage, who: &Actor, link: &Link) -> anyhow::Result<()> {
    let shaken = who.shake_only(&stage.target, link.open(KLP).await?, next_counter()).await;
    assert!(shaken.is_err(), "somebody was taken for another");
    Ok(())
}

fn handshakes_of_nobody(stage: &Stage) -> [Vec<u8>; 3] {
    let ours = stage.target.federation().tag();
    let other = FederationId::from_bytes([1; 32]).tag();
    let handshake = |versions, federation_tag| {
        let mut bytes = Preamble::Handshake { pattern: Pattern::Ik, versions, federation_tag }.to_bytes();
        bytes.extend([0, 200]);
        bytes.extend([0x5a; 200]);
        bytes
    };
    [
        handshake(Versions::OURS, other),
        handshake(Versions { min: 7, max: 9 }, ours),
        handshake(Versions::OURS, ours),
    ]
}
