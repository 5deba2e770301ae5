//! `kai forward` against the very web service it leads to: two real nodes on loopback, and the service in this process.

use super::{
    Figure, median,
    subject::{Listen, Subject},
};
use anyhow::{Context, ensure};
use axum::{Router, body::Body, extract::Path as UrlPath, routing::get};
use bytes::Bytes;
use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

const CHUNK: Bytes = Bytes::from_static(&[7; 64 * 1024]);
/// Small requests of one run.
const REQUESTS: usize = 200;

/// `forward_bulk` and `forward_first_byte_ms`.
pub(super) async fn run(place: &Path, bulk_bytes: usize, runs: usize) -> anyhow::Result<Vec<Figure>> {
    let direct = origin().await?;
    let mut attic = Subject::new(place, "attic", Listen::Quic)?;
    let mut cellar = Subject::new(place, "cellar", Listen::Quic)?;
    attic.up().await?;
    cellar.up().await?;
    let origin = format!("http://{direct}");
    attic.json(&["agent", "start", "kBridge:notes", "--http", &origin]).await?;
    let code = attic.invitation(1).await?;
    cellar.json(&["join", "--yes", &code]).await?;
    let mut forward =
        cellar.command(&["forward", "0", "kBridge:notes@attic"])?.stdout(Stdio::piped()).spawn()?;
    let stdout = forward.stdout.take().context("standard output is piped")?;
    let line = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
    let address = line.strip_prefix("http://").with_context(|| format!("kai forward said `{line}`"))?;
    let forwarded: SocketAddr = address.trim_end_matches('/').parse()?;
    let (mut bulk, mut first) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..runs {
        for (place, target) in [forwarded, direct].into_iter().enumerate() {
            let (_, took) = fetch(target, bulk_bytes).await?;
            bulk[place].push(bulk_bytes as f64 / 1e6 / took.as_secs_f64());
            let mut times = Vec::new();
            for _ in 0..REQUESTS {
                times.push(fetch(target, 1).await?.0.as_secs_f64() * 1000.0);
            }
            first[place].push(median(times));
        }
    }
    forward.kill().await?;
    cellar.down().await?;
    attic.down().await?;
    let [ours, theirs] = bulk.map(median);
    let [through, straight] = first.map(median);
    Ok(vec![
        Figure {
            name: "forward_bulk".to_owned(),
            value: ours,
            unit: "MB/s",
            peer: Some("direct HTTP"),
            ratio: Some(ours / theirs),
            bar: "≥ 0.50",
        },
        Figure {
            name: "forward_first_byte_ms".to_owned(),
            value: through - straight,
            unit: "ms more",
            peer: Some("direct HTTP"),
            ratio: Some(through / straight),
            bar: "≤ 2",
        },
    ])
}

/// A web service whose bodies are as long as the path says.
async fn origin() -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = Router::new().route("/{bytes}", get(async |UrlPath(bytes): UrlPath<usize>| body(bytes)));
    tokio::spawn(async move { drop(axum::serve(listener, service).await) });
    Ok(address)
}

fn body(bytes: usize) -> Body {
    let chunks = (0..bytes.div_ceil(CHUNK.len()))
        .map(move |n| Ok::<_, std::io::Error>(CHUNK.slice(..CHUNK.len().min(bytes - n * CHUNK.len()))));
    Body::from_stream(futures::stream::iter(chunks))
}

/// One request on a connection of its own: how long until its first byte, and until its last.
async fn fetch(target: SocketAddr, bytes: usize) -> anyhow::Result<(Duration, Duration)> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET /{bytes} HTTP/1.1\r\nhost: {target}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = vec![0; 256 * 1024];
    let mut received = stream.read(&mut buffer).await?;
    let first = begun.elapsed();
    ensure!(buffer.starts_with(b"HTTP/1.1 200"), "the page was not answered");
    loop {
        match stream.read(&mut buffer).await? {
            0 => break,
            length => received += length,
        }
    }
    ensure!(received > bytes, "{received} bytes of {bytes} came");
    Ok((first, begun.elapsed()))
}
