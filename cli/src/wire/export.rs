//! From solved targets to what the user asked for.

use std::collections::HashMap;
use std::io::Write;

use kiln_cache::{Descriptor, Key, LayerId, Layers, Store};
use kiln_image::archive::Compression;
use kiln_image::config::ConfigDocument;
use kiln_image::export::{
    self, ExportError, ExportLayer, Exported, ImageOptions, ImageSpec, NamedImage, build_image,
    build_index,
};
use kiln_image::export::{docker, local, oci, tar};
use kiln_image::history::HistoryEntry;
use kiln_image::manifest::RemoteLayer;
use kiln_image::tarball;
use kiln_parser::graph::{Graph, Input, NodeId};
use kiln_parser::lower::Target;
use kiln_solver::outcome::Outcome;
use kiln_solver::ports::Kind;
use kiln_solver::snapshot::Snapshot;

use super::cache::Imports;
use super::cache::export::{Exports, Finished};
use super::config::{oci_platform, to_document};
use super::images::Images;
use crate::annotation::{self, Annotation, Level};
use crate::failure::{Failure, chain};
use crate::output::{Destination, LayerCompression, Output, OutputKind};
use crate::settings::Settings;

/// The comment of history entries, as BuildKit writes it.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// Everything an export reads.
pub(crate) struct Built<'a> {
    pub(crate) store: &'a Store,
    pub(crate) images: &'a Images,
    pub(crate) targets: &'a [Target],
    pub(crate) outcome: &'a Outcome,
    /// The outputs hold an index although there is one platform.
    pub(crate) multi_platform: bool,
    /// `--annotation`.
    pub(crate) annotations: &'a [Annotation],
    /// Seconds since 1970, for the history.
    pub(crate) now: i64,
    pub(crate) settings: &'a Settings,
    /// Caches of other machines, for one that an image carries.
    pub(crate) caches: (&'a Imports, &'a Exports),
    /// Definition keys of the graph.
    pub(crate) graph: &'a Graph,
    pub(crate) keys: &'a HashMap<NodeId, Key>,
}

/// What an image output made.
#[derive(Debug)]
pub(crate) struct Made {
    /// Manifest, or index of several platforms.
    pub(crate) root: Descriptor,
    /// The configuration, where there is one platform.
    pub(crate) config: Option<Descriptor>,
    pub(crate) created: Option<String>,
    /// Keeps the blobs in the store until they are handed out.
    _held: Vec<Exported>,
}

impl Built<'_> {
    pub(crate) fn snapshot(&self, target: &Target) -> Snapshot {
        match target.snapshot {
            Input::Scratch => Snapshot::scratch(),
            Input::Node(id) => {
                self.outcome.snapshots.get(&id).cloned().unwrap_or_else(Snapshot::scratch)
            }
        }
    }

    /// Makes the image of all targets in the store.
    pub(crate) fn image(&self, output: &Output) -> Result<Made, Failure> {
        let compression = compression(output)?;
        let remarks = [self.annotations, output.annotations.as_slice()].concat();
        let platforms: Vec<_> = self.targets.iter().map(|target| &target.platform).collect();
        annotation::check(&remarks, &platforms, self.has_index())?;
        let mut exported = Vec::with_capacity(self.targets.len());
        for target in self.targets {
            let options = ImageOptions {
                compression,
                force_compression: output.compression.forced,
                docker_types: !output.oci_media_types,
                epoch: target.epoch,
                rewrite_timestamp: output.rewrite_timestamp.unwrap_or(true),
            };
            let passed = self.passed(target, output, &options)?;
            exported.push(self.platform_image(target, &options, &remarks, &passed)?);
        }
        self.join(exported, compression, !output.oci_media_types, &remarks)
    }

    fn has_index(&self) -> bool {
        self.multi_platform || self.targets.len() > 1
    }

    /// What a registry may have already of the layers that the store has not. Other outputs have had them brought.
    fn passed(
        &self,
        target: &Target,
        output: &Output,
        options: &ImageOptions,
    ) -> Result<HashMap<LayerId, RemoteLayer>, Failure> {
        if output.kind != OutputKind::Registry {
            return Ok(HashMap::new());
        }
        let (layers, (imports, _)) = (self.snapshot(target).layers, self.caches);
        // Times that are to be rewritten are in no archive of a cache.
        let rewritten = options.epoch.is_some() && options.rewrite_timestamp;
        let passed = if rewritten {
            imports.bring(&layers).map(|whole| whole.then(HashMap::new))
        } else {
            imports.archives(&layers, options.compression)
        };
        let passed = passed.map_err(|error| match error.kind {
            Kind::Cancelled => Failure::interrupted(),
            _ => Failure::environment(error.message),
        })?;
        passed.ok_or_else(|| Failure::environment("a layer is not where a cache had it"))
    }

    fn platform_image(
        &self,
        target: &Target,
        options: &ImageOptions,
        remarks: &[Annotation],
        passed: &HashMap<LayerId, RemoteLayer>,
    ) -> Result<Exported, Failure> {
        let snapshot = self.snapshot(target);
        let (config, mut layers) = self.document(target, &snapshot)?;
        for layer in &mut layers {
            if let Some(remote) = passed.get(&layer.id) {
                layer.remote = Some(remote.clone());
            }
        }
        let (imports, exports) = self.caches;
        let finished = Finished { graph: self.graph, keys: self.keys, results: None };
        let spec = ImageSpec {
            cache: exports.inline(imports, &finished, &snapshot.layers)?,
            platform: oci_platform(&target.platform),
            config,
            layers,
            annotations: annotation::select(remarks, Level::Manifest, Some(&target.platform)),
            descriptor_annotations: annotation::select(
                remarks,
                Level::ManifestDescriptor,
                Some(&target.platform),
            ),
        };
        build_image(self.store, &spec, options).map_err(|e| failure(&e))
    }

    /// The configuration and the layers: the base's as they are, those of this build behind them.
    fn document(
        &self,
        target: &Target,
        snapshot: &Snapshot,
    ) -> Result<(ConfigDocument, Vec<ExportLayer>), Failure> {
        let platform = oci_platform(&target.platform);
        let base = target.base.as_ref().and_then(|key| self.images.found(key));
        let (mut config, remote) = match &base {
            Some(found) => {
                self.images.bring_blobs(found)?;
                (super::images::config(found)?, found.layers.clone())
            }
            None => (ConfigDocument::new(&platform), Vec::new()),
        };
        config.set_platform(&platform);
        config.set_container(&to_document(&target.config));
        if !target.config.author.is_empty() {
            config.set_author(&target.config.author);
        }
        let mut history = config.history().map_err(|e| Failure::environment(chain(&e)))?;
        let created = target.epoch.map(kiln_image::history::rfc3339);
        history.extend(target.history.iter().map(|entry| HistoryEntry {
            created: created.clone(),
            created_by: Some(entry.created_by.clone()),
            comment: Some(COMMENT.to_owned()),
            empty_layer: entry.node.is_none(),
            ..HistoryEntry::default()
        }));
        config.set_history(&history);
        let layers = snapshot
            .layers
            .iter()
            .enumerate()
            .map(|(position, id)| ExportLayer {
                id: id.clone(),
                remote: remote.get(position).filter(|layer| layer.layer_id == *id).cloned(),
                created: if id.is_image() { None } else { Some(target.epoch.unwrap_or(self.now)) },
                description: String::new(),
            })
            .collect();
        Ok((config, layers))
    }

    fn join(
        &self,
        exported: Vec<Exported>,
        compression: Compression,
        docker: bool,
        remarks: &[Annotation],
    ) -> Result<Made, Failure> {
        let created = exported.first().and_then(|image| image.created.clone());
        if let ([only], false) = (exported.as_slice(), self.has_index()) {
            let (root, config) = (only.manifest.clone(), Some(only.config.clone()));
            return Ok(Made { root, config, created, _held: exported });
        }
        let options = ImageOptions { compression, docker_types: docker, ..ImageOptions::default() };
        let own = annotation::select(remarks, Level::Index, None);
        let mut root =
            build_index(self.store, &exported, own, &options).map_err(|e| failure(&e))?;
        root.annotations = annotation::select(remarks, Level::IndexDescriptor, None);
        Ok(Made { root, config: None, created, _held: exported })
    }

    /// Writes one output; gives the image where it was one.
    pub(crate) fn write(&self, output: &Output, names: &[String]) -> Result<Option<Made>, Failure> {
        match output.kind {
            OutputKind::CacheOnly => Ok(None),
            OutputKind::Local | OutputKind::Tar => self.files(output).map(|()| None),
            OutputKind::Oci | OutputKind::Docker | OutputKind::Image | OutputKind::Registry => {
                let made = self.image(output)?;
                self.hand_out(output, &made, names)?;
                Ok(Some(made))
            }
        }
    }

    fn hand_out(&self, output: &Output, made: &Made, names: &[String]) -> Result<(), Failure> {
        let named = NamedImage {
            root: made.root.clone(),
            names: names.to_vec(),
            created: made.created.clone(),
        };
        match (output.kind, &output.dest) {
            (OutputKind::Oci, Some(Destination::Path(path))) if !output.tar => {
                oci::write_folder(self.store, &named, path).map_err(|e| failure(&e))
            }
            (OutputKind::Oci, Some(dest)) => {
                oci::write_tar(self.store, &named, tar_output(dest)).map_err(|e| failure(&e))
            }
            (OutputKind::Docker, Some(dest)) => {
                docker::write_tar(self.store, &named, tar_output(dest)).map_err(|e| failure(&e))
            }
            (OutputKind::Registry, _) => {
                let imports = self.caches.0;
                let bring = |blob: &Descriptor| imports.bring_archive(blob);
                super::registry::push_image(
                    self.settings,
                    self.store,
                    &made.root,
                    names,
                    imports.repositories(),
                    &bring,
                )
            }
            _ => export::store::name(self.store, &named).map_err(|e| failure(&e)),
        }
    }

    /// `local` and `tar`: the files themselves.
    fn files(&self, output: &Output) -> Result<(), Failure> {
        let mut views = Vec::with_capacity(self.targets.len());
        for target in self.targets {
            let snapshot = self.snapshot(target);
            self.images
                .materialise(&snapshot.layers)
                .map_err(|e| Failure::environment(e.message))?;
            let view = open_layers(self.store, &snapshot.layers)?;
            views.push((oci_platform(&target.platform), view));
        }
        let systems: Vec<tar::FileSystem<'_>> = views
            .iter()
            .map(|(platform, view)| tar::FileSystem { platform: platform.clone(), view })
            .collect();
        let split = output.platform_split.unwrap_or(self.targets.len() > 1);
        let clamp = self.targets.first().and_then(|target| target.epoch);
        match &output.dest {
            Some(Destination::Path(path)) if output.kind == OutputKind::Local => {
                let options = local::LocalOptions { split, delete: false, clamp };
                local::write(&systems, path, options).map_err(|e| failure(&e))
            }
            Some(dest) => {
                tar::write(&systems, split, clamp, tar_output(dest)).map_err(|e| failure(&e))
            }
            None => Err(Failure::usage("an output without a destination")),
        }
    }
}

fn open_layers(store: &Store, layers: &[LayerId]) -> Result<Layers, Failure> {
    Layers::open(store, layers).map_err(|e| Failure::environment(chain(&e)))
}

fn tar_output(dest: &Destination) -> tarball::Output {
    match dest {
        Destination::Path(path) => tarball::Output::Path(path.clone()),
        Destination::Stdout => {
            let stream: Box<dyn Write + Send> = Box::new(std::io::stdout());
            tarball::Output::Stream(stream)
        }
    }
}

fn compression(output: &Output) -> Result<Compression, Failure> {
    let kind = match output.compression.method {
        LayerCompression::Gzip => Compression::default(),
        LayerCompression::Zstd => Compression::Zstd(Compression::DEFAULT_ZSTD),
        LayerCompression::None => return Ok(Compression::None),
    };
    match output.compression.level {
        None => Ok(kind),
        Some(level) => {
            let level = u8::try_from(level).unwrap_or(u8::MAX);
            kind.with_level(level).map_err(|e| Failure::usage(chain(&e)))
        }
    }
}

fn failure(error: &ExportError) -> Failure {
    Failure::environment(chain(error))
}

/// The full form of an image name, with a tag.
pub(crate) fn full_name(name: &str) -> Result<String, Failure> {
    let reference: kiln_image::reference::Reference = name.parse().map_err(|e| {
        Failure::usage(chain(&e)).hint("an image is named like registry.example/name:tag")
    })?;
    Ok(reference.to_string())
}
