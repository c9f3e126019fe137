//! How a build is shown while it runs. A view gets typed happenings; it never decides anything.
//! All views write to standard error: standard output carries only data.

mod live;
mod plain;
mod rawjson;

use std::io::IsTerminal;
use std::time::Duration;

use crate::build::options::ProgressMode;
use crate::history::Why;

/// One thing that is worth a line of its own: a step of the Dockerfile, a pull, an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    /// `#N` in the plain output; unique in a build, from 1.
    pub(crate) number: usize,
    /// What is done, such as `[build 2/5] RUN make`.
    pub(crate) name: String,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its result was in the store.
    Cached,
    /// It was done.
    Done(Duration),
    /// It was done again and made the same files as before.
    Unchanged(Duration),
    /// It failed.
    Failed(String),
    /// It was stopped because something else failed or the user asked.
    Cancelled,
}

/// Which stream of a command a log line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Something that shows a build.
pub(crate) trait View: Send {
    /// A task begins.
    fn started(&mut self, task: &Task);
    /// A task's command wrote something; `data` may hold partial lines.
    fn log(&mut self, task: &Task, stream: Stream, data: &[u8]);
    /// Why a task that was started was not cached; `full` where all of it was asked for.
    fn missed(&mut self, task: &Task, why: &Why, full: bool);
    /// A task says how far it is, in one short line.
    fn status(&mut self, task: &Task, text: &str);
    /// A task is over. A cached task was never started.
    fn ended(&mut self, task: &Task, end: &End);
    /// Something that the build goes on with, but people should know.
    fn warning(&mut self, text: &str);
    /// The build is over; nothing is shown afterwards.
    fn finish(&mut self);
}

/// The view that the user asked for.
pub(crate) fn view(mode: ProgressMode, quiet: bool) -> Box<dyn View> {
    let mode = if quiet { ProgressMode::Quiet } else { mode };
    match mode {
        ProgressMode::Auto if std::io::stderr().is_terminal() => Box::new(live::Live::new()),
        ProgressMode::Tty => Box::new(live::Live::new()),
        ProgressMode::Auto | ProgressMode::Plain => {
            Box::new(plain::Plain::new(std::io::stderr().lock_free()))
        }
        ProgressMode::Quiet | ProgressMode::None => Box::new(Nothing),
        ProgressMode::Rawjson => Box::new(rawjson::RawJson::new(std::io::stderr().lock_free())),
    }
}

/// A writer that takes the lock of standard error for each write only, so that an error of another
/// thread is not blocked.
trait LockFree {
    fn lock_free(self) -> Box<dyn std::io::Write + Send>;
}

impl LockFree for std::io::Stderr {
    fn lock_free(self) -> Box<dyn std::io::Write + Send> {
        Box::new(self)
    }
}

/// Shows nothing but warnings: `--progress=quiet`.
struct Nothing;

impl View for Nothing {
    fn started(&mut self, _: &Task) {}
    fn log(&mut self, _: &Task, _: Stream, _: &[u8]) {}
    fn missed(&mut self, _: &Task, _: &Why, _: bool) {}
    fn status(&mut self, _: &Task, _: &str) {}
    fn ended(&mut self, _: &Task, _: &End) {}
    fn warning(&mut self, text: &str) {
        crate::command::print_error(&format!("warning: {}\n", printable(text.as_bytes())));
    }
    fn finish(&mut self) {}
}

/// Cuts a byte stream into lines, one buffer a stream, so that a view prints whole lines only.
#[derive(Debug, Default)]
struct LineBuffer {
    rest: Vec<u8>,
}

impl LineBuffer {
    /// Calls `each` for every line that `data` completes, without its line end.
    fn push(&mut self, data: &[u8], mut each: impl FnMut(&str)) {
        self.rest.extend_from_slice(data);
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else { return };
        let tail = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, tail);
        for line in lines[..end].split(|&byte| byte == b'\n') {
            each(&printable(line));
        }
    }

    /// Calls `each` for what is left without a line end.
    fn flush(&mut self, mut each: impl FnMut(&str)) {
        if !self.rest.is_empty() {
            each(&printable(&std::mem::take(&mut self.rest)));
        }
    }
}

/// A line of a command's output as it may be shown: what a carriage return overwrote is left out,
/// and control characters are taken away (a hostile step must not steer the user's terminal; only
/// colours, `ESC [ … m`, stay).
pub(crate) fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    let text = text.rsplit('\r').next().unwrap_or(text);
    let mut shown = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                let rest = chars.as_str();
                if let Some(length) = colour_length(rest) {
                    shown.push(c);
                    shown.push_str(&rest[..length]);
                    chars = rest[length..].chars();
                }
            }
            '\t' => shown.push(c),
            c if c.is_control() => {}
            c => shown.push(c),
        }
    }
    shown
}

/// The length of `[…m` at the start, where it is a colour sequence (ECMA-48 SGR).
fn colour_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix('[')?;
    let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
    parameters[end..].starts_with('m').then_some(end + 2)
}

/// `0.4s`, `12.3s`, `2m05s`.
fn seconds(duration: Duration) -> String {
    let all = duration.as_secs_f64();
    if all < 60.0 {
        format!("{all:.1}s")
    } else {
        format!("{}m{:02}s", duration.as_secs() / 60, duration.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LineBuffer, printable, seconds};

    #[test]
    fn lines_are_whole() {
        let mut buffer = LineBuffer::default();
        let mut lines = Vec::new();
        buffer.push(b"a\nb", |line| lines.push(line.to_owned()));
        buffer.push(b"c\n\nd", |line| lines.push(line.to_owned()));
        buffer.flush(|line| lines.push(line.to_owned()));
        assert_eq!(lines, ["a", "bc", "", "d"]);
    }

    #[test]
    fn output_cannot_steer_the_terminal() {
        for (line, shown) in [
            (&b"10%\r50%\r100%"[..], "100%"),
            (b"done\r", "done"),
            (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            (b"\x1b[2Jgone", "[2Jgone"),
            (b"\x1b]0;title\x07x", "]0;titlex"),
            (b"bell\x07", "bell"),
            (b"caf\xc3\xa9 \xff", "café \u{fffd}"),
        ] {
            assert_eq!(printable(line), shown);
        }
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(seconds(Duration::from_millis(440)), "0.4s");
        assert_eq!(seconds(Duration::from_secs(125)), "2m05s");
    }
}
