//! Which connections come in, and which dials go out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

use crate::limits::{
    CONNECTIONS_PER_PEER_MAX, CONNECTIONS_PER_STRANGER_MAX, FAMILIAR_PREFIXES_MAX, HALF_OPEN_MAX,
    HALF_OPEN_PER_PREFIX_MAX, HALF_OPEN_RESERVED, PREFIXES_MAX,
};
use crate::swarm::addr::{self, Prefix};
use crate::swarm::counters::Refusal;
use crate::swarm::pace::{Bucket, Buckets, Flows};

/// Numbers that differ between roles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub links_max: u32,
    pub strangers_max: u32,
    pub inbound_per_prefix_per_minute: u32,
    pub dials_per_minute: u32,
}

/// A refusal as an error a connection ends with.
#[derive(Debug, thiserror::Error)]
#[error("refused: {}", .0.label())]
pub(crate) struct Refused(pub Refusal);

/// Counts connections and paces them.
#[derive(Debug)]
pub(crate) struct Admission {
    bounds: Bounds,
    half_open: BTreeMap<ConnectionId, Option<Prefix>>,
    prefixes: Buckets<Prefix>,
    /// From where members came.
    familiar: BTreeSet<Prefix>,
    per_peer: BTreeMap<PeerId, BTreeSet<ConnectionId>>,
    /// Dials the driver has paced itself.
    paced: BTreeSet<ConnectionId>,
    others: Bucket,
    flows: Flows,
    started: Instant,
}

impl Admission {
    pub(crate) fn new(bounds: Bounds, now: Instant) -> Self {
        Self {
            bounds,
            half_open: BTreeMap::new(),
            prefixes: Buckets::new(
                bounds.inbound_per_prefix_per_minute,
                bounds.inbound_per_prefix_per_minute,
                PREFIXES_MAX,
            ),
            familiar: BTreeSet::new(),
            per_peer: BTreeMap::new(),
            paced: BTreeSet::new(),
            others: Bucket::new(bounds.dials_per_minute, bounds.dials_per_minute, now),
            flows: Flows::default(),
            started: now,
        }
    }

    pub(crate) fn knock(
        &mut self,
        id: ConnectionId,
        remote: &Multiaddr,
        now: Instant,
    ) -> Result<(), Refused> {
        if self.half_open.len() >= HALF_OPEN_MAX as usize {
            return Err(Refused(Refusal::HalfOpenFull));
        }
        let prefix = addr::prefix(remote);
        let is_familiar = prefix.is_some_and(|prefix| self.familiar.contains(&prefix));
        if !is_familiar && self.half_open.len() >= (HALF_OPEN_MAX - HALF_OPEN_RESERVED) as usize {
            return Err(Refused(Refusal::HalfOpenFull));
        }
        let alike = self.half_open.values().filter(|of| of.is_some() && **of == prefix).count();
        if alike >= HALF_OPEN_PER_PREFIX_MAX as usize {
            return Err(Refused(Refusal::HalfOpenFull));
        }
        if prefix.is_some_and(|prefix| !self.prefixes.take(prefix, now)) {
            return Err(Refused(Refusal::PrefixRate));
        }
        self.half_open.insert(id, prefix);
        Ok(())
    }

    /// Whether a finished handshake becomes a link. `strangers` of the connections there are belong to no member.
    pub(crate) fn admit(&self, peer: &PeerId, member: bool, strangers: usize) -> Result<(), Refused> {
        let of_peer = self.per_peer.get(peer).map_or(0, BTreeSet::len);
        let most = if member { CONNECTIONS_PER_PEER_MAX } else { CONNECTIONS_PER_STRANGER_MAX };
        if of_peer >= most as usize {
            return Err(Refused(Refusal::PeerConnectionsFull));
        }
        if !member && strangers >= self.bounds.strangers_max as usize {
            return Err(Refused(Refusal::StrangersFull));
        }
        if of_peer > 0 {
            return Ok(());
        }
        // A member may take a stranger's place: the driver closes one.
        let full = self.per_peer.len() >= self.bounds.links_max as usize;
        if full && !(member && strangers > 0) {
            return Err(Refused(Refusal::LinksFull));
        }
        Ok(())
    }

    pub(crate) fn strangers_max(&self) -> usize {
        self.bounds.strangers_max as usize
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.per_peer.len() > self.bounds.links_max as usize
    }

    pub(crate) fn settled(&mut self, id: ConnectionId) {
        self.half_open.remove(&id);
        self.paced.remove(&id);
    }

    /// A member came from there.
    pub(crate) fn familiar(&mut self, remote: &Multiaddr) {
        if let Some(prefix) = addr::prefix(remote)
            && self.familiar.insert(prefix)
            && self.familiar.len() > FAMILIAR_PREFIXES_MAX
        {
            self.familiar.pop_first();
        }
    }

    pub(crate) fn up(&mut self, peer: PeerId, id: ConnectionId) {
        self.per_peer.entry(peer).or_default().insert(id);
    }

    pub(crate) fn down(&mut self, peer: &PeerId, id: ConnectionId) {
        if let Some(ids) = self.per_peer.get_mut(peer) {
            ids.remove(&id);
            if ids.is_empty() {
                self.per_peer.remove(peer);
            }
        }
    }

    pub(crate) fn paced(&mut self, id: ConnectionId) {
        self.paced.insert(id);
    }

    /// Whether a dial may go out; `free` for punches, which nobody can repeat later.
    pub(crate) fn dial(
        &mut self,
        id: ConnectionId,
        flows: u32,
        free: bool,
        now: Instant,
    ) -> Result<(), Refused> {
        if !free && !self.paced.contains(&id) && self.others.take(flows.max(1), now).is_err() {
            return Err(Refused(Refusal::DialPace));
        }
        self.flows.add(flows.max(1), now.saturating_duration_since(self.started).as_secs());
        Ok(())
    }

    pub(crate) fn flows_last_minute(&mut self, now: Instant) -> u32 {
        self.flows.last_minute(now.saturating_duration_since(self.started).as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(now: Instant) -> Admission {
        let bounds = Bounds {
            links_max: 8,
            strangers_max: 2,
            inbound_per_prefix_per_minute: 1_000,
            dials_per_minute: 60,
        };
        Admission::new(bounds, now)
    }

    fn from(n: u8) -> Multiaddr {
        format!("/ip4/192.0.2.{n}/tcp/4001").parse().unwrap()
    }

    #[test]
    fn one_address_cannot_hold_every_place_of_a_handshake() {
        let now = Instant::now();
        let mut admission = admission(now);
        let mut knock = |id, n| {
            admission.knock(ConnectionId::new_unchecked(id), &from(n), now).map_err(|refused| refused.0)
        };
        for id in 0..HALF_OPEN_PER_PREFIX_MAX as usize {
            assert_eq!(knock(id, 1), Ok(()));
        }
        assert_eq!(knock(100, 1), Err(Refusal::HalfOpenFull));
        assert_eq!(knock(101, 2), Ok(()));
        for id in 200..223 {
            assert_eq!(knock(id, id as u8), Ok(()));
        }
        assert_eq!(knock(300, 3), Err(Refusal::HalfOpenFull), "the rest is for who is known");
        admission.familiar(&from(3));
        assert!(admission.knock(ConnectionId::new_unchecked(301), &from(3), now).is_ok());
        for id in [0, 1, 200] {
            admission.settled(ConnectionId::new_unchecked(id));
        }
        let settled = admission.knock(ConnectionId::new_unchecked(102), &from(1), now);
        assert!(settled.is_ok());
    }

    #[test]
    fn a_stranger_has_few_connections_and_strangers_together_have_few() {
        let mut admission = admission(Instant::now());
        let peer = PeerId::random();
        for id in 0..CONNECTIONS_PER_STRANGER_MAX as usize {
            assert!(admission.admit(&peer, false, 0).is_ok());
            admission.up(peer, ConnectionId::new_unchecked(id));
        }
        let refused = |admitted: Result<(), Refused>| admitted.map_err(|refused| refused.0);
        assert_eq!(refused(admission.admit(&peer, false, 0)), Err(Refusal::PeerConnectionsFull));
        assert_eq!(refused(admission.admit(&peer, true, 0)), Ok(()), "a member has more");
        assert_eq!(refused(admission.admit(&PeerId::random(), false, 2)), Err(Refusal::StrangersFull));
    }
}
