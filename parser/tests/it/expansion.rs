//! Variables, after the Dockerfile reference ("Environment replacement", "Scope") and what BuildKit
//! does: every operator, in every instruction that expands; where nothing is expanded; which value
//! a name has.

use std::collections::BTreeMap;

use kiln_parser::graph::{Chmod, CopyFrom, ImageName, Mount, Op};
use kiln_parser::lower::{LowerOptions, Lowered};

use crate::{copied, lowered, options, ran, refused, try_lower};

/// What an expression gives, seen through ENV.
fn value(expression: &str) -> Result<String, String> {
    let text = format!(
        "FROM scratch\nENV set=value empty= path=a/b/c.tar.gz star=x*y? slash=a/b dots=1.2.3 \
         blank=\"x  y\" quote='\"' money='a$set'\nENV out={expression}\n"
    );
    let lowered = try_lower(&text, &options())?;
    let env = &lowered.targets[0].config.env;
    Ok(env.iter().find(|(name, _)| name == "out").expect("it is set").1.clone())
}

/// Expressions and what they give.
const VALUES: &[(&str, &str)] = &[
    // A name is letters, digits and `_`; digits alone; or one special character, never set.
    ("$set", "value"),
    ("${set}", "value"),
    ("$set.x$set-y", "value.xvalue-y"),
    ("${set}x", "valuex"),
    ("$setx", ""),
    ("a$unset/b", "a/b"),
    ("a${unset}b", "ab"),
    ("a${empty}b", "ab"),
    ("$1set", "set"),
    ("$10$0", ""),
    ("${1}${10}", ""),
    ("$@$*$#$?$-$$$!x", "x"),
    ("${@}${*}${#}${?}${-}${$}${!}x", "x"),
    ("${1:-w}${@:-w}${!:-w}", "www"),
    ("${1:+w}${@+w}", ""),
    ("$", "$"),
    ("$.$/$,", "$.$/$,"),
    ("a$", "a$"),
    // Defaults: the colon counts an empty value as unset.
    ("${unset:-w}${empty:-w}${set:-w}", "wwvalue"),
    ("${unset-w}${empty-w}${set-w}", "wvalue"),
    ("${unset:-}${unset-}", ""),
    ("${unset:+w}${empty:+w}${set:+w}", "w"),
    ("${unset+w}${empty+w}${set+w}", "ww"),
    ("${set:+}${set+}", ""),
    ("${set:?m}${set?m}${set:?}${set?}", "valuevaluevaluevalue"),
    ("${empty?m}${empty?}", ""),
    // The word is expanded itself, quotes and all.
    ("${unset:-$set}", "value"),
    ("${unset:-${set}}", "value"),
    ("${unset:-${empty:-${set:+deep}}}", "deep"),
    ("${unset:-\"a b\"}", "a b"),
    ("${unset:-'$set'}", "$set"),
    ("${unset:-\\$set}", "$set"),
    ("${unset:-\\}}", "}"),
    ("${unset:-{}}", "{}"),
    ("${unset:-\"}\"}", "}"),
    ("${set}}", "value}"),
    ("${unset:-a:-b}", "a:-b"),
    ("${unset:-/usr/${set}/x}", "/usr/value/x"),
    // Prefixes and suffixes, shortest and longest.
    ("${path#*/}", "b/c.tar.gz"),
    ("${path##*/}", "c.tar.gz"),
    ("${path%/*}", "a/b"),
    ("${path%%/*}", "a"),
    ("${path%.*}", "a/b/c.tar"),
    ("${path%%.*}", "a/b/c"),
    ("${path#a}", "/b/c.tar.gz"),
    ("${path#?}", "/b/c.tar.gz"),
    ("${path#??b}", "/c.tar.gz"),
    ("${path%gz}", "a/b/c.tar."),
    ("${path%x}", "a/b/c.tar.gz"),
    ("${path#x*}", "a/b/c.tar.gz"),
    ("${path#*}", "a/b/c.tar.gz"),
    ("${path##*}", ""),
    ("${path%%*}", ""),
    ("${path#}", "a/b/c.tar.gz"),
    ("${dots#[0-9]}", "1.2.3"),
    ("${dots##*.}", "3"),
    ("${star#x\\*}", "y?"),
    ("${star%\\?}", "x*y"),
    ("${path#$slash}", "/c.tar.gz"),
    ("${path#${slash%/b}}", "/b/c.tar.gz"),
    ("${unset#x}${unset%x}${empty##x}", ""),
    // Replacements: the first or all, the longest match, anywhere.
    ("${path/b/X}", "a/X/c.tar.gz"),
    ("${dots/./-}", "1-2.3"),
    ("${dots//./-}", "1-2-3"),
    ("${dots//./}", "123"),
    ("${dots/*/x}", "x"),
    ("${path/\\//_}", "a_b/c.tar.gz"),
    ("${path//\\//_}", "a_b_c.tar.gz"),
    ("${path//?/x}", "xxxxxxxxxxxx"),
    ("${path/c*/$set}", "a/b/value"),
    ("${path/$slash/x}", "x/c.tar.gz"),
    ("${dots/x/y}", "1.2.3"),
    ("${unset/x/y}", ""),
    // Quotes and escapes.
    ("'$set'", "$set"),
    ("'a\\b'", "a\\b"),
    ("\"$set\"", "value"),
    ("\"'$set'\"", "'value'"),
    ("'\"x\"'", "\"x\""),
    ("\"a\\\"b\"", "a\"b"),
    ("\"\\$set\"", "$set"),
    ("\"a\\\\b\"", "a\\b"),
    ("\"a\\nb\"", "a\\nb"),
    ("a\\nb", "anb"),
    ("\\$set", "$set"),
    ("\\\\$set", "\\value"),
    ("\\'x\\'", "'x'"),
    ("a\\ b", "a b"),
    ("\"a b\"c' d'", "a bc d"),
    ("\"\"''", ""),
    ("\\${set}", "${set}"),
    ("x\\", "x"),
    // What a value holds is not looked at again.
    ("$money", "a$set"),
    ("$quote", "\""),
    ("$blank", "x  y"),
    // Letters are letters: `seté` is a name.
    ("\u{e9}$set\u{e9}", "\u{e9}"),
];

#[test]
fn operators() {
    for (expression, expect) in VALUES {
        assert_eq!(value(expression).as_deref(), Ok(*expect), "{expression}");
    }
}

#[test]
fn what_cannot_be_expanded() {
    for (expression, expect) in [
        ("${unset:?gone}", "unset: gone"),
        ("${unset?gone}", "unset: gone"),
        ("${empty:?gone}", "empty: gone"),
        ("${unset:?$set}", "unset: value"),
        ("${unset:?}", "unset: is not allowed to be unset"),
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${set:=w}", "unsupported modifier (:=) in substitution"),
        ("${set=w}", "unsupported modifier (=) in substitution"),
        ("${set:0:3}", "unsupported modifier (:0) in substitution"),
        ("${set^^}", "unsupported modifier (^) in substitution"),
        ("${set,,}", "unsupported modifier (,) in substitution"),
        ("${set@Q}", "unsupported modifier (@) in substitution"),
        ("${!set}", "unsupported modifier (s) in substitution"),
        ("${#set}", "unsupported modifier (s) in substitution"),
        ("${set:#p}", "unsupported modifier (:#) in substitution"),
        ("${set:%p}", "unsupported modifier (:%) in substitution"),
        ("${set:}", "unsupported modifier (:}) in substitution"),
        ("${}", "syntax error: bad substitution"),
        ("${{set}}", "syntax error: bad substitution"),
        ("${:-w}", "syntax error: bad substitution"),
        ("${.}", "unsupported modifier (.) in substitution"),
        ("${", "syntax error: missing '}'"),
        ("${set", "unsupported modifier"),
        ("${unset:-w", "syntax error: missing '}'"),
        ("${unset:-${set}", "syntax error: missing '}'"),
        ("${path#*/", "syntax error: missing '}'"),
        ("${path/b}", "syntax error: missing '/' in ${}"),
        ("${path/b/x", "syntax error: missing '}'"),
        ("${path#\\a}", "invalid escape '\\a'"),
        ("${path/\\a/b}", "invalid escape '\\a'"),
        ("'a", "unexpected end of statement while looking for matching single-quote"),
        ("\"a", "unexpected end of statement while looking for matching double-quote"),
        ("\"a\\\"", "unexpected end of statement while looking for matching double-quote"),
    ] {
        let error = value(expression).expect_err(expression);
        assert!(error.contains(expect), "{expression}: {error}");
        assert!(error.starts_with("failed to process \""), "{expression}: {error}");
    }
}

/// A place in a Dockerfile where an expression stands (`@`), and what became of it.
struct Place {
    name: &'static str,
    /// Behind the variables.
    text: &'static str,
    /// A value that may stand there, and another one.
    values: (&'static str, &'static str),
    /// The variables are ARGs in front of FROM.
    global: bool,
    /// Quotes vanish.
    quotes: bool,
    found: fn(&Lowered) -> String,
}

const PLACE: Place = Place {
    name: "",
    text: "",
    values: ("value", "other"),
    global: false,
    quotes: true,
    found: |_| String::new(),
};

const DIGESTS: (&str, &str) = (
    "sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "sha256:1111111111111111111111111111111111111111111111111111111111111111",
);

const COPIES: &[Place] = &[
    Place { name: "COPY source", text: "COPY @ /d/", found: source, ..PLACE },
    Place { name: "COPY source in JSON", text: "COPY [\"@\", \"/d/\"]", found: source, ..PLACE },
    Place {
        name: "COPY destination",
        text: "COPY x /d/@",
        found: |lowered| copied(lowered).dest.trim_start_matches("/d/").to_owned(),
        ..PLACE
    },
    Place { name: "COPY --chown", text: "COPY --chown=@ x /", found: chown, ..PLACE },
    Place {
        name: "COPY --chmod",
        text: "COPY --chmod=@ x /",
        values: ("755", "640"),
        found: chmod,
        ..PLACE
    },
    Place {
        name: "COPY document",
        text: "COPY <<EOF /\n@\nEOF",
        quotes: false,
        found: inline,
        ..PLACE
    },
    Place { name: "ADD source", text: "ADD @ /d/", found: source, ..PLACE },
    Place {
        name: "ADD destination",
        text: "ADD x /d/@",
        found: |lowered| copied(lowered).dest.trim_start_matches("/d/").to_owned(),
        ..PLACE
    },
    Place { name: "ADD --chown", text: "ADD --chown=@ x /", found: chown, ..PLACE },
    Place {
        name: "ADD --chmod",
        text: "ADD --chmod=@ x /",
        values: ("755", "u+x"),
        found: chmod,
        ..PLACE
    },
    Place {
        name: "ADD --checksum",
        text: "ADD --checksum=@ https://e.org/f /",
        values: DIGESTS,
        found: |lowered| {
            let http = lowered.graph.ids().find_map(|id| match &lowered.graph.node(id).op {
                Op::Http(http) => http.checksum.clone(),
                _ => None,
            });
            http.unwrap_or_default()
        },
        ..PLACE
    },
    Place {
        name: "ADD document",
        text: "ADD <<-EOF /\n\t@\n\tEOF",
        quotes: false,
        found: inline,
        ..PLACE
    },
];

const CONFIGURATION: &[Place] = &[
    Place { name: "ENV value", text: "ENV out=@", found: |l| env(l, "out"), ..PLACE },
    Place { name: "ENV name", text: "ENV @=named", found: |l| env_named(l, "named"), ..PLACE },
    Place { name: "ENV, old form", text: "ENV out @", found: |l| env(l, "out"), ..PLACE },
    Place { name: "ARG", text: "ARG arg=@\nENV out=$arg", found: |l| env(l, "out"), ..PLACE },
    Place { name: "LABEL value", text: "LABEL out=@", found: |l| label(l, "out"), ..PLACE },
    Place {
        name: "LABEL name",
        text: "LABEL @=named",
        found: |lowered| {
            let labels = &lowered.targets[0].config.labels;
            labels.iter().find(|(_, v)| *v == "named").map(|(k, _)| k.clone()).unwrap_or_default()
        },
        ..PLACE
    },
    Place { name: "LABEL, old form", text: "LABEL out @", found: |l| label(l, "out"), ..PLACE },
    Place {
        name: "EXPOSE",
        text: "EXPOSE @",
        values: ("80/tcp", "53/udp"),
        found: |lowered| {
            let ports = &lowered.targets[0].config.exposed_ports;
            ports.iter().cloned().collect::<Vec<_>>().join(" ")
        },
        ..PLACE
    },
    Place {
        name: "STOPSIGNAL",
        text: "STOPSIGNAL @",
        values: ("SIGINT", "SIGHUP"),
        found: |lowered| lowered.targets[0].config.stop_signal.clone(),
        ..PLACE
    },
    Place {
        name: "USER",
        text: "USER @",
        found: |lowered| lowered.targets[0].config.user.clone(),
        ..PLACE
    },
    Place { name: "VOLUME", text: "VOLUME @", found: volumes, ..PLACE },
    Place { name: "VOLUME in JSON", text: "VOLUME [\"@\"]", found: volumes, ..PLACE },
    Place {
        name: "WORKDIR",
        text: "WORKDIR /@",
        found: |lowered| lowered.targets[0].config.working_dir.replace('/', ""),
        ..PLACE
    },
];

const MOUNTS: &[Place] = &[
    Place {
        name: "target",
        text: "RUN --mount=type=tmpfs,target=/@ x",
        found: |lowered| mount(lowered).target().unwrap_or_default().replace('/', ""),
        ..PLACE
    },
    Place {
        name: "source",
        text: "RUN --mount=source=/@,target=/t x",
        found: |lowered| match mount(lowered) {
            Mount::Bind { source, .. } => source.replace('/', ""),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
    Place {
        name: "type",
        text: "RUN --mount=type=@,target=/t x",
        values: ("tmpfs", "ssh"),
        found: |lowered| match mount(lowered) {
            Mount::Tmpfs { .. } => "tmpfs".to_owned(),
            Mount::Ssh { .. } => "ssh".to_owned(),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
    Place {
        name: "size",
        text: "RUN --mount=type=tmpfs,target=/t,size=@ x",
        values: ("17", "4711"),
        found: |lowered| match mount(lowered) {
            Mount::Tmpfs { size: Some(size), .. } => size.to_string(),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
    Place {
        name: "id",
        text: "RUN --mount=type=secret,id=@ x",
        found: |lowered| match mount(lowered) {
            Mount::Secret { id, .. } => id.clone(),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
    Place {
        name: "env",
        text: "RUN --mount=type=secret,id=i,env=@ x",
        found: |lowered| match mount(lowered) {
            Mount::Secret { env: Some(env), .. } => env.clone(),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
    Place {
        name: "required",
        text: "RUN --mount=type=secret,id=i,required=@ x",
        values: ("true", "false"),
        found: |lowered| match mount(lowered) {
            Mount::Secret { required, .. } => required.to_string(),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
    Place {
        name: "sharing",
        text: "RUN --mount=type=cache,target=/c,sharing=@ x",
        values: ("locked", "private"),
        found: |lowered| match mount(lowered) {
            Mount::Cache { sharing, .. } => format!("{sharing:?}").to_lowercase(),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
    Place {
        name: "mode",
        text: "RUN --mount=type=cache,target=/c,mode=@ x",
        values: ("711", "700"),
        found: |lowered| format!("{:o}", owner(lowered).0),
        ..PLACE
    },
    Place {
        name: "uid",
        text: "RUN --mount=type=cache,target=/c,uid=@ x",
        values: ("1000", "7"),
        found: |lowered| owner(lowered).1.to_string(),
        ..PLACE
    },
    Place {
        name: "gid",
        text: "RUN --mount=type=cache,target=/c,gid=@ x",
        values: ("1000", "7"),
        found: |lowered| owner(lowered).2.to_string(),
        ..PLACE
    },
    Place {
        name: "readonly",
        text: "RUN --mount=type=cache,target=/c,readonly=@ x",
        values: ("true", "false"),
        found: |lowered| match mount(lowered) {
            Mount::Cache { read_only, .. } => read_only.to_string(),
            other => panic!("{other:?}"),
        },
        ..PLACE
    },
];

const STAGES: &[Place] = &[
    Place { name: "FROM", text: "FROM @", global: true, found: |l| base(l).0, ..PLACE },
    Place {
        name: "FROM --platform",
        text: "FROM --platform=@ image",
        values: ("linux/arm64", "linux/s390x"),
        global: true,
        found: |l| base(l).1,
        ..PLACE
    },
    Place {
        name: "ARG in front of FROM",
        text: "ARG arg=@\nFROM scratch\nARG arg\nENV out=$arg",
        global: true,
        found: |l| env(l, "out"),
        ..PLACE
    },
];

fn source(lowered: &Lowered) -> String {
    copied(lowered).sources[0].path.clone()
}

fn inline(lowered: &Lowered) -> String {
    match &copied(lowered).sources[0].from {
        CopyFrom::Inline(file) => file.data.trim_end().to_owned(),
        other => panic!("no document: {other:?}"),
    }
}

fn chown(lowered: &Lowered) -> String {
    copied(lowered).chown.clone().unwrap_or_default()
}

fn chmod(lowered: &Lowered) -> String {
    match &copied(lowered).chmod {
        Some(Chmod::Octal(mode)) => format!("{mode:o}"),
        Some(Chmod::Symbolic(text)) => text.clone(),
        None => String::new(),
    }
}

fn env(lowered: &Lowered, name: &str) -> String {
    let env = &lowered.targets[0].config.env;
    env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()).unwrap_or_default()
}

fn env_named(lowered: &Lowered, value: &str) -> String {
    let env = &lowered.targets[0].config.env;
    env.iter().find(|(_, v)| v == value).map(|(name, _)| name.clone()).unwrap_or_default()
}

fn label(lowered: &Lowered, name: &str) -> String {
    lowered.targets[0].config.labels.get(name).cloned().unwrap_or_default()
}

fn volumes(lowered: &Lowered) -> String {
    lowered.targets[0].config.volumes.iter().cloned().collect::<Vec<_>>().join(" ")
}

fn mount(lowered: &Lowered) -> &Mount {
    &ran(lowered).mounts[0]
}

fn owner(lowered: &Lowered) -> (u32, u32, u32) {
    match mount(lowered) {
        Mount::Cache { owner: Some(owner), .. } => *owner,
        other => panic!("{other:?}"),
    }
}

fn base(lowered: &Lowered) -> (String, String) {
    let key = lowered.targets[0].base.as_ref().expect("an image");
    match &key.name {
        ImageName::Reference(name) => (name.clone(), key.platform.to_string()),
        other @ ImageName::Context(_) => panic!("{other:?}"),
    }
}

/// The file with an expression in its place. `V` and `W` are the place's values.
fn file(place: &Place, expression: &str) -> String {
    let (v, w) = place.values;
    let expression = expression.replace('V', v).replace('W', w);
    let word = if place.global { "ARG" } else { "FROM scratch\nENV" };
    let variables = format!("{word} s={v} e= long=x_y_{v} tail={v}_x_y double=_{v}_ many=__{v}\n");
    // In JSON, quotes and escapes of the expression are escaped once more.
    let json = place.text.contains("[\"");
    let expression =
        if json { expression.replace('\\', "\\\\").replace('"', "\\\"") } else { expression };
    format!("{variables}{}\n", place.text.replace('@', &expression))
}

#[test]
fn everything_that_expands_knows_all_operators() {
    for place in COPIES.iter().chain(CONFIGURATION).chain(MOUNTS).chain(STAGES) {
        let (v, w) = place.values;
        for (expression, expect) in [
            ("$s", v),
            ("${s}", v),
            ("${u}${s}${e}", v),
            ("${u:-W}", w),
            ("${e:-W}", w),
            ("${s:-W}", v),
            ("${u-W}", w),
            ("${e-W}$s", v),
            ("${s:+W}", w),
            ("${e:+W}$s", v),
            ("${u:+W}$s", v),
            ("${e+W}", w),
            ("${u+W}$s", v),
            ("${s:?no}", v),
            ("${e?no}$s", v),
            ("${long##*_}", v),
            ("${long#x_y_}", v),
            ("${tail%%_*}", v),
            ("${tail%_x_*}", v),
            ("${long/x_y_/}", v),
            ("${many//_/}", v),
            ("${s/*/W}", w),
            ("${u:-${e:-$s}}", v),
            ("${u:-${e:-W}}", w),
        ] {
            let text = file(place, expression);
            assert_eq!((place.found)(&lowered(&text)), expect, "{}: {text}", place.name);
        }
        let quoted = [("\"$s\"", v), ("'V'", v), ("\"${u:-W}\"", w), ("${u:-\"W\"}", w)];
        for (expression, expect) in quoted {
            let text = file(place, expression);
            let found = (place.found)(&lowered(&text));
            let text_of_document =
                expression.replace("$s", v).replace('V', v).replace("${u:-W}", w);
            match (place.quotes, expression) {
                (true, _) => assert_eq!(found, expect, "{}: {text}", place.name),
                (false, "${u:-\"W\"}") => assert_eq!(found, format!("\"{w}\""), "{text}"),
                (false, _) => assert_eq!(found, text_of_document, "{}: {text}", place.name),
            }
        }
        for (expression, why) in [
            ("${u:?why}", "u: why"),
            ("${u?}", "u: is not allowed to be unset"),
            ("${e:?}", "e: is not allowed to be empty"),
            ("${s^^}", "unsupported modifier (^) in substitution"),
            ("${s@Q}", "unsupported modifier (@) in substitution"),
            ("${}", "bad substitution"),
            ("${s/_}", "missing '/' in ${}"),
        ] {
            let text = file(place, expression);
            let error = refused(&text);
            assert!(error.contains(why), "{}: {error} in {text}", place.name);
        }
    }
}

#[test]
fn escapes_keep_a_dollar() {
    for (text, found, expect) in [
        ("COPY \\$s /d/", source as fn(&Lowered) -> String, "$s"),
        ("COPY '$s' /d/", source, "$s"),
        ("ADD \"\\$s\" /d/", source, "$s"),
        ("COPY --chown=\\\\\\$s x /", chown, "$s"),
        // Quotes of a flag are gone before variables are looked for.
        ("COPY --chown='$s' x /", chown, "v"),
        ("COPY --chown=\\$s x /", chown, "v"),
        ("ENV out=\\$s", |l| env(l, "out"), "$s"),
        ("LABEL out='$s'", |l| label(l, "out"), "$s"),
        ("ARG a='$s'\nENV out=$a", |l| env(l, "out"), "$s"),
        ("VOLUME \\$s", volumes, "$s"),
        ("USER \\$s", |l| l.targets[0].config.user.clone(), "$s"),
        ("WORKDIR /\\$s", |l| l.targets[0].config.working_dir.clone(), "/$s"),
        ("COPY <<E /\n\\$s $s '$s' \"\\$s\" \\\\ \\n\nE", inline, "$s v 'v' \"$s\" \\ n"),
        ("COPY <<'E' /\n$s \\$s ${\nE", inline, "$s \\$s ${"),
        ("COPY <<\"E\" /\n$s\nE", inline, "$s"),
        ("COPY <<E'' /\n$s\nE", inline, "$s"),
    ] {
        let text = format!("FROM scratch\nENV s=v\n{text}\n");
        assert_eq!(found(&lowered(&text)), expect, "{text}");
    }
    // The escape character of the directive holds everywhere but in documents.
    let text = "# escape=`\nFROM scratch\nENV s=v\nENV a=`$s b=\\$s\nCOPY <<E /\n`$s \\$s\nE\n";
    let done = lowered(text);
    assert_eq!((env(&done, "a").as_str(), env(&done, "b").as_str()), ("$s", "\\v"));
    assert_eq!(inline(&done), "`v $s");
}

#[test]
fn blanks_of_values_split_only_ports() {
    let done = lowered("FROM scratch\nENV b=\"1 2\"\nEXPOSE $b\nCOPY $b /d/\nVOLUME $b\nUSER $b\n");
    assert_eq!(done.targets[0].config.exposed_ports.iter().collect::<Vec<_>>(), ["1/tcp", "2/tcp"]);
    let sources: Vec<&str> = copied(&done).sources.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(sources, ["1 2"]);
    assert_eq!(volumes(&done), "1 2");
    assert_eq!(done.targets[0].config.user, "1 2");
}

#[test]
fn commands_are_not_expanded() {
    let word = "$s ${s} ${s:-w} ${";
    let json = format!("[\"{word}\", \"\\\\$s\"]");
    let exec = [word, "\\$s"];
    let shell = ["/bin/sh", "-c", word];
    let lower = |text: String| lowered(&format!("FROM scratch\nENV s=v\n{text}\n"));
    assert_eq!(ran(&lower(format!("RUN {word}"))).args, shell);
    assert_eq!(ran(&lower(format!("RUN {json}"))).args, exec);
    let document = format!("RUN <<E\n{word}\nE");
    assert_eq!(ran(&lower(document)).args, ["/bin/sh", "-c", &format!("{word}\n")]);
    let config = |text: String| lower(text).targets[0].config.clone();
    assert_eq!(config(format!("CMD {word}")).cmd.expect("set"), shell);
    assert_eq!(config(format!("CMD {json}")).cmd.expect("set"), exec);
    assert_eq!(config(format!("ENTRYPOINT {word}")).entrypoint.expect("set"), shell);
    assert_eq!(config(format!("ENTRYPOINT {json}")).entrypoint.expect("set"), exec);
    let check = config(format!("HEALTHCHECK CMD {word}")).healthcheck.expect("set");
    assert_eq!(check.test, ["CMD-SHELL", word]);
    let check = config(format!("HEALTHCHECK CMD {json}")).healthcheck.expect("set");
    assert_eq!(check.test, ["CMD", word, "\\$s"]);
    assert_eq!(config(format!("SHELL {json}")).shell, exec);
    assert_eq!(config(format!("ONBUILD RUN {word}")).on_build, [format!("RUN {word}")]);
    assert_eq!(config("ONBUILD COPY $s /".to_owned()).on_build, ["COPY $s /"]);
    assert_eq!(config(format!("MAINTAINER {word}")).author, word);
    let copy = lower("COPY --exclude=$s --exclude='${s' x /".to_owned());
    assert_eq!(copied(&copy).exclude, ["$s", "${s"]);
    let add = lower("ADD --exclude=$s x /".to_owned());
    assert_eq!(copied(&add).exclude, ["$s"]);
}

#[test]
fn names_of_stages_are_not_expanded() {
    let from = "variable expansion is not supported for --from, define a new stage with FROM \
                using ARG from global scope as a workaround";
    let mount = "'from' doesn't support variable expansion, define alias stage instead";
    for (text, expect) in [
        ("COPY --from=$s a b", from),
        ("COPY --from=${s} a b", from),
        ("COPY --from=x$s a b", from),
        ("RUN --mount=from=$s,target=/t x", mount),
        ("RUN --mount=type=cache,target=/t,FROM=x${s} x", mount),
        ("RUN --network=$s x", "invalid network mode \"$s\""),
        ("RUN --security=$s x", "security \"$s\" is not valid"),
    ] {
        let text = format!("FROM scratch AS v\nFROM scratch\nENV s=v\n{text}\n");
        assert_eq!(refused(&text), expect, "{text}");
    }
    // A stage's own arguments do not reach FROM.
    let text = "FROM scratch\nARG a=image\nFROM $a\n";
    assert_eq!(refused(text), "base name ($a) should not be blank");
    let text = "FROM scratch\nENV a=linux/arm64\nFROM --platform=$a image\n";
    assert_eq!(refused(text), "empty platform value from expression $a");
}

/// What the last RUN sees of a variable.
fn seen(done: &Lowered, name: &str) -> Option<String> {
    ran(done).env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone())
}

#[test]
fn scopes() {
    for (text, expect) in [
        // One instruction sees what was before it.
        ("ENV a=1\nENV a=2 b=$a", Some("1")),
        ("ARG a=1\nARG a=2 b=$a", Some("2")),
        ("ENV a=1 b=$a", Some("")),
        ("ARG a=1 b=$a", Some("1")),
        // ARG without a value, ARG with an empty one.
        ("ARG b", None),
        ("ARG b=", Some("")),
        ("ARG b=\"\"", Some("")),
        // The last one to write wins, whichever it is.
        ("ARG b=1\nENV b=2", Some("2")),
        ("ENV b=1\nARG b=2", Some("2")),
        ("ENV b=1\nARG b", Some("1")),
        ("ARG b=1\nARG b", Some("1")),
        ("ENV b=$b", Some("")),
        ("ENV b=1\nENV b=${b}2", Some("12")),
        // Several at once; quotes as in ENV.
        ("ARG x=1 b=\"y z\" z", Some("y z")),
        ("ARG 'b'=1", None),
    ] {
        let text = format!("FROM scratch\n{text}\nRUN x\n");
        assert_eq!(seen(&lowered(&text), "b").as_deref(), expect, "{text}");
    }
    let done = lowered("FROM scratch\nENV b=1\nARG b=2 c=3\nRUN x\n");
    assert_eq!((env(&done, "b").as_str(), env(&done, "c").as_str()), ("1", ""));
    assert_eq!(refused("FROM scratch\nARG =x\n"), "ARG names can not be blank");
    assert_eq!(refused("FROM scratch\nARG\n"), "ARG requires at least one argument");
}

#[test]
fn global_arguments() {
    for (text, expect) in [
        ("ARG g=1\nFROM scratch\nENV b=$g", Some("")),
        ("ARG g=1\nFROM scratch\nARG g\nENV b=$g", Some("1")),
        ("ARG g=1\nFROM scratch\nARG g=2\nENV b=$g", Some("2")),
        ("ARG g=1\nARG h=${g}2\nFROM scratch\nARG h\nENV b=$h", Some("12")),
        ("ARG g=1\nARG g=2\nFROM scratch\nARG g\nENV b=$g", Some("2")),
        ("ARG g\nFROM scratch\nARG g\nENV b=${g-unset}", Some("unset")),
        ("ARG g=${TARGETARCH}\nFROM scratch\nARG g\nENV b=$g", Some("amd64")),
        ("FROM scratch\nENV b=$TARGETARCH", Some("")),
        ("FROM scratch\nARG TARGETARCH\nENV b=$TARGETARCH", Some("amd64")),
        ("FROM scratch\nARG BUILDPLATFORM\nENV b=$BUILDPLATFORM", Some("linux/amd64")),
        ("FROM scratch\nARG TARGETSTAGE\nENV b=$TARGETSTAGE", Some("default")),
        ("FROM scratch AS last\nARG TARGETSTAGE\nENV b=$TARGETSTAGE", Some("last")),
        ("FROM scratch\nARG TARGETVARIANT\nENV b=${TARGETVARIANT-unset}", Some("")),
        // Children of a stage have its arguments, others have not.
        ("FROM scratch AS p\nARG a=1\nFROM p\nENV b=$a", Some("1")),
        ("FROM scratch AS p\nARG a=1\nFROM scratch\nENV b=$a", Some("")),
        ("FROM scratch AS p\nENV a=1\nFROM p\nENV b=$a", Some("1")),
    ] {
        let text = format!("{text}\nRUN x\n");
        assert_eq!(seen(&lowered(&text), "b").as_deref(), expect, "{text}");
    }
}

fn given(text: &str, arguments: &[(&str, &str)]) -> Lowered {
    let pairs = arguments.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    let build_args: BTreeMap<String, String> = pairs.collect();
    let options = LowerOptions { build_args, ..options() };
    try_lower(text, &options).unwrap_or_else(|why| panic!("{why} in\n{text}"))
}

#[test]
fn given_arguments() {
    for (text, expect) in [
        ("FROM scratch\nARG a\nENV b=$a", "given"),
        ("FROM scratch\nARG a=default\nENV b=$a", "given"),
        ("ARG a=global\nFROM scratch\nARG a=default\nENV b=$a", "given"),
        ("ARG a=global\nARG c=${a}\nFROM scratch\nARG c\nENV b=$c", "given"),
        ("FROM scratch\nENV b=$a", ""),
        ("FROM scratch\nENV a=env\nARG a\nENV b=$a", "given"),
        ("FROM scratch\nARG a\nENV a=env\nENV b=$a", "env"),
        // What is given is not expanded, and the default that it replaces need not make sense.
        ("FROM scratch\nARG a=${x:?gone}\nENV b=$a", "given"),
        ("FROM scratch\nARG d\nENV b=$d", "$a"),
        ("FROM scratch\nARG empty=default\nENV b=$empty", ""),
        ("FROM scratch\nARG TARGETARCH\nENV b=$TARGETARCH", "mine"),
    ] {
        let text = format!("{text}\nRUN x\n");
        let arguments =
            [("a", "given"), ("d", "$a"), ("empty", ""), ("TARGETARCH", "mine"), ("no", "use")];
        assert_eq!(seen(&given(&text, &arguments), "b").as_deref(), Some(expect), "{text}");
    }
}

#[test]
fn proxies_need_no_argument() {
    let done = given("FROM scratch\nRUN x\n", &[("http_proxy", "p"), ("No_Proxy", "n")]);
    let run = ran(&done);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expect = [
        pair("HTTP_PROXY", "p"),
        pair("http_proxy", "p"),
        pair("NO_PROXY", "n"),
        pair("no_proxy", "n"),
    ];
    assert_eq!(*run.proxy, expect);
    assert!(run.env.iter().all(|(name, _)| name == "PATH"), "{:?}", run.env);
    let history = &done.targets[0].history.last().expect("RUN").created_by;
    assert_eq!(history, "RUN /bin/sh -c x # buildkit");
    let declared = given("FROM scratch\nARG http_proxy\nRUN x\n", &[("http_proxy", "p")]);
    assert_eq!(seen(&declared, "http_proxy").as_deref(), Some("p"));
}

#[test]
fn a_search_path_is_always_there() {
    let done = lowered("FROM scratch\nENV a=$PATH\n");
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!((env(&done, "PATH").as_str(), env(&done, "a").as_str()), (path, path));
    let done = lowered("FROM image\nENV PATH=/x:$PATH\n");
    assert_eq!(env(&done, "PATH"), format!("/x:{path}"));
}

#[test]
fn values_do_not_eat_the_memory() {
    let large = format!("FROM scratch\nENV a={}\n", "a".repeat(1 << 20));
    for (text, why) in [
        (format!("{large}{}", "LABEL l=$a\n".repeat(300)), "beyond 256 MiB together"),
        (format!("{large}ENV b=${{a//a/$a}}\n"), "grows beyond 16777216 bytes"),
        (format!("FROM scratch\nENV a=x\n{}", "ENV a=\"$a$a\"\n".repeat(40)), "grows beyond"),
        (
            (0..6000).fold("FROM scratch\n".to_owned(), |text, number| {
                text + &format!("ENV e{number}=1\nRUN x\n")
            }),
            "beyond 256 MiB together",
        ),
    ] {
        let told = refused(&text);
        assert!(told.contains(why), "{told:.200}");
    }
}
