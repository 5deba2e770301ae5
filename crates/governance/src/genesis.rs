//! The first bytes of a federation. Its id is their hash, so they never change.

use crate::act::Role;
use kos_protocol::{
    cbor::{self, DecodeError},
    id::{FederationId, InvalidName, MemberId, check_name, sha256},
    key_log::{KeyLog, KeyLogError},
    limits::{FOUNDERS_MAX, GENESIS_BYTES_MAX, KEY_EVENTS_MAX},
};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};
use std::collections::{BTreeMap, BTreeSet};

/// The version of the genesis format.
pub const VERSION: u64 = 1;
/// The profile of a federation whose stewards act alone.
pub const HOUSEHOLD: &str = "household";
/// The profile of a federation that decides by votes; refused until this version can hold them.
pub const COMMUNITY: &str = "community";

/// A fraction `numerator / denominator`, so that nobody's rounding matters.
pub type Fraction = (u32, u32);

/// How one kind of decision runs. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// From proposal to the first vote.
    pub prepare_s: u64,
    /// How long votes count.
    pub decide_s: u64,
    /// How long the result must hold.
    pub confirm_s: u64,
    /// From result to effect.
    pub enact_s: u64,
    /// Share of yes among yes and no that a proposal must exceed.
    pub approval: Fraction,
    /// Share of the whole weight that must have voted.
    pub turnout: Fraction,
    /// Share of veto among all votes that stops a proposal; none where nobody may veto.
    #[serde(deserialize_with = "Option::deserialize")]
    pub veto: Option<Fraction>,
}

/// How a federation decides: its tracks by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constitution {
    /// `routine`, `policy`, `membership`, `constitution` and `emergency`.
    pub tracks: BTreeMap<String, Track>,
}

/// The tracks every constitution has.
pub const TRACKS: [&str; 5] = ["constitution", "emergency", "membership", "policy", "routine"];

impl Constitution {
    /// The constitution of the `household` profile: everything within minutes.
    pub fn household() -> Self {
        let track = |minutes: [u64; 4], approval, turnout, veto| Track {
            prepare_s: minutes[0] * 60,
            decide_s: minutes[1] * 60,
            confirm_s: minutes[2] * 60,
            enact_s: minutes[3] * 60,
            approval,
            turnout,
            veto,
        };
        let tracks = [
            ("routine", track([0, 5, 1, 0], (1, 2), (1, 10), None)),
            ("policy", track([1, 10, 2, 1], (1, 2), (1, 3), Some((1, 3)))),
            ("membership", track([1, 10, 2, 1], (1, 2), (1, 3), Some((1, 3)))),
            ("constitution", track([5, 30, 5, 5], (2, 3), (1, 2), Some((1, 3)))),
            ("emergency", track([0, 2, 0, 0], (2, 3), (1, 2), None)),
        ];
        Self { tracks: tracks.into_iter().map(|(name, track)| (name.to_owned(), track)).collect() }
    }
}

/// A member from the beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founder {
    /// Who.
    pub member: MemberId,
    /// As what.
    pub role: Role,
    /// Weight of its vote.
    pub weight: u32,
    /// What the others see it as.
    pub name: String,
    /// Its key log at the founding: the envelopes of [`KeyLog::to_list`].
    #[serde(deserialize_with = "cbor::bounded_list::<KEY_EVENTS_MAX, _, _>")]
    pub key_log: Vec<ByteBuf>,
}

/// What a genesis says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charter {
    /// [`VERSION`].
    pub v: u64,
    /// 32 random bytes, so that no two federations are one.
    pub nonce: ByteArray<32>,
    /// What people call the federation; a hint, not an identity.
    pub name: String,
    /// [`HOUSEHOLD`] or [`COMMUNITY`].
    pub profile: String,
    /// How it decides.
    pub constitution: Constitution,
    /// Its founders, most senior first.
    #[serde(deserialize_with = "cbor::bounded_list::<FOUNDERS_MAX, _, _>")]
    pub roster: Vec<Founder>,
    /// Who orders decisions; empty in a household.
    pub council: Vec<MemberId>,
    /// Who countersigns them; empty in a household.
    pub witnesses: Vec<MemberId>,
}

/// Why bytes are no genesis this version can follow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// Not a genesis at all.
    #[error("not a genesis: {0}")]
    Decode(#[from] DecodeError),
    /// From a later version.
    #[error("genesis version {0}; this version knows {VERSION}")]
    Version(u64),
    /// A profile this version cannot run.
    #[error("the profile `{0}` needs a later version; this one runs `{HOUSEHOLD}`")]
    Profile(String),
    /// The federation's or a founder's name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A founder whose key log does not verify or is another member's.
    #[error("the key log of a founder does not verify: {0}")]
    KeyLog(#[from] KeyLogError),
    /// A founder with the key log of another member.
    #[error("the key log of founder {0} is of another member")]
    OtherKeyLog(MemberId),
    /// No founders, too many, one twice, or none of them a steward.
    #[error("a genesis names 1 to {FOUNDERS_MAX} different founders, at least one of them a steward")]
    Founders,
    /// A missing track, a share above one, or a division by zero.
    #[error("track `{0}` is missing or not possible")]
    Track(String),
}

/// A checked genesis and its bytes, exactly as they are hashed. Fields this version does not know are in the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    charter: Charter,
    bytes: Vec<u8>,
    id: FederationId,
    key_logs: Vec<KeyLog>,
}

impl Genesis {
    /// Founds a household with one steward. `nonce` is 32 random bytes.
    ///
    /// # Errors
    /// [`GenesisError::Name`].
    pub fn household(
        nonce: [u8; 32],
        name: &str,
        founder_name: &str,
        founder: &KeyLog,
    ) -> Result<Self, GenesisError> {
        Self::new(Charter {
            v: VERSION,
            nonce: ByteArray::new(nonce),
            name: name.to_owned(),
            profile: HOUSEHOLD.to_owned(),
            constitution: Constitution::household(),
            roster: vec![Founder {
                member: founder.member(),
                role: Role::Steward,
                weight: 1,
                name: founder_name.to_owned(),
                key_log: founder.to_list(),
            }],
            council: Vec::new(),
            witnesses: Vec::new(),
        })
    }

    /// Founds a federation.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn new(charter: Charter) -> Result<Self, GenesisError> {
        Self::parse(&cbor::encode(&charter))
    }

    /// Reads and checks genesis bytes.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, GenesisError> {
        #[derive(Deserialize)]
        struct Version {
            v: u64,
        }
        let Version { v } = cbor::decode_canonical(bytes, GENESIS_BYTES_MAX)?;
        if v != VERSION {
            return Err(GenesisError::Version(v));
        }
        let charter: Charter = cbor::decode_message(bytes, GENESIS_BYTES_MAX)?;
        if charter.profile != HOUSEHOLD {
            return Err(GenesisError::Profile(charter.profile.escape_default().take(64).collect()));
        }
        check_name(&charter.name)?;
        check_tracks(&charter.constitution)?;
        let key_logs = check_founders(&charter.roster)?;
        let id = FederationId::from_bytes(sha256(bytes));
        Ok(Self { charter, bytes: bytes.to_vec(), id, key_logs })
    }

    /// The id of the federation: SHA-256 of [`Self::bytes`].
    pub fn id(&self) -> FederationId {
        self.id
    }
    /// The bytes as they were hashed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// What it says.
    pub fn charter(&self) -> &Charter {
        &self.charter
    }
    /// The founders with their verified key logs, most senior first.
    pub fn founders(&self) -> impl Iterator<Item = (&Founder, &KeyLog)> {
        self.charter.roster.iter().zip(&self.key_logs)
    }
}

fn check_tracks(constitution: &Constitution) -> Result<(), GenesisError> {
    let possible = |(numerator, denominator): Fraction| denominator > 0 && numerator <= denominator;
    let can_run = |track: &Track| {
        [Some(track.approval), Some(track.turnout), track.veto].into_iter().flatten().all(possible)
    };
    let missing = TRACKS.into_iter().find(|name| !constitution.tracks.contains_key(*name));
    let impossible =
        || constitution.tracks.iter().find(|(_, track)| !can_run(track)).map(|(name, _)| name.as_str());
    match missing.or_else(impossible) {
        Some(name) => Err(GenesisError::Track(name.escape_default().take(64).collect())),
        None => Ok(()),
    }
}

fn check_founders(roster: &[Founder]) -> Result<Vec<KeyLog>, GenesisError> {
    let distinct: BTreeSet<_> = roster.iter().map(|founder| founder.member).collect();
    let has_steward = roster.iter().any(|founder| founder.role == Role::Steward);
    if !(1..=FOUNDERS_MAX).contains(&roster.len()) || distinct.len() != roster.len() || !has_steward {
        return Err(GenesisError::Founders);
    }
    let check = |founder: &Founder| {
        check_name(&founder.name)?;
        let log = KeyLog::parse(&founder.key_log)?;
        if log.member() == founder.member { Ok(log) } else { Err(GenesisError::OtherKeyLog(founder.member)) }
    };
    roster.iter().map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kos_protocol::key::SecretKey;

    fn founder() -> KeyLog {
        KeyLog::incept(&SecretKey::from_seed(&[1; 32]), &SecretKey::from_seed(&[2; 32]).public())
    }

    fn charter() -> Charter {
        Genesis::household([7; 32], "home", "attic", &founder()).unwrap().charter().clone()
    }

    #[test]
    fn fields_of_a_later_version_stay_in_the_bytes_and_in_the_id() {
        let genesis = Genesis::new(charter()).unwrap();
        let mut value: BTreeMap<String, ipld_core::ipld::Ipld> =
            cbor::decode_message(genesis.bytes(), GENESIS_BYTES_MAX).unwrap();
        value.insert("motto".to_owned(), "later".to_owned().into());
        let later = Genesis::parse(&cbor::encode(&value)).unwrap();
        assert_eq!(later.charter(), genesis.charter());
        assert_ne!(later.id(), genesis.id());
        assert_eq!(later.bytes(), cbor::encode(&value));
    }

    #[test]
    fn a_genesis_that_cannot_run_is_refused_with_the_reason() {
        let fault = |change: &dyn Fn(&mut Charter)| {
            let mut charter = charter();
            change(&mut charter);
            Genesis::new(charter).unwrap_err()
        };
        assert_eq!(fault(&|c| c.v = 2), GenesisError::Version(2));
        assert_eq!(fault(&|c| c.profile = COMMUNITY.to_owned()), GenesisError::Profile(COMMUNITY.to_owned()));
        assert!(matches!(fault(&|c| c.name = "\u{1b}[2J".to_owned()), GenesisError::Name(_)));
        assert!(matches!(fault(&|c| c.roster[0].name.clear()), GenesisError::Name(_)));
        assert_eq!(fault(&|c| c.roster.clear()), GenesisError::Founders);
        assert_eq!(fault(&|c| c.roster.push(c.roster[0].clone())), GenesisError::Founders);
        assert_eq!(fault(&|c| c.roster[0].role = Role::Member), GenesisError::Founders);
        let other = MemberId::from_bytes([3; 32]);
        assert_eq!(fault(&|c| c.roster[0].member = other), GenesisError::OtherKeyLog(other));
        assert!(matches!(fault(&|c| c.roster[0].key_log[0][9] ^= 1), GenesisError::KeyLog(_)));
        let no_track = |c: &mut Charter| c.constitution.tracks.retain(|name, _| name != "routine");
        assert_eq!(fault(&no_track), GenesisError::Track("routine".to_owned()));
        for share in [(1, 0), (2, 1)] {
            let set = |c: &mut Charter| c.constitution.tracks.get_mut("policy").unwrap().approval = share;
            assert_eq!(fault(&set), GenesisError::Track("policy".to_owned()));
        }
    }
}
