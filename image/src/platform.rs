//! Platforms: their normal form, their names, and which of several serves best.

use kiln_cache::Platform;

/// A platform without variant.
#[must_use]
pub fn platform(os: &str, architecture: &str) -> Platform {
    Platform {
        architecture: architecture.to_owned(),
        os: os.to_owned(),
        os_version: None,
        os_features: Vec::new(),
        variant: None,
    }
}

/// The same platform in containerd's normal form: `x86_64` is `amd64`, `amd64/v1` and `arm64/v8`
/// have no variant, `arm` without variant is `v7`. Two platforms are the same when their normal
/// forms are.
#[must_use]
pub fn normalised(platform: &Platform) -> Platform {
    let architecture = platform.architecture.to_ascii_lowercase();
    let variant = platform.variant.as_deref().unwrap_or_default().to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386", v) => ("386", v),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", v) => ("amd64", v),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64", v) => ("arm64", v),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        (a, v) => (a, v),
    };
    Platform {
        architecture: architecture.to_owned(),
        os: platform.os.to_ascii_lowercase(),
        variant: Some(variant.to_owned()).filter(|v| !v.is_empty()),
        ..platform.clone()
    }
}

/// `os/architecture[/variant]`.
#[must_use]
pub fn name(platform: &Platform) -> String {
    let variant = platform.variant.as_deref().map(|v| format!("/{v}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os, platform.architecture)
}

/// The name of a platform's folder in an output that is split by platform, e.g. `linux_arm_v7`.
#[must_use]
pub fn folder(platform: &Platform) -> String {
    name(platform).replace('/', "_")
}

/// How well an offered platform serves a wanted one: 0 is equal, more is a lower variant of the
/// same processor (`arm/v6` runs on `arm/v7`), none is not at all.
#[must_use]
pub fn fitness(offered: &Platform, wanted: &Platform) -> Option<u32> {
    let (offered, wanted) = (normalised(offered), normalised(wanted));
    if offered.os != wanted.os || offered.architecture != wanted.architecture {
        return None;
    }
    if let (Some(a), Some(b)) = (&offered.os_version, &wanted.os_version)
        && a != b
    {
        return None;
    }
    let default = match wanted.architecture.as_str() {
        "amd64" => 1,
        "arm64" => 8,
        _ => 0,
    };
    let level = |p: &Platform| match &p.variant {
        None => Some(default),
        Some(v) => v.strip_prefix('v').and_then(|n| n.parse::<u32>().ok()),
    };
    match (level(&offered), level(&wanted)) {
        (Some(a), Some(b)) => b.checked_sub(a),
        _ => (offered.variant == wanted.variant).then_some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_one_normal_form() {
        for (from, to) in [
            (("x86_64", Some("v1")), "linux/amd64"),
            (("amd64", Some("v3")), "linux/amd64/v3"),
            (("arm64", Some("v8")), "linux/arm64"),
            (("aarch64", None), "linux/arm64"),
            (("arm", None), "linux/arm/v7"),
            (("armel", None), "linux/arm/v6"),
            (("riscv64", None), "linux/riscv64"),
        ] {
            let mut platform = platform("Linux", from.0);
            platform.variant = from.1.map(str::to_owned);
            assert_eq!(name(&normalised(&platform)), to);
        }
    }
}
