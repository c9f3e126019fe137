//! `--annotation` and the `annotation…` keys of `--output`: remarks on manifests, indexes and what
//! points to them (OCI image specification, annotations.md).

use std::collections::BTreeMap;

use kiln_parser::platform::Platform;

use crate::failure::Failure;

/// Where a remark stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// On the image's manifest.
    Manifest,
    /// On what points to the manifest, in an index.
    ManifestDescriptor,
    /// On the index of several platforms.
    Index,
    /// On what points to the index, in a layout.
    IndexDescriptor,
}

/// One remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Annotation {
    /// Where.
    pub(crate) level: Level,
    /// Of which platform's image; `None` for all.
    pub(crate) platform: Option<Platform>,
    /// Its key.
    pub(crate) key: String,
    /// Its value.
    pub(crate) value: String,
}

fn bad(option: &str, why: &str) -> Failure {
    Failure::usage(format_args!("invalid annotation `{option}`: {why}")).hint(
        "for example --annotation org.example.key=value or --annotation index,manifest[linux/amd64]:key=value",
    )
}

/// Reads `[LEVEL[\[PLATFORM\]],…:]KEY=VALUE`.
///
/// # Errors
/// No `=`, an unknown level, no platform.
pub(crate) fn parse(option: &str) -> Result<Vec<Annotation>, Failure> {
    let (name, value) =
        option.split_once('=').ok_or_else(|| bad(option, "it must be KEY=VALUE"))?;
    let (levels, key) = name.split_once(':').unwrap_or(("manifest", name));
    if key.is_empty() {
        return Err(bad(option, "the key is missing"));
    }
    let one = |level: &str| place(level, option).map(|place| annotation(place, key, value));
    levels.split(',').map(one).collect()
}

/// Reads a key of `--output`: `annotation[-LEVEL][\[PLATFORM\]].KEY`; `None` for any other key.
///
/// # Errors
/// An unknown level, no platform.
pub(crate) fn parse_output_key(key: &str, value: &str) -> Result<Option<Annotation>, Failure> {
    let Some(rest) = key.strip_prefix("annotation") else { return Ok(None) };
    let from = rest.find(']').unwrap_or(0);
    let Some(dot) = rest[from..].find('.').map(|at| at + from) else { return Ok(None) };
    let (level, name) = (&rest[..dot], &rest[dot + 1..]);
    let level = level.strip_prefix('-').unwrap_or(level);
    let level = if level.is_empty() || level.starts_with('[') {
        format!("manifest{level}")
    } else {
        level.to_owned()
    };
    place(&level, key).map(|place| Some(annotation(place, name, value)))
}

fn annotation((level, platform): (Level, Option<Platform>), key: &str, value: &str) -> Annotation {
    Annotation { level, platform, key: key.to_owned(), value: value.to_owned() }
}

fn place(text: &str, option: &str) -> Result<(Level, Option<Platform>), Failure> {
    let (name, platform) = match text.split_once('[') {
        Some((name, rest)) => {
            let inner = rest.strip_suffix(']').ok_or_else(|| bad(option, "a `]` is missing"))?;
            let platform = inner.parse().map_err(|e| bad(option, &format!("{e}")))?;
            (name, Some(platform))
        }
        None => (text, None),
    };
    let level = match name {
        "manifest" => Level::Manifest,
        "manifest-descriptor" => Level::ManifestDescriptor,
        "index" => Level::Index,
        "index-descriptor" => Level::IndexDescriptor,
        other => {
            let why = format!(
                "unknown level `{other}` (manifest, manifest-descriptor, index, index-descriptor)"
            );
            return Err(bad(option, &why));
        }
    };
    if platform.is_some() && matches!(level, Level::Index | Level::IndexDescriptor) {
        return Err(bad(option, "an index is of no platform"));
    }
    Ok((level, platform))
}

/// The remarks of one level, for one platform's image.
pub(crate) fn select(
    all: &[Annotation],
    level: Level,
    platform: Option<&Platform>,
) -> BTreeMap<String, String> {
    let counts = |annotation: &&Annotation| {
        annotation.level == level
            && annotation.platform.as_ref().is_none_or(|wanted| Some(wanted) == platform)
    };
    let pairs = all.iter().filter(counts).map(|a| (a.key.clone(), a.value.clone()));
    pairs.collect()
}

/// Whether all remarks have a place in an image of these platforms.
///
/// # Errors
/// A platform that is not built; an index where there is none.
pub(crate) fn check(
    all: &[Annotation],
    platforms: &[&Platform],
    has_index: bool,
) -> Result<(), Failure> {
    for annotation in all {
        if let Some(platform) = &annotation.platform
            && !platforms.contains(&platform)
        {
            return Err(Failure::usage(format_args!(
                "invalid annotation: no platform {platform} found in source"
            )));
        }
        if !has_index && matches!(annotation.level, Level::Index | Level::IndexDescriptor) {
            return Err(Failure::usage(
                "index annotations not supported for single platform export",
            )
            .hint(
                "build for several platforms, or use the levels manifest and manifest-descriptor",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Level, parse, parse_output_key, select};

    #[test]
    fn options() {
        let found = parse("index,manifest[linux/arm64]:org.x=a=b").expect("valid");
        assert_eq!((found[0].level, found[1].level), (Level::Index, Level::Manifest));
        assert_eq!((found[1].key.as_str(), found[1].value.as_str()), ("org.x", "a=b"));
        let arm = "linux/arm64".parse().expect("a platform");
        assert_eq!(select(&found, Level::Manifest, Some(&arm)).len(), 1);
        let amd = "linux/amd64".parse().expect("a platform");
        assert!(select(&found, Level::Manifest, Some(&amd)).is_empty());
        assert_eq!(parse("a=b").expect("valid")[0].level, Level::Manifest);
        for wrong in ["a", "=b", "page:a=b", "manifest[x:a=b", "index[linux/amd64]:a=b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn output_keys() {
        let read = |key| parse_output_key(key, "v").expect("valid");
        for (key, level) in [
            ("annotation.a.b", Level::Manifest),
            ("annotation[linux/arm/v7].a.b", Level::Manifest),
            ("annotation-index.a.b", Level::Index),
            ("annotation-manifest-descriptor[linux/amd64].a.b", Level::ManifestDescriptor),
        ] {
            let found = read(key).expect(key);
            assert_eq!((found.level, found.key.as_str()), (level, "a.b"), "{key}");
        }
        assert_eq!(read("name"), None);
        assert!(parse_output_key("annotation-page.a", "v").is_err());
    }
}
