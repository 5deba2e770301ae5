//! What a record can be found by.

use crate::record::{Content, Record};
use kos_protocol::limits::QUERY_TERMS_MAX;
use std::collections::BTreeSet;

/// The terms of a record, at most `QUERY_TERMS_MAX` of them words; a tombstone, and what is nobody's search, has none.
pub(super) fn terms_of(record: &Record) -> BTreeSet<String> {
    let mut terms = BTreeSet::new();
    let mut words = Vec::new();
    match record.content() {
        Content::Node(node) => {
            words.push(("name", node.name.clone()));
            terms.extend(node.features.iter().map(|feature| format!("tag:{}", feature.to_lowercase())));
            terms.insert("kind:node".to_owned());
        }
        Content::Agent(agent, Some(_)) => {
            terms.insert("kind:agent".to_owned());
            terms.insert(format!("class:{}", agent.agent.class()));
            for capability in &agent.capabilities {
                terms.insert(capability_term(&capability.name, &capability.version));
                words.push(("name", capability.name.clone()));
            }
            words.push(("name", agent.agent.name().to_owned()));
            words.push(("text", agent.description.clone()));
        }
        Content::Service(Some(checked)) => {
            let contract = checked.contract();
            terms.insert("kind:service".to_owned());
            terms.insert(format!("class:{}", contract.agent.class()));
            terms.insert(capability_term(&contract.name, &contract.version));
            terms.extend(contract.tags.iter().map(|tag| format!("tag:{}", tag.to_lowercase())));
            words.push(("name", contract.name.clone()));
            words.push(("text", contract.description.clone()));
        }
        Content::Agent(_, None)
        | Content::Service(None)
        | Content::Link(_)
        | Content::Suspect(_)
        | Content::Unknown => {}
    }
    let words =
        words.iter().flat_map(|(field, text)| words_of(text).map(move |word| format!("{field}:{word}")));
    terms.extend(words.take(QUERY_TERMS_MAX));
    terms
}

/// The term of a capability in one version. The `@` ends the name, which has none: a name is a prefix of its terms.
fn capability_term(name: &str, version: &semver::Version) -> String {
    format!("cap:{}@{version}", name.to_lowercase())
}

/// The words of a text, in lower case.
pub(super) fn words_of(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| word.chars().take(32).flat_map(char::to_lowercase).collect())
}
