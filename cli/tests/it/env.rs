//! A hermetic place for one test: its own store, home and context; both streams kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A test's own world; everything in it goes when it is dropped.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// It must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the context folder `ctx`.
    pub(crate) fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.path("ctx").join(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("folder made");
        fs::write(path, text).expect("file written");
        self
    }

    /// `kiln`, with nothing of the caller's environment but PATH.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(kiln());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").expect("PATH is set"))
            .env("HOME", self.dir.path())
            .env("KILN_ROOT", self.path("store"))
            .env("TMPDIR", self.dir.path())
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// As [`World::command`], but `PROGRAM ARGS… kiln`.
    pub(crate) fn started_by(&self, program: &str, args: &[&str]) -> Command {
        let plain = self.command();
        let mut command = Command::new(program);
        command.args(args).arg(kiln()).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn kiln(&self, args: &[&str]) -> Said {
        said(&self.command().args(args).output().expect("kiln starts"))
    }

    /// What `kiln doctor` says that this machine lacks of one thing that steps need.
    pub(crate) fn lacks(&self, name: &str) -> Option<String> {
        let told = self.kiln(&["doctor", "--json"]).ok().out;
        let document: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        let findings = document["findings"].as_array().expect("a list").clone();
        let found = findings.iter().find(|found| found["name"] == name);
        found.expect("looked at")["lack"].as_str().map(str::to_owned)
    }

    /// `kiln build --progress plain ARGS… ctx`.
    pub(crate) fn build(&self, args: &[&str]) -> Said {
        let mut all = vec!["build", "--progress", "plain"];
        all.extend_from_slice(args);
        all.push("ctx");
        self.kiln(&all)
    }

    /// Imports busybox as the image `busybox`.
    pub(crate) fn busybox(&self) -> &Self {
        let root = self.path("busybox");
        for folder in ["bin", "etc", "tmp", "root"] {
            fs::create_dir_all(root.join(folder)).expect("folder made");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for name in [
            "sh", "cat", "echo", "ls", "sleep", "touch", "mkdir", "rm", "true", "false", "id",
            "wc", "grep", "sync",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("link made");
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").expect("file written");
        tool(
            "tar",
            &[
                "-C",
                &text(&root),
                "--mtime=@0",
                "--sort=name",
                "-cf",
                &text(&self.path("busybox.tar")),
                ".",
            ],
        );
        self.kiln(&["import", "busybox.tar", "busybox"]).ok();
        self
    }
}

/// The binary under test.
pub(crate) fn kiln() -> PathBuf {
    std::env::var_os("KILN_TEST_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_kiln")), PathBuf::from)
}

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn said(output: &Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a tool that the set-up installs; it must succeed.
#[track_caller]
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("`{program}` is needed (scripts/setup.sh): {e}"));
    said_ok(program, args, &output)
}

#[track_caller]
fn said_ok(program: &str, args: &[&str], output: &Output) -> String {
    let said = said(output);
    assert_eq!(said.code, 0, "{program} {args:?}\nstdout:\n{}\nstderr:\n{}", said.out, said.err);
    said.out
}

/// Every folder below a folder that can be read.
pub(crate) fn folders(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(folders(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}

/// Every file below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("readable").flatten() {
        let kind = entry.file_type().expect("known");
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}
