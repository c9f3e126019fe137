//! The view on a terminal: a line for every finished task, and below them the running ones with a
//! clock and the last line of their output. A failed task leaves its last lines behind.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{End, LineBuffer, Stream, Task, View, printable, seconds};
use crate::explain::details;
use crate::history::Why;

/// How many of a failing command's last lines are shown.
const TAIL_LINES: usize = 20;

/// The live view.
pub(super) struct Live {
    screen: MultiProgress,
    running: BTreeMap<usize, Running>,
}

struct Running {
    bar: ProgressBar,
    out: LineBuffer,
    err: LineBuffer,
    tail: VecDeque<String>,
    /// Why it was not cached.
    why: String,
}

impl Live {
    pub(super) fn new() -> Self {
        Self { screen: MultiProgress::new(), running: BTreeMap::new() }
    }

    /// Prints above the running tasks. A terminal that is gone cannot be told anything.
    fn print(&self, line: &str) {
        if self.screen.println(line).is_err() {
            self.screen.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
    }
}

impl Running {
    fn keep(&mut self, line: &str) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
    }
}

impl View for Live {
    fn started(&mut self, task: &Task) {
        let style =
            ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim}  {wide_msg:.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = self.screen.add(ProgressBar::new_spinner().with_style(style));
        bar.set_prefix(task.name.clone());
        bar.enable_steady_tick(Duration::from_millis(100));
        let running = Running {
            bar,
            out: LineBuffer::default(),
            err: LineBuffer::default(),
            tail: VecDeque::new(),
            why: String::new(),
        };
        self.running.insert(task.number, running);
    }

    fn log(&mut self, task: &Task, stream: Stream, data: &[u8]) {
        let Some(running) = self.running.get_mut(&task.number) else { return };
        let mut lines = Vec::new();
        let buffer = if stream == Stream::Out { &mut running.out } else { &mut running.err };
        buffer.push(data, |line| lines.push(line.to_owned()));
        for line in &lines {
            running.keep(line);
        }
        if let Some(last) = lines.last() {
            running.bar.set_message(last.clone());
        }
    }

    fn missed(&mut self, task: &Task, why: &Why, full: bool) {
        if let Some(running) = self.running.get_mut(&task.number) {
            running.why = format!("  ({})", printable(why.line.as_bytes()));
        }
        for line in details(why).iter().filter(|_| full) {
            self.print(&format!("  {}: {}", task.name, printable(line.as_bytes())));
        }
    }

    fn status(&mut self, task: &Task, text: &str) {
        if let Some(running) = self.running.get(&task.number) {
            running.bar.set_message(text.to_owned());
        }
    }

    fn ended(&mut self, task: &Task, end: &End) {
        let running = self.running.remove(&task.number);
        if let Some(running) = &running {
            running.bar.finish_and_clear();
            self.screen.remove(&running.bar);
        }
        let why = running.as_ref().map(|running| running.why.clone()).unwrap_or_default();
        match end {
            End::Cached => self.print(&format!("= {} (cached)", task.name)),
            End::Done(time) => self.print(&format!("✔ {} {}{why}", task.name, seconds(*time))),
            End::Unchanged(time) => {
                self.print(&format!("✔ {} {} (unchanged){why}", task.name, seconds(*time)));
            }
            End::Cancelled => self.print(&format!("- {} (canceled)", task.name)),
            End::Failed(_) => {
                self.print(&format!("✘ {}", task.name));
                let Some(mut running) = running else { return };
                let mut rest = Vec::new();
                running.out.flush(|line| rest.push(line.to_owned()));
                running.err.flush(|line| rest.push(line.to_owned()));
                for line in running.tail.iter().chain(&rest) {
                    self.print(&format!("  {line}"));
                }
            }
        }
    }

    fn warning(&mut self, text: &str) {
        self.print(&format!("warning: {}", printable(text.as_bytes())));
    }

    fn finish(&mut self) {
        if self.screen.clear().is_err() {
            self.screen.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
    }
}
