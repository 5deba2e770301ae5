//! The address book: where peers were reached, and where they say they are.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

use super::addr;
use crate::limits::{ADDRESS_BYTES_MAX, ADDRESSES_PER_PEER_MAX, BOOK_PEERS_MAX};

/// How often an address may fail before it ever worked. Every try is a flow through somebody's router.
const FAILURES_MAX: u16 = 8;

/// What the book knows, for the caller to keep. Restoring checks every entry, so a damaged one is only lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BookSnapshot {
    /// One entry for each peer.
    pub peers: Vec<KnownPeer>,
}

impl BookSnapshot {
    /// The addresses of one peer, best first.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let peer = peer.to_string();
        let known = self.peers.iter().filter(|known| known.peer == peer).flat_map(|known| &known.addresses);
        known.filter_map(|known| known.address.parse().ok()).collect()
    }
}

/// One peer's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// The peer's id in its text form.
    pub peer: String,
    /// Best first.
    pub addresses: Vec<KnownAddress>,
}

/// One address's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAddress {
    /// The multiaddress in its text form, without the peer.
    pub address: String,
    /// Seconds since 1970 of the last connection over it, if there was one.
    pub last_success_s: Option<u64>,
    /// Failures since.
    pub failures: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Score {
    last_success_s: Option<u64>,
    failures: u16,
}

impl Score {
    /// Proven addresses first, the latest of them first, then those that failed least.
    fn rank(&self) -> (Reverse<Option<u64>>, u16) {
        (Reverse(self.last_success_s), self.failures)
    }
}

/// Addresses by peer, bounded in both directions.
#[derive(Clone, Debug, Default)]
pub struct AddressBook {
    peers: BTreeMap<PeerId, BTreeMap<Multiaddr, Score>>,
}

impl AddressBook {
    /// The book as it was. Entries that cannot be read, or are beyond the bounds, are left out.
    pub fn restore(snapshot: &BookSnapshot) -> Self {
        let mut book = Self::default();
        for known in snapshot.peers.iter().take(BOOK_PEERS_MAX) {
            let Ok(peer) = known.peer.parse() else { continue };
            for entry in known.addresses.iter().take(ADDRESSES_PER_PEER_MAX) {
                let Ok(address) = entry.address.parse() else { continue };
                if book.learn(peer, &address) {
                    let score = Score { last_success_s: entry.last_success_s, failures: entry.failures };
                    book.peers.entry(peer).or_default().insert(addr::without_peer(&address), score);
                }
            }
        }
        book
    }

    /// The book as it is.
    pub fn snapshot(&self) -> BookSnapshot {
        let peers =
            self.peers.keys().map(|peer| KnownPeer { peer: peer.to_string(), addresses: self.known(peer) });
        BookSnapshot { peers: peers.collect() }
    }

    fn known(&self, peer: &PeerId) -> Vec<KnownAddress> {
        self.ranked(peer)
            .into_iter()
            .map(|(address, score)| KnownAddress {
                address: address.to_string(),
                last_success_s: score.last_success_s,
                failures: score.failures,
            })
            .collect()
    }

    fn ranked(&self, peer: &PeerId) -> Vec<(&Multiaddr, Score)> {
        let mut ranked: Vec<_> =
            self.peers.get(peer).into_iter().flatten().map(|(address, score)| (address, *score)).collect();
        ranked.sort_by_key(|(_, score)| score.rank());
        ranked
    }

    /// Takes an address somebody named for a peer; `false` if it is not one we could dial, or names another peer.
    /// A full entry loses its worst address, a full book the peer of least use.
    pub fn learn(&mut self, peer: PeerId, address: &Multiaddr) -> bool {
        if addr::peer_of(address).is_some_and(|named| named != peer) || address.len() > ADDRESS_BYTES_MAX {
            return false;
        }
        let address = addr::without_peer(address);
        let dialable = addr::transport(&address).is_some() || addr::relay_of(&address).is_some();
        if !dialable || addr::port(&address) == Some(0) {
            return false;
        }
        if !self.peers.contains_key(&peer) && self.peers.len() >= BOOK_PEERS_MAX {
            self.forget_least_useful_peer();
        }
        let of_peer = self.peers.entry(peer).or_default();
        if !of_peer.contains_key(&address) && of_peer.len() >= ADDRESSES_PER_PEER_MAX {
            let worst =
                of_peer.iter().max_by_key(|(_, score)| score.rank()).map(|(address, _)| address.clone());
            worst.and_then(|worst| of_peer.remove(&worst));
        }
        of_peer.entry(address).or_default();
        true
    }

    fn forget_least_useful_peer(&mut self) {
        let least = self
            .peers
            .iter()
            .min_by_key(|(_, of_peer)| of_peer.values().filter_map(|score| score.last_success_s).max())
            .map(|(peer, _)| *peer);
        least.and_then(|least| self.peers.remove(&least));
    }

    /// A connection over the address came up.
    pub fn succeeded(&mut self, peer: PeerId, address: &Multiaddr, now_s: u64) {
        if self.learn(peer, address) {
            let score = Score { last_success_s: Some(now_s), failures: 0 };
            self.peers.entry(peer).or_default().insert(addr::without_peer(address), score);
        }
    }

    /// Dialing the address failed. One that never worked is forgotten after [`FAILURES_MAX`] times.
    pub fn failed(&mut self, peer: &PeerId, address: &Multiaddr) {
        let address = addr::without_peer(address);
        let Some(of_peer) = self.peers.get_mut(peer) else { return };
        let Some(score) = of_peer.get_mut(&address) else { return };
        score.failures = score.failures.saturating_add(1);
        if score.last_success_s.is_none() && score.failures >= FAILURES_MAX {
            of_peer.remove(&address);
        }
    }

    /// Forgets a peer.
    pub fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// A peer's addresses, best first.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.ranked(peer).into_iter().map(|(address, _)| address.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/10.0.0.1/udp/{port}/quic-v1").parse().unwrap()
    }

    #[test]
    fn the_address_that_worked_last_comes_first() {
        let (mut book, peer) = (AddressBook::default(), PeerId::random());
        for port in 1..=3 {
            assert!(book.learn(peer, &address(port)));
        }
        book.succeeded(peer, &address(2), 10);
        book.succeeded(peer, &address(3), 20);
        book.failed(&peer, &address(1));
        assert_eq!(book.addresses(&peer), [address(3), address(2), address(1)]);
    }

    #[test]
    fn an_address_that_never_worked_is_forgotten_and_one_that_did_is_kept() {
        let (mut book, peer) = (AddressBook::default(), PeerId::random());
        book.learn(peer, &address(1));
        book.succeeded(peer, &address(2), 1);
        for _ in 0..FAILURES_MAX {
            book.failed(&peer, &address(1));
            book.failed(&peer, &address(2));
        }
        assert_eq!(book.addresses(&peer), [address(2)]);
    }

    #[test]
    fn a_restored_book_is_the_book_that_was_kept() {
        let mut book = AddressBook::default();
        for port in 1..=5 {
            let peer = PeerId::random();
            book.succeeded(peer, &address(port), u64::from(port));
            book.learn(peer, &address(port + 100));
        }
        let kept = serde_json::to_string(&book.snapshot()).unwrap();
        let restored = AddressBook::restore(&serde_json::from_str(&kept).unwrap());
        assert_eq!(restored.snapshot(), book.snapshot());
    }

    #[test]
    fn what_cannot_be_dialed_is_not_kept() {
        let (mut book, peer) = (AddressBook::default(), PeerId::random());
        let other = PeerId::random();
        for bad in [
            "/memory/1",
            "/ip4/10.0.0.1/tcp/0",
            "/ip4/10.0.0.1/udp/1",
            &format!("/ip4/10.0.0.1/tcp/1/p2p/{other}"),
        ] {
            assert!(!book.learn(peer, &bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn both_bounds_hold_and_the_useful_stay() {
        let mut book = AddressBook::default();
        let useful = PeerId::random();
        book.succeeded(useful, &address(1), 1);
        for port in 2..200 {
            book.learn(useful, &address(port));
        }
        assert_eq!(book.addresses(&useful).len(), ADDRESSES_PER_PEER_MAX);
        assert_eq!(book.addresses(&useful)[0], address(1));
        for _ in 0..2 * BOOK_PEERS_MAX {
            book.learn(PeerId::random(), &address(1));
        }
        assert_eq!(book.snapshot().peers.len(), BOOK_PEERS_MAX);
        assert!(!book.addresses(&useful).is_empty());
    }
}
