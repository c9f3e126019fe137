//! Cache mounts in caches of other machines: what is named travels, what changed travels alone, and nothing that is wrong
//! with it fails a build.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::env::{Said, World, files, text};
use crate::registry::Registry;

const MOUNTS: &str =
    "--mount=type=cache,id=go-build,target=/m --mount=type=cache,target=/root/.npm";

/// Fills two mounts: 60 files of 200 kB that do not shrink, a file of another user, links.
fn fills() -> String {
    format!(
        "FROM busybox\nRUN {MOUNTS} for n in $(busybox seq 60); do mkdir -p /m/$n && busybox dd if=/dev/urandom of=/m/$n/f bs=200000 count=1; done; \
         echo hello >/m/a && busybox ln /m/a /m/b && busybox ln -s /etc /m/link && busybox chown 1000:1000 /m/a && busybox chmod 600 /m/a && busybox mkfifo /m/p; \
         echo unnamed >/root/.npm/x\n"
    )
}

/// Says what is in the mounts; `what` makes it another step.
fn looks(what: &str) -> String {
    format!(
        "FROM busybox\nRUN {MOUNTS} echo {what}; echo seen=$(busybox find /m /root/.npm -type f | wc -l) sum=$(busybox find /m -type f | busybox sort | busybox xargs busybox md5sum | busybox md5sum | busybox cut -c 1-32) of=$(busybox stat -c %u-%a-%h /m/a) npm=$(ls /root/.npm)\n"
    )
}

fn world(dockerfile: &str) -> World {
    let world = World::new();
    world.busybox().file("Dockerfile", dockerfile);
    world
}

fn seen(said: &Said) -> String {
    let line = said.err.lines().find(|line| line.contains(" seen=") && !line.contains("RUN"));
    let line = line.unwrap_or_else(|| panic!("no step looked: {}", said.err));
    line[line.find("seen=").expect("found")..].to_owned()
}

fn warnings(said: &Said) -> Vec<&str> {
    said.err.lines().filter(|line| line.starts_with("warning: ")).collect()
}

/// Blobs in the folder of a cache or a registry, and their bytes.
fn blobs(folder: &Path) -> BTreeSet<(PathBuf, u64)> {
    let size = |path: PathBuf| {
        let size = fs::metadata(&path).map_or(0, |meta| meta.len());
        (path, size)
    };
    files(folder).into_iter().map(size).collect()
}

fn check(to: &str, from: &str, folder: &Path) {
    let first = world(&fills());
    first.build(&["--cache-to", to]).ok();
    first.file("Dockerfile", &looks("1"));
    let own = seen(&first.build(&[]).ok());
    assert!(own.starts_with("seen=63 ") && own.contains("of=1000-600-2"), "{own}");
    let before = blobs(folder);

    let second = world(&looks("2"));
    let built = second.build(&["--cache-from", from]).ok();
    assert_eq!(warnings(&built).len(), 0, "{}", built.err);
    // All of the mount that was named, nothing of the other one.
    let expect = own.replace("seen=63", "seen=62").replace(" npm=x", " npm=");
    assert_eq!(seen(&built), expect, "{}", built.err);
    assert!(built.err.contains("cache mount `go-build`: 63 files"), "{}", built.err);

    // One file more, one other: what is sent is about them.
    let change = format!(
        "FROM busybox\nRUN {MOUNTS} echo new >/m/new && busybox dd if=/dev/urandom of=/m/7/f bs=200000 count=1\n"
    );
    second.file("Dockerfile", &change);
    second.build(&["--cache-to", to]).ok();
    let after = blobs(folder);
    let new: Vec<u64> = after.difference(&before).map(|(_, size)| *size).collect();
    let sent: u64 = new.iter().sum();
    assert!(sent > 200_000 && sent < 500_000, "{sent} bytes of 12 MB: {new:?}");
    let third = world(&looks("3"));
    let built = third.build(&["--cache-from", from]).ok();
    assert!(seen(&built).starts_with("seen=63 "), "{}", built.err);
    assert!(!seen(&built).contains(&expect[8..50]), "{}", built.err);
}

#[test]
fn mounts_travel_through_a_folder() {
    let place = World::new();
    let folder = place.path("cache");
    check(
        &format!("type=local,dest={},mode=max,mounts=go-build,npm", text(&folder)),
        &format!("type=local,src={},mounts=npm,go-build", text(&folder)),
        &place.path("cache"),
    );
}

#[test]
fn mounts_travel_through_a_registry() {
    let place = World::new();
    let registry = Registry::start(&place);
    let name = format!("{}/team/cache:mounts", registry.address);
    check(
        &format!("type=registry,ref={name},compression=zstd,mounts=go-build"),
        &format!("type=registry,ref={name},\"mounts=npm,go-build\""),
        &place.path("registry"),
    );
    let name = format!("{}/team/other:mounts", registry.address);
    check(
        &format!("type=registry,ref={name},image-manifest=false,mounts=go-build"),
        &format!("type=registry,ref={name},mounts=go-build"),
        &place.path("registry"),
    );
}

fn local(place: &World) -> (String, String) {
    let folder = text(&place.path("cache"));
    (
        format!("type=local,dest={folder},mode=max,mounts=go-build"),
        format!("type=local,src={folder},mounts=go-build"),
    )
}

/// The mounts that a cache in a folder has.
fn carried(place: &World) -> Vec<Value> {
    let folder = place.path("cache");
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
    };
    let blob = |digest: &Value| {
        folder.join("blobs").join(digest.as_str().expect("a digest").replace(':', "/"))
    };
    let manifest = read(&blob(&read(&folder.join("index.json"))["manifests"][0]["digest"]));
    let index = read(&blob(&manifest["config"]["digest"]));
    let named = manifest["layers"].as_array().expect("a list").clone();
    let mounts = index["mounts"].as_array().cloned().unwrap_or_default();
    for mount in &mounts {
        let packs = mount["packs"].as_array().expect("a list").iter();
        for part in packs.chain([&mount["tree"], &mount["contents"]]) {
            assert!(named.iter().any(|layer| layer["digest"] == part["digest"]), "{part}");
        }
    }
    mounts
}

#[test]
fn a_mount_with_content_is_left_alone_and_nothing_is_fetched_in_vain() {
    let place = World::new();
    let (to, from) = local(&place);
    let first = world(&fills());
    first.build(&["--cache-to", &to]).ok();
    assert_eq!(carried(&place).len(), 1);

    // It has content: it stays as it is.
    let mount = "RUN --mount=type=cache,id=go-build,target=/m";
    let own = format!("FROM busybox\n{mount} echo own >/m/own\n{mount} echo n=$(ls /m | wc -l)\n");
    let second = world(&own);
    let built = second.build(&[]).ok();
    assert!(built.err.contains(" n=1"), "{}", built.err);
    second.file("Dockerfile", &own.replace("echo n", "true; echo n"));
    let built = second.build(&["--cache-from", &from]).ok();
    assert!(built.err.contains(" n=1"), "{}", built.err);
    // Emptied, it is filled; without the cache, it begins anew.
    second.kiln(&["cache", "mounts", "rm", "go-build"]).ok();
    second.file("Dockerfile", &own.replace("echo n", ": 2; echo n"));
    let built = second.build(&["--cache-from", &from]).ok();
    assert!(built.err.contains(" n=63"), "{}", built.err);
    let built = second.build(&["--cache-from", &from, "--no-cache"]).ok();
    assert!(built.err.contains(" n=1"), "{}", built.err);

    // No step runs: nothing is fetched, and the cache keeps what it has.
    let before = carried(&place);
    let third = world(&fills());
    third.build(&["--cache-from", &from, "--cache-to", &to]).ok();
    assert_eq!(fs::read_dir(third.path("store/mounts")).expect("a folder").count(), 0);
    assert_eq!(carried(&place), before);
    // A step that fails after others leaves it, too.
    third.file("Dockerfile", "FROM busybox\nRUN false\n");
    assert_eq!(third.build(&["--cache-to", &to]).code, 1);
    assert_eq!(carried(&place), before);
    // What a step left that failed is worth carrying.
    third.file("Dockerfile", &format!("FROM busybox\n{mount} echo x >/m/x && false\n"));
    assert_eq!(third.build(&["--cache-to", &to]).code, 1);
    assert_ne!(carried(&place), before);
    let fourth = world(&format!("FROM busybox\n{mount} echo n=$(ls /m)\n"));
    let built = fourth.build(&["--cache-from", &from]).ok();
    assert!(built.err.contains(" n=x"), "{}", built.err);
    // Who names nothing carries nothing.
    third.file("Dockerfile", "FROM busybox\nRUN true\n");
    third.build(&["--cache-to", to.split(",mounts").next().expect("text")]).ok();
    assert_eq!(carried(&place).len(), 0);
}

#[test]
fn damaged_packs_leave_the_mount_empty() {
    let place = World::new();
    let (to, from) = local(&place);
    world(&fills()).build(&["--cache-to", &to]).ok();
    let mount = carried(&place).remove(0);
    for part in [&mount["packs"][1], &mount["packs"][0], &mount["contents"], &mount["tree"]] {
        let digest = part["digest"].as_str().expect("a digest").replace(':', "/");
        let path = place.path("cache/blobs").join(digest);
        let whole = fs::read(&path).expect("there");
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("written");
        let second = world(&looks("2"));
        let built = second.build(&["--cache-from", &from]).ok();
        assert!(seen(&built).starts_with("seen=0 "), "{}", built.err);
        let told = warnings(&built);
        assert_eq!(told.len(), 1, "{}", built.err);
        assert!(told[0].contains("does not fill the mount `go-build`"), "{told:?}");
        fs::write(&path, whole).expect("written");
    }
    // Gone is as damaged.
    let digest = mount["packs"][0]["digest"].as_str().expect("a digest").replace(':', "/");
    fs::remove_file(place.path("cache/blobs").join(digest)).expect("removed");
    let second = world(&looks("2"));
    let built = second.build(&["--cache-from", &from]).ok();
    assert!(seen(&built).starts_with("seen=0 ") && warnings(&built).len() == 1, "{}", built.err);
    // The next export makes it whole.
    second.file("Dockerfile", &fills());
    second.build(&["--cache-to", &to]).ok();
    let built = world(&looks("2")).build(&["--cache-from", &from]).ok();
    assert!(seen(&built).starts_with("seen=62 "), "{}", built.err);
}

#[test]
fn steps_that_come_at_once_all_find_it() {
    let place = World::new();
    let (to, from) = local(&place);
    world(&fills()).build(&["--cache-to", &to]).ok();
    for sharing in ["shared", "private", "locked"] {
        let mount = format!("RUN --mount=type=cache,id=go-build,target=/m,sharing={sharing}");
        let stage = |n: u32| {
            format!(
                "FROM busybox AS s{n}\n{mount} : {n}; busybox usleep 300000; ls /m | wc -l >/n{n}\n"
            )
        };
        let copy = |n: u32| format!("COPY --from=s{n} /n{n} /\n");
        let text: String = (0..4).map(stage).chain(["FROM scratch\n".into()]).collect();
        let second = world(&(text + &(0..4).map(copy).collect::<String>()));
        let built = second.build(&["--cache-from", &from, "-o", "out"]).ok();
        for n in 0..4 {
            let count = fs::read_to_string(second.path(&format!("out/n{n}"))).expect("made");
            assert_eq!(count, "63\n", "{sharing} {n}: {}", built.err);
        }
        let folders = fs::read_dir(second.path("store/mounts")).expect("a folder").count();
        assert!(if sharing == "private" { folders > 1 } else { folders == 1 }, "{folders}");
        assert_eq!(
            fs::read_dir(second.path("store/locks"))
                .expect("a folder")
                .filter(|entry| {
                    entry
                        .as_ref()
                        .is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("key-"))
                })
                .count(),
            0
        );
    }
}

#[test]
fn damaged_packs_are_mended() {
    let place = World::new();
    let (to, from) = local(&place);
    let step = |what: &str| {
        format!(
            "FROM busybox\nRUN --mount=type=cache,id=go-build,target=/m echo {what}; if [ -e /m/f ]; then echo found=$(cat /m/f); else echo same >/m/f; fi\n"
        )
    };
    world(&step("1")).build(&["--cache-to", &to]).ok();
    let pack = carried(&place)[0]["packs"][0].clone();
    let digest = pack["digest"].as_str().expect("a digest").replace(':', "/");
    let path = place.path("cache/blobs").join(digest);
    let whole = fs::read(&path).expect("there");
    fs::write(&path, vec![0; whole.len()]).expect("written");
    let second = world(&step("2"));
    let built = second.build(&["--cache-from", &from, "--cache-to", &to]).ok();
    assert_eq!(warnings(&built).len(), 1, "{}", built.err);
    assert_eq!(fs::read(&path).expect("there"), whole);
    let built = world(&step("3")).build(&["--cache-from", &from]).ok();
    assert!(built.err.contains(" found=same"), "{}", built.err);
}

#[test]
fn a_mount_that_somebody_has_alone_is_not_waited_for_for_ever() {
    let place = World::new();
    let (to, from) = local(&place);
    let first = world(&fills());
    first.build(&["--cache-to", &to]).ok();
    let before = carried(&place);
    fs::create_dir(first.path("slow")).expect("made");
    // Uses are told apart by the second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let slow = "FROM busybox\nRUN --mount=type=cache,id=go-build,target=/m,sharing=locked while ! [ -e /m/go ]; do busybox usleep 50000; done\n";
    fs::write(first.path("slow/Dockerfile"), slow).expect("written");
    let mut command = first.command();
    command.args(["build", "slow"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("kiln starts");
    let list = || -> Value {
        let said = first.kiln(&["cache", "mounts", "--format", "json"]).ok();
        serde_json::from_str(&said.out).expect("JSON")
    };
    let in_use = || {
        let all = list();
        let mut all = all.as_array().expect("a list").iter();
        all.find(|mount| mount["in_use"] == true).cloned()
    };
    let mount = loop {
        if let Some(mount) = in_use() {
            break mount;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    first.file("Dockerfile", "FROM busybox\nRUN true\n");
    let built = first.build(&["--cache-to", &to]).ok();
    assert_eq!(warnings(&built).len(), 1, "{}", built.err);
    assert!(built.err.contains("a step of another build has it alone"), "{}", built.err);
    assert_eq!(carried(&place), before, "what was there stays");
    let folder = first.path("store/mounts").join(mount["folder"].as_str().expect("a name"));
    fs::write(folder.join("go"), "").expect("written");
    assert!(child.wait().expect("it ended").success());
    let built = world(&looks("2")).build(&["--cache-from", &from]).ok();
    assert!(seen(&built).starts_with("seen=62 "), "{}", built.err);
}
