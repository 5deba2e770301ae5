//! What two sets do not share, found with few bytes: range-based set reconciliation (Meyer 2023) in the wire format
//! `negentropy` v1, by the crate of that name. SPEC §9.14.
//!
//! An [`Initiator`] asks, the other end answers with [`respond`] and keeps nothing in between. Elements are ordered by a
//! number (for records the time they were made), so that what is new lies together and costs little to name.
//!
//! A hostile end can make ours read a message of `RECONCILE_BYTES_MAX`, walk along the set and write as much, for
//! `RECONCILE_ROUNDS_MAX` rounds. It can claim that it lacks all we have, and that it has names which do not exist.

use kos_protocol::limits::{RECONCILE_BYTES_MAX, RECONCILE_IDLE_ROUNDS_MAX, RECONCILE_ROUNDS_MAX};
use negentropy::{Bound, Error, Id, Item, Negentropy, NegentropyStorageBase};
use std::sync::Arc;

/// Bytes of an element's name.
pub const NAME_BYTES: usize = 32;
/// The name of an element: the id of an object, or a hash.
pub type Name = [u8; NAME_BYTES];

/// Why a message is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReconcileError {
    /// Longer than `RECONCILE_BYTES_MAX`.
    #[error("a message of {0} bytes, limit {RECONCILE_BYTES_MAX}")]
    TooLong(usize),
    /// Not a message of this version.
    #[error("not a reconciliation message: {0}")]
    Malformed(String),
    /// The other end goes on and on. What was found so far holds; another time may find the rest.
    #[error("not reconciled in {RECONCILE_ROUNDS_MAX} rounds")]
    Rounds,
    /// The other end says that there are differences and names none.
    #[error("no difference named in {RECONCILE_IDLE_ROUNDS_MAX} rounds")]
    Idle,
}

/// An immutable, ordered set. Cheap to clone. Orders are below `u64::MAX`, which in messages means the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set(Arc<[(u64, Name)]>);

impl Set {
    /// The set of these elements. Costs for 100,000 of them 10 ms in any order and 2 ms in theirs, so that whoever keeps a
    /// changing set builds it anew when it is asked for.
    pub fn new(mut elements: Vec<(u64, Name)>) -> Self {
        elements.sort_unstable();
        elements.dedup();
        Self(elements.into())
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The elements behind `last`, in order; all of them where there is no last one.
    pub fn after(&self, last: Option<(u64, Name)>) -> &[(u64, Name)] {
        let start = last.map_or(0, |last| self.0.partition_point(|element| *element <= last));
        &self.0[start..]
    }

    fn negentropy(&self) -> Negentropy<'_, Self> {
        Negentropy::borrowed(self, RECONCILE_BYTES_MAX as u64)
            .expect("the frame is above the library's least")
    }
}

fn item((order, name): &(u64, Name)) -> Item {
    Item::with_timestamp_and_id(*order, Id::from_byte_array(*name))
}

impl NegentropyStorageBase for Set {
    fn size(&self) -> Result<usize, Error> {
        Ok(self.len())
    }

    fn get_item(&self, place: usize) -> Result<Option<Item>, Error> {
        Ok(self.0.get(place).map(item))
    }

    fn iterate(
        &self,
        begin: usize,
        end: usize,
        each: &mut dyn FnMut(Item, usize) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let range = self.0.get(begin..end).ok_or(Error::BadRange)?;
        for (place, element) in range.iter().enumerate() {
            if !each(item(element), begin + place)? {
                break;
            }
        }
        Ok(())
    }

    fn find_lower_bound(&self, first: usize, last: usize, bound: &Bound) -> usize {
        let range = self.0.get(first..last).unwrap_or_default();
        first + range.partition_point(|element| item(element) < bound.item)
    }
}

fn check(message: &[u8]) -> Result<(), ReconcileError> {
    if message.len() > RECONCILE_BYTES_MAX { Err(ReconcileError::TooLong(message.len())) } else { Ok(()) }
}

/// Answers a message. Costs at most three walks along the set; keeps nothing.
///
/// # Errors
/// [`ReconcileError::TooLong`], [`ReconcileError::Malformed`]: refuse it.
pub fn respond(set: &Set, message: &[u8]) -> Result<Vec<u8>, ReconcileError> {
    check(message)?;
    set.negentropy().reconcile(message).map_err(|error| ReconcileError::Malformed(error.to_string()))
}

/// What a step of the initiator came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The next message; none at the end.
    pub message: Option<Vec<u8>>,
    /// What only we have, ascending.
    pub have: Vec<Name>,
    /// What only the other end has, ascending.
    pub need: Vec<Name>,
}

/// The end that asks.
#[derive(Clone, Debug)]
pub struct Initiator {
    set: Set,
    rounds: u32,
    /// Rounds since the last one that named a difference.
    idle_rounds: u32,
}

impl Initiator {
    /// Begins with the first message.
    pub fn new(set: Set) -> (Self, Vec<u8>) {
        let first = set.negentropy().initiate().expect("a new one has not begun");
        (Self { set, rounds: 0, idle_rounds: 0 }, first)
    }

    /// Takes an answer. Most rounds tell of some differences; hand `need` on before the next one. `need` has at most as
    /// many names as fit in a message, `have` as many as the set.
    ///
    /// # Errors
    /// [`ReconcileError`]: ask this end nothing more for now.
    pub fn step(&mut self, answer: &[u8]) -> Result<Step, ReconcileError> {
        check(answer)?;
        self.rounds += 1;
        if self.rounds > RECONCILE_ROUNDS_MAX {
            return Err(ReconcileError::Rounds);
        }
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let mut negentropy = self.set.negentropy();
        negentropy.set_initiator();
        let message = negentropy
            .reconcile_with_ids(answer, &mut have, &mut need)
            .map_err(|error| ReconcileError::Malformed(error.to_string()))?;
        let found_some = !have.is_empty() || !need.is_empty();
        self.idle_rounds = if found_some { 0 } else { self.idle_rounds + 1 };
        if self.idle_rounds >= RECONCILE_IDLE_ROUNDS_MAX && message.is_some() {
            return Err(ReconcileError::Idle);
        }
        // They come in the order of their ranges.
        let named = |ids: Vec<Id>| {
            let mut names: Vec<Name> = ids.iter().map(|id| *id.as_bytes()).collect();
            names.sort_unstable();
            names
        };
        Ok(Step { message, have: named(have), need: named(need) })
    }
}

#[cfg(test)]
mod tests;
