//! Ctrl-C and SIGTERM: the first asks the build to stop cleanly, a second ends the program at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::exit::Exit;

/// Lets writes beyond the caller's limit for file sizes fail, so that they can be told: by default
/// their signal ends the process (setrlimit(2), RLIMIT_FSIZE). Steps have the default again.
///
/// # Errors
/// The handler cannot be installed.
pub(crate) fn outlive_file_limits() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// Calls `stop` on the first SIGINT, SIGTERM or SIGHUP, from a thread of its own. The second one
/// ends the process with the signal's usual exit code; what it leaves is swept by the next build.
///
/// # Errors
/// The handler cannot be installed.
pub(crate) fn on_interrupt(stop: impl FnOnce() + Send + 'static) -> io::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register_conditional_shutdown(
        SIGINT,
        i32::from(Exit::Interrupted.number()),
        Arc::clone(&interrupted),
    )?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let seen = Arc::clone(&interrupted);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            seen.store(true, Ordering::SeqCst);
            stop();
        }
    })?;
    Ok(interrupted)
}
