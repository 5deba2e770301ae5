//! `GET /ws`: one subscriber.

use super::{
    FULL_RETRY, SUBSCRIBERS_MAX, Served, come_back,
    news::{Message, Type},
};
use crate::errors::{Code, Failure};
use axum::{
    extract::{
        State, WebSocketUpgrade,
        ws::{self, CloseFrame, Utf8Bytes, WebSocket, close_code, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use std::{sync::Arc, time::Duration};

/// Longest message a subscriber may send. Nothing is expected of it.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// Times of a subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// For a subscriber to take one message.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(15), patience: Duration::from_secs(5) }
    }
}

/// Why a subscription ends from our side.
enum Ending {
    /// It is over by itself: the subscriber left, or takes nothing any more.
    Gone,
    /// The node stops.
    Stop,
    /// The subscriber has fallen too far behind.
    Slow,
}

pub(super) async fn subscribe(
    State(served): State<Arc<Served>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let upgrade = upgrade.map_err(|error| Code::BadRequest.because(error))?;
    let Ok(place) = served.subscribers.clone().try_acquire_owned() else {
        let failure = Code::RateLimited.because(format!("{SUBSCRIBERS_MAX} subscribers are here already"));
        return Ok(come_back(failure, FULL_RETRY));
    };
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(async move |mut socket| {
        let ending = tokio::select! {
            () = served.stop.cancelled() => Ending::Stop,
            ending = tell(&mut socket, &served) => ending,
        };
        close(socket, ending, served.pace.patience).await;
        drop(place);
    }))
}

/// Tells the news until something ends it. What a subscriber does not take is not kept for it.
async fn tell(socket: &mut WebSocket, served: &Served) -> Ending {
    // Before the status, so that nothing is missed after it.
    let mut news = served.hub.news.listen();
    let status = match served.node.status().await {
        Ok(status) => Message::new(Type::SystemStatus, status),
        Err(failure) => Message::new(Type::SystemStatus, serde_json::json!({ "error": failure })),
    };
    if send(socket, status.text(), served.pace.patience).await.is_err() {
        return Ending::Gone;
    }
    let mut heartbeat = tokio::time::interval(served.pace.heartbeat);
    heartbeat.reset();
    loop {
        let text = tokio::select! {
            text = news.recv() => match text {
                Ok(text) => text,
                // It has missed some; the sender outlives every subscriber.
                Err(_) => return Ending::Slow,
            },
            _ = heartbeat.tick() => Message::new(Type::Heartbeat, serde_json::json!({})).text(),
            received = socket.recv() => match received {
                Some(Ok(_)) => continue,
                _ => return Ending::Gone,
            },
        };
        if send(socket, text, served.pace.patience).await.is_err() {
            return Ending::Gone;
        }
    }
}

async fn send(socket: &mut WebSocket, text: Utf8Bytes, patience: Duration) -> Result<(), ()> {
    let sent = tokio::time::timeout(patience, socket.send(ws::Message::Text(text))).await;
    if matches!(sent, Ok(Ok(()))) { Ok(()) } else { Err(()) }
}

/// Says why, where the subscriber still listens.
async fn close(mut socket: WebSocket, ending: Ending, patience: Duration) {
    let (code, reason) = match ending {
        Ending::Gone => return,
        Ending::Stop => (close_code::AWAY, "the node stops"),
        Ending::Slow => (close_code::POLICY, "too slow"),
    };
    let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
    let _ = tokio::time::timeout(patience, socket.send(ws::Message::Close(Some(frame)))).await;
}
