//! What a storage engine said when it failed, in a form that many waiting callers can share.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A failure below this package: the disk, the file system or a damaged file.
///
/// It is for people to read. [`Fault::io_kind`] tells a full disk from a broken one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    message: Arc<str>,
    io_kind: Option<io::ErrorKind>,
    damage: bool,
}

impl Fault {
    /// The kind of the operating system's error, where that was the cause.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.io_kind
    }

    /// Whether the file itself is wrong, as opposed to the system refusing to read or write it.
    pub(crate) fn is_damage(&self) -> bool {
        self.damage
    }

    pub(crate) fn damage(message: impl Into<Arc<str>>) -> Self {
        Self { message: message.into(), io_kind: None, damage: true }
    }

    pub(crate) fn refusal(message: impl Into<Arc<str>>) -> Self {
        Self { message: message.into(), io_kind: None, damage: false }
    }

    pub(crate) fn io(error: &io::Error) -> Self {
        // A short or malformed file reads as one of these; everything else is the system's refusal.
        let damage = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
        );
        Self { message: error.to_string().into(), io_kind: Some(error.kind()), damage }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        use redb::Error::{DatabaseClosed, Io, LockPoisoned, PreviousIo};
        match error {
            Io(io) => Self::io(&io),
            // These say that an engine is closed or refuses because of an earlier error; the file may be well.
            PreviousIo | DatabaseClosed | LockPoisoned(_) => Self::refusal(error.to_string()),
            error => Self::damage(error.to_string()),
        }
    }
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::from(redb::Error::from(error))
            }
        }
    )*};
}
from_redb!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        match error {
            // An index is cheap to replace, so every error that replacing would cure counts as damage: a missing blob, a
            // short file, a lock that a dead thread holds.
            sled::Error::Io(io) => Self { damage: !is_refusal(io.kind()), ..Self::io(&io) },
            error => Self::damage(error.to_string()),
        }
    }
}

/// Whether the system would refuse an empty file just as well.
fn is_refusal(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::OutOfMemory
    )
}

/// Runs `work`, turning a panic of a storage engine into a [`Fault`].
///
/// Both engines panic on some damaged files. A damaged file comes from outside, so it must not take the node down.
pub(crate) fn guarded<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<T, Fault>
where
    Fault: From<E>,
{
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Fault::from),
        Err(panic) => Err(Fault::damage(format!("the storage engine panicked: {}", panic_message(&*panic)))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
