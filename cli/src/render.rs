//! Diagnostics as people read them: `Dockerfile:12:8`, the source line with the place underlined,
//! the reason, and what to do.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use kiln_parser::diagnostic::{Diagnostic, Severity};
use kiln_parser::source::Source;

/// Draws diagnostics, one below the other. Colours only where `styled`.
pub(crate) fn diagnostics(source: &Source, diagnostics: &[Diagnostic], styled: bool) -> String {
    let renderer = if styled { Renderer::styled() } else { Renderer::plain() };
    let drawn: Vec<String> =
        diagnostics.iter().map(|diagnostic| draw(&renderer, source, diagnostic)).collect();
    drawn.join("\n\n")
}

fn draw(renderer: &Renderer, source: &Source, diagnostic: &Diagnostic) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let title = level.primary_title(diagnostic.message.as_str());
    let title = match diagnostic.severity {
        Severity::Error => title,
        Severity::Warning => title.id(diagnostic.code),
    };
    let mut group = annotate_snippets::Group::with_title(title);
    if let Some(span) = diagnostic.span {
        let mut snippet = Snippet::source(source.text()).path(source.name());
        snippet = snippet.annotation(AnnotationKind::Primary.span(span.range()));
        for label in &diagnostic.labels {
            snippet = snippet.annotation(
                AnnotationKind::Context.span(label.span.range()).label(label.text.as_str()),
            );
        }
        group = group.element(snippet);
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    renderer.render(&[group]).to_string()
}
