//! Faults of the network and of registries, by their numbers in docs/reliability.md.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use kiln_cache::{Descriptor, Digest, Store};
use kiln_image::credential::Credentials;
use kiln_image::media_type;
use kiln_image::platform::platform;
use kiln_image::reference::Reference;
use kiln_image::registry::{PushRequest, RegistryError, RegistrySettings, push};
use kiln_image::source::{Pull, SourceError, Sources};

use crate::registry::{is_layer, scripted};
use crate::scripted::{Asked, Reply, Server};

/// Impatient: what a test waits for takes a moment.
fn settings() -> RegistrySettings {
    let mut settings = RegistrySettings::default();
    settings.retries.first_wait = Duration::from_millis(2);
    settings
}

/// Pulls `x/y:1` of a host with one layer into a new store; what mirrors did wrong comes with it.
fn pull(host: &str, settings: RegistrySettings) -> (Result<(), SourceError>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let sources = Sources::new(store.clone(), settings, Credentials::none());
    let reference: Reference = format!("{host}/x/y:1").parse().unwrap();
    let wanted = platform("linux", "amd64");
    let fetched = sources
        .resolve_registry(&reference, &wanted, Pull::Missing)
        .and_then(|image| sources.fetch_layers(&image, &[0], &()).map(|()| image));
    if let Ok(image) = &fetched {
        assert!(store.has_layer(&image.layers[0].layer_id).unwrap());
        assert!(store.has_blob(&image.layers[0].descriptor.digest).unwrap());
    }
    (fetched.map(drop), sources.client().complaints())
}

/// Where nobody listens.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn is_archive(asked: &Asked, reply: &Reply) -> bool {
    is_layer(asked) && reply.body.len() > 100_000
}

/// Each connection brings a part and breaks, far more often than a request is repeated.
#[test]
fn f52_what_came_is_never_fetched_again() {
    let (server, layer) = scripted(|_, asked, reply| {
        let archive = is_archive(asked, &reply);
        let mut reply = reply.part(asked);
        if archive || asked.header("range").is_some() {
            // What the client's kernel has of a connection that was closed is not lost.
            reply.cut = Some(reply.body.len().min(70_000));
        }
        reply
    });
    pull(&server.host, settings()).0.unwrap();
    let archive = |asked: &&Asked| is_layer(asked) && asked.path.len() > 20;
    let requests = server.asked().iter().filter(archive).count();
    assert!((layer.len() / 70_000..20).contains(&requests), "{requests}");
}

/// Nobody listens; nobody answers; the name is nobody's: the error says who and why, soon.
#[test]
fn f54_silence_is_told() {
    let refused = nobody();
    let mut impatient = settings();
    impatient.timeouts.connect = Duration::from_millis(100);
    impatient.timeouts.answer = Duration::from_millis(100);
    impatient.retries.patience = Duration::from_millis(300);
    // A full queue of connections that nobody takes: the next one gets no answer to its SYN.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let _first = TcpStream::connect(&host).unwrap();
    for (host, expect) in [
        (refused.as_str(), "refused"),
        (host.as_str(), "timeout"),
        ("nobody.invalid", "failed to lookup"),
    ] {
        let mut settings = impatient.clone();
        settings.hosts.insecure.insert(host.to_owned());
        let error = pull(host, settings).0.unwrap_err().to_string();
        assert!(error.contains(host), "{error}");
        assert!(error.to_ascii_lowercase().contains(expect), "{expect}: {error}");
    }
}

/// A byte now and then is silence as well. What came is kept all the same.
#[test]
fn f55_next_to_nothing_is_silence() {
    let (server, _) = scripted(|_, asked, mut reply| {
        if is_archive(asked, &reply) {
            reply.drip = Some(Duration::from_millis(60));
        }
        reply
    });
    let mut impatient = settings();
    impatient.timeouts.silence = Duration::from_millis(200);
    impatient.retries.attempts = 2;
    let error = pull(&server.host, impatient.clone()).0.unwrap_err();
    assert!(chain(&error).contains("fewer than"), "{}", chain(&error));

    // The first connection starves, the second does not.
    let starved = Mutex::new(false);
    let (server, _) = scripted(move |_, asked, reply| {
        let archive = is_archive(asked, &reply);
        let mut reply = reply.part(asked);
        if archive && !std::mem::replace(&mut *starved.lock().unwrap(), true) {
            reply.drip = Some(Duration::from_millis(60));
        }
        reply
    });
    impatient.retries.attempts = 5;
    pull(&server.host, impatient).0.unwrap();
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}

#[test]
fn f56_busy_registries_are_asked_again() {
    for (status, after) in [(429, "0"), (429, "soon"), (503, "Thu, 01 Jan 1970 00:00:00 GMT")] {
        let (server, _) = scripted(move |number, _, reply| match number {
            0 | 1 => Reply::new(status, "").header("retry-after", after),
            _ => reply,
        });
        pull(&server.host, settings()).0.unwrap();
    }
    let (server, _) = scripted(|_, _, _| Reply::new(500, r#"{"errors":[{"message":"oops"}]}"#));
    let error = pull(&server.host, settings()).0.unwrap_err().to_string();
    assert!(error.contains("500: oops"), "{error}");
    assert_eq!(server.asked().len(), 5, "for ever is not asked");
}

/// A token ends in the middle: a new one is earned once. What else is refused is final, and told in one line.
#[test]
fn f57_refusals() {
    let (server, _) = scripted(|number, asked, reply| {
        // The address of the realm is the registry's own.
        let host = asked.header("host").unwrap();
        if asked.path.starts_with("/token") {
            return Reply::new(200, format!(r#"{{"token":"t{number}"}}"#));
        }
        let expired = is_layer(asked) && asked.header("authorization") == Some("Bearer t1");
        if asked.header("authorization").is_none() || expired {
            let realm = format!(r#"Bearer realm="http://{host}/token",service="s""#);
            return Reply::new(401, "").header("www-authenticate", realm);
        }
        reply
    });
    pull(&server.host, settings()).0.unwrap();
    let tokens = server.asked().iter().filter(|asked| asked.path.starts_with("/token")).count();
    assert_eq!(tokens, 2);

    for status in [403, 404, 407, 451] {
        let body = r#"{"errors":[{"message":"\u001b[2Jno\nway"}]}"#;
        let (server, _) = scripted(move |_, _, _| Reply::new(status, body));
        let error = pull(&server.host, settings()).0.unwrap_err().to_string();
        assert_eq!(server.asked().len(), 1, "{status}");
        assert!(!error.contains(['\u{1b}', '\n']), "{error:?}");
        assert!(status == 404 || error.contains("noway"), "{status}: {error}");
    }
}

/// Mirrors that are down, that lie, and that send a half: the registry itself serves, and they are told of.
#[test]
fn f60_mirrors_are_passed_over() {
    let refused = nobody();
    let (empty, _) = scripted(|_, _, _| Reply::new(404, ""));
    let (corrupt, _) = scripted(|_, asked, mut reply| {
        if is_archive(asked, &reply) {
            reply.body[200_000] ^= 1;
        }
        reply
    });
    for (mirror, expect) in
        [(&refused, Some("refused")), (&empty.host, None), (&corrupt.host, Some("damaged"))]
    {
        let (origin, _) = scripted(|_, _, reply| reply);
        let mut settings = settings();
        settings.hosts.mirrors.insert(origin.host.clone(), vec![mirror.to_string()]);
        let (pulled, complaints) = pull(&origin.host, settings);
        pulled.unwrap();
        match expect {
            None => assert!(complaints.is_empty(), "{complaints:?}"),
            Some(expect) => {
                let told = complaints.iter().any(|line| line.to_lowercase().contains(expect));
                assert!(told, "{expect}: {complaints:?}");
            }
        }
    }
}

/// A registry that takes what it is sent.
struct Taking {
    server: Server,
}

/// `tamper` is asked first; where it gives nothing the registry does its work.
fn taking(tamper: impl Fn(usize, &Asked) -> Option<Reply> + Send + Sync + 'static) -> Taking {
    let server = Server::start(move |number, asked| {
        if let Some(reply) = tamper(number, asked) {
            return reply;
        }
        match asked.method.as_str() {
            "HEAD" => Reply::new(404, ""),
            "POST" => Reply::new(202, "").header("location", format!("/v2/x/y/uploads/{number}")),
            _ => Reply::new(201, ""),
        }
    });
    Taking { server }
}

impl Taking {
    /// Pushes an image of two blobs.
    fn push(&self) -> Result<(), RegistryError> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let put = |kind: &str, bytes: &[u8]| {
            Descriptor::new(kind, store.put_blob(bytes).unwrap(), bytes.len() as u64)
        };
        let layer = put(media_type::LAYER, &vec![7; 300_000]);
        let config = put(media_type::CONFIG, b"{}");
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
            media_type::MANIFEST,
            serde_json::to_string(&config).unwrap(),
            serde_json::to_string(&layer).unwrap()
        );
        let request = PushRequest {
            root: put(media_type::MANIFEST, manifest.as_bytes()),
            targets: vec![format!("{}/x/y:1", self.server.host).parse().unwrap()],
            by_digest: false,
            sources: HashMap::new(),
        };
        let sources = Sources::new(store.clone(), settings(), Credentials::none());
        push(sources.client(), &store, &request, &|_| false)
    }

    fn count(&self, is: impl Fn(&Asked) -> bool) -> usize {
        self.server.asked().iter().filter(|asked| is(asked)).count()
    }

    /// How often the image got its name.
    fn named(&self) -> usize {
        self.count(|asked| asked.method == "PUT" && asked.path.ends_with("/manifests/1"))
    }
}

fn is_upload(asked: &Asked) -> bool {
    asked.method == "PUT" && asked.path.contains("/uploads/")
}

/// An upload that breaks begins anew, where the registry says then; a name comes last, and only to what is whole.
#[test]
fn f62_uploads_that_break() {
    let honest = taking(|_, _| None);
    honest.push().unwrap();
    assert_eq!((honest.count(is_upload), honest.named()), (2, 1));
    assert!(honest.server.asked().last().unwrap().path.ends_with("/manifests/1"));

    for (what, reply) in [
        ("reset", Reply::none as fn() -> Reply),
        ("another part", || Reply::new(416, "")),
        ("forgotten", || Reply::new(404, "")),
        ("busy", || Reply::new(503, "")),
    ] {
        let broken = Mutex::new(0);
        let registry = taking(move |_, asked| {
            let mut broken = broken.lock().unwrap();
            *broken += usize::from(is_upload(asked));
            (is_upload(asked) && *broken <= 2).then(reply)
        });
        registry.push().unwrap_or_else(|error| panic!("{what}: {error}"));
        let begun = registry.count(|asked| asked.method == "POST");
        assert_eq!((begun, registry.count(is_upload), registry.named()), (4, 4, 1), "{what}");
        let mut places: Vec<_> =
            registry.server.asked().into_iter().filter(is_upload).map(|asked| asked.path).collect();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), 4, "{what}: an upload that broke is not gone on with: {places:?}");
    }
}

#[test]
fn f62_uploads_that_are_refused() {
    let unknown = r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#;
    for (what, status, body, expect) in [
        ("other content", 400, unknown, "DIGEST_INVALID"),
        ("too large", 413, "", "413"),
        ("no room", 507, "", "507"),
        ("not allowed", 403, "", "not allowed"),
    ] {
        let registry = taking(move |_, asked| is_upload(asked).then(|| Reply::new(status, body)));
        let error = registry.push().unwrap_err().to_string();
        assert!(error.contains(expect), "{what}: {error}");
        assert!(registry.count(is_upload) <= 2 && registry.named() == 0, "{what}");
    }
    let nowhere = taking(|_, asked| (asked.method == "POST").then(|| Reply::new(202, "")));
    let error = nowhere.push().unwrap_err().to_string();
    assert!(error.contains("an upload without a location"), "{error}");

    // The name is refused: the blobs stay, and nothing else is tried.
    let registry = taking(|_, asked| {
        asked
            .path
            .ends_with("/manifests/1")
            .then(|| Reply::new(400, r#"{"errors":[{"message":"bad"}]}"#))
    });
    let error = registry.push().unwrap_err().to_string();
    assert!(error.contains("400: bad"), "{error}");
    assert_eq!((registry.count(is_upload), registry.named()), (2, 1));
}

/// The bytes may go to another host where the registry says so; its credentials never.
#[test]
fn f62_uploads_elsewhere() {
    let other = Server::start(|_, _| Reply::new(201, ""));
    let place = other.host.clone();
    let registry = taking(move |number, asked| {
        if asked.header("authorization").is_none() {
            let basic = Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\"");
            return Some(basic);
        }
        let location = format!("http://{place}/up/{number}");
        (asked.method == "POST").then(|| Reply::new(202, "").header("location", location))
    });
    // Without credentials it is refused at once.
    assert!(registry.push().is_err());
    let open = other.host.clone();
    let registry = taking(move |number, asked| {
        let location = format!("http://{open}/up/{number}");
        (asked.method == "POST").then(|| Reply::new(202, "").header("location", location))
    });
    registry.push().unwrap();
    assert_eq!(other.asked().len(), 2);
    assert!(other.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

/// HEAD says that all is there, and the manifest is refused because it is not.
#[test]
fn f63_blobs_that_are_not_there_after_all() {
    let sent = Mutex::new(0);
    let registry = taking(move |_, asked| {
        let mut sent = sent.lock().unwrap();
        *sent += usize::from(is_upload(asked));
        let unknown =
            r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#;
        match asked.method.as_str() {
            "HEAD" => Some(Reply::new(200, "")),
            "PUT" if asked.path.ends_with("/manifests/1") && *sent < 2 => {
                Some(Reply::new(400, unknown))
            }
            _ => None,
        }
    });
    registry.push().unwrap();
    assert_eq!((registry.count(is_upload), registry.named()), (2, 2));

    // A pull finds a layer missing that the manifest names: which one, and no half of it is left.
    let (server, layer) = scripted(|_, asked, reply| match is_archive(asked, &reply) {
        true => Reply::new(404, ""),
        false => reply,
    });
    let error = pull(&server.host, settings()).0.unwrap_err().to_string();
    assert!(error.contains(&Digest::sha256(&layer).to_string()), "{error}");
}
