//! Which methods and paths a bridge lets through.

use super::request_line::{RequestLine, check_path};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{collections::BTreeSet, fmt, str::FromStr};

/// Some methods on one path or all below it, written `GET,HEAD /public/*`, `* /notes` or `/notes`.
///
/// A path matches byte for byte as it was sent: `/%70ublic` is not `/public`. `/public/*` is everything below
/// `/public/`, not `/public` and not `/publicity`; `/*` is everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Empty means any.
    methods: BTreeSet<String>,
    path: Path,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    Exactly(String),
    /// Ends with `/`.
    Below(String),
}

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a rule like `GET,HEAD /public/*`: {why}")]
pub struct InvalidRule {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Rule {
    /// Whether the rule lets this through.
    pub fn allows(&self, line: &RequestLine) -> bool {
        let method_fits = self.methods.is_empty() || self.methods.contains(line.method());
        method_fits
            && match &self.path {
                Path::Exactly(path) => line.path() == path,
                Path::Below(folder) => line.path().starts_with(folder),
            }
    }
}

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let refuse = |why| InvalidRule { text: text.escape_default().take(200).collect(), why };
        let (methods, path) = match text.trim().split_once(' ') {
            Some((methods, path)) => (methods, path.trim()),
            None => ("*", text.trim()),
        };
        let methods = match methods {
            "*" => BTreeSet::new(),
            list => list.split(',').map(str::to_owned).collect(),
        };
        if methods.iter().any(|method| RequestLine::parse(method, "/").is_err()) {
            return Err(refuse("methods are upper case letters, with commas between them"));
        }
        let (path, is_folder) = match path.strip_suffix("/*") {
            Some(folder) => (format!("{folder}/"), true),
            None => (path.to_owned(), false),
        };
        if !path.starts_with('/') {
            return Err(refuse("a path begins with `/`"));
        }
        if path.contains('*') {
            return Err(refuse("`*` stands only at the end, behind a `/`"));
        }
        if check_path(&path).is_err() {
            return Err(refuse("no request could have this path"));
        }
        Ok(Self { methods, path: if is_folder { Path::Below(path) } else { Path::Exactly(path) } })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.methods.is_empty() {
            f.write_str("*")?;
        }
        for (at, method) in self.methods.iter().enumerate() {
            write!(f, "{}{method}", if at == 0 { "" } else { "," })?;
        }
        match &self.path {
            Path::Exactly(path) => write!(f, " {path}"),
            Path::Below(folder) => write!(f, " {folder}*"),
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
