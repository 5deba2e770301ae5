//! Whom a server of the hash table keeps under which keys. Plain state without IO.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;

use crate::limits::{KAD_NAME_LIFE, KAD_NAMES_MAX, KAD_NAMES_PER_PEER_MAX, KAD_NAMES_STRANGERS_MAX};

/// How often names are looked through for those whose time is over.
const SWEEP: Duration = Duration::from_secs(60);

/// Counts what the hash table's store keeps: libp2p's store knows no bound by peer, and forgets only what is asked for.
#[derive(Debug, Default)]
pub(crate) struct Names {
    of: BTreeMap<PeerId, BTreeMap<Vec<u8>, Instant>>,
    count: usize,
    swept_at: Option<Instant>,
}

impl Names {
    /// Takes a name, or renews it; `false` when there is no place. Members keep places that strangers cannot fill.
    pub(crate) fn take(
        &mut self,
        peer: PeerId,
        key: &[u8],
        is_member: impl Fn(&PeerId) -> bool,
        now: Instant,
    ) -> bool {
        let of_peer = self.of.get_mut(&peer);
        if let Some(expires) = of_peer.and_then(|of_peer| of_peer.get_mut(key)) {
            *expires = now + KAD_NAME_LIFE;
            return true;
        }
        let is_full = self.of.get(&peer).is_some_and(|of_peer| of_peer.len() >= KAD_NAMES_PER_PEER_MAX)
            || self.count >= KAD_NAMES_MAX
            || (self.count >= KAD_NAMES_STRANGERS_MAX
                && !is_member(&peer)
                && self.of_strangers(is_member) >= KAD_NAMES_STRANGERS_MAX);
        if !is_full {
            self.of.entry(peer).or_default().insert(key.to_vec(), now + KAD_NAME_LIFE);
            self.count += 1;
        }
        !is_full
    }

    fn of_strangers(&self, is_member: impl Fn(&PeerId) -> bool) -> usize {
        self.of.iter().filter(|(peer, _)| !is_member(peer)).map(|(_, of_peer)| of_peer.len()).sum()
    }

    pub(crate) fn forget(&mut self, peer: &PeerId, key: &[u8]) {
        let Some(of_peer) = self.of.get_mut(peer) else { return };
        if of_peer.remove(key).is_some() {
            self.count -= 1;
        }
        if of_peer.is_empty() {
            self.of.remove(peer);
        }
    }

    /// Forgets, and returns, names whose time is over. Looks once a minute.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<(PeerId, Vec<u8>)> {
        if self.swept_at.is_some_and(|at| now.saturating_duration_since(at) < SWEEP) {
            return Vec::new();
        }
        self.swept_at = Some(now);
        let names = self.of.iter().flat_map(|(peer, of_peer)| of_peer.iter().map(move |name| (peer, name)));
        let over: Vec<_> = names
            .filter(|(_, (_, expires))| **expires <= now)
            .map(|(peer, (key, _))| (*peer, key.clone()))
            .collect();
        for (peer, key) in &over {
            self.forget(peer, key);
        }
        over
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Vec<u8> {
        number.to_be_bytes().to_vec()
    }

    #[test]
    fn strangers_leave_places_to_members() {
        let (mut names, now, member) = (Names::default(), Instant::now(), PeerId::random());
        let is_member = |peer: &PeerId| *peer == member;
        let mut taken = 0;
        for _ in 0..2 * KAD_NAMES_MAX / KAD_NAMES_PER_PEER_MAX {
            let stranger = PeerId::random();
            let places = 0..2 * KAD_NAMES_PER_PEER_MAX;
            let more = places.filter(|number| names.take(stranger, &key(*number), is_member, now)).count();
            assert!(more <= KAD_NAMES_PER_PEER_MAX);
            taken += more;
        }
        assert_eq!((taken, names.count()), (KAD_NAMES_STRANGERS_MAX, KAD_NAMES_STRANGERS_MAX));
        assert!(names.take(member, &key(0), is_member, now));
    }

    #[test]
    fn names_go_when_their_time_is_over_unless_they_were_renewed() {
        let (mut names, now) = (Names::default(), Instant::now());
        let (gone, renewed) = (PeerId::random(), PeerId::random());
        for peer in [gone, renewed] {
            assert!(names.take(peer, &key(1), |_| true, now));
        }
        assert!(names.take(renewed, &key(1), |_| true, now + KAD_NAME_LIFE / 2));
        assert_eq!(names.expired(now + KAD_NAME_LIFE), [(gone, key(1))]);
        assert_eq!(names.count(), 1);
    }
}
