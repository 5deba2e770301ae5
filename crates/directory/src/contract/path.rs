//! Which calls a method of a contract is about.

use kos_protocol::{limits::PATH_PATTERN_BYTES_MAX, text::shown};
use std::cmp::Ordering;

/// Longest method of a call. SPEC §8.5.
const METHOD_BYTES_MAX: usize = 32;
/// Longest name of a part of a path.
const PARAMETER_BYTES_MAX: usize = 32;

/// Why a text is no path pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a path like `/notes/{{id}}` or `/files/*`: {why}")]
pub struct InvalidPath {
    /// What was given, cut where it is long.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A path with named parts. Written `/notes/{id}`, where `{id}` is one part of whatever it is but empty, or `/files/*`,
/// everything below `/files/`. The rest matches byte for byte as it was sent.
///
/// The order is that of precedence: of two patterns that match one path, the lesser says more about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Exactly(String),
    /// What it is called is for people: two patterns that differ in it alone are the same.
    Any,
    Rest,
}

impl PathPattern {
    pub(super) fn parse(text: &str) -> Result<Self, InvalidPath> {
        let refuse = |why| Err(InvalidPath { text: shown(text, PATH_PATTERN_BYTES_MAX), why });
        if text.len() > PATH_PATTERN_BYTES_MAX {
            return refuse("it is too long");
        }
        let Some(path) = text.strip_prefix('/') else { return refuse("it does not begin with `/`") };
        let mut parts = Vec::new();
        let count = path.split('/').count();
        for (at, text) in path.split('/').enumerate() {
            let is_last = at + 1 == count;
            let name = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
            parts.push(match (text, name) {
                ("*", _) if is_last => Part::Rest,
                ("*", _) => return refuse("`*` stands only at the end"),
                ("", _) if is_last => Part::Exactly(String::new()),
                ("", _) => return refuse("it holds `//`"),
                ("." | "..", _) => return refuse("it holds a dot segment"),
                (_, Some(name)) if is_parameter(name) => Part::Any,
                (_, Some(_)) => return refuse("a part in braces is a name of `a-z A-Z 0-9 _ -`"),
                (text, None) if text.bytes().all(is_plain) => Part::Exactly(text.to_owned()),
                _ => return refuse("no part of a path has this character unencoded"),
            });
        }
        Ok(Self(parts))
    }

    /// Whether it matches a path, without a query.
    pub(super) fn matches(&self, path: &str) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut texts = path.split('/');
        for part in &self.0 {
            match (part, texts.next()) {
                (Part::Rest, Some(_)) => return true,
                (Part::Any, Some(text)) if !text.is_empty() => {}
                (Part::Exactly(part), Some(text)) if part == text => {}
                _ => return false,
            }
        }
        texts.next().is_none()
    }
}

impl PartialOrd for PathPattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PathPattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

/// A method that a call may have. SPEC §8.5.
pub(super) fn is_http_method(method: &str) -> bool {
    (1..=METHOD_BYTES_MAX).contains(&method.len())
        && method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
        && !matches!(method, "CONNECT" | "TRACE" | "TRACK")
}

fn is_parameter(name: &str) -> bool {
    (1..=PARAMETER_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// RFC 3986's `pchar` without escapes and without `*` and `;`, which some servers read as more than text.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::parse(text).unwrap()
    }

    #[test]
    fn a_pattern_matches_part_by_part() {
        for (text, matching, others) in [
            ("/", &["/"][..], &["", "/a", "//", "a"][..]),
            ("/notes", &["/notes"], &["/notes/", "/notes/1", "/note", "/Notes", "/%6eotes"]),
            ("/notes/", &["/notes/"], &["/notes", "/notes//"]),
            ("/notes/{id}", &["/notes/1", "/notes/%2e", "/notes/*"], &["/notes", "/notes/", "/notes/1/2"]),
            ("/notes/{id}/text", &["/notes/1/text"], &["/notes//text", "/notes/1/text/"]),
            ("/files/*", &["/files/", "/files/a", "/files/a/b"], &["/files", "/filesystem"]),
            ("/*", &["/", "/a", "/a/b"], &[""]),
        ] {
            let pattern = pattern(text);
            for path in matching {
                assert!(pattern.matches(path), "{text} {path}");
            }
            for path in others {
                assert!(!pattern.matches(path), "{text} {path}");
            }
        }
    }

    #[test]
    fn what_says_more_comes_first() {
        let mut patterns = ["/*", "/notes/*", "/notes/{id}", "/notes/new", "/{kind}/new"].map(pattern);
        patterns.sort();
        assert_eq!(patterns, ["/notes/new", "/notes/{id}", "/notes/*", "/{kind}/new", "/*"].map(pattern));
        assert_eq!(pattern("/notes/{id}"), pattern("/notes/{name}"));
    }

    #[test]
    fn a_pattern_that_could_mean_two_things_is_refused() {
        for (text, why) in [
            ("notes", "it does not begin with `/`"),
            ("", "it does not begin with `/`"),
            ("/a//b", "it holds `//`"),
            ("//", "it holds `//`"),
            ("/a/../b", "it holds a dot segment"),
            ("/*/a", "`*` stands only at the end"),
            ("/a*", "no part of a path has this character unencoded"),
            ("/a b", "no part of a path has this character unencoded"),
            ("/a%2fb", "no part of a path has this character unencoded"),
            ("/a?b", "no part of a path has this character unencoded"),
            ("/é", "no part of a path has this character unencoded"),
            ("/a{id}", "no part of a path has this character unencoded"),
            ("/{}", "a part in braces is a name of `a-z A-Z 0-9 _ -`"),
            ("/{a b}", "a part in braces is a name of `a-z A-Z 0-9 _ -`"),
        ] {
            let text = text.to_owned();
            assert_eq!(PathPattern::parse(&text), Err(InvalidPath { text, why }));
        }
        assert!(PathPattern::parse(&format!("/{}", "a".repeat(PATH_PATTERN_BYTES_MAX - 1))).is_ok());
        let long = PathPattern::parse(&format!("/{}", "a".repeat(PATH_PATTERN_BYTES_MAX)));
        assert_eq!(long.unwrap_err().why, "it is too long");
    }

    #[test]
    fn methods_are_those_of_calls() {
        assert!(["GET", "POST", "M-SEARCH", &"A".repeat(32)].into_iter().all(is_http_method));
        assert!(
            !["", "get", "CONNECT", "TRACE", "TRACK", "GET ", &"A".repeat(33)]
                .into_iter()
                .any(is_http_method)
        );
    }
}
