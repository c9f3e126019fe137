//! `--output`, `--push` and `--tag` as typed values. The same spellings as `docker buildx build`
//! (its reference page, "Set the export action for the build result").

use std::path::PathBuf;

use crate::annotation::{self, Annotation};
use crate::csv;
use crate::failure::Failure;

/// Where bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Standard output (`dest=-`).
    Stdout,
    /// A file or a folder.
    Path(PathBuf),
}

/// What kind of result leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// OCI image layout, as a tar archive or a folder.
    Oci,
    /// The archive that `docker load` and `podman load` take.
    Docker,
    /// The root file system as a folder.
    Local,
    /// The root file system as a tar archive.
    Tar,
    /// An image in Kiln's store.
    Image,
    /// An image pushed to its registry.
    Registry,
    /// Nothing: only the cache is filled.
    CacheOnly,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LayerCompression {
    /// gzip, every runtime reads it.
    #[default]
    Gzip,
    /// zstd.
    Zstd,
    /// Not at all.
    None,
}

/// What is compressed how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compress {
    /// `compression=NAME`.
    pub(crate) method: LayerCompression,
    /// `compression-level=N`.
    pub(crate) level: Option<i32>,
    /// `force-compression=true`: layers of base images too.
    pub(crate) forced: bool,
}

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Output {
    /// The kind of result.
    pub(crate) kind: OutputKind,
    /// Where it goes; `None` for kinds that stay in the store or go to a registry.
    pub(crate) dest: Option<Destination>,
    /// `tar=false`: a folder instead of an archive (oci only).
    pub(crate) tar: bool,
    /// Image names, in addition to `--tag`.
    pub(crate) names: Vec<String>,
    /// `push=true`.
    pub(crate) push: bool,
    /// Compression of the layers, where the output has layers.
    pub(crate) compression: Compress,
    /// `oci-mediatypes=false` asks for Docker's media types.
    pub(crate) oci_media_types: bool,
    /// `rewrite-timestamp=BOOL`: whether the epoch also counts for the files in new layers. Without
    /// it, an epoch does (BuildKit's does not): the same files give the same digest.
    pub(crate) rewrite_timestamp: Option<bool>,
    /// `platform-split=false` merges platforms in one folder.
    pub(crate) platform_split: Option<bool>,
    /// `annotation[-LEVEL][\[PLATFORM\]].KEY=VALUE`.
    pub(crate) annotations: Vec<Annotation>,
}

impl Output {
    fn new(kind: OutputKind) -> Self {
        Self {
            kind,
            dest: None,
            tar: true,
            names: Vec::new(),
            push: false,
            compression: Compress::default(),
            oci_media_types: true,
            rewrite_timestamp: None,
            platform_split: None,
            annotations: Vec::new(),
        }
    }

    /// An image in the store: what a plain `-t NAME` gives.
    pub(crate) fn image() -> Self {
        Self::new(OutputKind::Image)
    }

    /// What `--push` gives.
    pub(crate) fn registry() -> Self {
        Self { push: true, ..Self::new(OutputKind::Registry) }
    }

    /// What `--output VALUE` gives.
    ///
    /// # Errors
    /// An unknown type or key, a missing or needless `dest`, a value of the wrong form.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let fields = csv::fields(text).map_err(|e| bad(text, &e))?;
        if let [only] = fields.as_slice()
            && only.value.is_none()
        {
            return Ok(shorthand(&only.key));
        }
        let kind = fields.iter().find(|f| f.key == "type").and_then(|f| f.value.as_deref());
        let kind = parse_kind(kind.unwrap_or_default(), text)?;
        let mut output = Self { push: kind == OutputKind::Registry, ..Self::new(kind) };
        for field in &fields {
            let Some(value) = &field.value else {
                return Err(bad(text, &format!("field `{}` must be a key=value pair", field.key)));
            };
            output.set(&field.key, value, text)?;
        }
        output.check(text)?;
        Ok(output)
    }

    fn set(&mut self, key: &str, value: &str, text: &str) -> Result<(), Failure> {
        match key {
            "type" => {}
            "dest" => self.dest = Some(destination(value)),
            "tar" => self.tar = boolean(key, value, text)?,
            "name" => {
                self.names = value.split(',').map(str::trim).map(str::to_owned).collect();
            }
            "push" => self.push = boolean(key, value, text)?,
            "compression" => self.compression.method = parse_compression(value, text)?,
            "compression-level" => self.compression.level = Some(parse_level(value, text)?),
            "oci-mediatypes" => self.oci_media_types = boolean(key, value, text)?,
            "force-compression" => self.compression.forced = boolean(key, value, text)?,
            "rewrite-timestamp" => self.rewrite_timestamp = Some(boolean(key, value, text)?),
            "platform-split" => self.platform_split = Some(boolean(key, value, text)?),
            _ => {
                if let Some(annotation) = annotation::parse_output_key(key, value)? {
                    self.annotations.push(annotation);
                    return Ok(());
                }
                return Err(bad(text, &format!("key `{key}` is not supported"))
                    .hint("supported: type, dest, tar, name, push, compression, compression-level, force-compression, oci-mediatypes, rewrite-timestamp, platform-split, annotation…"));
            }
        }
        Ok(())
    }

    fn check(&mut self, text: &str) -> Result<(), Failure> {
        let wants_dest = matches!(
            self.kind,
            OutputKind::Oci | OutputKind::Docker | OutputKind::Local | OutputKind::Tar
        );
        match (&self.dest, wants_dest) {
            (None, true) if self.kind == OutputKind::Local => {
                Err(bad(text, "dest is required for the local output"))
            }
            (None, true) => {
                self.dest = Some(Destination::Stdout);
                Ok(())
            }
            (Some(_), false) => Err(bad(text, "this type takes no dest")),
            (Some(Destination::Stdout), true) if self.kind == OutputKind::Local => {
                Err(bad(text, "the local output writes a folder; dest=- needs type=tar"))
            }
            (Some(Destination::Stdout), true) if !self.tar => {
                Err(bad(text, "tar=false writes a folder; it cannot go to standard output"))
            }
            _ if !self.tar && self.kind != OutputKind::Oci => {
                Err(bad(text, "tar=false is for type=oci only"))
            }
            _ if self.compression.level.is_some_and(|level| !self.level_fits(level)) => {
                Err(bad(text, "compression-level is 0 to 12 for gzip and 1 to 22 for zstd"))
            }
            _ => {
                if self.kind == OutputKind::Image && self.push {
                    self.kind = OutputKind::Registry;
                }
                Ok(())
            }
        }
    }

    const fn level_fits(&self, level: i32) -> bool {
        match self.compression.method {
            LayerCompression::Gzip => level >= 0 && level <= 12,
            LayerCompression::Zstd => level >= 1 && level <= 22,
            LayerCompression::None => false,
        }
    }
}

fn shorthand(dest: &str) -> Output {
    if dest == "-" {
        Output { dest: Some(Destination::Stdout), ..Output::new(OutputKind::Tar) }
    } else {
        Output { dest: Some(Destination::Path(dest.into())), ..Output::new(OutputKind::Local) }
    }
}

fn destination(value: &str) -> Destination {
    if value == "-" { Destination::Stdout } else { Destination::Path(value.into()) }
}

fn parse_kind(kind: &str, text: &str) -> Result<OutputKind, Failure> {
    match kind {
        "oci" => Ok(OutputKind::Oci),
        "docker" => Ok(OutputKind::Docker),
        "local" => Ok(OutputKind::Local),
        "tar" => Ok(OutputKind::Tar),
        "image" => Ok(OutputKind::Image),
        "registry" => Ok(OutputKind::Registry),
        "cacheonly" => Ok(OutputKind::CacheOnly),
        "" => Err(bad(text, "type is required").hint("for example type=oci,dest=image.tar")),
        other => Err(bad(text, &format!("unknown type `{other}`"))
            .hint("types: oci, docker, local, tar, image, registry, cacheonly")),
    }
}

fn parse_compression(value: &str, text: &str) -> Result<LayerCompression, Failure> {
    match value {
        "gzip" => Ok(LayerCompression::Gzip),
        "zstd" => Ok(LayerCompression::Zstd),
        "uncompressed" | "none" => Ok(LayerCompression::None),
        "estargz" => {
            Err(bad(text, "compression=estargz is not supported").hint("use gzip or zstd"))
        }
        other => Err(bad(text, &format!("unknown compression `{other}`"))
            .hint("compressions: gzip, zstd, uncompressed")),
    }
}

fn parse_level(value: &str, text: &str) -> Result<i32, Failure> {
    value.parse().map_err(|_| bad(text, &format!("compression-level `{value}` is not a number")))
}

fn boolean(key: &str, value: &str, text: &str) -> Result<bool, Failure> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(bad(text, &format!("non-bool value specified for {key}"))),
    }
}

fn bad(text: &str, why: &str) -> Failure {
    Failure::usage(format_args!("invalid --output `{text}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::{Destination, LayerCompression, Output, OutputKind};

    #[test]
    fn shorthands_are_local_and_tar() {
        let local = Output::parse("out").expect("valid");
        assert_eq!(
            (local.kind, local.dest),
            (OutputKind::Local, Some(Destination::Path("out".into())))
        );
        let tar = Output::parse("-").expect("valid");
        assert_eq!((tar.kind, tar.dest), (OutputKind::Tar, Some(Destination::Stdout)));
    }

    #[test]
    fn long_form() {
        let output =
            Output::parse("type=oci,dest=a.tar,compression=zstd,compression-level=3,tar=false")
                .expect("valid");
        assert_eq!(output.kind, OutputKind::Oci);
        assert_eq!(output.compression.method, LayerCompression::Zstd);
        assert_eq!(output.compression.level, Some(3));
        assert!(!output.tar);
        let image = Output::parse("type=image,name=a,push=true").expect("valid");
        assert_eq!((image.kind, image.push), (OutputKind::Registry, true));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("type=ocy,dest=a", "unknown type"),
            ("dest=a", "type is required"),
            ("type=local", "dest is required"),
            ("type=registry,dest=a", "takes no dest"),
            ("type=oci,dest=a,colour=red", "not supported"),
            ("type=oci,dest=a,tar=maybe", "non-bool"),
            ("type=oci,dest=a,compression=lzma", "unknown compression"),
            ("type=oci,dest=a,compression-level=99", "compression-level"),
            ("type=local,dest=-", "folder"),
            ("type=oci,dest", "key=value"),
        ] {
            let error = Output::parse(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
