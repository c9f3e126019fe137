//! `kiln build --call=METHOD`: questions about a Dockerfile instead of a build. Texts and JSON documents
//! are those of `docker buildx build --call`.

pub(crate) mod check;
mod excerpt;
pub(crate) mod outline;
mod sarif;
pub(crate) mod targets;

use base64::Engine as _;
use kiln_parser::source::{Source, Span};
use serde_json::{Value, json};

use crate::csv;
use crate::failure::Failure;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// What lints say.
    Check,
    /// What the target can be given.
    Outline,
    /// Which targets there are.
    Targets,
    /// Which questions there are.
    Describe,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON document.
    Json,
    /// Static Analysis Results Interchange Format 2.1.0, of checks.
    Sarif,
}

/// `--call` as it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// The question.
    pub(crate) method: Method,
    /// The answer's form.
    pub(crate) format: Format,
    /// Success whatever the answer is.
    pub(crate) ignore_status: bool,
}

impl Call {
    /// Reads `METHOD[,format=text|json|sarif][,ignorestatus=BOOL]`; `None` for `build`.
    ///
    /// # Errors
    /// An unknown method, key or value.
    pub(crate) fn parse(option: &str) -> Result<Option<Self>, Failure> {
        let bad = |why: String| Failure::usage(format_args!("invalid --call `{option}`: {why}"));
        let mut fields = csv::fields(option).map_err(&bad)?.into_iter();
        let method = match fields.next().map(|field| field.key).as_deref() {
            Some("build" | "") | None => None,
            Some("check" | "lint") => Some(Method::Check),
            Some("outline") => Some(Method::Outline),
            Some("targets") => Some(Method::Targets),
            Some("subrequests.describe") => Some(Method::Describe),
            Some(other) => {
                return Err(bad(format!("there is no method `{other}`"))
                    .hint("methods: build, check, outline, targets, subrequests.describe"));
            }
        };
        let (mut format, mut ignore_status) = (Format::Text, false);
        for field in fields {
            match (field.key.as_str(), field.value.as_deref()) {
                ("format", Some("text")) => format = Format::Text,
                ("format", Some("json")) => format = Format::Json,
                ("format", Some("sarif")) if method == Some(Method::Check) => {
                    format = Format::Sarif;
                }
                ("ignorestatus", None | Some("1" | "true")) => ignore_status = true,
                ("ignorestatus", Some("0" | "false")) => ignore_status = false,
                (key, _) => {
                    return Err(bad(format!("`{key}` is not understood")).hint(
                        "format=text, format=json, format=sarif (of check), ignorestatus=true",
                    ));
                }
            }
        }
        Ok(method.map(|method| Self { method, format, ignore_status }))
    }
}

/// The answer to `subrequests.describe`.
pub(crate) fn describe(format: Format) -> String {
    const METHODS: [(&str, &str); 4] = [
        ("check", "Lints of a Dockerfile"),
        ("outline", "List all parameters current build target supports"),
        ("targets", "List all targets current build supports"),
        ("subrequests.describe", "List available subrequest types"),
    ];
    if format == Format::Json {
        let list = METHODS
            .iter()
            .map(|(name, text)| json!({"name": name, "version": "1.0.0", "type": "rpc", "description": text}));
        return format!("{:#}\n", Value::Array(list.collect()));
    }
    let rows =
        METHODS.iter().map(|row| vec![row.0.to_owned(), "1.0.0".to_owned(), row.1.to_owned()]);
    let head = ["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned).to_vec();
    crate::command::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// A place as BuildKit's documents have it: whole lines.
fn location(source: &Source, span: Span) -> Value {
    let (start, end) = lines(source, span);
    json!({"ranges": [{"start": {"line": start}, "end": {"line": end}}]})
}

/// First and last line of a place.
fn lines(source: &Source, span: Span) -> (usize, usize) {
    let start = source.position(span.start).line;
    // The line end at the end of a heredoc belongs to its last line.
    let end = source.position(span.end.saturating_sub(1).max(span.start)).line;
    (start, end)
}

/// The text of a file as BuildKit's documents have it.
fn encoded(source: &Source) -> String {
    base64::engine::general_purpose::STANDARD.encode(source.text())
}

#[cfg(test)]
mod tests {
    use super::{Call, Format, Method};

    #[test]
    fn calls() {
        assert_eq!(Call::parse("build").expect("valid"), None);
        let call = Call::parse("check,format=sarif,ignorestatus=true").expect("valid");
        let expect = Call { method: Method::Check, format: Format::Sarif, ignore_status: true };
        assert_eq!(call, Some(expect));
        assert!(Call::parse("outline,format=json").is_ok());
        for wrong in ["nothing", "outline,format=sarif", "check,format=xml", "check,colour=red"] {
            assert!(Call::parse(wrong).is_err(), "{wrong}");
        }
    }
}
