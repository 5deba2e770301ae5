//! The replay window over stream numbers (RFC 6479). SPEC §6.4.

use crate::limits::REPLAY_WINDOW_STREAMS;

const WORDS: usize = REPLAY_WINDOW_STREAMS as usize / 64;

/// Remembers which of the newest [`REPLAY_WINDOW_STREAMS`] streams were seen: 128 bytes, constant time.
#[derive(Clone, Debug, Default)]
pub struct ReplayWindow {
    /// One more than the greatest index seen; zero when none was.
    end: u64,
    seen: [u64; WORDS],
}

/// A stream number that was used before, or is so old that nobody can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stream {0} was seen before or is too old")]
pub struct Replayed(pub u32);

impl ReplayWindow {
    /// Whether [`ReplayWindow::accept`] would take the number in now.
    ///
    /// # Errors
    /// [`Replayed`].
    pub fn check(&self, stream: u32) -> Result<(), Replayed> {
        let index = u64::from(stream / 2);
        let is_old = index + u64::from(REPLAY_WINDOW_STREAMS) < self.end;
        let is_seen = index < self.end && self.seen[place(index)] & bit(index) != 0;
        if is_old || is_seen { Err(Replayed(stream)) } else { Ok(()) }
    }

    /// Takes the number in; numbers of one opener are all even or all odd, so half of it indexes the window.
    ///
    /// # Errors
    /// [`Replayed`].
    pub fn accept(&mut self, stream: u32) -> Result<(), Replayed> {
        self.check(stream)?;
        let index = u64::from(stream / 2);
        let window = u64::from(REPLAY_WINDOW_STREAMS);
        if index >= self.end {
            let cleared = if index - self.end >= window { 0..window } else { self.end..index + 1 };
            for passed in cleared {
                self.seen[place(passed)] &= !bit(passed);
            }
            self.end = index + 1;
        }
        self.seen[place(index)] |= bit(index);
        Ok(())
    }
}

fn place(index: u64) -> usize {
    usize::try_from(index / 64 % WORDS as u64).expect("below sixteen")
}

fn bit(index: u64) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_number_counts_once() {
        let mut window = ReplayWindow::default();
        for stream in [0, 2, 10, 4, 4000, 2000] {
            assert_eq!(window.accept(stream), Ok(()), "{stream}");
            assert_eq!(window.accept(stream), Err(Replayed(stream)), "{stream}");
        }
        assert_eq!(window.accept(1948), Err(Replayed(1948)), "left of the window");
        assert_eq!(window.accept(1954), Ok(()), "just inside");
        assert_eq!(window.accept(u32::MAX), Ok(()));
        assert_eq!(window.accept(u32::MAX), Err(Replayed(u32::MAX)));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(streams in proptest::collection::vec(0u32..8_000, 1..400)) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            for stream in streams {
                let index = stream / 2;
                let end = seen.last().map_or(0, |last| last + 1);
                let old = index + REPLAY_WINDOW_STREAMS < end;
                let fresh = !old && seen.insert(index);
                prop_assert_eq!(window.accept(stream).is_ok(), fresh);
            }
        }
    }
}
