//! Small messages that are meant to become large, or dear: nesting, lengths that lie, key logs without end.

use super::{
    Stage, refused,
    speaker::{Actor, Framed, KLP},
};
use kos_protocol::{
    cbor,
    limits::{JOIN_REQUEST_BYTES_MAX, KEY_EVENTS_MAX},
    message::{End, FrameKind},
};

/// CBOR that nests, lies about its lengths, or names one thing twice.
fn heads() -> Vec<Vec<u8>> {
    let in_head = |value: &[u8]| [b"\xa2\x66intent\x68kos.ping\x66zzzzzz", value].concat();
    vec![
        in_head(&[0x81; 15_000]),
        in_head(&[&[0x81; 17][..], b"\x00"].concat()),
        in_head(b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff"),
        in_head(b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff\x00"),
        in_head(b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff"),
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        in_head(b"\x1b\x00\x00\x00\x00\x00\x00\x00\x01"),
        b"\xa2\x66intent\x68kos.ping\x66intent\x68kos.ping".to_vec(),
    ]
}

/// Heads from a member; requests to join from strangers, each from an address of its own.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn bombs(stage: &Stage) -> anyhow::Result<()> {
    let link = stage.target.link(&stage.actor).await?;
    let mut shaken = stage.actor.shake(&stage.target, link.open(KLP).await?, "kos.ping").await?;
    shaken.stream.answer().await?;
    while stage.goes_on().await {
        for head in heads() {
            let mut stream = Framed::open(&mut shaken.session, link.open(KLP).await?).await?;
            stream.frame(FrameKind::Head, &head).await?;
            stream.frame(FrameKind::End, &cbor::encode(&End::ok())).await?;
            refused(stream.answer().await);
        }
        refused(join(stage).await);
    }
    Ok(())
}

/// A request whose key log is as long as it fits, and not one.
async fn join(stage: &Stage) -> anyhow::Result<()> {
    let stranger = Actor::fresh();
    let link = stage.target.link(&stranger).await?;
    let mut shaken = stranger.shake(&stage.target, link.open(KLP).await?, "kos.hello").await?;
    shaken.stream.answer().await?;
    let mut request = stranger.join_request(&stage.target, "nobody", *shaken.session.handshake_hash());
    let event = request.key_log[0].clone();
    while request.key_log.len() < KEY_EVENTS_MAX {
        request.key_log.push(event.clone());
        if cbor::encode(&request).len() > JOIN_REQUEST_BYTES_MAX - event.len() {
            break;
        }
    }
    shaken.stream.ask("kos.join", &cbor::encode(&request)).await?;
    let answer = shaken.stream.answer().await?;
    assert_ne!(answer.status, kos_protocol::message::Status::Ok, "a stranger was let in: {answer:?}");
    Ok(())
}
