//! Downloads by URL from a scripted server.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use kiln_cache::{Digest, Store};
use kiln_image::credential::Credentials;
use kiln_image::http::{Download, HttpError, HttpRequest, download};
use kiln_image::registry::{RegistryClient, RegistrySettings};

use crate::scripted::{Reply, Server};

struct Place {
    folder: tempfile::TempDir,
    client: RegistryClient,
}

impl Place {
    fn new() -> Self {
        let mut settings = RegistrySettings::default();
        settings.retries.first_wait = Duration::from_millis(5);
        let client = RegistryClient::new(settings, Credentials::none());
        Self { folder: tempfile::tempdir().unwrap(), client }
    }

    fn store(&self) -> Store {
        Store::open(self.folder.path()).unwrap()
    }

    fn get(&self, url: &str, checksum: Option<&Digest>) -> Result<Download, HttpError> {
        let request =
            HttpRequest { url: url.to_owned(), checksum: checksum.cloned(), authorization: None };
        download(&self.client, &self.store(), &request, &())
    }
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let server = Server::start(|_, asked| {
        assert_eq!(asked.method, "GET");
        let date = "Thu, 01 Jan 1970 00:00:10 GMT";
        match asked.header("if-none-match") {
            Some("\"v1\"") => Reply::new(304, ""),
            _ => Reply::new(200, "hello").header("etag", "W/\"v1\"").header("last-modified", date),
        }
    });
    let place = Place::new();
    let url = format!("http://{}/a?b=1", server.host);
    let first = place.get(&url, None).unwrap();
    assert_eq!((first.size, first.last_modified), (5, Some(10)));
    assert_eq!(first.digest, Digest::sha256(b"hello"));
    assert_eq!(place.get(&url, None).unwrap(), first);
    assert_eq!(server.asked().len(), 2);
    // With a checksum nobody is asked.
    assert_eq!(place.get(&url, Some(&first.digest)).unwrap(), first);
    assert_eq!(server.asked().len(), 2);
    let wrong = Digest::sha256(b"other");
    let error = place.get(&url, Some(&wrong)).unwrap_err().to_string();
    assert!(error.contains(&format!("digest mismatch {}: {wrong}", first.digest)), "{error}");
    // What was lost from the store is fetched again.
    place.store().remove_blob(&first.digest).unwrap();
    assert_eq!(place.get(&url, None).unwrap(), first);
    assert!(place.store().has_blob(&first.digest).unwrap());
}

#[test]
fn failures_are_told_in_buildkits_words() {
    let server = Server::start(|_, asked| match asked.path.as_str() {
        "/missing" => Reply::new(404, ""),
        "/loop" => Reply::new(302, "").header("location", "/loop"),
        "/file" => Reply::new(302, "").header("location", "file:///etc/passwd"),
        "/cut" => Reply { cut: Some(3), ..Reply::new(200, "hello") },
        _ => Reply::new(200, "hello"),
    });
    let place = Place::new();
    for (path, expect) in [
        ("/missing", "invalid response status 404"),
        ("/loop", "more than 10 redirects"),
        ("/file", "no http address"),
        ("/cut", "cannot download"),
    ] {
        let url = format!("http://user:hunter2@{}{path}", server.host);
        let error = place.get(&url, None).unwrap_err().to_string();
        assert!(error.contains(expect) && !error.contains("hunter2"), "{error}");
    }
    let wrong = Digest::sha256(b"other");
    let url = format!("http://{}/x", server.host);
    assert!(matches!(place.get(&url, Some(&wrong)), Err(HttpError::Checksum { .. })));
    assert!(!place.store().has_blob(&Digest::sha256(b"hello")).unwrap());
}

#[test]
fn passwords_stay_at_home_and_gzip_is_undone() {
    let other = Server::start(|_, _| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        Reply::new(200, gzip.finish().unwrap()).header("content-encoding", "gzip")
    });
    let elsewhere = format!("http://{}/x", other.host);
    let server =
        Server::start(move |_, _| Reply::new(302, "").header("location", elsewhere.clone()));
    let place = Place::new();
    let found = place.get(&format!("http://u:p@{}/x", server.host), None).unwrap();
    assert_eq!(found.digest, Digest::sha256(b"hello"));
    assert_eq!(server.asked()[0].header("authorization"), Some("Basic dTpw"));
    assert_eq!(other.asked()[0].header("authorization"), None);
}

/// The environment belongs to the whole process: this test runs itself again with another one.
#[test]
fn certificates_are_verified_by_the_roots_of_the_environment() {
    if let Ok(url) = std::env::var("KILN_TEST_HTTPS") {
        let result = Place::new().get(&url, None);
        let trusted = std::env::var_os("KILN_TEST_TRUSTED").is_some();
        assert_eq!(result.is_ok(), trusted, "{result:?}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=kiln", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-days", "2"])
        .args(["-keyout", &at("key"), "-out", &at("cert")])
        .output()
        .expect("this test needs `openssl`");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::write(folder.path().join("page"), "hello").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl")
        .args(["s_server", "-quiet", "-WWW", "-accept", &port.to_string()])
        .args(["-key", &at("key"), "-cert", &at("cert")])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let again = |trusted: bool| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "http::certificates_are_verified_by_the_roots_of_the_environment"]);
        command.env("KILN_TEST_HTTPS", format!("https://127.0.0.1:{port}/page"));
        if trusted {
            command.env("KILN_TEST_TRUSTED", "1").env("SSL_CERT_FILE", at("cert"));
        }
        command.output().unwrap()
    };
    let outputs = [again(true), again(false)];
    let _ = server.kill();
    let _ = server.wait();
    for output in outputs {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }
}
