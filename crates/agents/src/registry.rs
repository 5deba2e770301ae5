//! Which agents there are, and which of them shall run. Survives restarts as bytes that the caller keeps.

use crate::manifest::{InvalidManifest, Manifest};
use kos_protocol::{
    cbor::{self, DecodeError},
    id::AgentId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Agents one node may have, the sentinel included.
pub const AGENTS_MAX: usize = 64;
/// Longest encoded registry.
pub const REGISTRY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The version of the encoding.
const VERSION: u32 = 1;

/// Whether an agent shall run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Desired {
    /// Now, and after every restart of the node.
    Running,
    /// Not until it is started.
    Stopped,
}

/// An agent and what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub manifest: Manifest,
    /// Whether it shall run.
    pub desired: Desired,
}

/// The agents of a node. `kSentinel:node` is always among them and always running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    entries: BTreeMap<AgentId, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Encoded {
    version: u32,
    agents: Vec<Entry>,
}

/// Why the registry was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// There is no such agent.
    #[error("there is no agent {0} here")]
    Unknown(AgentId),
    /// The sentinel runs as long as the node does.
    #[error("{0} always runs")]
    AlwaysRuns(AgentId),
    /// No more fit.
    #[error("a node has at most {AGENTS_MAX} agents")]
    Full,
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] InvalidManifest),
}

/// Why bytes are not a registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRegistry {
    /// Not an encoded registry.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Written by a later version.
    #[error("the registry has version {0}, this program knows {VERSION}")]
    Version(u32),
    /// An agent in it is wrong.
    #[error("agent {agent} in the registry: {why}")]
    Agent {
        /// Which.
        agent: AgentId,
        /// What is wrong.
        why: InvalidManifest,
    },
    /// More agents than there may be.
    #[error("the registry holds more than {AGENTS_MAX} agents")]
    TooMany,
}

impl Default for Registry {
    fn default() -> Self {
        let sentinel = Entry { manifest: Manifest::sentinel(), desired: Desired::Running };
        Self { entries: [(Manifest::sentinel_id(), sentinel)].into() }
    }
}

impl Registry {
    /// Reads what [`Registry::encode`] wrote.
    ///
    /// # Errors
    /// [`InvalidRegistry`]: tell the operator; do not overwrite the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidRegistry> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = cbor::decode_message(bytes, REGISTRY_BYTES_MAX)?;
        if version != VERSION {
            return Err(InvalidRegistry::Version(version));
        }
        let encoded: Encoded = cbor::decode_message(bytes, REGISTRY_BYTES_MAX)?;
        let mut registry = Self::default();
        for entry in encoded.agents {
            let agent = entry.manifest.agent.clone();
            entry.manifest.check().map_err(|why| InvalidRegistry::Agent { agent: agent.clone(), why })?;
            registry.entries.insert(agent, entry);
        }
        if registry.entries.len() > AGENTS_MAX {
            return Err(InvalidRegistry::TooMany);
        }
        Ok(registry)
    }

    /// The registry as bytes. The sentinel is not in them: it is always there.
    pub fn encode(&self) -> Vec<u8> {
        let own = Manifest::sentinel_id();
        let agents = self.entries.iter().filter(|(agent, _)| **agent != own);
        cbor::encode(&Encoded { version: VERSION, agents: agents.map(|(_, entry)| entry.clone()).collect() })
    }

    /// Every agent.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// One agent.
    pub fn entry(&self, agent: &AgentId) -> Option<&Entry> {
        self.entries.get(agent)
    }

    /// Adds an agent that shall run, or replaces the one of that id.
    ///
    /// # Errors
    /// [`RegistryError`]; nothing is changed then.
    pub fn insert(&mut self, manifest: Manifest) -> Result<(), RegistryError> {
        let agent = manifest.agent.clone();
        if agent == Manifest::sentinel_id() {
            return Err(RegistryError::AlwaysRuns(agent));
        }
        manifest.check()?;
        if self.entries.len() >= AGENTS_MAX && !self.entries.contains_key(&agent) {
            return Err(RegistryError::Full);
        }
        self.entries.insert(agent, Entry { manifest, desired: Desired::Running });
        Ok(())
    }

    /// Says whether an agent shall run.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], and [`RegistryError::AlwaysRuns`] for stopping the sentinel.
    pub fn desire(&mut self, agent: &AgentId, desired: Desired) -> Result<(), RegistryError> {
        let entry = self.entries.get_mut(agent).ok_or_else(|| RegistryError::Unknown(agent.clone()))?;
        if *agent == Manifest::sentinel_id() && desired == Desired::Stopped {
            return Err(RegistryError::AlwaysRuns(agent.clone()));
        }
        entry.desired = desired;
        Ok(())
    }

    /// Forgets an agent.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`], and [`RegistryError::AlwaysRuns`] for the sentinel.
    pub fn remove(&mut self, agent: &AgentId) -> Result<Entry, RegistryError> {
        if *agent == Manifest::sentinel_id() {
            return Err(RegistryError::AlwaysRuns(agent.clone()));
        }
        self.entries.remove(agent).ok_or_else(|| RegistryError::Unknown(agent.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::bridge;

    #[test]
    fn a_registry_comes_back_as_it_was() {
        let mut registry = Registry::default();
        registry.insert(bridge("notes")).unwrap();
        registry.insert(bridge("wiki")).unwrap();
        registry.desire(&"kBridge:wiki".parse().unwrap(), Desired::Stopped).unwrap();
        assert_eq!(Registry::decode(&registry.encode()), Ok(registry.clone()));
        registry.remove(&"kBridge:notes".parse().unwrap()).unwrap();
        let again = Registry::decode(&registry.encode()).unwrap();
        let names: Vec<_> = again.entries().map(|entry| entry.manifest.agent.to_string()).collect();
        assert_eq!(names, ["kSentinel:node", "kBridge:wiki"]);
        assert_eq!(again.entry(&"kBridge:wiki".parse().unwrap()).unwrap().desired, Desired::Stopped);
    }

    #[test]
    fn the_sentinel_is_always_there_and_always_runs() {
        let mut registry = Registry::default();
        let sentinel = Manifest::sentinel_id();
        let refused = RegistryError::AlwaysRuns(sentinel.clone());
        assert_eq!(registry.desire(&sentinel, Desired::Stopped), Err(refused.clone()));
        assert_eq!(registry.remove(&sentinel), Err(refused.clone()));
        assert_eq!(registry.insert(Manifest::sentinel()), Err(refused));
        assert_eq!(registry.desire(&sentinel, Desired::Running), Ok(()));
        assert_eq!(registry.entry(&sentinel).unwrap().desired, Desired::Running);
    }

    #[test]
    fn replacing_an_agent_starts_it() {
        let mut registry = Registry::default();
        let notes: AgentId = "kBridge:notes".parse().unwrap();
        registry.insert(bridge("notes")).unwrap();
        registry.desire(&notes, Desired::Stopped).unwrap();
        registry.insert(Manifest { description: "new".to_owned(), ..bridge("notes") }).unwrap();
        let entry = registry.entry(&notes).unwrap();
        assert_eq!((entry.desired, entry.manifest.description.as_str()), (Desired::Running, "new"));
    }

    #[test]
    fn a_full_registry_takes_no_more_but_still_changes() {
        let mut registry = Registry::default();
        for n in 1..AGENTS_MAX {
            registry.insert(bridge(&format!("b{n}"))).unwrap();
        }
        assert_eq!(registry.insert(bridge("more")), Err(RegistryError::Full));
        assert_eq!(registry.insert(bridge("b1")), Ok(()));
        assert!(registry.encode().len() < REGISTRY_BYTES_MAX);
    }

    #[test]
    fn damaged_and_later_registries_are_refused() {
        assert!(matches!(Registry::decode(b"junk"), Err(InvalidRegistry::Decode(_))));
        let later = cbor::encode(&Encoded { version: 2, agents: Vec::new() });
        assert_eq!(Registry::decode(&later), Err(InvalidRegistry::Version(2)));
        let unknown: AgentId = "kBridge:none".parse().unwrap();
        assert_eq!(
            Registry::default().desire(&unknown, Desired::Running),
            Err(RegistryError::Unknown(unknown.clone()))
        );
        let wrong = Manifest { agent: "kCore:x".parse().unwrap(), ..bridge("x") };
        let bytes = cbor::encode(&Encoded {
            version: 1,
            agents: vec![Entry { manifest: wrong, desired: Desired::Running }],
        });
        assert!(matches!(Registry::decode(&bytes), Err(InvalidRegistry::Agent { .. })));
    }
}
