//! What an agent is: the part of it that its owner decides and the node keeps.

use crate::{
    http::Policy,
    origin::{ADDRESSES_MAX, ForbiddenAddress, Origin, Reach, check_address},
};
use kos_protocol::id::{AgentClass, AgentId, FederationId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, net::SocketAddr};

/// Longest description of an agent.
pub const DESCRIPTION_BYTES_MAX: usize = 200;
/// Rules one bridge may have.
pub const RULES_MAX: usize = 64;
/// Federations one agent may name.
pub const FEDERATIONS_MAX: usize = 64;
/// Shortest and longest time a bridge may wait for its origin, in milliseconds.
pub const TIMEOUT_MS: std::ops::RangeInclusive<u32> = 50..=600_000;

/// An agent, as its owner wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its id on this node.
    pub agent: AgentId,
    /// For people; at most [`DESCRIPTION_BYTES_MAX`], without control characters.
    #[serde(default)]
    pub description: String,
    /// Where it is offered; absent means in every federation this node is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federations: Option<BTreeSet<FederationId>>,
    /// What it does.
    pub kind: Kind,
}

/// What an agent does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Answers for the node. There is one, `kSentinel:node`; it always runs.
    Sentinel,
    /// Stands in front of an HTTP origin.
    Bridge(Bridge),
}

/// A bridge to an HTTP origin, fixed when it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Where it leads.
    pub origin: Origin,
    /// How far it may reach.
    pub reach: Reach,
    /// What the origin's host resolved to when the bridge was made, in the order to try; never asked again.
    pub addresses: Vec<SocketAddr>,
    /// What passes.
    pub policy: Policy,
    /// How long connecting to the origin may take, in milliseconds.
    pub connect_ms: u32,
    /// How long the origin may take from the end of a request to the head of its answer, in milliseconds.
    pub answer_ms: u32,
}

impl Bridge {
    /// Time to connect when nothing else is said: an origin is near.
    pub const CONNECT_MS: u32 = 5_000;
    /// Time to the head of an answer when nothing else is said: a service may think for a while.
    pub const ANSWER_MS: u32 = 60_000;
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    /// The id's class and the kind contradict each other.
    #[error("{agent} cannot be {what}")]
    Class {
        /// The id.
        agent: AgentId,
        /// What the manifest says it is.
        what: &'static str,
    },
    /// A text above its limit or with control characters.
    #[error("the description is above {DESCRIPTION_BYTES_MAX} bytes or holds a control character")]
    Description,
    /// Too many of something.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// Pinned to nothing, or to another port than the origin's.
    #[error("the addresses do not belong to {0}")]
    Addresses(Origin),
    /// Pinned to an address no bridge may lead to.
    #[error(transparent)]
    Address(#[from] ForbiddenAddress),
    /// A time outside [`TIMEOUT_MS`].
    #[error("{0} ms is not between 50 ms and 10 min")]
    Timeout(u32),
}

impl Manifest {
    /// The id of the agent that answers for the node.
    pub fn sentinel_id() -> AgentId {
        AgentId::new(AgentClass::Sentinel, "node").expect("`node` is a name")
    }

    /// The manifest of `kSentinel:node`.
    pub fn sentinel() -> Self {
        Self {
            agent: Self::sentinel_id(),
            description: "answers for the node".to_owned(),
            federations: None,
            kind: Kind::Sentinel,
        }
    }

    /// Whether it may be called in this federation.
    pub fn is_offered_in(&self, federation: &FederationId) -> bool {
        self.federations.as_ref().is_none_or(|federations| federations.contains(federation))
    }

    /// Checks everything, also what was checked when it was written: it comes back from a disk.
    ///
    /// # Errors
    /// [`InvalidManifest`].
    pub fn check(&self) -> Result<(), InvalidManifest> {
        if self.description.len() > DESCRIPTION_BYTES_MAX || self.description.contains(char::is_control) {
            return Err(InvalidManifest::Description);
        }
        if self.federations.as_ref().is_some_and(|federations| federations.len() > FEDERATIONS_MAX) {
            return Err(InvalidManifest::TooMany { what: "federations", limit: FEDERATIONS_MAX });
        }
        match &self.kind {
            Kind::Sentinel if self.agent == Self::sentinel_id() => Ok(()),
            Kind::Sentinel => {
                Err(InvalidManifest::Class { agent: self.agent.clone(), what: "the node's sentinel" })
            }
            Kind::Bridge(bridge) if self.agent.class() == AgentClass::Bridge => bridge.check(),
            Kind::Bridge(_) => Err(InvalidManifest::Class { agent: self.agent.clone(), what: "a bridge" }),
        }
    }
}

impl Bridge {
    fn check(&self) -> Result<(), InvalidManifest> {
        if self.policy.allow.len() > RULES_MAX {
            return Err(InvalidManifest::TooMany { what: "rules", limit: RULES_MAX });
        }
        if self.addresses.len() > ADDRESSES_MAX {
            return Err(InvalidManifest::TooMany { what: "addresses", limit: ADDRESSES_MAX });
        }
        let port = self.origin.port();
        if self.addresses.is_empty() || self.addresses.iter().any(|address| address.port() != port) {
            return Err(InvalidManifest::Addresses(self.origin.clone()));
        }
        for address in &self.addresses {
            check_address(address.ip(), self.reach)?;
        }
        match [self.connect_ms, self.answer_ms].into_iter().find(|ms| !TIMEOUT_MS.contains(ms)) {
            Some(ms) => Err(InvalidManifest::Timeout(ms)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn bridge(name: &str) -> Manifest {
        Manifest {
            agent: AgentId::new(AgentClass::Bridge, name).unwrap(),
            description: String::new(),
            federations: None,
            kind: Kind::Bridge(Bridge {
                origin: "http://127.0.0.1:8123".parse().unwrap(),
                reach: Reach::Loopback,
                addresses: vec!["127.0.0.1:8123".parse().unwrap()],
                policy: Policy::default(),
                connect_ms: Bridge::CONNECT_MS,
                answer_ms: Bridge::ANSWER_MS,
            }),
        }
    }

    fn altered(alter: impl FnOnce(&mut Bridge)) -> Result<(), InvalidManifest> {
        let mut manifest = bridge("notes");
        if let Kind::Bridge(bridge) = &mut manifest.kind {
            alter(bridge);
        }
        manifest.check()
    }

    #[test]
    fn a_bridge_is_a_bridge_and_the_sentinel_is_one() {
        assert_eq!(bridge("notes").check(), Ok(()));
        assert_eq!(Manifest::sentinel().check(), Ok(()));
        let other = Manifest { agent: "kSentinel:other".parse().unwrap(), ..Manifest::sentinel() };
        assert!(matches!(other.check(), Err(InvalidManifest::Class { .. })));
        let planner = Manifest { agent: "kPlanner:notes".parse().unwrap(), ..bridge("notes") };
        assert!(matches!(planner.check(), Err(InvalidManifest::Class { .. })));
    }

    #[test]
    fn addresses_are_checked_again_when_a_manifest_comes_back() {
        assert!(matches!(altered(|bridge| bridge.addresses.clear()), Err(InvalidManifest::Addresses(_))));
        let pin = |address: &'static str, reach| {
            altered(move |bridge| {
                bridge.addresses = vec![address.parse().unwrap()];
                bridge.reach = reach;
            })
        };
        assert!(matches!(pin("127.0.0.1:1", Reach::Loopback), Err(InvalidManifest::Addresses(_))));
        assert!(matches!(pin("10.0.0.1:8123", Reach::Loopback), Err(InvalidManifest::Address(_))));
        assert!(matches!(pin("169.254.1.1:8123", Reach::AllowedHost), Err(InvalidManifest::Address(_))));
        assert_eq!(pin("10.0.0.1:8123", Reach::AllowedHost), Ok(()));
    }

    #[test]
    fn everything_has_a_bound() {
        assert_eq!(altered(|bridge| bridge.connect_ms = 0), Err(InvalidManifest::Timeout(0)));
        assert_eq!(altered(|bridge| bridge.answer_ms = 600_001), Err(InvalidManifest::Timeout(600_001)));
        let rule: crate::http::Rule = "/a".parse().unwrap();
        assert!(altered(|bridge| bridge.policy.allow = vec![rule; RULES_MAX + 1]).is_err());
        let long = Manifest { description: "a".repeat(DESCRIPTION_BYTES_MAX + 1), ..bridge("notes") };
        assert_eq!(long.check(), Err(InvalidManifest::Description));
        let escape = Manifest { description: "\u{1b}[2J".to_owned(), ..bridge("notes") };
        assert_eq!(escape.check(), Err(InvalidManifest::Description));
    }

    #[test]
    fn an_agent_is_offered_everywhere_or_where_it_says() {
        let (here, there) = (FederationId::from_bytes([1; 32]), FederationId::from_bytes([2; 32]));
        assert!(bridge("notes").is_offered_in(&here));
        let some = Manifest { federations: Some([here].into()), ..bridge("notes") };
        assert!(some.is_offered_in(&here) && !some.is_offered_in(&there));
    }
}
