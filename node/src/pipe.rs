//! Raw bytes between an upgraded HTTP connection and an exchange.

use kos_mesh::link::{RecvHalf, SendHalf, StreamError};
use kos_protocol::message::{End, Status};
use std::{future::Future, io, pin::pin, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes read at once.
const BUFFER_BYTES: usize = 16 * 1024;
/// How long one direction may go on when the other has ended. A WebSocket's close takes one round trip.
const LINGER: Duration = Duration::from_secs(30);

/// Moves bytes both ways until both directions have ended, one has failed, or one has ended and the other does not
/// follow within half a minute. A direction that fails takes the other with it, and neither is ended cleanly.
pub async fn pipe(io: impl AsyncRead + AsyncWrite + Unpin + Send, send: SendHalf, recv: RecvHalf) {
    let (read, write) = tokio::io::split(io);
    let out = pin!(outward(read, send));
    let back = pin!(inward(recv, write));
    let outcome = match futures::future::select(out, back).await {
        futures::future::Either::Left((first, rest)) => linger(first, rest).await,
        futures::future::Either::Right((first, rest)) => linger(first, rest).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "an upgraded connection broke off");
    }
}

async fn linger(
    first: Result<(), StreamError>,
    rest: impl Future<Output = Result<(), StreamError>>,
) -> Result<(), StreamError> {
    first?;
    match tokio::time::timeout(LINGER, rest).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

async fn outward(mut read: impl AsyncRead + Unpin, mut send: SendHalf) -> Result<(), StreamError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match read.read(&mut buffer).await? {
            0 => return send.end(&End::ok()).await,
            length => {
                send.data(&buffer[..length]).await?;
                send.flush().await?;
            }
        }
    }
}

async fn inward(mut recv: RecvHalf, mut write: impl AsyncWrite + Unpin) -> Result<(), StreamError> {
    while let Some(part) = recv.next().await? {
        write.write_all(&part).await?;
        write.flush().await?;
    }
    if recv.ended().is_none_or(|end| end.status != Status::Ok) {
        return Err(StreamError::CutShort);
    }
    Ok(write.shutdown().await?)
}
