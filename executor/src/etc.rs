//! /etc/resolv.conf and /etc/hosts of a step.

use std::net::IpAddr;

use crate::spec::{Network, RunSpec};

const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// `/etc/hosts`: localhost, the host name, and what `--add-host` says.
pub(crate) fn hosts(spec: &RunSpec) -> String {
    let mut text = format!(
        "127.0.0.1\tlocalhost {}\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        spec.hostname
    );
    for (name, address) in &spec.hosts {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// `/etc/resolv.conf`: the host's. A step that shares the host's network can use its local
/// resolver as well, so nothing is taken out.
pub(crate) fn resolv_conf(network: Network) -> String {
    if network == Network::None {
        return String::new();
    }
    let host = read(HOST_RESOLV_CONF);
    if has_nameserver(&host) {
        return host;
    }
    let systemd = read(SYSTEMD_RESOLV_CONF);
    if has_nameserver(&systemd) { systemd } else { host }
}

/// A host without the file has no names to look up either.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn has_nameserver(text: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().is_some_and(|word| {
                word.split('%').next().unwrap_or_default().parse::<IpAddr>().is_ok()
            })
    })
}

#[cfg(test)]
mod tests {
    use super::has_nameserver;

    #[test]
    fn nameservers_are_seen() {
        assert!(has_nameserver("search a\nnameserver 10.0.0.1\n"));
        assert!(has_nameserver("nameserver fe80::1%eth0\n"));
        assert!(!has_nameserver("# nameserver 10.0.0.1\n"));
    }
}
