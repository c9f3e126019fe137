//! The compiled filters, run by a small interpreter: what the kernel would answer.

use super::abi::{AARCH64, ARM, Abi, I386, X86_64};
use super::compile::program;
use super::list;
use super::{Action, Condition, Op, Profile, Rule};

/// Runs a program as linux's bpf interpreter does (only the instructions that `compile` writes).
fn run(program: &[libc::sock_filter], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&audit.to_le_bytes());
    for (slot, argument) in data[16..64].chunks_mut(8).zip(arguments) {
        slot.copy_from_slice(&argument.to_le_bytes());
    }
    let (mut at, mut value) = (0, 0u32);
    loop {
        let step = program[at];
        at += 1;
        let code = u32::from(step.code);
        let taken = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        match code & 0x07 {
            libc::BPF_LD => {
                let from = usize::try_from(step.k).expect("small");
                value = u32::from_le_bytes(data[from..from + 4].try_into().expect("four"));
            }
            libc::BPF_ALU => value &= step.k,
            libc::BPF_JMP => {
                at += match code & 0xf0 {
                    libc::BPF_JA => usize::try_from(step.k).expect("small"),
                    libc::BPF_JEQ => taken(value == step.k),
                    libc::BPF_JGT => taken(value > step.k),
                    libc::BPF_JGE => taken(value >= step.k),
                    other => panic!("jump {other:#x}"),
                }
            }
            libc::BPF_RET => return step.k,
            other => panic!("class {other:#x}"),
        }
    }
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | u32::try_from(number).expect("positive")
}

/// The answer of Kiln's own profile.
fn answer(abis: &[Abi], abi: Abi, name: &str, first: u64) -> u32 {
    let number = (abi.number)(name).unwrap_or_else(|| panic!("{name} is a call"));
    let program = program(&list::default(false), abis).expect("compiled");
    run(&program, abi.audit, number, [first, 0, 0, 0, 0, 0])
}

#[test]
fn ordinary_calls_are_made_dangerous_ones_are_not() {
    let pairs: [(&[Abi], Abi); 4] = [
        (&[X86_64, I386], X86_64),
        (&[X86_64, I386], I386),
        (&[AARCH64, ARM], AARCH64),
        (&[AARCH64, ARM], ARM),
    ];
    for (abis, abi) in pairs {
        for name in ["read", "openat", "execve", "chroot", "ptrace", "setgroups", "mknodat"] {
            assert_eq!(answer(abis, abi, name, 0), ALLOW, "{name}");
        }
        let refused = "mount umount2 pivot_root fsopen unshare setns open_tree mount_setattr \
            init_module finit_module delete_module kexec_load reboot swapon acct bpf \
            perf_event_open userfaultfd io_uring_setup open_by_handle_at add_key request_key \
            keyctl settimeofday clock_settime sethostname syslog quotactl vhangup fanotify_init \
            kcmp pidfd_getfd";
        for name in refused.split_whitespace() {
            assert_eq!(answer(abis, abi, name, 0), errno(libc::EPERM), "{name}");
        }
        assert_eq!(answer(abis, abi, "clone3", 0), errno(libc::ENOSYS));
    }
}

/// Numbers as the kernel's tables have them (syscall_64.tbl, syscall_32.tbl, asm-generic/unistd.h,
/// arm's syscall.tbl), so that a name that the crate spells otherwise is noticed.
#[test]
fn calls_that_every_program_makes_are_allowed() {
    let numbers: [(&[Abi], Abi, &[u32]); 4] = [
        (&[X86_64, I386], X86_64, &[0, 1, 3, 9, 12, 59, 60, 61, 231, 257, 262, 318, 332, 334]),
        (&[X86_64, I386], I386, &[1, 3, 4, 6, 11, 45, 192, 195, 197, 243, 252, 295, 300, 383]),
        (&[AARCH64, ARM], AARCH64, &[56, 57, 63, 64, 79, 80, 94, 214, 221, 222, 226, 260, 291]),
        (&[AARCH64, ARM], ARM, &[3, 4, 11, 45, 192, 195, 248, 322, 327, 341, 0xf_0002, 0xf_0005]),
    ];
    for (abis, abi, numbers) in numbers {
        let program = program(&list::default(false), abis).expect("compiled");
        for &number in numbers {
            let answer = run(&program, abi.audit, number, [0; 6]);
            assert_eq!(answer, ALLOW, "{number} of {:#x}", abi.audit);
        }
    }
}

#[test]
fn every_name_of_the_list_is_a_call() {
    for rule in list::default(true).rules {
        for name in rule.names {
            let known =
                [X86_64, I386, AARCH64, ARM].iter().any(|abi| (abi.number)(&name).is_some());
            assert!(known, "{name}");
        }
    }
}

#[test]
fn newer_calls_are_absent_below_those_of_the_processor_too() {
    let program = program(&list::default(false), &[AARCH64, ARM]).expect("compiled");
    for number in [467, 5000, 0xf_0000, 0xf_0003, 0xf_0006] {
        assert_eq!(run(&program, ARM.audit, number, [0; 6]), errno(libc::ENOSYS), "{number:#x}");
    }
}

#[test]
fn deletions_of_layers_are_no_devices_to_make() {
    for (abis, abi) in [([X86_64, I386], X86_64), ([X86_64, I386], I386), ([AARCH64, ARM], ARM)] {
        let program = program(&list::default(false), &abis).expect("compiled");
        let call = |name: &str, arguments| {
            let number = (abi.number)(name).expect("a call");
            run(&program, abi.audit, number, arguments)
        };
        let refused = errno(libc::EPERM);
        for mode in [0o020_000, 0o020_644, (1 << 32) | 0o020_600] {
            assert_eq!(call("mknod", [0, mode, 0, 0, 0, 0]), refused, "{mode:o}");
            assert_eq!(call("mknodat", [0, 0, mode, 1 << 32, 0, 0]), refused, "{mode:o}");
            assert_eq!(call("mknodat", [0, 0, mode, 0x103, 0, 0]), ALLOW, "null {mode:o}");
        }
        for mode in [0, 0o010_644, 0o060_644, 0o100_644, 0o140_644] {
            assert_eq!(call("mknod", [0, mode, 0, 0, 0, 0]), ALLOW, "{mode:o}");
        }
    }
}

#[test]
fn arguments_decide() {
    let here = |name, first| answer(&[X86_64, I386], X86_64, name, first);
    for family in 0..60 {
        let expect =
            if [1, 2, 10, 16, 17].contains(&family) { ALLOW } else { errno(libc::EAFNOSUPPORT) };
        for name in ["socket", "socketpair"] {
            assert_eq!(here(name, family), expect, "{name} {family}");
            // Kernels look at the low half of it.
            assert_eq!(here(name, (1 << 32) | family), expect, "{name} {family}");
        }
        let narrow = answer(&[X86_64, I386], I386, "socket", family);
        assert_eq!(narrow, expect, "family {family} of i386");
    }
    for domain in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff, u64::MAX] {
        assert_eq!(here("personality", domain), ALLOW, "{domain:#x}");
    }
    for domain in [0x4_0000, 0x40_0000, (1 << 32) | 0x4_0000] {
        assert_eq!(here("personality", domain), errno(libc::EPERM), "{domain:#x}");
    }
    assert_eq!(here("clone", 0x120_0011), ALLOW, "fork");
    for bit in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x4000_0000] {
        assert_eq!(here("clone", 0x11 | bit), errno(libc::EPERM), "{bit:#x}");
    }
}

#[test]
fn foreign_and_unknown_calls_are_absent() {
    let program = program(&list::default(false), &[X86_64, I386]).expect("compiled");
    assert!(program.len() < 1200, "{} instructions", program.len());
    let at = |audit, number| run(&program, audit, number, [0; 6]);
    let absent = errno(libc::ENOSYS);
    for number in 0..600 {
        assert_eq!(at(X86_64.audit, 0x4000_0000 | number), absent, "x32 {number}");
    }
    assert_eq!(at(AARCH64.audit, 0), absent, "another processor");
    assert_eq!(at(X86_64.audit, 5000), absent, "a newer call");
    assert_eq!(at(X86_64.audit, u32::MAX), absent);
    assert_eq!(answer(&[X86_64, I386], I386, "socketcall", 1), absent);
}

#[test]
fn what_is_newer_is_absent_unless_it_is_allowed() {
    let expected = [
        (Action::Errno(1), errno(libc::ENOSYS)),
        (Action::KillProcess, errno(libc::ENOSYS)),
        (Action::Allow, ALLOW),
        (Action::Log, libc::SECCOMP_RET_LOG),
    ];
    for (default, expect) in expected {
        let names = vec!["getpid".to_owned()];
        let rule = Rule { names, action: Action::Allow, conditions: Vec::new() };
        let profile = Profile { default, rules: vec![rule], narrow: false };
        let program = program(&profile, &[X86_64]).expect("compiled");
        assert_eq!(run(&program, X86_64.audit, 40, [0; 6]), expect, "{default:?}");
        assert_eq!(run(&program, I386.audit, 20, [0; 6]), errno(libc::ENOSYS), "not served");
    }
}

#[test]
fn images_of_386_may_multiplex() {
    let program = super::compile::program(&list::default(true), &[X86_64, I386]).expect("compiled");
    let number = (I386.number)("socketcall").expect("a call");
    assert_eq!(run(&program, I386.audit, number, [0; 6]), ALLOW);
}

#[test]
fn all_comparisons() {
    let big = (7u64 << 32) | 9;
    let values = [0, 8, 9, 10, big - 1, big, big + 1, 7 << 32, 8 << 32, (6 << 32) | 100, u64::MAX];
    let holds = |op: Op, value: u64, found: u64| match op {
        Op::Equal => found == value,
        Op::NotEqual => found != value,
        Op::Less => found < value,
        Op::LessOrEqual => found <= value,
        Op::Greater => found > value,
        Op::GreaterOrEqual => found >= value,
        Op::Masked(mask) => found & mask == value,
    };
    let ops = [
        Op::Equal,
        Op::NotEqual,
        Op::Less,
        Op::LessOrEqual,
        Op::Greater,
        Op::GreaterOrEqual,
        Op::Masked(0x7_0000_0001),
    ];
    for op in ops {
        for value in values {
            let rule = Rule {
                names: vec!["read".to_owned()],
                action: Action::Log,
                conditions: vec![
                    Condition { argument: 5, op: Op::Equal, value: 1 },
                    Condition { argument: 2, op, value },
                ],
            };
            let profile = Profile { default: Action::Errno(1), rules: vec![rule], narrow: false };
            let program = program(&profile, &[X86_64]).expect("compiled");
            let number = (X86_64.number)("read").expect("a call");
            for found in values {
                let arguments = [0, 0, found, 0, 0, 1];
                let expect = if holds(op, value, found) { libc::SECCOMP_RET_LOG } else { errno(1) };
                let answer = run(&program, X86_64.audit, number, arguments);
                assert_eq!(answer, expect, "{op:?} {value:#x} {found:#x}");
                let other = run(&program, X86_64.audit, number, [0, 0, found, 0, 0, 2]);
                assert_eq!(other, errno(1), "both must hold");
            }
        }
    }
}
