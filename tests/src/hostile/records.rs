//! Records: more than anybody may have, dated ahead, with texts that deceive, of strangers, and in another's name.

use super::{
    Stage, gossip, refused,
    speaker::{Actor, Framed, KLP, Shaken, next_counter},
    wire::Link,
};
use anyhow::Context as _;
use kos_directory::{AgentRecord, NodeRecord, ServiceRecord, contract};
use kos_engine::item::{Item, Packed, pack};
use kos_protocol::{
    cbor,
    id::{AgentId, MemberId},
    limits::{DATA_BYTES_MAX, RECORD_BYTES_MAX, RECORD_LIFE_MS_MAX, RECORDS_PER_AUTHOR_MAX},
    message::{End, FrameKind, Head},
    object::{Object, Scope, Signed},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const HOUR_MS: u64 = 60 * 60 * 1000;
/// Records in one push: well below what one may hold.
const PUSH_MAX: usize = 64;

/// Texts that move the cursor, turn the direction of reading, or cannot be seen.
const DECEITS: [&str; 8] = [
    "\u{1b}[2Jattic",
    "attic\u{7}",
    "cit\u{202e}ta",
    "\u{2066}attic",
    "at\u{200b}tic",
    "at\u{ad}tic",
    "attic\u{e0041}",
    "a\u{2028}b",
];
/// Names that look like `attic` and are none.
const LOOKALIKES: [&str; 5] = ["\u{430}ttic", "att\u{131}c", "\u{ff41}ttic", "Attic", "a\u{74}\u{307}tic"];

/// A kind that a later version might have: whoever does not know it keeps it, and counts it.
#[derive(Clone, Serialize, Deserialize)]
struct Weather {
    author: MemberId,
    key_seq: u64,
    slot: String,
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
    report: ByteBuf,
}

impl Object for Weather {
    const DOMAIN: &'static str = "kos/weather-record/1";
    const BYTES_MAX: usize = RECORD_BYTES_MAX;
}

/// The fields every record has.
#[derive(Clone, Copy)]
struct Times {
    seq: u64,
    time_ms: u64,
    expires_ms: u64,
}

impl Times {
    fn now() -> Self {
        Self::at(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
    }

    fn at(time_ms: u64) -> Self {
        Self { seq: time_ms, time_ms, expires_ms: time_ms.saturating_add(HOUR_MS) }
    }
}

/// A record as it travels, signed by this actor whatever it says.
fn signed<T: Object>(stage: &Stage, by: &Actor, record: T) -> anyhow::Result<Vec<u8>> {
    let kind = T::DOMAIN.strip_prefix("kos/").and_then(|rest| rest.strip_suffix("/1")).context("a kind")?;
    let signed = Signed::sign(record, Scope::Federation(stage.target.federation()), &by.secret)?;
    Ok(Item::new(kind, signed.bytes()).to_bytes())
}

fn weather(stage: &Stage, by: &Actor, slot: &str, times: Times) -> anyhow::Result<Vec<u8>> {
    let Times { seq, time_ms, expires_ms } = times;
    let (author, slot, report) = (by.member, slot.to_owned(), ByteBuf::from(vec![7; 600]));
    signed(stage, by, Weather { author, key_seq: by.log.seq(), slot, seq, time_ms, expires_ms, report })
}

fn node(stage: &Stage, author: MemberId, name: &str, times: Times) -> anyhow::Result<Vec<u8>> {
    let Times { seq, time_ms, expires_ms } = times;
    let record = NodeRecord {
        author,
        key_seq: stage.actor.log.seq(),
        seq,
        time_ms,
        expires_ms,
        name: name.to_owned(),
        addresses: Vec::new(),
        relays: Vec::new(),
        version: "1.0.0".parse()?,
        features: Vec::new(),
        left: false,
    };
    signed(stage, &stage.actor, record)
}

/// The head of a push.
#[derive(Serialize)]
struct Items {
    kinds: Vec<String>,
}

/// A session over which a member gives the target records, unasked.
struct Pusher {
    link: Link,
    shaken: Shaken,
}

impl Pusher {
    async fn begin(stage: &Stage) -> anyhow::Result<Self> {
        let link = stage.target.link(&stage.actor).await?;
        let mut shaken = stage.actor.shake(&stage.target, link.open(KLP).await?, "kos.ping").await?;
        shaken.stream.answer().await?;
        Ok(Self { link, shaken })
    }

    async fn push(&mut self, items: &[Vec<u8>]) -> anyhow::Result<()> {
        for some in items.chunks(PUSH_MAX) {
            let stream = Framed::open(&mut self.shaken.session, self.link.open(KLP).await?).await?;
            give(stream, some).await?;
        }
        Ok(())
    }
}

async fn give(mut stream: Framed, items: &[Vec<u8>]) -> anyhow::Result<()> {
    let Packed { kinds, body } = pack(items);
    let params = cbor::encode(&Items { kinds });
    let head = Head { intent: "kos.push".to_owned(), params: params.into(), ..Head::default() };
    stream.frame(FrameKind::Head, &cbor::encode(&head)).await?;
    for part in body.chunks(DATA_BYTES_MAX) {
        stream.frame(FrameKind::Data, part).await?;
    }
    stream.frame(FrameKind::End, &cbor::encode(&End::ok())).await?;
    stream.answer().await?;
    Ok(())
}

/// Valid records of a member, pushed and by gossip: in ever more slots until its room is used up, and ever newer ones until
/// its rate is.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn floods(stage: &Stage) -> anyhow::Result<()> {
    let mut gossip = gossip::begin(stage).await?;
    let mut pusher = Pusher::begin(stage).await?;
    let mut sent = 0u64;
    while stage.goes_on().await {
        let mut items = Vec::new();
        for n in 0..PUSH_MAX as u64 {
            sent += 1;
            // Every other one has a slot of its own; the others are news in those that there is room for.
            let slot = if n.is_multiple_of(2) { sent } else { sent % RECORDS_PER_AUTHOR_MAX as u64 };
            items.push(weather(stage, &stage.actor, &format!("slot-{slot}"), Times::now())?);
        }
        let (pushed, gossiped) = items.split_at(PUSH_MAX / 2);
        refused(pusher.push(pushed).await);
        gossip.publish(stage, gossiped).await;
    }
    Ok(())
}

/// Records of tomorrow, of the end of time, with the last number there is, already over, and without end: each would
/// keep its slot for good if it were taken.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn wrong_times(stage: &Stage) -> anyhow::Result<()> {
    let mut pusher = Pusher::begin(stage).await?;
    let me = stage.actor.member;
    while stage.goes_on().await {
        let now = Times::now();
        let wrong = [
            Times::at(now.time_ms + HOUR_MS),
            Times { seq: u64::MAX, ..now },
            Times { seq: u64::MAX - 1, ..now },
            Times { seq: u64::MAX, time_ms: u64::MAX, expires_ms: u64::MAX },
            Times { time_ms: u64::MAX, ..now },
            Times { time_ms: 0, expires_ms: 1, seq: 1 },
            Times { expires_ms: now.time_ms + RECORD_LIFE_MS_MAX + 1, ..now },
            Times { expires_ms: u64::MAX, ..now },
            Times { expires_ms: now.time_ms - 1, ..now },
        ];
        let mut items = Vec::new();
        for times in wrong {
            items.push(node(stage, me, "tomorrow", times)?);
            items.push(weather(stage, &stage.actor, "tomorrow", times)?);
        }
        refused(pusher.push(&items).await);
    }
    Ok(())
}

/// Texts that would deceive whoever reads them, in each place where a record has a text.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn deceits(stage: &Stage) -> anyhow::Result<()> {
    let mut pusher = Pusher::begin(stage).await?;
    let me = stage.actor.member;
    while stage.goes_on().await {
        let now = Times::now();
        let mut items = Vec::new();
        for text in DECEITS {
            items.push(weather(stage, &stage.actor, text, now)?);
            items.push(agent(stage, text, now)?);
            items.push(service(stage, "notes", text, now)?);
        }
        for name in DECEITS.iter().chain(&LOOKALIKES) {
            items.push(node(stage, me, name, now)?);
            items.push(service(stage, name, "", now)?);
        }
        refused(pusher.push(&items).await);
    }
    Ok(())
}

fn agent(stage: &Stage, description: &str, times: Times) -> anyhow::Result<Vec<u8>> {
    let Times { seq, time_ms, expires_ms } = times;
    let record = AgentRecord {
        author: stage.actor.member,
        key_seq: stage.actor.log.seq(),
        agent: "kBridge:notes".parse::<AgentId>()?,
        seq,
        time_ms,
        expires_ms,
        cert: None,
        capabilities: Vec::new(),
        description: description.to_owned(),
        protocol: "http".to_owned(),
    };
    signed(stage, &stage.actor, record)
}

fn service(stage: &Stage, name: &str, description: &str, times: Times) -> anyhow::Result<Vec<u8>> {
    const CONTRACT: &str = "name = \"notes\"\nversion = \"1.0.0\"\nagent = \"kBridge:notes\"\n\
                            [security]\ncallers = [\"member\"]\n[[methods]]\nmethod = \"GET\"\npath = \"/\"\n";
    let Times { seq, time_ms, expires_ms } = times;
    let sound = contract::parse_file(CONTRACT, |name| Err(name.to_owned()))?;
    let contract = contract::Contract { name: name.to_owned(), description: description.to_owned(), ..sound };
    let record = ServiceRecord {
        author: stage.actor.member,
        key_seq: stage.actor.log.seq(),
        name: name.to_owned(),
        seq,
        time_ms,
        expires_ms,
        contract: Some(contract),
    };
    signed(stage, &stage.actor, record)
}

/// A member passes on records of strangers, and such as it made in the name of the target; strangers bring their own.
///
/// # Errors
/// When the attack cannot even begin.
pub async fn of_others(stage: &Stage) -> anyhow::Result<()> {
    let mut pusher = Pusher::begin(stage).await?;
    while stage.goes_on().await {
        let now = Times::now();
        let stranger = Actor::fresh();
        let strange = weather(stage, &stranger, "stranger", now)?;
        let forged = node(stage, stage.target.member(), "forged", now)?;
        refused(pusher.push(&[strange.clone(), forged]).await);
        refused(push_as(stage, &stranger, strange).await);
    }
    Ok(())
}

async fn push_as(stage: &Stage, stranger: &Actor, item: Vec<u8>) -> anyhow::Result<()> {
    let link = stage.target.link(stranger).await?;
    // A stranger has one stream.
    let shaken = stranger.shake_only(&stage.target, link.open(KLP).await?, next_counter()).await?;
    give(shaken.stream, &[item]).await
}
