//! Carries news between records, roster, and liveness.

use super::Federation;
use crate::output::Output;
use kos_directory::{
    Content, Record, Slot,
    liveness::{Input, Liveness, Output as Order},
};
use kos_protocol::time::Timestamp;
use std::sync::Arc;

impl Federation {
    /// Who is alive, as far as anybody can tell.
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    pub(super) fn feed(&mut self, now: Timestamp, input: Input) {
        self.liveness.handle(now, input);
        while let Some(order) = self.liveness.poll_output() {
            let output = match order {
                Order::Heartbeat { to } => Output::Heartbeat(to),
                Order::Release { to } => Output::Release(to),
                Order::Probe(member) => Output::Probe(member),
                Order::Suspect { subject, subject_seq, since_ms } => {
                    Output::Suspect { subject, subject_seq, since_ms }
                }
                Order::Refute => Output::Refute,
                Order::Changed(member, health) => {
                    self.directory.set_health(member, health);
                    Output::HealthChanged(member)
                }
            };
            // What the store remembers was dealt with before.
            if self.running {
                self.outputs.push_back(output);
            }
        }
    }

    pub(super) fn tell_members(&mut self, now: Timestamp) {
        let members = self.roster.active().map(|member| member.id).collect();
        self.feed(now, Input::Members(Arc::new(members)));
    }

    /// A suspicion that is over, or was never to be there, is none any more.
    pub(super) fn forget_suspicion(&mut self, now: Timestamp, slot: &Slot) {
        let Ok(subject) = slot.name.parse() else { return };
        let (by, subject_seq, time_ms) = (slot.author, 0, 0);
        self.feed(now, Input::Suspicion { by, subject, subject_seq, time_ms, since_ms: None });
    }

    /// What a record that was taken says about the living.
    pub(super) fn tell_of(&mut self, now: Timestamp, record: &Record) {
        let input = match record.content() {
            Content::Node(node) => {
                Input::Node { member: node.author, seq: node.seq, time_ms: node.time_ms, left: node.left }
            }
            Content::Suspect(suspicion) => Input::Suspicion {
                by: suspicion.author,
                subject: suspicion.subject,
                subject_seq: suspicion.subject_seq,
                time_ms: suspicion.time_ms,
                since_ms: suspicion.since_ms,
            },
            _ => return,
        };
        self.feed(now, input);
    }
}
