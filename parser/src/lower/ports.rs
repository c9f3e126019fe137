//! EXPOSE: `[ip:][host:]port[-port][/protocol]` as single `port/protocol` keys.

use std::net::IpAddr;

/// The keys of one word, or what is wrong with it in BuildKit's words.
pub(super) fn expand_ports(word: &str) -> Result<Vec<String>, String> {
    let (ip, host, container) = split(word);
    let (ports, protocol) = match container.split_once('/') {
        Some((ports, protocol)) => (ports, protocol),
        None => (container, ""),
    };
    if ports.is_empty() {
        return Err(format!("invalid port: {word:?}: no port specified"));
    }
    let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_lowercase() };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid port: {word:?}: invalid proto: {protocol}"));
    }
    let bare = ip.trim_start_matches('[').trim_end_matches(']');
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {bare}"));
    }
    let (start, end) = range(ports).ok_or_else(|| format!("invalid containerPort: {ports}"))?;
    if !host.is_empty() {
        let (first, last) = range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if end - start != last - first && start != end {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {ports} and {host}"
            ));
        }
    }
    Ok((start..=end).map(|port| format!("{port}/{protocol}")).collect())
}

/// Whether a word names a protocol that is not in lower case.
pub(super) fn has_odd_casing(word: &str) -> bool {
    let protocol = split(word).2.split_once('/').map_or("", |(_, protocol)| protocol);
    protocol != protocol.to_lowercase()
}

/// Whether a word names an address or a port of the host, which mean nothing to EXPOSE.
pub(super) fn has_mapping(word: &str) -> bool {
    let (ip, host, _) = split(word);
    !ip.is_empty() || !host.is_empty()
}

/// `ip:host:container`, from the right; an IPv6 address has brackets.
fn split(word: &str) -> (&str, &str, &str) {
    let Some((before, container)) = word.rsplit_once(':') else { return ("", "", word) };
    match before.rsplit_once(':') {
        Some((ip, host)) => (ip, host, container),
        None => ("", before, container),
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::expand_ports;

    #[test]
    fn forms() {
        for (word, expect) in [
            ("80", vec!["80/tcp"]),
            ("53/UDP", vec!["53/udp"]),
            ("8000-8002/sctp", vec!["8000/sctp", "8001/sctp", "8002/sctp"]),
            ("127.0.0.1:80:81", vec!["81/tcp"]),
            ("80:81", vec!["81/tcp"]),
            ("[::1]:80:81", vec!["81/tcp"]),
        ] {
            assert_eq!(expand_ports(word).expect(word), expect);
        }
        for (word, why) in [
            ("x", "invalid containerPort"),
            ("70000", "invalid containerPort"),
            ("9-8", "invalid containerPort"),
            ("80/foo", "invalid proto"),
            ("a:b:80", "invalid IP address"),
            ("/tcp", "no port specified"),
        ] {
            assert!(expand_ports(word).expect_err(word).contains(why), "{word}");
        }
    }
}
