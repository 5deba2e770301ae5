//! `--metrics`: what the relay counts, over the smallest HTTP that Prometheus and curl understand. One route, one answer
//! for each connection: a whole HTTP server would be most of this program.

use kos_shell::{Runtime, metrics::CONTENT_TYPE};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

/// Readers served at once; others wait.
const READERS_MAX: usize = 4;
/// Longest head of a request.
const HEAD_BYTES_MAX: u64 = 8 * 1024;
/// How long one reader may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// An address of loopback: whoever is on this machine may know what is counted, nobody else is asked for a password.
pub fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "write it as 127.0.0.1:9100".to_owned())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err(format!("{} is not loopback; metrics are for this machine", address.ip()))
}

/// Answers readers for as long as the future lives.
pub async fn serve(listener: TcpListener, runtime: Runtime) {
    let places = Arc::new(Semaphore::new(READERS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, for instance: some will come back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let runtime = runtime.clone();
        tokio::spawn(async move {
            if !matches!(tokio::time::timeout(PATIENCE, answer(stream, &runtime)).await, Ok(Ok(()))) {
                tracing::debug!("a reader of metrics went away");
            }
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, runtime: &Runtime) -> std::io::Result<()> {
    let own = stream.local_addr()?;
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read.take(HEAD_BYTES_MAX)).lines();
    let request = lines.next_line().await?.unwrap_or_default();
    // The whole head is read, or closing would reset the connection under the answer.
    let mut is_ours = false;
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        let host = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("host"));
        is_ours |= host.is_some_and(|(_, host)| names(own, host.trim()));
    }
    let (status, body) = match request.split(' ').collect::<Vec<_>>()[..] {
        _ if !is_ours => ("421 Misdirected Request", "this listener has another name\n".to_owned()),
        ["GET", "/metrics", _] => match runtime.metrics().await {
            Some(metrics) => ("200 OK", metrics.finish()),
            None => ("503 Service Unavailable", "the mesh has stopped\n".to_owned()),
        },
        ["GET", _, _] => ("404 Not Found", "only /metrics is here\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET is answered\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    write.write_all(head.as_bytes()).await?;
    write.write_all(body.as_bytes()).await?;
    write.shutdown().await
}

/// Whether `host` names this listener: a page of another site that had its name lead here names itself.
fn names(own: SocketAddr, host: &str) -> bool {
    host == own.to_string() || host == format!("localhost:{}", own.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kos_shell::{NoApp, NodeRole, Options};

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn metrics_are_for_this_machine() {
        assert!(loopback("127.0.0.1:9100").is_ok() && loopback("[::1]:9100").is_ok());
        for foreign in ["0.0.0.0:9100", "192.168.1.2:9100", "[::]:9100"] {
            assert!(loopback(foreign).unwrap_err().contains("not loopback"), "{foreign}");
        }
        assert!(loopback("9100").is_err());
    }

    #[tokio::test]
    async fn one_route_is_answered() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::new(folder.path().join("relay"));
        options.role = NodeRole::Relay;
        (options.mdns, options.upnp, options.kad) = (false, false, false);
        options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()]);
        let relay = Runtime::start(options, Arc::new(NoApp)).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, relay.clone()));
        let answer = ask(address, &format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("\nkos_carried_bytes_total 0\n"), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        for (request, status) in [
            (format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n"), "404"),
            (format!("POST /metrics HTTP/1.1\r\nhost: localhost:{}\r\n\r\n", address.port()), "405"),
            ("GET /metrics HTTP/1.1\r\nhost: rebound.example\r\n\r\n".to_owned(), "421"),
            ("\r\n\r\n".to_owned(), "421"),
        ] {
            assert!(ask(address, &request).await.starts_with(&format!("HTTP/1.1 {status} ")), "{request}");
        }
        serving.abort();
        relay.shutdown().await;
    }
}
