//! What steps may have that reaches out of the sandbox: the entitlements of `--allow`.

use super::stage::Stage;
use crate::diagnostic::Diagnostic;
use crate::graph::Network;
use crate::instruction::Run;
use crate::source::Span;

/// What the caller allows; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// `security.insecure`: RUN --security=insecure.
    pub insecure: bool,
    /// `network.host`: RUN --network=host, `--network host`.
    pub host_network: bool,
    /// `device=NAME`: RUN --device; an empty name stands for all.
    pub devices: Vec<String>,
    /// Required devices need not be here: nothing is going to run.
    pub absent_devices: bool,
}

impl Allowed {
    /// For questions about a Dockerfile: what runs nothing needs nothing allowed.
    pub fn for_reading() -> Self {
        Self {
            insecure: true,
            host_network: true,
            devices: vec![String::new()],
            absent_devices: true,
        }
    }
}

/// Whether a RUN is outside of the sandbox.
pub(super) fn insecure(stage: &Stage<'_, '_>, run: &Run) -> Result<bool, Diagnostic> {
    let Some(word) = run.security.as_ref().filter(|word| word.text == "insecure") else {
        return Ok(false);
    };
    if stage.plan.options.allow.insecure {
        return Ok(true);
    }
    Err(refused("security.insecure", word.span))
}

/// The network of a RUN; `--network=default` stands for that of the whole build.
pub(super) fn network(
    stage: &Stage<'_, '_>,
    run: &Run,
    statement: Span,
) -> Result<Network, Diagnostic> {
    let options = stage.plan.options;
    let network = match run.network.as_ref().map(|word| word.text.as_str()) {
        Some("none") => Network::None,
        Some("host") => Network::Host,
        _ => options.network,
    };
    if network == Network::Host && !options.allow.host_network {
        let span = run.network.as_ref().map_or(statement, |word| word.span);
        return Err(refused("network.host", span));
    }
    Ok(network)
}

/// In BuildKit's words (`util/entitlements`).
fn refused(entitlement: &str, span: Span) -> Diagnostic {
    Diagnostic::error(span, format!("{entitlement} is not allowed"))
        .help(format!("trust the Dockerfile with it: --allow {entitlement}"))
}

#[cfg(test)]
mod tests {
    use super::Allowed;
    use crate::graph::{Network, Op};
    use crate::lower::{Known, LowerOptions, Lowering, lower};
    use crate::source::Source;
    use crate::tree::parse;

    /// The network and the security of the only RUN, or the message.
    fn lowered(run: &str, network: Network, allow: Allowed) -> Result<(Network, bool), String> {
        let source = Source::new("Dockerfile", format!("FROM scratch\nRUN {run} true\n"));
        let (dockerfile, _) = parse(&source);
        let options = LowerOptions { network, allow, ..LowerOptions::default() };
        match lower(&dockerfile, &options, &Known::new()) {
            Err(diagnostics) => Err(diagnostics[0].message.clone()),
            Ok(Lowering::NeedImages(_)) => Err("scratch is no image".to_owned()),
            Ok(Lowering::Done(lowered)) => {
                let mut nodes = lowered.graph.ids().map(|id| &lowered.graph.node(id).op);
                let run = nodes.find_map(|op| match op {
                    Op::Run(run) => Some((run.network, run.insecure)),
                    _ => None,
                });
                run.ok_or_else(|| "no RUN".to_owned())
            }
        }
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        let nothing = Allowed::default();
        let all = Allowed { insecure: true, host_network: true, ..Allowed::default() };
        let network = Err("network.host is not allowed".to_owned());
        let security = Err("security.insecure is not allowed".to_owned());
        assert_eq!(lowered("--security=insecure", Network::None, nothing.clone()), security);
        assert_eq!(lowered("--network=host", Network::None, nothing.clone()), network);
        assert_eq!(lowered("", Network::Host, nothing.clone()), network);
        assert_eq!(
            lowered("--network=none", Network::Host, nothing.clone()),
            Ok((Network::None, false))
        );
        assert_eq!(
            lowered("--security=insecure", Network::Host, all.clone()),
            Ok((Network::Host, true))
        );
        assert_eq!(
            lowered("--security=sandbox", Network::None, all.clone()),
            Ok((Network::None, false))
        );
    }
}
