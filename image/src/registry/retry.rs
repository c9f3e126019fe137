//! When to try again, and how long to wait: back-off with jitter on what is likely to pass.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::http::HeaderMap;

/// Longest wait that a registry may ask for with `Retry-After`.
const LONGEST: Duration = Duration::from_secs(30);

/// How often, and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all.
    pub attempts: u32,
    /// Wait after the first one; every further one doubles it.
    pub first_wait: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { attempts: 5, first_wait: Duration::from_millis(250) }
    }
}

impl Policy {
    /// The wait after attempt `attempt` (from 1), between half and all of the full back-off, so that
    /// many clients do not come back at once; none when there shall be no other attempt.
    #[must_use]
    pub fn wait(&self, attempt: u32, asked: Option<Duration>) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let full = self.first_wait.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST);
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let share = f64::from(clock.subsec_nanos() % 1000) / 2000.0;
        let wait = full.mul_f64(0.5 + share);
        Some(asked.map_or(wait, |asked| asked.min(LONGEST).max(wait)))
    }
}

/// Whether a status is likely to pass.
#[must_use]
pub fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// Whether an error is likely to pass: a broken or silent connection, but not a refused one, a name
/// that does not exist or a certificate that is not trusted.
#[must_use]
pub fn is_transient_error(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => is_transient_io(error),
        // The connection closed within the head of an answer.
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

/// Whether an error while reading is likely to pass.
#[must_use]
pub fn is_transient_io(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    if let Some(inner) = error.get_ref().and_then(|e| e.downcast_ref::<ureq::Error>()) {
        return is_transient_error(inner);
    }
    matches!(
        error.kind(),
        Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::BrokenPipe
            | Kind::UnexpectedEof
            | Kind::TimedOut
            | Kind::WouldBlock
            | Kind::NetworkUnreachable
            | Kind::HostUnreachable
    )
}

/// The wait that an answer asks for, in seconds; the form with a date is not honoured.
#[must_use]
pub fn asked_wait(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let policy = Policy { attempts: 3, first_wait: Duration::from_millis(100) };
        for (attempt, low, high) in [(1, 50, 100), (2, 100, 200)] {
            let wait = policy.wait(attempt, None).unwrap().as_millis();
            assert!((low..=high).contains(&wait), "{attempt}: {wait}");
        }
        assert_eq!(policy.wait(3, None), None);
        let asked = policy.wait(1, Some(Duration::from_secs(7)));
        assert_eq!(asked, Some(Duration::from_secs(7)));
        assert_eq!(policy.wait(1, Some(Duration::from_secs(9999))), Some(LONGEST));
    }
}
