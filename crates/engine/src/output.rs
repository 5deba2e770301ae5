//! What comes out of a federation: orders to the shell, and what became of what was handed in.

use crate::item::{ACT, Item, ItemError};
use kos_directory::{MergeError, Slot};
use kos_governance::{
    act::{Act, Action},
    acts::{ActError, LogError},
    genesis::GenesisError,
    secret::DiscoverySecret,
};
use kos_protocol::{
    id::{FederationId, MemberId},
    key_log::KeyLogError,
    object::{Scope, Unverified},
};
use std::collections::BTreeMap;

/// Where the shell keeps something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The genesis. Cannot be rebuilt.
    Genesis,
    /// Acts by `seq` and id, as items: in the order of their keys each follows those before it. Cannot be rebuilt.
    Acts,
    /// Key logs by member, as items. Cannot be rebuilt.
    KeyLogs,
    /// The discovery secret, one. Secret.
    Secret,
    /// Records by slot, as [`crate::Stored`] reads them. Peers can give them again.
    Records,
    /// Items of unknown kinds by hash. Peers can give them again.
    Unknown,
}

/// Who came and went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RosterChange {
    /// Members who may act now and could not before.
    pub admitted: Vec<MemberId>,
    /// Members who were expelled, left, lapsed, or whose admission turned out not to count.
    pub removed: Vec<MemberId>,
    /// Members who were suspended.
    pub suspended: Vec<MemberId>,
    /// Active members with a new current key: links and sessions with the old one must close.
    pub rotated: Vec<MemberId>,
}

impl RosterChange {
    /// Whether nobody came, went or changed keys.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An order to the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Keep these bytes; they replace what `key` had. Give them back with [`Federation::restore`].
    Persist {
        /// Where.
        table: Table,
        /// Under which key.
        key: Vec<u8>,
        /// What.
        bytes: Vec<u8>,
    },
    /// Keep it no longer.
    Forget {
        /// Where.
        table: Table,
        /// Which key.
        key: Vec<u8>,
    },
    /// Gossip an item. Items that came by gossip and were `New` are forwarded by gossip itself.
    Broadcast(Vec<u8>),
    /// Close sessions of those who left, let those in who came.
    RosterChanged(RosterChange),
    /// These slots have another record, or none.
    DirectoryChanged(Vec<Slot>),
    /// Move to the topics of the new secret, and give it to every active member in reach, inside sessions.
    SecretChanged,
    /// Draw 32 random bytes, sign [`Federation::draft_secret`], hand it in as [`crate::Input::Secret`].
    DrawSecret,
    /// Draft, sign and hand in this act: it records a member's new key. A draft that is refused was overtaken by
    /// other news: leave it.
    RecordRotation(Action),
    /// Send a heartbeat (`kos.alive`) to a linked member and say what became of it.
    Heartbeat(MemberId),
    /// Send a linked member the heartbeat (`kos.alive`) that says it is no watcher any more.
    Release(MemberId),
    /// Try to reach a member, by whatever way, and say what came of it.
    Probe(MemberId),
    /// Sign and publish a `SuspectRecord` with these fields.
    Suspect {
        /// The suspect.
        subject: MemberId,
        /// The number of its newest node record.
        subject_seq: u64,
        /// Since when nothing was heard, in wall milliseconds; none withdraws it.
        since_ms: Option<u64>,
    },
    /// Others suspect this node: publish a newer node record.
    Refute,
    /// A member's health is another.
    HealthChanged(MemberId),
    /// A record of this member newer than our own came in: another machine runs with our keys, or an old backup was
    /// restored. Stop publishing and say so.
    SeenMyself(Slot),
}

/// What became of an item. For gossip: `New` accept; `Known`, `Held` ignore; refused: reject where hostile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// News, taken.
    New,
    /// Had it, or something newer.
    Known,
    /// An act that waits for those before it.
    Held,
    /// Not taken.
    Refused(Refusal),
}

/// Why an item is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No item.
    #[error(transparent)]
    Item(#[from] ItemError),
    /// An act.
    #[error(transparent)]
    Act(#[from] ActError),
    /// A key log that does not verify.
    #[error(transparent)]
    KeyLog(#[from] KeyLogError),
    /// A key log of a stranger, or a forked one.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record.
    #[error(transparent)]
    Record(#[from] MergeError),
    /// A discovery secret not signed by an active steward, or numbered ahead of the removals known here.
    #[error("the discovery secret is not by an active steward or ahead of the acts known here")]
    Secret,
    /// An item of an unknown kind, and no room for it.
    #[error("no room for another item of an unknown kind")]
    UnknownFull,
    /// A record that is to stay near came by gossip. SPEC §9.11.
    #[error("records of this kind do not travel by gossip")]
    NotGossip,
}

impl Refusal {
    /// A word from a closed set, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Item(_) => "item_malformed",
            Self::Act(error) => error.label(),
            Self::KeyLog(_) => "key_log_malformed",
            Self::Log(LogError::NotAMember(_)) => "key_log_not_a_member",
            Self::Log(LogError::Forked(_)) => "key_log_forked",
            Self::Record(error) => error.label(),
            Self::Secret => "secret",
            Self::UnknownFull => "unknown_full",
            Self::NotGossip => "not_gossip",
        }
    }

    /// Whether it may count once acts are known that are missing here: whoever passed it on has them.
    pub fn lacks_acts(&self) -> bool {
        matches!(self, Self::Record(MergeError::NotAnAuthor { .. }) | Self::Log(LogError::NotAMember(_)))
    }

    /// Whether an honest member would never have passed it on. The others may be a matter of time or of room.
    pub fn is_hostile(&self) -> bool {
        match self {
            Self::Item(_) | Self::KeyLog(_) | Self::NotGossip => true,
            Self::Act(error) => error.is_hostile(),
            Self::Record(error) => error.is_hostile(),
            Self::Log(_) | Self::Secret | Self::UnknownFull => false,
        }
    }
}

impl Verdict {
    /// An error where it was refused.
    ///
    /// # Errors
    /// Why.
    pub fn taken(self) -> Result<Self, Refusal> {
        match self {
            Self::Refused(refusal) => Err(refusal),
            taken => Ok(taken),
        }
    }

    /// What it means for an act of our own.
    ///
    /// # Errors
    /// [`ActError`].
    pub fn acted(self) -> Result<(), ActError> {
        match self {
            Self::Refused(Refusal::Act(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// What it means for a record of our own.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn published(self) -> Result<(), PublishError> {
        match self {
            Self::New => Ok(()),
            Self::Refused(Refusal::Record(error)) => Err(error.into()),
            _ => Err(PublishError::Outdated),
        }
    }
}

/// Why a record of our own is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It is not taken here, so nobody else would take it.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A newer one of ours is here already: take the number from [`Federation::stamp`].
    #[error("a newer record of this node is known already")]
    Outdated,
}

/// Why a welcome does not make us a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WelcomeError {
    /// Its genesis.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// Another federation than the invitation's.
    #[error("the welcome is into {shown}, the invitation was into {expected}")]
    OtherFederation {
        /// What came.
        shown: FederationId,
        /// What was asked for.
        expected: FederationId,
    },
    /// An act in it that does not hold.
    #[error("an act in the welcome does not hold: {0}")]
    Act(#[from] ActError),
    /// We are not an active member in it.
    #[error("the welcome does not make this node a member")]
    NotAdmitted,
}

/// The fields that every record of ours begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// This member.
    pub author: MemberId,
    /// The number of its current key.
    pub key_seq: u64,
    /// Above every number used or seen in the slot.
    pub seq: u64,
    /// Now.
    pub time_ms: u64,
    /// When it stops counting.
    pub expires_ms: u64,
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Items taken.
    pub new: u64,
    /// Items heard again.
    pub known: u64,
    /// Acts that had to wait.
    pub held: u64,
    /// Items refused, by [`Refusal::label`].
    pub refused: BTreeMap<&'static str, u64>,
    /// Of these, what each member passed on.
    pub refused_from: BTreeMap<MemberId, BTreeMap<&'static str, u64>>,
}

/// Whether a persisted row reads as what its table holds; signatures are checked when it is restored.
///
/// # Errors
/// What is wrong with it.
pub fn check_row(federation: FederationId, table: Table, bytes: &[u8]) -> Result<(), String> {
    let scope = Scope::Federation(federation);
    match table {
        Table::Acts => {
            let item = Item::parse(bytes).map_err(|error| error.to_string())?;
            Unverified::<Act>::parse(&item.body, scope).map_err(|error| error.to_string())?;
            if item.kind == ACT { Ok(()) } else { Err(format!("no act but {}", item.kind)) }
        }
        Table::KeyLogs => {
            let log = Item::parse(bytes).map_err(|error| error.to_string())?.as_key_log();
            log.map(drop).ok_or_else(|| "no key log, or one that does not verify".to_owned())
        }
        Table::Secret => {
            let secret = Unverified::<DiscoverySecret>::parse(bytes, scope);
            secret.map(drop).map_err(|error| error.to_string())
        }
        _ => Ok(()),
    }
}
