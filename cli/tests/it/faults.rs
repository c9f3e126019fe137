//! Faults of the machine under a running build: it is killed, the power goes, the disk is full or broken. Whatever
//! happens, no wrong image comes out, the next build heals, and nothing is left. Names begin with the numbers of the
//! faults in docs/reliability.md.

mod callers;
mod calls;
mod ends;
mod places;
mod room;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::env::{Said, World, files, said, text, tool};

/// Longer than any build here takes: whoever waits longer waits for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Numbers as good as random; the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// So many bytes that no compression makes smaller.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut chance = Chance(0x1234_5678_9abc_def1);
    (0..length).map(|_| u8::try_from(chance.below(256)).expect("small")).collect()
}

/// A world whose Dockerfile writes `round` through COPY and RUN.
pub(crate) fn set_round(world: &World, round: usize) {
    world.file("Dockerfile", "FROM busybox\nCOPY data /data\nRUN cat /data >/made\n");
    let lines: String = (0..2000).map(|line| format!("{round} {line}\n")).collect();
    world.file("data", &lines);
}

pub(crate) fn arguments(world: &World) -> Vec<String> {
    let archive = format!("type=oci,dest={}", text(&world.path("image.tar")));
    let plain = ["build", "--progress=plain", "-t", "image", "-o", "out", "-o", &archive, "ctx"];
    plain.map(str::to_owned).to_vec()
}

/// Builds without a fault: what comes out is right, and nothing is left of what was before.
pub(crate) fn heals(world: &World, what: &str) {
    let _ = fs::remove_dir_all(world.path("out"));
    let built = said(&world.command().args(arguments(world)).output().expect("starts"));
    assert_eq!(built.code, 0, "{what}: {}", built.err);
    let expect = fs::read(world.path("ctx/data")).expect("there");
    for name in ["out/data", "out/made"] {
        assert_eq!(fs::read(world.path(name)).expect("there"), expect, "{what}: {name}");
    }
    tool("tar", &["-tf", &text(&world.path("image.tar"))]);
    let checked = world.kiln(&["fsck"]);
    assert_eq!(checked.code, 0, "{what}: {}{}", checked.out, checked.err);
    let left = files(&world.path("store/tmp"));
    let left: Vec<&PathBuf> = left.iter().filter(|path| !path.ends_with("tmp/lock")).collect();
    assert!(left.is_empty(), "{what}: {left:?}");
}

/// No output that is there was written in part.
pub(crate) fn outputs_are_whole(world: &World, what: &str) {
    let archive = world.path("image.tar");
    if archive.exists() {
        tool("tar", &["-tf", &text(&archive)]);
    }
    let left = fs::read_dir(world.path("")).expect("readable").flatten();
    for name in left.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        assert!(!name.starts_with(".kiln-"), "{what}: `{name}` is left");
    }
}

pub(crate) fn no_mount_is_left(world: &World) {
    let store = text(&world.path("store"));
    let is_left = || {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
        mounts.lines().any(|line| line.contains(&format!("{store}/")))
    };
    let begun = Instant::now();
    while is_left() {
        assert!(begun.elapsed() < PATIENCE, "a mount is left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn f23_f24_killed_at_200_moments() {
    let world = World::new();
    world.busybox();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    set_round(&world, 0);
    let begun = Instant::now();
    heals(&world, "the first build");
    // Moments from the start to beyond the end of a build, however fast this machine is.
    let usual = begun.elapsed().as_micros() as u64;
    for round in 1..=200 {
        set_round(&world, round);
        let mut child = world
            .command()
            .args(arguments(&world))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_micros(chance.below(usual)));
        child.kill().expect("killed");
        child.wait().expect("ended");
        if round % 20 == 0 {
            heals(&world, &format!("killed {round} times"));
        }
    }
    no_mount_is_left(&world);
}

/// A file system of its own for a store; goes with the value.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Disk {
    pub(crate) fn tmpfs(path: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&path).expect("made");
        tool("mount", &["-t", "tmpfs", "-o", options, "none", &text(&path)]);
        Self(path)
    }

    pub(crate) fn resize(&self, options: &str) {
        tool("mount", &["-o", &format!("remount,{options}"), &text(&self.0)]);
    }
}

impl Disk {
    /// An ext4 file system of so many MiB in `image`.
    pub(crate) fn ext4(path: PathBuf, image: &Path, mib: u32, options: &str) -> Self {
        fs::create_dir_all(&path).expect("made");
        tool("truncate", &["-s", &format!("{mib}M"), &text(image)]);
        let lazy = "lazy_itable_init=1,lazy_journal_init=1";
        tool("mkfs.ext4", &["-q", "-F", "-m0", "-E", lazy, &text(image)]);
        tool("mount", &["-o", &format!("loop,{options}"), &text(image), &text(&path)]);
        Self(path)
    }

    /// Fills it to the last byte and inode; [`Self::empty`] undoes it.
    pub(crate) fn fill(&self) {
        for number in 0..10_000 {
            let size = if number == 0 { 1 << 30 } else { 1 };
            let wrote = fs::File::create(self.0.join(format!("ballast-{number}")))
                .and_then(|mut file| std::io::copy(&mut std::io::repeat(0).take(size), &mut file));
            if wrote.is_err() && number > 0 {
                return;
            }
        }
        panic!("{} does not fill", self.0.display());
    }

    pub(crate) fn empty(&self) {
        for entry in fs::read_dir(&self.0).expect("readable").flatten() {
            if entry.file_name().to_string_lossy().starts_with("ballast-") {
                fs::remove_file(entry.path()).expect("removed");
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &text(&self.0)]).status();
    }
}

/// Unmounts the file system of `image` and waits until it is gone.
pub(crate) fn take_off(mount: &Path, image: &Path) {
    let begun = Instant::now();
    let wait = || {
        assert!(begun.elapsed() < PATIENCE, "the disk stays busy");
        std::thread::sleep(Duration::from_millis(20));
    };
    while !Command::new("umount").arg(mount).output().expect("runs").status.success() {
        wait();
    }
    // Mount namespaces that other tests just made have copies of the mount. While one lives, the file system is the one
    // that broke, whoever repairs it or mounts it again; with the last one the loop device goes.
    while !tool("losetup", &["-j", &text(image)]).is_empty() {
        wait();
    }
}

/// The kernel's words, or SQLite's.
pub(crate) fn is_full(error: &str) -> bool {
    error.contains("No space left on device") || error.contains("database or disk is full")
}

pub(crate) fn attempt(world: &World) -> Said {
    said(&world.command().args(arguments(world)).output().expect("starts"))
}

#[test]
fn f01_f03_a_full_disk_at_every_point() {
    let world = World::new();
    world.busybox();
    let archive = world.path("busybox.tar");
    fs::remove_dir_all(world.path("store")).expect("removed");
    let mut failures = 0;
    // From a store that holds the base alone to one that holds all, in steps of 100 kB.
    for size in (0..24).map(|step| 2400 + step * 100) {
        let disk = Disk::tmpfs(world.path("store"), &format!("size={size}k"));
        set_round(&world, size);
        let _ = fs::remove_file(world.path("image.tar"));
        let imported = world.kiln(&["import", &text(&archive), "busybox"]);
        let full = if imported.code == 0 { attempt(&world) } else { imported };
        if full.code != 0 {
            failures += 1;
            assert!(is_full(&full.err), "{size}: {}", full.err);
            assert!(!full.err.contains("bug in Kiln"), "{size}: {}", full.err);
            outputs_are_whole(&world, &format!("{size} kB"));
        }
        disk.resize("size=64m");
        world.kiln(&["import", &text(&archive), "busybox"]).ok();
        heals(&world, &format!("{size} kB"));
    }
    assert!((1..24).contains(&failures), "{failures} of 24 were too small");
}

#[test]
fn f05_no_inodes_are_left() {
    let world = World::new();
    world.busybox();
    let archive = world.path("busybox.tar");
    fs::remove_dir_all(world.path("store")).expect("removed");
    let mut failures = 0;
    for inodes in (0..12).map(|step| 30 + step * 8) {
        let disk = Disk::tmpfs(world.path("store"), &format!("nr_inodes={inodes}"));
        set_round(&world, inodes);
        let imported = world.kiln(&["import", &text(&archive), "busybox"]);
        let full = if imported.code == 0 { attempt(&world) } else { imported };
        if full.code != 0 {
            failures += 1;
            assert!(is_full(&full.err), "{inodes}: {}", full.err);
        }
        disk.resize("nr_inodes=4096");
        world.kiln(&["import", &text(&archive), "busybox"]).ok();
        heals(&world, &format!("{inodes} inodes"));
    }
    assert!(failures > 0, "all were enough");
}

#[test]
fn f08_a_full_disk_for_the_output() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    let _disk = Disk::tmpfs(world.path("small"), "size=64k");
    for output in ["type=oci,dest=small/a.tar", "type=tar,dest=small/b.tar", "small/folder"] {
        let full = world.build(&["-o", output]);
        assert_eq!(full.code, 3, "{output}: {}", full.err);
        assert!(full.err.contains("No space left on device"), "{output}: {}", full.err);
        let left = files(&world.path("small"));
        assert!(left.is_empty() || output == "small/folder", "{output}: {left:?}");
        let _ = fs::remove_dir_all(world.path("small/folder"));
    }
    heals(&world, "after full outputs");
}

#[test]
fn f11_to_f17_calls_that_fail() {
    let world = World::new();
    world.busybox();
    let mut round = 0;
    let mut failed = 0;
    for (call, error) in [
        ("fsync,fdatasync,syncfs", "EIO"),
        ("rename,renameat,renameat2", "EIO"),
        ("mkdir,mkdirat", "ENOSPC"),
        ("linkat,link", "EMLINK"),
        ("pwrite64", "EIO"),
        ("write", "ENOSPC"),
        ("pread64", "EIO"),
        ("flock", "ENOLCK"),
        ("ftruncate,fallocate", "EIO"),
        ("getdents64", "EIO"),
    ] {
        for when in [1, 4] {
            round += 1;
            set_round(&world, round);
            let inject = format!("inject={call}:error={error}:when={when}");
            let trace = format!("trace={call}");
            let mut command = world.started_by(
                "strace",
                &["-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject],
            );
            let _ = fs::remove_file(world.path("image.tar"));
            let output = command.args(arguments(&world)).output().expect("strace is installed");
            let faulty = said(&output);
            let what = format!("{inject}: {}", faulty.err);
            assert!(!faulty.err.contains("bug in Kiln"), "{what}");
            failed += usize::from(faulty.code != 0);
            outputs_are_whole(&world, &what);
            heals(&world, &what);
        }
    }
    assert!(failed > 5, "only {failed} builds came upon the faults");
}

#[test]
fn f14_short_writes_and_interruptions() {
    let world = World::new();
    world.busybox();
    for (round, inject) in
        ["inject=write,pwrite64:error=EINTR:when=3+7", "inject=read,pread64:error=EINTR:when=5+9"]
            .into_iter()
            .enumerate()
    {
        set_round(&world, round);
        let mut command =
            world.started_by("strace", &["-f", "-qq", "-o", "/dev/null", "-e", inject]);
        let output = said(&command.args(arguments(&world)).output().expect("strace is installed"));
        // SQLite and pipes may give up; what comes out is right all the same.
        assert!(!output.err.contains("bug in Kiln"), "{inject}: {}", output.err);
        heals(&world, inject);
    }
}

#[test]
fn f19_f40_stores_that_cannot_be_written() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    heals(&world, "the first build");
    let store = text(&world.path("store"));
    tool("mount", &["--bind", &store, &store]);
    let _disk = Disk(world.path("store"));
    tool("mount", &["-o", "remount,ro,bind", &store]);
    set_round(&world, 2);
    let refused = world.build(&[]);
    assert_eq!(refused.code, 3, "{}", refused.err);
    assert!(
        refused.err.to_lowercase().contains("read-only file system")
            || refused.err.contains("readonly database"),
        "{}",
        refused.err
    );
}

#[test]
fn f38_thousands_of_leftovers() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    for number in 0..2000 {
        let folder = world.path(&format!("store/tmp/dead{number}"));
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("owner"), "").expect("written");
        fs::write(world.path(&format!("store/locks/key-{number:064x}")), "1").expect("written");
    }
    attempt(&world).ok();
    // What was left is swept beside the build, or by the next one.
    let begun = Instant::now();
    while files(&world.path("store/tmp")).len() > 1 {
        assert!(begun.elapsed() < PATIENCE, "the leftovers stay");
        set_round(&world, usize::try_from(begun.elapsed().as_millis()).expect("small") + 2);
        attempt(&world).ok();
    }
}

#[test]
fn f44_two_builds_with_one_output() {
    let world = World::new();
    world.busybox();
    set_round(&world, 1);
    for _ in 0..5 {
        let start = || {
            let mut command = world.command();
            command.args(arguments(&world)).stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().expect("starts")
        };
        let both = [start(), start()];
        for child in both {
            let output = said(&child.wait_with_output().expect("ends"));
            assert!(output.code == 0 || output.err.contains("out"), "{}", output.err);
        }
        outputs_are_whole(&world, "both wrote");
        heals(&world, "both wrote");
    }
}

/// A store on an ext4 file system whose power can be cut.
struct Powered {
    image: PathBuf,
    mount: PathBuf,
}

impl Powered {
    fn new(world: &World) -> Self {
        let (image, mount) = (world.path("disk.img"), world.path("power"));
        fs::create_dir(&mount).expect("made");
        tool("truncate", &["-s", "96M", &text(&image)]);
        tool("mkfs.ext4", &["-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", &text(&image)]);
        let powered = Self { image, mount };
        powered.on();
        powered
    }

    fn on(&self) {
        // The worst that ext4 can do: names without data.
        let options = "loop,noauto_da_alloc,commit=1";
        tool("mount", &["-o", options, &text(&self.image), &text(&self.mount)]);
    }

    /// EXT4_IOC_SHUTDOWN without flushing the journal: what was not written is gone.
    fn cut(&self) {
        let program = "import fcntl, os, struct, sys; \
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        tool("python3", &["-c", program, &text(&self.mount)]);
    }

    fn off(&self) {
        take_off(&self.mount, &self.image);
    }
}

impl Drop for Powered {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &text(&self.mount)]).output();
    }
}

/// `kiln` in the boot with that number: after a power cut the machine has another boot id.
pub(crate) fn booted(world: &World, boot: usize, arguments: &[String]) -> Command {
    let id = world.path("boot");
    fs::write(&id, format!("00000000-0000-4000-8000-{boot:012}\n")).expect("written");
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let id = text(&id);
    let mut command =
        world.started_by("unshare", &["-m", "--propagation", "private", "sh", "-c", script, &id]);
    command.env("KILN_ROOT", world.path("power/store")).args(arguments);
    command
}

#[test]
fn f25_the_power_is_cut_50_times() {
    let world = World::new();
    world.busybox();
    let disk = Powered::new(&world);
    let mut chance = Chance(0x2545_f491_4f6c_dd1d);
    let import = ["import", "busybox.tar", "busybox"].map(str::to_owned);
    let mut usual = 200_000;
    for boot in 0..50 {
        said(&booted(&world, boot, &import).output().expect("starts")).ok();
        set_round(&world, boot);
        let mut running = booted(&world, boot, &arguments(&world));
        running.stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        let mut child = running.spawn().expect("starts");
        std::thread::sleep(Duration::from_micros(chance.below(usual)));
        disk.cut();
        child.wait().expect("ended");
        usual = usual.max(begun.elapsed().as_micros() as u64);
        disk.off();
        disk.on();
        // The next boot: the same build comes out right, from whatever is left of the store.
        let what = format!("power cut {boot}");
        let next = booted(&world, boot + 1, &import).output();
        said(&next.expect("starts")).ok();
        let _ = fs::remove_dir_all(world.path("out"));
        let built = said(&booted(&world, boot + 1, &arguments(&world)).output().expect("starts"));
        assert_eq!(built.code, 0, "{what}: {}", built.err);
        let expect = fs::read(world.path("ctx/data")).expect("there");
        for name in ["out/data", "out/made"] {
            assert_eq!(fs::read(world.path(name)).expect("there"), expect, "{what}: {name}");
        }
        let fsck = booted(&world, boot + 1, &["fsck".to_owned(), "--repair".to_owned()]).output();
        let fsck = said(&fsck.expect("starts"));
        assert_eq!(fsck.code, 0, "{what}: {}{}", fsck.out, fsck.err);
    }
    disk.off();
    let checked = Command::new("e2fsck").args(["-fn", &text(Path::new(&disk.image))]).output();
    assert!(checked.expect("runs").status.success(), "the file system is whole");
}
