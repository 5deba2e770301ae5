//! Who may call the agents of this node.

use kos_governance::act::Role;
use kos_protocol::id::{AgentId, MemberId, check_name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who may call which agent. What an agent's own entry does not say, `default` does. Reloadable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calls {
    /// Who may call agents without an entry.
    pub default: Vec<Party>,
    /// Agents with rules of their own.
    pub agents: BTreeMap<AgentId, AgentCalls>,
}

impl Default for Calls {
    fn default() -> Self {
        Self { default: vec![Party::Members], agents: BTreeMap::new() }
    }
}

/// The rules of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentCalls {
    /// Who may call it; as `calls.default` says when absent.
    pub allow: Option<Vec<Party>>,
    /// Who may not, whatever else is said.
    pub deny: Vec<Party>,
}

/// Somebody who calls.
///
/// Names are no parties: an expelled member's name is free for the next that joins, who would inherit what the name was
/// allowed. `kai config set` turns names into ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Party {
    /// Every active member of the federation but its relays, which carry and call nobody.
    Members,
    /// Every active steward of the federation the call comes through.
    Stewards,
    /// This member.
    Member(MemberId),
}

impl TryFrom<String> for Party {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match (text.as_str(), text.parse()) {
            ("members", _) => Ok(Self::Members),
            ("stewards", _) => Ok(Self::Stewards),
            (_, Ok(member)) => Ok(Self::Member(member)),
            (_, Err(_)) if check_name(&text).is_ok() => Err(format!(
                "`{text}` is a name, and names change hands: give the member's id, or let `kai config set` find it"
            )),
            (_, Err(_)) => {
                Err(format!("`{}` is neither `members`, `stewards` nor a member's id", text.escape_default()))
            }
        }
    }
}

impl From<Party> for String {
    fn from(party: Party) -> Self {
        match party {
            Party::Members => "members".to_owned(),
            Party::Stewards => "stewards".to_owned(),
            Party::Member(member) => member.to_string(),
        }
    }
}

impl Party {
    fn is(&self, member: &MemberId, role: Role) -> bool {
        match self {
            // Who only carries is let in to carry.
            Self::Members => role != Role::Relay,
            Self::Stewards => role == Role::Steward,
            Self::Member(id) => id == member,
        }
    }

    /// Whether a text is a name that must become an id before it can be a party.
    pub fn is_name(text: &str) -> bool {
        Self::try_from(text.to_owned()).is_err() && check_name(text).is_ok()
    }
}

/// Why a call is denied, in the owner's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Listed among those who may not.
    #[error("listed among those denied")]
    Listed,
    /// Not listed among those who may.
    #[error("not among those allowed")]
    NotListed,
}

impl Calls {
    /// Whether an active member with this role may call `agent`.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn decide(&self, agent: &AgentId, member: &MemberId, role: Role) -> Result<(), Denied> {
        let own = self.agents.get(agent);
        if own.is_some_and(|own| own.deny.iter().any(|party| party.is(member, role))) {
            return Err(Denied::Listed);
        }
        let allowed = own.and_then(|own| own.allow.as_ref()).unwrap_or(&self.default);
        if allowed.iter().any(|party| party.is(member, role)) { Ok(()) } else { Err(Denied::NotListed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELLAR: MemberId = MemberId::from_bytes([1; 32]);
    const GARAGE: MemberId = MemberId::from_bytes([2; 32]);

    #[test]
    fn an_agents_own_rules_come_before_the_default_and_denial_before_all() {
        let calls: Calls = toml::from_str(&format!(
            r#"
            [agents."kBridge:notes"]
            allow = ["{CELLAR}"]
            [agents."kBridge:wiki"]
            deny = ["{CELLAR}"]
            [agents."kBridge:admin"]
            allow = ["stewards"]
            "#,
        ))
        .unwrap();
        let decide =
            |agent: &str, member: &MemberId, role| calls.decide(&agent.parse().unwrap(), member, role);
        assert_eq!(decide("kBridge:other", &CELLAR, Role::Member), Ok(()));
        assert_eq!(decide("kBridge:other", &CELLAR, Role::Relay), Err(Denied::NotListed));
        assert_eq!(decide("kBridge:notes", &CELLAR, Role::Relay), Ok(()), "its id is listed");
        assert_eq!(decide("kBridge:notes", &CELLAR, Role::Member), Ok(()));
        assert_eq!(decide("kBridge:notes", &GARAGE, Role::Steward), Err(Denied::NotListed));
        assert_eq!(decide("kBridge:wiki", &GARAGE, Role::Member), Ok(()));
        assert_eq!(decide("kBridge:wiki", &CELLAR, Role::Steward), Err(Denied::Listed));
        assert_eq!(decide("kBridge:admin", &GARAGE, Role::Steward), Ok(()));
        assert_eq!(decide("kBridge:admin", &GARAGE, Role::Member), Err(Denied::NotListed));
        let nobody = Calls { default: Vec::new(), ..Calls::default() };
        let denied = nobody.decide(&"kBridge:x".parse().unwrap(), &CELLAR, Role::Steward);
        assert_eq!(denied, Err(Denied::NotListed));
    }

    #[test]
    fn parties_are_ids_stewards_or_everybody_but_never_names() {
        for text in ["members".to_owned(), "stewards".to_owned(), CELLAR.to_string()] {
            assert_eq!(String::from(Party::try_from(text.clone()).unwrap()), text);
            assert!(!Party::is_name(&text));
        }
        let why = Party::try_from("cellar".to_owned()).unwrap_err();
        assert!(why.contains("names change hands"), "{why}");
        assert!(Party::is_name("cellar"));
        assert!(Party::try_from("Every One".to_owned()).is_err() && !Party::is_name("Every One"));
    }
}
