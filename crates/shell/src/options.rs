//! How a node is set up.

use crate::key_files::Secrets;
use kos_mesh::{Documentation, Multiaddr};
use kos_protocol::hello::Versions;
use std::{num::NonZeroU64, path::PathBuf};

/// What the node is to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeRole {
    /// A home server.
    #[default]
    Home,
    /// A public relay.
    Relay,
}

/// The settings of a [`crate::Runtime`]. The defaults suit a home server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data folder.
    pub folder: PathBuf,
    /// What the node calls itself; the host's name when absent.
    pub name: Option<String>,
    /// What it is to others.
    pub role: NodeRole,
    /// The UDP and TCP port; 0 takes a free one, and the same one again at the next start.
    pub port: u16,
    /// Where to listen, instead of all interfaces on `port`.
    pub listen: Option<Vec<Multiaddr>>,
    /// Addresses known to reach this node from outside.
    pub external: Vec<Multiaddr>,
    /// Find nodes on the LAN, and be found.
    pub mdns: bool,
    /// Ask the router for a port.
    pub upnp: bool,
    /// Take part in the hash table.
    pub kad: bool,
    /// Nodes to begin with: multiaddrs that end in `/p2p/ID`.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether documentation addresses count as global. For laboratories.
    pub documentation: Documentation,
    /// Bytes a second a relay carries for each member.
    pub carry_bytes_per_second: NonZeroU64,
    /// The wire versions to speak.
    pub versions: Versions,
    /// What the service manager gives the node of its secrets.
    pub secrets: Secrets,
    /// The program, for peers and people: `kos-node/0.1.0`.
    pub agent: String,
}

/// What a relay carries for each member where nobody says otherwise.
const CARRY_BYTES_PER_SECOND: NonZeroU64 = NonZeroU64::new(25_000_000).expect("more than nothing");

impl Options {
    /// The defaults, in this data folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            name: None,
            role: NodeRole::Home,
            port: 0,
            listen: None,
            external: Vec::new(),
            mdns: true,
            upnp: true,
            kad: true,
            bootstrap: Vec::new(),
            documentation: Documentation::default(),
            carry_bytes_per_second: CARRY_BYTES_PER_SECOND,
            versions: Versions::OURS,
            secrets: Secrets::default(),
            agent: format!("kos/{}", env!("CARGO_PKG_VERSION")),
        }
    }
}
