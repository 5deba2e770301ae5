//! KLP against raw quinn, both on loopback, in one process, in turns; then `kai forward` against direct HTTP.

use super::{Figure, RUNS, Report, median};
use anyhow::{Context, ensure};
use kos_governance::act::Role;
use kos_mesh::link::{Body, Caller, Request, To};
use kos_protocol::message::{End, Head, ReplyHead, Status};
use kos_shell::{Answering, App, AuditEvent, Change, InviteOptions, Options, Runtime};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

const SMALL: [u8; 256] = [7; 256];
const BULK_CHUNK: usize = 64 * 1024 - 64;

/// How much work each run does.
#[derive(Clone, Debug)]
pub struct Size {
    /// Bytes of a bulk run.
    pub bulk_bytes: usize,
    /// Exchanges of a small run.
    pub exchanges: usize,
    /// Alternating runs.
    pub runs: usize,
    /// How the names of the wanted figures begin.
    pub only: String,
}

impl Default for Size {
    fn default() -> Self {
        Self { bulk_bytes: 256 << 20, exchanges: 4000, runs: RUNS, only: String::new() }
    }
}

/// Answers the benchmark's intents.
struct Server;

impl App for Server {
    fn admit(&self, _: &Caller, _: &Head) -> Result<Answering, End> {
        Ok(Box::new(|request| Box::pin(answer(request))))
    }
    fn audit(&self, _: AuditEvent) {}
    fn changed(&self, _: Change) {}
}

async fn answer(mut request: Request) {
    let outcome = match request.head.intent.as_str() {
        "bench.echo" => match request.recv.read_all(1 << 20).await {
            Ok(body) => request.send.reply(&ReplyHead::default(), &body).await,
            Err(error) => Err(error),
        },
        "bench.sink" => {
            let mut bytes = 0_u64;
            while let Ok(Some(part)) = request.recv.next().await {
                bytes += part.len() as u64;
            }
            request.send.reply(&ReplyHead::default(), &bytes.to_be_bytes()).await
        }
        "bench.ping-pong" => ping_pong(request).await,
        _ => request.send.refuse(Status::NotFound, "no such benchmark").await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "benchmark");
    }
}

async fn ping_pong(mut request: Request) -> Result<(), kos_mesh::link::StreamError> {
    request.send.head(&ReplyHead::default())?;
    request.send.flush().await?;
    while let Some(part) = request.recv.next().await? {
        request.send.data(&part).await?;
        request.send.flush().await?;
    }
    request.send.end(&End::ok()).await
}

async fn node(folder: &Path, name: &str) -> anyhow::Result<Runtime> {
    let mut options = Options::new(folder.join(name));
    options.name = Some(name.to_owned());
    options.listen = Some(vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse()?]);
    options.mdns = false;
    options.upnp = false;
    options.kad = false;
    Ok(Runtime::start(options, Arc::new(Server)).await?)
}

/// Two members of one federation on loopback, and a raw quinn pair.
struct Bench {
    caller: Runtime,
    callee: Runtime,
    to: To,
    quinn: quinn::Connection,
    _server: quinn::Endpoint,
    _client: quinn::Endpoint,
    size: Size,
}

/// Runs every figure of `kai bench link`.
///
/// # Errors
/// Whatever keeps two nodes on loopback from talking.
pub async fn run(folder: &Path, size: Size) -> anyhow::Result<Report> {
    let bench = Bench::start(folder, size.clone()).await?;
    let mut figures = Vec::new();
    figures.extend(bench.compare("bulk", "MB/s", "≥ 0.90", Bench::klp_bulk, Bench::quinn_bulk).await?);
    figures.extend(bench.compare("new_exchange", "1/s", "≥ 0.60", Bench::klp_new, Bench::quinn_new).await?);
    figures.extend(
        bench.compare("new_exchange_64", "1/s", "≥ 0.60", Bench::klp_new_64, Bench::quinn_new_64).await?,
    );
    figures.extend(
        bench.compare("ping_pong", "1/s", "≥ 0.90", Bench::klp_ping_pong, Bench::quinn_ping_pong).await?,
    );
    bench.caller.shutdown().await;
    bench.callee.shutdown().await;
    if "forward".starts_with(&size.only) || size.only.starts_with("forward") {
        let both = super::forward::run(folder, size.bulk_bytes, size.runs).await?;
        figures.extend(both.into_iter().filter(|figure| figure.name.starts_with(&size.only)));
    }
    Ok(Report::new(figures))
}

impl Bench {
    async fn start(folder: &Path, size: Size) -> anyhow::Result<Self> {
        let (callee, caller) = (node(folder, "callee").await?, node(folder, "caller").await?);
        let id = callee.me().federation;
        let options = InviteOptions {
            role: Role::Member,
            uses: 1,
            ttl_ms: 600_000,
            until_ms: None,
            lan: true,
            note: None,
        };
        let mut invitation = callee.invite(&id, options.clone()).await;
        for _ in 0..100 {
            if invitation.is_ok() {
                break;
            }
            // The listening addresses come a moment after the start.
            tokio::time::sleep(Duration::from_millis(20)).await;
            invitation = callee.invite(&id, options.clone()).await;
        }
        caller.join(&invitation?.code, false).await?;
        let member = caller.resolve_member(&id, "callee")?;
        let report = caller.ping(&id, member, 3).await?;
        ensure!(report.chosen == "direct", "the benchmark needs a direct connection, not {}", report.chosen);
        let link =
            caller.members(&id).into_iter().find(|info| info.member == member).and_then(|info| info.link);
        ensure!(
            link.is_some_and(|link| link.transport == Some("quic")),
            "the benchmark needs a QUIC connection"
        );
        let to = To { federation: id, key: callee.me().key };
        let (server, client, quinn) = quinn_pair().await?;
        Ok(Self { caller, callee, to, quinn, _server: server, _client: client, size })
    }

    /// Alternates ours and the peer's; both figures are rates, so a ratio above 1 means we are ahead.
    async fn compare(
        &self,
        name: &str,
        unit: &'static str,
        bar: &'static str,
        ours: impl AsyncFn(&Self) -> anyhow::Result<f64>,
        peers: impl AsyncFn(&Self) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Option<Figure>> {
        if !name.starts_with(&self.size.only) {
            return Ok(None);
        }
        let (mut our_rates, mut peer_rates) = (Vec::new(), Vec::new());
        for _ in 0..self.size.runs {
            our_rates.push(ours(self).await?);
            peer_rates.push(peers(self).await?);
        }
        let (value, peer) = (median(our_rates), median(peer_rates));
        Ok(Some(Figure {
            name: name.to_owned(),
            value,
            unit,
            peer: Some("raw quinn"),
            ratio: Some(value / peer),
            bar,
        }))
    }

    async fn klp_bulk(&self) -> anyhow::Result<f64> {
        let chunk = vec![7; BULK_CHUNK];
        let begun = Instant::now();
        let mut exchange = self.caller.links().open(self.to, &head("bench.sink"), Body::Streaming).await?;
        let mut left = self.size.bulk_bytes;
        while left > 0 {
            let length = left.min(chunk.len());
            exchange.send.data(&chunk[..length]).await?;
            left -= length;
        }
        exchange.send.end(&End::ok()).await?;
        exchange.recv.head().await?.map_err(|end| anyhow::anyhow!("{end}"))?;
        let received = exchange.recv.read_all(8).await?;
        ensure!(received == (self.size.bulk_bytes as u64).to_be_bytes(), "not all bytes arrived");
        Ok(self.size.bulk_bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
    }

    async fn quinn_bulk(&self) -> anyhow::Result<f64> {
        let chunk = vec![7; BULK_CHUNK];
        let begun = Instant::now();
        let (mut send, mut recv) = self.quinn.open_bi().await?;
        send.write_all(b"s").await?;
        let mut left = self.size.bulk_bytes;
        while left > 0 {
            let length = left.min(chunk.len());
            send.write_all(&chunk[..length]).await?;
            left -= length;
        }
        send.finish()?;
        let received = recv.read_to_end(8).await?;
        ensure!(received == (self.size.bulk_bytes as u64).to_be_bytes(), "not all bytes arrived");
        Ok(self.size.bulk_bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
    }

    async fn klp_one(&self) -> anyhow::Result<()> {
        let answer = self.caller.links().ask(self.to, &head("bench.echo"), &SMALL, 256).await?;
        ensure!(answer.map_err(|end| anyhow::anyhow!("{end}"))?.body == SMALL, "another answer");
        Ok(())
    }

    async fn quinn_one(&self) -> anyhow::Result<()> {
        let (mut send, mut recv) = self.quinn.open_bi().await?;
        send.write_all(b"e").await?;
        send.write_all(&SMALL).await?;
        send.finish()?;
        ensure!(recv.read_to_end(256).await? == SMALL, "another answer");
        Ok(())
    }

    async fn klp_new(&self) -> anyhow::Result<f64> {
        rate(self.size.exchanges, 1, async || self.klp_one().await).await
    }

    async fn quinn_new(&self) -> anyhow::Result<f64> {
        rate(self.size.exchanges, 1, async || self.quinn_one().await).await
    }

    async fn klp_new_64(&self) -> anyhow::Result<f64> {
        rate(self.size.exchanges, 64, async || self.klp_one().await).await
    }

    async fn quinn_new_64(&self) -> anyhow::Result<f64> {
        rate(self.size.exchanges, 64, async || self.quinn_one().await).await
    }

    async fn klp_ping_pong(&self) -> anyhow::Result<f64> {
        let mut exchange =
            self.caller.links().open(self.to, &head("bench.ping-pong"), Body::Streaming).await?;
        exchange.recv.head().await?.map_err(|end| anyhow::anyhow!("{end}"))?;
        let begun = Instant::now();
        for _ in 0..self.size.exchanges {
            exchange.send.data(&SMALL).await?;
            exchange.send.flush().await?;
            let answer = exchange.recv.next().await?;
            ensure!(answer.as_deref() == Some(&SMALL[..]), "another answer");
        }
        let rate = self.size.exchanges as f64 / begun.elapsed().as_secs_f64();
        exchange.send.end(&End::ok()).await?;
        Ok(rate)
    }

    async fn quinn_ping_pong(&self) -> anyhow::Result<f64> {
        let (mut send, mut recv) = self.quinn.open_bi().await?;
        send.write_all(b"p").await?;
        let begun = Instant::now();
        let mut answer = [0; SMALL.len()];
        for _ in 0..self.size.exchanges {
            send.write_all(&SMALL).await?;
            recv.read_exact(&mut answer).await?;
            ensure!(answer == SMALL, "another answer");
        }
        let rate = self.size.exchanges as f64 / begun.elapsed().as_secs_f64();
        send.finish()?;
        Ok(rate)
    }
}

fn head(intent: &str) -> Head {
    Head { intent: intent.to_owned(), ..Head::default() }
}

/// Runs `count` calls, `at_once` of them at any time, and returns how many a second.
async fn rate(
    count: usize,
    at_once: usize,
    call: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let each = count / at_once;
    let lanes = (0..at_once).map(|_| async {
        for _ in 0..each {
            call().await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    futures::future::try_join_all(lanes).await?;
    Ok((each * at_once) as f64 / begun.elapsed().as_secs_f64())
}

/// A quinn client and server that do what the benchmark's intents do: the first byte of a stream says which.
async fn quinn_pair() -> anyhow::Result<(quinn::Endpoint, quinn::Endpoint, quinn::Connection)> {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let cert = certified.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let server_config = quinn::ServerConfig::with_single_cert(vec![cert.clone()], key)?;
    let server = quinn::Endpoint::server(server_config, "127.0.0.1:0".parse()?)?;
    let accepting = server.clone();
    tokio::spawn(async move {
        let Some(incoming) = accepting.accept().await else { return };
        let Ok(connection) = incoming.await else { return };
        while let Ok((send, recv)) = connection.accept_bi().await {
            tokio::spawn(async move { drop(quinn_serve(send, recv).await) });
        }
    });
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert)?;
    let mut client = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    client.set_default_client_config(quinn::ClientConfig::with_root_certificates(Arc::new(roots))?);
    let connection = client.connect(server.local_addr()?, "localhost")?.await.context("quinn on loopback")?;
    Ok((server, client, connection))
}

async fn quinn_serve(mut send: quinn::SendStream, mut recv: quinn::RecvStream) -> anyhow::Result<()> {
    let mut kind = [0];
    recv.read_exact(&mut kind).await?;
    let mut buffer = vec![0; 64 * 1024];
    match &kind {
        b"e" => {
            let body = recv.read_to_end(1 << 20).await?;
            send.write_all(&body).await?;
        }
        b"s" => {
            let mut bytes = 0_u64;
            while let Some(length) = recv.read(&mut buffer).await? {
                bytes += length as u64;
            }
            send.write_all(&bytes.to_be_bytes()).await?;
        }
        _ => {
            while let Some(length) = recv.read(&mut buffer).await? {
                send.write_all(&buffer[..length]).await?;
            }
        }
    }
    Ok(send.finish()?)
}
