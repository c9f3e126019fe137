//! When to try again, and how long to wait: back-off with jitter on what is likely to pass.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::http::HeaderMap;

/// Longest wait of our own.
const LONGEST: Duration = Duration::from_secs(30);

/// Longest wait that a registry may ask for with `Retry-After`, once and in all.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// How often, and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Attempts in all.
    pub attempts: u32,
    /// Wait after the first one; every further one doubles it.
    pub first_wait: Duration,
    /// After so long nothing more is tried where nobody answers.
    pub patience: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_millis(250),
            patience: Duration::from_secs(30),
        }
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
        Some(asked.map_or(wait, |asked| asked.min(LONGEST_ASKED).max(wait)))
    }

    /// [`Self::wait`] after an answer that asks to come again, `begun` ago.
    #[must_use]
    pub fn wait_as_asked(
        &self,
        attempt: u32,
        headers: &HeaderMap,
        begun: Duration,
    ) -> Option<Duration> {
        let wait = self.wait(attempt, asked_wait(headers, SystemTime::now()))?;
        Some(wait).filter(|wait| begun.saturating_add(*wait) <= LONGEST_ASKED)
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

/// The wait that an answer asks for: `Retry-After` in seconds or with a date (RFC 9110, 10.2.3).
fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let date = UNIX_EPOCH + Duration::from_secs(u64::try_from(date.timestamp().as_second()).ok()?);
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let first_wait = Duration::from_millis(100);
        let policy = Policy { attempts: 3, first_wait, ..Policy::default() };
        for (attempt, low, high) in [(1, 50, 100), (2, 100, 200)] {
            let wait = policy.wait(attempt, None).unwrap().as_millis();
            assert!((low..=high).contains(&wait), "{attempt}: {wait}");
        }
        assert_eq!(policy.wait(3, None), None);
        let asked = policy.wait(1, Some(Duration::from_secs(7)));
        assert_eq!(asked, Some(Duration::from_secs(7)));
        assert_eq!(policy.wait(1, Some(Duration::from_secs(9999))), Some(LONGEST_ASKED));
    }

    #[test]
    fn registries_say_when_to_come_again() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, expect) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
            ("99999999999999999999999", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            assert_eq!(asked_wait(&headers, now), expect.map(Duration::from_secs), "{text}");
            let wait = Policy::default().wait_as_asked(1, &headers, Duration::ZERO);
            assert!(wait.is_some(), "{text}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "200".parse().unwrap());
        let late = Policy::default().wait_as_asked(2, &headers, Duration::from_secs(150));
        assert_eq!(late, None, "no registry makes a build wait for ever");
    }
}
