//! /etc/resolv.conf and /etc/hosts of a step.

use std::net::IpAddr;

use crate::net::RESOLVER;
use crate::spec::{HostAddress, Network, RunSpec};

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// `/etc/hosts`: localhost, the host name, and what `--add-host` says. Without a `gateway` the names that
/// lead there are unknown.
pub(crate) fn hosts(spec: &RunSpec, gateway: Option<IpAddr>) -> String {
    let mut text = format!(
        "127.0.0.1\tlocalhost {}\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        spec.hostname
    );
    for (name, address) in &spec.hosts {
        let address = match address {
            HostAddress::Fixed(address) => Some(*address),
            HostAddress::Gateway => gateway,
        };
        if let Some(address) = address {
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    text
}

/// Who answers a step's questions for names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// The host's name servers, as the host reaches them.
    Host,
    /// Those of them that are not on its loopback interface.
    Outer,
    /// The host's first one, by an address of the step's network.
    Forwarded,
}

/// `/etc/resolv.conf`: the host's, as far as the step can reach its name servers.
pub(crate) fn resolv_conf(spec: &RunSpec, names: Names) -> String {
    if spec.network == Network::None {
        return String::new();
    }
    let host = read(HOST_RESOLV_CONF);
    if !spec.dns.is_empty() {
        return with_nameservers(&host, &spec.dns);
    }
    // The host's first resolver, wherever it listens, is asked through an address of the network: it may
    // be on the host's loopback interface, or know the host alone.
    if names == Names::Forwarded && has_nameserver(&host) {
        return with_nameservers(&host, &[RESOLVER]);
    }
    if names == Names::Host && has_nameserver(&host) || has_outer_nameserver(&host) {
        return host;
    }
    let systemd = read(SYSTEMD_RESOLV_CONF);
    if has_nameserver(&systemd) { systemd } else { host }
}

/// The file with other name servers; search domains and options stay.
fn with_nameservers(text: &str, servers: &[IpAddr]) -> String {
    let kept = text.lines().filter(|line| !line.trim_start().starts_with("nameserver"));
    let mut lines: Vec<String> =
        servers.iter().map(|server| format!("nameserver {server}")).collect();
    lines.extend(kept.map(str::to_owned));
    lines.join("\n") + "\n"
}

/// A host without the file has no names to look up either.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn has_nameserver(text: &str) -> bool {
    nameservers(text).next().is_some()
}

fn has_outer_nameserver(text: &str) -> bool {
    nameservers(text).any(|server| server.is_ipv4() && !server.is_loopback())
}

fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == "nameserver")?;
        words.next()?.split('%').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::{RESOLVER, has_nameserver, has_outer_nameserver, with_nameservers};

    #[test]
    fn resolvers_are_replaced() {
        let host = "# c\nnameserver 127.0.0.53\noptions edns0\nsearch a.b\n";
        let expect = "nameserver 169.254.1.1\n# c\noptions edns0\nsearch a.b\n";
        assert_eq!(with_nameservers(host, &[RESOLVER]), expect);
    }

    #[test]
    fn nameservers_are_seen() {
        assert!(has_nameserver("search a\nnameserver 10.0.0.1\n"));
        assert!(has_nameserver("nameserver fe80::1%eth0\n"));
        assert!(!has_nameserver("# nameserver 10.0.0.1\n"));
        assert!(has_outer_nameserver("nameserver 127.0.0.1\nnameserver 10.0.0.1\n"));
        assert!(!has_outer_nameserver("nameserver 127.0.0.53\n"));
    }
}
