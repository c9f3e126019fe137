//! Large files of a megabyte: what each instruction adds is copied for none of those behind it, and what has to be is
//! bounded. Where that were not so these tests would take gigabytes.

use crate::{lowered, refused};

const STAGES: usize = 10_000;

/// A stage on the other, each with the instruction; `@` is its number.
fn chain(instruction: &str) -> String {
    let stage = |number: usize| {
        let instruction = instruction.replace('@', &number.to_string());
        format!("FROM s{} AS s{number}\n{instruction}\n", number - 1)
    };
    format!("FROM scratch AS s0\n{}", (1..STAGES).map(stage).collect::<String>())
}

#[test]
fn long_lines_of_stages_are_lowered() {
    let target = |instruction: &str| lowered(&chain(instruction)).targets.remove(0);
    let config = |instruction: &str| target(instruction).config;
    assert_eq!(config("ENV a@=1").env.len(), STAGES, "with PATH");
    assert_eq!(config("LABEL a@=1").labels.len(), STAGES - 1);
    assert_eq!(config("EXPOSE @").exposed_ports.len(), STAGES - 1);
    assert_eq!(config("VOLUME /v@").volumes.len(), STAGES - 1);
    assert_eq!(target("RUN @").history.len(), STAGES - 1);
    assert_eq!(target("ARG a@").history.len(), STAGES - 1);
}

#[test]
fn what_is_copied_is_bounded() {
    let large = "u".repeat(400_000);
    let runs = "RUN a\n".repeat(20_000);
    let branches = "FROM base\nENV b=1\n".repeat(20_000);
    let environment: String = (0..3_000).map(|number| format!("ENV a{number}=1\n")).collect();
    let used: String = (0..3_000).map(|number| format!("FROM base AS b{number}\n")).collect();
    let sources: String = (0..3_000).map(|number| format!("COPY --from=b{number} a /\n")).collect();
    for text in [
        format!("FROM scratch\nUSER {large}\n{runs}"),
        format!("FROM scratch\nWORKDIR /{large}\n{runs}"),
        format!("FROM scratch\nSHELL [\"{large}\"]\n{runs}"),
        format!("FROM scratch AS {large}\nRUN b\n{runs}"),
        format!("FROM scratch\n{}", "WORKDIR aaa\n".repeat(20_000)),
        format!("FROM scratch AS base\n{environment}{used}FROM base\n{sources}"),
    ] {
        let refused = refused(&text);
        assert!(refused.contains("grow beyond 256 MiB together"), "{:.60}: {refused:.200}", text);
    }
    // Nobody needs the others.
    assert_eq!(lowered(&format!("FROM scratch AS base\n{environment}{branches}")).graph.len(), 0);
}
