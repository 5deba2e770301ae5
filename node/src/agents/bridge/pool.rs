//! Connections to one origin.

use super::upload::Upload;
use futures::FutureExt;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};
use tokio_util::task::AbortOnDropHandle;

/// Idle connections kept: about what one busy browser and a few programs use.
const IDLE_MAX: usize = 16;
/// A connection over which nothing came for this long is probed.
const PROBE_AFTER: Duration = Duration::from_secs(30);
/// And then this often.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Probes without an answer after which the host is gone.
const PROBES: u32 = 3;
/// How long what we sent may stay unacknowledged.
const UNACKNOWLEDGED_MS: u32 = 60_000;
/// How long one is kept. Shorter than what common servers allow, so that we are the one to close it.
const IDLE_FOR: Duration = Duration::from_secs(4);

/// A connection, for one request at a time. Dropped, it is closed, whatever is under way on it.
pub struct Connection {
    /// Sends requests.
    pub sender: SendRequest<Upload>,
    /// Whether it has carried a request before, so that the origin may have closed it by now.
    pub reused: bool,
    _driver: AbortOnDropHandle<()>,
}

/// The idle connections to an origin, and its addresses, which were checked when the bridge was made.
pub struct Pool {
    addresses: Vec<SocketAddr>,
    connect: Duration,
    idle: Mutex<Vec<(Connection, Instant)>>,
}

impl Pool {
    /// A pool without connections. Connecting may take `connect`, over all addresses.
    pub fn new(addresses: Vec<SocketAddr>, connect: Duration) -> Self {
        Self { addresses, connect, idle: Mutex::default() }
    }

    /// An idle connection, the youngest first, or a new one.
    ///
    /// # Errors
    /// The last address's, or that it took too long.
    pub async fn take(&self) -> io::Result<Connection> {
        match self.take_idle() {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(connection, since)| !connection.sender.is_closed() && since.elapsed() < IDLE_FOR);
        let ready = idle
            .iter_mut()
            .rposition(|(connection, _)| matches!(connection.sender.ready().now_or_never(), Some(Ok(()))))?;
        let (mut connection, _) = idle.remove(ready);
        connection.reused = true;
        Some(connection)
    }

    /// Takes back a connection on which nothing is under way.
    pub fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= IDLE_MAX {
            idle.remove(0);
        }
        idle.push((connection, Instant::now()));
    }

    /// Closes what has been idle for too long.
    pub fn expire(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(connection, since)| !connection.sender.is_closed() && since.elapsed() < IDLE_FOR);
    }

    /// A new connection.
    ///
    /// # Errors
    /// As [`Pool::take`].
    pub async fn connect(&self) -> io::Result<Connection> {
        let connected = tokio::time::timeout(self.connect, async {
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for address in &self.addresses {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        let stream = connected.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        stream.set_nodelay(true)?;
        notice_silence(&stream)?;
        let (sender, connection) =
            Builder::new().handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an origin ended");
            }
        });
        Ok(Connection { sender, reused: false, _driver: AbortOnDropHandle::new(driver) })
    }
}

/// A host that vanishes says nothing: the system finds out within about a minute, whatever is under way, so that raw
/// streams, which may be silent for as long as they like, do not wait for ever.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_connection_notices_a_host_that_vanishes() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        notice_silence(&stream).unwrap();
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), PROBE_AFTER);
        assert_eq!(sockopt::tcp_keepintvl(&stream).unwrap(), PROBE_EVERY);
        assert_eq!(sockopt::tcp_keepcnt(&stream).unwrap(), PROBES);
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), UNACKNOWLEDGED_MS);
    }
}
