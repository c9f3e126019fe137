//! RUN for machines of other kinds: through binfmt_misc and QEMU's user-mode emulators, or a remedy.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::env::{World, tool};

const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// Without an emulator, the error says what to install.
#[test]
fn foreign_programs_need_an_emulator() {
    let world = World::new();
    // An s390x executable as far as the kernel looks: its header.
    let mut elf = vec![0_u8; 64];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x02\x01");
    elf[16..20].copy_from_slice(&[0, 2, 0, 22]);
    fs::create_dir_all(world.path("ctx")).expect("folder made");
    fs::write(world.path("ctx/sh"), elf).expect("file written");
    world.file("Dockerfile", "FROM scratch\nCOPY --chmod=755 sh /bin/sh\nRUN true\n");
    let failed = world.build(&["--platform", "linux/s390x"]);
    assert_eq!(failed.code, 1);
    if !Path::new(REGISTERED).join("qemu-s390x").exists() {
        for expect in ["exec format error", "qemu-user-static", "qemu-s390x"] {
            assert!(failed.err.contains(expect), "{expect}: {}", failed.err);
        }
    }
}

/// A program for Linux on arm64 that writes `arm64 ran` and ends: 56 bytes of instructions and text behind the headers.
fn arm64_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const TEXT: &[u8] = b"arm64 ran\n";
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let size = 120 + 32 + TEXT.len() as u64;
    // e_type, e_machine (EM_AARCH64), e_version, e_entry, e_phoff, e_shoff
    for (value, width) in [(2, 2), (183, 2), (1, 4), (BASE + 120, 8), (64, 8), (0, 8)] {
        elf.extend(&u64::to_le_bytes(value)[..width]);
    }
    // e_flags, e_ehsize, e_phentsize, e_phnum, and no sections
    for (value, width) in [(0, 4), (64, 2), (56, 2), (1, 2), (0, 2), (0, 2), (0, 2)] {
        elf.extend(&u64::to_le_bytes(value)[..width]);
    }
    // One program header: PT_LOAD, PF_R | PF_X, the whole file at BASE
    for (value, width) in
        [(1, 4), (5, 4), (0, 8), (BASE, 8), (BASE, 8), (size, 8), (size, 8), (0x1000, 8)]
    {
        elf.extend(&u64::to_le_bytes(value)[..width]);
    }
    let instructions: [u32; 8] = [
        0xd280_0020,                              // mov x0, #1
        0x1000_00e1,                              // adr x1, . + 28
        0xd280_0002 | ((TEXT.len() as u32) << 5), // mov x2, #length
        0xd280_0808,                              // mov x8, #64 (write)
        0xd400_0001,                              // svc #0
        0xd280_0000,                              // mov x0, #0
        0xd280_0ba8,                              // mov x8, #93 (exit)
        0xd400_0001,                              // svc #0
    ];
    instructions.iter().for_each(|instruction| elf.extend(instruction.to_le_bytes()));
    elf.extend(TEXT);
    elf
}

/// The registration of the emulator for arm64, made by this test where the machine has none.
struct Emulator {
    mounted: bool,
    registered: bool,
}

impl Emulator {
    /// None where this kernel has no binfmt_misc.
    fn new() -> Option<Emulator> {
        let known = fs::read_to_string("/proc/filesystems").expect("readable");
        let (register, entry) =
            (Path::new(REGISTERED).join("register"), Path::new(REGISTERED).join("qemu-aarch64"));
        if !known.contains("\tbinfmt_misc\n") && !register.exists() {
            return None;
        }
        let mut emulator = Emulator { mounted: false, registered: false };
        if !register.exists() {
            tool("mount", &["-t", "binfmt_misc", "none", REGISTERED]);
            emulator.mounted = true;
        }
        if !entry.exists() {
            // As systemd-binfmt(8) would do it when the machine starts.
            let told = fs::read_to_string("/usr/lib/binfmt.d/qemu-aarch64.conf")
                .expect("qemu-user-static is installed");
            fs::write(register, told.trim_end()).expect("registered");
            emulator.registered = true;
        }
        Some(emulator)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if self.registered {
            let _ = fs::write(Path::new(REGISTERED).join("qemu-aarch64"), "-1");
        }
        if self.mounted {
            let _ = Command::new("umount").arg(REGISTERED).status();
        }
    }
}

/// One index of two platforms: the native stage runs once, the program for arm64 runs through the emulator alone.
#[test]
fn emulators_run_what_is_foreign() {
    let world = World::new();
    world.busybox().file(
        "Dockerfile",
        "FROM --platform=$BUILDPLATFORM busybox AS tools\nRUN echo native ran | tee /made\n\
         FROM scratch\nARG TARGETARCH\nCOPY --chmod=755 program-$TARGETARCH /busybox\n\
         RUN [\"/busybox\", \"echo\", \"amd64 ran\"]\n\
         COPY --from=tools /made /\n",
    );
    fs::write(world.path("ctx/program-arm64"), arm64_program()).expect("written");
    fs::copy("/bin/busybox", world.path("ctx/program-amd64")).expect("copied");
    let emulator = Emulator::new();
    let args = [
        "--progress=plain",
        "--platform",
        "linux/amd64,linux/arm64",
        "-o",
        "type=oci,dest=image.tar",
    ];
    let built = world.build(&args);
    if emulator.is_none() {
        assert!(built.code == 1 && built.err.contains("qemu-user-static"), "{}", built.err);
        return;
    }
    let built = built.ok();
    for ran in ["arm64 ran\n", " amd64 ran\n", " native ran\n"] {
        assert_eq!(built.err.matches(ran).count(), 1, "{ran}: {}", built.err);
    }
}
