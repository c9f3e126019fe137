//! The three examples, as a user would: build on a Debian root file system, load with podman and with
//! skopeo and umoci, run, talk to the service, build again.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::env::{Said, World, text, tool};
use crate::registry::Registry;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli/ is in the repository").to_owned()
}

/// The Debian root file system that scripts/base-image.sh makes.
pub(crate) fn base() -> PathBuf {
    let given = std::env::var_os("KILN_TEST_BASE").map(PathBuf::from);
    let base = given.unwrap_or_else(|| repository().join("target/base/debian.tar"));
    if !base.exists() {
        tool(&text(&repository().join("scripts/base-image.sh")), &[&text(&base)]);
    }
    base
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// Asks until the service answers.
fn ask(port: u16) -> Option<String> {
    for _ in 0..200 {
        sleep(Duration::from_millis(100));
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .expect("sent");
        let mut answer = String::new();
        if stream.read_to_string(&mut answer).is_ok() && !answer.is_empty() {
            return Some(answer);
        }
    }
    None
}

/// podman with a storage of its own, which needs no network.
pub(crate) fn podman(world: &World, args: &[&str]) -> Said {
    let mut command = std::process::Command::new("podman");
    command.args([
        "--root",
        &text(&world.path("podman")),
        "--runroot",
        &text(&world.path("podman-run")),
    ]);
    command.args([
        "--runtime",
        "runc",
        "--storage-driver",
        "vfs",
        "--cgroup-manager",
        "cgroupfs",
        "--events-backend",
        "file",
    ]);
    let output = command.args(args).output().expect("podman is installed (scripts/setup.sh)");
    crate::env::said(&output)
}

fn run_and_ask(world: &World, name: &str, service: &str) {
    podman(world, &["load", "-i", &text(&world.path("docker.tar"))]).ok();
    let port = free_port();
    let environment = format!("PORT={port}");
    let image = format!("docker.io/library/{name}:test");
    // Limits are set low: podman's defaults need CAP_SYS_RESOURCE, which a builder may lack.
    let mut args = vec!["run", "-d", "--name", name, "--network", "host", "-e", &environment];
    args.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", &image]);
    let started = podman(world, &args);
    assert_eq!(started.code, 0, "{}", started.err);
    let answer = ask(port);
    let logs = podman(world, &["logs", name]);
    podman(world, &["rm", "-f", "-t", "2", name]).ok();
    let answer =
        answer.unwrap_or_else(|| panic!("{name} did not answer: {} {}", logs.out, logs.err));
    assert!(answer.contains(&format!("\"{service}\"")), "{answer}");
}

/// `changed` is a source file, and how many steps may run when it has one more line.
fn example(service: &str, changed: (&str, usize)) {
    let world = World::new();
    let name = format!("{service}-service");
    let context = text(&repository().join("examples").join(&name));
    world.kiln(&["import", &text(&base()), "debian:bookworm"]).ok();
    let tag = format!("{name}:test");
    let build = |outputs: &[&str]| {
        let mut args = vec!["build", "--progress", "plain", "-t", &tag];
        args.extend_from_slice(outputs);
        args.push(&context);
        world.kiln(&args).ok()
    };
    let registry = Registry::start(&world);
    let cache = format!("{}/cache:{name}", registry.address);
    let to = format!("type=registry,ref={cache},mode=max,compression=zstd");
    build(&["-o", "type=docker,dest=docker.tar", "-o", "type=oci,dest=oci.tar", "--cache-to", &to]);
    run_and_ask(&world, &name, service);
    let archive = format!("oci-archive:{}", text(&world.path("oci.tar")));
    tool("skopeo", &["copy", "-q", &archive, &format!("oci:{}:test", text(&world.path("layout")))]);
    tool(
        "umoci",
        &[
            "unpack",
            "--image",
            &format!("{}:test", text(&world.path("layout"))),
            &text(&world.path("bundle")),
        ],
    );
    assert!(fs::metadata(world.path("bundle/rootfs/etc/passwd")).is_ok());
    let again = build(&[]);
    assert!(!again.err.contains("DONE"), "everything is cached the second time:\n{}", again.err);
    assert!(again.err.contains("CACHED"), "{}", again.err);

    // Other machines have nothing but the cache and the base.
    let elsewhere = |context: &str, outputs: &[&str]| {
        let other = World::new();
        other.kiln(&["import", &text(&base()), "debian:bookworm"]).ok();
        let mut args = vec!["build", "--progress", "plain", "-t", &tag, "--cache-from", &cache];
        args.extend(outputs);
        args.push(context);
        let built = other.kiln(&args).ok();
        assert!(!built.err.contains("warning:"), "{}", built.err);
        built.err
    };
    let files = text(&world.path("files"));
    let there = elsewhere(&context, &["-o", &format!("type=local,dest={files}")]);
    assert!(!there.contains(" DONE "), "{there}");
    assert!(fs::metadata(world.path("files/etc/passwd")).is_ok());
    let copy = world.path("changed");
    tool("cp", &["-r", &context, &text(&copy)]);
    let (file, may_run) = changed;
    let mut source = fs::read(copy.join(file)).expect("readable");
    source.push(b'\n');
    fs::write(copy.join(file), source).expect("written");
    let there = elsewhere(&text(&copy), &[]);
    assert_eq!(there.matches(" DONE ").count(), may_run, "{there}");
}

#[test]
fn the_c_service_runs() {
    // The program that `make` makes is the same, so that what comes after it is cached.
    example("c", ("src/server.c", 2));
}

#[test]
fn the_python_service_runs() {
    example("python", ("app.py", 1));
}

#[test]
fn the_node_service_runs() {
    example("node", ("server.js", 1));
}

/// Root of a container without CAP_SYS_ADMIN, with podman's filter of system calls.
#[test]
fn the_c_service_is_built_in_a_container_of_podman() {
    let world = World::new();
    let mount = |from: PathBuf, to: &str| format!("{}:{to}:ro", text(&from));
    let volumes = [
        mount(crate::env::kiln(), "/usr/local/bin/kiln"),
        mount(base(), "/debian.tar"),
        mount(repository().join("examples/c-service"), "/project"),
    ];
    podman(&world, &["import", &text(&base()), "base"]).ok();
    let mut args = vec!["run", "--rm", "--network", "host", "-e", "KILN_ROOT=/store"];
    // As above: podman's own limits need a right that the test may lack.
    args.extend(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
    args.extend(volumes.iter().flat_map(|volume| ["-v", volume]));
    let script = "kiln doctor && kiln import /debian.tar debian:bookworm && \
        kiln build --progress plain -t service /project && \
        kiln run --entrypoint /bin/sh service -c 'test -x /usr/local/bin/server && id -un'";
    args.extend(["base", "sh", "-c", script]);
    let said = podman(&world, &args).ok();
    assert!(said.out.starts_with("tier: "), "{}", said.out);
    assert!(said.err.contains("RUN useradd"), "{}", said.err);
    assert!(said.out.ends_with("\nservice\n"), "{}\n{}", said.out, said.err);
}
