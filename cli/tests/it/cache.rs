//! Caches of other machines: a second store rebuilds from a cache without running a step; what is damaged, foreign or
//! not there costs time, never a build.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{Said, World, files, text, tool};
use crate::registry::Registry;

/// Two stages, a folder that is replaced whole, modes, links and a file with a set-user-id bit.
const DOCKERFILE: &str = "\
FROM busybox AS build
WORKDIR /src
RUN mkdir -p /d/e && echo old > /d/e/f && echo tools > /tools
RUN rm -rf /d && mkdir /d && echo new > /d/n
COPY a.txt ./
RUN cat a.txt /tools > out && rm /tools
FROM busybox
COPY --from=build /src/out /out
COPY --from=build /d /d
RUN mkdir /one && echo 1 > /one/gone
RUN rm -rf /one && mkdir /one && touch /one/x && busybox ln /one/x /one/y && busybox chmod 4755 /one/x
COPY b.txt /b.txt
RUN cat /b.txt /out > /end
";

/// A store of its own with the same context.
fn world() -> World {
    let world = World::new();
    world.busybox().file("Dockerfile", DOCKERFILE).file("a.txt", "a\n").file("b.txt", "b\n");
    world
}

/// How many steps ran.
fn ran(said: &Said) -> usize {
    said.err.lines().filter(|line| line.contains(" DONE ")).count()
}

fn warnings(said: &Said) -> Vec<&str> {
    said.err.lines().filter(|line| line.starts_with("warning: ")).collect()
}

/// The time is in the keys: a build that is to be like another one has it too.
const EPOCH: &str = "--build-arg=SOURCE_DATE_EPOCH=0";

/// The digest of the image, which depends on its files alone.
fn digest(world: &World, args: &[&str]) -> (Said, String) {
    let mut all = vec![EPOCH, "-t", "app", "--metadata-file"];
    let metadata = text(&world.path("metadata.json"));
    all.push(&metadata);
    all.extend_from_slice(args);
    let said = world.build(&all).ok();
    let document = fs::read_to_string(metadata).expect("written");
    let document: serde_json::Value = serde_json::from_str(&document).expect("JSON");
    (said, document["containerimage.digest"].as_str().expect("a digest").to_owned())
}

/// Another store has nothing but the cache.
fn check(to: &str, from: &str) {
    let (first, made) = digest(&world(), &["--cache-to", to]);
    assert!(ran(&first) > 8, "{}", first.err);

    let second = world();
    let (again, same) = digest(&second, &["--cache-from", from]);
    assert_eq!((ran(&again), warnings(&again).len()), (0, 0), "{}", again.err);
    assert!(again.err.contains("CACHED"), "{}", again.err);
    assert_eq!(made, same);
    let alone = second.build(&[EPOCH, "-o", "type=local,dest=out"]).ok();
    assert_eq!(ran(&alone), 0, "what was fetched is the store's own: {}", alone.err);
    let text = |name: &str| fs::read_to_string(second.path("out").join(name)).expect(name);
    assert_eq!((text("end"), text("d/n")), ("b\na\ntools\n".into(), "new\n".into()));
    assert!(!second.path("out/one/gone").exists());

    let third = world();
    third.file("b.txt", "changed\n");
    let (changed, _) = digest(&third, &["--cache-from", from]);
    assert_eq!(ran(&changed), 2, "COPY b.txt and what reads it: {}", changed.err);
    third.build(&[EPOCH, "-o", "type=local,dest=out"]).ok();
    let end = fs::read_to_string(third.path("out/end")).expect("made");
    assert_eq!(end, "changed\na\ntools\n");
}

#[test]
fn another_store_rebuilds_from_a_registry() {
    let place = World::new();
    let registry = Registry::start(&place);
    let name = format!("{}/team/cache", registry.address);
    check(&format!("type=registry,ref={name}:max,mode=max"), &format!("{name}:max"));
    let index = format!("type=registry,ref={name}:index,mode=max,image-manifest=false");
    check(&format!("{index},compression=zstd"), &format!("type=registry,ref={name}:index"));
}

#[test]
fn another_store_rebuilds_from_a_folder() {
    let place = World::new();
    let folder = text(&place.path("cache"));
    check(&format!("type=local,dest={folder},mode=max"), &format!("type=local,src={folder}"));
    check(
        &format!("type=local,dest={folder},mode=max,tag=x,compression=zstd,oci-mediatypes=false"),
        &format!("type=local,src={folder},tag=x"),
    );
}

#[test]
fn an_image_carries_its_cache() {
    let place = World::new();
    let registry = Registry::start(&place);
    let name = format!("{}/team/app:1", registry.address);
    let simple = "FROM busybox\nRUN echo 1 > /1\nCOPY a.txt /\nRUN cat /a.txt > /2\n";
    let first = world();
    first.file("Dockerfile", simple);
    first.build(&["--push", "-t", &name, "--cache-to", "type=inline"]).ok();
    let second = world();
    second.file("Dockerfile", simple);
    let again = second.build(&["-t", "app", "--cache-from", &name]).ok();
    assert_eq!((ran(&again), warnings(&again).len()), (0, 0), "{}", again.err);
    let third = world();
    third.file("Dockerfile", simple).file("a.txt", "other\n");
    let changed = third.build(&["-t", "app", "--cache-from", &name]).ok();
    assert_eq!(ran(&changed), 2, "{}", changed.err);
    let plain = format!("{}/team/plain:1", registry.address);
    first.build(&["--push", "-t", &plain]).ok();
    let none = third.build(&["--no-cache", "--cache-from", &plain]).ok();
    assert_eq!(warnings(&none).len(), 0, "nobody asked it: {}", none.err);
    let fourth = world();
    let none = fourth.build(&["--cache-from", &plain]).ok();
    assert!(warnings(&none)[0].contains("no image that carries one"), "{}", none.err);
}

#[test]
fn only_the_layers_of_the_result_are_in_a_small_cache() {
    let place = World::new();
    let folder = text(&place.path("cache"));
    digest(&world(), &["--cache-to", &format!("type=local,dest={folder}")]);
    let from = format!("type=local,src={folder}");
    let (again, _) = digest(&world(), &["--cache-from", &from]);
    assert_eq!(ran(&again), 0, "{}", again.err);
    let changed = world();
    changed.file("a.txt", "changed\n");
    let (changed, _) = digest(&changed, &["--cache-from", &from]);
    assert!(ran(&changed) > 6, "the first stage is not in it: {}", changed.err);
}

#[test]
fn layers_stay_where_they_are_until_somebody_reads_them() {
    let place = World::new();
    let folder = text(&place.path("cache"));
    digest(&world(), &["--cache-to", &format!("type=local,dest={folder},mode=max")]);
    let second = world();
    let from = format!("type=local,src={folder}");
    let layers = || fs::read_dir(second.path("store/layers")).expect("a folder").count();
    let before = layers();
    let built = second.build(&[EPOCH, "--cache-from", &from]).ok();
    assert_eq!((ran(&built), layers()), (0, before), "{}", built.err);
    // The cache goes on although nothing of it is here.
    let other = text(&place.path("other"));
    second
        .build(&[
            EPOCH,
            "--cache-from",
            &from,
            "--cache-to",
            &format!("type=local,dest={other},mode=max"),
        ])
        .ok();
    let (again, _) = digest(&world(), &["--cache-from", &format!("type=local,src={other}")]);
    assert_eq!(ran(&again), 0, "{}", again.err);
}

#[test]
fn layers_of_another_cache_are_compressed_anew_where_that_is_asked_for() {
    let place = World::new();
    let [gzip, zstd, small] = ["gzip", "zstd", "small"].map(|name| text(&place.path(name)));
    let (_, made) = digest(&world(), &["--cache-to", &format!("type=local,dest={gzip},mode=max")]);
    let types = |folder: &str| {
        let [_, manifest, _] = documents(Path::new(folder));
        let document = fs::read_to_string(manifest).expect("written");
        let document: serde_json::Value = serde_json::from_str(&document).expect("JSON");
        let layers = document["layers"].as_array().expect("a list").clone();
        let kind = |layer: &serde_json::Value| {
            let kind = layer["mediaType"].as_str().expect("text");
            kind.rsplit('+').next().expect("a part").to_owned()
        };
        layers.iter().map(kind).collect::<std::collections::BTreeSet<_>>()
    };
    // Nothing is here but the cache: neither layers nor their archives.
    let from = format!("type=local,src={gzip}");
    let to = format!("type=local,dest={small},mode=max,compression=zstd");
    world().build(&[EPOCH, "--cache-from", &from, "--cache-to", &to]).ok();
    assert_eq!(types(&small), ["gzip".to_owned()].into(), "it goes on as it is");
    let to = format!("type=local,dest={zstd},mode=max,compression=zstd,force-compression=true");
    world().build(&[EPOCH, "--cache-from", &from, "--cache-to", &to]).ok();
    assert_eq!(types(&zstd), ["zstd".to_owned()].into());
    let (again, same) = digest(&world(), &["--cache-from", &format!("type=local,src={zstd}")]);
    assert_eq!((ran(&again), warnings(&again).len(), made), (0, 0, same), "{}", again.err);
    // A level that is asked for is used.
    let [fast, best] = ["1", "12"].map(|level| {
        let folder = place.path(level);
        let to = format!("type=local,dest={},mode=max,compression-level={level}", text(&folder));
        world().build(&[EPOCH, "--cache-to", &to]).ok();
        files(&folder.join("blobs"))
            .iter()
            .map(|f| fs::metadata(f).expect("there").len())
            .sum::<u64>()
    });
    assert!(best < fast, "{best} {fast}");
}

/// Blobs of the store that are archives of layers, as far as their first bytes tell.
fn archives(world: &World) -> usize {
    let gzip = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes.starts_with(&[0x1f, 0x8b]));
    files(&world.path("store/blobs")).iter().filter(|path| gzip(path)).count()
}

/// An image that is only pushed, all of which is cached: the registry has its layers in this repository or in another
/// one, or the cache is in a folder.
#[test]
fn a_push_fetches_no_layer_that_the_registry_has() {
    let place = World::new();
    let registry = Registry::start(&place);
    let name = |name: &str| format!("{}/team/{name}", registry.address);
    let (cache, folder) = (name("app:cache"), text(&place.path("cache")));
    let plain = "FROM busybox\nCOPY a.txt /a\nRUN cat /a > /1\nRUN mkdir /d && echo two > /d/2\n";
    let simple = || {
        let world = world();
        world.file("Dockerfile", plain);
        world
    };
    let to = [
        format!("--cache-to=type=registry,ref={cache},mode=max"),
        format!("--cache-to=type=local,dest={folder},mode=max"),
    ];
    simple().build(&[&to[0], &to[1]]).ok();
    // How many layers came into a store with nothing but the cache, from which the image is pushed.
    let push = |world: &World, image: &str, from: &str, more: &[&str]| {
        let before = archives(world);
        let output = format!("type=registry,name={}", name(image));
        let built = world.build(&[&["--cache-from", from, "-o", &output], more].concat()).ok();
        assert_eq!((ran(&built), warnings(&built).len()), (0, 0), "{}", built.err);
        archives(world) - before
    };
    let check = |image: &str, script: &str| {
        let other = World::new();
        other.file("Dockerfile", &format!("FROM {}\nRUN {script}\n", name(image)));
        other.build(&[]).ok();
    };
    let local = format!("type=local,src={folder}");
    for (image, from, count) in
        [("app:1", &cache, 0), ("other:1", &cache, 0), ("third:1", &local, 3)]
    {
        assert_eq!(push(&simple(), image, from, &[]), count, "{image}");
        check(image, "grep a /1 && grep two /d/2");
    }
    // What is another archive in the image is brought and made.
    assert!(push(&simple(), "app:2", &cache, &[EPOCH]) >= 3);
    let store = simple();
    let output = format!("type=registry,name={},compression=zstd", name("app:3"));
    store.build(&["--cache-from", &cache, "-o", &output]).ok();
    assert_eq!(fs::read_dir(store.path("store/layers")).expect("a folder").count(), 4);
    check("app:3", "grep a /1 && grep two /d/2");
    let cache = name("full:cache");
    world().build(&["--cache-to", &format!("type=registry,ref={cache},mode=max")]).ok();
    push(&world(), "full:1", &cache, &[]);
    check("full:1", "grep tools /end && grep new /d/n && ! ls /one/gone && ls /one/x");

    // What the folder promises and has not is made by its steps.
    let documents = documents(Path::new(&folder));
    for blob in files(&place.path("cache/blobs")) {
        if !documents.contains(&blob) {
            fs::remove_file(blob).expect("removed");
        }
    }
    let output = format!("type=registry,name={}", name("fresh:1"));
    let built = simple().build(&["--cache-from", &local, "-o", &output]).ok();
    assert!(ran(&built) > 0 && !warnings(&built).is_empty(), "{}", built.err);
    check("fresh:1", "grep a /1 && grep two /d/2");
    drop(registry);
    let failed = simple().build(&["--cache-from", &local, "-o", &output]);
    assert_eq!(failed.code, 3, "it ends: {}", failed.err);
}

/// The documents of a cache in a folder: `index.json`, the manifest, the index.
fn documents(folder: &Path) -> [PathBuf; 3] {
    let digest = |path: &Path, key: &str| {
        let text = fs::read_to_string(path).expect("written");
        let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let digest = document.pointer(key).expect("a digest").as_str().expect("text").to_owned();
        folder.join("blobs").join(digest.replace(':', "/"))
    };
    let top = folder.join("index.json");
    let manifest = digest(&top, "/manifests/0/digest");
    let index = digest(&manifest, "/config/digest");
    [top, manifest, index]
}

#[test]
fn a_folder_does_not_grow() {
    let place = World::new();
    let folder = place.path("cache");
    let to = format!("type=local,dest={},mode=max", text(&folder));
    digest(&world(), &["--cache-to", &to]);
    let [_, manifest, index] = documents(&folder);
    for blob in files(&folder.join("blobs")) {
        tool("touch", &["-d", "2 hours ago", &text(&blob)]);
    }
    let changed = world();
    changed.file("a.txt", "changed\n");
    digest(&changed, &["--cache-to", &to]);
    assert!(!manifest.exists() && !index.exists(), "they are of the cache before");
    let again = world();
    again.file("a.txt", "changed\n");
    let from = format!("type=local,src={}", text(&folder));
    let (again, _) = digest(&again, &["--cache-from", &from]);
    assert_eq!((ran(&again), warnings(&again).len()), (0, 0), "{}", again.err);
}

/// Replaces text in the index, and the digests that lead there.
fn forge(folder: &Path, change: impl Fn(&str) -> String) {
    let [top, manifest, index] = documents(folder);
    let mut new = change(&fs::read_to_string(&index).expect("written"));
    let mut path = index;
    for above in [manifest, top] {
        let old = path.file_name().expect("a digest").to_string_lossy().into_owned();
        let size = fs::metadata(&path).expect("there").len();
        fs::write(folder.join("new"), &new).expect("written");
        let sum = tool("sha256sum", &[&text(&folder.join("new"))]);
        let sum = sum.split(' ').next().expect("a digest").to_owned();
        fs::rename(folder.join("new"), path.with_file_name(&sum)).expect("renamed");
        let document = fs::read_to_string(&above).expect("written");
        let sizes = (format!("\"size\": {size}"), format!("\"size\": {}", new.len()));
        new = document.replace(&old, &sum).replace(&sizes.0, &sizes.1);
        path = above;
    }
    fs::write(path, new).expect("written");
}

#[test]
fn what_is_damaged_is_made_again() {
    let place = World::new();
    let folder = place.path("cache");
    let from = format!("type=local,src={}", text(&folder));
    let to = format!("type=local,dest={},mode=max", text(&folder));
    let (_, made) = digest(&world(), &["--cache-to", &to]);
    let documents_of = documents(&folder);
    for blob in files(&folder.join("blobs")) {
        if documents_of.contains(&blob) {
            continue;
        }
        let mut bytes = fs::read(&blob).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&blob, bytes).expect("written");
    }
    let (again, same) = digest(&world(), &["--cache-from", &from]);
    assert!(ran(&again) > 8, "{}", again.err);
    assert!(
        warnings(&again).iter().all(|line| line.contains("content does not match")),
        "{}",
        again.err
    );
    assert!(!warnings(&again).is_empty() && made == same, "{}", again.err);
    // Who finds it damaged and writes it anew mends it.
    digest(&world(), &["--cache-from", &from, "--cache-to", &to]);
    let (mended, same) = digest(&world(), &["--cache-from", &from]);
    assert_eq!((ran(&mended), warnings(&mended).len()), (0, 0), "{}", mended.err);
    assert_eq!(made, same);

    fs::remove_dir_all(&folder).expect("removed");
    digest(&world(), &["--cache-to", &to]);
    let [_, _, index] = documents(&folder);
    let bytes = fs::read(&index).expect("readable");
    fs::write(&index, &bytes[..bytes.len() / 2]).expect("truncated");
    let (again, same) = digest(&world(), &["--cache-from", &from]);
    assert_eq!((warnings(&again).len(), made == same), (1, true), "{}", again.err);
}

#[test]
fn a_layer_with_other_files_is_not_taken() {
    let place = World::new();
    let folder = place.path("cache");
    let simple = "FROM busybox\nRUN echo one > /one\nRUN echo two > /two\n";
    let first = world();
    first.file("Dockerfile", simple);
    let to = format!("type=local,dest={},mode=max", text(&folder));
    let (_, made) = digest(&first, &["--cache-to", &to]);
    // Both layers are the second one, with digests that fit: only their content tells.
    forge(&folder, |index| {
        let mut document: serde_json::Value = serde_json::from_str(index).expect("JSON");
        let content = document["layers"][0]["content"].clone();
        let mut other = document["layers"][1].clone();
        other["content"] = content;
        document["layers"][0] = other;
        document.to_string()
    });
    let second = world();
    second.file("Dockerfile", simple);
    let from = format!("type=local,src={}", text(&folder));
    let (again, same) = digest(&second, &["--cache-from", &from]);
    assert!(again.err.contains("its files are not those that the index names"), "{}", again.err);
    assert_eq!((ran(&again), made), (2, same), "{}", again.err);
}

#[test]
fn what_is_wrong_is_told_where_it_happens() {
    let world = world();
    let from = "--cache-from=type=local,src=nothing";
    let built = world.build(&[from]).ok();
    let place = |text: &str| built.err.find(text).unwrap_or_else(|| panic!("{}", built.err));
    assert!(place("warning: cache `nothing`") < place(" DONE "), "{}", built.err);
    let raw = world.kiln(&["build", "--progress=rawjson", "--no-cache", from, "ctx"]).ok();
    for line in raw.err.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    world.file("a.txt", "other\n");
    let raw = world.kiln(&["build", "--progress=rawjson", from, "ctx"]).ok();
    assert!(raw.err.contains(r#""event":"warning""#), "{}", raw.err);
    world.file("a.txt", "third\n");
    let quiet = world.kiln(&["build", "--quiet", from, "ctx"]).ok();
    assert_eq!(warnings(&quiet).len(), 1, "{}", quiet.err);
}

#[test]
fn a_cache_that_cannot_be_read_is_one_line() {
    let place = World::new();
    let registry = Registry::start(&place);
    let nothing = format!("{}/team/nothing:1", registry.address);
    let built = world().build(&["--cache-from", &nothing, "-t", "app"]).ok();
    let told = warnings(&built);
    assert_eq!(told.len(), 1, "{}", built.err);
    assert!(told[0].contains(&nothing) && told[0].contains("is not in the registry"), "{told:?}");

    let folder = place.path("cache");
    let from = format!("type=local,src={}", text(&folder));
    let built = world().build(&["--cache-from", &from]).ok();
    assert_eq!(warnings(&built).len(), 1, "{}", built.err);

    let to = format!("type=local,dest={},mode=max", text(&folder));
    world().build(&["--cache-to", &to]).ok();
    let [_, manifest, _] = documents(&folder);
    let theirs = fs::read_to_string(&manifest).expect("written").replace(
        "application/vnd.kiln.cache.index.v1+json",
        "application/vnd.buildkit.cacheconfig.v0",
    );
    fs::write(&manifest, &theirs).expect("written");
    let sum = tool("sha256sum", &[&text(&manifest)]);
    let digest = sum.split(' ').next().expect("a digest");
    fs::rename(&manifest, manifest.with_file_name(digest)).expect("renamed");
    let from = format!("{from},digest=sha256:{digest}");
    let built = world().build(&["--cache-from", &from]).ok();
    assert!(warnings(&built)[0].contains("BuildKit wrote it"), "{}", built.err);
    assert_eq!(warnings(&built).len(), 1, "{}", built.err);
}

#[test]
fn a_build_that_fails_leaves_what_it_did() {
    let place = World::new();
    let folder = text(&place.path("cache"));
    let to = format!("type=local,dest={folder},mode=max");
    let text = "FROM busybox\nRUN echo 1 > /1\nCOPY a.txt /\nRUN ";
    let first = world();
    first.file("Dockerfile", &format!("{text}false\n"));
    let failed = first.build(&["--cache-to", &to]);
    assert_eq!(failed.code, 1, "{}", failed.err);
    let second = world();
    second.file("Dockerfile", &format!("{text}true\n"));
    let from = format!("type=local,src={folder}");
    let built = second.build(&["--cache-from", &from, "--cache-to", &to]).ok();
    assert_eq!(ran(&built), 1, "{}", built.err);
    // One that fails early keeps what was there.
    let third = world();
    third.file("Dockerfile", "FROM busybox\nRUN false\n");
    assert_eq!(third.build(&["--cache-to", &to]).code, 1);
    let fourth = world();
    fourth.file("Dockerfile", &format!("{text}true\n"));
    let built = fourth.build(&["--cache-from", &from]).ok();
    assert_eq!(ran(&built), 0, "{}", built.err);
}

#[test]
fn a_build_that_is_interrupted_leaves_what_it_did() {
    let place = World::new();
    let folder = place.path("cache");
    let to = format!("type=local,dest={},mode=max", text(&folder));
    let first = world();
    first.file("Dockerfile", "FROM busybox\nRUN echo 1 > /1\nRUN echo begun && sleep 1000\n");
    let mut command = first.command();
    command.args(["build", "--progress", "plain", "--cache-to", &to, "ctx"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("kiln starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    assert!(lines.any(|line| line.expect("text").ends_with(" begun")), "the step began");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("small"));
    kill(pid, Signal::SIGINT).expect("signalled");
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(child.wait().expect("reaped").code(), Some(130), "{rest:?}");
    let second = world();
    second.file("Dockerfile", "FROM busybox\nRUN echo 1 > /1\n");
    let from = format!("type=local,src={}", text(&folder));
    let built = second.build(&["--cache-from", &from]).ok();
    assert_eq!(ran(&built), 0, "{}", built.err);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_failure() {
    let world = world();
    fs::write(world.path("file"), "").expect("written");
    let failed = world.build(&["-t", "app", "--cache-to", "type=local,dest=file/cache"]);
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(failed.err.contains("cannot export the cache to `file/cache`"), "{}", failed.err);
    let ignored = "type=local,dest=file/cache,ignore-error=true";
    let built = world.build(&["-t", "app", "--cache-to", ignored]).ok();
    assert_eq!(warnings(&built).len(), 1, "{}", built.err);
    for (option, expect) in [
        ("--cache-to=type=gha", "not supported"),
        ("--cache-from=type=inline", "imported from its image"),
        ("--cache-to=type=inline", "needs an image"),
    ] {
        let refused = world.build(&[option]);
        assert_eq!(refused.code, 2, "{option}: {}", refused.err);
        assert!(refused.err.contains(expect), "{option}: {}", refused.err);
    }
}
