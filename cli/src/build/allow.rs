//! `--allow ENTITLEMENT[,…]`: what steps may have that reaches out of the sandbox.

use kiln_parser::lower::Allowed;

use crate::failure::Failure;

const KNOWN: &str = "entitlements: network.host, security.insecure, device, device=NAME";

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
            "device" => allowed.devices.push(String::new()),
            _ if name.starts_with("device=") && name.len() > "device=".len() => {
                allowed.devices.push(name["device=".len()..].to_owned());
            }
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
        let devices = parse(&["device=a.b/c=0".to_owned(), "device".to_owned()]).expect("valid");
        assert_eq!(devices.devices, ["a.b/c=0", ""]);
        for wrong in ["", "insecure", "network.host,", "network.none", "device="] {
            assert!(all(&[wrong]).is_err(), "{wrong}");
        }
    }
}
