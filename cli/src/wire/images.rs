//! Images that a build starts from: where they are, what they say, and their layers on demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_cache::{Descriptor, Digest, LayerId, Platform, Store};
use kiln_executor::cancel::Cancel;
use kiln_image::config::ConfigDocument;
use kiln_image::json::DocumentError;
use kiln_image::layout::{Layout, LayoutError, LayoutImage, Selector};
use kiln_image::reference::Reference;
use kiln_image::registry::RegistryClient;
use kiln_image::source::{FetchProgress, Pull, Resolved, SourceError, Sources};
use kiln_parser::graph::{ImageKey, ImageName};
use kiln_parser::lower::BaseImage;
use kiln_solver::ports::{Kind, StepError};

use super::config::{from_document, language_platform, oci_platform};
use super::registry;
use super::room::Room;
use crate::build::values::ContextValue;
use crate::failure::{Failure, chain};
use crate::progress::printable;
use crate::settings::Settings;

/// An archive and what is in it take about so many times the archive.
pub(super) const UNPACKED: u64 = 4;

/// All images of a build.
pub(crate) struct Images {
    store: Store,
    contexts: BTreeMap<String, ContextValue>,
    sources: Sources,
    pull: Pull,
    cancel: Cancel,
    room: Room,
    found: Mutex<Found>,
    /// What was told of mirrors: once is enough.
    told: Mutex<BTreeSet<String>>,
}

/// What was looked up.
#[derive(Default)]
struct Found {
    images: BTreeMap<ImageKey, Arc<Resolved>>,
    /// Which image a layer is of, and the how-manieth.
    layers: HashMap<LayerId, (Arc<Resolved>, usize)>,
}

/// Fetching stops when the build does.
pub(crate) struct Fetch<'a>(pub(crate) &'a Cancel);

impl FetchProgress for Fetch<'_> {
    fn cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl Images {
    /// Nothing is read or connected yet. With `refresh`, registries are asked even for what is known.
    ///
    /// # Errors
    /// Docker's configuration file is malformed.
    pub(crate) fn new(
        store: &Store,
        contexts: BTreeMap<String, ContextValue>,
        settings: &Settings,
        refresh: bool,
        cancel: &Cancel,
    ) -> Result<Self, Failure> {
        Ok(Self {
            store: store.clone(),
            contexts,
            sources: registry::sources(settings, store)?,
            pull: match (settings.offline, refresh) {
                (true, _) => Pull::Never,
                (false, true) => Pull::Always,
                (false, false) => Pull::Missing,
            },
            cancel: cancel.clone(),
            room: Room::new(store, settings.config.gc.as_ref()),
            found: Mutex::default(),
            told: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The quotas that whatever is written has to keep.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// The image behind a key that [`Self::resolve`] answered.
    pub(crate) fn found(&self, key: &ImageKey) -> Option<Arc<Resolved>> {
        self.lock().images.get(key).cloned()
    }

    /// Looks an image up: manifest and configuration, no layer.
    ///
    /// # Errors
    /// There is no such image, it is damaged, it has no such platform.
    pub(crate) fn resolve(&self, key: &ImageKey) -> Result<BaseImage, Failure> {
        let platform = oci_platform(&key.platform);
        let image = match &key.name {
            ImageName::Context(name) => self.context(name, &platform)?,
            ImageName::Reference(name) => {
                let found = self.reference(name, &platform);
                self.tell_of_mirrors();
                found?
            }
        };
        let base = base_image(&image)?;
        let image = Arc::new(image);
        let mut found = self.lock();
        for (place, layer) in image.layers.iter().enumerate() {
            found.layers.insert(layer.layer_id.clone(), (Arc::clone(&image), place));
        }
        found.images.insert(key.clone(), image);
        Ok(base)
    }

    /// Passed over, and told: what a mirror did wrong.
    fn tell_of_mirrors(&self) {
        for complaint in self.sources.client().complaints() {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.insert(complaint.clone()) {
                let line = format!("warning: {}\n", printable(complaint.as_bytes()));
                crate::command::print_error(&line);
            }
        }
    }

    fn context(&self, name: &str, platform: &Platform) -> Result<Resolved, Failure> {
        match self.contexts.get(name) {
            Some(ContextValue::Layout { path, selector }) => {
                let selector = match selector.as_deref() {
                    None => Selector::Any,
                    Some(text) => match text.parse::<Digest>() {
                        Ok(digest) => Selector::Digest(digest),
                        Err(_) => Selector::Tag(text.to_owned()),
                    },
                };
                self.sources.resolve_layout(path, &selector, platform).map_err(|e| failure(&e))
            }
            Some(ContextValue::Image(reference)) => self.reference(reference, platform),
            Some(_) | None => Err(Failure::input(format_args!("context `{name}` is no image"))),
        }
    }

    /// An image of the store, else one of a registry; with `--pull` what the registry says now.
    fn reference(&self, name: &str, platform: &Platform) -> Result<Resolved, Failure> {
        let reference: Reference = name.parse().map_err(|e| Failure::input(chain(&e)))?;
        if self.pull == Pull::Always {
            let found = self.sources.resolve_registry(&reference, platform, self.pull);
            return found.map_err(|e| failure(&e));
        }
        match self.sources.resolve_stored(&reference.to_string(), platform) {
            Err(SourceError::NotStored { .. }) => self
                .sources
                .resolve_registry(&reference, platform, self.pull)
                .map_err(|e| failure(&e)),
            stored => stored.map_err(|e| failure(&e)),
        }
    }

    /// Fetches an image with all its layers, and names it in the store.
    ///
    /// # Errors
    /// It cannot be fetched.
    pub(crate) fn pull(&self, name: &str, platform: &Platform) -> Result<Digest, Failure> {
        let reference: Reference = name.parse().map_err(|e| Failure::input(chain(&e)))?;
        let image = self
            .sources
            .resolve_registry(&reference, platform, Pull::Always)
            .map_err(|e| failure(&e))?;
        self.bring_blobs(&image)?;
        self.store
            .tag(&reference.to_string(), &image.manifest)
            .map_err(|e| Failure::environment(chain(&e)))?;
        Ok(image.digest)
    }

    /// What downloads go through: retries, time limits, proxies.
    pub(crate) fn client(&self) -> &RegistryClient {
        self.sources.client()
    }

    /// Brings layers into the store; those of steps, and those that are there, cost nothing.
    ///
    /// # Errors
    /// An archive is missing, damaged or hostile.
    pub(crate) fn materialise(&self, layers: &[LayerId]) -> Result<(), StepError> {
        let mut wanted: Vec<(Arc<Resolved>, Vec<usize>)> = Vec::new();
        for id in layers.iter().filter(|id| id.is_image()) {
            if self.store.has_layer(id).map_err(StepError::environment)? {
                continue;
            }
            let Some((image, place)) = self.lock().layers.get(id).cloned() else {
                let message = format!("layer `{id}` is of no image of this build");
                return Err(StepError::new(Kind::Environment, message));
            };
            match wanted.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &image)) {
                Some((_, places)) => places.push(place),
                None => wanted.push((image, vec![place])),
            }
        }
        for (image, places) in wanted {
            let archives = places.iter().map(|&place| image.layers[place].descriptor.size);
            let bytes = archives.sum::<u64>().saturating_mul(UNPACKED);
            self.room.want(bytes).map_err(StepError::environment)?;
            let fetched = self.sources.fetch_layers(&image, &places, &Fetch(&self.cancel));
            self.tell_of_mirrors();
            fetched.map_err(|error| match error {
                SourceError::Cancelled => StepError::new(Kind::Cancelled, "cancelled"),
                error => StepError::new(Kind::Environment, chain(&error)),
            })?;
        }
        Ok(())
    }

    /// Brings the archives of an image's layers into the store, for an output that holds them.
    ///
    /// # Errors
    /// An archive is missing or damaged.
    pub(crate) fn bring_blobs(&self, image: &Resolved) -> Result<(), Failure> {
        for layer in &image.layers {
            let brought = self.sources.ensure_blob(image, &layer.descriptor, &Fetch(&self.cancel));
            self.tell_of_mirrors();
            brought.map_err(|e| failure(&e))?;
        }
        Ok(())
    }
}

/// An image of the store, which is a layout itself, by its root.
pub(crate) fn stored_image(
    store: &Store,
    root: &Descriptor,
    platform: &Platform,
) -> Result<LayoutImage, LayoutError> {
    Layout::open(store.path())?.image(&Selector::Digest(root.digest.clone()), platform)
}

fn failure(error: &SourceError) -> Failure {
    match error {
        SourceError::Registry(error) => registry::failure(error),
        SourceError::NotStored { reference } => Failure::environment(chain(error)).hint(format!(
            "make it with `kiln import ROOTFS.tar {reference}`, or name it with --build-context"
        )),
        SourceError::Cancelled => Failure::interrupted(),
        error => Failure::environment(chain(error)),
    }
}

/// The configuration of an image that was found.
pub(crate) fn config(image: &Resolved) -> Result<ConfigDocument, Failure> {
    ConfigDocument::parse(&image.config).map_err(|e| broken(image, &e))
}

fn broken(image: &Resolved, error: &DocumentError) -> Failure {
    Failure::environment(format_args!("image `{}`: {}", image.reference, chain(error)))
}

fn base_image(image: &Resolved) -> Result<BaseImage, Failure> {
    let document = config(image)?;
    let author = document.text("author").unwrap_or_default();
    let container = document.container().map_err(|e| broken(image, &e))?;
    Ok(BaseImage {
        digest: image.digest.to_string(),
        config: from_document(&container, author),
        platform: language_platform(&image.platform),
        unknown: false,
        diff_ids: image.layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
    })
}
