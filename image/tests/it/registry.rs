//! Pull and push with Debian's docker-registry, seeded and checked by skopeo.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_cache::{Descriptor, DiffId, Digest, Layers, Store, View};
use kiln_image::config::ConfigDocument;
use kiln_image::credential::Credentials;
use kiln_image::index::{Index, REF_NAME};
use kiln_image::layout::Selector;
use kiln_image::manifest::Manifest;
use kiln_image::media_type;
use kiln_image::platform::platform;
use kiln_image::reference::Reference;
use kiln_image::registry::{PushRequest, RegistrySettings, push};
use kiln_image::source::{Origin, Pull, SourceError, Sources};

use crate::builder::Archive;
use crate::scripted::{Reply, Server};

/// A registry that is ended when it goes out of scope.
struct Registry {
    child: Child,
    host: String,
    _folder: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `user` with the password `secret`, as htpasswd writes it with bcrypt.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

fn registry(extra: &str) -> Registry {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let root = folder.path().display();
    std::fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
    let extra = extra.replace("ROOT", &root.to_string());
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\n\
         http:\n  addr: {host}\n  secret: x\n{extra}"
    );
    let path = folder.path().join("config.yml");
    std::fs::write(&path, config).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("these tests need `docker-registry`");
    let registry = Registry { child, host, _folder: folder };
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(&registry.host).is_err() {
        assert!(Instant::now() < end, "docker-registry does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    registry
}

fn sources(folder: &Path) -> Sources {
    sources_with(folder, Credentials::none())
}

fn sources_with(folder: &Path, credentials: Credentials) -> Sources {
    let store = Store::open(folder).unwrap();
    let mut settings = RegistrySettings::default();
    settings.retries.first_wait = Duration::from_millis(5);
    Sources::new(store, settings, credentials)
}

fn credentials(host: &str, user: &str, password: &str) -> Credentials {
    let folder = tempfile::tempdir().unwrap();
    let json =
        format!(r#"{{"auths": {{"{host}": {{"username": "{user}", "password": "{password}"}}}}}}"#);
    std::fs::write(folder.path().join("config.json"), json).unwrap();
    Credentials::from_folder(folder.path()).unwrap()
}

/// An OCI layout `layout:latest` with these layer archives, compressed by gzip.
fn layout(folder: &Path, layers: &[Vec<u8>]) {
    let blobs = folder.join("layout/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        Descriptor::new(kind, digest, bytes.len() as u64)
    };
    let mut config = ConfigDocument::new(&platform("linux", "amd64"));
    let ids: Vec<_> = layers.iter().map(|bytes| DiffId(Digest::sha256(bytes))).collect();
    config.set_diff_ids(&ids);
    let compressed = layers.iter().map(|bytes| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        put(media_type::LAYER_GZIP, &gzip.finish().unwrap())
    });
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::MANIFEST.to_owned()),
        layers: compressed.collect(),
        config: put(media_type::CONFIG, &config.to_bytes()),
        annotations: Default::default(),
    };
    let mut root = put(media_type::MANIFEST, &manifest.to_bytes());
    root.annotations.insert(REF_NAME.to_owned(), "latest".to_owned());
    let place = folder.join("layout");
    std::fs::write(place.join("index.json"), Index::new(vec![root]).to_bytes()).unwrap();
    std::fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn two_layers() -> Vec<Vec<u8>> {
    vec![
        Archive::default().dir("tmp/").dir("etc/").file("etc/a", "one").file("etc/b", "x").end(),
        Archive::default().dir("etc/").file("etc/a", "two").file("etc/.wh.b", "").end(),
    ]
}

fn seed(registry: &Registry, folder: &Path, name: &str, options: &[&str]) {
    let from = format!("oci:{}:latest", folder.join("layout").display());
    let to = format!("docker://{}/{name}", registry.host);
    let mut arguments = vec!["copy", "--dest-tls-verify=false"];
    arguments.extend(options);
    arguments.extend([from.as_str(), to.as_str()]);
    run("skopeo", &arguments);
}

fn read(store: &Store, image: &kiln_image::source::Resolved, path: &str) -> Option<String> {
    let ids: Vec<_> = image.layers.iter().map(|l| l.layer_id.clone()).collect();
    let view = Layers::open(store, &ids).unwrap();
    view.entry(Path::new(path))?;
    Some(std::io::read_to_string(view.open(Path::new(path)).unwrap()).unwrap())
}

#[test]
fn an_image_is_pulled_once_and_then_known() {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), &two_layers());
    let registry = registry("");
    seed(&registry, folder.path(), "a/base:1", &[]);
    let root = folder.path().join("store");
    let sources = sources(&root);
    let reference: Reference = format!("{}/a/base:1", registry.host).parse().unwrap();
    let wanted = platform("linux", "amd64");

    let error = sources.resolve_registry(&reference, &wanted, Pull::Never).unwrap_err();
    assert!(matches!(error, SourceError::NotStored { .. }), "{error}");
    let image = sources.resolve_registry(&reference, &wanted, Pull::Missing).unwrap();
    let store = Store::open(&root).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert!(!store.has_layer(&image.layers[0].layer_id).unwrap(), "resolving must be lazy");
    assert!(!store.has_blob(&image.layers[0].descriptor.digest).unwrap());

    sources.fetch_layers(&image, &[0, 1], &()).unwrap();
    assert!(store.has_blob(&image.layers[0].descriptor.digest).unwrap());
    assert_eq!(read(&store, &image, "etc/a").as_deref(), Some("two"));
    assert_eq!(read(&store, &image, "etc/b"), None);

    let missing: Reference = format!("{}/a/none:1", registry.host).parse().unwrap();
    let error = sources.resolve_registry(&missing, &wanted, Pull::Missing).unwrap_err();
    assert!(error.to_string().contains("none:1` is not in the registry"), "{error}");

    // Without the registry everything is still known, unless the registry is to be asked.
    drop(registry);
    let again = sources.resolve_registry(&reference, &wanted, Pull::Missing).unwrap();
    assert_eq!(again, image);
    sources.fetch_layers(&again, &[0, 1], &()).unwrap();
    assert!(sources.resolve_registry(&reference, &wanted, Pull::Always).is_err());
    let pinned = reference.with_digest(image.digest.clone());
    let pinned = sources.resolve_registry(&pinned, &wanted, Pull::Always).unwrap();
    assert_eq!(pinned.layers, image.layers);
}

#[test]
fn a_layout_is_read_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), &two_layers());
    let root = folder.path().join("store");
    let (sources, store) = (sources(&root), Store::open(&root).unwrap());
    let wanted = platform("linux", "amd64");
    let path = folder.path().join("layout");
    let image =
        sources.resolve_layout(&path, &Selector::Tag("latest".to_owned()), &wanted).unwrap();
    assert_eq!(image.origin, Origin::Layout(path));
    sources.fetch_layers(&image, &[0, 1], &()).unwrap();
    assert_eq!(read(&store, &image, "etc/a").as_deref(), Some("two"));
    let layer = &image.layers[0].descriptor;
    assert!(!store.has_blob(&layer.digest).unwrap());
    sources.ensure_blob(&image, layer, &()).unwrap();
    assert!(store.has_blob(&layer.digest).unwrap());

    // A damaged layer is told, and nothing of it is published.
    let blob =
        folder.path().join("layout/blobs/sha256").join(image.layers[1].descriptor.digest.hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let other = folder.path().join("store2");
    let (sources, store) = (self::sources(&other), Store::open(&other).unwrap());
    assert!(sources.fetch_layers(&image, &[0, 1], &()).is_err());
    assert!(!store.has_layer(&image.layers[1].layer_id).unwrap());
}

#[test]
fn implied_directories_look_as_below_whatever_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let below = Archive::default().dir("tmp/").dir("deep/").file("deep/x", "").end();
    layout(folder.path(), &[below, Archive::default().file("tmp/a", "1").end()]);
    let root = folder.path().join("store");
    let (sources, store) = (sources(&root), Store::open(&root).unwrap());
    let path = folder.path().join("layout");
    let image = sources.resolve_layout(&path, &Selector::Any, &platform("linux", "amd64")).unwrap();
    sources.fetch_layers(&image, &[1, 0], &()).unwrap();
    assert_eq!(read(&store, &image, "tmp/a").as_deref(), Some("1"));
    let tree = store.layer_tree(&image.layers[1].layer_id).unwrap();
    // As the lower layer has it, not as an invented directory would be.
    assert_eq!(tree.lookup(Path::new("tmp")).unwrap().metadata.mtime.secs, 1_600_000_000);
}

fn htpasswd() -> &'static str {
    "auth:\n  htpasswd:\n    realm: r\n    path: ROOT/htpasswd\n"
}

#[test]
fn pushed_images_are_whole_and_their_layers_mounted() {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path(), &two_layers());
    let registry = registry(htpasswd());
    seed(&registry, folder.path(), "base:1", &["--dest-creds=user:secret"]);
    let root = folder.path().join("store");
    let reference: Reference = format!("{}/base:1", registry.host).parse().unwrap();
    let wanted = platform("linux", "amd64");

    let error = sources(&root).resolve_registry(&reference, &wanted, Pull::Missing).unwrap_err();
    assert!(error.to_string().contains("no credentials are known"), "{error}");
    let wrong = sources_with(&root, credentials(&registry.host, "user", "wrong"));
    let error = wrong.resolve_registry(&reference, &wanted, Pull::Missing).unwrap_err();
    assert!(error.to_string().contains("not allowed"), "{error}");
    assert!(!error.to_string().contains("wrong"), "{error}");

    let sources = sources_with(&root, credentials(&registry.host, "user", "secret"));
    let store = Store::open(&root).unwrap();
    let image = sources.resolve_registry(&reference, &wanted, Pull::Missing).unwrap();
    // One layer is only known, never fetched: it must be mounted. The other is uploaded.
    sources.fetch_layers(&image, &[1], &()).unwrap();
    let mut manifest = image.manifest.clone();
    manifest.platform = Some(wanted.clone());
    let index = Index::new(vec![manifest]).to_bytes();
    let digest = store.put_blob(&index).unwrap();
    let kind = media_type::INDEX;
    let targets = ["new/app:1", "new/app:latest"];
    let request = PushRequest {
        root: Descriptor::new(kind, digest, index.len() as u64),
        targets: targets.map(|t| format!("{}/{t}", registry.host).parse().unwrap()).to_vec(),
        by_digest: false,
        sources: HashMap::from([(image.layers[0].descriptor.digest.clone(), reference.clone())]),
    };
    push(sources.client(), &store, &request, &|_| false).unwrap();
    push(sources.client(), &store, &request, &|_| false).unwrap();
    for target in targets {
        let name = format!("docker://{}/{target}", registry.host);
        let raw = run(
            "skopeo",
            &["inspect", "--raw", "--tls-verify=false", "--creds=user:secret", &name],
        );
        assert_eq!(raw.as_bytes(), index);
    }
    // In another process' eyes it can be pulled whole.
    let copy = format!("oci:{}:x", folder.path().join("copy").display());
    let name = format!("docker://{}/new/app:1", registry.host);
    run("skopeo", &["copy", "--src-tls-verify=false", "--src-creds=user:secret", &name, &copy]);

    // Chunks.
    let mut settings = RegistrySettings { chunk: Some(64), ..Default::default() };
    settings.hosts.trusted_realms = BTreeSet::new();
    sources.fetch_layers(&image, &[0], &()).unwrap();
    let chunked =
        Sources::new(store.clone(), settings, credentials(&registry.host, "user", "secret"));
    let target = format!("{}/chunked/app:1", registry.host).parse().unwrap();
    let request = PushRequest { targets: vec![target], sources: HashMap::new(), ..request };
    push(chunked.client(), &store, &request, &|_| false).unwrap();
    let name = format!("docker://{}/chunked/app:1", registry.host);
    let copy = format!("oci:{}:y", folder.path().join("copy").display());
    run("skopeo", &["copy", "--src-tls-verify=false", "--src-creds=user:secret", &name, &copy]);
}

/// A registry in a few lines: one image of one layer. `tamper` sees every answer.
pub(crate) fn scripted(
    tamper: impl Fn(usize, &crate::scripted::Asked, Reply) -> Reply + Send + Sync + 'static,
) -> (Server, Vec<u8>) {
    let layer = Archive::default().file("a", &"z".repeat(400_000)).end();
    let digest = Digest::sha256(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    let config_digest = Digest::sha256(config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"{}","digest":"{digest}","size":{}}}]}}"#,
        media_type::MANIFEST,
        media_type::CONFIG,
        config.len(),
        media_type::LAYER,
        layer.len()
    );
    let blob = layer.clone();
    let server = Server::start(move |number, asked| {
        let path = asked.path.split('?').next().unwrap();
        let reply = if path.contains("/manifests/") {
            Reply::new(200, manifest.clone()).header("content-type", media_type::MANIFEST)
        } else if path.ends_with(&config_digest.to_string()) {
            Reply::new(200, config.clone())
        } else if path.ends_with(&digest.to_string()) {
            Reply::new(200, blob.clone())
        } else {
            Reply::new(404, "")
        };
        tamper(number, asked, reply)
    });
    (server, layer)
}

fn pull(server: &Server, credentials: Credentials) -> Result<(), SourceError> {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources_with(folder.path(), credentials);
    let reference: Reference = format!("{}/x/y:1", server.host).parse().unwrap();
    let image = sources.resolve_registry(&reference, &platform("linux", "amd64"), Pull::Missing)?;
    let result = sources.fetch_layers(&image, &[0], &());
    let store = Store::open(folder.path()).unwrap();
    let stored = store.has_layer(&image.layers[0].layer_id).unwrap();
    assert_eq!(stored, result.is_ok());
    let kept = store.has_blob(&image.layers[0].descriptor.digest).unwrap();
    assert!(kept || result.is_err());
    result
}

pub(crate) fn is_layer(asked: &crate::scripted::Asked) -> bool {
    asked.path.contains("/blobs/")
}

type Tamper = fn(&str, Reply) -> Reply;

/// What it does, how, and what the error says.
fn attacks() -> [(&'static str, Tamper, &'static str); 9] {
    [
        ("honest", |_, reply| reply, ""),
        (
            "other bytes",
            |_, mut reply| {
                let at = reply.body.len() - 1;
                reply.body[at] ^= 1;
                reply
            },
            "",
        ),
        (
            "another layer",
            |_, mut reply| {
                if reply.body.len() > 100_000 {
                    reply.body[1000] ^= 1;
                }
                reply
            },
            "hashes to",
        ),
        (
            "too many bytes",
            |path, mut reply| {
                if path.contains("/blobs/") {
                    reply.body.extend([0; 4096]);
                }
                reply
            },
            "promised",
        ),
        (
            "too few bytes",
            |path, mut reply| {
                if path.contains("/blobs/") {
                    reply.body.truncate(10);
                }
                reply
            },
            "",
        ),
        (
            "a wrong header",
            |path, reply| match path.contains("/manifests/") {
                true => reply.header("docker-content-digest", format!("sha256:{}", "0".repeat(64))),
                false => reply,
            },
            "answered wrongly",
        ),
        (
            "a huge manifest",
            |path, mut reply| {
                if path.contains("/manifests/") {
                    reply.body.resize(5 << 20, b' ');
                }
                reply
            },
            "manifest of more than",
        ),
        ("a redirect loop", |path, _| Reply::new(302, "").header("location", path), "redirects"),
        (
            "a redirect to a file",
            |_, _| Reply::new(302, "").header("location", "file:///etc/passwd"),
            "no http address",
        ),
    ]
}

#[test]
fn f58_what_a_hostile_registry_sends_is_never_believed() {
    for (name, tamper, expect) in attacks() {
        let (server, _) = scripted(move |_, asked, reply| tamper(&asked.path, reply));
        let result = pull(&server, Credentials::none());
        match (name, result) {
            ("honest", result) => result.unwrap(),
            (_, Ok(())) => panic!("{name} was believed"),
            (_, Err(error)) => {
                assert!(error.to_string().contains(expect), "{name}: {error}");
                assert!(server.asked().len() < 40, "{name}: {} requests", server.asked().len());
            }
        }
    }
}

#[test]
fn f51_broken_downloads_go_on_where_they_broke() {
    let (server, layer) = scripted(|_, asked, mut reply| {
        if asked.header("range").is_none() && is_layer(asked) && reply.body.len() > 1000 {
            reply.cut = Some(300_000);
        }
        reply.part(asked)
    });
    pull(&server, Credentials::none()).unwrap();
    let ranges: Vec<_> =
        server.asked().iter().filter_map(|a| a.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert!(layer.len() > 300_000);

    // Servers that are busy are asked again, those that refuse are not.
    let (server, _) = scripted(|number, _, reply| match number {
        0 | 1 => Reply::new(503, ""),
        _ => reply,
    });
    pull(&server, Credentials::none()).unwrap();
    let (server, _) =
        scripted(|_, _, _| Reply::new(403, r#"{"errors":[{"message":"go\u001b[31m away"}]}"#));
    let error = pull(&server, Credentials::none()).unwrap_err().to_string();
    assert!(error.contains("403: go[31m away"), "{error:?}");
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn tokens_are_earned_and_shown_to_their_origin_only() {
    let other = Server::start(|_, _| Reply::new(404, ""));
    let realm = Server::start(|_, asked| match asked.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => Reply::new(200, r#"{"token":"t0","expires_in":300}"#),
        _ => Reply::new(401, ""),
    });
    let (realm_host, other_host) = (realm.host.clone(), other.host.clone());
    let (server, _) = scripted(move |_, asked, reply| match asked.header("authorization") {
        Some("Bearer t0") if is_layer(asked) && reply.body.len() > 1000 => {
            Reply::new(307, "").header("location", format!("http://{other_host}/elsewhere"))
        }
        Some("Bearer t0") => reply,
        _ => Reply::new(401, "").header(
            "www-authenticate",
            format!(r#"Bearer realm="http://{realm_host}/token",service="s"#),
        ),
    });
    let known = credentials(&server.host, "user", "secret");
    let error = pull(&server, known).unwrap_err().to_string();
    assert!(error.contains("is not in the registry"), "{error}");
    assert_eq!(realm.asked().len(), 1, "the token is kept");
    assert_eq!(realm.asked()[0].path, "/token?service=s&scope=repository:x/y:pull");
    assert!(!other.asked().is_empty());
    assert!(other.asked().iter().all(|asked| asked.header("authorization").is_none()));

    // A realm somewhere else gets nothing at all.
    for realm in ["http://127.0.0.2:9/t", "http://169.254.169.254/t", "file:///x"] {
        let (server, _) = scripted(move |_, _, _| {
            Reply::new(401, "").header("www-authenticate", format!(r#"Bearer realm="{realm}""#))
        });
        let error = pull(&server, credentials(&server.host, "user", "secret")).unwrap_err();
        assert!(error.to_string().contains("not allowed to ask for a token"), "{error}");
    }
}
