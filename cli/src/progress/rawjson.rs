//! One JSON document a line, for programs: `{"task":2,"event":"log",…}`. Fields are only ever added.

use std::io::Write;

use serde_json::{Value, json};

use super::{End, Stream, Task, View};
use crate::history::Why;

/// The view for programs.
pub(super) struct RawJson {
    out: Box<dyn Write + Send>,
}

impl RawJson {
    pub(super) fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out }
    }

    fn emit(&mut self, document: &Value) {
        if writeln!(self.out, "{document}").is_err() {
            self.out = Box::new(std::io::sink());
        }
    }
}

impl View for RawJson {
    fn started(&mut self, task: &Task) {
        self.emit(&json!({"event": "started", "task": task.number, "name": task.name}));
    }

    fn log(&mut self, task: &Task, stream: Stream, data: &[u8]) {
        let stream = if stream == Stream::Out { "stdout" } else { "stderr" };
        let data = String::from_utf8_lossy(data);
        self.emit(&json!({"event": "log", "task": task.number, "stream": stream, "data": data}));
    }

    fn missed(&mut self, task: &Task, why: &Why, _: bool) {
        let mut document = json!({"event": "missed", "task": task.number, "why": why.line});
        document["differences"] = json!(why.differences);
        if let Some(files) = &why.files {
            document["files"] = json!(files);
        }
        self.emit(&document);
    }

    fn status(&mut self, task: &Task, text: &str) {
        self.emit(&json!({"event": "status", "task": task.number, "text": text}));
    }

    fn ended(&mut self, task: &Task, end: &End) {
        let mut document = json!({"event": "ended", "task": task.number, "name": task.name});
        match end {
            End::Cached => document["result"] = "cached".into(),
            End::Cancelled => document["result"] = "cancelled".into(),
            End::Done(time) => {
                document["result"] = "done".into();
                document["seconds"] = time.as_secs_f64().into();
            }
            End::Unchanged(time) => {
                document["result"] = "unchanged".into();
                document["seconds"] = time.as_secs_f64().into();
            }
            End::Failed(error) => {
                document["result"] = "failed".into();
                document["error"] = error.as_str().into();
            }
        }
        self.emit(&document);
    }

    fn warning(&mut self, text: &str) {
        self.emit(&json!({"event": "warning", "text": text}));
    }

    fn finish(&mut self) {
        if self.out.flush().is_err() {
            self.out = Box::new(std::io::sink());
        }
    }
}
