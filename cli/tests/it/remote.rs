//! Contexts and sources from other places: git repositories, archives by URL and on standard input.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::env::{World, said, text, tool};

/// A repository with two commits, a tag on the first, and a folder.
pub(crate) fn repository(world: &World) -> String {
    let folder = world.path("r.git");
    std::fs::create_dir_all(folder.join("sub")).expect("folder made");
    let git = |args: &[&str]| {
        let folder = text(&folder);
        let fixed = ["-C", &folder, "-c", "user.email=a@b", "-c", "user.name=n"];
        tool("git", &[&fixed[..], args].concat())
    };
    git(&["init", "-q", "-b", "main"]);
    let put = |name: &str, content: &str| std::fs::write(folder.join(name), content).expect(name);
    put("Dockerfile", "FROM scratch\nCOPY sub/f /f\n");
    put("sub/f", "one");
    put("sub/Dockerfile", "FROM scratch\nCOPY f /g\n");
    git(&["add", "."]);
    git(&["commit", "-qm", "1"]);
    git(&["tag", "-a", "v1", "-m", "v1"]);
    put("sub/f", "two");
    git(&["commit", "-qam", "2"]);
    format!("file://{}", text(&folder))
}

/// Builds a context given by name and reads a file of the result.
fn built(world: &World, args: &[&str], file: &str) -> String {
    let mut all = vec!["build", "--progress", "plain", "-o", "out"];
    all.extend_from_slice(args);
    world.kiln(&all).ok();
    let content = std::fs::read_to_string(world.path("out").join(file)).expect(file);
    std::fs::remove_dir_all(world.path("out")).expect("removed");
    content
}

#[test]
fn a_repository_is_a_context() {
    let world = World::new();
    let url = repository(&world);
    assert_eq!(built(&world, &[&url], "f"), "two");
    assert_eq!(built(&world, &[&format!("{url}#v1")], "f"), "one");
    assert_eq!(built(&world, &[&format!("{url}?tag=v1&subdir=sub")], "g"), "one");
    assert_eq!(built(&world, &["-f", "Dockerfile", &format!("{url}#:sub")], "g"), "two");
}

#[test]
fn a_repository_is_a_named_context() {
    let world = World::new();
    let url = repository(&world);
    world.file("Dockerfile", "FROM scratch\nCOPY --from=r sub/f /a\n");
    let named = format!("r={url}#v1");
    assert_eq!(built(&world, &["--build-context", &named, "ctx"], "a"), "one");
}

#[test]
fn mistakes_in_addresses_are_told() {
    let world = World::new();
    let url = repository(&world);
    for (address, message) in [
        (format!("{url}#nope"), "does not contain ref nope"),
        (format!("{url}#v1:none"), "has no folder `none`"),
        (format!("{url}?checksum=0123"), "expected checksum to match 0123, got "),
        (format!("{url}?colour=1"), "unexpected query \"colour\""),
        ("file:///nowhere/at/all.git".to_owned(), "cannot fetch `file:///nowhere/at/all.git`"),
    ] {
        let failed = world.kiln(&["build", "-o", "out", &address]);
        assert_ne!(failed.code, 0);
        assert!(failed.err.contains(message), "{address}: {}", failed.err);
    }
    assert!(!world.path("out").exists());
}

/// A repository cannot bring files of this machine in by a submodule or a symbolic link.
#[test]
fn a_repository_stays_in_its_tree() {
    let world = World::new();
    let url = repository(&world);
    let folder = world.path("r.git");
    std::fs::write(world.path("secret"), "marlin").expect("file written");
    let modules = format!("[submodule \"m\"]\n\tpath = m\n\turl = {url}\n");
    std::fs::write(folder.join(".gitmodules"), modules).expect("file written");
    std::os::unix::fs::symlink(world.path(""), folder.join("out")).expect("link made");
    let head = tool("git", &["-C", &text(&folder), "rev-parse", "HEAD"]);
    let entry = format!("160000,{},m", head.trim());
    let git = |args: &[&str]| {
        let folder = text(&folder);
        let fixed = ["-C", &folder, "-c", "user.email=a@b", "-c", "user.name=n"];
        tool("git", &[&fixed[..], args].concat())
    };
    git(&["add", ".gitmodules", "out"]);
    git(&["update-index", "--add", "--cacheinfo", &entry]);
    git(&["commit", "-qm", "3"]);
    let refused = world.kiln(&["build", "-o", "o", &url]);
    assert!(refused.err.contains("transport 'file' not allowed"), "{}", refused.err);
    let linked = world.kiln(&["build", "-o", "o", &format!("{url}?submodules=false&subdir=out")]);
    assert!(linked.err.contains("has no folder `out`"), "{}", linked.err);
    world.file("Dockerfile", "FROM scratch\nADD file:///etc/passwd.git /x\n");
    let added = world.build(&["-o", "o"]);
    assert_ne!(added.code, 0, "a Dockerfile names no files of this machine");
}

#[test]
fn git_metadata_is_kept_where_asked() {
    let world = World::new();
    let url = repository(&world);
    let folder = world.path("r.git");
    std::fs::write(folder.join("Dockerfile"), "FROM scratch\nCOPY . /\n").expect("file written");
    let id = ["-c", "user.email=a@b", "-c", "user.name=n", "commit", "-qam", "3"];
    tool("git", &[&["-C", &text(&folder)], &id[..]].concat());
    let head = tool("git", &["-C", &text(&folder), "rev-parse", "HEAD"]);
    let kept =
        built(&world, &["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1", &url], ".git/HEAD");
    assert_eq!(kept.trim(), head.trim());
    world.kiln(&["build", "-o", "out", &url]).ok();
    assert!(!world.path("out/.git").exists());
}

fn archive(world: &World) -> Vec<u8> {
    world.file("Dockerfile", "FROM scratch\nCOPY --chown=1:1 a /b\n").file("a", "x");
    tool("tar", &["-C", &text(&world.path("ctx")), "-czf", &text(&world.path("ctx.tgz")), "."]);
    std::fs::read(world.path("ctx.tgz")).expect("readable")
}

fn with_input(world: &World, args: &[&str], input: &[u8]) -> crate::env::Said {
    let mut command = world.command();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    child.stdin.take().expect("piped").write_all(input).expect("written");
    said(&child.wait_with_output().expect("ended"))
}

#[test]
fn standard_input_is_an_archive_or_a_dockerfile() {
    let world = World::new();
    let bytes = archive(&world);
    with_input(&world, &["build", "-o", "out", "-"], &bytes).ok();
    assert_eq!(std::fs::read_to_string(world.path("out/b")).expect("made"), "x");
    let dockerfile = b"FROM scratch\nCOPY <<a /c\ny\na\n";
    with_input(&world, &["build", "-o", "out2", "-"], dockerfile).ok();
    assert_eq!(std::fs::read_to_string(world.path("out2/c")).expect("made"), "y\n");
    let both = with_input(&world, &["build", "-o", "o", "-f", "x", "-"], dockerfile);
    assert!(both.err.contains("ambiguous Dockerfile source"), "{}", both.err);
    let missing = with_input(&world, &["build", "-o", "o", "-f", "x", "-"], &bytes);
    assert!(missing.err.contains("failed to read dockerfile: open x"), "{}", missing.err);
}

/// Answers every request with the file of that name.
fn serve(folder: &Path) -> String {
    serve_counted(folder).0
}

/// The same; counts requests.
pub(crate) fn serve_counted(folder: &Path) -> (String, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            counted.fetch_add(1, Ordering::SeqCst);
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let line = String::from_utf8_lossy(&request[..length]).into_owned();
            let name = line.split_whitespace().nth(1).unwrap_or("/").trim_start_matches('/');
            let denied = name == "private" && !line.contains("Bearer tok\r\n");
            let body = std::fs::read(folder.join(name));
            let (status, body) = match body {
                Ok(body) if !denied => ("200 OK", body),
                _ => ("404 Not Found", Vec::new()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _gone = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    (format!("http://{address}"), count)
}

#[test]
fn an_address_is_an_archive_or_a_dockerfile() {
    let world = World::new();
    archive(&world);
    std::fs::write(world.path("df"), "FROM scratch\nCOPY context /c\n").expect("file written");
    std::fs::write(world.path("private"), "p").expect("file written");
    let server = serve(&world.path(""));
    assert_eq!(built(&world, &[&format!("{server}/ctx.tgz")], "b"), "x");
    assert!(built(&world, &[&format!("{server}/df")], "c").contains("COPY context"));
    std::fs::write(world.path("df2"), "FROM scratch\nCOPY a /d\n").expect("file written");
    assert_eq!(built(&world, &["-f", &format!("{server}/df2"), "ctx"], "d"), "x");
    let missing = world.kiln(&["build", "-o", "o", &format!("{server}/none.tgz")]);
    assert!(missing.err.contains("invalid response status 404"), "{}", missing.err);
    let host = server.trim_start_matches("http://");
    world.file("Dockerfile", &format!("FROM scratch\nADD {server}/private /p\n"));
    assert_ne!(world.build(&["-o", "o"]).code, 0, "no token, no file");
    let mut command = world.command();
    command.env("TOKEN", "tok").args(["build", "-o", "out", "--secret"]);
    command.arg(format!("id=HTTP_AUTH_TOKEN_{host},env=TOKEN")).arg("ctx");
    said(&command.output().expect("starts")).ok();
    assert_eq!(std::fs::read_to_string(world.path("out/p")).expect("made"), "p");
}

#[test]
fn a_repository_is_added() {
    let world = World::new();
    repository(&world);
    let port =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let base = text(&world.path(""));
    // Not `git daemon`, which would leave the real one behind.
    let program = Path::new(tool("git", &["--exec-path"]).trim()).join("git-daemon");
    let mut daemon = Command::new(program)
        .args(["--export-all", "--listen=127.0.0.1", "--informative-errors"])
        .args([format!("--port={port}"), format!("--base-path={base}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("git daemon starts");
    let up = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    while !up() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    world
        .file("Dockerfile", &format!("FROM scratch\nADD git://127.0.0.1:{port}/r.git#v1:sub /a\n"));
    let content = built(&world, &["ctx"], "a/f");
    let again = world.build(&["-o", "out"]).ok();
    daemon.kill().and_then(|()| daemon.wait()).expect("ended");
    assert_eq!(content, "one");
    assert!(again.err.contains("CACHED") && !again.err.contains("DONE"), "{}", again.err);
}
