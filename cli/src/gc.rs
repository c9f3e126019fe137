//! Quotas: what the configuration says, or what suits the disk, as policies of the store; the filters of `prune` and `du`.
//!
//! As BuildKit's (`cmd/buildkitd/config/gcpolicy.go`): policies one after another, each with limits, an age, filters.

use std::time::Duration;

use kiln_cache::{Filter, Limits, PruneOptions, Space, Store, UsageRow};
use serde::Deserialize;

use crate::build::values;
use crate::failure::{Failure, chain};

const GB: u64 = 1_000_000_000;
const DAY: u64 = 24 * 3600;
/// Cache mounts and stat caches that nobody used for so long go first, where more than the reserve is used.
const MOUNTS_AGE: Duration = Duration::from_secs(14 * DAY);
/// Everything else.
const AGE: Duration = Duration::from_secs(60 * DAY);

/// `[gc]` of the configuration; sizes are numbers with a unit or parts of the disk (`20%`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct GcConfig {
    /// No automatic collection when false.
    enabled: Option<bool>,
    reserved_space: Option<String>,
    max_used_space: Option<String>,
    min_free_space: Option<String>,
    keep_duration: Option<String>,
    /// In place of the standard ones.
    policy: Vec<PolicyConfig>,
}

/// One `[[gc.policy]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct PolicyConfig {
    reserved_space: Option<String>,
    max_used_space: Option<String>,
    min_free_space: Option<String>,
    keep_duration: Option<String>,
    filters: Vec<String>,
}

impl GcConfig {
    fn own(&self) -> PolicyConfig {
        PolicyConfig {
            reserved_space: self.reserved_space.clone(),
            max_used_space: self.max_used_space.clone(),
            min_free_space: self.min_free_space.clone(),
            keep_duration: self.keep_duration.clone(),
            filters: Vec::new(),
        }
    }

    /// Complains of what is no size, duration or filter.
    ///
    /// # Errors
    /// The first of them.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        from_config(Some(self), &Space::default()).map(drop)
    }
}

impl PolicyConfig {
    fn limits(&self, disk: u64) -> Result<Limits, Failure> {
        let read = |name: &str, text: &Option<String>| {
            text.as_ref().map(|text| space(&format!("gc.{name}"), text, disk)).transpose()
        };
        Ok(Limits {
            reserved: read("reserved-space", &self.reserved_space)?,
            max_used: read("max-used-space", &self.max_used_space)?,
            min_free: read("min-free-space", &self.min_free_space)?,
        })
    }

    fn until(&self) -> Result<Option<Duration>, Failure> {
        self.keep_duration.as_ref().map(|text| values::age("gc.keep-duration", text)).transpose()
    }
}

/// What suits a disk: a tenth and at most 10 GB is always kept, four fifths and at most 100 GB are ever used, a fifth
/// and at most 20 GB stay free.
fn standard(disk: u64) -> Limits {
    Limits {
        reserved: Some((disk / 10).min(10 * GB)),
        max_used: Some((disk / 5 * 4).min(100 * GB)),
        min_free: Some((disk / 5).min(20 * GB)),
    }
}

/// The policies of a store; none where the configuration says so.
///
/// # Errors
/// A size, duration or filter in the configuration that is none.
pub(crate) fn policies(
    config: Option<&GcConfig>,
    store: &Store,
) -> Result<Vec<PruneOptions>, Failure> {
    let space = store.space().map_err(|e| Failure::environment(chain(&e)))?;
    from_config(config, &space)
}

fn from_config(config: Option<&GcConfig>, space: &Space) -> Result<Vec<PruneOptions>, Failure> {
    let Some(config) = config else { return Ok(standard_policies(standard(space.total), AGE)) };
    if config.enabled == Some(false) {
        return Ok(Vec::new());
    }
    if config.policy.is_empty() {
        let own = config.own();
        let given = own.limits(space.total)?;
        let limits = if given.any() { given } else { standard(space.total) };
        return Ok(standard_policies(limits, own.until()?.unwrap_or(AGE)));
    }
    let each = config.policy.iter().map(|policy| {
        Ok(PruneOptions {
            all: true,
            limits: policy.limits(space.total)?,
            until: policy.until()?,
            ..filters(&policy.filters)?
        })
    });
    each.collect()
}

fn standard_policies(limits: Limits, age: Duration) -> Vec<PruneOptions> {
    // What is old goes only where there is more than the reserve.
    let old = Limits { reserved: limits.reserved.or(Some(0)), ..Limits::default() };
    let of_type = |name: &str| format!("type~=^({name})$").parse::<Filter>().ok();
    vec![
        PruneOptions {
            limits: old,
            until: Some(MOUNTS_AGE.min(age)),
            filters: of_type("exec\\.cachemount|source\\.local").into_iter().collect(),
            ..PruneOptions::default()
        },
        PruneOptions { limits: old, until: Some(age), ..PruneOptions::default() },
        PruneOptions { limits, ..PruneOptions::default() },
    ]
}

/// A size, or a part of the disk.
///
/// # Errors
/// Neither.
pub(crate) fn space(name: &str, text: &str, disk: u64) -> Result<u64, Failure> {
    let bad = || {
        Failure::usage(format_args!("invalid {name} `{text}`: not a size"))
            .hint("for example 10gb, or 20% of the disk")
    };
    match text.trim().strip_suffix('%') {
        Some(percent) => {
            let percent: u64 = percent.parse().ok().filter(|p| *p <= 100).ok_or_else(bad)?;
            Ok(disk / 100 * percent)
        }
        None => kiln_parser::mount::bytes(text.trim()).ok_or_else(bad),
    }
}

/// Reads `--filter`s: `until=` and `unused-for=` are ages, the rest are the store's.
///
/// # Errors
/// Something that is no filter.
pub(crate) fn filters(texts: &[String]) -> Result<PruneOptions, Failure> {
    let mut options = PruneOptions::default();
    for text in texts.iter().flat_map(|text| split(text)) {
        let age = text.strip_prefix("until=").or_else(|| text.strip_prefix("unused-for="));
        if let Some(age) = age {
            if options.until.replace(values::age("filter until", age)?).is_some() {
                return Err(Failure::usage("more than one filter says how old things have to be"));
            }
            continue;
        }
        options.filters.push(text.parse().map_err(|e| {
            Failure::usage(format_args!("invalid --filter `{text}`: {e}")).hint(
                "known: id, parents, description, type (=, !=, ~=), inuse, mutable, immutable, shared, private, reclaimable, until",
            )
        })?);
    }
    Ok(options)
}

/// Several filters may stand in one text with commas between; commas of values stay.
fn split(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for piece in text.split(',') {
        let begins = piece.parse::<Filter>().is_ok()
            || piece.starts_with("until=")
            || piece.starts_with("unused-for=");
        match parts.last_mut() {
            Some(last) if !begins => {
                last.push(',');
                last.push_str(piece);
            }
            _ => parts.push(piece.to_owned()),
        }
    }
    parts
}

/// Whether a row is one of those that filters choose.
pub(crate) fn chosen(options: &PruneOptions, row: &UsageRow) -> bool {
    let old = options.until.is_none_or(|until| {
        let age = crate::command::now().saturating_sub(row.last_used);
        u64::try_from(age).unwrap_or(0) >= until.as_secs()
    });
    old && options.filters.iter().all(|filter| filter.holds(row))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_cache::{Limits, Space};

    use super::{GB, GcConfig, filters, from_config, space, split};

    fn disk(gb: u64) -> Space {
        Space { total: gb * GB, free: gb * GB, ..Space::default() }
    }

    fn config(text: &str) -> GcConfig {
        toml::from_str(text).expect(text)
    }

    #[test]
    fn nothing_configured_suits_the_disk() {
        for (gb, reserved, max_used, min_free) in [(50, 5, 40, 10), (1000, 10, 100, 20)] {
            let policies = from_config(None, &disk(gb)).expect("no text to read");
            let limits = policies.last().expect("three").limits;
            let expect = [reserved, max_used, min_free].map(|gb: u64| Some(gb * GB));
            assert_eq!([limits.reserved, limits.max_used, limits.min_free], expect);
            assert!(policies.iter().all(|policy| policy.limits.reserved == expect[0]));
        }
    }

    #[test]
    fn the_configuration_is_read() {
        let given = config(
            "max-used-space = \"20gb\"\nmin-free-space = \"10%\"\nkeep-duration = \"30d\"\n",
        );
        let policies = from_config(Some(&given), &disk(100)).expect("valid");
        let limits =
            Limits { max_used: Some(20 << 30), min_free: Some(10 * GB), ..Limits::default() };
        assert_eq!(policies.last().expect("three").limits, limits);
        assert_eq!(policies[1].until, Some(Duration::from_secs(30 * 86_400)));
        assert!(from_config(Some(&config("enabled = false")), &disk(1)).expect("valid").is_empty());
        let own = config(
            "[[policy]]\nfilters = [\"type=exec.cachemount\"]\nkeep-duration = \"48h\"\n[[policy]]\nmax-used-space = \"1gb\"\n",
        );
        let policies = from_config(Some(&own), &disk(1)).expect("valid");
        assert_eq!(policies.len(), 2);
        assert_eq!(policies[0].until, Some(Duration::from_secs(48 * 3600)));
        assert_eq!(policies[0].filters.len(), 1);
        for wrong in
            ["max-used-space = \"much\"", "keep-duration = \"long\"", "max-used-space = \"120%\""]
        {
            assert!(from_config(Some(&config(wrong)), &disk(1)).is_err(), "{wrong}");
        }
        for wrong in ["max-used = \"1\"", "[[policy]]\nfilter = []"] {
            assert!(toml::from_str::<GcConfig>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_filters() {
        assert_eq!(space("x", "25%", 400).expect("valid"), 100);
        assert_eq!(space("x", "1k", 400).expect("valid"), 1024);
        let read = filters(&["until=24h,type=regular".to_owned()]).expect("valid");
        assert_eq!((read.until, read.filters.len()), (Some(Duration::from_secs(86_400)), 1));
        assert_eq!(split("description=RUN a,b,inuse"), ["description=RUN a,b", "inuse"]);
        assert!(filters(&["until=1h".to_owned(), "unused-for=2h".to_owned()]).is_err());
        assert!(filters(&["size=1".to_owned()]).is_err());
    }
}
