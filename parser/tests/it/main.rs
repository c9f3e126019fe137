//! Golden graphs: every Dockerfile of `testdata/dockerfiles` against what lowering made of it before.
//! The tables of the language's rules are in the modules.

mod corpus;
mod expansion;
mod forms;
mod growth;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_parser::config::ImageConfig;
use kiln_parser::graph::{CopyOp, Input, Op, RunOp};
use kiln_parser::lower::{BaseImage, Known, LowerOptions, Lowered, Lowering, lower};
use kiln_parser::platform::Platform;
use kiln_parser::source::Source;
use kiln_parser::tree::parse;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/dockerfiles")
}

fn amd64() -> Platform {
    "linux/amd64".parse().expect("a platform")
}

/// Lowers with a made-up image behind every name; the first message where that cannot be done.
fn try_lower(text: &str, options: &LowerOptions) -> Result<Lowered, String> {
    let source = Source::new("Dockerfile", text.to_owned());
    let (dockerfile, diagnostics) = parse(&source);
    if let Some(first) = diagnostics.first() {
        return Err(first.message.clone());
    }
    let mut known = Known::new();
    loop {
        match lower(&dockerfile, options, &known) {
            Ok(Lowering::Done(lowered)) => return Ok(*lowered),
            Ok(Lowering::NeedImages(requests)) => {
                for request in requests {
                    let image = BaseImage {
                        unknown: false,
                        digest: "sha256:0".to_owned(),
                        config: ImageConfig::default(),
                        platform: request.key.platform.clone(),
                        diff_ids: vec![format!("sha256:{}", "1".repeat(64))],
                    };
                    known.insert(request.key, image);
                }
            }
            // What lints found stands in front of the error.
            Err(diagnostics) => {
                return Err(diagnostics.last().expect("a reason").message.clone());
            }
        }
    }
}

fn options() -> LowerOptions {
    LowerOptions { build_platform: amd64(), ..LowerOptions::default() }
}

/// Lowers what has to be right.
fn lowered(text: &str) -> Lowered {
    try_lower(text, &options()).unwrap_or_else(|why| panic!("{why} in\n{text}"))
}

/// Why something is refused that has to be wrong.
fn refused(text: &str) -> String {
    match try_lower(text, &options()) {
        Ok(_) => panic!("no error in\n{text}"),
        Err(why) => why,
    }
}

/// The node that made the target's files.
fn last(lowered: &Lowered) -> &Op {
    match lowered.targets[0].snapshot {
        Input::Node(id) => &lowered.graph.node(id).op,
        Input::Scratch => panic!("no files"),
    }
}

fn copied(lowered: &Lowered) -> &CopyOp {
    match last(lowered) {
        Op::Copy(copy) => copy,
        other => panic!("no COPY: {other:?}"),
    }
}

fn ran(lowered: &Lowered) -> &RunOp {
    match last(lowered) {
        Op::Run(run) => run,
        other => panic!("no RUN: {other:?}"),
    }
}

fn describe(lowered: &Lowered) -> String {
    let mut text = String::new();
    for id in lowered.graph.ids() {
        let node = lowered.graph.node(id);
        let inputs: Vec<u32> = node.op.inputs().iter().map(|input| input.0).collect();
        let label = node.steps.first().map(|step| step.label.as_str()).unwrap_or_default();
        writeln!(text, "{} <- {inputs:?} {}", id.0, label.replace('\n', "\\n")).expect("a string");
    }
    for target in &lowered.targets {
        writeln!(text, "target {} {:?}\n{:#?}", target.platform, target.snapshot, target.config)
            .expect("a string");
        for entry in &target.history {
            writeln!(text, "{:?} {}", entry.node.map(|node| node.0), entry.created_by)
                .expect("a string");
        }
    }
    text
}

#[test]
fn graphs_are_as_before() {
    let mut seen = 0;
    for entry in fs::read_dir(folder()).expect("testdata/dockerfiles is there") {
        let path = entry.expect("readable").path();
        if path.extension().is_none_or(|extension| extension != "Dockerfile") {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&path).expect("readable");
        let graph = describe(&lowered(&text));
        let golden = path.with_extension("graph");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&golden, &graph).expect("written");
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(graph, expected, "{}: UPDATE_EXPECT=1 writes it anew", path.display());
    }
    assert!(seen >= 3, "only {seen} Dockerfiles in testdata");
}

#[test]
fn equal_texts_give_equal_graphs() {
    let text = fs::read_to_string(folder().join("language.Dockerfile")).expect("readable");
    assert_eq!(describe(&lowered(&text)), describe(&lowered(&text)));
}

#[test]
fn large_files_lower() {
    let mut text = String::from("FROM a AS s0\n");
    for stage in 1..1000 {
        writeln!(text, "FROM s{} AS s{stage}", stage - 1).expect("a string");
        for step in 0..9 {
            writeln!(text, "RUN echo {stage} {step}").expect("a string");
        }
    }
    assert_eq!(lowered(&text).graph.len(), 999 * 9 + 1);
}
