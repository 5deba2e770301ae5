//! The caller's side of an exchange while its answer is made: first it sends, then it waits, or gives up.

use super::upload::{Pump, UploadError, Uploaded};
use bytes::Bytes;
use futures::future::BoxFuture;
use kos_mesh::link::RecvHalf;

/// What the caller is doing.
pub enum Caller {
    /// Its body is under way.
    Sending(BoxFuture<'static, (Result<Uploaded, UploadError>, RecvHalf)>),
    /// Its body has arrived, as far as the origin wanted it.
    Sent(Uploaded, Box<RecvHalf>),
    /// Nothing more is to be had from it.
    Lost,
}

impl Caller {
    /// A caller whose body `pump` moves, if it has one; the first part may have been read.
    pub fn new(pump: Option<(Pump, Option<Bytes>)>, mut recv: RecvHalf) -> Self {
        match pump {
            None => Self::Sent(Uploaded::Whole, Box::new(recv)),
            Some((pump, first)) => Self::Sending(Box::pin(async move {
                let outcome = pump.run(first, &mut recv).await;
                (outcome, recv)
            })),
        }
    }

    /// Waits until its body has arrived. Cancel-safe.
    ///
    /// # Errors
    /// [`UploadError`].
    pub async fn sent(&mut self) -> Result<(), UploadError> {
        match self {
            Self::Sent(..) => Ok(()),
            Self::Lost => Err(UploadError::CallerGone),
            Self::Sending(sending) => {
                let (outcome, recv) = sending.await;
                match outcome {
                    Ok(uploaded) => {
                        *self = Self::Sent(uploaded, Box::new(recv));
                        Ok(())
                    }
                    Err(error) => {
                        *self = Self::Lost;
                        Err(error)
                    }
                }
            }
        }
    }

    /// Waits until it has given up or broken the rules, moving its body meanwhile. Cancel-safe.
    pub async fn lost(&mut self) -> UploadError {
        if let Err(error) = self.sent().await {
            return error;
        }
        if let Self::Sent(_, recv) = self {
            recv.gone().await;
        }
        UploadError::CallerGone
    }

    /// How much of its body the origin took, once that is known.
    pub fn uploaded(&self) -> Option<Uploaded> {
        match self {
            Self::Sent(uploaded, _) => Some(*uploaded),
            Self::Sending(_) | Self::Lost => None,
        }
    }

    /// Its half of the exchange, for raw bytes; none when a body was under way.
    pub fn into_recv(self) -> Option<RecvHalf> {
        match self {
            Self::Sent(_, recv) => Some(*recv),
            Self::Sending(_) | Self::Lost => None,
        }
    }
}
