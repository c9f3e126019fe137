//! Golden graphs: every Dockerfile of `testdata/dockerfiles` against what lowering made of it before.

mod corpus;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kiln_parser::config::ImageConfig;
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

/// Lowers with a made-up image behind every name.
fn lowered(text: &str) -> Lowered {
    let source = Source::new("Dockerfile", text.to_owned());
    let (dockerfile, diagnostics) = parse(&source);
    assert!(diagnostics.is_empty(), "{diagnostics:?}");
    let options = LowerOptions { build_platform: amd64(), ..LowerOptions::default() };
    let mut known = Known::new();
    loop {
        match lower(&dockerfile, &options, &known).expect("it lowers") {
            Lowering::Done(lowered) => return *lowered,
            Lowering::NeedImages(requests) => {
                for request in requests {
                    let image = BaseImage {
                        unknown: false,
                        digest: "sha256:0".to_owned(),
                        config: ImageConfig::default(),
                        platform: amd64(),
                        diff_ids: vec![format!("sha256:{}", "1".repeat(64))],
                    };
                    known.insert(request.key, image);
                }
            }
        }
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
