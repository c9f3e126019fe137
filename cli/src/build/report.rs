//! What is told at the end: the failing step with its place in the Dockerfile, or the digests.

use std::path::Path;

use kiln_parser::diagnostic::Diagnostic;
use kiln_parser::graph::Node;
use kiln_solver::ports::{Kind, StepError};
use serde_json::json;

use super::inputs::Inputs;
use super::lowering::draw;
use super::options::BuildOptions;
use crate::failure::{Failure, remedy};
use crate::wire::export::Made;

/// How many of a failing command's last lines an error repeats.
const TAIL_LINES: usize = 20;

/// A failed step as an error: its last lines, its instruction, the reason.
pub(super) fn step_failure(
    inputs: &Inputs,
    node: &Node,
    error: &StepError,
    tail: String,
) -> Failure {
    let failure = match error.kind {
        // Whatever was being read or written.
        Kind::Input if remedy(&error.message).is_some() => Failure::environment(&error.message),
        Kind::Command | Kind::Input => Failure::input(&error.message),
        Kind::Environment => Failure::environment(&error.message),
        Kind::Cancelled => return Failure::interrupted(),
    };
    let mut excerpt = String::new();
    if error.kind == Kind::Command && !tail.trim().is_empty() {
        let lines: Vec<&str> = tail.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        excerpt.push_str("the last lines of the step:\n");
        for line in &lines[from..] {
            excerpt.push_str(&format!("  {}\n", crate::progress::printable(line.as_bytes())));
        }
        excerpt.push('\n');
    }
    if let Some(step) = node.steps.first() {
        let place = Diagnostic::error(step.span, &error.message).help_if(error.help.clone());
        excerpt.push_str(&draw(inputs, &[place]));
    }
    failure.excerpt(excerpt)
}

/// `--iidfile`, `--metadata-file`, `--quiet`.
pub(super) fn write(
    options: &BuildOptions,
    names: &[String],
    made: Option<&Made>,
) -> Result<(), Failure> {
    let Some(made) = made else { return Ok(()) };
    let id = made.config.as_ref().unwrap_or(&made.root).digest.to_string();
    if let Some(path) = &options.result.iidfile {
        put(path, id.as_bytes())?;
    }
    if let Some(path) = &options.result.metadata_file {
        let mut document = json!({
            "containerimage.descriptor": made.root,
            "containerimage.digest": made.root.digest.to_string(),
        });
        if let Some(config) = &made.config {
            document["containerimage.config.digest"] = config.digest.to_string().into();
        }
        if !names.is_empty() {
            document["image.name"] = names.join(",").into();
        }
        put(path, format!("{document:#}\n").as_bytes())?;
    }
    if options.execution.quiet {
        crate::command::print(&format!("{id}\n"))?;
    }
    Ok(())
}

/// Written whole or not at all.
fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |e: &std::io::Error| Failure::io("write", path.display(), e);
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| failed(&e))?;
    std::io::Write::write_all(&mut file, bytes).map_err(|e| failed(&e))?;
    file.persist(path).map_err(|e| failed(&e.error))?;
    Ok(())
}
