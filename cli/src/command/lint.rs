//! `kiln lint`: checks Dockerfiles, as many as are named, without images and without the store.

use std::path::PathBuf;

use clap::Args;
use kiln_parser::config::ImageConfig;
use kiln_parser::diagnostic::{Diagnostic, Severity};
use kiln_parser::lower::{self, Allowed, BaseImage, ImageRequest, Known, LowerOptions, Lowering};
use kiln_parser::source::Source;
use kiln_parser::tree;

use crate::build::inputs;
use crate::call::Format;
use crate::call::check::{self, Checked};
use crate::failure::Failure;

/// Check Dockerfiles.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// The files (default: ./Dockerfile)
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// How to write what is found
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    /// Build argument: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let files = match options.files.as_slice() {
        [] => vec![PathBuf::from("Dockerfile")],
        files => files.to_vec(),
    };
    let mut checked = Vec::with_capacity(files.len());
    for file in files {
        let (name, text) = inputs::read_file(&file)?;
        let ignore = inputs::ignore_beside(&file)?;
        let lower_options = LowerOptions {
            all_stages: true,
            build_args: arguments(&options.build_arg)?,
            ignore,
            allow: Allowed::for_reading(),
            ..LowerOptions::default()
        };
        checked.push(check(Source::new(name, text), &lower_options));
    }
    super::print(&check::answer(&checked, options.format))?;
    if checked.iter().all(Checked::is_clean) { Ok(()) } else { Err(Failure::told()) }
}

fn arguments(options: &[String]) -> Result<std::collections::BTreeMap<String, String>, Failure> {
    let pairs = options.iter().map(|option| crate::build::values::pair("build-arg", option));
    pairs.map(|pair| pair.map(|(name, value)| (name, value.unwrap_or_default()))).collect()
}

/// Images are taken to exist; of their configuration nothing is known.
fn check(source: Source, options: &LowerOptions) -> Checked {
    let (dockerfile, diagnostics) = tree::parse(&source);
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        return Checked::new(source, diagnostics);
    }
    let mut known = Known::new();
    let found: Vec<Diagnostic> = loop {
        match lower::lower(&dockerfile, options, &known) {
            Err(found) => break found,
            Ok(Lowering::Done(lowered)) => break lowered.warnings,
            Ok(Lowering::NeedImages(requests)) => known.extend(requests.into_iter().map(unknown)),
        }
    };
    Checked::new(source, found)
}

fn unknown(request: ImageRequest) -> (kiln_parser::graph::ImageKey, BaseImage) {
    let image = BaseImage {
        digest: String::new(),
        config: ImageConfig::default(),
        platform: request.key.platform.clone(),
        diff_ids: vec![String::new()],
        unknown: true,
    };
    (request.key, image)
}

#[cfg(test)]
mod tests {
    use kiln_parser::ignore::Patterns;
    use kiln_parser::lower::LowerOptions;
    use kiln_parser::source::Source;

    use super::check;

    fn lint(text: &str, ignore: &str) -> Vec<String> {
        let options = LowerOptions {
            all_stages: true,
            ignore: Patterns::parse(ignore).expect("valid"),
            ..LowerOptions::default()
        };
        let checked = check(Source::new("Dockerfile", text.to_owned()), &options);
        let all = checked.warnings.iter().chain(&checked.error);
        all.map(|found| {
            let line = checked.source.position(found.span.unwrap_or_default().start).line;
            format!("{line} {}: {}", found.code, found.message)
        })
        .collect()
    }

    /// Every rule, with BuildKit's words.
    const RULES: &[(&str, &str)] = &[
        ("FROM a AS Build\n", "1 StageNameCasing: Stage name 'Build' should be lowercase"),
        ("FROM a as b\n", "1 FromAsCasing: 'as' and 'FROM' keywords' casing do not match"),
        ("from a AS b\n", "1 FromAsCasing: 'AS' and 'from' keywords' casing do not match"),
        ("FROM a\nRUN b \\\n\n c\n", "3 NoEmptyContinuation: Empty continuation line"),
        (
            "FROM a\nrun b\nCOPY c d\n",
            "2 ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase)",
        ),
        (
            "FROM a AS b\nFROM a AS b\n",
            "2 DuplicateStageName: Duplicate stage name \"b\", stage names should be unique",
        ),
        (
            "FROM a AS scratch\n",
            "1 ReservedStageName: Stage name should not use the same name as reserved stage \"scratch\"",
        ),
        (
            "FROM scratch\nCMD x\n",
            "2 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
        ),
        (
            "FROM a\nMAINTAINER me\n",
            "2 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label",
        ),
        (
            "ARG version=1\nFROM a:1$versoin\n",
            "2 UndefinedArgInFrom: FROM argument 'versoin' is not declared (did you mean version?)",
        ),
        (
            "FROM scratch\nARG dir=/x\nCOPY a $dri\n",
            "3 UndefinedVar: Usage of undefined variable '$dri' (did you mean $dir?)",
        ),
        (
            "FROM a\nWORKDIR x\nWORKDIR y\n",
            "2 WorkdirRelativePath: Relative workdir \"x\" can have unexpected results if the base image changes",
        ),
        (
            "FROM a\nCMD [\"x\"]\nCMD [\"y\"]\n",
            "2 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
        ),
        (
            "FROM a\nENV x y\n",
            "2 LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format",
        ),
        (
            "FROM --platform=$TARGETPLATFORM a\n",
            "1 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        ),
        (
            "FROM a\nARG API_KEY\n",
            "2 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"API_KEY\")",
        ),
        (
            "ARG x\nFROM a${x}:${x}\n",
            "2 InvalidDefaultArgInFrom: Default value for ARG a${x}:${x} results in empty or invalid base image name",
        ),
        (
            "FROM --platform=linux/arm64 a AS b\n",
            "1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/arm64\"",
        ),
        (
            "FROM a\nCOPY ignored/x /\n",
            "2 CopyIgnoredFile: Attempting to Copy file \"ignored/x\" that is excluded by .dockerignore",
        ),
        (
            "# check=experimental=all\n# other\nFROM a AS b\n",
            "3 InvalidDefinitionDescription: Comment for FROM should follow the format: `# b <description>`",
        ),
        (
            "FROM a\nEXPOSE 80/TCP\n",
            "2 ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase",
        ),
        (
            "FROM a\nEXPOSE 80:81\n",
            "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '80:81'",
        ),
    ];

    #[test]
    fn rules_fire() {
        for (text, expect) in RULES {
            let found = lint(text, "ignored\n");
            let errors = found.iter().filter(|line| line.contains(" lower: ")).count();
            assert_eq!(&found[..found.len() - errors], [*expect], "{text}");
        }
    }

    #[test]
    fn quiet_where_nothing_is_wrong() {
        for text in [
            "FROM a AS b\nCOPY x /\nCMD [\"x\"]\n",
            "from a as b\nrun x\n",
            "FROM a\nCOPY $FROM_BASE /\nWORKDIR /a\nWORKDIR b\n",
            "FROM --platform=linux/arm64 a AS build-arm64\n",
            "FROM --platform=$BUILDPLATFORM a\n",
            "FROM scratch\nSHELL [\"/bin/x\"]\nCMD y\n",
            "# check=skip=all\nFROM a AS B\nMAINTAINER x\n",
            "FROM a\n# check=skip=MaintainerDeprecated\nMAINTAINER x\n",
            "FROM scratch\nARG x\nENV y=${x:-1}\nCOPY a $y\n",
        ] {
            assert_eq!(lint(text, "!a\n"), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn directives_decide() {
        let strict = "# check=error=true\nFROM a\nMAINTAINER x\n";
        let found = lint(strict, "");
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], "3 lower: lint violation found for rules: MaintainerDeprecated");
        let wrong = lint("# check=foo\nFROM a\n", "");
        assert_eq!(wrong, ["1 lower: failed to parse check options: invalid check option \"foo\""]);
    }
}
