//! What a record can be found by.

use crate::record::{AgentRecord, Content};
use kos_protocol::{id::AgentClass, limits::QUERY_TERMS_MAX};
use std::{fmt::Write, ops::Range};

/// The terms of a record in order, one a line, at most `QUERY_TERMS_MAX` of them words; a tombstone, and what is nobody's
/// search, has none. `agent` is what a record of an agent says.
pub(crate) fn terms_of(content: &Content, agent: Option<&AgentRecord>) -> String {
    let mut terms = Terms::default();
    match (content, agent) {
        (Content::Node(node), _) => {
            terms.push("kind:", "node");
            node.features.iter().for_each(|feature| terms.push("tag:", feature));
            terms.words("name:", &node.name);
        }
        (Content::Agent(Some(_)), Some(agent)) => {
            terms.push("kind:", "agent");
            terms.class(agent.agent.class());
            for capability in &agent.capabilities {
                terms.capability(&capability.name, &capability.version);
                terms.words("name:", &capability.name);
            }
            terms.words("name:", agent.agent.name());
            terms.words("text:", &agent.description);
        }
        (Content::Service(Some(checked)), _) => {
            let contract = checked.contract();
            terms.push("kind:", "service");
            terms.class(contract.agent.class());
            terms.capability(&contract.name, &contract.version);
            contract.tags.iter().for_each(|tag| terms.push("tag:", tag));
            terms.words("name:", &contract.name);
            terms.words("text:", &contract.description);
        }
        _ => {}
    }
    terms.in_order()
}

/// Terms as they are found. One buffer for all: there are ten for each record.
#[derive(Default)]
struct Terms {
    text: String,
    spans: Vec<Range<usize>>,
    words: usize,
}

impl Terms {
    fn end(&mut self, start: usize) {
        self.spans.push(start..self.text.len());
    }

    /// What a record says of itself, in lower case.
    fn push(&mut self, field: &str, value: &str) {
        let start = self.text.len();
        self.text.push_str(field);
        self.text.extend(lower(value));
        self.end(start);
    }

    fn class(&mut self, class: AgentClass) {
        let start = self.text.len();
        // Writing into a string does not fail.
        let _ = write!(self.text, "class:{class}");
        self.end(start);
    }

    /// The `@` ends the name, which has none: a name is a prefix of its terms.
    fn capability(&mut self, name: &str, version: &semver::Version) {
        self.push("cap:", name);
        let _ = write!(self.text, "@{version}");
        if let Some(span) = self.spans.last_mut() {
            span.end = self.text.len();
        }
    }

    fn words(&mut self, field: &str, text: &str) {
        for word in pieces_of(text).take(QUERY_TERMS_MAX - self.words) {
            self.words += 1;
            let start = self.text.len();
            self.text.push_str(field);
            self.text.extend(lowered(word));
            self.end(start);
        }
    }

    fn in_order(mut self) -> String {
        let text = &self.text;
        self.spans.sort_unstable_by_key(|span| &text[span.clone()]);
        self.spans.dedup_by_key(|span| &text[span.clone()]);
        let mut lines = String::with_capacity(text.len() + self.spans.len());
        for span in &self.spans {
            if !lines.is_empty() {
                lines.push('\n');
            }
            lines.push_str(&text[span.clone()]);
        }
        lines
    }
}

/// Lower case, letter by letter: the same for a letter wherever it stands.
pub(super) fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// The words of a text, in lower case.
pub(super) fn words_of(text: &str) -> impl Iterator<Item = String> {
    pieces_of(text).map(|word| lowered(word).collect())
}

fn pieces_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

fn lowered(word: &str) -> impl Iterator<Item = char> {
    word.chars().take(32).flat_map(char::to_lowercase)
}
