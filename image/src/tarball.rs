//! Tar files that we hand out: OCI and Docker archives, root file systems.
//!
//! Not layer archives, but made of the same headers. A file is copied in the kernel where the output
//! is one, and appears under its name only when it is whole (see [`Output`]).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use crate::archive::entry::{BLOCK, EntryHeader, EntryKind, pad};

/// Where an export goes.
pub enum Output {
    /// A file, replaced at the end; parents are made. A pipe or device is written as it is.
    Path(PathBuf),
    /// A stream, e.g. standard output.
    Stream(Box<dyn Write + Send>),
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "`{}`", path.display()),
            Self::Stream(_) => f.write_str("the output stream"),
        }
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// An output that is being written. Dropping it leaves nothing behind.
pub(crate) struct OutputFile(Inner);

enum Inner {
    /// A file without a name: gone with the process.
    Unnamed(File, PathBuf),
    /// Where the file system has no files without names.
    Named(tempfile::NamedTempFile, PathBuf),
    Direct(File),
    Stream(Box<dyn Write + Send>),
}

impl OutputFile {
    pub(crate) fn create(output: Output) -> io::Result<Self> {
        let path = match output {
            Output::Stream(stream) => return Ok(Self(Inner::Stream(stream))),
            Output::Path(path) => path,
        };
        let path = match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {
                return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
            }
            Ok(found) if found.file_type().is_file() => fs::canonicalize(&path)?,
            Ok(found) if found.file_type().is_fifo() || found.file_type().is_char_device() => {
                return File::options().write(true).open(&path).map(|f| Self(Inner::Direct(f)));
            }
            _ => path,
        };
        let parent = parent(&path);
        fs::create_dir_all(parent)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(parent, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => Ok(Self(Inner::Unnamed(File::from(fd), path))),
            Err(_) => {
                let mut builder = tempfile::Builder::new();
                let named = builder
                    .prefix(".kiln-")
                    .permissions(fs::Permissions::from_mode(0o666))
                    .tempfile_in(parent)?;
                Ok(Self(Inner::Named(named, path)))
            }
        }
    }

    /// Copies a whole file, in the kernel if the output is a file.
    fn copy(&mut self, source: &mut File) -> io::Result<u64> {
        match &mut self.0 {
            Inner::Unnamed(file, _) | Inner::Direct(file) => io::copy(source, file),
            Inner::Named(named, _) => io::copy(source, named.as_file_mut()),
            Inner::Stream(stream) => io::copy(source, stream),
        }
    }

    /// Makes the output appear under its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        match self.0 {
            Inner::Stream(_) => Ok(()),
            Inner::Direct(file) => settle(&file),
            Inner::Named(named, path) => {
                settle(named.as_file())?;
                named.persist(path).map(|_| ()).map_err(|e| e.error)
            }
            Inner::Unnamed(file, path) => {
                settle(&file)?;
                publish(&file, &path)
            }
        }
    }
}

/// Asks whether a file was written. File systems on other machines, and those with quotas, tell only when a descriptor
/// is closed, whichever it is (close(2)).
pub(crate) fn settle(file: &File) -> io::Result<()> {
    match nix::unistd::close(file.try_clone()?) {
        Err(nix::errno::Errno::EINTR) => Ok(()),
        closed => Ok(closed?),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Names an unnamed file. A link cannot replace a file, a rename can.
fn publish(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let fd = format!("/proc/self/fd/{}", file.as_raw_fd());
    if rustix::fs::linkat(CWD, &fd, CWD, path, AtFlags::SYMLINK_FOLLOW).is_ok() {
        return Ok(());
    }
    // A directory reserves a name of our own beside the target.
    let folder = tempfile::Builder::new().prefix(".kiln-").tempdir_in(parent(path))?;
    let name = folder.path().join("output");
    rustix::fs::linkat(CWD, &fd, CWD, &name, AtFlags::SYMLINK_FOLLOW)?;
    fs::rename(name, path)
}

impl Write for OutputFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Unnamed(file, _) | Inner::Direct(file) => file.write(data),
            Inner::Named(named, _) => named.write(data),
            Inner::Stream(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Stream(stream) => stream.flush(),
            _ => Ok(()),
        }
    }
}

/// Writes a tar file.
pub(crate) struct TarWriter {
    out: OutputFile,
    buffer: Vec<u8>,
}

/// Headers and small files are gathered up to so many bytes.
const BUFFER: usize = 256 << 10;

impl TarWriter {
    pub(crate) fn new(out: OutputFile) -> Self {
        Self { out, buffer: Vec::with_capacity(BUFFER) }
    }

    /// An entry without data.
    pub(crate) fn entry(&mut self, header: &EntryHeader<'_>) -> io::Result<()> {
        header.append_to(&mut self.buffer);
        self.spill(BUFFER)
    }

    /// A small file of our own, with BuildKit's metadata for these: 0444, root, 1970.
    pub(crate) fn document(&mut self, path: &str, data: &[u8]) -> io::Result<()> {
        self.entry(&plain_header(path, EntryKind::File { size: data.len() as u64 }, 0o444))?;
        self.buffer.extend_from_slice(data);
        pad(&mut self.buffer);
        self.spill(BUFFER)
    }

    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(&plain_header(path, EntryKind::Directory, 0o755))
    }

    /// A blob of the store, with BuildKit's metadata for these.
    pub(crate) fn blob(&mut self, path: &str, file: &mut File, size: u64) -> io::Result<()> {
        let header = plain_header(path, EntryKind::File { size }, 0o444);
        // The kernel copies from file to file.
        self.whole(&header, size, file, |out, file| out.copy(file))
    }

    /// A file of exactly `size` bytes.
    pub(crate) fn file(
        &mut self,
        header: &EntryHeader<'_>,
        file: &mut dyn Read,
        size: u64,
    ) -> io::Result<()> {
        self.whole(header, size, file, |out, mut file| io::copy(&mut file, out))
    }

    fn whole<R: Read + ?Sized>(
        &mut self,
        header: &EntryHeader<'_>,
        size: u64,
        mut file: &mut R,
        copy: impl FnOnce(&mut OutputFile, &mut R) -> io::Result<u64>,
    ) -> io::Result<()> {
        self.entry(header)?;
        let copied = if size <= BUFFER as u64 {
            (&mut file).take(size + 1).read_to_end(&mut self.buffer)? as u64
        } else {
            self.spill(0)?;
            let copied = copy(&mut self.out, file)?;
            let padding = copied.next_multiple_of(BLOCK as u64) - copied;
            self.out.write_all(&[0; BLOCK][..usize::try_from(padding).unwrap_or(0)])?;
            copied
        };
        if copied != size {
            return Err(io::Error::other("the file has changed its size"));
        }
        // The buffer always begins at a block's beginning.
        pad(&mut self.buffer);
        self.spill(BUFFER)
    }

    fn spill(&mut self, limit: usize) -> io::Result<()> {
        if self.buffer.len() > limit {
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// The end marker; the output appears.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.buffer.resize(self.buffer.len() + 2 * BLOCK, 0);
        self.spill(0)?;
        self.out.finish()
    }
}

fn plain_header<'a>(path: &'a str, kind: EntryKind<'a>, mode: u32) -> EntryHeader<'a> {
    EntryHeader { path: path.as_bytes(), kind, mode, uid: 0, gid: 0, mtime: 0, xattrs: &[] }
}
