//! Rules of SPEC, each a function that looks at one node. Those at the top are checked whenever the node did something.

use kos_directory::{Content, Health, Slot};
use kos_engine::Federation;
use kos_protocol::{
    id::MemberId,
    limits::{CLOCK_SKEW_MS_MAX, RECORDS_BYTES_PER_AUTHOR_MAX, RECORDS_PER_AUTHOR_MAX},
    time::Timestamp,
};
use std::collections::BTreeMap;

/// A rule that does not hold: its section, and how.
pub type Broken = (&'static str, String);

/// §9.11: in a slot the higher number wins, so numbers never go back; every record is by a member, in time, and its
/// author within its bounds. `seqs` is what the node had before.
///
/// # Errors
/// The rule that is broken.
pub fn records(
    federation: &Federation,
    now: Timestamp,
    slots: &[Slot],
    seqs: &mut BTreeMap<Slot, u64>,
) -> Result<(), Broken> {
    for slot in slots {
        let Some(record) = federation.directory().get(slot) else {
            seqs.remove(slot);
            continue;
        };
        let before = seqs.insert(slot.clone(), record.seq());
        if before.is_some_and(|before| before > record.seq()) {
            return Err(("§9.11 the higher number wins", format!("{slot:?} went back from {before:?}")));
        }
        if federation.roster().active_member(&record.author()).is_none() {
            return Err(("§9.11 only members write", format!("{slot:?}")));
        }
        let ahead_ms = record.seq().max(record.time_ms()).saturating_sub(now.wall_ms);
        if ahead_ms > CLOCK_SKEW_MS_MAX || record.expires_ms() <= now.wall_ms {
            return Err(("§9.11 records are of their time", format!("{slot:?}, {ahead_ms} ms ahead")));
        }
        let held = federation.directory().accounts().iter().find(|(author, _)| **author == slot.author);
        if let Some((_, account)) = held
            && (account.records > RECORDS_PER_AUTHOR_MAX || account.bytes > RECORDS_BYTES_PER_AUTHOR_MAX)
        {
            return Err(("§9.11 one author's share", format!("{account:?}")));
        }
    }
    Ok(())
}

/// §9.15: down by a quorum only, and never who left.
///
/// # Errors
/// The rule that is broken.
pub fn health(federation: &Federation, member: &MemberId) -> Result<(), Broken> {
    let observed = federation.liveness().observed(member);
    if observed.health != Health::Down {
        return Ok(());
    }
    let quorum = match federation.roster().active().count() {
        0..=3 => 1,
        4..=5 => 2,
        _ => 3,
    };
    if observed.observers.len() < quorum {
        return Err(("§9.15 down by a quorum", format!("{observed:?}")));
    }
    let slot = Slot::only(*member, kos_directory::Kind::Node);
    let node = federation.directory().get(&slot).map(|record| record.content().clone());
    match node {
        Some(Content::Node(node)) if node.left => Err(("§9.15 who left is never down", member.to_string())),
        _ => Ok(()),
    }
}

/// §9.14: who caught up has what the others have; nothing is lost because somebody was away. `published` is the greatest
/// number each slot was published under by those who keep to the rules.
///
/// # Errors
/// The rule that is broken.
pub fn nothing_lost(federation: &Federation, published: &BTreeMap<Slot, u64>) -> Result<(), Broken> {
    for (slot, seq) in published {
        let held = federation.directory().get(slot).map(|record| record.seq());
        if held.is_none_or(|held| held < *seq) {
            return Err(("§9.14 catch-up brings everything", format!("{slot:?} {seq}: {held:?}")));
        }
    }
    Ok(())
}
