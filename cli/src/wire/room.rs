//! Room in the store, made before something is written: quotas are kept by builds themselves.
//!
//! A step asks before it begins, with what it wrote the last time; a download with what it will bring. Most of the time
//! that is a subtraction: how much may be written is asked of the store now and then.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_cache::{PruneOptions, Store, StoreError};

use crate::gc::{self, GcConfig};

/// For so long what the store said is believed: other builds write as well.
const BELIEVED: Duration = Duration::from_secs(2);

/// The quotas of a build's store.
pub(crate) struct Room {
    store: Store,
    config: Option<GcConfig>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Read when the first step wants to write.
    policies: Option<Vec<PruneOptions>>,
    /// How many more bytes may be written, and when the store said so; `None` without limits.
    left: Option<(Option<u64>, Instant)>,
}

impl Room {
    pub(crate) fn new(store: &Store, config: Option<&GcConfig>) -> Self {
        Self { store: store.clone(), config: config.cloned(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before so many bytes are written, as far as anybody knows: what has to go for them goes. When there is nothing
    /// left to go, the build goes on all the same.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn want(&self, bytes: u64) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.policies.is_none() {
            // The configuration has been checked when it was read.
            let policies = gc::policies(self.config.as_ref(), &self.store);
            state.policies = Some(policies.unwrap_or_default());
        }
        let State { policies: Some(policies), left } = &mut *state else { return Ok(()) };
        let stale = left.is_none_or(|(_, asked)| asked.elapsed() > BELIEVED);
        let asked = match left {
            Some((known, _)) if !stale => *known,
            _ => self.store.room(policies)?,
        };
        let mut room = asked;
        if room.is_some_and(|room| room < bytes || room == 0) {
            self.store.make_room(policies, bytes)?;
            room = self.store.room(policies)?;
        }
        let time = left.filter(|_| !stale && room == asked).map_or_else(Instant::now, |(_, at)| at);
        *left = Some((room.map(|room| room.saturating_sub(bytes)), time));
        Ok(())
    }

    /// At the end of a build, when all is told and nothing of it is held any more. Costs nothing where no step wrote.
    /// What fails here is tried again by the next build.
    pub(crate) fn tidy(&self) {
        let state = self.state();
        if let Some(policies) = state.policies.as_ref().filter(|policies| !policies.is_empty()) {
            let _next_time = self.store.collect_garbage(policies);
        }
    }
}
