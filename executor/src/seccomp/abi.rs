//! The ABIs that a processor runs: how a filter recognises them, and which numbers their calls have.

use std::str::FromStr;

/// One ABI.
#[derive(Clone, Copy)]
pub(super) struct Abi {
    /// `AUDIT_ARCH_…` of linux/audit.h, as the filter sees it.
    pub(super) audit: u32,
    /// The number of a call.
    pub(super) number: fn(&str) -> Option<u32>,
    /// Numbers from here on belong to an ABI that is not served: x32, which shares its `audit`
    /// (`__X32_SYSCALL_BIT`).
    pub(super) foreign_from: Option<u32>,
}

/// The ABIs of this processor, its own first.
#[cfg(target_arch = "x86_64")]
pub(super) const HERE: &[Abi] = &[X86_64, I386];

/// The ABIs of this processor, its own first.
#[cfg(target_arch = "aarch64")]
pub(super) const HERE: &[Abi] = &[AARCH64, ARM];

#[cfg(any(target_arch = "x86_64", test))]
pub(super) const X86_64: Abi = Abi {
    audit: 0xc000_003e,
    number: number::<syscalls::x86_64::Sysno>,
    foreign_from: Some(0x4000_0000),
};

#[cfg(any(target_arch = "x86_64", test))]
pub(super) const I386: Abi =
    Abi { audit: 0x4000_0003, number: number::<syscalls::x86::Sysno>, foreign_from: None };

#[cfg(any(target_arch = "aarch64", test))]
pub(super) const AARCH64: Abi =
    Abi { audit: 0xc000_00b7, number: aarch64_number, foreign_from: None };

#[cfg(any(target_arch = "aarch64", test))]
pub(super) const ARM: Abi = Abi { audit: 0x4000_0028, number: arm_number, foreign_from: None };

/// Numbers from here on are a processor's own (`__ARM_NR_BASE` of asm/unistd.h): no call of this kind is
/// newer than those below.
pub(super) const PROCESSORS_OWN: u32 = 0x000f_0000;

/// The table has the name of the kernel's generic list where profiles and C libraries have another.
#[cfg(any(target_arch = "aarch64", test))]
fn aarch64_number(name: &str) -> Option<u32> {
    number::<syscalls::aarch64::Sysno>(if name == "newfstatat" { "fstatat" } else { name })
}

/// The table lacks the processor's own calls, without which no program starts (`set_tls`).
#[cfg(any(target_arch = "aarch64", test))]
fn arm_number(name: &str) -> Option<u32> {
    match name {
        "breakpoint" => Some(PROCESSORS_OWN + 1),
        "cacheflush" => Some(PROCESSORS_OWN + 2),
        "set_tls" => Some(PROCESSORS_OWN + 5),
        "sync_file_range2" => number::<syscalls::arm::Sysno>("arm_sync_file_range"),
        _ => number::<syscalls::arm::Sysno>(name),
    }
}

/// The number of a call, by its name in syscalls(2).
fn number<S: FromStr + Numbered>(name: &str) -> Option<u32> {
    let known = name.parse::<S>().ok()?;
    u32::try_from(known.number()).ok()
}

/// A table of numbers.
trait Numbered {
    fn number(self) -> i32;
}

macro_rules! numbered {
    ($($table:path),*) => {
        $(impl Numbered for $table {
            fn number(self) -> i32 {
                Self::id(&self)
            }
        })*
    };
}

numbered!(
    syscalls::x86_64::Sysno,
    syscalls::x86::Sysno,
    syscalls::aarch64::Sysno,
    syscalls::arm::Sysno
);
