//! A root file system becomes an image: `kiln import rootfs.tar.xz app:1`.
//!
//! The archive is unpacked as the one layer of the image. A gzip, zstd or plain archive stays the
//! layer's blob as it is; another compression is no layer's, so its bytes are compressed anew.

use std::fs::File;
use std::io::{self, Read, Seek};

use kiln_cache::{
    Algorithm, Descriptor, DiffId, HashingReader, LayerBlob, LayerId, Platform, Store,
};

use crate::archive::{
    ArchiveError, ArchiveOptions, Compression, Decompress, Format, compress_archive,
};
use crate::config::{ConfigDocument, ContainerConfig};
use crate::export::{
    ExportError, ExportLayer, Exported, ImageOptions, ImageSpec, NamedImage, build_image, store,
};
use crate::history::{self, HistoryEntry};
use crate::limits::Budget;
use crate::manifest::RemoteLayer;
use crate::media_type;
use crate::unpack::unpack_layer;

/// What the image says beside its files.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Full names, e.g. `docker.io/library/app:1`.
    pub names: Vec<String>,
    /// The platform that the files are for.
    pub platform: Platform,
    /// How a container of it starts.
    pub container: ContainerConfig,
    /// For the history, e.g. `Imported from rootfs.tar`.
    pub message: String,
    /// `created`, in seconds since 1970.
    pub created: Option<i64>,
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive cannot be unpacked.
    #[error("cannot import the root file system: {0}")]
    Archive(#[from] ArchiveError),
    /// The image cannot be made of it.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A file cannot be read or written.
    #[error("cannot {operation} the root file system: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<kiln_cache::StoreError> for ImportError {
    fn from(error: kiln_cache::StoreError) -> Self {
        Self::Export(error.into())
    }
}

/// Imports an archive, compressed in any way, under names in the store.
///
/// # Errors
/// When the archive is malformed or above a limit, or the store cannot be written.
pub fn import_rootfs(
    store: &Store,
    mut file: File,
    options: &ImportOptions,
) -> Result<Exported, ImportError> {
    let draft = store.draft()?;
    let writer = draft.writer();
    let unpacked = unpack_layer(&mut file, Budget::default(), &writer)?;
    let tree = writer.finish().map_err(failed("unpack"))?;
    let layer_id = LayerId::of_diff_id(&unpacked.diff_id);
    draft.publish(layer_id.clone(), tree)?;
    let blob = layer_blob(store, file, &layer_id, &unpacked.diff_id)?;
    let remote = RemoteLayer {
        descriptor: Descriptor::new(&blob.media_type, blob.digest, blob.size),
        diff_id: blob.diff_id,
        layer_id: layer_id.clone(),
    };
    let mut config = ConfigDocument::new(&options.platform);
    config.set_container(&options.container);
    config.set_history(&[HistoryEntry {
        created: options.created.map(history::rfc3339),
        comment: Some(options.message.clone()),
        ..HistoryEntry::default()
    }]);
    let layer = ExportLayer {
        id: layer_id,
        remote: Some(remote),
        created: options.created,
        description: options.message.clone(),
    };
    let spec = ImageSpec {
        cache: None,
        platform: options.platform.clone(),
        config,
        layers: vec![layer],
        annotations: Default::default(),
        descriptor_annotations: Default::default(),
    };
    let image = build_image(store, &spec, &ImageOptions::default())?;
    let named = NamedImage {
        root: image.manifest.clone(),
        names: options.names.clone(),
        created: image.created.clone(),
    };
    store::name(store, &named)?;
    Ok(image)
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> ImportError {
    move |source| ImportError::Io { operation, source }
}

/// The archive as a blob in the store. It is read a second time: the file may have changed since it
/// was unpacked, so its digest is compared.
fn layer_blob(
    store: &Store,
    mut file: File,
    layer: &LayerId,
    diff_id: &DiffId,
) -> Result<LayerBlob, ImportError> {
    let read = failed("read");
    file.rewind().map_err(&read)?;
    let mut head = [0; 6];
    let size = file.by_ref().take(6).read(&mut head).map_err(&read)?;
    file.rewind().map_err(&read)?;
    let media_type = match Format::of(&head[..size]) {
        Format::Gzip => media_type::LAYER_GZIP,
        Format::Zstd => media_type::LAYER_ZSTD,
        Format::Plain | Format::Xz | Format::Bzip2 => {
            let plain = Decompress::new(file).map_err(&read)?;
            let options =
                ArchiveOptions { compression: Compression::default(), ..Default::default() };
            let blob =
                compress_archive(store, layer, plain, &options).map_err(ExportError::from)?;
            return if blob.diff_id == *diff_id { Ok(blob) } else { Err(changed()) };
        }
    };
    let mut blob = store.blob_writer()?;
    let mut copied = Tee { inner: file, copy: &mut blob };
    let plain = Decompress::new(&mut copied).map_err(&read)?;
    let mut hashed = HashingReader::new(plain, Algorithm::Sha256);
    io::copy(&mut hashed, &mut io::sink()).map_err(failed("copy"))?;
    if hashed.finish().0 != diff_id.0 {
        return Err(changed());
    }
    let info = blob.commit(None)?;
    Ok(LayerBlob {
        digest: info.digest,
        size: info.size,
        diff_id: diff_id.clone(),
        media_type: media_type.to_owned(),
    })
}

fn changed() -> ImportError {
    let source = io::Error::other("it has changed meanwhile");
    ImportError::Io { operation: "import", source }
}

/// Copies what is read.
struct Tee<'a, R, W> {
    inner: R,
    copy: &'a mut W,
}

impl<R: Read, W: io::Write> Read for Tee<'_, R, W> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let size = self.inner.read(out)?;
        self.copy.write_all(&out[..size])?;
        Ok(size)
    }
}
