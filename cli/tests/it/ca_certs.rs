//! `--ca-certs`: what steps trust because of it, and that nothing of it stays.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::env::{Said, World, text, tool};
use crate::examples::base;

/// What stands in place of the certificates of an image.
const OWN: &str = "# the image's own\n";

const IMAGE: &str = "FROM busybox\n\
    COPY own.crt /etc/pki/real/bundle.pem\n\
    COPY own.crt /etc/ssl/cert.pem\n\
    RUN mkdir -p /etc/ssl/certs && busybox ln -s ../../pki/real/bundle.pem /etc/ssl/certs/ca-certificates.crt\n";

/// A certificate authority `ca.pem` with its key `ca.key`, and of it `server.pem` for 127.0.0.1.
fn authority(world: &World) -> String {
    let path = |name: &str| text(&world.path(name));
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout"];
    let made = ["-subj", "/CN=kiln-test-authority", "-days", "30", "-out"];
    let all = [&["req", "-x509"], &key[..], &[&path("ca.key")], &made, &[&path("ca.pem")]];
    tool("openssl", &all.concat());
    let asked = ["-subj", "/CN=127.0.0.1", "-out"];
    let all = [&["req"], &key[..], &[&path("server.key")], &asked, &[&path("server.csr")]];
    tool("openssl", &all.concat());
    fs::write(world.path("names"), "subjectAltName=IP:127.0.0.1\n").expect("written");
    let signed = ["x509", "-req", "-in", &path("server.csr"), "-CA", &path("ca.pem"), "-CAkey"];
    let rest = [&path("ca.key"), "-CAcreateserial", "-days", "20", "-extfile", &path("names")];
    let out = ["-out", &path("server.pem")];
    tool("openssl", &[&signed[..], &rest, &out].concat());
    let certificate = fs::read_to_string(world.path("ca.pem")).expect("made");
    certificate.lines().nth(2).expect("a line of base64").to_owned()
}

fn world(steps: &str) -> (World, String) {
    let world = World::new();
    world.busybox().file("own.crt", OWN).file("Dockerfile", &format!("{IMAGE}{steps}"));
    fs::create_dir(world.path("exported")).expect("made");
    let line = authority(&world);
    (world, line)
}

fn build(world: &World, more: &[&str]) -> Said {
    world.build(&[&["--ca-certs", "ca.pem"], more].concat())
}

/// No layer, and nothing that was exported, may hold a line of the certificate.
#[track_caller]
fn nothing_stays(world: &World, line: &str) {
    let mut search = Command::new("grep");
    search.args(["-rlF", "--", line]);
    let found = search.args(["store/layers", "exported"].map(|name| world.path(name))).output();
    let found = crate::env::said(&found.expect("grep starts"));
    assert_eq!((found.code, found.out.as_str()), (1, ""), "{}", found.err);
}

#[test]
fn bundles_of_the_image_have_it_and_can_be_replaced() {
    // The last is what `update-ca-certificates` does; a mount point would be busy.
    let (world, line) = world(
        "RUN for f in certs/ca-certificates.crt cert.pem; do busybox tail -n 12 /etc/ssl/$f; done\n\
         RUN busybox mv /etc/pki/real/bundle.pem /old && echo new > /etc/ssl/certs/ca-certificates.crt\n\
         RUN cat /old /etc/pki/real/bundle.pem | busybox head -n 1; cat /etc/pki/real/bundle.pem | grep -c END\n",
    );
    let built = build(&world, &["-o", "type=local,dest=exported"]).ok();
    assert!(built.err.matches(&line).count() >= 2, "{}", built.err);
    let read = |path: &str| fs::read_to_string(world.path("exported").join(path)).expect(path);
    assert_eq!((read("old"), read("etc/pki/real/bundle.pem")), (OWN.into(), "new\n".into()));
    nothing_stays(&world, &line);
}

#[test]
fn copies_are_as_without_it() {
    let (world, line) = world(
        "RUN echo own >/own && busybox cp /etc/ssl/cert.pem /copy\n\
         RUN cat /own >>/etc/ssl/cert.pem && cat /copy >>/etc/ssl/cert.pem && touch /etc/ssl/beside\n\
         RUN busybox cp $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS /\n",
    );
    let with =
        ["-o", "type=local,dest=exported", "-o", "type=oci,dest=with.tar,compression=uncompressed"];
    build(&world, &with).ok();
    let read = |path: &str| fs::read_to_string(world.path("exported").join(path)).expect(path);
    assert_eq!(read("copy"), OWN);
    assert_eq!(read("etc/ssl/cert.pem"), format!("{OWN}own\n{OWN}"));
    assert_eq!((read("ca-certificates.pem"), read("ca.pem")), (OWN.into(), String::new()));
    assert!(!world.path("exported/dev/kiln").exists());
    nothing_stays(&world, &line);
    let archive = fs::read(world.path("with.tar")).expect("written");
    for trace in [&line, "SSL_CERT_FILE=", "trustStore", "ca-certs"] {
        assert!(!archive.windows(trace.len()).any(|part| part == trace.as_bytes()), "{trace}");
    }
    // It is in no key.
    let again = world.build(&[]).ok();
    assert!(!again.err.contains("DONE") && again.err.contains("CACHED"), "{}", again.err);
}

#[test]
fn variables_are_given_unless_they_are_set() {
    let (world, _) = world(
        "ENV REQUESTS_CA_BUNDLE=/etc/ssl/cert.pem JAVA_TOOL_OPTIONS=-Xmx9m\n\
         RUN echo \"[$SSL_CERT_FILE] [$REQUESTS_CA_BUNDLE] [$PIP_CERT] [$JAVA_TOOL_OPTIONS]\"\n\
         USER 5\nRUN busybox head -c 4 /dev/kiln/cacerts | busybox od -An -tx1; ! echo > /dev/kiln/ca.pem\n",
    );
    let built = build(&world, &[]).ok();
    let java = "-Xmx9m -Djavax.net.ssl.trustStore=/dev/kiln/cacerts";
    let told = format!("[/dev/kiln/ca-certificates.pem] [/etc/ssl/cert.pem] [] [{java}");
    assert!(built.err.contains(&told), "{}", built.err);
    assert!(built.err.contains(" fe ed fe ed"), "{}", built.err);
    let ran = ["run", "--ca-certs", "ca.pem", "busybox", "sh", "-c", "cat $NODE_EXTRA_CA_CERTS"];
    assert!(world.kiln(&ran).ok().out.contains("BEGIN CERTIFICATE"));
    let without = world.kiln(&["run", "busybox", "busybox", "env"]).ok();
    assert!(!without.out.contains("SSL_CERT_FILE"), "{}", without.out);
}

#[test]
fn the_configuration_names_it_as_well() {
    let (world, line) = world("RUN cat $NODE_EXTRA_CA_CERTS\n");
    let configured = |path: &str| {
        fs::write(world.path("config.toml"), format!("ca-certs = \"{path}\"\n")).expect("written");
        let mut command = world.command();
        command.env("KILN_CONFIG", world.path("config.toml"));
        command.args(["build", "--progress", "plain", "ctx"]);
        crate::env::said(&command.output().expect("kiln starts"))
    };
    let relative = configured("ca.pem");
    assert_eq!(relative.code, 2, "{}", relative.err);
    assert!(relative.err.contains("a relative path"), "{}", relative.err);
    let built = configured(&text(&world.path("ca.pem"))).ok();
    assert!(built.err.contains(&line), "{}", built.err);
}

#[test]
fn what_is_no_certificate_is_refused() {
    let (world, _) = world("");
    let both = fs::read_to_string(world.path("ca.pem")).expect("made")
        + &fs::read_to_string(world.path("ca.key")).expect("made");
    fs::write(world.path("both.pem"), both).expect("written");
    let binary = text(&world.path("ca.der"));
    let source = text(&world.path("ca.pem"));
    tool("openssl", &["x509", "-in", &source, "-outform", "der", "-out", &binary]);
    for (file, why) in [
        ("both.pem", "it has a private key, which steps must not see"),
        ("ca.der", "openssl x509 -inform der -in ca.der"),
        ("server.csr", "line 1: `CERTIFICATE REQUEST` is not a certificate"),
        ("names", "it has no line `-----BEGIN CERTIFICATE-----`"),
        ("absent.pem", "absent.pem"),
    ] {
        let refused = world.build(&["--ca-certs", file]);
        assert!(refused.code != 0 && refused.err.contains(why), "{file}: {}", refused.err);
    }
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).expect("ended");
    }
}

const SERVER: &str = "
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '8')
        self.end_headers()
        self.wfile.write(b'trusted\\n')
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('server.pem', 'server.key')
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
";

fn serve(world: &World) -> (Server, u16) {
    let mut command = Command::new("python3");
    command.args(["-c", SERVER]).current_dir(world.path("."));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = Server(command.spawn().expect("python3 is installed (scripts/setup.sh)"));
    let mut told = std::io::BufReader::new(server.0.stdout.take().expect("a pipe"));
    let mut port = String::new();
    std::io::BufRead::read_line(&mut told, &mut port).expect("told");
    (server, port.trim().parse().expect("a port"))
}

const CLIENTS: &str = "#!/bin/sh\nset -eu\n\
    url=https://127.0.0.1:$1/\n\
    curl -sS $url\n\
    python3 -c \"import urllib.request as r; print('python', r.urlopen('$url').read())\"\n\
    python3 -c \"import requests as r; print('requests', r.get('$url').text)\"\n\
    openssl s_client -connect 127.0.0.1:$1 -verify_return_error </dev/null | grep 'return code: 0'\n\
    node -e \"require('https').get('$url', r => { console.log('node', r.statusCode); process.exit() })\"\n\
    git ls-remote $url 2>&1 | grep 'valid: is this a git repository'\n\
    java /Get.java $url\n";

const JAVA: &str = "public class Get { public static void main(String[] a) throws Exception {\n\
    var c = (javax.net.ssl.HttpsURLConnection) new java.net.URL(a[0]).openConnection();\n\
    System.out.println(\"java \" + c.getResponseCode()); } }\n";

/// As users have it: everything is installed, and used, on Debian.
#[test]
fn programs_of_debian_trust_it() {
    let world = World::new();
    fs::create_dir(world.path("exported")).expect("made");
    let line = authority(&world);
    let (_server, port) = serve(&world);
    world.kiln(&["import", &text(&base()), "debian:bookworm"]).ok();
    let packages =
        "ca-certificates curl wget openssl git nodejs python3-requests openjdk-17-jdk-headless";
    let dockerfile = format!(
        "FROM debian:bookworm\n\
         COPY --chmod=755 clients Get.java /\n\
         RUN rm -f /etc/ssl/certs/ca-certificates.crt; mkdir -p /usr/share/man/man1; apt-get update -q && \
         apt-get install -y -q --no-install-recommends {packages} >/dev/null && echo first && /clients {port}\n\
         RUN update-ca-certificates --fresh >/dev/null && echo second && /clients {port}\n\
         RUN wget -q -O - https://127.0.0.1:{port}/ && keytool -list -keystore /dev/kiln/cacerts -storepass changeit\n"
    );
    world.file("clients", CLIENTS).file("Get.java", JAVA).file("Dockerfile", &dockerfile);
    let network = ["--network", "host", "--allow", "network.host"];
    let built = build(&world, &[&network[..], &["-t", "trusting"]].concat()).ok();
    for expect in ["trusted", "python b'trusted", "requests trusted", "node 200", "java 200"] {
        let count = built.err.lines().filter(|line| line.contains(expect)).count();
        assert!(count >= 2, "{expect}: {}", built.err);
    }
    assert!(built.err.contains("trustedCertEntry"), "{}", built.err);
    nothing_stays(&world, &line);
    // Without it nothing of that is trusted.
    let refused = format!("FROM trusting\nRUN curl -sS https://127.0.0.1:{port}/\n");
    let failed = world.file("Dockerfile", &refused).build(&network);
    assert!(failed.code == 1 && failed.err.contains("SSL certificate problem"), "{}", failed.err);
}
