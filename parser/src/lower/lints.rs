//! Rules that need the state of a stage: what is defined, what came before.

use std::collections::BTreeSet;

use super::BaseImage;
use super::ports;
use super::stage::Stage;
use crate::graph::{ImageKey, ImageName};
use crate::instruction::{Command, Pair};
use crate::lint::rules::{self, Rule};
use crate::lint::syntax::is_secret;
use crate::source::Span;
use crate::suggest;

/// Arguments that say something to the builder and never get into the environment.
pub(super) const GIVEN: &[&str] = &["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

impl Stage<'_, '_> {
    fn report(&self, rule: &'static Rule, span: Span, message: String) {
        self.plan.linter.report(rule, span, self.comments(), message);
    }

    /// Variables that are neither an ARG nor in the environment.
    pub(super) fn check_variables(&self, missing: &BTreeSet<String>, span: Span) {
        if missing.is_empty() || self.base_is_unknown() {
            return;
        }
        for name in missing {
            let declared = self.result.arguments.iter().any(|(known, _)| known == name);
            if declared || GIVEN.contains(&name.as_str()) {
                continue;
            }
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(near) = suggest::nearest(name, self.result.env.names()) {
                message.push_str(&format!(" (did you mean ${near}?)"));
            }
            self.report(&rules::UNDEFINED_VAR, span, message);
        }
    }

    /// An image for another platform than the one asked for.
    pub(super) fn check_base(&self, key: &ImageKey, image: &BaseImage) {
        let (expected, actual) = (&key.platform, &image.platform);
        if image.unknown
            || (expected.os == actual.os && expected.architecture == actual.architecture)
        {
            return;
        }
        let (ImageName::Reference(name) | ImageName::Context(name)) = &key.name;
        let message = format!(
            "Base image {name} was pulled with platform \"{actual}\", expected \"{expected}\" for current build"
        );
        self.report(&rules::INVALID_BASE_IMAGE_PLATFORM, self.stage.from.image.span, message);
    }

    /// CMD, ENTRYPOINT and HEALTHCHECK: once a stage, and the first two without a shell.
    pub(super) fn check_command(&mut self, name: &'static str, command: Option<&Command>) {
        let span = self.current_span();
        if let Some(before) = self.last_place(name, span) {
            let message = format!(
                "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
            );
            self.report(&rules::MULTIPLE_INSTRUCTIONS_DISALLOWED, before, message);
        }
        if matches!(command, Some(Command::Shell(_)))
            && self.result.config.shell.is_empty()
            && !self.base_is_unknown()
        {
            let message = format!(
                "JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
            );
            self.report(&rules::JSON_ARGS_RECOMMENDED, span, message);
        }
    }

    pub(super) fn check_secret(&self, instruction: &str, name: &str, span: Span) {
        if is_secret(name) {
            let message = format!(
                "Do not use ARG or ENV instructions for sensitive data ({instruction} {name:?})"
            );
            self.report(&rules::SECRETS_USED_IN_ARG_OR_ENV, span, message);
        }
    }

    pub(super) fn check_pairs(&self, name: &str, pairs: &[Pair]) {
        for pair in pairs.iter().filter(|pair| pair.legacy) {
            let message = format!(
                "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
            );
            self.report(&rules::LEGACY_KEY_VALUE_FORMAT, pair.name.span, message);
        }
    }

    /// The first WORKDIR of a file should not depend on the base's.
    pub(super) fn check_workdir(&mut self, path: &str, span: Span) {
        if !self.mark_workdir() && !path.starts_with('/') {
            let message = format!(
                "Relative workdir {path:?} can have unexpected results if the base image changes"
            );
            self.report(&rules::WORKDIR_RELATIVE_PATH, span, message);
        }
    }

    pub(super) fn check_port(&self, port: &str, span: Span) {
        if ports::has_odd_casing(port) {
            let message =
                format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
            self.report(&rules::EXPOSE_PROTO_CASING, span, message);
        }
        if ports::has_mapping(port) {
            let message = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
            );
            self.report(&rules::EXPOSE_INVALID_FORMAT, span, message);
        }
    }

    /// A source that the ignore file leaves out; files with exceptions (`!`) are not judged.
    pub(super) fn check_ignored(&self, word: &str, path: &str, span: Span) {
        let patterns = &self.plan.options.ignore;
        if patterns.is_empty() || patterns.has_exceptions() {
            return;
        }
        let cleaned = crate::ignore::clean(path);
        let ignored =
            if cleaned.is_empty() { patterns.takes_all() } else { patterns.matches(&cleaned) };
        if ignored {
            let shown = if cleaned.is_empty() { "." } else { cleaned.as_str() };
            let message =
                format!("Attempting to {word} file {shown:?} that is excluded by .dockerignore");
            self.report(&rules::COPY_IGNORED_FILE, span, message);
        }
    }
}
