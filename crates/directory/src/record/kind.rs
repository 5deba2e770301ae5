//! Names of kinds, and where a record belongs.

use kos_protocol::id::MemberId;
use std::fmt;

/// Longest name of a kind.
pub const KIND_BYTES_MAX: usize = 32;

/// A kind of record: one that this version knows, or the name of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `node-record`.
    Node,
    /// `agent-record`.
    Agent,
    /// `service-record`.
    Service,
    /// `link-record`.
    Link,
    /// `suspect-record`.
    Suspect,
    /// A kind of a later version: kept and forwarded.
    Other(Box<str>),
}

impl Kind {
    /// Reads a name; none where it is no lower case word of at most [`KIND_BYTES_MAX`].
    pub fn parse(name: &str) -> Option<Self> {
        let is_word = (1..=KIND_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-'));
        let known = [Self::Node, Self::Agent, Self::Service, Self::Link, Self::Suspect];
        is_word.then(|| {
            known.into_iter().find(|kind| kind.as_str() == name).unwrap_or_else(|| Self::Other(name.into()))
        })
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Node => "node-record",
            Self::Agent => "agent-record",
            Self::Service => "service-record",
            Self::Link => "link-record",
            Self::Suspect => "suspect-record",
            Self::Other(name) => name,
        }
    }

    /// Whether records of this kind reach every member. Those that do not travel a few hops and are no part of
    /// reconciliation.
    pub fn is_global(&self) -> bool {
        *self != Self::Link
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a record belongs: the newest one in a slot replaces the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// Whose.
    pub author: MemberId,
    /// Of which kind.
    pub kind: Kind,
    /// Which one of that kind.
    pub name: Box<str>,
}

impl Slot {
    /// The slot of the one record of its kind that an author has.
    pub fn only(author: MemberId, kind: Kind) -> Self {
        Self { author, kind, name: "".into() }
    }
}
