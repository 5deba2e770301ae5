//! What a steward signs to change the roster.

use crate::invite::InviteProof;
use kos_protocol::{
    cbor,
    id::{MemberId, ObjectId},
    limits::ACT_BYTES_MAX,
    object::Object,
};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_bytes::ByteBuf;
use std::fmt;

/// What a member may do. A closed set; an admission with another role is an [`Action::Unknown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Admits, suspends and expels others.
    Steward,
    /// Offers and uses services.
    Member,
    /// Carries what it cannot read.
    Relay,
}

impl Role {
    /// Every role with its written form.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Steward, "steward"), (Self::Member, "member"), (Self::Relay, "relay")];

    /// What the role may do, in sentences for whoever is asked to accept it.
    pub fn rights(self) -> &'static [&'static str] {
        match self {
            Self::Steward => &[
                "sees every member, node and service of the federation",
                "offers services and calls those of others",
                "invites, suspends and removes members, except stewards who have been here longer",
            ],
            Self::Member => &[
                "sees every member, node and service of the federation",
                "offers services and calls those of others, as their owners allow",
            ],
            Self::Relay => &[
                "carries sealed traffic between members without being able to read it",
                "sees which members are connected, and their addresses",
            ],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, text) = Self::ALL.iter().find(|(role, _)| role == self).expect("ALL names every role");
        f.write_str(text)
    }
}

/// Not one of the three roles.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role: steward, member or relay")]
pub struct UnknownRole(String);

impl std::str::FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.into_iter().find(|(_, written)| *written == text);
        found.map(|(role, _)| role).ok_or_else(|| UnknownRole(text.escape_default().take(64).collect()))
    }
}

/// Takes someone in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admit {
    /// Who.
    pub member: MemberId,
    /// As what.
    pub role: Role,
    /// What the others will see it as.
    pub name: String,
    /// Its key log as of now: the envelopes of `KeyLog::to_list`.
    pub key_log: Vec<ByteBuf>,
    /// The envelope of the [`Invite`](crate::invite::Invite) it came with; none when the steward vouches itself.
    #[serde(deserialize_with = "Option::deserialize")]
    pub invite: Option<ByteBuf>,
    /// The proof that it held the invitation's code; present exactly when `invite` is.
    #[serde(deserialize_with = "Option::deserialize")]
    pub proof: Option<InviteProof>,
    /// When the membership ends, in wall milliseconds; none for no end.
    #[serde(deserialize_with = "Option::deserialize")]
    pub until_ms: Option<u64>,
}

/// One change of the roster. Its bytes are the same in an act of a steward and, later, in a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Takes someone in.
    Admit(Box<Admit>),
    /// Stops a member for a while.
    Suspend {
        /// Whom.
        member: MemberId,
        /// A reason for people, at most `WHY_BYTES_MAX` bytes.
        why: String,
    },
    /// Takes a member back that was suspended, expelled or released, with the role it had.
    Reinstate {
        /// Whom.
        member: MemberId,
    },
    /// Puts a member out. Only a [`Action::Reinstate`] brings it back; no invitation does.
    Expel {
        /// Whom.
        member: MemberId,
        /// A reason for people, at most `WHY_BYTES_MAX` bytes.
        why: String,
    },
    /// Ends a membership without prejudice, because the member leaves. An invitation brings it back.
    Release {
        /// Whom.
        member: MemberId,
    },
    /// Withdraws an invitation.
    Revoke {
        /// The id of the invitation object.
        invite: ObjectId,
    },
    /// Records key events of a member. From then on acts with its older key do not count, unless this act knew them.
    Rotate {
        /// Whose.
        member: MemberId,
        /// Envelopes of consecutive key events, the first one following an event already known.
        events: Vec<ByteBuf>,
    },
    /// An action of a later version, or one this version cannot read: kept, forwarded, without effect.
    Unknown(Vec<u8>),
}

/// The written form of [`Action`]: a map with one entry, named like the action.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Written {
    Admit(Box<Admit>),
    Suspend { member: MemberId, why: String },
    Reinstate { member: MemberId },
    Expel { member: MemberId, why: String },
    Release { member: MemberId },
    Revoke { invite: ObjectId },
    Rotate { member: MemberId, events: Vec<ByteBuf> },
}

impl Action {
    /// Encodes the action by itself, deterministically.
    pub fn to_bytes(&self) -> Vec<u8> {
        let written = match self.clone() {
            Self::Admit(admit) => Written::Admit(admit),
            Self::Suspend { member, why } => Written::Suspend { member, why },
            Self::Reinstate { member } => Written::Reinstate { member },
            Self::Expel { member, why } => Written::Expel { member, why },
            Self::Release { member } => Written::Release { member },
            Self::Revoke { invite } => Written::Revoke { invite },
            Self::Rotate { member, events } => Written::Rotate { member, events },
            Self::Unknown(bytes) => return bytes,
        };
        cbor::encode(&written)
    }

    /// Reads an action. What this version cannot read is [`Action::Unknown`].
    ///
    /// # Errors
    /// [`cbor::DecodeError`] when the bytes are not deterministic CBOR.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, cbor::DecodeError> {
        cbor::decode_canonical::<IgnoredAny>(bytes, ACT_BYTES_MAX)?;
        Ok(match cbor::decode_message(bytes, ACT_BYTES_MAX) {
            Ok(Written::Admit(admit)) => Self::Admit(admit),
            Ok(Written::Suspend { member, why }) => Self::Suspend { member, why },
            Ok(Written::Reinstate { member }) => Self::Reinstate { member },
            Ok(Written::Expel { member, why }) => Self::Expel { member, why },
            Ok(Written::Release { member }) => Self::Release { member },
            Ok(Written::Revoke { invite }) => Self::Revoke { invite },
            Ok(Written::Rotate { member, events }) => Self::Rotate { member, events },
            Err(_) => Self::Unknown(bytes.to_vec()),
        })
    }

    /// The member whom this action takes away, for a while or for good.
    pub fn removes(&self) -> Option<MemberId> {
        match self {
            Self::Suspend { member, .. } | Self::Expel { member, .. } | Self::Release { member } => {
                Some(*member)
            }
            _ => None,
        }
    }

    /// The member whose place this action may change; none where it changes nobody's.
    pub fn about(&self) -> Option<MemberId> {
        match self {
            Self::Admit(admit) => Some(admit.member),
            Self::Suspend { member, .. }
            | Self::Expel { member, .. }
            | Self::Release { member }
            | Self::Reinstate { member }
            | Self::Rotate { member, .. } => Some(*member),
            Self::Revoke { .. } | Self::Unknown(_) => None,
        }
    }

    /// The word for it in lists and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Admit(_) => "admit",
            Self::Suspend { .. } => "suspend",
            Self::Reinstate { .. } => "reinstate",
            Self::Expel { .. } => "expel",
            Self::Release { .. } => "release",
            Self::Revoke { .. } => "revoke",
            Self::Rotate { .. } => "rotate",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// By whose right an act counts. Decisions of the whole federation follow in a later version.
pub const STEWARD: &str = "steward";

/// One signed act. Domain `kos/act/1`, counts in one federation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// One more than the greatest among the acts in `prev`; 1 directly after the genesis.
    pub seq: u64,
    /// The newest acts its author knew, strictly ascending, at most `ACT_PARENTS_MAX`. Empty: only the genesis.
    pub prev: Vec<ObjectId>,
    /// [`STEWARD`].
    pub authority: String,
    /// Who acts.
    pub author: MemberId,
    /// The number of the author's key that signs.
    pub key_seq: u64,
    /// When, in wall milliseconds, by the author's clock.
    pub time_ms: u64,
    /// The encoded [`Action`].
    pub action: ByteBuf,
}

impl Object for Act {
    const DOMAIN: &'static str = "kos/act/1";
    const BYTES_MAX: usize = ACT_BYTES_MAX;
}
