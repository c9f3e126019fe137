//! A wish to stop, seen by threads and by `poll(2)`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Shared by all steps of a build; clones are the same wish.
#[derive(Clone, Debug)]
pub struct Cancel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    asked: AtomicBool,
    /// Readable once asked, and ever after.
    event: OwnedFd,
}

impl Cancel {
    /// A wish that nobody had yet.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { inner: Arc::new(Inner { asked: AtomicBool::new(false), event }) })
    }

    /// Asks everything to stop.
    pub fn cancel(&self) {
        self.inner.asked.store(true, Ordering::SeqCst);
        // A counter that is full is readable as well, which is all that counts.
        let _written = rustix::io::write(&self.inner.event, &1u64.to_ne_bytes());
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.inner.asked.load(Ordering::SeqCst)
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }
}
