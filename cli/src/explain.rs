//! Why a step ran, for people: one line, in the words of the Dockerfile.

use std::collections::BTreeSet;
use std::path::Path;

use kiln_parser::graph::{CopyFrom, Graph, ImageName, Input, NodeId, Op};
use kiln_solver::explain::{Difference, FileChanges, Miss, Reason};

use crate::history::{Differs, Files, Past, Why};

/// So many reasons stand in a line.
const REASONS: usize = 3;

/// What a miss is told with.
pub(crate) struct Teller<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) past: &'a Past<'a>,
    /// Names that ARG declares, and not ENV.
    pub(crate) arguments: &'a BTreeSet<String>,
}

impl Teller<'_> {
    /// A miss as it is kept.
    pub(crate) fn why(&self, id: NodeId, miss: &Miss) -> Why {
        Why {
            line: self.line(id, miss),
            differences: miss.differences.iter().map(differs).collect(),
            files: miss.files.as_ref().map(|files| self.files(id, files)),
        }
    }

    fn line(&self, id: NodeId, miss: &Miss) -> String {
        match miss.reason {
            Reason::Asked => "--no-cache".to_owned(),
            Reason::Never => "never built here".to_owned(),
            Reason::Gone => "its result is not in the store any more".to_owned(),
            Reason::Pruned { time } => format!("pruned {}", crate::command::ago(time)),
            Reason::Differs => self.reasons(id, miss),
        }
    }

    fn reasons(&self, id: NodeId, miss: &Miss) -> String {
        let mut told: Vec<String> = Vec::new();
        for difference in &miss.differences {
            let reason = self.reason(id, difference, miss.files.as_ref());
            if !told.contains(&reason) {
                told.push(reason);
            }
        }
        let more = told.len().saturating_sub(REASONS);
        told.truncate(REASONS);
        let mut line = told.join(", ");
        if more > 0 {
            line.push_str(&format!(" and {more} more"));
        }
        line
    }

    fn reason(&self, id: NodeId, difference: &Difference, files: Option<&FileChanges>) -> String {
        let part = difference.part.as_str();
        let (name, rest) = part.split_once(' ').unwrap_or((part, ""));
        let how = match (&difference.before, &difference.after) {
            (None, _) => "is new",
            (_, None) => "is gone",
            _ => "changed",
        };
        match (name, rest) {
            ("base", _) => self.base(id),
            ("selected", "files") => self.selected(id, files),
            ("env", variable) => {
                let kind = if self.arguments.contains(variable) { "ARG" } else { "ENV" };
                format!("{kind} {variable} {how}")
            }
            ("argument", _) => "the command changed".to_owned(),
            ("script", script) => format!("heredoc {script} {how}"),
            ("content", _) => format!("the text of a heredoc {how}"),
            ("mount", "source") => self.mount_source(id),
            ("mount", target) => format!("the mount at {target} {how}"),
            ("limit", limit) => format!("--ulimit {limit} {how}"),
            ("host", "name") => format!("the host name {how}"),
            ("host", _) => format!("--add-host {how}"),
            ("version", _) => "this version of Kiln makes other keys".to_owned(),
            ("commit", _) => "the repository has another commit".to_owned(),
            ("context" | "path" | "files" | "file", _) => format!("the list of sources {how}"),
            _ => format!("{part} {how}"),
        }
    }

    /// What a step starts from is another one: which, and for an image what it was.
    fn base(&self, id: NodeId) -> String {
        let base = match &self.graph.node(id).op {
            Op::Run(run) => run.base,
            Op::Copy(copy) => copy.base,
            Op::Mkdir(mkdir) => mkdir.base,
            Op::Image(_) | Op::Context { .. } | Op::Http(_) | Op::Git(_) => Input::Scratch,
        };
        self.input(base)
    }

    fn mount_source(&self, id: NodeId) -> String {
        let mounts = self.graph.node(id).op.inputs();
        let names: Vec<String> =
            mounts.into_iter().skip(1).map(|input| self.input(Input::Node(input))).collect();
        if names.is_empty() { "what a mount shows changed".to_owned() } else { names.join(" or ") }
    }

    fn input(&self, input: Input) -> String {
        let Input::Node(id) = input else { return "it starts from scratch now".to_owned() };
        let node = self.graph.node(id);
        let Op::Image(image) = &node.op else {
            let text = node.steps.first().map(|step| first_line(&step.text)).unwrap_or_default();
            return format!("the files of `{text}` changed");
        };
        let name = image_name(&image.key.name);
        match self.past.other_digest(name, &image.digest) {
            Some(old) => {
                format!("FROM {name}: tag moved {} -> {}", short(old), short(&image.digest))
            }
            None => format!("FROM {name}: another image than before"),
        }
    }

    fn selected(&self, id: NodeId, files: Option<&FileChanges>) -> String {
        let Some(files) = files.filter(|files| files.count() > 0) else {
            return "its files changed".to_owned();
        };
        let lists =
            [(&files.changed, "changed"), (&files.added, "is new"), (&files.removed, "is gone")];
        let first = lists.iter().find_map(|(list, how)| list.first().map(|path| (path, how)));
        let Some((path, how)) = first else { return "its files changed".to_owned() };
        let (count, total) = (files.count(), files.total);
        let noun = if total == 1 { "file" } else { "files" };
        format!(
            "{} {how}; {} of {} {noun}",
            self.source_path(id, path),
            grouped(count),
            grouped(total)
        )
    }

    /// A file of the image as it is called in the source, where there is one source alone.
    fn source_path(&self, id: NodeId, path: &Path) -> String {
        let in_image = || path.display().to_string();
        let Op::Copy(copy) = &self.graph.node(id).op else { return in_image() };
        let ([source], false) = (copy.sources.as_slice(), copy.parents) else {
            return in_image();
        };
        if !matches!(source.from, CopyFrom::Context(_)) || source.path.contains(['*', '?', '[']) {
            return in_image();
        }
        let origin = Path::new(source.path.trim_start_matches('/'));
        let Ok(below) = path.strip_prefix(copy.dest.trim_end_matches('/')) else {
            return in_image();
        };
        if below.as_os_str().is_empty() || origin.file_name() == Some(below.as_os_str()) {
            return origin.display().to_string();
        }
        origin.join(below).components().as_path().display().to_string()
    }

    fn files(&self, id: NodeId, files: &FileChanges) -> Files {
        let names = |list: &[std::path::PathBuf]| -> Vec<String> {
            list.iter().take(Files::MOST).map(|path| self.source_path(id, path)).collect()
        };
        Files {
            changed: names(&files.changed),
            added: names(&files.added),
            removed: names(&files.removed),
            count: files.count(),
            total: files.total,
        }
    }
}

/// What an image is called in the history.
pub(crate) fn image_name(name: &ImageName) -> &str {
    match name {
        ImageName::Reference(name) | ImageName::Context(name) => name,
    }
}

fn differs(difference: &Difference) -> Differs {
    let Difference { part, before, after } = difference.clone();
    Differs { part, before, after }
}

/// `sha256:` and 12 digits.
fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// `9,412`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// All of it, in lines.
pub(crate) fn details(why: &Why) -> Vec<String> {
    let mut lines = Vec::new();
    let side = |value: &Option<String>| {
        value.as_deref().map_or_else(|| "(none)".to_owned(), |text| text.replace('\n', "\\n"))
    };
    for Differs { part, before, after } in &why.differences {
        lines.push(format!("{part}: {} -> {}", side(before), side(after)));
    }
    let Some(files) = &why.files else { return lines };
    for (list, how) in [(&files.changed, "M"), (&files.added, "A"), (&files.removed, "D")] {
        lines.extend(list.iter().map(|path| format!("{how} {path}")));
    }
    let listed = files.changed.len() + files.added.len() + files.removed.len();
    if listed < files.count {
        lines.push(format!("and {} more files", grouped(files.count - listed)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{details, grouped};
    use crate::history::{Differs, Files, Why};

    #[test]
    fn numbers_have_groups() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (9412, "9,412"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn everything_is_told() {
        let difference = Differs { part: "user".into(), before: None, after: Some("a\nb".into()) };
        let files = Files {
            changed: vec!["a".into()],
            removed: vec!["b".into()],
            count: 1002,
            total: 5,
            ..Files::default()
        };
        let why = Why { line: String::new(), differences: vec![difference], files: Some(files) };
        let expect = ["user: (none) -> a\\nb", "M a", "D b", "and 1,000 more files"];
        assert_eq!(details(&why), expect);
    }
}
