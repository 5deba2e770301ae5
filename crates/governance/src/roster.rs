//! Who is in: members, their roles, keys and names.

use crate::act::Role;
use kos_protocol::{
    id::{MemberId, ObjectId},
    key::PublicKey,
    key_log::KeyLog,
};
use std::collections::{BTreeMap, BTreeSet};

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// May do what its role allows. Leaves by any of the others.
    Active,
    /// Stopped for a while; a reinstatement makes it active.
    Suspended,
    /// Its membership ended by date; a new admission makes it active.
    Lapsed,
    /// Left of its own accord; a new admission or a reinstatement makes it active.
    Left,
    /// Put out; only a reinstatement makes it active.
    Expelled,
}

impl Standing {
    /// The word for it in lists and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Lapsed => "lapsed",
            Self::Left => "left",
            Self::Expelled => "expelled",
        }
    }
}

/// A member, past or present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub id: MemberId,
    /// As what.
    pub role: Role,
    /// The name it was admitted with. Others may have the same.
    pub given_name: String,
    /// The name it goes by: unique in the federation, the given one for the most senior that has it.
    pub name: String,
    /// Its verified keys.
    pub key_log: KeyLog,
    /// Whether it is still in.
    pub standing: Standing,
    /// When the membership ends, in wall milliseconds.
    pub until_ms: Option<u64>,
    /// When it was admitted, by the admitting steward's clock; none for founders.
    pub admitted_ms: Option<u64>,
    /// Who admitted it; none for founders.
    pub admitted_by: Option<MemberId>,
    /// Smaller is more senior.
    pub seniority: (u64, ObjectId),
}

impl Member {
    /// Whether it may do what its role allows.
    pub fn is_active(&self) -> bool {
        self.standing == Standing::Active
    }

    /// Whether it may admit and remove.
    pub fn is_active_steward(&self) -> bool {
        self.is_active() && self.role == Role::Steward
    }

    /// The key that signs for it now.
    pub fn key(&self) -> PublicKey {
        self.key_log.current()
    }
}

/// Why a text names no one member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nobody.
    #[error("no member is called `{0}`")]
    Unknown(String),
    /// Several.
    #[error("`{text}` may be any of: {}", .candidates.join(", "))]
    Ambiguous {
        /// What was given.
        text: String,
        /// The names they go by, each usable instead.
        candidates: Vec<String>,
    },
}

/// Characters of an id after `kos1` that a prefix must have to name a member.
const PREFIX_CHARS_MIN: usize = 4;

/// Everybody who is or was a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    members: BTreeMap<MemberId, Member>,
    by_key: BTreeMap<PublicKey, MemberId>,
}

impl Roster {
    /// Gives every member a name of its own and indexes the current keys; seniors first in both.
    pub(crate) fn new(members: impl Iterator<Item = Member>) -> Self {
        let mut by_seniority: Vec<Member> = members.collect();
        by_seniority
            .sort_by_key(|member| (member.standing == Standing::Expelled, member.seniority, member.id));
        let mut taken = BTreeSet::new();
        let mut roster = Self::default();
        for mut member in by_seniority {
            member.name = free_name(&member, &taken);
            taken.insert(member.name.clone());
            roster.by_key.entry(member.key()).or_insert(member.id);
            roster.members.insert(member.id, member);
        }
        roster
    }

    /// Everybody, past members included, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Those who may act, by id.
    pub fn active(&self) -> impl Iterator<Item = &Member> {
        self.members().filter(|member| member.is_active())
    }

    /// The active stewards, most senior first.
    pub fn stewards(&self) -> Vec<&Member> {
        let mut stewards: Vec<_> = self.members().filter(|member| member.is_active_steward()).collect();
        stewards.sort_by_key(|member| (member.seniority, member.id));
        stewards
    }

    /// One member, past or present.
    pub fn member(&self, id: &MemberId) -> Option<&Member> {
        self.members.get(id)
    }

    /// One member, if it may act.
    pub fn active_member(&self, id: &MemberId) -> Option<&Member> {
        self.member(id).filter(|member| member.is_active())
    }

    /// Whose *current* key this is. A replaced key is nobody's.
    pub fn by_key(&self, key: &PublicKey) -> Option<(MemberId, Role, Standing)> {
        let member = self.members.get(self.by_key.get(key)?)?;
        Some((member.id, member.role, member.standing))
    }

    /// Whom a person means: the name a member goes by, its id, or the beginning of its id (`kos1` and at least
    /// four characters).
    ///
    /// # Errors
    /// [`NameError`].
    pub fn resolve(&self, text: &str) -> Result<&Member, NameError> {
        if let Some(member) = self.members().find(|member| member.name == text) {
            return Ok(member);
        }
        let lower = text.to_ascii_lowercase();
        let prefix = lower.strip_prefix("kos1").filter(|rest| rest.len() >= PREFIX_CHARS_MIN);
        let matching: Vec<_> = self
            .members()
            .filter(|_| prefix.is_some())
            .filter(|member| member.id.to_string().starts_with(&lower))
            .collect();
        match matching.as_slice() {
            [member] => Ok(member),
            [] => Err(NameError::Unknown(text.escape_default().take(64).collect())),
            several => Err(NameError::Ambiguous {
                text: lower.clone(),
                candidates: several.iter().map(|member| member.name.clone()).collect(),
            }),
        }
    }

    /// When the next membership ends by date, in wall milliseconds.
    pub fn next_lapse_ms(&self) -> Option<u64> {
        self.active().filter_map(|member| member.until_ms).min()
    }
}

fn free_name(member: &Member, taken: &BTreeSet<String>) -> String {
    if !taken.contains(&member.given_name) {
        return member.given_name.clone();
    }
    let id = member.id.to_string();
    let longer = |chars: usize| format!("{}-{}", member.given_name, &id[4..4 + chars]);
    (PREFIX_CHARS_MIN..=52).map(longer).find(|name| !taken.contains(name)).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kos_protocol::key::SecretKey;

    fn member(n: u8, name: &str) -> Member {
        let key_log =
            KeyLog::incept(&SecretKey::from_seed(&[n; 32]), &SecretKey::from_seed(&[n + 100; 32]).public());
        Member {
            id: key_log.member(),
            role: Role::Member,
            given_name: name.to_owned(),
            name: name.to_owned(),
            key_log,
            standing: Standing::Active,
            until_ms: None,
            admitted_ms: None,
            admitted_by: None,
            seniority: (n.into(), ObjectId::from_bytes([0; 32])),
        }
    }

    #[test]
    fn the_senior_of_two_namesakes_keeps_the_name() {
        let (first, second) = (member(1, "attic"), member(2, "attic"));
        let suffix = second.id.to_string()[4..8].to_owned();
        let squatter = member(3, &format!("attic-{suffix}"));
        let roster = Roster::new([squatter.clone(), second.clone(), first.clone()].into_iter());
        let name = |id: &MemberId| roster.member(id).unwrap().name.clone();
        assert_eq!(name(&first.id), "attic");
        assert_eq!(name(&second.id), format!("attic-{suffix}"));
        assert_ne!(name(&squatter.id), name(&second.id));
        assert_eq!(roster.resolve("attic").unwrap().id, first.id);
        assert_eq!(roster.resolve(&name(&second.id)).unwrap().id, second.id);
    }

    #[test]
    fn an_expelled_member_gives_its_name_up() {
        let (mut first, second) = (member(1, "attic"), member(2, "attic"));
        first.standing = Standing::Expelled;
        let roster = Roster::new([first, second.clone()].into_iter());
        assert_eq!(roster.resolve("attic").unwrap().id, second.id);
    }

    #[test]
    fn an_id_or_its_beginning_names_a_member_when_only_one_fits() {
        let members: Vec<_> = (1..60).map(|n| member(n, &format!("m{n}"))).collect();
        let roster = Roster::new(members.iter().cloned());
        for member in &members {
            let id = member.id.to_string();
            assert_eq!(roster.resolve(&id).unwrap().id, member.id);
            assert_eq!(roster.resolve(&id.to_uppercase()).unwrap().id, member.id);
            assert_eq!(roster.resolve(&id[..20]).unwrap().id, member.id);
            assert_eq!(roster.resolve(&id[..7]), Err(NameError::Unknown(id[..7].to_owned())), "too short");
        }
        assert_eq!(roster.resolve("nobody"), Err(NameError::Unknown("nobody".to_owned())));
        assert_eq!(roster.resolve("a\u{1b}[2J"), Err(NameError::Unknown("a\\u{1b}[2J".to_owned())));
    }

    #[test]
    fn an_ambiguous_beginning_lists_whom_it_may_mean() {
        // Ids of the same four first characters are found by counting up: a birthday among 2^20.
        let mut seen: BTreeMap<String, u16> = BTreeMap::new();
        let twin = |n: u16| {
            let seed = |m: u16| kos_protocol::id::sha256(&m.to_be_bytes());
            let log =
                KeyLog::incept(&SecretKey::from_seed(&seed(n)), &SecretKey::from_seed(&seed(0)).public());
            Member { id: log.member(), key_log: log, ..member(1, &format!("n{n}")) }
        };
        let (a, b) = (1..u16::MAX)
            .find_map(|n| {
                let prefix = twin(n).id.to_string()[..8].to_owned();
                seen.insert(prefix, n).map(|other| (twin(other), twin(n)))
            })
            .unwrap();
        let roster = Roster::new([a.clone(), b.clone()].into_iter());
        let text = a.id.to_string()[..8].to_owned();
        let Err(NameError::Ambiguous { candidates, .. }) = roster.resolve(&text) else {
            panic!("one of two")
        };
        assert_eq!(BTreeSet::from_iter(candidates), BTreeSet::from([a.name, b.name]));
    }
}
