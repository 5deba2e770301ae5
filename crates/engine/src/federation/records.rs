//! Records: what others publish, and what this node does.

use super::{Federation, Origin, RosterAuthors};
use crate::{
    input::{Check, Checked, Published, Screened, Stored},
    item::{Item, Piece, is_record},
    output::{Output, Refusal, Stamp, Table, Verdict},
};
use kos_directory::{
    AgentRecord, Claim, Directory, Entry, Kind, Merged, Record, Slot, Source, SuspectRecord,
    liveness::SUSPICION_LIFE_MS,
};
use kos_protocol::{id::MemberId, time::Timestamp};

impl Federation {
    /// Looks at an item before its signature is checked. What is no record is taken in at once; the signatures of many
    /// records are then checked on as many threads as there are, outside.
    pub fn screen(&mut self, now: Timestamp, from: Option<MemberId>, piece: &Piece<'_>) -> Screened {
        let (kind, body) = match piece {
            Piece::Of(kind, body) if is_record(kind) => (kind, &**body),
            _ => {
                // Acts come by the thousand; the roster is made anew before the next thing that needs it.
                self.more_follows = true;
                let verdict = self.handle(now, crate::Input::Heard { from, item: &piece.to_bytes() });
                self.more_follows = false;
                return Screened::Done(verdict);
            }
        };
        self.refresh();
        let looked_at = Claim::parse(self.id(), kind, body).and_then(|claim| {
            let authors = RosterAuthors(&self.roster);
            Ok((self.directory.screen(now, Source::Heard, &claim, &authors)?, claim))
        });
        match looked_at {
            Ok((kos_directory::Screened::Known, _)) => Screened::Done(self.count(from, Ok(Verdict::Known))),
            Ok((kos_directory::Screened::Verify(key), claim)) => {
                Screened::Check(Box::new(Check { from, claim, key }))
            }
            Err(error) => Screened::Done(self.count(from, Err(error.into()))),
        }
    }

    pub(super) fn take_checked(&mut self, now: Timestamp, checked: Checked) -> Result<Verdict, Refusal> {
        let record = checked.outcome.inspect_err(|error| self.directory.blame(error))?;
        let merged = self.directory.insert(now, Source::Heard, record, &RosterAuthors(&self.roster))?;
        Ok(self.merged(now, merged, Origin::Outside))
    }

    pub(super) fn take_record(&mut self, now: Timestamp, item: &Item) -> Result<Verdict, Refusal> {
        let authors = RosterAuthors(&self.roster);
        let merged = self.directory.merge(now, Source::Heard, &item.kind, &item.body, &authors)?;
        Ok(self.merged(now, merged, Origin::Outside))
    }

    /// As [`Federation::restore`], of a record that was read elsewhere, after everything of the other tables but the
    /// unknown items.
    ///
    /// # Errors
    /// [`Refusal`]: out of date; it may be forgotten.
    pub fn restore_record(&mut self, now: Timestamp, stored: Stored) -> Result<Verdict, Refusal> {
        self.refresh();
        let authors = RosterAuthors(&self.roster);
        let merged = self.directory.insert(now, Source::Own, stored.0, &authors)?;
        Ok(self.merged(now, merged, Origin::Store))
    }

    fn merged(&mut self, now: Timestamp, merged: Merged, origin: Origin) -> Verdict {
        let Merged::New(verified) = merged else { return Verdict::Known };
        let record = verified.record();
        self.took(now, record);
        if origin == Origin::Outside {
            let slot = record.slot().clone();
            self.persist(Table::Records, &slot_key(&slot), verified.to_row());
            self.outputs.push_back(Output::DirectoryChanged(vec![slot.clone()]));
            let is_news = record.seq() > self.signed_seq;
            if slot.author == self.me && self.published.contains_key(&slot) && is_news {
                self.outputs.push_back(Output::SeenMyself(slot));
            }
        }
        Verdict::New
    }

    pub(super) fn published(&mut self, now: Timestamp, own: &Published<'_>) -> Result<Verdict, Refusal> {
        let authors = RosterAuthors(&self.roster);
        let merged = self.directory.merge(now, Source::Own, own.kind, own.bytes, &authors)?;
        let Merged::New(verified) = merged else { return Ok(Verdict::Known) };
        let record = verified.record();
        self.took(now, record);
        let slot = record.slot().clone();
        self.published.insert(slot.clone(), (own.seq, own.id));
        self.has_signed(own.seq);
        self.persist(Table::Records, &slot_key(&slot), verified.to_row());
        if record.kind().is_global() {
            self.outputs.push_back(Output::Broadcast(Item::new(own.kind, own.bytes).to_bytes()));
        }
        self.outputs.push_back(Output::DirectoryChanged(vec![slot]));
        Ok(Verdict::New)
    }

    /// What follows from a record that was taken, whosever it is.
    fn took(&mut self, now: Timestamp, record: &Record) {
        self.tell_of(now, record);
        let evicted = self.directory.take_evicted();
        self.drop_records(now, evicted);
    }

    pub(super) fn drop_records(&mut self, now: Timestamp, slots: Vec<Slot>) {
        if slots.is_empty() {
            return;
        }
        for slot in slots.iter().filter(|slot| slot.kind == Kind::Suspect) {
            self.forget_suspicion(now, slot);
        }
        let forget = |slot: &Slot| Output::Forget { table: Table::Records, key: slot_key(slot) };
        self.outputs.extend(slots.iter().map(forget));
        self.outputs.push_back(Output::DirectoryChanged(slots));
    }

    /// What a new record of ours begins with. `name` as in [`Slot`]; empty for the node record. `greatest` is the
    /// greatest number any of our records ever had, as far as the caller remembers: a clock that is behind must not
    /// make a record older than one that only others still have.
    pub fn stamp<T: Entry>(&self, now: Timestamp, name: &str, life_ms: u64, greatest: u64) -> Stamp {
        let kind = Kind::parse(T::KIND).expect("the name of a kind is a word");
        let slot = Slot { author: self.me, kind, name: name.into() };
        let last = self.published.get(&slot).map_or(0, |(seq, _)| seq.saturating_add(1));
        // A refutation is above what it refutes.
        let accused = if slot.kind == Kind::Node { self.liveness.accused_seq().saturating_add(1) } else { 0 };
        // Numbers from a time when the clock was far ahead: others have refused them, and would refuse the next.
        let floors = [last, greatest.saturating_add(1), accused];
        let floor = floors.into_iter().filter(|seq| now.allows(*seq)).max().unwrap_or(0);
        Stamp {
            author: self.me,
            key_seq: self.key_seq(),
            seq: self.directory.next_seq(now, &slot).max(floor),
            time_ms: now.wall_ms,
            expires_ms: now.wall_ms.saturating_add(life_ms),
        }
    }

    /// What [`Output::Suspect`] asks for, to be signed and handed in as [`crate::Input::Published`].
    pub fn draft_suspicion(
        &self,
        now: Timestamp,
        (subject, subject_seq): (MemberId, u64),
        since_ms: Option<u64>,
        greatest: u64,
    ) -> SuspectRecord {
        let Stamp { author, key_seq, seq, time_ms, expires_ms } =
            self.stamp::<SuspectRecord>(now, &subject.to_string(), SUSPICION_LIFE_MS, greatest);
        SuspectRecord {
            author,
            key_seq,
            subject,
            seq,
            // The subject's clock may be ahead of ours, and nobody believes in records of the future.
            time_ms: time_ms.max(subject_seq),
            expires_ms,
            subject_seq,
            since_ms: since_ms.map(|since_ms| since_ms.min(time_ms)),
        }
    }

    /// Agents of this member that its own node has published before, as restored from the store.
    pub fn own_agents(&self) -> impl Iterator<Item = AgentRecord> {
        self.directory.records_of(self.me).filter_map(|record| record.agent())
    }

    /// What nodes, agents and services there are.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }
}

/// The key of a record in [`Table::Records`].
fn slot_key(slot: &Slot) -> Vec<u8> {
    [slot.author.as_bytes().as_slice(), slot.kind.as_str().as_bytes(), &[0], slot.name.as_bytes()].concat()
}
