use super::*;
use kos_protocol::{id::MemberId, key::SecretKey, object::Signed};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64},
};

/// A ledger in memory that can refuse, and that can write and say that it did not.
#[derive(Default)]
struct Memory {
    rows: Mutex<BTreeMap<u64, Vec<u8>>>,
    is_full: AtomicBool,
    lies: AtomicBool,
    refused: AtomicU64,
}

fn key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

impl Shelf for Memory {
    fn newest(&self) -> Result<Option<(u64, Vec<u8>)>, String> {
        Ok(self.rows.lock().unwrap().last_key_value().map(|(seq, bytes)| (*seq, bytes.clone())))
    }
    fn from(&self, seq: u64) -> Result<Envelopes, String> {
        let rows: Vec<_> =
            self.rows.lock().unwrap().range(seq..).map(|(seq, bytes)| Ok((*seq, bytes.clone()))).collect();
        Ok(Box::new(rows.into_iter()))
    }
    fn keep(&self, seq: u64, envelope: &[u8]) -> Pending<'_, Result<(), String>> {
        let envelope = envelope.to_vec();
        Box::pin(async move {
            if self.is_full.load(Ordering::SeqCst) {
                self.refused.fetch_add(1, Ordering::SeqCst);
                return Err("disk full".to_owned());
            }
            self.rows.lock().unwrap().insert(seq, envelope);
            if self.lies.swap(false, Ordering::SeqCst) { Err("who knows".to_owned()) } else { Ok(()) }
        })
    }
    fn sign(&self, entry: Entry) -> Result<Vec<u8>, String> {
        Ok(Signed::sign(entry, Scope::Global, &key()).unwrap().bytes().to_vec())
    }
    fn key_log(&self) -> Result<KeyLog, String> {
        Ok(KeyLog::incept(&key(), &SecretKey::from_seed(&[2; 32]).public()))
    }
}

fn open(shelf: Arc<Memory>) -> Audit {
    Audit::on(shelf, Duration::from_millis(1))
}

fn texts(page: &Page) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.text.as_str()).collect()
}

#[tokio::test]
async fn an_entry_that_could_not_be_written_leaves_no_gap() {
    let shelf = Arc::new(Memory::default());
    let audit = open(shelf.clone());
    audit.note("start", "one");
    shelf.is_full.store(true, Ordering::SeqCst);
    audit.note("config", "two");
    while shelf.refused.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    shelf.is_full.store(false, Ordering::SeqCst);
    audit.note("config", "three");
    while shelf.rows.lock().unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(audit.verify(), Ok(3));
    assert_eq!(texts(&audit.page(None, 10).unwrap()).last(), Some(&"three"));
}

#[tokio::test]
async fn a_write_that_was_made_after_all_is_not_made_twice() {
    let shelf = Arc::new(Memory::default());
    let audit = open(shelf.clone());
    shelf.lies.store(true, Ordering::SeqCst);
    audit.note("start", "one");
    audit.note("start", "two");
    while shelf.rows.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    audit.close().await;
    assert_eq!(texts(&audit.page(None, 10).unwrap()), ["one", "two"]);
    assert_eq!(audit.verify(), Ok(2));
}

#[tokio::test]
async fn what_finds_no_place_is_counted() {
    let shelf = Arc::new(Memory::default());
    let audit = open(shelf.clone());
    shelf.is_full.store(true, Ordering::SeqCst);
    for n in 0..WAITING_MAX + 100 {
        audit.note("config", &n.to_string());
    }
    shelf.is_full.store(false, Ordering::SeqCst);
    audit.close().await;
    let count = audit.verify().unwrap();
    let page = audit.page(Some(0), PAGE_ENTRIES_MAX).unwrap();
    let lost = page.entries.iter().find(|entry| entry.kind == "lost").unwrap();
    assert!(lost.text.starts_with("100 entries were not kept"), "{}", lost.text);
    assert_eq!(count, WAITING_MAX as u64 + 1);
}

#[tokio::test]
async fn a_member_that_is_denied_over_and_over_costs_two_entries() {
    let shelf = Arc::new(Memory::default());
    let audit = open(shelf);
    let denial = Denial {
        caller: MemberId::from_bytes([1; 32]),
        agent: "kBridge:notes".parse().unwrap(),
        why: "not among those allowed".to_owned(),
    };
    for _ in 0..10_000 {
        audit.denied(denial.clone());
    }
    audit.close().await;
    let page = audit.page(None, 10).unwrap();
    assert_eq!(page.entries.len(), 2);
    assert!(page.entries[1].text.contains("9999 times more"), "{:?}", page.entries[1]);
}

#[tokio::test]
async fn the_log_is_read_page_by_page() {
    let audit = open(Arc::new(Memory::default()));
    for n in 1..=25 {
        audit.note("config", &n.to_string());
    }
    audit.close().await;
    let newest = audit.page(None, 10).unwrap();
    assert_eq!((newest.entries[0].seq, newest.entries.len(), newest.next), (16, 10, None));
    let mut seen = Vec::new();
    let mut after = Some(0);
    while let Some(from) = after {
        let page = audit.page(Some(from), 10).unwrap();
        seen.extend(page.entries.iter().map(|entry| entry.seq));
        after = page.next;
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    assert_eq!(audit.page(Some(99), 10).unwrap(), Page { entries: Vec::new(), next: None });
}

#[tokio::test]
async fn a_page_behind_a_missing_entry_is_broken() {
    let shelf = Arc::new(Memory::default());
    let audit = open(shelf.clone());
    for n in 1..=5 {
        audit.note("config", &n.to_string());
    }
    audit.close().await;
    shelf.rows.lock().unwrap().remove(&3);
    assert_eq!(audit.page(Some(3), 10), Err(Broken::Chain { seq: 4 }));
    assert_eq!(audit.verify(), Err(Broken::Chain { seq: 4 }));
}
