//! A storage backend that holds writes back until it is told to let them through.
//!
//! Opening a redb file writes to it. Through a closed gate the file can be opened, repaired and read while not a byte
//! of it changes: that is how a newer schema is refused untouched, how fsck looks, and how the ledger stays readable
//! on a disk that takes no writes. Opening the gate replays what was held back, syncs included, in the same order, so
//! for the file it is as if the gate had never been there.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use redb::StorageBackend;

#[derive(Clone, Debug)]
pub(crate) struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    backend: Box<dyn StorageBackend>,
    /// What is held back; none once the gate is open.
    held: RwLock<Option<Vec<Held>>>,
}

#[derive(Debug)]
enum Held {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    Sync,
}

impl Gate {
    /// A closed gate.
    pub fn closed(backend: Box<dyn StorageBackend>) -> Self {
        Self { inner: Arc::new(Inner { backend, held: RwLock::new(Some(Vec::new())) }) }
    }

    /// Lets through what was held back, then everything. On an error the gate stays closed, with everything still in
    /// it; the file is then as after a crash at that point.
    pub fn open(&self) -> io::Result<()> {
        let mut held = self.inner.held.write().unwrap_or_else(PoisonError::into_inner);
        for operation in held.iter().flatten() {
            match operation {
                Held::Write { offset, bytes } => self.inner.backend.write(*offset, bytes)?,
                Held::SetLen(len) => self.inner.backend.set_len(*len)?,
                Held::Sync => self.inner.backend.sync_data()?,
            }
        }
        *held = None;
        Ok(())
    }

    /// Runs `pass` on an open gate, or keeps `hold`'s operation in a closed one.
    fn change(
        &self,
        hold: impl FnOnce() -> Held,
        pass: impl FnOnce(&dyn StorageBackend) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.inner.held.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            return pass(&*self.inner.backend);
        }
        match &mut *self.inner.held.write().unwrap_or_else(PoisonError::into_inner) {
            Some(held) => {
                held.push(hold());
                Ok(())
            }
            // Opened between the two looks.
            None => pass(&*self.inner.backend),
        }
    }

    fn len_with(&self, held: &[Held]) -> io::Result<u64> {
        let last = held.iter().rev().find_map(|held| match held {
            Held::SetLen(len) => Some(*len),
            Held::Write { .. } | Held::Sync => None,
        });
        last.map_or_else(|| self.inner.backend.len(), Ok)
    }
}

impl StorageBackend for Gate {
    fn len(&self) -> io::Result<u64> {
        match &*self.inner.held.read().unwrap_or_else(PoisonError::into_inner) {
            Some(held) => self.len_with(held),
            None => self.inner.backend.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let held = self.inner.held.read().unwrap_or_else(PoisonError::into_inner);
        let Some(held) = &*held else { return self.inner.backend.read(offset, out) };
        if offset.saturating_add(out.len() as u64) > self.len_with(held)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let below = self.inner.backend.len()?.saturating_sub(offset).min(out.len() as u64);
        let (from_file, beyond) = out.split_at_mut(usize::try_from(below).unwrap_or(usize::MAX));
        if !from_file.is_empty() {
            self.inner.backend.read(offset, from_file)?;
        }
        beyond.fill(0);
        for operation in held {
            replay(operation, offset, out);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|| Held::SetLen(len), |backend| backend.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|| Held::Sync, StorageBackend::sync_data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|| Held::Write { offset, bytes: data.to_vec() }, |backend| backend.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.backend.close()
    }
}

/// Does to `out`, which was read at `offset`, what the operation will do to the file.
fn replay(operation: &Held, offset: u64, out: &mut [u8]) {
    let end = offset + out.len() as u64;
    match operation {
        Held::Write { offset: at, bytes } => {
            let (from, to) = (offset.max(*at), end.min(at + bytes.len() as u64));
            if from < to {
                let (source, target) = (index(from - at), index(from - offset));
                let length = index(to - from);
                out[target..target + length].copy_from_slice(&bytes[source..source + length]);
            }
        }
        // Cut off and grown again reads as zeros.
        Held::SetLen(len) if *len < end => out[index(len.saturating_sub(offset))..].fill(0),
        Held::SetLen(_) | Held::Sync => {}
    }
}

fn index(distance: u64) -> usize {
    usize::try_from(distance).expect("a distance within a buffer fits a usize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Sync,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u64..64, prop::collection::vec(any::<u8>(), 1..16))
                .prop_map(|(at, bytes)| Step::Write(at, bytes)),
            (0u64..96).prop_map(Step::SetLen),
            Just(Step::Sync),
        ];
        prop::collection::vec(step, 0..24)
    }

    fn contents(backend: &dyn StorageBackend) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
        backend.read(0, &mut out).unwrap();
        out
    }

    fn apply(backend: &dyn StorageBackend, step: &Step) {
        match step {
            // As redb does, never write beyond the end.
            Step::Write(at, bytes) => {
                let end = at + bytes.len() as u64;
                if backend.len().unwrap() < end {
                    backend.set_len(end).unwrap();
                }
                backend.write(*at, bytes).unwrap();
            }
            Step::SetLen(len) => backend.set_len(*len).unwrap(),
            Step::Sync => backend.sync_data().unwrap(),
        }
    }

    proptest! {
        #[test]
        fn a_closed_gate_reads_like_the_file_will_and_leaves_it_alone(before in steps(), after in steps()) {
            let plain = InMemoryBackend::new();
            let below = Arc::new(InMemoryBackend::new());
            for step in &before {
                apply(&plain, step);
                apply(&*below, step);
            }
            let untouched = contents(&*below);
            let gate = Gate::closed(Box::new(Shared(below.clone())));
            for step in &after {
                apply(&plain, step);
                apply(&gate, step);
                prop_assert_eq!(contents(&gate), contents(&plain));
            }
            prop_assert_eq!(contents(&*below), untouched);
            gate.open().unwrap();
            prop_assert_eq!(contents(&*below), contents(&plain));
            apply(&gate, &Step::Write(3, vec![9]));
            prop_assert_eq!(contents(&*below), contents(&gate));
        }
    }

    #[derive(Debug)]
    struct Shared(Arc<InMemoryBackend>);

    impl StorageBackend for Shared {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }
}
