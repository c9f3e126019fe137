//! Shell and JSON form, heredocs, flags, after the Dockerfile reference and what BuildKit does.

use kiln_parser::config::ImageConfig;
use kiln_parser::graph::{Chmod, CopyFrom, Mount, Network, NodeId};
use kiln_parser::lower::Lowered;

use crate::{copied, lowered, ran, refused};

/// Lowers instructions of a stage on nothing.
fn stage(instructions: &str) -> Lowered {
    lowered(&format!("FROM scratch\n{instructions}\n"))
}

fn stage_refused(instructions: &str) -> String {
    refused(&format!("FROM scratch\n{instructions}\n"))
}

fn config(instructions: &str) -> ImageConfig {
    stage(instructions).targets[0].config.clone()
}

fn args(instructions: &str) -> Vec<String> {
    ran(&stage(instructions)).args.clone()
}

fn paths(done: &Lowered) -> Vec<String> {
    copied(done).sources.iter().map(|source| source.path.clone()).collect()
}

/// Inline files of the last COPY or ADD.
fn files(done: &Lowered) -> Vec<(String, String)> {
    let sources = copied(done).sources.iter();
    sources
        .filter_map(|source| match &source.from {
            CopyFrom::Inline(file) => Some((file.name.clone(), file.data.clone())),
            _ => None,
        })
        .collect()
}

fn file(name: &str, data: &str) -> (String, String) {
    (name.to_owned(), data.to_owned())
}

/// What RUN, CMD, ENTRYPOINT and HEALTHCHECK CMD take as JSON.
const JSON: &[(&str, &[&str])] = &[
    ("[\"a\"]", &["a"]),
    ("[\"a\",\"b\"]", &["a", "b"]),
    ("[ \"a\" ,\t\"b c\" ]", &["a", "b c"]),
    ("[\"\", \"a\"]", &["", "a"]),
    (r#"["\"", "\\", "\/", "\n\t\u0041\u00e9\ud83d\ude00"]"#, &["\"", "\\", "/", "\n\tAé😀"]),
    (r#"["\ud800"]"#, &["\u{fffd}"]),
    ("[\"é\"]", &["é"]),
    ("[\"$a ${b\"]", &["$a ${b"]),
    ("[\"'a'\"]", &["'a'"]),
];

/// What they take as text.
const TEXT: &[&str] = &[
    "a",
    "a b  c",
    "['a']",
    "['a', \"b\"]",
    "[\"a\"",
    "[\"a\",]",
    "[,\"a\"]",
    "[\"a\" \"b\"]",
    "[\"a\"] b",
    "[\"a\"] # b",
    "[\"a\"];",
    "[a]",
    "[ -f x ] && y",
    "\"a\"",
    "{\"a\": 1}",
    "\\[\"a\"]",
    "x [\"a\"]",
    "[\"\\x\"]",
    "[\"\\u12\"]",
    "[\"a\tb\"]",
    "[01]",
    "[1.]",
    "[True]",
    "[\"a\", b]",
    "[\"a\", 'b', 1]",
    "[[\"a\"]",
];

/// What is JSON, but not of strings.
const NOT_STRINGS: &[&str] = &[
    "[1]",
    "[\"a\", 1]",
    "[-1.5e+3]",
    "[true]",
    "[false]",
    "[null]",
    "[[\"a\"]]",
    "[[]]",
    "[{}]",
    "[{\"a\": [1, {\"b\": null}]}]",
    "[ \"a\" , [ ] ]",
];

#[test]
fn arrays_of_strings_are_arguments() {
    for (text, expect) in JSON {
        assert_eq!(args(&format!("RUN {text}")), *expect, "RUN {text}");
        assert_eq!(config(&format!("CMD {text}")).cmd.expect("set"), *expect, "CMD {text}");
        let entrypoint = config(&format!("ENTRYPOINT \t{text}  ")).entrypoint;
        assert_eq!(entrypoint.expect("set"), *expect, "ENTRYPOINT {text}");
        assert_eq!(config(&format!("SHELL {text}")).shell, *expect, "SHELL {text}");
        let check = config(&format!("HEALTHCHECK CMD {text}")).healthcheck.expect("set");
        assert_eq!(check.test[0], "CMD");
        assert_eq!(check.test[1..], **expect, "HEALTHCHECK CMD {text}");
    }
}

#[test]
fn everything_else_is_for_the_shell() {
    for text in TEXT {
        let expect = ["/bin/sh", "-c", text];
        assert_eq!(args(&format!("RUN {text}")), expect, "RUN {text}");
        assert_eq!(config(&format!("CMD {text}")).cmd.expect("set"), expect, "CMD {text}");
        let entrypoint = config(&format!("ENTRYPOINT {text}")).entrypoint;
        assert_eq!(entrypoint.expect("set"), expect, "ENTRYPOINT {text}");
        let check = config(&format!("HEALTHCHECK CMD {text}")).healthcheck.expect("set");
        assert_eq!(check.test, ["CMD-SHELL", text], "HEALTHCHECK CMD {text}");
        let message = format!("SHELL requires the arguments to be in JSON form, not \"{text}\"");
        assert_eq!(stage_refused(&format!("SHELL {text}")), message);
    }
    // Continuations join with nothing between, blanks inside stay, blanks around do not.
    assert_eq!(args("RUN  a \\\n    b\\\nc  ")[2], "a     bc");
}

#[test]
fn arrays_of_anything_else_are_mistakes() {
    let message = "when using JSON array syntax, arrays must be comprised of strings only";
    for text in NOT_STRINGS {
        for word in
            ["RUN", "CMD", "ENTRYPOINT", "SHELL", "COPY", "ADD", "VOLUME", "HEALTHCHECK CMD"]
        {
            assert_eq!(stage_refused(&format!("{word} {text}")), message, "{word} {text}");
        }
        assert_eq!(config(&format!("LABEL a='{text}'")).labels.len(), 1, "{text}");
    }
}

#[test]
fn lists_may_be_json() {
    for (text, expect) in [
        ("a b /d/", vec!["a", "b"]),
        ("a\t b \u{b}c  /d/", vec!["a", "b", "c"]),
        ("[\"a\", \"b c\", \"/d/\"]", vec!["a", "b c"]),
        ("[\"[x]\", \"/d/\"]", vec!["[x]"]),
        // No JSON: words, whose quotes vanish when they are expanded.
        ("['a', /d/", vec!["[a,"]),
        ("[\"a\", \"b\", \"/d/\"", vec!["[a,", "b,"]),
        ("[\"a\",] /d/", vec!["[a,]"]),
    ] {
        for word in ["COPY", "ADD"] {
            assert_eq!(paths(&stage(&format!("{word} {text}"))), expect, "{word} {text}");
        }
    }
    let volumes = |text: &str| config(text).volumes.into_iter().collect::<Vec<_>>();
    assert_eq!(volumes("VOLUME /a /b"), ["/a", "/b"]);
    assert_eq!(volumes("VOLUME [\"/a\", \"/b c\"]"), ["/a", "/b c"]);
    assert_eq!(volumes("VOLUME ['/a']"), ["[/a]"]);
    assert_eq!(volumes("VOLUME [\"/a\"] /b"), ["/b", "[/a]"]);
    for (text, expect) in [
        ("VOLUME []", "VOLUME requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME [\"\"]", "VOLUME specified can not be an empty string"),
        ("VOLUME [\" \"]", "VOLUME specified can not be an empty string"),
        ("EXPOSE [\"80\"]", "invalid containerPort: [80]"),
    ] {
        assert_eq!(stage_refused(text), expect, "{text}");
    }
    for word in ["COPY", "ADD"] {
        for text in ["", "[]", "[\"a\"]", "a"] {
            let message = format!(
                "{word} requires at least two arguments, but only one was provided. \
                 Destination could not be determined"
            );
            assert_eq!(stage_refused(&format!("{word} {text}")), message, "{word} {text}");
        }
    }
}

#[test]
fn commands_of_nothing() {
    let nothing = ["/bin/sh", "-c", ""];
    assert_eq!(config("CMD").cmd.expect("set"), nothing);
    assert_eq!(config("ENTRYPOINT").entrypoint.expect("set"), nothing);
    assert_eq!(args("RUN"), nothing);
    assert_eq!(config("CMD a\nCMD []").cmd, Some(Vec::new()));
    assert_eq!(config("ENTRYPOINT a\nENTRYPOINT []").entrypoint, None);
    assert_eq!(stage_refused("RUN []"), "arguments are required");
    assert_eq!(stage_refused("SHELL []"), "SHELL requires at least one argument");
    assert_eq!(stage_refused("SHELL"), "SHELL requires at least one argument");
    for text in ["HEALTHCHECK CMD", "HEALTHCHECK CMD []"] {
        assert_eq!(stage_refused(text), "Missing command after HEALTHCHECK CMD", "{text}");
    }
    assert_eq!(stage_refused("HEALTHCHECK"), "HEALTHCHECK requires at least one argument");
}

#[test]
fn the_shell_can_be_chosen() {
    let shell = "SHELL [\"bash\", \"-ec\"]\n";
    assert_eq!(args(&format!("{shell}RUN a b")), ["bash", "-ec", "a b"]);
    assert_eq!(args(&format!("{shell}RUN [\"a\"]")), ["a"]);
    assert_eq!(args(&format!("{shell}RUN <<E\na\nE")), ["bash", "-ec", "a\n"]);
    assert_eq!(config(&format!("{shell}CMD a")).cmd.expect("set"), ["bash", "-ec", "a"]);
    let config = config(&format!("CMD a\n{shell}ENTRYPOINT b"));
    assert_eq!(config.cmd.expect("set"), ["/bin/sh", "-c", "a"]);
    assert_eq!(config.entrypoint.expect("set"), ["bash", "-ec", "b"]);
    // Children have the shell of their parent.
    let child = lowered(&format!("FROM scratch AS p\n{shell}FROM p\nRUN a\n"));
    assert_eq!(ran(&child).args, ["bash", "-ec", "a"]);
}

#[test]
fn documents_are_files() {
    for (text, expect) in [
        ("COPY <<E /d/\na\nb\nE", vec![file("E", "a\nb\n")]),
        ("ADD <<E /d/\nE", vec![file("E", "")]),
        ("COPY <<EOF.txt /d/\na\nEOF.txt", vec![file("EOF.txt", "a\n")]),
        ("COPY 3<<E /d/\na\nE", vec![file("E", "a\n")]),
        ("COPY << E /d/\na\nE", vec![file("E", "a\n")]),
        ("COPY <<A <<B /d/\na\nA\nb\nB", vec![file("A", "a\n"), file("B", "b\n")]),
        ("COPY <<B <<A /d/\nA\nB\nB\nA", vec![file("B", "A\n"), file("A", "B\n")]),
        // The last line is the word and nothing else.
        ("COPY <<E /d/\n E\nE \n\tE\nEE\nE", vec![file("E", " E\nE \n\tE\nEE\n")]),
        ("COPY <<E /d/\na\r\nE\r", vec![file("E", "a\r\n")]),
        // Leading tabs vanish with `<<-`, blanks do not.
        ("COPY <<-E /d/\n\t\ta\n\t b\n c\td\n\t\tE", vec![file("E", "a\n b\n c\td\n")]),
        // Comments, continuations and directives are text in there.
        ("COPY <<E /d/\n# a\nb \\\n\nE", vec![file("E", "# a\nb \n\n")]),
        ("COPY <<'E' /d/\n# a\nb \\\n\nE", vec![file("E", "# a\nb \\\n\n")]),
        // Quotes around any part of the word: nothing is expanded.
        ("COPY <<\"E\" /d/\n$PATH\nE", vec![file("E", "$PATH\n")]),
        ("COPY <<E'F' /d/\n$PATH\nEF", vec![file("EF", "$PATH\n")]),
        ("COPY <<-'E' /d/\n\t$PATH\n\tE", vec![file("E", "$PATH\n")]),
        ("COPY <<E /d/\n${x:-\"y\"} 'a' \\$x\nE", vec![file("E", "\"y\" 'a' $x\n")]),
        // The line goes on before the document begins.
        ("COPY <<E \\\n /d/\na\nE", vec![file("E", "a\n")]),
        // A variable in the word stands for itself.
        ("COPY <<$E /d/\na\n$E", vec![file("$E", "a\n")]),
        ("COPY <<${E} /d/\na\n${E}", vec![file("${E}", "a\n")]),
    ] {
        assert_eq!(files(&stage(text)), expect, "{text:?}");
    }
    let text = "COPY <<A x <<B y /d/\na\nA\nb\nB";
    let done = stage(text);
    assert_eq!(paths(&done), ["x", "y", "", ""], "files first");
    assert_eq!(files(&done), [file("A", "a\n"), file("B", "b\n")]);
    let copy = stage("COPY --chown=1:2 --chmod=600 <<E /d\na\nE");
    assert_eq!(copied(&copy).chown.as_deref(), Some("1:2"));
    assert_eq!(copied(&copy).chmod, Some(Chmod::Octal(0o600)));
    assert_eq!(copied(&copy).dest, "/d");
    for word in ["COPY", "ADD"] {
        let message = format!("{word} cannot accept a heredoc as a destination");
        assert_eq!(stage_refused(&format!("{word} a <<E\nx\nE")), message);
        let message = "syntax error: missing '}'";
        assert!(stage_refused(&format!("{word} <<E /d\n${{x:-\nE")).contains(message));
    }
}

#[test]
fn documents_are_commands() {
    for (text, expect) in [
        ("RUN <<E\na $x\n'b'\nE", "a $x\n'b'\n"),
        ("RUN <<E\nE", ""),
        ("RUN <<'E'\na $x\nE", "a $x\n"),
        ("RUN <<-E\n\ta\n\t\tb\n\tE", "a\nb\n"),
        ("RUN << E\na\nE", "a\n"),
        ("RUN <<E\na \\\n# b\n\nE", "a \\\n# b\n\n"),
        // Anything beside the document: the shell reads it itself.
        ("RUN <<E bash\na\nE", "<<E bash\na\nE"),
        ("RUN cat <<E\na $x\nE", "cat <<E\na $x\nE"),
        ("RUN cat <<A && cat <<-'B'\na\nA\n\tb\n\tB", "cat <<A && cat <<-'B'\na\nA\n\tb\nB"),
        ("RUN cat <<A <<B\na\nA\nb\nB", "cat <<A <<B\na\nA\nb\nB"),
        ("RUN 3<<E cat <&3\na\nE", "3<<E cat <&3\na\nE"),
        ("RUN <<E\n #!/bin/sh\nE", " #!/bin/sh\n"),
        ("RUN <<$E\na\n$E", "a\n"),
    ] {
        assert_eq!(args(text), ["/bin/sh", "-c", expect], "{text:?}");
        assert!(ran(&stage(text)).scripts.is_empty(), "{text:?}");
    }
    for (text, name, data) in [
        ("RUN <<E\n#!/bin/sh\na\nE", "E", "#!/bin/sh\na\n"),
        ("RUN <<'my file'\n#! x\nmy file", "my file", "#! x\n"),
        ("RUN <<-E\n\t#!/x\n\ta\n\tE", "E", "#!/x\na\n"),
    ] {
        let done = stage(text);
        let run = ran(&done);
        assert_eq!(run.args, ["/bin/sh", "-c", &format!("/dev/pipes/{name}")], "{text:?}");
        assert_eq!((run.scripts[0].name.as_str(), run.scripts[0].data.as_str()), (name, data));
    }
}

#[test]
fn what_is_no_document() {
    for text in [
        "RUN echo \"<<E\"",
        "RUN echo '<<E'",
        "RUN echo \\<<E",
        "RUN echo <\\<E",
        "RUN a<<E",
        "RUN a <<<E",
        "RUN a <<",
        "RUN a <<\"\"",
        "RUN a 1<<2<3",
        "RUN [\"a\", \"<<E\"]",
        "CMD a <<E",
        "ENTRYPOINT a <<E",
        "HEALTHCHECK CMD a <<E",
        "ENV a=<<E",
        "LABEL a=<<E",
        "MAINTAINER <<E",
        "ONBUILD CMD <<E",
        "ONBUILD RUN [\"<<E\"]",
        "COPY [\"a\", \"<<E\", \"/d/\"]",
    ] {
        let done = stage(&format!("{text}\nENV after=1"));
        let env = &done.targets[0].config.env;
        assert!(env.iter().any(|(name, _)| name == "after"), "{text:?} swallowed the next line");
    }
    for text in ["RUN <<E\na", "COPY <<E /d/\nE \n", "RUN <<A <<B\nA\n", "ONBUILD RUN <<E\n"] {
        assert_eq!(stage_refused(text), "unterminated heredoc", "{text:?}");
    }
}

#[test]
fn triggers_keep_their_documents() {
    for (text, expect) in [
        ("ONBUILD RUN <<E\na\nE", "RUN <<E\na\nE"),
        ("ONBUILD COPY <<-'A' <<B /d/\n\t$x\n\tA\nb\nB", "COPY <<-'A' <<B /d/\n\t$x\nA\nb\nB"),
        ("ONBUILD  run   a", "run   a"),
        ("ONBUILD COPY --from=x a b", "COPY --from=x a b"),
        ("ONBUILD CMD [\"a\"]", "CMD [\"a\"]"),
    ] {
        assert_eq!(config(text).on_build, [expect], "{text:?}");
    }
    let done = lowered("FROM scratch AS p\nONBUILD RUN <<E cat\na $x\nE\nFROM p\n");
    assert_eq!(ran(&done).args, ["/bin/sh", "-c", "<<E cat\na $x\nE"]);
    let done = lowered("FROM scratch AS p\nONBUILD COPY <<-E /d\n\t$x\n\tE\nFROM p\n");
    assert_eq!(files(&done), [file("E", "\n")]);
}

#[test]
fn documents_name_their_step() {
    let label = |text: &str| {
        let done = stage(text);
        let last = done.graph.len() - 1;
        let id = NodeId(u32::try_from(last).expect("a small graph"));
        done.graph.node(id).steps[0].text.clone()
    };
    assert_eq!(label("RUN <<E\napt-get update\napt-get x\nE"), "RUN <<E (apt-get update...)");
    assert_eq!(label("RUN <<E\na\nE"), "RUN <<E (a)");
    assert_eq!(label("RUN <<E\n\n\na\n\nE"), "RUN <<E (a)");
    assert_eq!(label("RUN <<E cat\na\nE"), "RUN <<E cat");
}

#[test]
fn flags_stand_in_front() {
    let (none, default) = (Network::None, Network::Default);
    for (text, network, expect) in [
        ("RUN --network=none a", none, "a"),
        ("RUN  --network=none\t --security=sandbox  a", none, "a"),
        ("RUN --network=none -- --x a", none, "--x a"),
        ("RUN -- --network=none a", default, "--network=none a"),
        ("RUN --network=none --", none, ""),
        ("RUN - a", default, "- a"),
        ("RUN -x a", default, "-x a"),
        ("RUN a --network=none", default, "a --network=none"),
        ("RUN --network=\"none\" a", none, "a"),
        ("RUN --network='no'ne a", none, "a"),
        ("RUN --net\\work=n\\one a", none, "a"),
        ("RUN --\"network\"=none a", none, "a"),
        ("RUN --network=none \\\n a", none, "a"),
    ] {
        let done = stage(text);
        assert_eq!((ran(&done).network, ran(&done).args[2].as_str()), (network, expect), "{text}");
    }
    assert_eq!(config("CMD -- --a").cmd.expect("set")[2], "--a");
    assert_eq!(config("ENV -- --a=b").env[1], ("--a".to_owned(), "b".to_owned()));
    let copy = stage("COPY --exclude=a --chown=\"x y\" --exclude='b c' --exclude=d\\ e -- --f a /");
    assert_eq!(copied(&copy).exclude, ["a", "b c", "d e"]);
    assert_eq!(copied(&copy).chown.as_deref(), Some("x y"));
    assert_eq!(paths(&copy), ["--f", "a"]);
    let copy = stage("COPY a --link /");
    assert_eq!(
        (paths(&copy), copied(&copy).link),
        (vec!["a".to_owned(), "--link".to_owned()], false)
    );
    let mounts = stage("RUN --mount=type=tmpfs,target=/b --mount=\"type=tmpfs,target=/a c\" x");
    let targets: Vec<_> = ran(&mounts).mounts.iter().filter_map(Mount::target).collect();
    assert_eq!(targets, ["/b", "/a c"]);
    let escaped = lowered("# escape=`\nFROM scratch\nCOPY --exclude=a`\"b\\ x /\n");
    assert_eq!(copied(&escaped).exclude, ["a\"b\\"]);
}

#[test]
fn switches() {
    for (flag, expect) in [
        ("", false),
        ("--link", true),
        ("--link=true", true),
        ("--link=TRUE", true),
        ("--link=True", true),
        ("--link=false", false),
        ("--link=FALSE", false),
        ("--link=\"true\"", true),
    ] {
        assert_eq!(copied(&stage(&format!("COPY {flag} a /"))).link, expect, "{flag}");
        assert_eq!(copied(&stage(&format!("ADD {flag} a /"))).link, expect, "{flag}");
    }
    for value in ["1", "0", "yes", "t"] {
        let message = format!("expecting boolean value for flag --link, not: {value}");
        assert_eq!(stage_refused(&format!("COPY --link={value} a /")), message);
    }
}

#[test]
fn wrong_flags() {
    for (text, expect) in [
        ("COPY --link= a /", "missing a value on flag: --link"),
        ("COPY --from a /", "missing a value on flag: --from"),
        ("COPY --exclude a /", "missing a value on flag: --exclude"),
        ("COPY --chown a /", "missing a value on flag: --chown"),
        ("RUN --mount a", "missing a value on flag: --mount"),
        ("COPY --from=a --from=a a /", "duplicate flag specified: --from"),
        ("COPY --link --link=false a /", "duplicate flag specified: --link"),
        ("RUN --network=none --network=none a", "duplicate flag specified: --network"),
        ("RUN --mont=x a", "unknown flag: --mont (did you mean mount?)"),
        ("COPY --form=x a /", "unknown flag: --form (did you mean from?)"),
        ("COPY --FROM=x a /", "unknown flag: --FROM (did you mean from?)"),
        ("COPY ----from=x a /", "unknown flag: ----from (did you mean from?)"),
        ("COPY --=x a /", "unknown flag: --"),
        ("COPY --checksum=x a /", "unknown flag: --checksum"),
        ("ADD --from=x a /", "unknown flag: --from"),
        ("ADD --parents a /", "unknown flag: --parents"),
        ("CMD --a b", "unknown flag: --a"),
        ("ENTRYPOINT --a b", "unknown flag: --a"),
        ("SHELL --a [\"b\"]", "unknown flag: --a"),
        ("ENV --a=b c=d", "unknown flag: --a"),
        ("LABEL --a=b c=d", "unknown flag: --a"),
        ("ARG --a=b c", "unknown flag: --a"),
        ("EXPOSE --a 80", "unknown flag: --a"),
        ("VOLUME --a /b", "unknown flag: --a"),
        ("USER --a b", "unknown flag: --a"),
        ("WORKDIR --a /b", "unknown flag: --a"),
        ("STOPSIGNAL --a SIGINT", "unknown flag: --a"),
        ("ONBUILD --a RUN b", "unknown flag: --a"),
        ("MAINTAINER --a b", "unknown flag: --a"),
        ("HEALTHCHECK --a=1 CMD b", "unknown flag: --a"),
        ("HEALTHCHECK --intervall=1s CMD b", "unknown flag: --intervall (did you mean interval?)"),
        ("FROM --platfrom=x a", "unknown flag: --platfrom (did you mean platform?)"),
        ("FROM --a b", "unknown flag: --a"),
    ] {
        assert_eq!(stage_refused(text), expect, "{text:?}");
    }
    // In front of NONE they are not looked at.
    assert_eq!(config("HEALTHCHECK --a NONE").healthcheck.expect("set").test, ["NONE"]);
}
