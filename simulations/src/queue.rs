//! What will happen, in the order of virtual time.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Events by time; those of one moment in the order in which they were put in.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    count: u64,
    now_us: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at_us: u64,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.number) == (other.at_us, other.number)
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), count: 0, now_us: 0 }
    }
}

impl<E> Queue<E> {
    /// The time of the last event, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Puts an event in; one in the past happens now.
    pub fn at(&mut self, at_us: u64, event: E) {
        self.count += 1;
        self.heap.push(Reverse(Entry { at_us: at_us.max(self.now_us), number: self.count, event }));
    }

    /// Puts an event in that happens after a while.
    pub fn after(&mut self, delay_us: u64, event: E) {
        self.at(self.now_us + delay_us, event);
    }

    /// The next event up to a moment, which the clock then stands at.
    pub fn next(&mut self, until_us: u64) -> Option<E> {
        if self.heap.peek().is_none_or(|Reverse(entry)| entry.at_us > until_us) {
            self.now_us = self.now_us.max(until_us);
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.now_us = entry.at_us;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_time_and_then_of_arrival() {
        let mut queue = Queue::default();
        for (at_us, event) in [(5, 'a'), (3, 'b'), (5, 'c'), (9, 'd')] {
            queue.at(at_us, event);
        }
        let seen: String = std::iter::from_fn(|| queue.next(5)).collect();
        assert_eq!((seen.as_str(), queue.now_us()), ("bac", 5));
        queue.after(1, 'e');
        queue.at(0, 'f');
        let seen: String = std::iter::from_fn(|| queue.next(100)).collect();
        assert_eq!((seen.as_str(), queue.now_us()), ("fed", 100));
    }
}
