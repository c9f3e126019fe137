//! `--allow ENTITLEMENT[,…]`: what steps may have that reaches out of the sandbox.

use kiln_parser::lower::Allowed;

use crate::failure::Failure;

const KNOWN: &str = "entitlements: network.host, security.insecure";

/// Reads the options.
///
/// # Errors
/// An entitlement that there is not.
pub(super) fn parse(options: &[String]) -> Result<Allowed, Failure> {
    let mut allowed = Allowed::default();
    for name in options.iter().flat_map(|option| option.split(',')) {
        match name {
            "security.insecure" => allowed.insecure = true,
            "network.host" => allowed.host_network = true,
            _ => {
                let message = format!("invalid --allow `{name}`: there is no such entitlement");
                return Err(Failure::usage(message).hint(KNOWN));
            }
        }
    }
    Ok(allowed)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lists_and_repetition() {
        let all = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
            parse(&options).map(|allowed| (allowed.insecure, allowed.host_network))
        };
        assert_eq!(all(&[]).expect("valid"), (false, false));
        assert_eq!(all(&["network.host"]).expect("valid"), (false, true));
        assert_eq!(all(&["network.host,security.insecure"]).expect("valid"), (true, true));
        assert_eq!(all(&["security.insecure", "network.host"]).expect("valid"), (true, true));
        for wrong in ["", "insecure", "network.host,", "network.none"] {
            assert!(all(&[wrong]).is_err(), "{wrong}");
        }
    }
}
