//! What a record can be found by.

use crate::record::{AgentRecord, Content};
use kos_protocol::limits::QUERY_TERMS_MAX;

/// The terms of a record, at most `QUERY_TERMS_MAX` of them words; a tombstone, and what is nobody's search, has none.
/// `agent` is what a record of an agent says.
pub(crate) fn terms_of(content: &Content, agent: Option<&AgentRecord>) -> Vec<Box<str>> {
    let mut terms = Vec::new();
    let mut words: Vec<(&str, &str)> = Vec::new();
    match (content, agent) {
        (Content::Node(node), _) => {
            words.push(("name", &node.name));
            terms.extend(node.features.iter().map(|feature| format!("tag:{}", feature.to_lowercase())));
            terms.push("kind:node".to_owned());
        }
        (Content::Agent(Some(_)), Some(agent)) => {
            terms.push("kind:agent".to_owned());
            terms.push(format!("class:{}", agent.agent.class()));
            for capability in &agent.capabilities {
                terms.push(capability_term(&capability.name, &capability.version));
                words.push(("name", &capability.name));
            }
            words.push(("name", agent.agent.name()));
            words.push(("text", &agent.description));
        }
        (Content::Service(Some(checked)), _) => {
            let contract = checked.contract();
            terms.push("kind:service".to_owned());
            terms.push(format!("class:{}", contract.agent.class()));
            terms.push(capability_term(&contract.name, &contract.version));
            terms.extend(contract.tags.iter().map(|tag| format!("tag:{}", tag.to_lowercase())));
            words.push(("name", &contract.name));
            words.push(("text", &contract.description));
        }
        _ => {}
    }
    let words =
        words.iter().flat_map(|(field, text)| words_of(text).map(move |word| format!("{field}:{word}")));
    terms.extend(words.take(QUERY_TERMS_MAX));
    terms.sort_unstable();
    terms.dedup();
    terms.into_iter().map(String::into_boxed_str).collect()
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
