//! Plain lines, for pipes and logs: the format of BuildKit's plain progress, so that scripts that
//! read it keep working: `#N name`, `#N 0.123 log line`, `#N CACHED`, `#N DONE 1.2s`, `#N ERROR: …`.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use super::{End, LineBuffer, Stream, Task, View, printable};
use crate::explain::details;
use crate::history::Why;

/// The plain view.
pub(super) struct Plain {
    out: Box<dyn Write + Send>,
    open: BTreeMap<usize, Open>,
    /// Whose lines came last; a blank line and the name show a change.
    current: Option<usize>,
}

struct Open {
    since: Instant,
    out: LineBuffer,
    err: LineBuffer,
}

impl Plain {
    pub(super) fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out, open: BTreeMap::new(), current: None }
    }

    /// Prints a line of a task, under its name where another task was shown last.
    fn line(&mut self, task: &Task, text: &str) {
        let mut lines = String::new();
        if self.current != Some(task.number) {
            if self.current.is_some() {
                lines.push('\n');
            }
            lines.push_str(&format!("#{} {}\n", task.number, task.name));
            self.current = Some(task.number);
        }
        if !text.is_empty() {
            lines.push_str(&format!("#{} {text}\n", task.number));
        }
        self.write(&lines);
    }

    /// A view that cannot write has nobody to tell; the build goes on without it.
    fn write(&mut self, text: &str) {
        let written = self.out.write_all(text.as_bytes());
        if written.is_err() {
            self.out = Box::new(std::io::sink());
        }
    }
}

impl View for Plain {
    fn started(&mut self, task: &Task) {
        let open =
            Open { since: Instant::now(), out: LineBuffer::default(), err: LineBuffer::default() };
        self.open.insert(task.number, open);
        self.line(task, "");
    }

    fn log(&mut self, task: &Task, stream: Stream, data: &[u8]) {
        let Some(open) = self.open.get_mut(&task.number) else { return };
        let at = open.since.elapsed().as_secs_f64();
        let buffer = if stream == Stream::Out { &mut open.out } else { &mut open.err };
        let mut lines = Vec::new();
        buffer.push(data, |line| lines.push(format!("{at:.3} {line}")));
        for line in lines {
            self.line(task, &line);
        }
    }

    fn missed(&mut self, task: &Task, why: &Why, full: bool) {
        self.line(task, &format!("not cached: {}", printable(why.line.as_bytes())));
        for line in details(why).iter().filter(|_| full) {
            self.line(task, &format!("  {}", printable(line.as_bytes())));
        }
    }

    fn status(&mut self, task: &Task, text: &str) {
        self.line(task, text);
    }

    fn ended(&mut self, task: &Task, end: &End) {
        if let Some(mut open) = self.open.remove(&task.number) {
            let at = open.since.elapsed().as_secs_f64();
            let mut lines = Vec::new();
            for buffer in [&mut open.out, &mut open.err] {
                buffer.flush(|line| lines.push(format!("{at:.3} {line}")));
            }
            for line in lines {
                self.line(task, &line);
            }
        }
        let text = match end {
            End::Cached => "CACHED".to_owned(),
            End::Done(time) => format!("DONE {:.1}s", time.as_secs_f64()),
            End::Unchanged(time) => format!("DONE {:.1}s (unchanged)", time.as_secs_f64()),
            End::Failed(error) => format!("ERROR: {error}"),
            End::Cancelled => "CANCELED".to_owned(),
        };
        self.line(task, &text);
    }

    fn warning(&mut self, text: &str) {
        self.write(&format!("warning: {}\n", printable(text.as_bytes())));
    }

    fn finish(&mut self) {
        if self.out.flush().is_err() {
            self.out = Box::new(std::io::sink());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::super::{End, Stream, Task, View};
    use super::Plain;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(data)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn reads_like_buildkit() {
        let shared = Shared::default();
        let mut view = Plain::new(Box::new(shared.clone()));
        let one = Task { number: 1, name: "[1/2] RUN a".into() };
        let two = Task { number: 2, name: "[2/2] RUN b".into() };
        view.ended(&one, &End::Cached);
        view.started(&two);
        view.log(&two, Stream::Out, b"hal");
        view.log(&two, Stream::Err, b"warn\n");
        view.log(&two, Stream::Out, b"lo\nrest");
        view.ended(&two, &End::Done(Duration::from_millis(1240)));
        let text =
            String::from_utf8(shared.0.lock().expect("not poisoned").clone()).expect("UTF-8");
        let stable = text
            .lines()
            .map(|line| {
                let mut words = line.splitn(3, ' ').map(str::to_owned).collect::<Vec<_>>();
                if words.len() == 3 && words[1].contains('.') && !words[2].ends_with('s') {
                    words[1] = "TIME".into();
                }
                words.join(" ")
            })
            .collect::<Vec<_>>()
            .join("\n");
        assert_eq!(
            stable,
            "#1 [1/2] RUN a\n#1 CACHED\n\n#2 [2/2] RUN b\n#2 TIME warn\n#2 TIME hallo\n#2 TIME rest\n#2 DONE 1.2s"
        );
    }
}
