//! From the Dockerfile and the options to the DAG; base images are looked up on the way.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::Arc;

use kiln_parser::diagnostic::{Diagnostic, Severity};
use kiln_parser::graph::{Input, Network, NodeId, Ulimit};
use kiln_parser::lower::{
    ImageRequest, Known, LowerOptions, Lowered, Lowering, NamedContext, NoCache,
};
use kiln_parser::platform::Platform;
use kiln_parser::tree::Dockerfile;
use kiln_parser::{lower as language, tree};
use rayon::prelude::*;

use super::allow;
use super::inputs::Inputs;
use super::options::{BuildOptions, LanguageOptions};
use super::values::{self, ContextValue};
use crate::failure::Failure;
use crate::render;
use crate::settings::{caller_variable, docker_proxies};
use crate::wire::images::Images;

/// How the command line changes the meaning of the Dockerfile.
pub(super) fn options(options: &BuildOptions, inputs: &Inputs) -> Result<LowerOptions, Failure> {
    let language = &options.language;
    let mut hosts = Vec::new();
    for option in &language.add_host {
        let found = values::add_host(option)?;
        hosts.extend(found.into_iter().map(|(name, address)| (name, address.to_string())));
    }
    let ulimits = language.ulimit.iter().map(|text| ulimit(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(LowerOptions {
        target: language.target.clone().filter(|target| !target.is_empty()),
        build_args: build_args(language)?,
        platforms: platforms(language)?,
        build_platform: Platform::host(),
        labels: labels(language)?,
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
    })
}

fn build_args(language: &LanguageOptions) -> Result<BTreeMap<String, String>, Failure> {
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

/// Parses and lowers; asks for images until all are known. Warnings are shown where `warn` says so.
pub(super) fn lower(
    inputs: &Inputs,
    options: &LowerOptions,
    images: &Images,
    warn: bool,
) -> Result<Lowered, Failure> {
    let (dockerfile, diagnostics) = tree::parse(&inputs.source);
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Err(broken(inputs, &diagnostics));
    }
    if !diagnostics.is_empty() && warn {
        crate::command::print_error(&format!("{}\n\n", draw(inputs, &diagnostics)));
    }
    check_syntax(&dockerfile)?;
    let mut known = Known::new();
    loop {
        match language::lower(&dockerfile, options, &known) {
            Err(diagnostics) => return Err(broken(inputs, &diagnostics)),
            Ok(Lowering::Done(lowered)) => return Ok(lowered),
            Ok(Lowering::NeedImages(requests)) => look_up(inputs, images, requests, &mut known)?,
        }
    }
}

/// `# syntax=`: Kiln's own parser stands for every `docker/dockerfile`; no other frontend is run.
fn check_syntax(dockerfile: &Dockerfile) -> Result<(), Failure> {
    let Some(directive) = dockerfile.directives.iter().find(|d| d.name == "syntax") else {
        return Ok(());
    };
    let reference = directive.value.split_whitespace().next().unwrap_or_default();
    let name = reference.split(['@']).next().unwrap_or_default();
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let repository = name.rsplit_once(':').map_or(name, |(repository, _)| repository);
    if matches!(repository, "docker/dockerfile" | "docker/dockerfile-upstream" | "dockerfile.v0") {
        return Ok(());
    }
    Err(Failure::input(format_args!("`# syntax={reference}` asks for another frontend")).hint(
        "Kiln reads Dockerfiles itself; remove the line, or write # syntax=docker/dockerfile:1",
    ))
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

fn broken(inputs: &Inputs, diagnostics: &[Diagnostic]) -> Failure {
    let errors: Vec<Diagnostic> = diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == Severity::Error)
        .cloned()
        .collect();
    let message = errors.first().map_or("", |diagnostic| diagnostic.message.as_str());
    Failure::input(message).excerpt(draw(inputs, &errors))
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
