//! Where a registry is: scheme, host and port, mirrors, and to whom credentials may go.
//!
//! Credentials belong to an origin (scheme, host, port). They follow neither redirects nor upload
//! locations to another origin, and go to a token server only if [`may_ask_realm`] says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ureq::http::Uri;

use crate::reference::DEFAULT_REGISTRY;

/// Which registries are special, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostSettings {
    /// Registries (`host:port`) that are spoken to by plain http. Loopback ones always are.
    pub insecure: BTreeSet<String>,
    /// Mirrors (`host:port`) by registry: asked first, in order, without fear of their failing.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Hosts of token servers that get credentials though they are of another domain than the
    /// registry that names them.
    pub trusted_realms: BTreeSet<String>,
}

/// What credentials belong to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an address; none unless it is http or https with a host of plain ASCII.
    #[must_use]
    pub fn of(uri: &Uri) -> Option<Self> {
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty() && host.is_ascii())?;
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        Some(Self { secure, host, port })
    }

    /// Whether it is https.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// The host, in lower case.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// One place that a registry's content can be had from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What was configured, e.g. `docker.io`: credentials are looked up under it.
    pub registry: String,
    /// Scheme, host and port, e.g. `https://registry-1.docker.io`.
    pub base: String,
}

impl Endpoint {
    fn new(registry: &str, settings: &HostSettings) -> Self {
        let host = if registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { registry };
        let plain = settings.insecure.contains(registry) || is_loopback(host);
        let scheme = if plain { "http" } else { "https" };
        Self { registry: registry.to_owned(), base: format!("{scheme}://{host}") }
    }
}

impl HostSettings {
    /// The registry itself: pushes go here, and pulls that no mirror answers.
    #[must_use]
    pub fn endpoint(&self, registry: &str) -> Endpoint {
        Endpoint::new(registry, self)
    }

    /// Where to pull from: the mirrors, then the registry.
    #[must_use]
    pub fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let mirrors = self.mirrors.get(registry).into_iter().flatten();
        mirrors.map(String::as_str).chain([registry]).map(|r| Endpoint::new(r, self)).collect()
    }
}

/// Whether `host[:port]` is this machine: `localhost`, its subdomains, 127.0.0.0/8, ::1.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let name = bare(host);
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The host without its port and brackets.
fn bare(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether a host is an IP address in any way of writing one that some resolver takes.
fn looks_like_address(host: &str) -> bool {
    let name = bare(host);
    let last = name.rsplit('.').next().unwrap_or(name);
    let number = last.strip_prefix("0x").map_or(!last.is_empty(), |_| true)
        && last.trim_start_matches("0x").bytes().all(|b| b.is_ascii_hexdigit())
        && last.as_bytes().first().is_some_and(u8::is_ascii_digit);
    host.starts_with('[') || number || name.parse::<IpAddr>().is_ok()
}

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4() {
                return is_public(IpAddr::V4(v4));
            }
            // 2000::/3 without documentation (2001:db8::/32) and 6to4 (2002::/16).
            let first = v6.segments()[0];
            (first & 0xe000) == 0x2000 && first != 0x2002 && v6.segments()[..2] != [0x2001, 0xdb8]
        }
    }
}

/// Whether a token server that a registry names may be asked at all: https, unless the registry
/// itself is plain; not an address of a private network unless it is the registry's own host
/// (CVE-2026-48978: the realm `http://169.254.169.254/`).
#[must_use]
pub fn may_ask_realm(registry: &Origin, realm: &Origin) -> bool {
    if registry.host == realm.host {
        return realm.secure || !registry.secure;
    }
    let local = if looks_like_address(&realm.host) {
        !bare(&realm.host).parse::<IpAddr>().is_ok_and(is_public)
    } else {
        is_loopback(&realm.host)
    };
    !local && (realm.secure || !registry.secure)
}

/// Whether that token server may get the registry's credentials: it is the same host, of the same
/// registrable domain, or was named by the user.
#[must_use]
pub fn may_send_credentials(registry: &Origin, realm: &Origin, settings: &HostSettings) -> bool {
    may_ask_realm(registry, realm)
        && (registry.host == realm.host
            || settings.trusted_realms.contains(&realm.host)
            || (!looks_like_address(&registry.host)
                && !looks_like_address(&realm.host)
                && domain(&registry.host) == domain(&realm.host)))
}

/// The registrable domain, nearly: two labels, or three under suffixes like `co.uk`. Taking too many
/// labels only asks the user once more.
fn domain(host: &str) -> &str {
    const SUFFIXES: [&str; 7] = ["ac", "co", "com", "edu", "gov", "net", "org"];
    // Platforms whose customers' hosts are siblings: every host is its own domain.
    const SHARED: [&str; 8] = [
        "amazonaws.com",
        "azurecr.io",
        "appspot.com",
        "azurewebsites.net",
        "cloudfront.net",
        "github.io",
        "herokuapp.com",
        "run.app",
    ];
    let labels: Vec<&str> = host.rsplit('.').collect();
    let wide = labels.len() > 2 && labels[0].len() == 2 && SUFFIXES.contains(&labels[1]);
    let count = if wide { 3 } else { 2 };
    let length: usize = labels.iter().take(count).map(|label| label.len() + 1).sum();
    let found = &host[host.len().saturating_sub(length.saturating_sub(1))..];
    if SHARED.contains(&found) { host } else { found }
}

/// The address that a `Location` means, seen from where it was answered.
#[must_use]
pub fn join(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute = location.get(..8).is_some_and(|head| {
        let head = head.to_ascii_lowercase();
        head.starts_with("http://") || head.starts_with("https://")
    });
    let location = location.split('#').next().unwrap_or(location);
    let text = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['/', '?']).next().is_some_and(|head| head.contains(':')) {
        // Another scheme.
        return None;
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let uri: Uri = text.parse().ok()?;
    Origin::of(&uri)?;
    // Names and passwords in addresses belong to nobody here.
    if uri.authority()?.as_str().contains('@') { None } else { Some(uri) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        Origin::of(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn plain_http_is_for_loopback_and_where_configured() {
        let mut settings = HostSettings::default();
        settings.insecure.insert("plain.example:5000".to_owned());
        settings.mirrors.insert("docker.io".to_owned(), vec!["mirror.example".to_owned()]);
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io"),
            ("ghcr.io", "https://ghcr.io"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.2:5000", "http://127.0.0.2:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("127.0.0.1.evil.example", "https://127.0.0.1.evil.example"),
            ("plain.example:5000", "http://plain.example:5000"),
            ("plain.example", "https://plain.example"),
        ] {
            assert_eq!(settings.endpoint(registry).base, base);
        }
        let bases: Vec<_> = settings.endpoints("docker.io").into_iter().map(|e| e.base).collect();
        assert_eq!(bases, ["https://mirror.example", "https://registry-1.docker.io"]);
    }

    #[test]
    fn credentials_go_to_their_own_realm_only() {
        let settings = HostSettings {
            trusted_realms: BTreeSet::from(["login.other.example".to_owned()]),
            ..HostSettings::default()
        };
        for (registry, realm, ask, send) in [
            ("https://registry-1.docker.io", "https://auth.docker.io", true, true),
            ("https://registry.gitlab.com", "https://gitlab.com", true, true),
            ("https://ghcr.io", "https://ghcr.io", true, true),
            ("https://r.example.com", "https://evil.com", true, false),
            ("https://r.example.com", "https://login.other.example", true, true),
            ("https://r.example.com", "http://auth.example.com", false, false),
            ("https://r.example.com", "http://r.example.com", false, false),
            ("https://r.example.com", "https://10.0.0.1", false, false),
            ("https://r.example.com", "https://localhost", false, false),
            ("https://a.co.uk", "https://b.co.uk", true, false),
            ("https://a.azurecr.io", "https://b.azurecr.io", true, false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001", true, true),
            ("http://127.0.0.1:5000", "http://127.0.0.2", false, false),
            ("http://127.0.0.1:5000", "http://169.254.169.254", false, false),
            ("http://127.0.0.1:5000", "http://0xa9fea9fe", false, false),
            ("http://127.0.0.1:5000", "http://2852039166", false, false),
            ("http://127.0.0.1:5000", "http://169.254.0251.0376", false, false),
            ("http://127.0.0.1:5000", "http://[::ffff:169.254.169.254]", false, false),
            ("http://127.0.0.1:5000", "http://[fd00::1]", false, false),
            ("http://127.0.0.1:5000", "https://8.8.8.8", true, false),
        ] {
            let (from, to) = (origin(registry), origin(realm));
            assert_eq!(may_ask_realm(&from, &to), ask, "{registry} {realm}");
            assert_eq!(may_send_credentials(&from, &to, &settings), send, "{registry} {realm}");
        }
    }

    #[test]
    fn locations_are_resolved_as_urls() {
        let base: Uri = "https://h:5000/v2/a/uploads/?x=1".parse().unwrap();
        for (location, expect) in [
            ("/v2/x?y=1", Some("https://h:5000/v2/x?y=1")),
            ("http://o/x", Some("http://o/x")),
            ("HTTPS://o/x", Some("https://o/x")),
            ("//o/x", Some("https://o/x")),
            ("id#frag", Some("https://h:5000/v2/a/uploads/id")),
            ("file:///etc/passwd", None),
            ("gopher://o/", None),
            ("https://u:p@o/", None),
            ("https:///x", None),
        ] {
            assert_eq!(
                join(&base, location).map(|u| u.to_string()),
                expect.map(str::to_owned),
                "{location}"
            );
        }
    }
}
