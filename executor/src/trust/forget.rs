//! What a step copied of the certificates that it was given, taken out of what it wrote: every byte of the
//! addition, comments included, so that a copy of a bundle is what it would be without `--ca-certs`.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kiln_cache::{FileKind, Root};
use memchr::memmem::Finder;

use super::CaCerts;

/// How much of a file is looked at at once.
const CHUNK: usize = 1 << 20;

/// Removes the addition from all files below a step's upper directory. The step has ended.
///
/// # Errors
/// A file cannot be read or changed.
pub(crate) fn forget(authorities: &CaCerts, upper: &Path) -> io::Result<()> {
    let addition = authorities.addition();
    let finder = Finder::new(addition.as_bytes());
    let root = Root::open(upper)?;
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for item in root.read_dir(&directory)? {
            let path = directory.join(&item.name);
            match item.kind {
                FileKind::Directory => pending.push(path),
                FileKind::File => {
                    let file = root.open_file(&path)?;
                    let found = find(&file, &finder, addition.len())?;
                    if !found.is_empty() {
                        remove(&file, &found, addition.len() as u64)?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Where the addition begins in a file, each time.
fn find(file: &File, finder: &Finder<'_>, length: usize) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    if file.metadata()?.len() < length as u64 {
        return Ok(found);
    }
    let mut buffer = vec![0; CHUNK.max(2 * length)];
    let (mut kept, mut position) = (0, 0);
    loop {
        let count = file.read_at(&mut buffer[kept..], position + kept as u64)?;
        if count == 0 {
            return Ok(found);
        }
        let known = &buffer[..kept + count];
        found.extend(finder.find_iter(known).map(|at| position + at as u64));
        // One that has begun is no longer than this; one that was found is not found again.
        let after = found.last().map_or(0, |at| (at + length as u64).saturating_sub(position));
        let from = known.len().saturating_sub(length - 1).max(usize::try_from(after).unwrap_or(0));
        let end = known.len();
        buffer.copy_within(from..end, 0);
        (kept, position) = (end - from, position + from as u64);
    }
}

/// Closes the gaps; the file stays the same one, with the same times.
fn remove(file: &File, found: &[u64], length: u64) -> io::Result<()> {
    let before = file.metadata()?;
    // The descriptor was made for reading; its name may be a link by now, the descriptor is none.
    let writer = format!("/proc/self/fd/{}", file.as_raw_fd());
    let writer = fs::File::options().write(true).open(writer)?;
    let ends = found.iter().skip(1).copied().chain([before.len()]);
    let mut to = found.first().copied().unwrap_or(before.len());
    let mut buffer = vec![0; CHUNK];
    for (start, end) in found.iter().map(|start| start + length).zip(ends) {
        let mut from = start;
        while from < end {
            let wanted = usize::try_from(end - from).unwrap_or(CHUNK).min(CHUNK);
            let count = file.read_at(&mut buffer[..wanted], from)?;
            if count == 0 {
                break;
            }
            writer.write_all_at(&buffer[..count], to)?;
            from += count as u64;
            to += count as u64;
        }
    }
    writer.set_len(to)?;
    let times = FileTimes::new().set_accessed(before.accessed()?).set_modified(before.modified()?);
    writer.set_times(times)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, UNIX_EPOCH};

    use super::{CHUNK, forget};
    use crate::pem;
    use crate::trust::CaCerts;

    #[test]
    fn all_additions_go_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let text = pem::encode(&[0x30, 3, 1, 2, 3]);
        let given = CaCerts::parse(text.as_bytes()).expect("valid");
        let addition = given.addition();
        let part = &addition[..addition.len() / 2];
        // Across the border of what is read at once, twice in a row, and not at all.
        let border = "x".repeat(CHUNK - 7);
        let contents = [
            (format!("a{addition}"), "a".to_owned()),
            (format!("{addition}b{addition}{addition}c"), "bc".to_owned()),
            (format!("{border}{addition}{border}{addition}"), border.repeat(2)),
            (format!("{part}{text}"), format!("{part}{text}")),
        ];
        fs::create_dir(dir.path().join("deep")).expect("made");
        let path = |number: usize| dir.path().join("deep").join(number.to_string());
        let old = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for (number, (content, _)) in contents.iter().enumerate() {
            fs::write(path(number), content).expect("written");
            let file = fs::File::options().write(true).open(path(number)).expect("opened");
            file.set_modified(old).expect("set");
        }
        forget(&given, dir.path()).expect("done");
        for (number, (_, expect)) in contents.iter().enumerate() {
            assert!(&fs::read_to_string(path(number)).expect("read") == expect, "{number}");
            let modified = fs::metadata(path(number)).and_then(|m| m.modified()).expect("known");
            assert_eq!(modified, old, "{number}");
        }
    }
}
