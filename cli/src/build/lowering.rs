//! From the Dockerfile and the options to the DAG; base images are looked up on the way.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;

use kiln_parser::diagnostic::{Diagnostic, Severity};
use kiln_parser::graph::{HttpOp, Input, Network, NodeId, Ulimit};
use kiln_parser::lower::{
    DeviceInfo, ImageRequest, Known, LowerOptions, Lowered, Lowering, NamedContext, NoCache,
};
use kiln_parser::platform::Platform;
use kiln_parser::tree::Dockerfile;
use kiln_parser::{lower as language, outline, tree};
use rayon::prelude::*;

use super::allow;
use super::inputs::Inputs;
use super::options::{BuildOptions, LanguageOptions};
use super::values::{self, ContextValue};
use crate::call::check::Checked;
use crate::call::{self, Call, Method};
use crate::failure::Failure;
use crate::render;
use crate::settings::{caller_variable, docker_proxies};
use crate::wire::images::Images;

/// How the command line changes the meaning of the Dockerfile.
pub(super) fn options(
    options: &BuildOptions,
    inputs: &Inputs,
    devices: Vec<DeviceInfo>,
) -> Result<LowerOptions, Failure> {
    let language = &options.language;
    let mut hosts = Vec::new();
    for option in &language.add_host {
        hosts.extend(values::add_host(option)?);
    }
    let ulimits = language.ulimit.iter().map(|text| ulimit(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(LowerOptions {
        target: language.target.clone().filter(|target| !target.is_empty()),
        build_args: build_args(language, inputs)?,
        platforms: platforms(language)?,
        build_platform: Platform::host(),
        labels: labels(language)?,
        context: inputs.context(),
        named_contexts: named_contexts(inputs),
        no_cache: no_cache(options),
        allow: allow::parse(&language.allow)?,
        network: network(&language.network)?,
        hosts: Arc::new(hosts),
        shm_size: language
            .shm_size
            .as_ref()
            .map(|text| values::bytes("shm-size", text))
            .transpose()?,
        ulimits: Arc::new(ulimits),
        cgroup_parent: language.cgroup_parent.as_deref().map(cgroup_parent).transpose()?,
        devices,
        ignore: inputs.ignore()?,
        all_stages: false,
    })
}

fn build_args(
    language: &LanguageOptions,
    inputs: &Inputs,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut args: BTreeMap<String, String> = docker_proxies().into_iter().collect();
    if let Some(epoch) = caller_variable("SOURCE_DATE_EPOCH") {
        args.insert("SOURCE_DATE_EPOCH".to_owned(), epoch.to_string_lossy().into_owned());
    }
    for option in &language.build_arg {
        let (name, value) = values::pair("build-arg", option)?;
        let value = match value {
            Some(value) => Some(value),
            None => caller_variable(&name).map(|value| value.to_string_lossy().into_owned()),
        };
        if let Some(value) = value {
            // A proxy that is given in either spelling replaces the configured one.
            args.retain(|known, _| !known.eq_ignore_ascii_case(&name) || !is_proxy(known));
            args.insert(name, value);
        }
    }
    if let Some(epoch) = args.get_mut("SOURCE_DATE_EPOCH").filter(|epoch| *epoch == "context") {
        *epoch = inputs.context_time().map(|time| time.to_string()).unwrap_or_default();
    }
    Ok(args)
}

fn is_proxy(name: &str) -> bool {
    name.to_ascii_uppercase().ends_with("_PROXY")
}

fn labels(language: &LanguageOptions) -> Result<BTreeMap<String, String>, Failure> {
    let pairs = language.label.iter().map(|option| values::pair("label", option));
    pairs.map(|pair| pair.map(|(name, value)| (name, value.unwrap_or_default()))).collect()
}

fn platforms(language: &LanguageOptions) -> Result<Vec<Platform>, Failure> {
    let mut platforms: Vec<Platform> = Vec::new();
    for text in language.platform.iter().filter(|text| !text.is_empty()) {
        let platform = text.parse().map_err(|error| {
            Failure::usage(format_args!("invalid --platform: {error}"))
                .hint("for example linux/amd64")
        })?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

fn named_contexts(inputs: &Inputs) -> BTreeMap<String, NamedContext> {
    let kind = |value: &ContextValue| match value {
        ContextValue::Folder(_) => NamedContext::Local,
        ContextValue::Git(git) => NamedContext::Git(git.clone()),
        ContextValue::Url(url) => NamedContext::File {
            file: HttpOp { url: url.clone(), filename: "context".to_owned(), checksum: None },
            unpack: false,
        },
        ContextValue::Stage(name) => NamedContext::Stage(name.clone()),
        ContextValue::Image(reference) if reference == "scratch" => NamedContext::Scratch,
        ContextValue::Image(_) | ContextValue::Layout { .. } => NamedContext::Image,
    };
    inputs.contexts.iter().map(|(name, value)| (name.clone(), kind(value))).collect()
}

fn no_cache(options: &BuildOptions) -> NoCache {
    let stages = &options.execution.no_cache_filter;
    if options.execution.no_cache {
        NoCache::Everything
    } else if stages.is_empty() {
        NoCache::Nothing
    } else {
        NoCache::Stages(stages.iter().map(|stage| stage.to_lowercase()).collect())
    }
}

/// A path below the root of the hierarchies. systemd's form `SLICE:PREFIX:NAME` needs systemd.
fn cgroup_parent(text: &str) -> Result<Arc<str>, Failure> {
    let inside = text.split('/').all(|part| part != "..");
    if text.trim_matches('/').is_empty() || text.contains(':') || !inside {
        return Err(Failure::usage(format_args!("invalid --cgroup-parent `{text}`"))
            .hint("name a path such as /builds; a slice is /user.slice"));
    }
    Ok(text.into())
}

fn network(text: &str) -> Result<Network, Failure> {
    match text {
        "default" | "" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        other => Err(Failure::usage(format_args!("network mode `{other}` is not supported"))
            .hint("modes: default, none, host")),
    }
}

/// `NAME=SOFT[:HARD]`, -1 for no limit.
fn ulimit(text: &str) -> Result<Ulimit, Failure> {
    let bad = || {
        Failure::usage(format_args!("invalid --ulimit `{text}`"))
            .hint("for example nofile=1024:4096")
    };
    let (name, value) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(bad)?;
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let number = |text: &str| text.parse::<i64>().map_err(|_| bad());
    Ok(Ulimit { name: name.to_owned(), soft: number(soft)?, hard: number(hard)? })
}

/// Parses and lowers; warnings are shown where `warn` says so.
pub(super) fn lower(
    inputs: &Inputs,
    options: &LowerOptions,
    images: &Images,
    warn: bool,
) -> Result<Lowered, Failure> {
    let show = |found: &[Diagnostic]| {
        if warn && !found.is_empty() {
            crate::command::print_error(&format!("{}\n\n", draw(inputs, found)));
        }
    };
    match resolve(inputs, options, images)? {
        Ok(lowered) => {
            show(&lowered.warnings);
            Ok(lowered)
        }
        Err(found) => {
            let (errors, warnings): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|found| found.severity == Severity::Error);
            show(&warnings);
            Err(broken(inputs, &errors))
        }
    }
}

/// Asks for images until all are known. What is wrong with the Dockerfile itself is the inner error.
fn resolve(
    inputs: &Inputs,
    options: &LowerOptions,
    images: &Images,
) -> Result<Result<Lowered, Vec<Diagnostic>>, Failure> {
    let (dockerfile, diagnostics) = tree::parse(&inputs.source);
    if !diagnostics.is_empty() {
        return Ok(Err(diagnostics));
    }
    check_syntax(inputs, &dockerfile, options)?;
    let mut known = Known::new();
    loop {
        match language::lower(&dockerfile, options, &known) {
            Err(found) => return Ok(Err(found)),
            Ok(Lowering::Done(lowered)) => return Ok(Ok(*lowered)),
            Ok(Lowering::NeedImages(requests)) => look_up(inputs, images, requests, &mut known)?,
        }
    }
}

/// Answers a question about the Dockerfile instead of building it.
pub(super) fn call(
    call: Call,
    inputs: &Inputs,
    mut options: LowerOptions,
    images: &Images,
) -> Result<(), Failure> {
    let source = &inputs.source;
    let text = match call.method {
        Method::Describe => call::describe(call.format),
        Method::Targets => {
            let (dockerfile, diagnostics) = tree::parse(source);
            if !diagnostics.is_empty() {
                return Err(broken(inputs, &diagnostics));
            }
            call::targets::answer(source, &outline::targets(&dockerfile), call.format)
        }
        Method::Outline => {
            let lowered = lower(inputs, &options, images, false)?;
            call::outline::answer(source, &lowered.outline, call.format)
        }
        Method::Check => {
            options.all_stages = options.target.is_none();
            let found = match resolve(inputs, &options, images)? {
                Ok(lowered) => lowered.warnings,
                Err(found) => found,
            };
            let checked = [Checked::new(source.clone(), found)];
            crate::command::print(&call::check::answer(&checked, call.format))?;
            let failed = !checked[0].is_clean() && !call.ignore_status;
            return if failed { Err(Failure::told()) } else { Ok(()) };
        }
    };
    crate::command::print(&text)
}

/// `# syntax=`, or the build argument instead of it: Kiln's own parser stands for every
/// `docker/dockerfile`; no other frontend is run.
fn check_syntax(
    inputs: &Inputs,
    dockerfile: &Dockerfile,
    options: &LowerOptions,
) -> Result<(), Failure> {
    let directive = dockerfile.directives.iter().find(|d| d.name == "syntax");
    let given = options.build_args.get("BUILDKIT_SYNTAX");
    let Some(value) = given.or_else(|| directive.map(|directive| &directive.value)) else {
        return Ok(());
    };
    let reference = value.split_whitespace().next().unwrap_or_default();
    let name = reference.split(['@']).next().unwrap_or_default();
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let (repository, tag) = name.rsplit_once(':').unwrap_or((name, ""));
    if !matches!(repository, "docker/dockerfile" | "docker/dockerfile-upstream" | "dockerfile.v0") {
        let message = format!("`# syntax={reference}` asks for another frontend");
        let help =
            "Kiln reads Dockerfiles itself; remove the line, or write # syntax=docker/dockerfile:1";
        let Some(directive) = directive.filter(|_| given.is_none()) else {
            return Err(Failure::usage(message).hint(help));
        };
        let place = Diagnostic::error(directive.span, message).help(help);
        return Err(broken(inputs, &[place]));
    }
    if is_newer(tag) {
        crate::command::print_error(&format!(
            "note: `# syntax={reference}` asks for a newer language than Kiln's, which is that of docker/dockerfile:1.{LANGUAGE_MINOR}; what is new in it may be refused\n"
        ));
    }
    Ok(())
}

/// The language that the parser speaks: that of `docker/dockerfile:1.N`.
const LANGUAGE_MINOR: u32 = 20;

/// Whether a tag of `docker/dockerfile` names a later version: `1.21`, `1.21.3-labs`, `2`.
fn is_newer(tag: &str) -> bool {
    let mut numbers = tag.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(1), Some(minor)) => minor > LANGUAGE_MINOR,
        (Some(major), _) => major > 1,
        (None, _) => false,
    }
}

/// Images are looked up side by side.
fn look_up(
    inputs: &Inputs,
    images: &Images,
    requests: Vec<ImageRequest>,
    known: &mut Known,
) -> Result<(), Failure> {
    let look = |request: ImageRequest| {
        let found = images.resolve(&request.key).map_err(|failure| {
            let place = Diagnostic::error(request.span, failure.message());
            failure.excerpt(draw(inputs, &[place]))
        });
        (request.key, found)
    };
    let found: Vec<_> = match requests.len() {
        0 | 1 => requests.into_iter().map(look).collect(),
        _ => requests.into_par_iter().map(look).collect(),
    };
    for (key, image) in found {
        known.insert(key, image?);
    }
    Ok(())
}

fn broken(inputs: &Inputs, errors: &[Diagnostic]) -> Failure {
    let message = errors.first().map_or("", |diagnostic| diagnostic.message.as_str());
    Failure::input(message).excerpt(draw(inputs, errors))
}

pub(super) fn draw(inputs: &Inputs, diagnostics: &[Diagnostic]) -> String {
    render::diagnostics(&inputs.source, diagnostics, std::io::stderr().is_terminal())
}

/// The nodes that the targets are.
pub(super) fn target_nodes(lowered: &Lowered) -> Vec<NodeId> {
    let mut nodes = Vec::new();
    for target in &lowered.targets {
        if let Input::Node(id) = target.snapshot
            && !nodes.contains(&id)
        {
            nodes.push(id);
        }
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::is_newer;

    #[test]
    fn newer_languages() {
        for tag in ["1.99", "1.99.1-labs", "2", "2-labs"] {
            assert!(is_newer(tag), "{tag}");
        }
        for tag in ["", "1", "1.4", "1-labs", "labs", "latest", "master", "1.20"] {
            assert!(!is_newer(tag), "{tag}");
        }
    }
}
