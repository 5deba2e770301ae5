//! Settings: one optional TOML file, overridden by `KAI_*` variables, overridden by flags.
//!
//! Each layer is a TOML table; a deep merge makes one of them and remembers where every value came from. Values are
//! checked key by key, so that a complaint names the key and the place it was set.
//!
//! Nothing here is written by the node itself: `kai config set` edits the file, and only when asked to.

mod calls;
mod edit;
mod keys;
mod layers;

pub use calls::{AgentCalls, Calls, Party};
pub use edit::{names_in, set, with_ids};
pub use keys::{KEYS, Key, Kind};
pub use layers::{Loaded, Origin, Setting, Sources, changes};

use crate::errors::{Code, Failure};
use kos_mesh::Multiaddr;
use kos_protocol::id::{InvalidName, check_name};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::Path};

/// The file in the data folder.
pub const FILE: &str = "config.toml";
/// Longest configuration file.
pub const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The settings of a node. The defaults suit a home server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the node calls itself; the one it has, or the host's, when absent.
    pub name: Option<NodeName>,
    /// Which `[profiles.…]` of the file is merged over the rest.
    pub profile: Profile,
    /// Logs.
    pub log: Log,
    /// The mesh.
    pub network: Network,
    /// The local HTTP API.
    pub api: Api,
    /// Who may call the agents of this node.
    pub calls: Calls,
}

/// A name that others see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidName;
    fn try_from(name: String) -> Result<Self, InvalidName> {
        check_name(&name)?;
        Ok(Self(name))
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

/// What the node is run for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// On a developer's machine.
    Dev,
    /// Like production, but not it.
    Staging,
    /// For real.
    #[default]
    Prod,
}

impl Profile {
    /// Every profile with its written form.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Dev, "dev"), (Self::Staging, "staging"), (Self::Prod, "prod")];

    /// Its written form.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(profile, _)| *profile == self).map_or("prod", |(_, text)| text)
    }
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// What is logged: a level, or `target=level` directives with commas between. Reloadable.
    pub level: Directives,
    /// One JSON object a line instead of text.
    pub json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Directives("info".to_owned()), json: false }
    }
}

/// Log directives that are known to parse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Directives(String);

impl Directives {
    /// The directives.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Directives {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        crate::log::parse(&text)?;
        Ok(Self(text))
    }
}

impl From<Directives> for String {
    fn from(directives: Directives) -> Self {
        directives.0
    }
}

/// The mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// The UDP and TCP port. 0 takes a free one at the first start and keeps it.
    pub port: u16,
    /// Find nodes on the LAN, and be found.
    pub mdns: bool,
    /// Ask the router for a port.
    pub upnp: bool,
    /// Take part in the hash table.
    pub kad: bool,
    /// Addresses known to reach this node from outside.
    pub external_addresses: Vec<Multiaddr>,
    /// Where to listen; all interfaces on `port` when empty.
    pub listen_addresses: Vec<Multiaddr>,
    /// Nodes to begin with.
    pub bootstrap: Vec<PeerAddress>,
    /// Whether documentation addresses count as global. For laboratories.
    pub test_addresses: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            port: 0,
            mdns: true,
            upnp: true,
            kad: true,
            external_addresses: Vec::new(),
            listen_addresses: Vec::new(),
            bootstrap: Vec::new(),
            test_addresses: false,
        }
    }
}

/// An address that says whose it is: it ends in `/p2p/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Multiaddr", into = "Multiaddr")]
pub struct PeerAddress(Multiaddr);

impl PeerAddress {
    /// The address.
    pub fn as_multiaddr(&self) -> &Multiaddr {
        &self.0
    }
}

impl TryFrom<Multiaddr> for PeerAddress {
    type Error = String;
    fn try_from(address: Multiaddr) -> Result<Self, String> {
        match address.iter().last() {
            Some(kos_mesh::multiaddr::Protocol::P2p(_)) => Ok(Self(address)),
            _ => Err(format!("`{address}` does not end in /p2p/ID")),
        }
    }
}

impl From<PeerAddress> for Multiaddr {
    fn from(address: PeerAddress) -> Self {
        address.0
    }
}

/// The local HTTP API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Where it listens, a loopback address with a port; off when absent. The socket in the data folder is always
    /// there.
    pub listen: Option<Loopback>,
}

/// A socket address that only this machine reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SocketAddr", into = "SocketAddr")]
pub struct Loopback(SocketAddr);

impl Loopback {
    /// The address.
    pub fn addr(self) -> SocketAddr {
        self.0
    }
}

impl TryFrom<SocketAddr> for Loopback {
    type Error = String;
    fn try_from(address: SocketAddr) -> Result<Self, String> {
        if address.ip().is_loopback() {
            Ok(Self(address))
        } else {
            Err(format!("`{address}` is not a loopback address: the API answers this machine only"))
        }
    }
}

impl From<Loopback> for SocketAddr {
    fn from(address: Loopback) -> Self {
        address.0
    }
}

impl Config {
    /// Takes over from `new` what may change while the node runs.
    pub fn reload(&mut self, new: &Self) {
        self.log.level.clone_from(&new.log.level);
        self.calls.clone_from(&new.calls);
    }
}

/// The text of the file, or nothing where there is none.
///
/// # Errors
/// [`Code::ConfigMalformed`]: unreadable, too large or not text.
pub fn read_file(folder: &Path) -> Result<Option<String>, Failure> {
    let path = folder.join(FILE);
    let refuse =
        |why: &dyn std::fmt::Display| Code::ConfigMalformed.because(format!("{}: {why}", path.display()));
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse(&error)),
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return Err(refuse(&format!("{} bytes, limit {FILE_BYTES_MAX}", metadata.len())));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(&path).map(Some).map_err(|error| refuse(&error))
}

#[cfg(test)]
mod tests;
