//! Trace ids: every exchange carries one, and what is logged of it, at both ends, names it in the span's field `trace`.

use super::{CallError, Gate, Pending, Request, Service};
use kos_protocol::{message::Head, trace::TraceContext};
use std::{borrow::Cow, sync::Arc};
use tracing::{Instrument, Span};

/// The trace a head names; none where it names none, or nonsense.
fn named(head: &Head) -> Option<TraceContext> {
    head.trace.as_ref()?.parse().ok()
}

/// The head with a trace: its own, or a new one.
pub(super) fn traced<'a>(gate: &dyn Gate, head: &'a Head) -> Cow<'a, Head> {
    if named(head).is_some() {
        return Cow::Borrowed(head);
    }
    let trace = TraceContext::from_seed(&gate.seed()).to_string();
    Cow::Owned(Head { trace: Some(trace), ..head.clone() })
}

/// What is logged within it names the head's trace.
fn span(head: &Head) -> Span {
    let span = tracing::info_span!("exchange", intent = head.intent, trace = tracing::field::Empty);
    if let Some(trace) = named(head) {
        span.record("trace", tracing::field::display(trace.id()));
    }
    span
}

/// Opens an exchange within the span of its head.
pub(super) async fn asking<T>(
    head: &Head,
    opening: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let asked = async {
        let outcome = opening.await;
        match &outcome {
            Ok(_) => tracing::debug!("asked"),
            Err(error) => tracing::debug!(%error, "not asked"),
        }
        outcome
    };
    asked.instrument(span(head)).await
}

/// Answers requests within the spans of their heads.
pub(super) struct Traced {
    pub gate: Arc<dyn Gate>,
    pub service: Arc<dyn Service>,
}

impl Service for Traced {
    /// A request without a trace gets one here, so that its lines can be told from those of others.
    fn handle(&self, mut request: Request) -> Pending<'_, ()> {
        if let Cow::Owned(head) = traced(&*self.gate, &request.head) {
            request.head = head;
        }
        let span = span(&request.head);
        let answering = async move {
            tracing::debug!(target = request.head.target, caller = ?request.caller.member, "asked by a peer");
            self.service.handle(request).await;
        };
        Box::pin(answering.instrument(span))
    }
}
