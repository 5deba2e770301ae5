//! What is looked for, and how people write it.

use super::{
    Health, Score,
    terms::{lower, words_of},
};
use kos_protocol::{
    id::{AgentClass, MemberId},
    limits::{QUERY_BYTES_MAX, QUERY_PAGE_MAX, QUERY_TERMS_MAX},
};
use semver::{Version, VersionReq};
use std::collections::BTreeSet;

/// Hits on a page unless asked for otherwise.
pub const PAGE: usize = 20;

/// A query: what is found satisfies every part of it. Written as words and `key:value` pairs, see [`Query::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `node`, `agent` or `service`.
    pub kind: Option<String>,
    /// The class of the agent.
    pub class: Option<AgentClass>,
    /// Capabilities, or services by name, each with a range of versions.
    pub capabilities: Vec<(String, VersionReq)>,
    /// Tags of services, features of nodes.
    pub tags: Vec<String>,
    /// Words, or beginnings of words, of names and texts.
    pub words: Vec<String>,
    /// The health of the member.
    pub health: Option<Health>,
    /// Whose.
    pub members: Option<BTreeSet<MemberId>>,
    /// Hits to leave out: those of the pages before.
    pub offset: usize,
    /// Hits on a page, at most `QUERY_PAGE_MAX`.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            kind: None,
            class: None,
            capabilities: Vec::new(),
            tags: Vec::new(),
            words: Vec::new(),
            health: None,
            members: None,
            offset: 0,
            limit: PAGE,
        }
    }
}

/// Why a text is no query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Too long, or too many parts.
    #[error("a query has at most {QUERY_BYTES_MAX} bytes and {QUERY_TERMS_MAX} parts")]
    TooLong,
    /// A key nobody knows.
    #[error("`{0}:` is none of kind, class, cap, tag, health and member")]
    Key(String),
    /// A value that its key does not have.
    #[error("`{value}` is no {key}: {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// No such member.
    #[error("no member is called `{0}`")]
    Member(String),
}

impl Query {
    /// Reads what people write: words, and pairs of
    /// `kind:` (`node`, `agent`, `service`), `class:` (`kBridge`), `cap:` (`http`, `http@^1.2`), `tag:`, `health:`
    /// (`alive`, `suspect`, `down`, `left`, `unknown`), `member:` (a name, an id or its beginning; several of them: any).
    /// `members` says who is meant by a name.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn parse(text: &str, members: impl Fn(&str) -> Option<MemberId>) -> Result<Self, QueryError> {
        let parts: Vec<&str> = text.split_whitespace().collect();
        if text.len() > QUERY_BYTES_MAX || parts.len() > QUERY_TERMS_MAX {
            return Err(QueryError::TooLong);
        }
        let mut query = Self::default();
        for part in parts {
            match part.split_once(':') {
                None => query.words.extend(words_of(part)),
                Some((key, value)) => query.take(key, value, &members)?,
            }
        }
        if query.words.len() > QUERY_TERMS_MAX {
            return Err(QueryError::TooLong);
        }
        Ok(query)
    }

    fn take(
        &mut self,
        key: &str,
        value: &str,
        members: &impl Fn(&str) -> Option<MemberId>,
    ) -> Result<(), QueryError> {
        let wrong = |key, expected: String| QueryError::Value { key, value: value.to_owned(), expected };
        match key {
            "kind" => {
                if !matches!(value, "node" | "agent" | "service") {
                    return Err(wrong("kind", "one of node, agent, service".to_owned()));
                }
                self.kind = Some(value.to_owned());
            }
            "class" => {
                let known = AgentClass::ALL.into_iter().find(|(_, name)| *name == value);
                let names = || AgentClass::ALL.map(|(_, name)| name).join(", ");
                let (class, _) = known.ok_or_else(|| wrong("class", format!("one of {}", names())))?;
                self.class = Some(class);
            }
            "cap" => {
                let (name, range) = value.split_once('@').unwrap_or((value, "*"));
                let range = range.parse().map_err(|error| wrong("range of versions", format!("{error}")))?;
                self.capabilities.push((lower(name).collect(), range));
            }
            "tag" => self.tags.push(lower(value).collect()),
            "health" => {
                let all = [Health::Alive, Health::Suspect, Health::Down, Health::Left, Health::Unknown];
                let known = all.into_iter().find(|health| health.as_str() == value);
                let expected = || "one of alive, suspect, down, left, unknown".to_owned();
                self.health = Some(known.ok_or_else(|| wrong("health", expected()))?);
            }
            "member" => {
                let member = members(value).ok_or_else(|| QueryError::Member(value.to_owned()))?;
                self.members.get_or_insert_default().insert(member);
            }
            _ => return Err(QueryError::Key(key.to_owned())),
        }
        Ok(())
    }

    /// Hits on a page, within bounds.
    pub fn page(mut self, offset: usize, limit: usize) -> Self {
        self.offset = offset;
        self.limit = limit.min(QUERY_PAGE_MAX);
        self
    }

    /// What a record must have, part by part; where nothing is asked for, any kind.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let kind = self.kind.as_deref().map(Part::Kind);
        let class = self.class.map(Part::Class);
        let capabilities = self.capabilities.iter().map(|(name, range)| Part::Capability(name, range));
        let tags = self.tags.iter().map(|tag| Part::Tag(tag));
        let words = self.words.iter().map(|word| Part::Word(word));
        let asked: Vec<_> =
            kind.into_iter().chain(class).chain(capabilities).chain(tags).chain(words).collect();
        let any = asked.is_empty().then_some(Part::AnyKind);
        asked.into_iter().chain(any)
    }
}

/// One part of a query: terms that begin with one of its prefixes, as far as it accepts what follows.
pub(super) enum Part<'a> {
    AnyKind,
    Kind(&'a str),
    Class(AgentClass),
    Capability(&'a str, &'a VersionReq),
    Tag(&'a str),
    Word(&'a str),
}

/// What a word is worth in a name, and in a text.
const IN_NAME: Score = 4;
const IN_TEXT: Score = 1;
/// What a whole word is worth more than a beginning.
const WHOLE: Score = 2;

impl Part<'_> {
    pub fn prefixes(&self) -> Vec<(String, Score)> {
        match self {
            Self::AnyKind => vec![("kind:".to_owned(), 0)],
            Self::Kind(kind) => vec![(format!("kind:{kind}"), 0)],
            Self::Class(class) => vec![(format!("class:{class}"), 0)],
            Self::Capability(name, _) => vec![(format!("cap:{name}@"), 0)],
            Self::Tag(tag) => vec![(format!("tag:{tag}"), 0)],
            Self::Word(word) => vec![(format!("name:{word}"), IN_NAME), (format!("text:{word}"), IN_TEXT)],
        }
    }

    /// Whether what follows the prefix is what is looked for, and what that is worth.
    pub fn accepts(&self, rest: &str) -> Option<Score> {
        let whole = rest.is_empty().then_some(0);
        match self {
            Self::AnyKind => Some(0),
            Self::Kind(_) | Self::Class(_) | Self::Tag(_) => whole,
            Self::Capability(_, range) => {
                let version: Version = rest.parse().ok()?;
                range.matches(&version).then_some(0)
            }
            Self::Word(_) => Some(if rest.is_empty() { WHOLE } else { 0 }),
        }
    }
}
