//! What people are told of typical mistakes: whole messages, with place, source line, reason and remedy.
//! What they should be stands in testdata/messages; UPDATE_EXPECT=1 writes it anew.

use std::fs;
use std::path::Path;

use crate::env::World;

/// A mistake: its name, the Dockerfile, further arguments of `kiln build`.
type Mistake = (&'static str, &'static str, &'static [&'static str]);

/// Mistakes that are found before anything runs.
const LANGUAGE: &[Mistake] = &[
    ("instruction-typo", "FROM busybox\nCOPPY a /\n", &[]),
    ("instruction-unknown", "FROM busybox\napt-get install x\n", &[]),
    ("flag-typo", "FROM busybox\nRUN --mont=type=cache,target=/c true\n", &[]),
    ("flag-unknown", "FROM busybox\nCOPY --owner=1 a /\n", &[]),
    ("flag-twice", "FROM busybox\nCOPY --chown=1 --chown=2 a /\n", &[]),
    ("flag-without-value", "FROM busybox\nCOPY --link= a /\n", &[]),
    (
        "stage-typo-in-target",
        "FROM busybox AS build\nFROM busybox AS release\n",
        &["--target", "biuld"],
    ),
    (
        "stage-later",
        "FROM busybox AS a\nCOPY --from=b /x /\nFROM busybox AS b\n",
        &["--target", "a"],
    ),
    ("stage-circle", "FROM busybox AS a\nCOPY --from=b /x /\nFROM a AS b\n", &["--target", "b"]),
    ("stage-of-itself", "FROM busybox AS a\nCOPY --from=a /x /\n", &[]),
    ("stage-number", "FROM busybox\nCOPY --from=7 /x /\n", &[]),
    ("stage-name", "FROM busybox AS 1st\n", &[]),
    ("from-empty", "ARG BASE\nFROM $BASE\n", &[]),
    ("from-undefined-typo", "ARG VERSION=1\nFROM $VERSOIN\n", &[]),
    ("from-words", "FROM busybox build\n", &[]),
    ("from-upper-case", "FROM BusyBox\n", &[]),
    ("from-platform", "FROM --platform=linux/x87/y/z busybox\n", &[]),
    ("from-missing", "RUN true\nFROM busybox\n", &[]),
    ("from-variable-in-flag", "FROM busybox\nARG S\nCOPY --from=$S /x /\n", &[]),
    ("file-empty", "", &[]),
    ("file-comments", "# nothing\n", &[]),
    ("json-numbers", "FROM busybox\nCMD [\"a\", 1]\n", &[]),
    ("json-shell", "FROM busybox\nSHELL /bin/bash -c\n", &[]),
    ("json-run-empty", "FROM busybox\nRUN []\n", &[]),
    ("heredoc-unclosed", "FROM busybox\nRUN <<EOF\necho x\n", &[]),
    ("heredoc-destination", "FROM busybox\nCOPY a <<EOF\nx\nEOF\n", &[]),
    ("quote-unclosed", "FROM busybox\nENV a=\"b c\nRUN true\n", &[]),
    ("variable-required", "FROM busybox\nARG KEY\nENV x=\"${KEY:?is needed}\"\n", &[]),
    ("variable-operator", "FROM busybox\nENV x=${a^^}\n", &[]),
    ("env-without-value", "FROM busybox\nENV NAME\n", &[]),
    ("env-second-word", "FROM busybox\nENV a=b c d=e\n", &[]),
    ("copy-one-argument", "FROM busybox\nCOPY a\n", &[]),
    ("copy-url", "FROM busybox\nCOPY https://example.test/a /\n", &[]),
    ("copy-chmod", "FROM busybox\nCOPY --chmod=rwx a /\n", &[]),
    ("add-checksum", "FROM busybox\nADD --checksum=md5:1 https://example.test/a /\n", &[]),
    ("add-checksum-of-file", "FROM busybox\nADD --checksum=sha256:1 a /\n", &[]),
    ("expose-port", "FROM busybox\nEXPOSE 80000\n", &[]),
    ("expose-protocol", "FROM busybox\nEXPOSE 80/http\n", &[]),
    ("stopsignal", "FROM busybox\nSTOPSIGNAL SIGFOO\n", &[]),
    ("healthcheck-duration", "FROM busybox\nHEALTHCHECK --interval=5 CMD true\n", &[]),
    ("healthcheck-type", "FROM busybox\nHEALTHCHECK curl localhost\n", &[]),
    ("onbuild-chain", "FROM busybox\nONBUILD ONBUILD RUN true\n", &[]),
    ("mount-type", "FROM busybox\nRUN --mount=type=temp,target=/x true\n", &[]),
    ("mount-key", "FROM busybox\nRUN --mount=type=cache,targt=/x true\n", &[]),
    ("mount-root", "FROM busybox\nRUN --mount=type=cache,target=/ true\n", &[]),
    ("network-mode", "FROM busybox\nRUN --network=nothing true\n", &[]),
    ("directive-escape", "# escape=|\nFROM busybox\n", &[]),
    ("directive-twice", "# escape=`\n# escape=`\nFROM busybox\n", &[]),
    ("directive-syntax", "# syntax=example/frontend\nFROM busybox\n", &[]),
    ("two-mistakes", "FROM busybox\nCOPPY a /\nENV x\n", &[]),
    ("continued-line", "FROM busybox\nRUN echo a && \\\n    echo b\nEXPOS 80 \\\n    81\n", &[]),
];

/// Mistakes that show when steps run.
const STEPS: &[Mistake] = &[
    ("step-file-missing", "FROM busybox\nCOPY a.txt /\n", &[]),
    ("step-file-typo", "FROM busybox\nCOPY src/mian.c /\n", &[]),
    ("step-file-excluded", "FROM busybox\nCOPY ignored.txt /\n", &[]),
    ("step-file-of-stage", "FROM busybox AS a\nFROM busybox\nCOPY --from=a /out /\n", &[]),
    ("step-exit-code", "FROM busybox\nRUN echo before && exit 3\n", &[]),
    ("step-program", "FROM busybox\nRUN [\"/bin/nothing\"]\n", &[]),
    ("step-command", "FROM busybox\nRUN nothing-here\n", &[]),
    ("step-user", "FROM busybox\nUSER nobody-here\nRUN true\n", &[]),
    ("step-secret", "FROM busybox\nRUN --mount=type=secret,id=key,required true\n", &[]),
    ("step-directory-over-file", "FROM busybox\nCOPY src /bin/busybox\n", &[]),
];

fn told(world: &World, (name, dockerfile, args): &Mistake) {
    world.file("Dockerfile", dockerfile);
    let mut all = vec!["build", "--progress=quiet"];
    all.extend_from_slice(args);
    all.push("ctx");
    let failed = world.kiln(&all);
    assert_eq!(failed.code, 1, "{name}: {}", failed.err);
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testdata/messages")
        .join(format!("{name}.txt"));
    let text = failed.err.replace(&world.path("").display().to_string(), "$DIR/");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &text).expect("written");
    }
    let expect = fs::read_to_string(&path).expect("UPDATE_EXPECT=1 makes it");
    assert_eq!(text, expect, "{name}");
    assert!(
        text.contains("--> Dockerfile:"),
        "{name} has no place:
{text}"
    );
    // What a command that failed needs, only its own words say.
    assert!(text.contains("help:") || *name == "step-exit-code", "{name} has no remedy:\n{text}");
}

fn world() -> World {
    let world = World::new();
    world.busybox().file("a", "x").file("src/main.c", "").file("ignored.txt", "");
    world.file(".dockerignore", "ignored.txt\n");
    world
}

#[test]
fn mistakes_in_the_language() {
    let world = world();
    LANGUAGE.iter().for_each(|mistake| told(&world, mistake));
}

#[test]
fn mistakes_in_steps() {
    let world = world();
    STEPS.iter().for_each(|mistake| told(&world, mistake));
}

/// No file is left that no test reads.
#[test]
fn every_message_has_its_mistake() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/messages");
    for entry in fs::read_dir(folder).expect("the folder is there").flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let mut names = LANGUAGE.iter().chain(STEPS).map(|(name, ..)| format!("{name}.txt"));
        assert!(names.any(|name| name == file), "{file}");
    }
    assert!(LANGUAGE.len() + STEPS.len() >= 40);
}
