//! OCI image layouts: a folder, or a tar of one (OCI image specification, "Image Layout").

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use kiln_cache::{Descriptor, Digest, Store};

use super::{ExportError, NamedImage, reachable};
use crate::index::{CONTAINERD_NAME, CREATED, Index, REF_NAME};
use crate::json;
use crate::tarball::{Output, OutputFile, TarWriter, settle};

/// The content of `oci-layout`.
pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A blob up to this many bytes is not worth a thread.
const SMALL: u64 = 256 << 10;

/// Writes an OCI archive. Nothing appears unless all of it was written.
///
/// # Errors
/// When a blob is missing or damaged or the output cannot be written.
pub fn write_tar(store: &Store, image: &NamedImage, output: Output) -> Result<(), ExportError> {
    write_archive(store, image, None, output)
}

/// Writes the archive, with Docker's `manifest.json` where that is given.
pub(super) fn write_archive(
    store: &Store,
    image: &NamedImage,
    docker_manifest: Option<&[u8]>,
    output: Output,
) -> Result<(), ExportError> {
    let name = output.to_string();
    let failed = |source| ExportError::Output { output: name.clone(), source };
    let blobs = blobs(store, image)?;
    let mut tar = TarWriter::new(OutputFile::create(output).map_err(failed)?);
    tar.directory("blobs").map_err(failed)?;
    let mut folder = "";
    for (digest, size) in &blobs {
        let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
        if folder != algorithm {
            tar.directory(&format!("blobs/{algorithm}")).map_err(failed)?;
            folder = algorithm;
        }
        let mut file = open(store, digest)?;
        let name = format!("blobs/{algorithm}/{hex}");
        checked(store, digest, *size, || tar.blob(&name, &mut file, *size).map_err(failed))?;
    }
    tar.document("index.json", &index(image).to_bytes()).map_err(failed)?;
    if let Some(manifest) = docker_manifest {
        tar.document("manifest.json", manifest).map_err(failed)?;
    }
    tar.document("oci-layout", LAYOUT).map_err(failed)?;
    tar.finish().map_err(failed)
}

/// Blobs by digest, so that the archive's order does not depend on the image's.
fn blobs(store: &Store, image: &NamedImage) -> Result<BTreeMap<Digest, u64>, ExportError> {
    let mut blobs = BTreeMap::new();
    for descriptor in reachable(store, &image.root)? {
        if store.has_blob(&descriptor.digest)? {
            blobs.insert(descriptor.digest, descriptor.size);
        } else if !descriptor.extra.contains_key("urls") {
            // Only layers that may not be distributed can be left out: they say where they are.
            return Err(ExportError::MissingBlob(descriptor.digest));
        }
    }
    Ok(blobs)
}

fn open(store: &Store, digest: &Digest) -> Result<File, ExportError> {
    store.open_blob(digest)?.ok_or_else(|| ExportError::MissingBlob(digest.clone()))
}

/// Copies a blob while another thread looks whether it is what its name says; one that is not is set aside.
fn checked(
    store: &Store,
    digest: &Digest,
    size: u64,
    copy: impl FnOnce() -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let whole = if size <= SMALL {
        let whole = store.check_blob(digest)?;
        if whole {
            copy()?;
        }
        whole
    } else {
        std::thread::scope(|scope| {
            let check = scope.spawn(|| store.check_blob(digest));
            let copied = copy();
            let whole = check.join().unwrap_or(Ok(false))?;
            copied.map(|()| whole)
        })?
    };
    if whole { Ok(()) } else { Err(ExportError::DamagedBlob(digest.clone())) }
}

/// One descriptor a name, or one without.
fn index(image: &NamedImage) -> Index {
    let describe = |name: Option<&String>| {
        let mut descriptor = image.root.clone();
        if let Some(created) = &image.created {
            descriptor.annotations.insert(CREATED.to_owned(), created.clone());
        }
        if let Some(name) = name {
            descriptor.annotations.insert(CONTAINERD_NAME.to_owned(), name.clone());
            descriptor.annotations.insert(REF_NAME.to_owned(), tag(name).to_owned());
        }
        descriptor
    };
    let manifests: Vec<Descriptor> = if image.names.is_empty() {
        vec![describe(None)]
    } else {
        image.names.iter().map(|name| describe(Some(name))).collect()
    };
    Index::new(manifests)
}

/// The tag in a full name; the name itself where it has none.
fn tag(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    name[last..].find(':').map_or(name, |colon| &name[last + colon + 1..])
}

/// Writes, or adds to, a layout in a folder. Blobs come first and `index.json` last, each by rename,
/// so that a reader never finds an image that is not whole. Images of the same name are replaced,
/// others stay.
///
/// # Errors
/// When a blob is missing, the folder cannot be written, or it holds an index that we cannot read.
pub fn write_folder(store: &Store, image: &NamedImage, folder: &Path) -> Result<(), ExportError> {
    let failed = |source| ExportError::Output { output: format!("`{}`", folder.display()), source };
    for (digest, size) in blobs(store, image)? {
        let target = folder.join("blobs").join(digest.algorithm().as_str());
        fs::create_dir_all(&target).map_err(failed)?;
        let target = target.join(digest.hex());
        if fs::symlink_metadata(&target).is_ok_and(|m| m.is_file() && m.len() == size) {
            continue;
        }
        let mut file = open(store, &digest)?;
        checked(store, &digest, size, || {
            replace(&target, |out| io::copy(&mut file, out).map(|_| ())).map_err(failed)
        })?;
    }
    replace(&folder.join("oci-layout"), |out| io::Write::write_all(out, LAYOUT)).map_err(failed)?;
    let path = folder.join("index.json");
    let index = match fs::read(&path) {
        Ok(bytes) => merge(Index::parse(&bytes)?, index(image)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => index(image),
        Err(e) => return Err(failed(e)),
    };
    replace(&path, |out| io::Write::write_all(out, &json::pretty(&index))).map_err(failed)
}

/// Adds descriptors to an index; those of the same name, or of the same image without name, go.
fn merge(mut old: Index, new: Index) -> Index {
    let name = |d: &Descriptor| {
        let name = d.annotations.get(CONTAINERD_NAME).or_else(|| d.annotations.get(REF_NAME));
        name.cloned().unwrap_or_else(|| d.digest.to_string())
    };
    old.manifests.retain(|d| !new.manifests.iter().any(|n| name(n) == name(d)));
    old.manifests.extend(new.manifests);
    old
}

/// Writes a file beside its place and renames it.
pub(crate) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".kiln-")
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    fill(file.as_file_mut())?;
    settle(file.as_file())?;
    file.persist(path).map(|_| ()).map_err(|e| e.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_names() {
        for (name, expect) in [
            ("docker.io/library/app:1", "1"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("localhost:5000/app:v2", "v2"),
            ("a/b:c@sha256:00", "c"),
        ] {
            assert_eq!(tag(name), expect);
        }
    }
}
