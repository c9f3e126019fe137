//! `WWW-Authenticate` (RFC 9110, 11.6.1): what a registry wants to be shown.

/// One challenge that we can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password.
    Basic,
    /// A token from a token server.
    Bearer {
        /// The server's address.
        realm: String,
        /// For whom the token is.
        service: Option<String>,
        /// What it must allow; the client asks for what it needs itself.
        scope: Option<String>,
    },
}

/// The challenges in one header, in its order; those that we do not know are left out.
#[must_use]
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = header;
    while let Some((word, after)) = token(rest) {
        let (value, after_value) = match after.trim_start().strip_prefix('=') {
            Some(value) => value_of(value.trim_start()),
            None => {
                // A word without `=` starts a challenge.
                found.push((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
                continue;
            }
        };
        if let Some((_, parameters)) = found.last_mut() {
            parameters.push((word.to_ascii_lowercase(), value));
        }
        rest = after_value;
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, &parameters)).collect()
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    let get = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
        }),
        _ => None,
    }
}

/// The next word, and what follows it.
fn token(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text.find([' ', '\t', ',', '=', '"']).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// A value, quoted or not, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_are_read_as_the_rfc_says() {
        for (header, expect) in [
            ("Basic realm=\"x\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push""#,
                vec![bearer("https://a/t", Some("s"), Some("repository:a/b:pull,push"))],
            ),
            (
                r#"Bearer realm=https://a/t , service = "q\"s""#,
                vec![bearer("https://a/t", Some("q\"s"), None)],
            ),
            (
                r#"Negotiate, Basic realm="x", Bearer realm="r""#,
                vec![Challenge::Basic, bearer("r", None, None)],
            ),
            ("Bearer service=x", vec![]),
            ("", vec![]),
            ("=,=\"", vec![]),
            ("Bearer realm=\"open", vec![bearer("open", None, None)]),
        ] {
            assert_eq!(challenges(header), expect, "{header}");
        }
    }
}
