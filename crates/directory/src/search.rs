//! Finding records: an index of terms, and ranking.
//!
//! A term is what a record can be found by (`class:kBridge`, `cap:http@1.1.0`, `tag:photos`, a word of its name or its
//! text), with the rows of the records that have it. A query counts for each row how many of its parts it has, one part
//! after the other; nothing is decoded, and only a page of records is touched. Its cost is a few bytes for each record and
//! one step for each row of its terms.

mod freshness;
mod query;
mod terms;

pub use freshness::{CAUGHT_UP_MS_MAX, Completeness, Freshness};
pub use query::{Query, QueryError};

use crate::record::{Record, Verified};
use kos_protocol::id::MemberId;
use smallvec::SmallVec;
use smol_str::SmolStr;
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    ops::Bound::{Included, Unbounded},
    sync::Arc,
};
pub(crate) use terms::terms_of;

/// What is known of a member's health, best first: the order in which answers are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Somebody is in touch with it. Next: any other.
    Alive,
    /// Nobody said anything of it, for instance since this node started. Next: any other.
    #[default]
    Unknown,
    /// A watcher lost it. Next: alive when it refutes, down when enough watchers agree.
    Suspect,
    /// It was stopped on purpose. Next: alive.
    Left,
    /// A quorum of watchers lost it. Next: alive, left.
    Down,
}

impl Health {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Unknown => "unknown",
            Self::Suspect => "suspect",
            Self::Left => "left",
            Self::Down => "down",
        }
    }
}

/// One page of the records that a query matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// How many there are.
    pub total: usize,
    /// Those of the page, best first: by health, by how well they match, then the newest.
    pub page: Vec<Arc<Record>>,
}

/// A record and what ranking needs of it, side by side.
#[derive(Clone, Debug)]
struct Row {
    record: Arc<Record>,
    time_ms: u64,
    author: u32,
}

#[derive(Clone, Debug)]
struct Author {
    member: MemberId,
    rows: u32,
    health: Health,
}

/// Rows in ascending order. Most terms have few: those lie in place.
type Rows = SmallVec<[u32; 5]>;

/// Numbers that are free again are given out first, so that dense tables stay dense.
#[derive(Clone, Debug, Default)]
struct Numbers {
    free: Vec<u32>,
    next: u32,
}

impl Numbers {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn give_back(&mut self, number: u32) {
        self.free.push(number);
    }
}

/// The records by row, and the rows by term.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    rows: Vec<Option<Row>>,
    row_numbers: Numbers,
    /// Most terms are short: they lie in place, so that looking one up touches no other memory.
    terms: BTreeMap<SmolStr, Rows>,
    authors: Vec<Option<Author>>,
    author_numbers: Numbers,
    by_member: BTreeMap<MemberId, u32>,
    /// Of members that have no record (yet).
    health: BTreeMap<MemberId, Health>,
}

/// How well a row matches: more is better.
type Score = u16;

impl Index {
    pub fn insert(&mut self, Verified { record, terms }: Verified) -> u32 {
        let row = self.row_numbers.take();
        for term in terms.lines() {
            match self.terms.get_mut(term) {
                Some(rows) => {
                    let place = rows.partition_point(|other| *other < row);
                    rows.insert(place, row);
                }
                None => drop(self.terms.insert(term.into(), Rows::from_slice(&[row]))),
            }
        }
        let author = self.author(record.author());
        let place = row as usize;
        if place == self.rows.len() {
            self.rows.push(None);
        }
        self.rows[place] = Some(Row { time_ms: record.time_ms(), author, record });
        row
    }

    fn author(&mut self, member: MemberId) -> u32 {
        let number = *self.by_member.entry(member).or_insert_with(|| {
            let number = self.author_numbers.take();
            let health = self.health.remove(&member).unwrap_or_default();
            let author = Some(Author { member, rows: 0, health });
            match self.authors.get_mut(number as usize) {
                Some(free) => *free = author,
                None => self.authors.push(author),
            }
            number
        });
        self.authors[number as usize].as_mut().expect("an author with a number").rows += 1;
        number
    }

    /// The record of a row that is in use.
    pub fn record(&self, row: u32) -> &Arc<Record> {
        &self.row(row).record
    }

    fn row(&self, row: u32) -> &Row {
        self.rows[row as usize].as_ref().expect("a row in use")
    }

    pub fn remove(&mut self, row: u32) -> Arc<Record> {
        let Row { record, author, .. } = self.rows[row as usize].take().expect("a row in use");
        self.row_numbers.give_back(row);
        let terms = terms_of(record.content(), record.agent().as_ref());
        for term in terms.lines() {
            let Some(rows) = self.terms.get_mut(term) else { continue };
            if let Ok(place) = rows.binary_search(&row) {
                rows.remove(place);
            }
            if rows.is_empty() {
                self.terms.remove(term);
            }
        }
        let place = &mut self.authors[author as usize];
        let Author { member, rows, health } = place.as_mut().expect("an author with a number");
        *rows -= 1;
        if *rows == 0 {
            // What is known of it stays known.
            self.health.insert(*member, *health);
            self.by_member.remove(member);
            self.author_numbers.give_back(author);
            *place = None;
        }
        record
    }

    pub fn set_health(&mut self, member: MemberId, health: Health) {
        match self.by_member.get(&member) {
            Some(number) => {
                self.authors[*number as usize].as_mut().expect("an author with a number").health = health;
            }
            None if health == Health::Unknown => drop(self.health.remove(&member)),
            None => drop(self.health.insert(member, health)),
        }
    }

    fn health_of(&self, row: &Row) -> Health {
        self.authors[row.author as usize].as_ref().expect("an author with a number").health
    }

    pub fn find(&self, query: &Query) -> Hits {
        let matches = self.matches(query);
        let of = |(row, score): (u32, Score)| {
            let found = self.row(row);
            (self.health_of(found), Reverse(score), Reverse(found.time_ms), row)
        };
        let fits = |(row, _): &(u32, Score)| {
            let found = self.row(*row);
            query.health.is_none_or(|health| health == self.health_of(found))
                && query.members.as_ref().is_none_or(|members| members.contains(&found.record.author()))
        };
        let mut ranked: Vec<_> = matches.into_iter().filter(fits).map(of).collect();
        let total = ranked.len();
        let end = query.offset.saturating_add(query.limit).min(total);
        let start = query.offset.min(end);
        if end < total && end > 0 {
            ranked.select_nth_unstable(end - 1);
        }
        ranked.truncate(end);
        ranked.sort_unstable();
        // Rows say nothing to others; the ids decide between equals.
        let mut page: Vec<_> =
            ranked.into_iter().map(|(a, b, c, row)| ((a, b, c), self.record(row))).collect();
        page.sort_by_key(|(rank, record)| (*rank, record.id()));
        Hits { total, page: page.into_iter().skip(start).map(|(_, record)| record.clone()).collect() }
    }

    /// Rows that have every part of the query, with how well.
    fn matches(&self, query: &Query) -> Vec<(u32, Score)> {
        // How many parts each row has, as long as it had all before.
        let mut parts_of = vec![0_u16; self.rows.len()];
        let mut scores = vec![0 as Score; self.rows.len()];
        let mut parts = 0;
        for part in query.parts() {
            for (rows, weight) in self.terms_of(&part) {
                for row in rows {
                    let place = *row as usize;
                    if parts_of[place] == parts {
                        parts_of[place] = parts + 1;
                        scores[place] = scores[place].saturating_add(weight);
                    }
                }
            }
            parts += 1;
        }
        let has_all = |(row, (had, score)): (u32, (u16, Score))| (had == parts).then_some((row, score));
        (0..).zip(parts_of.into_iter().zip(scores)).filter_map(has_all).collect()
    }

    /// The terms that satisfy a part, those of the greatest weight first: a row counts by its best.
    fn terms_of(&self, part: &query::Part) -> Vec<(&[u32], Score)> {
        let mut terms: Vec<(&[u32], Score)> = Vec::new();
        for (prefix, weight) in part.prefixes() {
            let named = self.terms.range::<str, _>((Included(prefix.as_str()), Unbounded));
            for (name, rows) in named.take_while(|(name, _)| name.starts_with(prefix.as_str())) {
                let Some(bonus) = part.accepts(&name[prefix.len()..]) else { continue };
                terms.push((rows, weight + bonus));
            }
        }
        terms.sort_by_key(|(_, weight)| Reverse(*weight));
        terms
    }
}

#[cfg(test)]
mod tests;
