//! `kiln doctor`: what this machine is for Kiln, what it lacks, and what would give it.

use clap::Args;
use kiln_executor::check;
use kiln_executor::rootless::Tier;

use super::{open_store, print};
use crate::failure::Failure;
use crate::settings::Settings;

/// Say what this machine lacks for builds, and what would give it.
#[derive(Args, Debug)]
pub(super) struct Options {
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let Some(entered) = &settings.isolation else {
        return Err(Failure::environment("the tier is not known"));
    };
    let _store = open_store(settings)?;
    let findings =
        if entered.tier <= Tier::Chroot { Vec::new() } else { check::all(&settings.root) };
    if options.json {
        let findings: Vec<_> = findings
            .iter()
            .map(|found| serde_json::json!({ "name": found.name, "lack": found.lack }))
            .collect();
        let document = serde_json::json!({
            "tier": entered.tier.to_string(),
            "remarks": entered.remarks,
            "findings": findings,
        });
        return print(&format!("{document:#}\n"));
    }
    let mut text = format!("tier: {} ({})\n", entered.tier, meaning(entered.tier));
    for remark in &entered.remarks {
        text.push_str(&format!("  {remark}\n"));
    }
    text.push_str(&format!("store: {}\n", settings.root.display()));
    for found in &findings {
        match &found.lack {
            None => text.push_str(&format!("  ok       {}\n", found.name)),
            Some(lack) => text.push_str(&format!("  missing  {}: {lack}\n", found.name)),
        }
    }
    print(&text)
}

fn meaning(tier: Tier) -> &'static str {
    match tier {
        Tier::Root => "steps run in user namespaces of their own, made by root",
        Tier::Ranges => "builder and steps run in user namespaces with ranges of ids",
        Tier::SingleId => "builder and steps run in user namespaces with one id",
        Tier::Chroot => "steps are in a chroot: no namespaces, no mounts, no network of their own",
        Tier::Bare => "no namespaces: RUN does not work here",
    }
}
