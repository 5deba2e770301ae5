//! The swarm: links with peers, streams, gossip and reservations, as one handle and a stream of events.
//!
//! ```text
//! spawn(config) ─▶ Mesh (orders, streams)        Receiver<Event> (what happened)
//!                    │        ▲ streams, straight from the connections
//!                    ▼        │
//!                 Driver ─ Swarm<Behaviour> ─ connections
//! ```
//! One task owns libp2p's swarm. It runs until the last [`Mesh`] and the receiver are dropped, or
//! [`Mesh::shutdown`].

pub mod addr;
mod behaviour;
mod book;
mod bounded;
mod config;
mod counters;
mod dial;
mod driver;
mod filter;
mod gate;
mod klp;
mod linger;
mod mesh;
mod names;
mod pace;
mod reach;
mod shared;
mod stream;
mod transport;
mod types;
mod upkeep;

use std::sync::Arc;

use tokio::sync::mpsc;

pub use book::{AddressBook, BookSnapshot, KnownAddress, KnownPeer};
pub use config::{Config, Role, listen_on};
pub use counters::{Counters, Deed, Refusal};
pub use libp2p::swarm::ConnectionId;
pub use libp2p::{Multiaddr, PeerId, identity};
pub use mesh::{HashTable, Mesh, ReserveError, Snapshot, TableRole};
pub use reach::{Filtering, Mapping, Observed, PortMapping, Reachability, Tried, Try};
pub use stream::Stream;
pub use types::{
    ConnectError, Dialed, Event, Failure, GossipId, Link, OpenError, Path, Protocol, PublishError,
    ReservationState, StartError, Step, Verdict,
};

use crate::limits::{COMMANDS_MAX, EVENTS_MAX};

/// Starts a swarm on the current tokio runtime. A rustls crypto provider must be installed before.
///
/// # Errors
/// [`StartError::Listen`] if none of the addresses can be listened on; others if libp2p cannot be set up.
pub fn spawn(config: Config) -> Result<(Mesh, mpsc::Receiver<Event>), StartError> {
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let (commands, orders) = mpsc::channel(COMMANDS_MAX);
    let shared = Arc::new(shared::Shared::new(config.keypair.public().to_peer_id()));
    let mut swarm = behaviour::build(&config, &shared, &events)?;
    listen(&mut swarm, &config)?;
    for addr in &config.external {
        swarm.add_external_address(addr.clone());
    }
    let driver = driver::Driver::new(swarm, &config, shared.clone(), orders, events);
    tokio::spawn(driver.run());
    Ok((Mesh { shared, commands }, receiver))
}

/// Listening comes before any dialing: dials leave from the listening socket, and punching needs that.
fn listen(swarm: &mut libp2p::Swarm<behaviour::Behaviour>, config: &Config) -> Result<(), StartError> {
    let mut failed = None;
    let mut listening = false;
    for addr in &config.listen {
        match swarm.listen_on(addr.clone()) {
            Ok(_) => listening = true,
            Err(error) => {
                tracing::warn!(%addr, %error, "cannot listen");
                failed = Some(StartError::Listen { addr: addr.clone(), reason: error.to_string() });
            }
        }
    }
    match failed {
        Some(error) if !listening => Err(error),
        _ => Ok(()),
    }
}
