//! What earlier builds of the same project say about a step that runs: under which keys it was built
//! before, and which images it started from.

use std::path::Path;
use std::sync::OnceLock;

use kiln_cache::{Key, Store};
use kiln_parser::graph::Step;

use super::{Build, Document};

/// So many earlier builds are looked at.
const BUILDS: usize = 10;

/// The project's earlier builds, read when somebody asks.
pub(crate) struct Past<'a> {
    store: &'a Store,
    project: [u8; 32],
    builds: OnceLock<Vec<Document>>,
}

/// Identity of what is built: where the context and the Dockerfile are.
pub(super) fn project(head: &Document) -> [u8; 32] {
    let place = |text: &str| {
        let path = std::fs::canonicalize(text).ok();
        path.map_or_else(|| text.to_owned(), |path| path.display().to_string())
    };
    let context = place(&head.context);
    // Without `--file` it is the one in the context.
    let file = if head.file.is_empty() { String::new() } else { place(&head.file) };
    let default = Path::new(&context).join("Dockerfile").display().to_string();
    let file = if file.is_empty() { default } else { file };
    *blake3::hash(format!("{context}\n{file}").as_bytes()).as_bytes()
}

impl<'a> Past<'a> {
    pub(crate) fn new(store: &'a Store, project: [u8; 32]) -> Self {
        Self { store, project, builds: OnceLock::new() }
    }

    fn builds(&self) -> &[Document] {
        self.builds.get_or_init(|| {
            // A history that cannot be read explains less, no more.
            let rows = self.store.builds(Some(&self.project), BUILDS).unwrap_or_default();
            rows.into_iter().map(|row| Build::read(row).document).collect()
        })
    }

    /// Keys of the same instruction, newest first; then of what stood in its place.
    pub(crate) fn keys(&self, step: &Step) -> Vec<Key> {
        let steps = || self.builds().iter().flat_map(|build| &build.steps);
        let same = steps().filter(|old| old.stage == step.stage && old.text == step.text);
        let place = self::place(&step.label);
        let there = steps().filter(|old| {
            self::place(&old.name) == place && keyword(&old.text) == keyword(&step.text)
        });
        same.chain(there).filter_map(|old| old.key.parse().ok()).collect()
    }

    /// The digest that an image had the last time, if that was another one.
    pub(crate) fn other_digest(&self, image: &str, digest: &str) -> Option<&str> {
        let mut digests = self.builds().iter().filter_map(|build| build.images.get(image));
        digests.next().map(String::as_str).filter(|old| *old != digest)
    }
}

/// `[build 2/` of `[build 2/5] RUN make`: a stage that grew has other totals.
fn place(label: &str) -> &str {
    label.find('/').map_or("", |at| &label[..at])
}

fn keyword(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use kiln_cache::{Key, Store};
    use kiln_parser::graph::Step;
    use kiln_parser::source::Span;

    use super::super::{Current, Document, StepDocument};
    use super::Past;

    fn step(label: &str, text: &str) -> Step {
        let (label, text) = (label.to_owned(), text.to_owned());
        Step { label, text, stage: "build".to_owned(), span: Span::default() }
    }

    fn document(name: &str, text: &str, key: u8) -> StepDocument {
        StepDocument {
            name: name.to_owned(),
            text: text.to_owned(),
            stage: "build".to_owned(),
            key: Key::from_bytes([key; 32]).hex(),
            ..StepDocument::default()
        }
    }

    #[test]
    fn the_same_step_comes_first() {
        let folder = tempfile::tempdir().expect("made");
        let store = Store::open(folder.path()).expect("opened");
        let images = [("a:1".to_owned(), "sha256:1".to_owned())].into();
        let steps = vec![
            document("[build 1/2] RUN a", "RUN a", 1),
            document("[build 2/2] RUN b", "RUN b", 2),
        ];
        let head = Document { images, steps, ..Document::default() };
        let build = Current::begin(head.clone());
        build.save_ended(&store, &head);
        let past = Past::new(&store, build.project);
        let keys = |label: &str, text: &str| -> Vec<u8> {
            past.keys(&step(label, text)).iter().map(|key| key.as_bytes()[0]).collect()
        };
        assert_eq!(keys("[build 1/2] RUN b", "RUN b"), [2, 1]);
        assert_eq!(keys("[build 2/3] RUN c", "RUN c"), [2]);
        assert_eq!(keys("[build 2/3] COPY c d", "COPY c d"), [] as [u8; 0]);
        assert_eq!(past.other_digest("a:1", "sha256:2"), Some("sha256:1"));
        assert_eq!(past.other_digest("a:1", "sha256:1"), None);
        assert_eq!(past.other_digest("b:1", "sha256:1"), None);
    }
}
