//! KLP by hand: members of the attacker's making, handshakes, sealed and broken frames.

use super::wire::{Link, Raw, own_address};
use anyhow::{Context as _, bail, ensure};
use kos_governance::{code::Invitation, invite::InviteProof, join::JoinRequest};
use kos_protocol::{
    carry::Header,
    cbor,
    hello::Versions,
    id::{FederationId, MemberId, sha256},
    key::{PublicKey, SecretKey},
    key_log::KeyLog,
    limits::NOTICE_BYTES_MAX,
    message::{End, FrameKind, Head, Status},
    preamble::Notice,
    session::{Initiator, Local, Opener, Sealer, Session},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The stream protocol of sessions.
pub const KLP: &str = "/klp/1";
/// The stream protocol of carried streams.
pub const CARRY: &str = "/klp/carry/1";

/// The node under attack, as an invitation of its owner shows it.
pub struct Target {
    invitation: Invitation,
    /// Its TCP address.
    pub tcp: SocketAddr,
    /// Its QUIC address.
    pub quic: SocketAddr,
    own: AtomicU32,
}

/// A node of the attacker's.
pub struct Actor {
    /// Its key.
    pub secret: SecretKey,
    /// Its key log.
    pub log: KeyLog,
    /// What it says its member is; a liar's is another's.
    pub member: MemberId,
}

/// A session, and the two halves of a stream of it.
pub struct Shaken {
    /// The session.
    pub session: Session,
    /// The stream.
    pub stream: Framed,
    /// All bytes of the first message, for a replay.
    pub first: Vec<u8>,
}

/// A stream with its keys.
pub struct Framed {
    /// The bytes below.
    pub raw: Raw,
    sealer: Sealer,
    opener: Opener,
}

/// What a request was answered.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// Its text.
    pub text: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Target {
    /// Reads a code.
    ///
    /// # Errors
    /// When the code is none, or names no TCP and QUIC address.
    pub fn read(code: &str, seed: u32) -> anyhow::Result<Self> {
        let invitation = Invitation::parse(code)?;
        let address = |transport: &str| {
            let of_kind = invitation.addresses().iter().find(|text| text.contains(transport));
            let parts: Vec<_> = of_kind.map(|text| text.split('/').collect()).unwrap_or_default();
            let [_, _, ip, _, port, ..] = parts[..] else { bail!("no {transport} address in the code") };
            Ok(SocketAddr::new(ip.parse()?, port.parse()?))
        };
        Ok(Self {
            tcp: address("/tcp/")?,
            quic: address("/udp/")?,
            invitation,
            own: AtomicU32::new(seed << 12),
        })
    }

    /// The federation.
    pub fn federation(&self) -> FederationId {
        self.invitation.federation()
    }

    /// The node's key.
    pub fn key(&self) -> PublicKey {
        self.invitation.issuer_key()
    }

    /// The node's member.
    pub fn member(&self) -> MemberId {
        self.invitation.issuer()
    }

    /// Another address of this machine each time.
    pub fn from(&self) -> IpAddr {
        own_address(self.own.fetch_add(1, Ordering::Relaxed))
    }

    /// A link by TCP from an address of its own.
    ///
    /// # Errors
    /// When the target does not take it.
    pub async fn link(&self, actor: &Actor) -> anyhow::Result<Link> {
        Link::tcp(&actor.secret, self.tcp, self.from(), &[]).await
    }
}

fn random_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("the system gives random bytes");
    seed
}

/// Above every counter used before.
pub fn next_counter() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

impl Actor {
    /// The same for the same name.
    pub fn named(name: &str) -> Self {
        let key = |which: &str| SecretKey::from_seed(&sha256(format!("hostile {name} {which}").as_bytes()));
        Self::new(key("now"), key("next"))
    }

    /// One with the same keys.
    pub fn named_like(other: &Self) -> Self {
        Self { secret: other.secret.clone(), log: other.log.clone(), member: other.member }
    }

    /// One that nobody has met.
    pub fn fresh() -> Self {
        Self::new(SecretKey::from_seed(&random_seed()), SecretKey::from_seed(&random_seed()))
    }

    fn new(secret: SecretKey, next: SecretKey) -> Self {
        let log = KeyLog::incept(&secret, &next.public());
        Self { member: log.member(), secret, log }
    }

    /// What it brings to a handshake.
    pub fn local(&self, federation: FederationId) -> Local {
        Local {
            secret: self.secret.clone(),
            member: self.member,
            federation,
            versions: Versions::OURS,
            offers: BTreeMap::new(),
            wants: BTreeMap::new(),
            streams_max: 200,
            agent: "hostile/0".to_owned(),
        }
    }

    /// Becomes a member with the target's code.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn join(&self, target: &Target, name: &str) -> anyhow::Result<()> {
        let link = target.link(self).await?;
        let mut shaken = self.shake(target, link.open(KLP).await?, "kos.hello").await?;
        shaken.stream.answer().await?;
        let request = self.join_request(target, name, *shaken.session.handshake_hash());
        shaken.stream.ask("kos.join", &cbor::encode(&request)).await?;
        let answer = shaken.stream.answer().await?;
        ensure!(answer.status == Status::Ok, "not let in: {answer:?}");
        Ok(())
    }

    /// A request to join, genuine if this session has that hash.
    pub fn join_request(&self, target: &Target, name: &str, hash: [u8; 32]) -> JoinRequest {
        let invitation = &target.invitation;
        JoinRequest {
            federation: target.federation(),
            name: name.to_owned(),
            key_log: self.log.to_list(),
            invite: invitation.invite().bytes().to_vec().into(),
            proof: InviteProof::sign(invitation.invite_key(), target.federation(), hash, self.log.member()),
        }
    }

    /// A handshake with a whole request of this intent in it, which is sent again when the early data is not taken.
    ///
    /// # Errors
    /// When the target refuses.
    pub async fn shake(&self, target: &Target, raw: Raw, intent: &str) -> anyhow::Result<Shaken> {
        let mut early = Vec::new();
        kos_protocol::session::plain_frame(FrameKind::Head, &head(intent), &mut early);
        kos_protocol::session::plain_frame(FrameKind::End, &cbor::encode(&End::ok()), &mut early);
        let local = self.local(target.federation());
        let (initiator, first) =
            Initiator::start(&local, Some(target.key()), next_counter(), &early, random_seed())?;
        let (taken, mut shaken) = finish(initiator, first, raw).await?;
        if !taken {
            shaken.stream.ask(intent, b"").await?;
        }
        Ok(shaken)
    }

    /// The same without any request: the target has nothing but a handshake.
    ///
    /// # Errors
    /// When the target refuses.
    pub async fn shake_only(&self, target: &Target, raw: Raw, counter: u64) -> anyhow::Result<Shaken> {
        let local = self.local(target.federation());
        let (initiator, first) = Initiator::start(&local, Some(target.key()), counter, b"", random_seed())?;
        Ok(finish(initiator, first, raw).await?.1)
    }

    /// The bytes of a first message with a request in it.
    ///
    /// # Errors
    /// When the request does not fit.
    pub fn first_message(&self, target: &Target, intent: &str) -> anyhow::Result<Vec<u8>> {
        let mut early = Vec::new();
        kos_protocol::session::plain_frame(FrameKind::Head, &head(intent), &mut early);
        kos_protocol::session::plain_frame(FrameKind::End, &cbor::encode(&End::ok()), &mut early);
        let local = self.local(target.federation());
        Ok(Initiator::start(&local, Some(target.key()), next_counter(), &early, random_seed())?.1)
    }
}

async fn finish(initiator: Initiator, first: Vec<u8>, mut raw: Raw) -> anyhow::Result<(bool, Shaken)> {
    raw.write_all(&first).await?;
    raw.flush().await?;
    let initiated = match read_handshake(&mut raw).await? {
        Ok(message) => initiator.finish(&message)?,
        Err(notice) => bail!("refused: {notice:?}"),
    };
    raw.write_all(&initiated.last_message).await?;
    let (sealer, opener) = initiated.session.first_stream();
    let stream = Framed { raw, sealer, opener };
    Ok((initiated.early_taken, Shaken { session: initiated.session, stream, first }))
}

/// A handshake message, or the notice in its place.
///
/// # Errors
/// When the stream ends.
pub async fn read_handshake(raw: &mut Raw) -> anyhow::Result<Result<Vec<u8>, Notice>> {
    let length = raw.read_u16().await?;
    if length == 0 {
        return Ok(Err(read_notice(raw).await?));
    }
    let mut message = vec![0; usize::from(length)];
    raw.read_exact(&mut message).await?;
    Ok(Ok(message))
}

async fn read_notice(raw: &mut Raw) -> anyhow::Result<Notice> {
    let length = usize::from(raw.read_u16().await?);
    ensure!(length <= NOTICE_BYTES_MAX, "a notice of {length} bytes");
    let mut body = vec![0; length];
    raw.read_exact(&mut body).await?;
    Ok(Notice::parse(&body)?)
}

/// The bytes of a head.
pub fn head(intent: &str) -> Vec<u8> {
    cbor::encode(&Head { intent: intent.to_owned(), ..Head::default() })
}

/// The header of a stream that is carried no further.
pub fn carry_header(target: &Target, from: MemberId) -> Vec<u8> {
    Header { federation_tag: target.federation().tag(), from, route: Vec::new() }.to_bytes()
}

/// A stream at the target that it takes for a carried one.
///
/// # Errors
/// When the target refuses.
pub async fn open_carried(link: &Link, target: &Target, actor: &Actor) -> anyhow::Result<Raw> {
    let mut raw = link.open(CARRY).await?;
    raw.write_all(&carry_header(target, actor.member)).await?;
    raw.flush().await?;
    let length = usize::from(raw.read_u16().await?);
    let mut reply = vec![0; length];
    raw.read_exact(&mut reply).await?;
    let reply = kos_protocol::carry::parse_reply(&reply)?;
    ensure!(reply.status == Status::Ok, "not carried: {reply}");
    Ok(raw)
}

impl Framed {
    /// A further stream of a session.
    ///
    /// # Errors
    /// When the session has no number left, or the stream fails.
    pub async fn open(session: &mut Session, mut raw: Raw) -> anyhow::Result<Self> {
        let (preamble, sealer, opener) = session.open_stream()?;
        raw.write_all(&preamble).await?;
        Ok(Self { raw, sealer, opener })
    }

    /// Sends one frame, sealed as it should be.
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> anyhow::Result<()> {
        let bytes = self.seal(kind, payload)?;
        self.raw.write_all(&bytes).await?;
        Ok(self.raw.flush().await?)
    }

    /// One frame's bytes.
    ///
    /// # Errors
    /// When the payload is too long.
    pub fn seal(&mut self, kind: FrameKind, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.sealer.seal(kind, payload, &mut bytes)?;
        Ok(bytes)
    }

    /// Sends a whole request.
    ///
    /// # Errors
    /// When the stream fails.
    pub async fn ask(&mut self, intent: &str, body: &[u8]) -> anyhow::Result<()> {
        self.frame(FrameKind::Head, &head(intent)).await?;
        for part in body.chunks(kos_protocol::limits::DATA_BYTES_MAX) {
            self.frame(FrameKind::Data, part).await?;
        }
        self.frame(FrameKind::End, &cbor::encode(&End::ok())).await
    }

    /// Reads a whole answer.
    ///
    /// # Errors
    /// When the target cuts the stream or refuses in the clear.
    pub async fn answer(&mut self) -> anyhow::Result<Answer> {
        let mut body = Vec::new();
        loop {
            let length = usize::from(self.raw.read_u16().await.context("the target cut the stream")?);
            if length == 0 {
                bail!("refused: {:?}", read_notice(&mut self.raw).await?);
            }
            let mut frame = vec![0; length];
            self.raw.read_exact(&mut frame).await?;
            match self.opener.open(&mut frame)? {
                (FrameKind::Head, _) => {}
                (FrameKind::Data, data) => body.extend_from_slice(data),
                (FrameKind::End, end) => {
                    let End { status, text, .. } = End::parse(end)?;
                    return Ok(Answer { status, text: text.to_string(), body });
                }
            }
        }
    }

    /// Waits until the target has ended the stream, and drops what it says until then.
    pub async fn ended(mut self) {
        let _ = tokio::io::copy(&mut self.raw, &mut tokio::io::sink()).await;
    }
}
