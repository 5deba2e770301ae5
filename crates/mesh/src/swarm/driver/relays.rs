//! Reservations with relays: asked for, renewed by libp2p, made again when lost.

use std::time::{Duration, Instant};

use libp2p::core::multiaddr::Protocol as Part;
use libp2p::core::transport::ListenerId;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::Driver;
use crate::limits::{ADDRESSES_PER_PEER_MAX, RELAYS_MAX, RESERVATIONS_OURS_MAX};
use crate::swarm::addr::{self, Transport};
use crate::swarm::dial::Purpose;
use crate::swarm::types::{Event, Path, ReservationState};
use crate::swarm::upkeep::{Relay, Reservation, Standing};

/// How long a relay gets to answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

impl Driver {
    pub(super) fn reserve(
        &mut self,
        relay: PeerId,
        addrs: Vec<Multiaddr>,
        reply: oneshot::Sender<Result<Vec<Multiaddr>, String>>,
        now: Instant,
    ) {
        if relay == self.shared.local {
            let _ = reply.send(Err("a relay needs no reservation with itself".into()));
            return;
        }
        if !self.reservations.contains_key(&relay) && self.reservations.len() >= RESERVATIONS_OURS_MAX {
            let _ = reply.send(Err(format!("reservations with {RESERVATIONS_OURS_MAX} relays are enough")));
            return;
        }
        self.use_relay(relay);
        self.learn(relay, &addrs);
        let circuits = self.circuits_of(&relay);
        let reservation = self.reservations.entry(relay).or_insert_with(|| Reservation::new(Vec::new(), now));
        reservation.addrs = addrs.into_iter().take(ADDRESSES_PER_PEER_MAX).collect();
        match reservation.standing {
            Standing::Held { .. } => {
                let _ = reply.send(Ok(circuits));
            }
            _ => reservation.waiters.push(reply),
        }
        self.keep_reservations(now);
    }

    pub(super) fn drop_reservation(&mut self, relay: PeerId) {
        let Some(reservation) = self.reservations.remove(&relay) else { return };
        // A listener that is still waiting for its answer must not be removed: libp2p's client would then
        // meet an answer it has forgotten the question to. It ends with the connection.
        if let Standing::Held { listener } = reservation.standing {
            self.swarm.remove_listener(listener);
        } else if reservation.listener().is_some() {
            let _ = self.swarm.disconnect_peer_id(relay);
        }
    }

    fn circuits_of(&self, relay: &PeerId) -> Vec<Multiaddr> {
        let listener = self.reservations.get(relay).and_then(Reservation::listener);
        listener.and_then(|id| self.listeners.get(&id)).into_iter().flatten().cloned().collect()
    }

    pub(super) fn hurry_reservations(&mut self, now: Instant) {
        for reservation in self.reservations.values_mut() {
            reservation.failures = 0;
            if let Standing::Waiting { until } = &mut reservation.standing {
                *until = now;
            }
        }
    }

    pub(super) fn keep_reservations(&mut self, now: Instant) {
        let relays: Vec<_> = self.reservations.keys().copied().collect();
        for relay in relays {
            self.keep_reservation(relay, now);
        }
    }

    fn keep_reservation(&mut self, relay: PeerId, now: Instant) {
        let direct = self.has_direct(&relay);
        let Some(reservation) = self.reservations.get_mut(&relay) else { return };
        match reservation.standing {
            Standing::Waiting { until } if until <= now => {
                if direct {
                    return self.ask(relay, now);
                }
                reservation.standing = Standing::Connecting;
                let addrs = reservation.addrs.clone();
                self.connect(relay, &addrs, None, Purpose::Asked, now);
            }
            Standing::Asking { until, .. } if until <= now => self.reservation_lost(relay, "no answer", now),
            _ => {}
        }
    }

    /// Asks for a reservation over the connection there is.
    fn ask(&mut self, relay: PeerId, now: Instant) {
        let Some(reservation) = self.reservations.get(&relay) else { return };
        // The relay client uses the first connection, whatever the address; the address is what it announces,
        // so it must be one the relay listens on.
        let dialed = self.shared.of(&relay).into_iter().find_map(|link| match (&link.path, link.dialed) {
            (Path::Direct { addr, .. }, crate::swarm::types::Dialed::ByUs) => Some(addr.clone()),
            _ => None,
        });
        let named =
            reservation.addrs.iter().map(addr::without_peer).find(|addr| addr::transport(addr).is_some());
        let Some(base) = dialed.or(named) else {
            return self.reservation_lost(relay, "no address of the relay is known", now);
        };
        match self.swarm.listen_on(base.with(Part::P2p(relay)).with(Part::P2pCircuit)) {
            Ok(listener) => {
                if let Some(reservation) = self.reservations.get_mut(&relay) {
                    reservation.standing = Standing::Asking { listener, until: now + ANSWER_MAX };
                }
            }
            Err(error) => self.reservation_lost(relay, &error.to_string(), now),
        }
    }

    pub(super) fn relay_reached(&mut self, relay: PeerId, now: Instant) {
        let Some(reservation) = self.reservations.get(&relay) else { return };
        if matches!(reservation.standing, Standing::Waiting { .. } | Standing::Connecting) {
            self.ask(relay, now);
        }
    }

    pub(super) fn relay_unreachable(&mut self, relay: PeerId, reason: &str, now: Instant) {
        let connecting = |reservation: &Reservation| matches!(reservation.standing, Standing::Connecting);
        if self.reservations.get(&relay).is_some_and(connecting) {
            self.reservation_lost(relay, reason, now);
        }
    }

    pub(super) fn relay_lost(&mut self, relay: PeerId, now: Instant) {
        let asking = |reservation: &Reservation| matches!(reservation.standing, Standing::Asking { .. });
        if !self.has_direct(&relay) && self.reservations.get(&relay).is_some_and(asking) {
            self.reservation_lost(relay, "the connection with the relay was lost", now);
        }
    }

    fn relay_with_listener(&self, listener: ListenerId) -> Option<PeerId> {
        let (relay, _) = self.reservations.iter().find(|(_, one)| one.listener() == Some(listener))?;
        Some(*relay)
    }

    pub(super) fn reservation_made(&mut self, listener: ListenerId) {
        let Some(relay) = self.relay_with_listener(listener) else { return };
        let circuits = self.circuits_of(&relay);
        let Some(reservation) = self.reservations.get_mut(&relay) else { return };
        if matches!(reservation.standing, Standing::Held { .. }) {
            return;
        }
        reservation.standing = Standing::Held { listener };
        reservation.failures = 0;
        for waiter in std::mem::take(&mut reservation.waiters) {
            let _ = waiter.send(Ok(circuits.clone()));
        }
        self.tell(Event::Reservation { relay, state: ReservationState::Held { circuits } });
    }

    pub(super) fn listener_closed(&mut self, listener: ListenerId, reason: &str, now: Instant) {
        if let Some(relay) = self.relay_with_listener(listener) {
            self.reservation_lost(relay, reason, now);
        }
    }

    fn reservation_lost(&mut self, relay: PeerId, reason: &str, now: Instant) {
        tracing::info!(%relay, reason, "no reservation");
        let upkeep = &mut self.upkeep;
        let Some(reservation) = self.reservations.get_mut(&relay) else { return };
        reservation.lost(now, |wait| upkeep.spread(wait));
        for waiter in std::mem::take(&mut reservation.waiters) {
            let _ = waiter.send(Err(reason.to_owned()));
        }
        self.tell(Event::Reservation { relay, state: ReservationState::Lost { reason: reason.to_owned() } });
    }

    /// From now on the peer is a relay to us.
    pub(super) fn use_relay(&mut self, relay: PeerId) {
        if self.relays.len() < RELAYS_MAX {
            self.relays.entry(relay).or_default();
        }
    }

    /// Whether a connection with the peer may carry circuits, or show us how we are seen.
    pub(super) fn is_relay(&self, peer: &PeerId) -> bool {
        self.relays.contains_key(peer)
    }

    /// A connection with a relay is up: the other transport is next, unless it is there.
    pub(super) fn plan_second_transport(&mut self, relay: PeerId, now: Instant) {
        let missing = self.missing_transport(&relay);
        let Some(used) = self.relays.get_mut(&relay) else { return };
        match missing {
            Some(_) if used.second_at.is_none() => used.second_at = Some(now),
            Some(_) => {}
            None => used.both_reached(),
        }
    }

    fn missing_transport(&self, relay: &PeerId) -> Option<Transport> {
        let links = self.shared.of(relay);
        let over = |transport: Transport, path: &Path| matches!(path, Path::Direct { transport: own, .. } if *own == transport);
        [Transport::Quic, Transport::Tcp]
            .into_iter()
            .find(|transport| !links.iter().any(|link| over(*transport, &link.path)))
    }

    pub(super) fn keep_second_transports(&mut self, now: Instant) {
        let due = |used: &Relay| used.second_at.is_some_and(|at| at <= now);
        let relays: Vec<_> =
            self.relays.iter().filter(|(_, used)| due(used)).map(|(relay, _)| *relay).collect();
        for relay in relays {
            if let Some(used) = self.relays.get_mut(&relay) {
                used.second_at = None;
            }
            if self.has_direct(&relay) {
                self.dial_second_transport(relay, now);
            }
        }
    }

    fn dial_second_transport(&mut self, relay: PeerId, now: Instant) {
        let Some(missing) = self.missing_transport(&relay) else { return };
        let mut addrs = self.book.addresses(&relay);
        addrs.retain(|addr| addr::transport(addr) == Some(missing));
        addrs.truncate(2);
        if addrs.is_empty() {
            return;
        }
        match self.kept.take(addrs.len() as u32, now) {
            Ok(()) => drop(self.dial(relay, addrs, true)),
            Err(_) => self.second_transport_failed(relay, now),
        }
    }

    /// A dial of a relay failed. Only a reservation is worth another try: circuits pass.
    pub(super) fn second_transport_failed(&mut self, relay: PeerId, now: Instant) {
        if self.reservations.contains_key(&relay)
            && self.has_direct(&relay)
            && let Some(used) = self.relays.get_mut(&relay)
        {
            used.second_failed(now);
        }
    }
}
