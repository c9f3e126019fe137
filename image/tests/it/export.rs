//! Outputs, read by skopeo, umoci, tar and ourselves.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_cache::{DiffId, LayerId, Layers, Metadata, Store, Time};
use kiln_image::archive::Compression;
use kiln_image::config::{ConfigDocument, ContainerConfig};
use kiln_image::export::local::LocalOptions;
use kiln_image::export::tar::FileSystem;
use kiln_image::export::{
    self, ExportLayer, Exported, ImageOptions, ImageSpec, NamedImage, build_image, build_index,
};
use kiln_image::history::HistoryEntry;
use kiln_image::import::{ImportOptions, import_rootfs};
use kiln_image::layout::{Layout, Selector};
use kiln_image::manifest::RemoteLayer;
use kiln_image::platform::platform;
use kiln_image::tarball::Output;

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    Place { folder, store }
}

fn metadata(mode: u32) -> Metadata {
    Metadata {
        mode,
        uid: 7,
        gid: 8,
        mtime: Time { secs: 1_600_000_000, nanos: 0 },
        ..Default::default()
    }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn layer(&self, files: &[(&str, &str)]) -> LayerId {
        let draft = self.store.draft().unwrap();
        let writer = draft.writer();
        for (path, text) in files {
            let path = Path::new(path);
            if let Some(gone) = path.to_str().unwrap().strip_prefix('-') {
                writer.whiteout(Path::new(gone)).unwrap();
            } else if let Some(target) = text.strip_prefix("-> ") {
                writer.symlink(path, &metadata(0o777), Path::new(target)).unwrap();
            } else if let Some(target) = text.strip_prefix("= ") {
                writer.hardlink(path, Path::new(target)).unwrap();
            } else {
                writer.file(path, &metadata(0o640), &mut text.as_bytes()).unwrap();
            }
        }
        let id = LayerId::random();
        draft.publish(id.clone(), writer.finish().unwrap()).unwrap();
        id
    }

    fn spec(&self, architecture: &str, layers: &[&[(&str, &str)]]) -> ImageSpec {
        let platform = platform("linux", architecture);
        let mut config = ConfigDocument::new(&platform);
        let env = vec!["PATH=/bin".to_owned()];
        config.set_container(&ContainerConfig { env, ..Default::default() });
        let entry = HistoryEntry { created_by: Some("COPY".into()), ..Default::default() };
        config.set_history(&[entry]);
        let layers = layers.iter().map(|files| ExportLayer {
            id: self.layer(files),
            remote: None,
            created: Some(1_600_000_000),
            description: "made".into(),
        });
        ImageSpec {
            cache: None,
            platform,
            config,
            layers: layers.collect(),
            annotations: BTreeMap::from([("note".to_owned(), "yes".to_owned())]),
            descriptor_annotations: BTreeMap::new(),
        }
    }

    fn build(&self, spec: &ImageSpec) -> Exported {
        build_image(&self.store, spec, &ImageOptions::default()).unwrap()
    }
}

fn named(image: &Exported, names: &[&str]) -> NamedImage {
    NamedImage {
        root: image.manifest.clone(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        created: image.created.clone(),
    }
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

const BASE: &[(&str, &str)] = &[("a", "text"), ("dir/b", "more"), ("gone", "x"), ("link", "-> a")];
const TOP: &[(&str, &str)] = &[("-gone", ""), ("dir/c", "new"), ("dir/d", "= dir/c")];

#[test]
fn skopeo_and_umoci_read_oci_archives_and_folders() {
    let place = place();
    let image = place.build(&place.spec("amd64", &[BASE, TOP]));
    let archive = place.path("image.tar");
    let named = named(&image, &["docker.io/library/app:1", "localhost/other:2"]);
    export::oci::write_tar(&place.store, &named, Output::Path(archive.clone())).unwrap();
    let folder = place.path("layout");
    export::oci::write_folder(&place.store, &named, &folder).unwrap();
    let inspect = run("skopeo", &["inspect", &format!("oci-archive:{}:1", archive.display())]);
    let json: serde_json::Value = serde_json::from_str(&inspect).unwrap();
    assert_eq!(json["Digest"], image.manifest.digest.to_string());
    assert_eq!(json["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(json["Created"], "2020-09-13T12:26:40Z");
    run(
        "skopeo",
        &[
            "copy",
            &format!("oci:{}:2", folder.display()),
            &format!("dir:{}", place.path("copy").display()),
        ],
    );
    let bundle = place.path("bundle");
    run(
        "umoci",
        &["unpack", "--image", &format!("{}:1", folder.display()), bundle.to_str().unwrap()],
    );
    let root = bundle.join("rootfs");
    assert_eq!(fs::read_to_string(root.join("dir/c")).unwrap(), "new");
    assert_eq!(
        fs::metadata(root.join("dir/c")).unwrap().ino(),
        fs::metadata(root.join("dir/d")).unwrap().ino()
    );
    assert_eq!(fs::metadata(root.join("a")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(fs::metadata(root.join("a")).unwrap().uid(), 7);
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("a"));
    assert!(!root.join("gone").exists());
    // Ourselves.
    let layout = Layout::open(&folder).unwrap();
    let found = layout.image(&Selector::Tag("1".into()), &platform("linux", "amd64")).unwrap();
    assert_eq!(found.descriptor.digest, image.manifest.digest);
    assert_eq!(found.layers.len(), 2);
    // Both names are one image, so nothing has to be said; another tag is an error that helps.
    assert!(layout.image(&Selector::Any, &platform("linux", "amd64")).is_ok());
    let error = layout.image(&Selector::Tag("3".into()), &platform("linux", "amd64")).unwrap_err();
    assert!(error.to_string().contains("with the tag `3`; it has `1`"), "{error}");
    // A second image of the same name replaces the first; the other stays.
    let second = place.build(&place.spec("amd64", &[BASE]));
    let one_name =
        NamedImage { names: vec!["docker.io/library/app:1".into()], ..self::named(&second, &[]) };
    export::oci::write_folder(&place.store, &one_name, &folder).unwrap();
    let layout = Layout::open(&folder).unwrap();
    let tag = |tag: &str| {
        layout
            .image(&Selector::Tag(tag.into()), &platform("linux", "amd64"))
            .unwrap()
            .descriptor
            .digest
    };
    assert_eq!(
        (tag("1"), tag("2")),
        (second.manifest.digest.clone(), image.manifest.digest.clone())
    );
}

#[test]
fn outputs_are_the_same_bytes_and_whole() {
    let place = place();
    let image = place.build(&place.spec("amd64", &[BASE]));
    let named = named(&image, &["docker.io/library/app:1"]);
    let one = place.path("deep/er/one.tar");
    export::oci::write_tar(&place.store, &named, Output::Path(one.clone())).unwrap();
    let first = fs::read(&one).unwrap();
    fs::write(&one, "something else").unwrap();
    export::oci::write_tar(&place.store, &named, Output::Path(one.clone())).unwrap();
    assert_eq!(fs::read(&one).unwrap(), first);
    let link = place.path("link.tar");
    std::os::unix::fs::symlink(&one, &link).unwrap();
    export::oci::write_tar(&place.store, &named, Output::Path(link.clone())).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    // A failure leaves the old file, and nothing beside it.
    place.store.remove_blob(&image.layers[0].digest).unwrap();
    assert!(export::oci::write_tar(&place.store, &named, Output::Path(one.clone())).is_err());
    assert_eq!(fs::read(&one).unwrap(), first);
    assert_eq!(fs::read_dir(one.parent().unwrap()).unwrap().count(), 1);
    assert!(export::store::name(&place.store, &named).is_err());
}

#[test]
fn docker_archives_hold_one_platform() {
    let place = place();
    let image = place.build(&place.spec("amd64", &[BASE, TOP]));
    let archive = place.path("docker.tar");
    let named = named(&image, &["docker.io/library/app:1"]);
    export::docker::write_tar(&place.store, &named, Output::Path(archive.clone())).unwrap();
    let inspect =
        run("skopeo", &["inspect", &format!("docker-archive:{}:app:1", archive.display())]);
    assert!(inspect.contains("\"Architecture\": \"amd64\""), "{inspect}");
    let manifest = run("tar", &["-xOf", archive.to_str().unwrap(), "manifest.json"]);
    assert!(manifest.contains(r#""RepoTags":["app:1"]"#), "{manifest}");
    let index =
        build_index(&place.store, &[image], BTreeMap::new(), &ImageOptions::default()).unwrap();
    let named = NamedImage { root: index, names: vec![], created: None };
    let error = export::docker::write_tar(&place.store, &named, Output::Path(archive)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "docker exporter does not currently support exporting manifest lists"
    );
}

#[test]
fn several_platforms_are_an_index() {
    let place = place();
    let images = [
        place.build(&place.spec("amd64", &[BASE])),
        place.build(&place.spec("arm64", &[BASE, TOP])),
    ];
    let index =
        build_index(&place.store, &images, BTreeMap::new(), &ImageOptions::default()).unwrap();
    let named =
        NamedImage { root: index, names: vec!["docker.io/library/app:1".into()], created: None };
    let folder = place.path("layout");
    export::oci::write_folder(&place.store, &named, &folder).unwrap();
    let layout = Layout::open(&folder).unwrap();
    for image in &images {
        let wanted = image.manifest.platform.clone().unwrap();
        let found = layout.image(&Selector::Tag("1".into()), &wanted).unwrap();
        assert_eq!(found.descriptor.digest, image.manifest.digest);
        let direct =
            layout.image(&Selector::Digest(image.manifest.digest.clone()), &wanted).unwrap();
        assert_eq!(direct.descriptor.digest, image.manifest.digest);
        assert_eq!(direct.manifest.annotations["note"], "yes");
    }
    let error = layout.image(&Selector::Any, &platform("linux", "s390x")).unwrap_err();
    assert!(error.to_string().contains("it has `linux/amd64`, `linux/arm64`"), "{error}");
    // A damaged blob is never used.
    let digest = &images[0].config.digest;
    let blob = folder.join("blobs/sha256").join(digest.hex());
    let text = fs::read_to_string(&blob).unwrap().replace("/bin", "/xin");
    fs::write(&blob, text).unwrap();
    assert!(layout.image(&Selector::Any, &platform("linux", "amd64")).is_err());
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    assert!(layout.image(&Selector::Any, &platform("linux", "amd64")).is_err());
}

#[test]
fn layers_of_other_images_keep_their_blobs() {
    let place = place();
    let base = place.build(&place.spec("amd64", &[BASE]));
    let mut spec = place.spec("amd64", &[BASE, TOP]);
    let diff_id = base.diff_ids[0].clone();
    spec.layers[0].remote = Some(RemoteLayer {
        descriptor: base.layers[0].clone(),
        diff_id: diff_id.clone(),
        layer_id: LayerId::of_diff_id(&diff_id),
    });
    spec.layers[0].created = None;
    let image = place.build(&spec);
    assert_eq!(image.layers[0], base.layers[0]);
    let options = ImageOptions {
        compression: Compression::Zstd(3),
        force_compression: true,
        docker_types: false,
        ..ImageOptions::default()
    };
    let forced = build_image(&place.store, &spec, &options).unwrap();
    assert_ne!(forced.layers[0], base.layers[0]);
    assert_eq!(forced.diff_ids, image.diff_ids);
    assert!(forced.layers.iter().all(|layer| layer.media_type.ends_with("tar+zstd")));
    spec.annotations.clear();
    let options = ImageOptions { docker_types: true, ..ImageOptions::default() };
    let docker = build_image(&place.store, &spec, &options).unwrap();
    assert_eq!(docker.manifest.media_type, "application/vnd.docker.distribution.manifest.v2+json");
    assert!(docker.layers[0].media_type.ends_with("diff.tar.gzip"));
}

#[test]
fn the_epoch_bounds_all_times() {
    let place = place();
    let spec = place.spec("amd64", &[BASE]);
    let options =
        ImageOptions { epoch: Some(1000), rewrite_timestamp: true, ..ImageOptions::default() };
    let image = build_image(&place.store, &spec, &options).unwrap();
    assert_eq!(image.created.as_deref(), Some("1970-01-01T00:16:40Z"));
    assert_ne!(image.diff_ids, place.build(&spec).diff_ids);
    let file = place.store.open_blob(&image.layers[0].digest).unwrap().unwrap();
    let plain = kiln_image::archive::Decompress::new(file).unwrap();
    let mut reader = kiln_image::archive::ArchiveReader::new(plain, Default::default());
    while let Some(entry) = reader.next_entry().unwrap() {
        assert!(entry.mtime.0 <= 1000);
    }
}

#[test]
fn file_systems_come_out_as_files_and_as_tar() {
    let place = place();
    let layers = [place.layer(BASE), place.layer(TOP)];
    let view = Layers::open(&place.store, &layers).unwrap();
    let systems = [FileSystem { platform: platform("linux", "amd64"), view: &view }];
    let out = place.path("out/new");
    export::local::write(&systems, &out, LocalOptions::default()).unwrap();
    let check = |out: &Path| {
        assert_eq!(fs::read_to_string(out.join("dir/c")).unwrap(), "new");
        assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("a"));
        assert!(fs::symlink_metadata(out.join("gone")).is_err());
        let found = fs::metadata(out.join("a")).unwrap();
        assert_eq!((found.mode() & 0o7777, found.mtime()), (0o640, 1_600_000_000));
        assert_eq!(fs::metadata(out.join("dir/c")).unwrap().nlink(), 2);
    };
    check(&out);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::metadata(out.join("a")).unwrap().uid(), 0);
    // Again, over what is there, among it traps: a link where the directory must be, files of others.
    fs::remove_dir_all(out.join("dir")).unwrap();
    let outside = place.path("outside");
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, out.join("dir")).unwrap();
    fs::remove_file(out.join("a")).unwrap();
    fs::create_dir_all(out.join("a/full")).unwrap();
    fs::write(out.join("stale"), "x").unwrap();
    export::local::write(&systems, &out, LocalOptions::default()).unwrap();
    check(&out);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(out.join("stale").exists());
    let options = LocalOptions { delete: true, ..LocalOptions::default() };
    export::local::write(&systems, &out, options).unwrap();
    check(&out);
    assert!(!out.join("stale").exists());
    let tar = place.path("root.tar");
    export::tar::write(&systems, false, Some(5), Output::Path(tar.clone())).unwrap();
    let listing = run("tar", &["--numeric-owner", "--utc", "-tvf", tar.to_str().unwrap()]);
    assert!(listing.contains("-rw-r----- 7/8"), "{listing}");
    assert!(listing.contains("dir/d link to dir/c"), "{listing}");
    assert!(listing.lines().all(|line| line.contains("1970-01-01 00:00 ")), "{listing}");
    assert!(!listing.contains("gone"));
}

#[test]
fn platforms_get_folders_or_conflict() {
    let place = place();
    let one = Layers::open(&place.store, &[place.layer(&[("same", "1"), ("dir/x", "1")])]).unwrap();
    let two = Layers::open(&place.store, &[place.layer(&[("same", "2")])]).unwrap();
    let systems = [
        FileSystem { platform: platform("linux", "amd64"), view: &one },
        FileSystem { platform: platform("linux", "arm64"), view: &two },
    ];
    let out = place.path("out");
    let error = export::local::write(&systems, &out, LocalOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot overwrite same from linux/amd64 with linux/arm64 when split option is disabled"
    );
    assert!(!out.exists());
    let options = LocalOptions { split: true, ..LocalOptions::default() };
    export::local::write(&systems, &out, options).unwrap();
    assert_eq!(fs::read_to_string(out.join("linux_arm64/same")).unwrap(), "2");
    let tar = place.path("split.tar");
    export::tar::write(&systems, true, None, Output::Path(tar.clone())).unwrap();
    let listing = run("tar", &["-tf", tar.to_str().unwrap()]);
    assert!(listing.contains("linux_amd64/dir/x\n"), "{listing}");
}

#[test]
fn root_file_systems_are_imported() {
    let place = place();
    let source = place.path("source");
    fs::create_dir_all(source.join("bin")).unwrap();
    fs::write(source.join("bin/tool"), "tool").unwrap();
    let mut diff_ids: Vec<DiffId> = Vec::new();
    for (flag, media_type) in [
        ("--gzip", "tar+gzip"),
        ("--zstd", "tar+zstd"),
        ("--xz", "tar+gzip"),
        ("--bzip2", "tar+gzip"),
        ("--no-auto-compress", "tar+gzip"),
    ] {
        let archive = place.path("rootfs");
        run(
            "tar",
            &[
                flag,
                "-cf",
                archive.to_str().unwrap(),
                "--mtime=@5",
                "-C",
                source.to_str().unwrap(),
                ".",
            ],
        );
        let options = ImportOptions {
            names: vec!["docker.io/library/imported:1".into()],
            platform: platform("linux", "amd64"),
            container: ContainerConfig {
                cmd: Some(vec!["/bin/tool".into()]),
                ..Default::default()
            },
            message: "Imported from rootfs".into(),
            created: Some(5),
        };
        let image = import_rootfs(&place.store, File::open(&archive).unwrap(), &options).unwrap();
        assert!(image.layers[0].media_type.ends_with(media_type), "{flag}");
        let root = place.store.resolve("docker.io/library/imported:1").unwrap().unwrap();
        assert_eq!(root.digest, image.manifest.digest);
        let id = LayerId::of_diff_id(&image.diff_ids[0]);
        assert!(place.store.layer_tree(&id).unwrap().lookup(Path::new("bin/tool")).is_some());
        diff_ids.extend(image.diff_ids.clone());
        let folder = place.path(&format!("layout{flag}"));
        let named = named(&image, &["docker.io/library/imported:1"]);
        export::oci::write_folder(&place.store, &named, &folder).unwrap();
        // This umoci does not know zstd; skopeo unpacks nothing but reads it.
        if flag == "--zstd" {
            run("skopeo", &["inspect", &format!("oci:{}:1", folder.display())]);
            continue;
        }
        run(
            "umoci",
            &[
                "unpack",
                "--image",
                &format!("{}:1", folder.display()),
                place.path(&format!("bundle{flag}")).to_str().unwrap(),
            ],
        );
    }
    assert!(diff_ids.iter().all(|id| *id == diff_ids[0]));
}
