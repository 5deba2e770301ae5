//! A peer that breaks every rule it can reach, for [`hostile-peer`](../hostile_peer/index.html) and its test.
//!
//! [`wire`] makes connections byte by byte, [`speaker`] speaks KLP on them, and each other module holds attacks of one
//! kind. An attack says which refusals it must cause, by the labels under which a node counts them; what is not
//! counted (it is let pass, or a library swallows it) shows only in that the node goes on as before.

pub mod bombs;
pub mod floods;
pub mod frames;
pub mod gossip;
pub mod hoards;
pub mod identify;
pub mod lies;
pub mod multiplexer;
pub mod records;
pub mod replays;
pub mod speaker;
pub mod wire;

use futures::future::BoxFuture;
use speaker::{Actor, Target};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Between two rounds of an attack: what it costs the target shall show, not that both share a machine.
const PACE: Duration = Duration::from_millis(5);

/// One way to do harm.
pub struct Attack {
    /// Its name.
    pub name: &'static str,
    /// What a node must count while it runs.
    pub refusals: &'static [&'static str],
    /// What its directory must count as passed on by the attacker.
    pub passed_on: &'static [&'static str],
    /// What its directory must hold against the attacker as their author.
    pub authored: &'static [&'static str],
    /// What it takes to come to its point.
    pub at_least: Duration,
    /// Goes on until [`Stage::goes_on`] says no.
    pub run: for<'a> fn(&'a Stage) -> BoxFuture<'a, anyhow::Result<()>>,
}

/// Where an attack plays.
pub struct Stage {
    /// Whom it is against.
    pub target: Target,
    /// A member, made for this attack.
    pub actor: Actor,
    until: Instant,
    rounds: AtomicU64,
}

impl Stage {
    /// A stage until then.
    pub fn new(target: Target, actor: Actor, until: Instant) -> Self {
        Self { target, actor, until, rounds: AtomicU64::new(0) }
    }

    /// Counts a round and waits a little; false once the time is over.
    pub async fn goes_on(&self) -> bool {
        self.rounds.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PACE).await;
        Instant::now() < self.until
    }

    /// Waits for the end.
    pub async fn to_the_end(&self) {
        tokio::time::sleep_until(self.until.into()).await;
    }

    /// Rounds so far.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }
}

macro_rules! attacks {
    ($($name:literal $run:path, $seconds:literal s, $refusals:expr
        $(, passed on [$($passed_on:literal),*], authored [$($authored:literal),*])?;)*) => {
        /// Every attack.
        pub const ATTACKS: &[Attack] = &[$(Attack {
            name: $name,
            refusals: &$refusals,
            passed_on: &[$($($passed_on),*)?],
            authored: &[$($($authored),*)?],
            at_least: Duration::from_secs($seconds),
            run: |stage| Box::pin($run(stage)),
        },)*];
    };
}

attacks! {
    "malformed-frames" frames::malformed, 0 s, ["preamble", "frame", "head"];
    "oversized-frames" frames::oversized, 0 s, ["handshake_size", "carry", "frame", "head", "body"];
    "endless-frames" frames::endless, 0 s, ["stranger", "body"];
    "slow-frames" frames::slow, 13 s, ["stranger"];
    "out-of-order-frames" frames::out_of_order, 0 s, ["frame"];
    "replayed-handshakes" replays::handshakes, 0 s, ["early_replay", "sessions", "handshake_rate"];
    "replayed-streams" replays::streams, 0 s, ["replay", "unknown_session", "link_key"];
    "strangers-calling" lies::strangers, 0 s, ["stranger", "streams_stranger", "handshake_rate"];
    "impersonation" lies::impersonation, 0 s, ["hello", "link_key", "federation", "version", "handshake_crypto"];
    "a-thousand-connections" floods::connections, 0 s, ["strangers_full", "prefix_rate"];
    "half-open" floods::half_open, 0 s, ["half_open_full"];
    "many-protocols" identify::many_protocols, 0 s, ["identify"];
    "gossip-overflows" gossip::overflows, 0 s, [];
    "gossip-floods" gossip::floods, 0 s, ["gossip_topics", "gossip_rate", "gossip_invalid"];
    "yamux-overflows" multiplexer::overflows, 0 s, ["multiplexer"];
    "hoarded-sessions" hoards::sessions, 0 s, ["sessions", "handshake_rate"];
    "hoarded-streams" hoards::streams, 0 s, ["stream_limit", "streams_member"];
    "unread-bodies" hoards::unread_bodies, 0 s, ["body"];
    "unread-negotiations" hoards::unread_negotiations, 0 s, ["strangers_full"];
    "carried-handshakes" hoards::carried, 0 s, ["handshake_rate"];
    "bombs" bombs::bombs, 0 s, ["head", "join"];
    "floods-of-records" records::floods, 0 s, ["gossip_rate"],
        passed on ["record_rate"], authored ["record_quota", "record_rate"];
    "records-with-wrong-times" records::wrong_times, 0 s, [],
        passed on ["record_future", "record_expired", "record_malformed"], authored [];
    "records-that-deceive" records::deceits, 0 s, [],
        passed on ["record_malformed", "record_contract"], authored [];
    "records-of-others" records::of_others, 0 s, ["stranger"],
        passed on ["record_not_an_author", "record_signature"], authored [];
}

/// Whoever attacks is refused all the time: that is no failure of the attack.
pub(crate) fn refused<T>(outcome: anyhow::Result<T>) -> Option<T> {
    outcome.ok()
}
