//! What can be set.

use super::layers::Path;
use kos_protocol::id::AgentId;

/// How a value is written on the command line and in a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text, as it is.
    Text,
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Number,
    /// Texts with commas between, or a TOML array.
    List,
}

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name. `*` stands for the name of an agent.
    pub name: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// Whether a running node takes a new value.
    pub reloadable: bool,
    /// What it means.
    pub about: &'static str,
}

const fn key(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, reloadable: false, about }
}

const fn reloadable(name: &'static str, kind: Kind, about: &'static str) -> Key {
    Key { name, kind, reloadable: true, about }
}

/// Every setting there is.
pub const KEYS: &[Key] = &[
    key("name", Kind::Text, "what the node calls itself"),
    key("profile", Kind::Text, "which [profiles.…] of the file is merged over the rest: dev, staging, prod"),
    reloadable("log.level", Kind::Text, "a level, or target=level directives with commas between"),
    key("log.json", Kind::Switch, "one JSON object a line instead of text"),
    key("network.port", Kind::Number, "UDP and TCP port; 0 takes a free one once and keeps it"),
    key("network.mdns", Kind::Switch, "find nodes on the LAN, and be found"),
    key("network.upnp", Kind::Switch, "ask the router for a port"),
    key("network.kad", Kind::Switch, "take part in the hash table"),
    key("network.external_addresses", Kind::List, "addresses known to reach this node from outside"),
    key("network.listen_addresses", Kind::List, "where to listen; empty: all interfaces on network.port"),
    key("network.bootstrap", Kind::List, "nodes to begin with, multiaddrs that end in /p2p/ID"),
    key("network.test_addresses", Kind::Switch, "documentation addresses count as global; for laboratories"),
    key("api.listen", Kind::Text, "loopback address and port of the HTTP API; absent: off"),
    reloadable(
        "calls.default",
        Kind::List,
        "who may call agents without rules of their own: members, stewards, ids",
    ),
    reloadable("calls.agents.*.allow", Kind::List, "who may call this agent"),
    reloadable("calls.agents.*.deny", Kind::List, "who may not, whatever else is said"),
];

impl Key {
    /// The variable that sets it; settings of single agents have none.
    pub fn variable(&self) -> Option<String> {
        (!self.name.contains('*'))
            .then(|| format!("KAI_{}", self.name.replace('.', "_").to_ascii_uppercase()))
    }

    fn is(&self, path: &Path) -> bool {
        let parts: Vec<&str> = self.name.split('.').collect();
        parts.len() == path.len()
            && parts
                .iter()
                .zip(path)
                .all(|(own, part)| own == part || (*own == "*" && part.parse::<AgentId>().is_ok()))
    }

    /// The setting a path names.
    pub(super) fn find(path: &Path) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.is(path))
    }

    /// The setting with the name most like this one, if one is like it at all.
    pub(super) fn nearest(text: &str) -> Option<&'static str> {
        let near = KEYS.iter().map(|key| (distance(text, key.name), key.name)).min()?;
        (near.0 <= 3).then_some(near.1)
    }
}

/// Letters to insert, remove or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
