//! What tests run on hosts of the laboratory: a web service with every kind of answer, and a WebSocket client.

use anyhow::{Context, ensure};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, WebSocketUpgrade, ws::Message},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::Parser;
use futures::{SinkExt, StreamExt, stream};
use kos_shell::{Knowledge, NoApp, Options, Runtime};
use serde::Deserialize;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

#[derive(Parser)]
enum Args {
    /// Serves `/`, `/big?bytes=N`, `/events?count=N`, `/upload`, `/ws`, `/slow`.
    Origin {
        /// Where to listen.
        address: SocketAddr,
    },
    /// Sends texts over a WebSocket and expects them back.
    Ws {
        /// `ws://…`
        url: String,
        /// How many.
        #[arg(default_value_t = 10)]
        count: u32,
    },
    /// Connects to a member from nothing, several times, as the node of a folder that is free now. Prints the
    /// milliseconds until the first reply, a line each.
    Cold {
        /// The node's data folder.
        folder: std::path::PathBuf,
        /// The member's name.
        member: String,
        /// How often.
        count: u32,
        /// As if the member's key were not known.
        #[arg(long)]
        unknown: bool,
    },
    /// Downloads a body of `/big`, reads nothing for a while in the middle, and checks every byte. Prints `stalled`
    /// when it stops reading and `reading` when it goes on.
    Stall {
        /// `http://…`
        url: String,
        /// Bytes to read before.
        after: u64,
        /// Seconds to read nothing.
        seconds: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Args::parse() {
        Args::Origin { address } => origin(address).await,
        Args::Ws { url, count } => ws(&url, count).await,
        Args::Cold { folder, member, count, unknown } => {
            let knowledge = if unknown { Knowledge::Addresses } else { Knowledge::Key };
            cold(folder, &member, count, knowledge).await
        }
        Args::Stall { url, after, seconds } => stall(&url, after, Duration::from_secs(seconds)).await,
    }
}

async fn origin(address: SocketAddr) -> anyhow::Result<()> {
    let service = Router::new()
        .route("/", get(async || "hello from the attic\n"))
        .route("/big", get(big))
        .route("/events", get(events))
        .route("/upload", post(async |body: Bytes| format!("{}\n", body.len())))
        .route("/slow", get(async || std::future::pending::<()>().await))
        .route("/ws", get(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(echo)))
        .layer(axum::extract::DefaultBodyLimit::max(1 << 30));
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, service).await?)
}

#[derive(Deserialize)]
struct Size {
    bytes: u64,
}

/// A body whose every 8 bytes are their own offset, so that a hole or a swap shows.
async fn big(Query(Size { bytes }): Query<Size>) -> Response {
    const CHUNK: u64 = 64 * 1024;
    let chunks = stream::iter((0..bytes.div_ceil(CHUNK)).map(move |n| {
        let begin = n * CHUNK;
        let end = (begin + CHUNK).min(bytes);
        let chunk: Vec<u8> = (begin..end)
            .map(|at| (at / 8 * 8).to_be_bytes()[usize::try_from(at % 8).unwrap_or_default()])
            .collect();
        Ok::<_, std::io::Error>(Bytes::from(chunk))
    }));
    ([("content-length", bytes.to_string())], Body::from_stream(chunks)).into_response()
}

#[derive(Deserialize)]
struct Count {
    count: u32,
}

/// Events, each sent when the one before has left.
async fn events(Query(Count { count }): Query<Count>) -> Response {
    let events = stream::unfold(0, move |n| async move {
        if n == count {
            return None;
        }
        if n > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some((Ok::<_, std::io::Error>(Bytes::from(format!("data: {n}\n\n"))), n + 1))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
}

async fn echo(mut socket: axum::extract::ws::WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        let is_close = matches!(message, Message::Close(_));
        if is_close || socket.send(message).await.is_err() {
            return;
        }
    }
}

async fn ws(url: &str, count: u32) -> anyhow::Result<()> {
    let address = url.strip_prefix("ws://").context("a ws:// url")?.split('/').next().unwrap_or_default();
    let stream = tokio::net::TcpStream::connect(address).await?;
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
    for n in 0..count {
        let text = format!("message {n}");
        socket.send(tokio_tungstenite::tungstenite::Message::text(text.clone())).await?;
        let back = socket.next().await.context("the socket closed")??;
        ensure!(back.to_text()? == text, "{back:?} instead of {text}");
    }
    socket.close(None).await?;
    println!("{count} messages came back");
    Ok(())
}

async fn stall(url: &str, after: u64, pause: Duration) -> anyhow::Result<()> {
    let (address, path) =
        url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).context("an http:// url")?;
    let mut stream = tokio::io::BufReader::new(tokio::net::TcpStream::connect(address).await?);
    let request = format!("GET /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut left = None;
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "no answer");
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            left = Some(length.trim().parse::<u64>()?);
        }
        if line == "\r\n" {
            break;
        }
    }
    let length = left.context("an answer with a length")?;
    let (mut at, mut is_stalled_yet) = (0, false);
    let mut word = [0; 8];
    while at < length {
        if at >= after && !is_stalled_yet {
            is_stalled_yet = true;
            println!("stalled");
            tokio::time::sleep(pause).await;
            println!("reading");
        }
        let part = usize::try_from((length - at).min(8))?;
        stream.read_exact(&mut word[..part]).await.with_context(|| format!("after {at} bytes"))?;
        ensure!(word[..part] == at.to_be_bytes()[..part], "a hole or a swap at {at}");
        at += part as u64;
    }
    println!("{at} bytes, each in its place");
    Ok(())
}

async fn cold(
    folder: std::path::PathBuf,
    member: &str,
    count: u32,
    knowledge: Knowledge,
) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut options = Options::new(folder);
    options.documentation = kos_shell::Documentation::Global;
    options.mdns = false;
    options.upnp = false;
    options.kad = false;
    let node = Runtime::start(options, Arc::new(NoApp)).await?;
    let id = node.me().federation;
    let member = node.resolve_member(&id, member)?;
    for _ in 0..count {
        let took = node.cold_ping(&id, member, knowledge).await?;
        println!("{}", took.as_secs_f64() * 1000.0);
    }
    node.shutdown().await;
    Ok(())
}
