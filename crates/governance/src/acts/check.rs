//! Whether an act may be here, judged by its own past alone.

use super::{
    ActError, Acts, Offer, Placed,
    view::{Rank, View},
};
use crate::{
    act::{Act, Action, Admit, Role},
    invite::{Invite, InviteError},
    roster::Standing,
};
use kos_protocol::{
    id::{MemberId, check_name},
    key::PublicKey,
    key_log::{KeyEvent, KeyLog, KeyLogError},
    limits::WHY_BYTES_MAX,
    object::{Scope, Unverified},
};
use serde_bytes::ByteBuf;

/// What checking an action brought to light.
#[derive(Default)]
pub(super) struct Checked {
    pub(super) offer: Option<Offer>,
    pub(super) log: Option<KeyLog>,
}

/// Who acts, as far as its past tells.
pub(super) struct Author {
    pub(super) rank: Rank,
    pub(super) admission: Option<usize>,
    /// The key it must have signed with.
    pub(super) key: PublicKey,
}

impl Placed {
    /// The number of the key a rotation ends with: each of its events is one more.
    pub(super) fn rotated_to(&self) -> u64 {
        match &self.action {
            Action::Rotate { events, .. } => events
                .last()
                .and_then(|last| Unverified::<KeyEvent>::parse(last, Scope::Global).ok())
                .map_or(0, |event| event.claim().seq),
            _ => 0,
        }
    }
}

impl Acts {
    /// Whether the author could act at all. Checks no signature of the act itself.
    pub(super) fn check_author(&self, past: &View, act: &Act, action: &Action) -> Result<Author, ActError> {
        let author = act.author;
        let seat = past.seats.get(&author).filter(|seat| seat.is_active_steward(act.time_ms));
        let seat = seat.ok_or(ActError::NotASteward(author))?;
        let recorded = past.keys.get(&author).copied().unwrap_or(0);
        let key = match action {
            // The first act with a new key is the record of that key, signed with it.
            Action::Rotate { member, events } if *member == author => {
                let log = self.rotated(past, author, events)?;
                log.key_at(act.key_seq).filter(|_| act.key_seq == log.seq())
            }
            _ if act.key_seq == recorded => self.key_at(&author, recorded),
            _ => None,
        };
        let key = key.ok_or(ActError::OldKey(author))?;
        Ok(Author { rank: seat.rank, admission: seat.admission, key })
    }

    pub(super) fn check_action(&self, past: &View, act: &Act, action: &Action) -> Result<Checked, ActError> {
        match action {
            Action::Admit(admit) => self.check_admit(past, act, admit),
            Action::Suspend { member, why } | Action::Expel { member, why } => {
                check_removal(past, act, *member, why)?;
                Ok(Checked::default())
            }
            Action::Release { member } => {
                check_removal(past, act, *member, "")?;
                Ok(Checked::default())
            }
            Action::Reinstate { member } => {
                let standing = past.seats.get(member).map(|seat| seat.standing_at(act.time_ms));
                match standing {
                    Some(Standing::Active | Standing::Lapsed) => return Err(ActError::NotRemoved(*member)),
                    None if !past.expelled.contains(member) => return Err(ActError::NotAMember(*member)),
                    _ => {}
                }
                check_seniority(past, act, *member)?;
                Ok(Checked::default())
            }
            Action::Rotate { member, events } => {
                let log = self.rotated(past, *member, events)?;
                let is_new = past.keys.get(member).is_none_or(|seq| *seq < log.seq());
                let is_own_word =
                    act.author == *member && past.keys_by_self.get(member).is_none_or(|seq| *seq < log.seq());
                if !is_new && !is_own_word {
                    return Err(ActError::NothingNew(*member));
                }
                Ok(Checked { log: Some(log), offer: None })
            }
            Action::Revoke { .. } | Action::Unknown(_) => Ok(Checked::default()),
        }
    }

    fn check_admit(&self, past: &View, act: &Act, admit: &Admit) -> Result<Checked, ActError> {
        check_name(&admit.name)?;
        match past.seats.get(&admit.member).map(|seat| seat.standing_at(act.time_ms)) {
            None if past.expelled.contains(&admit.member) => return Err(ActError::Expelled(admit.member)),
            None | Some(Standing::Lapsed | Standing::Left) => {}
            Some(Standing::Expelled) => return Err(ActError::Expelled(admit.member)),
            Some(Standing::Active | Standing::Suspended) => {
                return Err(ActError::AlreadyMember(admit.member));
            }
        }
        let offer = self.check_invite(past, act, admit)?;
        let log = KeyLog::parse(&admit.key_log)?;
        if log.member() != admit.member {
            return Err(ActError::OtherKeyLog(admit.member));
        }
        self.check_fork(&log)?;
        let holds_now = |member: &MemberId| {
            let seq = past.keys.get(member);
            seq.is_some_and(|seq| self.key_at(member, *seq) == Some(log.current()))
        };
        let mut holders = self.holders.get(&log.current()).into_iter().flatten();
        if let Some(member) = holders.find(|member| **member != admit.member && holds_now(member)) {
            return Err(ActError::KeyInUse(*member));
        }
        Ok(Checked { offer, log: Some(log) })
    }

    fn check_invite(&self, past: &View, act: &Act, admit: &Admit) -> Result<Option<Offer>, InviteError> {
        let bytes = match (&admit.invite, &admit.proof) {
            (Some(bytes), _) => bytes,
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(InviteError::Unproven),
        };
        let read = Invite::read(bytes, self.federation())?;
        let (author, key_seq) = (read.claim().author, read.claim().key_seq);
        if !past.seats.get(&author).is_some_and(|seat| seat.is_active_steward(act.time_ms)) {
            return Err(InviteError::IssuerGone);
        }
        if past.keys.get(&author) != Some(&key_seq) {
            return Err(InviteError::OldKey);
        }
        let key = self.key_at(&author, key_seq).ok_or(InviteError::OldKey)?;
        let invite = read.verify(&key).map_err(|_| InviteError::Forged)?;
        if past.revoked.contains(&invite.id()) {
            return Err(InviteError::Revoked);
        }
        if act.time_ms >= invite.expires_ms {
            return Err(InviteError::Expired { late_ms: act.time_ms - invite.expires_ms });
        }
        let others = past
            .used
            .get(&invite.id())
            .map_or(0, |used| used.iter().filter(|member| **member != admit.member).count());
        if others >= invite.uses as usize {
            return Err(InviteError::Used { uses: invite.uses });
        }
        let proof = admit.proof.as_ref().ok_or(InviteError::Unproven)?;
        proof
            .verify(&invite.invite_key, self.federation(), admit.member)
            .map_err(|_| InviteError::Unproven)?;
        if (invite.role, invite.until_ms) != (admit.role, admit.until_ms) {
            return Err(InviteError::Terms);
        }
        Ok(Some(Offer { invite: invite.id(), uses: invite.uses }))
    }

    /// The log of `member` with `events` added, checked.
    fn rotated(&self, past: &View, member: MemberId, events: &[ByteBuf]) -> Result<KeyLog, ActError> {
        let recorded = *past.keys.get(&member).ok_or(ActError::NotAMember(member))?;
        let first = events.first().ok_or(KeyLogError::Length(0))?;
        let first = Unverified::<KeyEvent>::parse(first, Scope::Global)?.claim().seq;
        let known = self.recorded.get(&member).ok_or(ActError::NotAMember(member))?;
        let before = usize::try_from(first).unwrap_or(usize::MAX);
        if first == 0 || first > recorded + 1 {
            return Err(KeyLogError::Broken { seq: before }.into());
        }
        let mut list = known.to_list();
        list.truncate(before);
        list.extend_from_slice(events);
        let log = KeyLog::parse(&list)?;
        self.check_fork(&log)?;
        Ok(log)
    }

    fn check_fork(&self, log: &KeyLog) -> Result<(), ActError> {
        match self.recorded.get(&log.member()) {
            Some(known) if !known.extends(log) && !log.extends(known) => Err(ActError::Forked(log.member())),
            _ => Ok(()),
        }
    }
}

fn check_removal(past: &View, act: &Act, member: MemberId, why: &str) -> Result<(), ActError> {
    if why.len() > WHY_BYTES_MAX {
        return Err(ActError::WhyTooLong(why.len()));
    }
    let seat = past.seats.get(&member).ok_or(ActError::NotAMember(member))?;
    check_seniority(past, act, member)?;
    let is_other_steward = |(other, seat): (&MemberId, &super::view::Seat)| {
        *other != member && seat.is_active_steward(act.time_ms)
    };
    if seat.is_active_steward(act.time_ms) && !past.seats.iter().any(is_other_steward) {
        return Err(ActError::LastSteward(member));
    }
    Ok(())
}

/// On a steward only a more senior one acts, or the steward itself.
fn check_seniority(past: &View, act: &Act, member: MemberId) -> Result<(), ActError> {
    let rank = |member: &MemberId| past.seats.get(member).map(|seat| seat.rank);
    let is_steward = past.seats.get(&member).is_some_and(|seat| seat.role == Role::Steward);
    if is_steward && member != act.author && rank(&act.author) >= rank(&member) {
        return Err(ActError::Senior(member));
    }
    Ok(())
}
