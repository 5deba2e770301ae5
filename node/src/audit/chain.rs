//! Verifying a chain of envelopes, one at a time.

use super::Entry;
use kos_protocol::{
    id::sha256,
    key_log::KeyLog,
    object::{Scope, Unverified},
};

/// Why the log does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An entry that cannot be read, or was signed by somebody else.
    #[error("entry {seq} is not what this member signed")]
    Entry {
        /// Where.
        seq: u64,
    },
    /// An entry is missing, or stands in another place.
    #[error("entry {seq} does not follow from the one before")]
    Chain {
        /// Where.
        seq: u64,
    },
    /// The ledger cannot be read.
    #[error("the ledger cannot be read: {0}")]
    Ledger(String),
}

/// The end of a chain: the number of its newest envelope and that one's hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// 0 for a chain without entries.
    pub seq: u64,
    /// Zeros for a chain without entries.
    pub hash: [u8; 32],
}

impl Head {
    /// The end of the chain whose newest envelope this is.
    pub fn of(seq: u64, envelope: &[u8]) -> Self {
        Self { seq, hash: sha256(envelope) }
    }
}

/// Walks along a chain.
pub(super) struct Verifier<'a> {
    log: &'a KeyLog,
    head: Head,
}

impl<'a> Verifier<'a> {
    /// Begins behind `head`.
    pub fn after(head: Head, log: &'a KeyLog) -> Self {
        Self { log, head }
    }

    /// Verifies the next envelope.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn step(&mut self, seq: u64, envelope: &[u8]) -> Result<Entry, Broken> {
        let foreign = || Broken::Entry { seq };
        let read = Unverified::<Entry>::parse(envelope, Scope::Global).map_err(|_| foreign())?;
        let key = self.log.key_at(read.claim().key_seq).ok_or_else(foreign)?;
        let entry = read.verify(&key).map_err(|_| foreign())?;
        if seq != self.head.seq + 1 || entry.seq != seq || *entry.prev != self.head.hash {
            return Err(Broken::Chain { seq });
        }
        self.head = Head::of(seq, envelope);
        Ok(Entry::clone(&entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kos_protocol::{key::SecretKey, object::Signed};
    use serde_bytes::ByteArray;

    fn chain(count: u64) -> (KeyLog, Vec<(u64, Vec<u8>)>) {
        let (key, next) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]));
        let log = KeyLog::incept(&key, &next.public());
        let mut prev = [0; 32];
        let envelopes = (1..=count).map(|seq| {
            let entry = Entry {
                seq,
                prev: ByteArray::new(prev),
                key_seq: 0,
                time_ms: seq,
                kind: "start".into(),
                text: format!("deed {seq}"),
            };
            let bytes = Signed::sign(entry, Scope::Global, &key).unwrap().bytes().to_vec();
            prev = sha256(&bytes);
            (seq, bytes)
        });
        let envelopes = envelopes.collect();
        (log, envelopes)
    }

    fn check(log: &KeyLog, envelopes: &[(u64, Vec<u8>)]) -> Result<usize, Broken> {
        let mut verifier = Verifier::after(Head::default(), log);
        envelopes.iter().try_for_each(|(seq, bytes)| verifier.step(*seq, bytes).map(drop))?;
        Ok(envelopes.len())
    }

    #[test]
    fn a_whole_chain_holds() {
        let (log, envelopes) = chain(5);
        assert_eq!(check(&log, &envelopes), Ok(5));
        assert_eq!(check(&log, &[]), Ok(0));
    }

    #[test]
    fn an_altered_removed_or_moved_entry_shows() {
        let (log, envelopes) = chain(5);
        let mut altered = envelopes.clone();
        let at = altered[2].1.len() / 2;
        altered[2].1[at] ^= 1;
        assert_eq!(check(&log, &altered), Err(Broken::Entry { seq: 3 }));
        let mut removed = envelopes.clone();
        removed.remove(2);
        assert_eq!(check(&log, &removed), Err(Broken::Chain { seq: 4 }));
        let mut moved = envelopes.clone();
        let (second, third) = (moved[1].1.clone(), moved[2].1.clone());
        moved[1].1 = third;
        moved[2].1 = second;
        assert_eq!(check(&log, &moved), Err(Broken::Chain { seq: 2 }));
        let other = KeyLog::incept(&SecretKey::from_seed(&[7; 32]), &SecretKey::from_seed(&[8; 32]).public());
        assert_eq!(check(&other, &envelopes), Err(Broken::Entry { seq: 1 }));
    }
}
