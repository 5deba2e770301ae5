//! Names of things: members, federations, objects, agents. SPEC §3.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// SHA-256, the hash of KLP 1.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// Not bech32m, or a character was mistyped.
    #[error("`{0}` is not a valid id: its checksum does not fit")]
    Checksum(String),
    /// An id of another kind.
    #[error("`{text}` does not start with `{expected}1`")]
    Kind {
        /// What was given.
        text: String,
        /// The prefix this kind has.
        expected: &'static str,
    },
    /// Not 32 bytes long.
    #[error("`{0}` has the wrong length for an id")]
    Length(String),
}

fn to_bech32(prefix: &'static str, bytes: &[u8; 32]) -> String {
    let hrp = bech32::Hrp::parse(prefix).expect("our prefixes are valid");
    bech32::encode::<bech32::Bech32m>(hrp, bytes).expect("52 characters are below the limit")
}

fn from_bech32(prefix: &'static str, text: &str) -> Result<[u8; 32], InvalidId> {
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<bech32::Bech32m>(text)
        .map_err(|_| InvalidId::Checksum(text.to_owned()))?;
    if checked.hrp().to_lowercase() != prefix {
        return Err(InvalidId::Kind { text: text.to_owned(), expected: prefix });
    }
    let bytes: Vec<u8> = checked.byte_iter().collect();
    bytes.try_into().map_err(|_| InvalidId::Length(text.to_owned()))
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The id with these bytes. Any 32 bytes are a well-formed id.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
            /// The 32 bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
            /// The first five bytes in hex. For log lines, never for lookups.
            pub fn short(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0[..5])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_bech32($prefix, &self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                from_bech32($prefix, text).map(Self)
            }
        }

        /// Bytes in binary formats, the checksummed text in formats for people.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    <serde_bytes::ByteArray<32>>::deserialize(deserializer).map(|bytes| Self(bytes.into_array()))
                }
            }
        }
    };
}

hash_id!(
    /// A member for life: the id of its inception event, the same after every key rotation.
    MemberId,
    "kos"
);
hash_id!(
    /// A federation for life: SHA-256 of its genesis bytes.
    FederationId,
    "kosfed"
);
hash_id!(
    /// A signed object: SHA-256 of its COSE `Sig_structure`, never of its signature.
    ObjectId,
    "kosobj"
);

impl FederationId {
    /// What the clear preamble of a handshake shows of a federation: enough to choose by, not enough to learn it from.
    pub fn tag(&self) -> [u8; 8] {
        let mut input = b"klp/1 federation tag".to_vec();
        input.extend_from_slice(&self.0);
        let mut tag = [0; 8];
        tag.copy_from_slice(&sha256(&input)[..8]);
        tag
    }
}

/// What kind of work an agent does. A closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AgentClass {
    /// Orchestrates other agents.
    #[serde(rename = "kCore")]
    Core,
    /// Breaks work into steps.
    #[serde(rename = "kPlanner")]
    Planner,
    /// Carries steps out.
    #[serde(rename = "kExecutor")]
    Executor,
    /// Checks what others did.
    #[serde(rename = "kReviewer")]
    Reviewer,
    /// Watches the node and answers for it.
    #[serde(rename = "kSentinel")]
    Sentinel,
    /// Remembers.
    #[serde(rename = "kMemory")]
    Memory,
    /// Speaks for a person.
    #[serde(rename = "kPersona")]
    Persona,
    /// Stands in front of a service outside the mesh.
    #[serde(rename = "kBridge")]
    Bridge,
}

impl AgentClass {
    /// Every class with its written form.
    pub const ALL: [(Self, &'static str); 8] = [
        (Self::Core, "kCore"),
        (Self::Planner, "kPlanner"),
        (Self::Executor, "kExecutor"),
        (Self::Reviewer, "kReviewer"),
        (Self::Sentinel, "kSentinel"),
        (Self::Memory, "kMemory"),
        (Self::Persona, "kPersona"),
        (Self::Bridge, "kBridge"),
    ];
}

impl fmt::Display for AgentClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, text) = Self::ALL.iter().find(|(class, _)| class == self).expect("ALL names every class");
        f.write_str(text)
    }
}

/// Why a text is not an agent id or a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// No `kClass:` in front.
    #[error("`{0}` is not an agent id: write it as kClass:name, for instance kBridge:notes")]
    NoClass(String),
    /// Not one of the eight classes.
    #[error(
        "`{0}` is not an agent class: kCore kPlanner kExecutor kReviewer kSentinel kMemory kPersona kBridge"
    )]
    UnknownClass(String),
    /// Empty, too long, or with characters names do not have.
    #[error("`{0}` is not a name: 1 to 32 of a-z, 0-9 and `-`, starting and ending with a letter or digit")]
    BadName(String),
}

/// Checks a name that members see: 1 to 32 of `a-z 0-9 -`, no `-` at either end.
///
/// So narrow that no two names look alike and none can carry a terminal escape.
///
/// # Errors
/// [`InvalidName::BadName`].
pub fn check_name(name: &str) -> Result<(), InvalidName> {
    let fits = (1..=32).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-');
    if fits { Ok(()) } else { Err(InvalidName::BadName(name.escape_default().take(64).collect())) }
}

/// An agent on its own node: `kClass:name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId {
    class: AgentClass,
    name: String,
}

impl AgentId {
    /// An agent of `class` called `name`.
    ///
    /// # Errors
    /// [`InvalidName::BadName`], as [`check_name`].
    pub fn new(class: AgentClass, name: &str) -> Result<Self, InvalidName> {
        check_name(name)?;
        Ok(Self { class, name: name.to_owned() })
    }
    /// Its class.
    pub fn class(&self) -> AgentClass {
        self.class
    }
    /// Its name within the class.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.class, self.name)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AgentId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let shown = || text.escape_default().take(64).collect::<String>();
        let (class, name) = text.split_once(':').ok_or_else(|| InvalidName::NoClass(shown()))?;
        let (class, _) = AgentClass::ALL
            .into_iter()
            .find(|(_, written)| *written == class)
            .ok_or_else(|| InvalidName::UnknownClass(class.escape_default().take(64).collect()))?;
        Self::new(class, name)
    }
}

impl Serialize for AgentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_id_reads_back_and_a_typo_does_not() {
        let id = MemberId::from_bytes(sha256(b"inception"));
        let text = id.to_string();
        assert!(text.starts_with("kos1"));
        assert_eq!(text.parse::<MemberId>(), Ok(id));
        assert_eq!(text.to_uppercase().parse::<MemberId>(), Ok(id));
        let typo = text.replacen(&text[10..11], if &text[10..11] == "q" { "p" } else { "q" }, 1);
        assert!(matches!(typo.parse::<MemberId>(), Err(InvalidId::Checksum(_))));
        let federation = FederationId::from_bytes(*id.as_bytes()).to_string();
        assert!(matches!(federation.parse::<MemberId>(), Err(InvalidId::Kind { .. })));
    }

    #[test]
    fn agent_ids_are_narrow() {
        assert_eq!("kBridge:notes".parse::<AgentId>().unwrap().to_string(), "kBridge:notes");
        for bad in
            ["notes", "kbridge:notes", "kBridge:", "kBridge:No", "kBridge:a b", "kBridge:-a", "kBridge:é"]
        {
            assert!(bad.parse::<AgentId>().is_err(), "{bad}");
        }
    }
}
