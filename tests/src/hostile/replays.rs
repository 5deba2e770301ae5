//! What was said once, said again.

use super::{
    Stage, refused,
    speaker::{Actor, Framed, KLP, open_carried},
};
use kos_protocol::{
    message::FrameKind,
    preamble::{Preamble, SessionId},
};
use tokio::io::AsyncWriteExt;

/// First messages of handshakes with early data, again and again, directly and over carried streams, which are held
/// open so that the sessions they make stay.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn handshakes(stage: &Stage) -> anyhow::Result<()> {
    let link = stage.target.link(&stage.actor).await?;
    let first = stage.actor.first_message(&stage.target, "kos.ping")?;
    let mut held = Vec::new();
    while stage.goes_on().await {
        let carried = held.len() % 2 == 1;
        let opened = match carried {
            true => open_carried(&link, &stage.target, &stage.actor).await,
            false => link.open(KLP).await,
        };
        let Some(mut raw) = refused(opened) else { continue };
        refused(raw.write_all(&first).await.map_err(Into::into));
        refused(raw.flush().await.map_err(Into::into));
        held.push(raw);
        if held.len() > 100 {
            held.clear();
        }
    }
    Ok(())
}

/// Streams opened twice, under numbers of the other side, of no session, and over somebody else's link.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn streams(stage: &Stage) -> anyhow::Result<()> {
    let link = stage.target.link(&stage.actor).await?;
    let mut shaken = stage.actor.shake(&stage.target, link.open(KLP).await?, "kos.ping").await?;
    shaken.stream.answer().await?;
    while stage.goes_on().await {
        let (preamble, mut sealer, _) = shaken.session.open_stream()?;
        let mut bytes = preamble;
        sealer.seal(FrameKind::Head, &super::speaker::head("kos.ping"), &mut bytes)?;
        // The second opens when the first has been heard, or both at once.
        for _ in 0..3 {
            let mut raw = link.open(KLP).await?;
            refused(raw.write_all(&bytes).await.map_err(Into::into));
            refused(raw.flush().await.map_err(Into::into));
        }
        for (session, stream) in [(shaken.session.id(), 0), (shaken.session.id(), 1), (SessionId([9; 16]), 2)]
        {
            let mut raw = link.open(KLP).await?;
            raw.write_all(&Preamble::Exchange { session, stream }.to_bytes()).await?;
            raw.flush().await?;
        }
        refused(over_another_link(stage, &mut shaken.session).await);
    }
    Ok(())
}

async fn over_another_link(
    stage: &Stage,
    session: &mut kos_protocol::session::Session,
) -> anyhow::Result<()> {
    let link = stage.target.link(&Actor::fresh()).await?;
    let mut stream = Framed::open(session, link.open(KLP).await?).await?;
    stream.ask("kos.ping", b"").await?;
    stream.ended().await;
    Ok(())
}
