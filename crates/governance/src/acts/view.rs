//! Which acts of a set count, and what they add up to.
//!
//! Acts are decided in order of their authors' seniority, so that everything a decision depends on is decided
//! already: an author is admitted by a senior and, as a steward, removed and reinstated by seniors or by itself.

use super::Placed;
use crate::{
    act::{Action, Role},
    genesis::Genesis,
    roster::Standing,
};
use kos_protocol::id::{MemberId, ObjectId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Seniority: `seq` and id of the act that admitted a steward. Founders come first, in the order of the genesis.
pub(super) type Rank = (u64, ObjectId);

/// A set of indices of acts. Most acts know all before them: the words that are full at the beginning are only counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits {
    full: usize,
    words: VecDeque<u64>,
}

impl Bits {
    pub(super) fn set(&mut self, index: usize) {
        let Some(word) = (index / 64).checked_sub(self.full) else { return };
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (index % 64);
        self.count_full();
    }
    pub(super) fn has(&self, index: usize) -> bool {
        match (index / 64).checked_sub(self.full) {
            Some(word) => self.words.get(word).is_some_and(|word| word & (1 << (index % 64)) != 0),
            None => true,
        }
    }
    pub(super) fn unite(&mut self, other: &Self) {
        let behind = other.full.saturating_sub(self.full).min(self.words.len());
        self.words.drain(..behind);
        self.full = self.full.max(other.full);
        let others = other.words.iter().skip(self.full - other.full);
        for (place, more) in others.enumerate() {
            match self.words.get_mut(place) {
                Some(word) => *word |= more,
                None => self.words.push_back(*more),
            }
        }
        self.count_full();
    }
    pub(super) fn count(&self) -> usize {
        64 * self.full + self.words.iter().map(|word| word.count_ones() as usize).sum::<usize>()
    }
    fn count_full(&mut self) {
        while self.words.front() == Some(&u64::MAX) {
            self.words.pop_front();
            self.full += 1;
        }
    }
}

/// A place in the roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) role: Role,
    pub(super) name: String,
    pub(super) until_ms: Option<u64>,
    pub(super) rank: Rank,
    /// The act that gave it; none for founders.
    pub(super) admission: Option<usize>,
    standing: Standing,
}

impl Seat {
    pub(super) fn standing_at(&self, wall_ms: u64) -> Standing {
        match self.until_ms {
            Some(until_ms) if self.standing == Standing::Active && wall_ms >= until_ms => Standing::Lapsed,
            _ => self.standing,
        }
    }
    pub(super) fn is_active_steward(&self, wall_ms: u64) -> bool {
        self.role == Role::Steward && self.standing_at(wall_ms) == Standing::Active
    }
}

/// What a set of acts adds up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) effective: Bits,
    pub(super) seats: BTreeMap<MemberId, Seat>,
    pub(super) used: BTreeMap<ObjectId, BTreeSet<MemberId>>,
    pub(super) revoked: BTreeSet<ObjectId>,
    /// Who was put out, even where the admission does not count any more.
    pub(super) expelled: BTreeSet<MemberId>,
    /// The number of each member's newest recorded key.
    pub(super) keys: BTreeMap<MemberId, u64>,
    /// The same, as far as the member recorded it itself.
    pub(super) keys_by_self: BTreeMap<MemberId, u64>,
    changes: BTreeMap<MemberId, Changes>,
}

impl View {
    pub(super) fn of_genesis(genesis: &Genesis) -> Self {
        let seat =
            |(place, (founder, log)): (usize, (&crate::genesis::Founder, &kos_protocol::key_log::KeyLog))| {
                let mut id = [0; 32];
                id[24..].copy_from_slice(&(place as u64).to_be_bytes());
                let seat = Seat {
                    role: founder.role,
                    name: founder.name.clone(),
                    until_ms: None,
                    rank: (0, ObjectId::from_bytes(id)),
                    admission: None,
                    standing: Standing::Active,
                };
                ((founder.member, seat), (founder.member, log.seq()))
            };
        let (seats, keys): (BTreeMap<_, _>, BTreeMap<_, _>) =
            genesis.founders().enumerate().map(seat).unzip();
        Self {
            effective: Bits::default(),
            seats,
            used: BTreeMap::new(),
            revoked: BTreeSet::new(),
            expelled: BTreeSet::new(),
            keys_by_self: keys.clone(),
            keys,
            changes: BTreeMap::new(),
        }
    }

    /// Decides the acts in `within` (all, if none), which holds the whole past of each of its acts.
    pub(super) fn decide(
        genesis: &Genesis,
        placed: &[Placed],
        order: &[usize],
        within: Option<&Bits>,
    ) -> Self {
        let mut view = Self::of_genesis(genesis);
        let mut deciding = Deciding { placed, view: &mut view };
        for act in order.iter().copied().filter(|act| within.is_none_or(|within| within.has(*act))) {
            deciding.decide(act);
        }
        let changed: Vec<MemberId> = deciding.view.changes.keys().copied().collect();
        changed.iter().for_each(|member| deciding.seat(member));
        view
    }

    /// Takes one more act in, the last of `placed`, that knows all others. It changes nothing about these: what
    /// takes the effect from an act is concurrent with it or known to it. So it costs no more than itself.
    pub(super) fn decide_on_top(&mut self, placed: &[Placed]) {
        let last = placed.len() - 1;
        let mut deciding = Deciding { placed, view: self };
        deciding.decide(last);
        if let Some(member) = placed[last].action.about() {
            deciding.seat(&member);
        }
    }
}

/// What effective acts did to one member, by their indices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Changes {
    admissions: BTreeSet<usize>,
    removals: BTreeSet<usize>,
    reinstatements: BTreeSet<usize>,
    /// The member's own records of its new keys.
    rotations: BTreeSet<(usize, u64)>,
}

struct Deciding<'a> {
    placed: &'a [Placed],
    view: &'a mut View,
}

impl Deciding<'_> {
    fn decide(&mut self, act: usize) {
        let admitted = self.placed[act].admission.is_none_or(|act| self.view.effective.has(act));
        if admitted && self.stands(act) {
            self.apply(act);
        }
    }

    /// Whether act `a` knew act `b`.
    fn knew(&self, a: usize, b: usize) -> bool {
        self.placed[a].past.has(b)
    }

    fn concurrent(&self, a: usize, b: usize) -> bool {
        a != b && !self.knew(a, b) && !self.knew(b, a)
    }

    /// Whether no removal and no new key takes the effect from `act`. All that could are decided already.
    fn stands(&self, act: usize) -> bool {
        let Placed { signed, action, offer, .. } = &self.placed[act];
        if let (Action::Admit(admit), Some(offer)) = (action, offer) {
            let used = self.view.used.get(&offer.invite);
            let others = used.map_or(0, |used| used.iter().filter(|member| **member != admit.member).count());
            if others >= offer.uses as usize {
                return false;
            }
        }
        let Some(changes) = self.view.changes.get(&signed.author) else {
            return true;
        };
        let rekeyed =
            |(rotation, seq): &(usize, u64)| *seq > signed.key_seq && self.concurrent(*rotation, act);
        let undone = |removal: usize| self.undoing(changes, removal).any(|undoing| self.knew(act, undoing));
        let removed = |removal: &usize| {
            self.concurrent(*removal, act) || (self.knew(act, *removal) && !undone(*removal))
        };
        !changes.rotations.iter().any(rekeyed) && !changes.removals.iter().any(removed)
    }

    fn apply(&mut self, act: usize) {
        self.view.effective.set(act);
        let Placed { signed, action, offer, .. } = &self.placed[act];
        let changes = |changes: &'_ mut BTreeMap<MemberId, Changes>,
                       member: &MemberId,
                       kind: fn(&mut Changes) -> &mut BTreeSet<usize>| {
            kind(changes.entry(*member).or_default()).insert(act);
        };
        match action {
            Action::Admit(admit) => {
                changes(&mut self.view.changes, &admit.member, |changes| &mut changes.admissions);
                if let Some(offer) = offer {
                    self.view.used.entry(offer.invite).or_default().insert(admit.member);
                }
                self.learn_key(admit.member, (admit.key_log.len() as u64).saturating_sub(1));
            }
            Action::Suspend { member, .. } | Action::Expel { member, .. } | Action::Release { member } => {
                changes(&mut self.view.changes, member, |changes| &mut changes.removals);
            }
            Action::Reinstate { member } => {
                changes(&mut self.view.changes, member, |changes| &mut changes.reinstatements);
            }
            Action::Revoke { invite } => {
                self.view.revoked.insert(*invite);
            }
            Action::Rotate { member, .. } => {
                let seq = self.placed[act].rotated_to();
                self.learn_key(*member, seq);
                if *member == signed.author {
                    self.view.changes.entry(*member).or_default().rotations.insert((act, seq));
                    let own = self.view.keys_by_self.entry(*member).or_default();
                    *own = seq.max(*own);
                }
            }
            Action::Unknown(_) => {}
        }
    }

    fn learn_key(&mut self, member: MemberId, seq: u64) {
        let key = self.view.keys.entry(member).or_default();
        *key = seq.max(*key);
    }

    /// Where a member sits after all that.
    fn seat(&mut self, member: &MemberId) {
        let Some(changes) = self.view.changes.get(member) else { return };
        let admitted = self.governing(&changes.admissions).and_then(|admission| {
            let Action::Admit(admit) = &self.placed[admission].action else { return None };
            let act = &self.placed[admission].signed;
            Some(Seat {
                role: admit.role,
                name: admit.name.clone(),
                until_ms: admit.until_ms,
                rank: (act.seq, act.id()),
                admission: Some(admission),
                standing: Standing::Active,
            })
        });
        let standing = self.standing(changes);
        if let Some(seat) = admitted {
            self.view.seats.insert(*member, seat);
        }
        match standing {
            Standing::Expelled => self.view.expelled.insert(*member),
            _ => self.view.expelled.remove(member),
        };
        if let Some(seat) = self.view.seats.get_mut(member) {
            seat.standing = standing;
        }
    }

    /// Of several admissions of one member the first, unless a later one knew it (it had lapsed, and came again).
    fn governing(&self, admissions: &BTreeSet<usize>) -> Option<usize> {
        let mut admissions: Vec<usize> = admissions.iter().copied().collect();
        admissions.sort_by_key(|act| (self.placed[*act].signed.seq, self.placed[*act].signed.id()));
        admissions.into_iter().reduce(|current, next| if self.knew(next, current) { next } else { current })
    }

    /// What undoes a removal: a reinstatement that knew of it, or, for one who left, an admission that did. Between
    /// a removal and what did not know of it the removal wins.
    fn undoing(&self, changes: &Changes, removal: usize) -> impl Iterator<Item = usize> {
        let left = matches!(self.placed[removal].action, Action::Release { .. });
        let admissions = changes.admissions.iter().filter(move |_| left);
        let all = changes.reinstatements.iter().chain(admissions).copied();
        all.filter(move |undoing| self.knew(*undoing, removal))
    }

    /// The gravest of the removals that nothing undid.
    fn standing(&self, changes: &Changes) -> Standing {
        let standing = |removal: usize| match self.placed[removal].action {
            Action::Expel { .. } => Standing::Expelled,
            Action::Release { .. } => Standing::Left,
            _ => Standing::Suspended,
        };
        let open = changes
            .removals
            .iter()
            .copied()
            .filter(|removal| self.undoing(changes, *removal).next().is_none());
        open.map(standing).max().unwrap_or(Standing::Active)
    }
}
