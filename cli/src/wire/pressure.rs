//! When the next step may start: as many as there are processors is too many for a machine whose memory is
//! nearly used up. One step always runs.

use std::fs;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_executor::cancel::Cancel;

/// Free memory below which nothing more starts: this part of all there is.
const FREE_PART: u64 = 16;

/// Share of the last ten seconds in which some process waited for memory, in percent
/// (kernel documentation, "PSI - Pressure Stall Information").
const STALLED_PERCENT: f64 = 20.0;

/// How often a waiting step looks again.
const LOOK: Duration = Duration::from_millis(250);

/// Steps that run in this process.
static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// A step that was let start; the next may look when it ends.
#[derive(Debug)]
pub(crate) struct Started;

/// Waits until the machine has room for one more step, or the build is stopped.
pub(crate) fn wait(cancel: &Cancel) -> Started {
    let mut running = lock();
    while *running > 0 && !cancel.is_cancelled() && is_tight() {
        let waited = ENDED.wait_timeout(running, LOOK);
        running = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
    *running += 1;
    Started
}

impl Drop for Started {
    fn drop(&mut self) {
        *lock() -= 1;
        ENDED.notify_all();
    }
}

fn lock() -> MutexGuard<'static, usize> {
    // The number is changed in single statements, so a panic elsewhere leaves it right.
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine that does not tell is not tight.
fn is_tight() -> bool {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    is_short(&read("/proc/meminfo")) || is_stalled(&read("/proc/pressure/memory"))
}

/// By the lines of /proc/meminfo (proc(5)).
fn is_short(text: &str) -> bool {
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    match (kib("MemAvailable"), kib("MemTotal")) {
        (Some(free), Some(all)) => free < all / FREE_PART,
        _ => false,
    }
}

/// By the first line of /proc/pressure/memory.
fn is_stalled(text: &str) -> bool {
    text.lines()
        .find_map(|line| line.strip_prefix("some avg10="))
        .and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok())
        .is_some_and(|percent| percent > STALLED_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::{is_short, is_stalled};

    #[test]
    fn tight_machines_are_seen() {
        let memory =
            |free: u32| format!("MemTotal: 16000 kB\nMemFree: 1 kB\nMemAvailable: {free} kB\n");
        assert!(is_short(&memory(999)) && !is_short(&memory(1000)));
        assert!(!is_short("") && !is_stalled(""));
        let pressure =
            |share: &str| format!("some avg10={share} avg60=0.00 total=1\nfull avg10=90.00\n");
        assert!(is_stalled(&pressure("20.01")) && !is_stalled(&pressure("0.00")));
    }
}
