//! Where else a service is answered.

use kos_protocol::{
    id::{AgentId, InvalidId, InvalidName, MemberId},
    text::shown,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// An agent of a member, written `kClass:name@kos1…`. By id: a petname means something at one node only.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Which agent,
    pub agent: AgentId,
    /// of whom.
    pub member: MemberId,
}

/// Why a text is no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRoute {
    /// No `@`.
    #[error("`{0}` is no route: write it as kClass:name@MEMBER, with the member's id")]
    NoMember(String),
    /// What is before the `@` is no agent.
    #[error(transparent)]
    Agent(#[from] InvalidName),
    /// What is behind the `@` is no id of a member.
    #[error(transparent)]
    Member(#[from] InvalidId),
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.agent, self.member)
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Route {
    type Err = InvalidRoute;
    fn from_str(text: &str) -> Result<Self, InvalidRoute> {
        let parts = text.split_once('@');
        let (agent, member) = parts.ok_or_else(|| InvalidRoute::NoMember(shown(text, 64)))?;
        // Quotes what is not an id, so it is cut before it is read.
        if member.len() > 90 {
            return Err(InvalidId::Length(shown(member, 64)).into());
        }
        Ok(Self { agent: agent.parse()?, member: member.parse()? })
    }
}

impl Serialize for Route {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
