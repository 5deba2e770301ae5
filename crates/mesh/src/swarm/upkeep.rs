//! Which peers are to be linked with, and when to try next. Plain state without IO.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kos_protocol::id::sha256;
use libp2p::core::transport::ListenerId;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::pace::Jitter;
use crate::limits::{PUNCH_RETRY_MAX, PUNCH_RETRY_MIN, REDIAL_MAX, REDIAL_MIN, REDIAL_RELAY_MAX};

/// Before the other transport to a relay is tried again the wait is twice this, then doubles up to [`REDIAL_MAX`].
const SECOND_RETRY_MIN: Duration = Duration::from_secs(5);

/// A direct connection that was closed before this time is none that was kept.
const LASTED: Duration = Duration::from_secs(5);

/// What the last round with a peer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// There is, or was until now, a direct connection.
    Direct,
    /// Only a circuit: punching failed so far.
    Relayed,
    /// Nothing.
    Failed,
}

#[derive(Debug)]
struct Want {
    /// Rounds since the last direct connection.
    rounds: u32,
    /// When to try next; `None` while there is nothing to do.
    next_at: Option<Instant>,
    /// When the last direct connection came up.
    reached_at: Option<Instant>,
}

impl Want {
    fn at(next_at: Option<Instant>) -> Self {
        Self { rounds: 0, next_at, reached_at: None }
    }
}

/// The members whose links are kept.
#[derive(Debug)]
pub(crate) struct Upkeep {
    local: PeerId,
    wants: BTreeMap<PeerId, Want>,
    jitter: Jitter,
}

impl Upkeep {
    pub(crate) fn new(local: PeerId, seed: u64) -> Self {
        Self { local, wants: BTreeMap::new(), jitter: Jitter::new(seed) }
    }

    /// From now on the link with `peer` is kept, unless there are `max` peers that rank before it: each node prefers others
    /// (rendezvous hashing), so that links spread over all members where nobody can have one with everybody.
    pub(crate) fn want(&mut self, peer: PeerId, max: usize) {
        self.wants.entry(peer).or_insert(Want::at(None));
        while self.wants.len() > max {
            let Some(last) = self.wants.keys().max_by_key(|peer| self.rank(peer)).copied() else { return };
            self.wants.remove(&last);
        }
    }

    fn rank(&self, peer: &PeerId) -> [u8; 32] {
        sha256(&[self.local.to_bytes(), peer.to_bytes()].concat())
    }

    pub(crate) fn drop_want(&mut self, peer: &PeerId) {
        self.wants.remove(peer);
    }

    /// Whether a try is planned.
    pub(crate) fn is_planned(&self, peer: &PeerId) -> bool {
        self.wants.get(peer).is_some_and(|want| want.next_at.is_some())
    }

    /// There is a direct connection: nothing to do.
    pub(crate) fn reached(&mut self, peer: &PeerId, now: Instant) {
        if let Some(want) = self.wants.get_mut(peer) {
            *want = Want { next_at: None, reached_at: Some(now), ..*want };
        }
    }

    /// A round ended: when to try next depends on how.
    ///
    /// Both ends keep the link, so the one with the larger id waits a little longer and mostly finds it made.
    pub(crate) fn ended(&mut self, peer: &PeerId, round: Round, now: Instant) {
        let Some(want) = self.wants.get_mut(peer) else { return };
        // A peer that has no place for us lets us in and closes: that is a failure, too.
        let lasted = want.reached_at.is_none_or(|at| now.saturating_duration_since(at) >= LASTED);
        let round = if round == Round::Direct && !lasted { Round::Failed } else { round };
        want.rounds = if round == Round::Direct { 0 } else { want.rounds.saturating_add(1) };
        let wait = match round {
            Round::Direct => REDIAL_MIN,
            Round::Failed => doubled(REDIAL_MIN, want.rounds, REDIAL_MAX),
            Round::Relayed => doubled(PUNCH_RETRY_MIN, 2 * (want.rounds - 1), PUNCH_RETRY_MAX),
        };
        let wait = if self.local < *peer { wait } else { wait * 3 / 2 };
        want.next_at = Some(now + self.jitter.spread(wait));
    }

    /// Something changed for the better: try all that are not linked now.
    pub(crate) fn hurry(&mut self, now: Instant) {
        for want in self.wants.values_mut().filter(|want| want.next_at.is_some()) {
            *want = Want::at(Some(now));
        }
    }

    /// Try this one now: it was just seen.
    pub(crate) fn seen(&mut self, peer: &PeerId, now: Instant) {
        if let Some(want) = self.wants.get_mut(peer) {
            *want = Want::at(Some(now));
        }
    }

    /// A peer that is due, taken off the list until its round has ended.
    pub(crate) fn due(&mut self, now: Instant) -> Option<PeerId> {
        let (peer, want) =
            self.wants.iter_mut().find(|(_, want)| want.next_at.is_some_and(|at| at <= now))?;
        want.next_at = None;
        Some(*peer)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.wants.values().filter_map(|want| want.next_at).min()
    }

    pub(crate) fn wanted(&self) -> Vec<PeerId> {
        self.wants.keys().copied().collect()
    }

    pub(crate) fn spread(&mut self, around: Duration) -> Duration {
        self.jitter.spread(around)
    }
}

fn doubled(first: Duration, times: u32, last: Duration) -> Duration {
    first.saturating_mul(1u32.checked_shl(times.min(20)).unwrap_or(u32::MAX)).min(last)
}

/// Where a reservation stands. `Waiting → Connecting → Asking → Held → Waiting`; any may fall back to `Waiting`.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Until the next try.
    Waiting { until: Instant },
    /// The relay is being dialed.
    Connecting,
    /// The relay was asked.
    Asking { listener: ListenerId, until: Instant },
    /// The relay keeps a place for us.
    Held { listener: ListenerId },
}

/// A reservation we want.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub addrs: Vec<Multiaddr>,
    pub standing: Standing,
    pub failures: u32,
    pub waiters: Vec<oneshot::Sender<Result<Vec<Multiaddr>, String>>>,
}

impl Reservation {
    pub(crate) fn new(addrs: Vec<Multiaddr>, now: Instant) -> Self {
        Self { addrs, standing: Standing::Waiting { until: now }, failures: 0, waiters: Vec::new() }
    }

    /// It was lost or refused: wait, longer each time.
    pub(crate) fn lost(&mut self, now: Instant, jitter: impl FnOnce(Duration) -> Duration) {
        let wait = doubled(REDIAL_MIN, self.failures, REDIAL_RELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.standing = Standing::Waiting { until: now + jitter(wait) };
    }

    pub(crate) fn listener(&self) -> Option<ListenerId> {
        match self.standing {
            Standing::Asking { listener, .. } | Standing::Held { listener } => Some(listener),
            Standing::Waiting { .. } | Standing::Connecting => None,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self.standing {
            Standing::Waiting { until } | Standing::Asking { until, .. } => Some(until),
            Standing::Connecting | Standing::Held { .. } => None,
        }
    }
}

/// A relay we use: for a reservation, or for circuits to others.
///
/// Candidates for punching are what a relay sees of us, one for each transport. So it is reached over both.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    /// When to dial the transport we have no connection over.
    pub second_at: Option<Instant>,
    failures: u32,
}

impl Relay {
    /// The other transport did not work, or there was no budget for it.
    pub(crate) fn second_failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.second_at = Some(now + doubled(SECOND_RETRY_MIN, self.failures, REDIAL_MAX));
    }

    pub(crate) fn both_reached(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_a_relayed_peer_is_left_alone_longer() {
        let now = Instant::now();
        let (local, peer) = (PeerId::random(), PeerId::random());
        let mut upkeep = Upkeep::new(local, 1);
        upkeep.want(peer, 1);
        upkeep.ended(&peer, Round::Direct, now);
        assert!(upkeep.next_deadline().unwrap() <= now + REDIAL_MIN * 2);
        upkeep.ended(&peer, Round::Relayed, now);
        assert!(upkeep.next_deadline().unwrap() >= now + PUNCH_RETRY_MIN / 2);
        assert!(upkeep.is_planned(&peer));
        for _ in 0..40 {
            upkeep.ended(&peer, Round::Failed, now);
        }
        let last = upkeep.next_deadline().unwrap();
        assert!(last >= now + REDIAL_MAX / 2 && last <= now + REDIAL_MAX * 2);
        upkeep.hurry(now);
        assert_eq!(upkeep.due(now), Some(peer));
        assert_eq!(upkeep.due(now), None);
        for _ in 0..40 {
            upkeep.reached(&peer, now);
            upkeep.ended(&peer, Round::Direct, now);
        }
        assert!(upkeep.next_deadline().unwrap() >= now + REDIAL_MAX / 2, "one that never keeps a link");
        upkeep.reached(&peer, now);
        upkeep.ended(&peer, Round::Direct, now + LASTED);
        assert!(upkeep.next_deadline().unwrap() <= now + LASTED + REDIAL_MIN * 2, "one that did");
    }

    #[test]
    fn nodes_that_know_the_same_peers_keep_different_ones() {
        let peers: Vec<_> = (0..100).map(|_| PeerId::random()).collect();
        let kept = |peers: &mut dyn Iterator<Item = &PeerId>, local| {
            let mut upkeep = Upkeep::new(local, 1);
            peers.for_each(|peer| upkeep.want(*peer, 12));
            upkeep.wanted()
        };
        let (one, other) = (PeerId::random(), PeerId::random());
        assert_eq!(kept(&mut peers.iter(), one), kept(&mut peers.iter().rev(), one), "whoever comes first");
        let shared = kept(&mut peers.iter(), one);
        let shared = kept(&mut peers.iter(), other).into_iter().filter(|peer| shared.contains(peer)).count();
        // Of 12 of 100, 1.4 are expected to be the same, and more than 9 once in a hundred million.
        assert!(shared <= 9, "{shared} of 12 are the same");
    }

    #[test]
    fn no_more_peers_are_kept_than_allowed() {
        let mut upkeep = Upkeep::new(PeerId::random(), 1);
        for _ in 0..5 {
            upkeep.want(PeerId::random(), 3);
        }
        assert_eq!(upkeep.wanted().len(), 3);
    }
}
