//! HTTP and HTTPS: one request, one answer, no redirects. Proxies, certificates and timeouts.
//!
//! Certificates are verified against the system's roots (`SSL_CERT_FILE`, `SSL_CERT_DIR` honoured).
//! `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` mean what Go's programs take them for;
//! loopback addresses are never reached through a proxy.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ureq::http::{HeaderName, Method, Request, Response, Uri};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, Proxy, SendBody};

use super::hosts::is_loopback;

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the head of an answer.
    pub answer: Duration,
    /// For the head of the answer to an upload, which a registry verifies first.
    pub verdict: Duration,
    /// For the next bytes of a body, either way.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            verdict: Duration::from_secs(300),
            silence: Duration::from_secs(30),
        }
    }
}

/// What is sent; it can be sent again.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Nothing, as GET and HEAD do.
    None,
    /// These bytes, maybe none.
    Bytes(&'a [u8]),
    /// A part of a file.
    File {
        /// The file; its position is not used.
        file: &'a File,
        /// Where the part starts.
        offset: u64,
        /// Its bytes.
        length: u64,
    },
}

/// Speaks HTTP.
#[derive(Debug)]
pub struct Transport {
    timeouts: Timeouts,
    direct: Agent,
    http_proxy: Option<Agent>,
    https_proxy: Option<Agent>,
    no_proxy: String,
}

impl Transport {
    /// With the proxies of the environment.
    #[must_use]
    pub fn new(timeouts: Timeouts) -> Self {
        let proxied = |names: &[&str]| {
            let value =
                names.iter().find_map(|n| std::env::var(n).ok().filter(|v| !v.is_empty()))?;
            Proxy::new(&value).ok().map(|proxy| agent(timeouts, Some(proxy)))
        };
        // `HTTP_PROXY` in capitals is a request's header in CGI programs; Kiln is none.
        Self {
            timeouts,
            direct: agent(timeouts, None),
            http_proxy: proxied(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            https_proxy: proxied(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            no_proxy: ["no_proxy", "NO_PROXY"]
                .iter()
                .find_map(|name| std::env::var(name).ok())
                .unwrap_or_default(),
        }
    }

    fn agent_for(&self, uri: &Uri) -> &Agent {
        let host = uri.host().unwrap_or_default();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let proxy = if secure { &self.https_proxy } else { &self.http_proxy };
        match proxy {
            Some(proxy) if !bypasses_proxy(&self.no_proxy, host, port) => proxy,
            _ => &self.direct,
        }
    }

    /// Sends a request; any status is a success, redirects are not followed.
    ///
    /// # Errors
    /// When there is no connection or it breaks before the head of the answer.
    pub fn send(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &[(HeaderName, String)],
        payload: Payload<'_>,
    ) -> Result<Response<Body>, ureq::Error> {
        let mut request = Request::builder().method(method.clone()).uri(uri.clone());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let agent = self.agent_for(uri);
        match payload {
            Payload::None => agent.run(request.body(())?),
            Payload::Bytes(bytes) => agent.run(request.body(bytes)?),
            Payload::File { file, offset, length } => {
                let mut part = FilePart { file, offset, end: offset.saturating_add(length) };
                let request = request.header("content-length", length);
                let request = request.body(SendBody::from_reader(&mut part))?;
                let verdict = Some(self.timeouts.verdict);
                agent.run(agent.configure_request(request).timeout_recv_response(verdict).build())
            }
        }
    }
}

fn agent(timeouts: Timeouts, proxy: Option<Proxy>) -> Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy)
        .tls_config(tls)
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(timeouts.connect))
        .timeout_recv_response(Some(timeouts.answer))
        .timeout_per_read(Some(timeouts.silence))
        .timeout_per_write(Some(timeouts.silence))
        .input_buffer_size(256 << 10)
        .output_buffer_size(256 << 10)
        .max_idle_connections_per_host(8)
        .build()
        .new_agent()
}

/// Reads a part of a file without moving its position.
struct FilePart<'a> {
    file: &'a File,
    offset: u64,
    end: u64,
}

impl Read for FilePart<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let wanted = left.min(out.len());
        let count = self.file.read_at(&mut out[..wanted], self.offset)?;
        if count == 0 && wanted > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file became shorter"));
        }
        self.offset += count as u64;
        Ok(count)
    }
}

/// Whether `NO_PROXY` names a host. Go's rules: names match themselves and what lies below, `.name`
/// and `*.name` only what lies below, also addresses, address/bits and `name:port`; `*` is all.
fn bypasses_proxy(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    if is_loopback(&host) || address.is_some_and(|a| a.is_loopback()) {
        return true;
    }
    list.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some((net, bits)) = entry.split_once('/') {
            return matches!(
                (address, net.parse(), bits.parse()),
                (Some(address), Ok(net), Ok(bits)) if in_network(address, net, bits)
            );
        }
        let (name, wanted) = match entry.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => {
                (name, port.parse::<u16>().ok())
            }
            _ => (entry.as_str(), None),
        };
        if wanted.is_some_and(|wanted| wanted != port) {
            return false;
        }
        let name = name.trim_matches(['[', ']']);
        let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
        let domain = below.unwrap_or(name);
        !domain.is_empty()
            && ((below.is_none() && host == domain)
                || host.strip_suffix(domain).is_some_and(|head| head.ends_with('.')))
    })
}

fn in_network(address: IpAddr, net: IpAddr, bits: u32) -> bool {
    match (address, net) {
        (IpAddr::V4(a), IpAddr::V4(n)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            (u32::from(a) ^ u32::from(n)) & mask == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            (u128::from(a) ^ u128::from(n)) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_means_what_it_means_to_go() {
        for (list, host, expect) in [
            ("", "a.example", false),
            ("", "127.0.0.1", true),
            ("", "localhost", true),
            ("", "[::1]", true),
            ("*", "a.example", true),
            ("a.example", "a.example", true),
            ("example", "a.example", true),
            (".example", "a.example", true),
            (".a.example", "a.example", false),
            ("*.example", "b.a.example", true),
            ("x, A.example ,y", "a.EXAMPLE", true),
            ("ample", "a.example", false),
            ("a.example:443", "a.example", true),
            ("a.example:80", "a.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("fd00::/8", "[fd12::1]", true),
        ] {
            assert_eq!(bypasses_proxy(list, host, 443), expect, "{list} {host}");
        }
    }
}
