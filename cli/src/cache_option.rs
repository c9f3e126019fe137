//! `--cache-to` and `--cache-from` as typed values. The same spellings as `docker buildx build` (its reference page, and
//! "Cache storage backends" of Docker's manual); a reference alone means a registry.

use std::path::PathBuf;

use kiln_image::archive::Compression;
use kiln_image::cache::Form;
use kiln_image::layout::Selector;
use kiln_image::reference::Reference;

use crate::csv::{self, Field};
use crate::failure::{Failure, chain};

/// Where a cache is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A tag in a registry; with `insecure` by plain http.
    Registry {
        /// The tag.
        reference: Reference,
        /// `registry.insecure=true`.
        insecure: bool,
    },
    /// A folder.
    Local {
        /// Which.
        folder: PathBuf,
        /// Which cache in it.
        selector: Selector,
    },
    /// In the image that is built.
    Inline,
}

impl Place {
    /// For messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Registry { reference, .. } => reference.familiar(),
            Self::Local { folder, .. } => folder.display().to_string(),
            Self::Inline => "inline".to_owned(),
        }
    }
}

/// Which steps are exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Those whose layers are in the result.
    #[default]
    Min,
    /// All.
    Max,
}

/// One `--cache-from`.
#[derive(Clone, Debug)]
pub(crate) struct CacheFrom {
    /// Where it is.
    pub(crate) place: Place,
    /// Ids of cache mounts that may be filled from it.
    pub(crate) mounts: Vec<String>,
}

/// One `--cache-to`.
#[derive(Clone, Debug)]
pub(crate) struct CacheTo {
    /// Where it goes.
    pub(crate) place: Place,
    /// What is in it.
    pub(crate) mode: Mode,
    /// How layers are compressed.
    pub(crate) compression: Compression,
    /// Those that another cache has otherwise, too.
    pub(crate) force_compression: bool,
    /// How it is written down.
    pub(crate) form: Form,
    /// That it cannot be written is no failure.
    pub(crate) ignore_error: bool,
    /// Ids of cache mounts that go into it.
    pub(crate) mounts: Vec<String>,
}

const FROM_KEYS: [&str; 7] = ["type", "ref", "registry.insecure", "src", "tag", "digest", "mounts"];
const TO_KEYS: [&str; 13] = [
    "type",
    "ref",
    "registry.insecure",
    "dest",
    "tag",
    "mode",
    "compression",
    "compression-level",
    "force-compression",
    "image-manifest",
    "oci-mediatypes",
    "ignore-error",
    "mounts",
];
/// Keys that mean something for one type only.
const OF_ONE_TYPE: [(&str, &str); 6] = [
    ("ref", "registry"),
    ("registry.insecure", "registry"),
    ("src", "local"),
    ("dest", "local"),
    ("tag", "local"),
    ("digest", "local"),
];
/// What a cache in an image has from its image.
const NOT_INLINE: [&str; 6] = [
    "compression",
    "compression-level",
    "force-compression",
    "image-manifest",
    "oci-mediatypes",
    "mounts",
];

const MOUNTS: &str = "mounts";

/// One option's fields.
struct Fields<'a> {
    option: &'static str,
    text: &'a str,
    fields: Vec<Field>,
}

impl<'a> Fields<'a> {
    fn parse(option: &'static str, text: &'a str, known: &[&str]) -> Result<Self, Failure> {
        let fields = csv::fields(text);
        let mut fields = Self { option, text, fields: fields.map_err(|e| bad(option, text, &e))? };
        if let [only] = fields.fields.as_slice()
            && only.value.is_none()
        {
            let field = |key: &str, value: &str| Field {
                key: key.to_owned(),
                value: Some(value.to_owned()),
            };
            let long = vec![field("type", "registry"), field("ref", &only.key)];
            return Ok(Self { fields: long, ..fields });
        }
        let mut in_list = false;
        for field in &mut fields.fields {
            // `mounts=a,b`: nothing else may stand without a value, so that it goes on.
            if field.value.is_none() && in_list && !known.contains(&field.key.as_str()) {
                field.value = Some(std::mem::replace(&mut field.key, MOUNTS.to_owned()));
            }
            in_list = field.key == MOUNTS;
        }
        for field in &fields.fields {
            if field.value.is_none() {
                return Err(fields.bad(&format!("field `{}` must be a key=value pair", field.key)));
            }
            if !known.contains(&field.key.as_str()) {
                let failure = fields.bad(&format!("key `{}` is not supported", field.key));
                return Err(failure.hint(format!("supported: {}", known.join(", "))));
            }
        }
        Ok(fields)
    }

    fn get(&self, key: &str) -> Option<&str> {
        let found = self.fields.iter().rev().find(|field| field.key == key);
        found.and_then(|field| field.value.as_deref())
    }

    /// The ids of `mounts`, which may be given several times, and be several.
    fn mounts(&self) -> Result<Vec<String>, Failure> {
        let mut ids: Vec<String> = Vec::new();
        for list in self.fields.iter().filter(|field| field.key == MOUNTS) {
            for id in list.value.iter().flat_map(|list| list.split([',', ';'])).map(str::trim) {
                if id.is_empty() {
                    return Err(self
                        .bad("`mounts` names an empty id")
                        .hint("`kiln cache mounts` lists ids; for example mounts=go-build,npm"));
                }
                if !ids.iter().any(|known| known == id) {
                    ids.push(id.to_owned());
                }
            }
        }
        Ok(ids)
    }

    fn required(&self, key: &str) -> Result<&str, Failure> {
        let value = self.get(key).filter(|value| !value.is_empty());
        value.ok_or_else(|| self.bad(&format!("`{key}` is required")))
    }

    fn boolean(&self, key: &str, default: bool) -> Result<bool, Failure> {
        match self.get(key).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("1" | "t" | "true") => Ok(true),
            Some("0" | "f" | "false") => Ok(false),
            Some(_) => Err(self.bad(&format!("non-bool value specified for {key}"))),
        }
    }

    fn bad(&self, why: &str) -> Failure {
        bad(self.option, self.text, why)
    }

    /// An option that is accepted does something.
    fn check_keys(&self, kind: &str) -> Result<(), Failure> {
        for field in &self.fields {
            let key = field.key.as_str();
            let of = OF_ONE_TYPE.iter().find(|(known, _)| *known == key);
            if let Some((_, of)) = of.filter(|(_, of)| *of != kind) {
                return Err(self.bad(&format!("`{key}` is a key of type={of}")));
            }
            if kind == "inline" && NOT_INLINE.contains(&key) {
                return Err(self
                    .bad(&format!("`{key}` has no meaning in an image's own cache"))
                    .hint("layers are as --output makes them; mounts= needs type=registry or type=local"));
            }
        }
        Ok(())
    }

    fn place(&self, folder: &str) -> Result<Place, Failure> {
        let kind = self.required("type")?;
        if ["registry", "local", "inline"].contains(&kind) {
            self.check_keys(kind)?;
        }
        match kind {
            "registry" => {
                let reference = self.required("ref")?.parse();
                let reference = reference.map_err(|e| self.bad(&chain(&e)))?;
                Ok(Place::Registry {
                    reference,
                    insecure: self.boolean("registry.insecure", false)?,
                })
            }
            "local" => {
                let selector = match (self.get("digest"), self.get("tag")) {
                    (Some(digest), _) => {
                        Selector::Digest(digest.parse().map_err(|e| self.bad(&chain(&e)))?)
                    }
                    (None, tag) => Selector::Tag(tag.unwrap_or("latest").to_owned()),
                };
                Ok(Place::Local { folder: self.required(folder)?.into(), selector })
            }
            "inline" => Ok(Place::Inline),
            other => Err(self
                .bad(&format!("type `{other}` is not supported by this version of Kiln"))
                .hint("types: registry, local, inline")),
        }
    }
}

impl CacheFrom {
    /// What `--cache-from VALUE` gives.
    ///
    /// # Errors
    /// An unknown type or key, a value of the wrong form.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let fields = Fields::parse("--cache-from", text, &FROM_KEYS)?;
        match fields.place("src")? {
            Place::Inline => Err(fields
                .bad("an inline cache is imported from its image")
                .hint("name the image: --cache-from type=registry,ref=IMAGE")),
            place => Ok(Self { place, mounts: fields.mounts()? }),
        }
    }
}

impl CacheTo {
    /// What `--cache-to VALUE` gives.
    ///
    /// # Errors
    /// An unknown type or key, a value of the wrong form, values that contradict each other.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let fields = Fields::parse("--cache-to", text, &TO_KEYS)?;
        let place = fields.place("dest")?;
        if let Place::Registry { reference, .. } = &place
            && reference.digest().is_some()
        {
            return Err(fields.bad("a cache is written under a tag, not a digest"));
        }
        let mode = match fields.get("mode") {
            None | Some("min") => Mode::Min,
            Some("max") if matches!(place, Place::Inline) => {
                return Err(fields
                    .bad("an inline cache holds the layers of its image only")
                    .hint("mode=max needs type=registry or type=local"));
            }
            Some("max") => Mode::Max,
            Some(other) => return Err(fields.bad(&format!("unknown mode `{other}`: min or max"))),
        };
        Ok(Self {
            mode,
            mounts: fields.mounts()?,
            force_compression: fields.boolean("force-compression", false)?,
            compression: compression(&fields)?,
            form: form(&fields)?,
            ignore_error: fields.boolean("ignore-error", false)?,
            place,
        })
    }
}

fn compression(fields: &Fields<'_>) -> Result<Compression, Failure> {
    let kind = match fields.get("compression") {
        None | Some("gzip") => Compression::default(),
        Some("zstd") => Compression::Zstd(Compression::DEFAULT_ZSTD),
        Some("uncompressed") => Compression::None,
        Some(other) => {
            return Err(fields
                .bad(&format!("unknown compression `{other}`"))
                .hint("compressions: gzip, zstd, uncompressed"));
        }
    };
    let Some(level) = fields.get("compression-level") else { return Ok(kind) };
    let level = level.parse().map_err(|_| {
        fields.bad(&format!("compression-level `{level}` is not a number from 0 to 255"))
    })?;
    kind.with_level(level).map_err(|e| fields.bad(&chain(&e)))
}

fn form(fields: &Fields<'_>) -> Result<Form, Failure> {
    let oci = fields.boolean("oci-mediatypes", true)?;
    match (fields.boolean("image-manifest", oci)?, oci) {
        (true, true) => Ok(Form::Manifest),
        (true, false) => {
            Err(fields.bad("OCI media types are required for the image-manifest cache format"))
        }
        (false, true) => Ok(Form::Index),
        (false, false) => Ok(Form::DockerList),
    }
}

fn bad(option: &str, text: &str, why: &str) -> Failure {
    Failure::usage(format_args!("invalid {option} `{text}`: {why}"))
}

#[cfg(test)]
mod tests {
    use kiln_image::cache::Form;

    use super::{CacheFrom, CacheTo, Mode, Place};

    const DIGEST: &str =
        "user/app@sha256:0000000000000000000000000000000000000000000000000000000000000000";

    #[test]
    fn a_reference_alone_is_a_registry() {
        let from = CacheFrom::parse("user/app:cache").expect("valid");
        let Place::Registry { reference, insecure: false } = from.place else {
            panic!("{from:?}");
        };
        assert_eq!(reference.to_string(), "docker.io/user/app:cache");
        let to = CacheTo::parse("user/app:cache").expect("valid");
        assert!(matches!(to.place, Place::Registry { .. }));
        assert_eq!((to.mode, to.form), (Mode::Min, Form::Manifest));
    }

    #[test]
    fn forms() {
        let form = |rest: &str| CacheTo::parse(&format!("type=local,dest=d,{rest}"));
        assert_eq!(form("image-manifest=false").expect("valid").form, Form::Index);
        assert_eq!(form("oci-mediatypes=false").expect("valid").form, Form::DockerList);
        let max = form("mode=max,compression=zstd,force-compression=1,ignore-error=true");
        let max = max.expect("valid");
        assert!(max.ignore_error && max.force_compression && max.mode == Mode::Max);
    }

    #[test]
    fn cache_mounts_are_listed() {
        for text in [
            "type=local,dest=d,mounts=go-build,npm,/root/.cache,mode=max",
            "type=local,dest=d,\"mounts=go-build,npm,/root/.cache\",mode=max",
            "type=local,dest=d,mounts=go-build;npm; /root/.cache,mode=max",
            "mounts=go-build,type=local,mounts=npm,dest=d,mode=max,mounts=/root/.cache,npm",
        ] {
            let to = CacheTo::parse(text).expect(text);
            assert_eq!(to.mounts, ["go-build", "npm", "/root/.cache"], "{text}");
            assert_eq!(to.mode, Mode::Max, "{text}");
        }
        let from = CacheFrom::parse("type=registry,ref=user/app:cache,mounts=a=b,c");
        assert_eq!(from.expect("valid").mounts, ["a=b", "c"]);
        for (text, word) in [
            ("type=local,dest=d,mounts=a,mode", "`mode` must be a key=value pair"),
            ("type=local,dest=d,mode=max,a", "`a` must be a key=value pair"),
            ("type=local,dest=d,mounts=", "empty id"),
            ("type=inline,mounts=a", "no meaning in an image's own cache"),
        ] {
            let error = CacheTo::parse(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("type=s3,bucket=b", "key `bucket` is not supported"),
            ("type=gha", "type `gha` is not supported"),
            ("type=registry", "`ref` is required"),
            ("type=local,mode=max", "`dest` is required"),
            (DIGEST, "under a tag"),
            ("type=inline,mode=max", "layers of its image only"),
            ("type=local,dest=d,ref=r", "`ref` is a key of type=registry"),
            ("type=registry,ref=r,dest=d", "`dest` is a key of type=local"),
            ("type=inline,compression=zstd", "no meaning in an image's own cache"),
            ("type=local,dest=d,force-compression=2", "non-bool"),
            ("type=local,dest=d,mode=most", "unknown mode"),
            ("type=local,dest=d,compression=xz", "unknown compression"),
            ("type=local,dest=d,compression-level=many", "not a number"),
            ("type=local,dest=d,ignore-error=perhaps", "non-bool"),
            ("type=local,dest=d,image-manifest=true,oci-mediatypes=false", "OCI media types"),
        ] {
            let error = CacheTo::parse(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let error = CacheFrom::parse("type=inline").expect_err("no source").to_string();
        assert!(error.contains("imported from its image"), "{error}");
    }
}
