//! Streams to peers: directly where there is a direct connection, over a relay's carry where not.

use crate::{
    find::Finder,
    state::{State, lock},
};
use kos_governance::act::Role;
use kos_mesh::{
    ConnectError, Mesh, Multiaddr, OpenError, Path, PeerId, Protocol,
    link::{BoxedStream, CarryHeader, CarryWire, Links, Pending, Route, Unreachable, Wire, carried},
};
use kos_protocol::{
    id::{FederationId, MemberId},
    key::PublicKey,
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};
use tokio_util::compat::FuturesAsyncReadCompatExt;

/// The libp2p id of a key.
pub(crate) fn peer_of(key: &PublicKey) -> PeerId {
    PeerId::from_bytes(&key.to_peer_id()).expect("an identity multihash of 36 bytes is a peer id")
}

/// The key of a libp2p id; none for ids of other kinds of key.
pub(crate) fn key_of(peer: &PeerId) -> Option<PublicKey> {
    PublicKey::from_peer_id(&peer.to_bytes())
}

pub(crate) fn boxed(stream: kos_mesh::Stream) -> BoxedStream {
    Box::new(stream.compat())
}

/// What the session layer shall know of a path.
pub(crate) fn route(path: &Path, key: PublicKey) -> Route {
    match path {
        Path::Direct { addr, .. } => Route::Direct { remote: ip_of(addr), key },
        Path::Relayed { via } => Route::Circuit { via: via.as_ref().and_then(key_of).unwrap_or(key), key },
    }
}

fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    use kos_mesh::multiaddr::Protocol as Part;
    addr.iter().find_map(|part| match part {
        Part::Ip4(ip) => Some(IpAddr::V4(ip)),
        Part::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}

/// The [`Wire`] of a node.
pub(crate) struct MeshWire {
    pub mesh: Mesh,
    pub state: Arc<State>,
    /// Addresses of peers that may be in no directory of ours: issuers of invitations, and relays.
    pub hints: Mutex<BTreeMap<PublicKey, Vec<Multiaddr>>>,
    /// Whom to ask when a member is at none of its addresses.
    pub finder: Arc<Finder>,
}

impl MeshWire {
    /// Members with the role `relay` that we have a direct link with, those the peer names first.
    fn carriers(&self, federation: &FederationId, to: &MemberId) -> Vec<PublicKey> {
        let now = self.state.now();
        self.state
            .with(federation, |federation| {
                let named = federation
                    .directory()
                    .node(now, *to)
                    .map(|found| found.entry.relays.clone())
                    .unwrap_or_default();
                let mut relays: Vec<_> = federation
                    .roster()
                    .active()
                    .filter(|member| member.role == Role::Relay && member.id != *to)
                    .map(|member| (!named.contains(&member.id), member.key()))
                    .collect();
                relays.sort();
                relays
                    .into_iter()
                    .map(|(_, key)| key)
                    .filter(|key| self.mesh.is_direct(&peer_of(key)))
                    .collect()
            })
            .unwrap_or_default()
    }

    /// Whether a relay of ours could carry a stream to the holder of `key`.
    pub fn may_be_carried(&self, key: &PublicKey) -> bool {
        self.state
            .memberships(key)
            .iter()
            .any(|(federation, member)| !self.carriers(federation, member).is_empty())
    }

    /// Every address we have heard of for a peer.
    pub fn addresses(&self, key: &PublicKey) -> Vec<Multiaddr> {
        let now = self.state.now();
        let mut addresses = lock(&self.hints).get(key).cloned().unwrap_or_default();
        for federation in self.state.federations().values() {
            let Some((member, _, _)) = federation.roster().by_key(key) else { continue };
            if let Some(found) = federation.directory().node(now, member) {
                addresses
                    .extend(found.entry.addresses.iter().filter_map(|text| text.parse::<Multiaddr>().ok()));
            }
        }
        addresses
    }

    async fn carry(&self, key: PublicKey) -> Option<(BoxedStream, Route)> {
        let own = self.state.identity().member();
        for (federation, member) in self.state.memberships(&key) {
            for via in self.carriers(&federation, &member) {
                let Ok((stream, _)) = self.mesh.open(peer_of(&via), Protocol::Carry).await else { continue };
                let header = CarryHeader { federation_tag: federation.tag(), from: own, route: vec![member] };
                if let Ok(stream) = carried(boxed(stream), &header).await {
                    return Some((stream, Route::Carried { via }));
                }
            }
        }
        None
    }

    /// At the addresses we know; if that is in vain, at those the hash table knows.
    async fn connect(&self, peer: PeerId, key: PublicKey) -> Result<Path, ConnectError> {
        let in_vain = match self.mesh.connect(peer, self.addresses(&key)).await {
            Err(error @ (ConnectError::NoAddresses { .. } | ConnectError::Unreachable { .. })) => error,
            outcome => return outcome,
        };
        match self.finder.find_for_call(&key).await {
            true => self.mesh.connect(peer, Vec::new()).await,
            false => Err(in_vain),
        }
    }

    async fn direct(&self, peer: PeerId, key: PublicKey) -> Result<(BoxedStream, Route), OpenError> {
        let (stream, path) = self.mesh.open(peer, Protocol::Klp).await?;
        Ok((boxed(stream), route(&path, key)))
    }
}

impl Wire for MeshWire {
    fn open(&self, key: PublicKey) -> Pending<'_, Result<(BoxedStream, Route), Unreachable>> {
        Box::pin(async move {
            let peer = peer_of(&key);
            if self.mesh.is_direct(&peer)
                && let Ok(opened) = self.direct(peer, key).await
            {
                return Ok(opened);
            }
            if let Some(opened) = self.carry(key).await {
                return Ok(opened);
            }
            // Nothing stands: connect. A circuit that comes of it serves strangers; members are carried by its relay.
            let unreachable = |error: &dyn std::fmt::Display| Unreachable(error.to_string());
            let path = self.connect(peer, key).await.map_err(|error| unreachable(&error))?;
            if !path.is_direct()
                && let Some(opened) = self.carry(key).await
            {
                return Ok(opened);
            }
            self.direct(peer, key).await.map_err(|error| unreachable(&error))
        })
    }
}

/// The [`Wire`] of a node that takes no other way than a relay.
pub(crate) struct CarriedWire(pub Arc<MeshWire>);

impl Wire for CarriedWire {
    fn open(&self, key: PublicKey) -> Pending<'_, Result<(BoxedStream, Route), Unreachable>> {
        Box::pin(async move {
            self.0.carry(key).await.ok_or_else(|| Unreachable("no relay carries to this member".to_owned()))
        })
    }
}

/// The [`Wire`] of a node to itself: pipes in memory, served by its own links.
pub(crate) struct OwnWire {
    pub links: Links,
    pub key: PublicKey,
}

/// Bytes under way in such a pipe.
const PIPE_BYTES: usize = 256 * 1024;

impl Wire for OwnWire {
    fn open(&self, key: PublicKey) -> Pending<'_, Result<(BoxedStream, Route), Unreachable>> {
        Box::pin(async move {
            if key != self.key {
                return Err(Unreachable("this is not the node itself".to_owned()));
            }
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let (links, route) = (self.links.clone(), Route::Direct { remote: None, key });
            tokio::spawn(async move { links.serve(Box::new(far), route).await });
            Ok((Box::new(near) as BoxedStream, Route::Direct { remote: None, key }))
        })
    }
}

impl CarryWire for MeshWire {
    fn open_carry(&self, key: PublicKey) -> Pending<'_, Result<BoxedStream, Unreachable>> {
        Box::pin(async move {
            let (stream, _) = self
                .mesh
                .open(peer_of(&key), Protocol::Carry)
                .await
                .map_err(|_| Unreachable("the next hop has no link with this relay".to_owned()))?;
            Ok(boxed(stream))
        })
    }
}
