//! What the kernel answers a step, for every ABI that the processor runs.

use std::sync::Arc;

use kiln_executor::seccomp::{Action, Filter, Profile, Rule};
use kiln_executor::spec::SystemCalls;

use crate::run::Sandbox;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use kiln_executor::run::Exit;
    use kiln_executor::spec::SystemCalls;

    use crate::run::Sandbox;

    /// How a call is made.
    #[derive(Clone, Copy)]
    enum Way {
        /// `syscall`, with the numbers of x86-64 (and of x32, from 0x40000000 on).
        Native,
        /// `int 0x80`, with the numbers of i386.
        Narrow,
    }

    /// Where the program is in memory.
    const BASE: u32 = 0x40_0000;

    /// The sizes of an ELF header and a program header.
    const HEADERS: u32 = 64 + 56;

    /// The bytes of code that a call takes, and what follows the calls.
    const CALL: u32 = 32;
    const LAST: u32 = 31;

    const EPERM: u8 = 1;
    const EBADF: u8 = 9;
    const EFAULT: u8 = 14;
    const ENOSYS: u8 = 38;
    const EAFNOSUPPORT: u8 = 97;

    /// A call that is never refused, so that a missing ABI does not pass for a filter: close(999).
    const NO_FILE: u32 = 999;

    const NEW_USER: u32 = 0x1000_0000;

    /// A static program that makes the calls with one argument, the others zero, and writes an error
    /// number for each.
    fn program(way: Way, calls: &[(u32, u32)]) -> Vec<u8> {
        let count = u32::try_from(calls.len()).expect("few");
        let mut code = Vec::new();
        let load = |code: &mut Vec<u8>, opcode: u8, value: u32| {
            code.push(opcode);
            code.extend(value.to_le_bytes());
        };
        // Every call takes the same space, so that the place behind them is known.
        let length = HEADERS + count * CALL + LAST;
        for (slot, &(number, first)) in (BASE + length..).zip(calls) {
            let start = code.len();
            load(&mut code, 0xb8, number); // mov eax
            match way {
                Way::Native => {
                    load(&mut code, 0xbf, first); // mov edi
                    code.extend([0x31, 0xf6, 0x31, 0xd2]); // xor esi, esi; xor edx, edx
                    code.extend([0x45, 0x31, 0xd2, 0x0f, 0x05]); // xor r10d, r10d; syscall
                }
                Way::Narrow => {
                    load(&mut code, 0xbb, first); // mov ebx
                    code.extend([0x31, 0xc9, 0x31, 0xd2]); // xor ecx, ecx; xor edx, edx
                    code.extend([0x31, 0xf6, 0x31, 0xff, 0xcd, 0x80]); // xor esi, edi; int 0x80
                }
            }
            code.extend([0xf7, 0xd8, 0x88, 0x04, 0x25]); // neg eax; mov [slot], al
            code.extend(slot.to_le_bytes());
            code.resize(start + CALL as usize, 0x90);
        }
        load(&mut code, 0xb8, 1); // write(1, the numbers)
        load(&mut code, 0xbf, 1);
        load(&mut code, 0xbe, BASE + length);
        load(&mut code, 0xba, count);
        code.extend([0x0f, 0x05]);
        load(&mut code, 0xb8, 60); // exit(0)
        code.extend([0x31, 0xff, 0x0f, 0x05]); // xor edi, edi; syscall
        assert_eq!(HEADERS + u32::try_from(code.len()).expect("small"), length);
        elf(&code, count)
    }

    /// One segment, all of it readable, writable and executable, with room behind it (elf(5)).
    fn elf(code: &[u8], room: u32) -> Vec<u8> {
        let size = u64::from(HEADERS) + u64::try_from(code.len()).expect("small");
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        file.extend(u64::from(BASE + HEADERS).to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend([0; 12]);
        file.extend([64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
        for value in [0, u64::from(BASE), u64::from(BASE), size, size + u64::from(room), 0x1000] {
            file.extend(value.to_le_bytes());
        }
        file.extend(code);
        file
    }

    /// Makes the calls in a step; gives the error numbers, or `None` where the kernel lacks the ABI.
    fn answers(way: Way, calls: &[(u32, u32)], multiplexed_sockets: bool) -> Option<Vec<u8>> {
        let mut sandbox = Sandbox::new("");
        sandbox.spec.system_calls = SystemCalls::Standard { multiplexed_sockets };
        let path = sandbox.spec.base.layers[0].join("bin/probe");
        fs::write(&path, program(way, calls)).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        sandbox.spec.args = vec!["/bin/probe".to_owned()];
        let (exit, text) = sandbox.run();
        match exit.expect("ran") {
            Exit::Code(0) => Some(text.into_bytes()),
            // Without CONFIG_IA32_EMULATION the interrupt is a fault.
            Exit::Signal(libc::SIGSEGV) => None,
            other => panic!("{other:?}: {text:?}"),
        }
    }

    /// Name, number, first argument, expected error number.
    type Case = (&'static str, u32, u32, u8);

    fn check(way: Way, cases: &[Case]) {
        let calls: Vec<(u32, u32)> = cases.iter().map(|case| (case.1, case.2)).collect();
        let Some(found) = answers(way, &calls, false) else { return };
        assert_eq!(found.len(), cases.len(), "{found:?}");
        for (&(name, _, first, expect), found) in cases.iter().zip(found) {
            assert_eq!(found, expect, "{name}({first:#x})");
        }
    }

    #[test]
    fn calls_of_the_processor() {
        check(
            Way::Native,
            &[
                ("close", 3, NO_FILE, EBADF),
                ("mount", 165, 0, EPERM),
                ("umount2", 166, 0, EPERM),
                ("unshare", 272, NEW_USER, EPERM),
                ("clone", 56, NEW_USER | 17, EPERM),
                ("clone3", 435, 0, ENOSYS),
                ("setns", 308, 0, EPERM),
                ("keyctl", 250, 0, EPERM),
                ("bpf", 321, 5, EPERM),
                ("io_uring_setup", 425, 1, EPERM),
                ("open_by_handle_at", 304, 0, EPERM),
                ("socket", 41, 38, EAFNOSUPPORT),
                ("socket", 41, 40, EAFNOSUPPORT),
                ("socketpair", 53, 38, EAFNOSUPPORT),
                ("personality", 135, 0x4_0000, EPERM),
                ("a newer call", 5000, 0, ENOSYS),
                ("x32 close", 0x4000_0003, NO_FILE, ENOSYS),
                ("x32 mount", 0x4000_00a5, 0, ENOSYS),
            ],
        );
    }

    #[test]
    fn calls_of_i386() {
        check(
            Way::Narrow,
            &[
                ("close", 6, NO_FILE, EBADF),
                ("mount", 21, 0, EPERM),
                ("umount", 22, 0, EPERM),
                ("umount2", 52, 0, EPERM),
                ("unshare", 310, NEW_USER, EPERM),
                ("clone", 120, NEW_USER | 17, EPERM),
                ("clone3", 435, 0, ENOSYS),
                ("setns", 346, 0, EPERM),
                ("keyctl", 288, 0, EPERM),
                ("add_key", 286, 0, EPERM),
                ("bpf", 357, 5, EPERM),
                ("iopl", 110, 3, EPERM),
                ("vm86", 166, 0, EPERM),
                ("io_uring_setup", 425, 1, EPERM),
                ("open_by_handle_at", 342, 0, EPERM),
                ("socket", 359, 38, EAFNOSUPPORT),
                ("socketcall", 102, 1, ENOSYS),
                ("personality", 136, 0x4_0000, EPERM),
                ("a newer call", 5000, 0, ENOSYS),
            ],
        );
    }

    #[test]
    fn images_of_386_may_multiplex() {
        // Its arguments are at address 0: the kernel was reached.
        let Some(found) = answers(Way::Narrow, &[(102, 1)], true) else { return };
        assert_eq!(found, [EFAULT]);
    }
}

#[test]
fn a_callers_profile_is_for_the_command_alone() {
    let rule = |name: &str| Rule {
        names: vec![name.to_owned()],
        action: Action::Errno(5),
        conditions: Vec::new(),
    };
    // The last one is how pid 1 becomes its program.
    let rules = ["mkdir", "mkdirat", "execveat"].map(rule).to_vec();
    let profile = Profile { default: Action::Allow, rules, narrow: false };
    let mut sandbox = Sandbox::new("mkdir /x || grep Seccomp: /proc/self/status /proc/1/status");
    let filter = Filter::new(&profile).expect("compiled");
    sandbox.spec.system_calls = SystemCalls::Filtered(Arc::new(filter));
    let text = sandbox.output();
    assert!(text.contains("Input/output error") || text.contains("I/O error"), "{text}");
    assert_eq!(text.matches("Seccomp:\t2").count(), 2, "{text}");
}

#[test]
fn filter_and_privileges_are_the_callers_to_change() {
    let mut sandbox = Sandbox::new("grep -E 'Seccomp:|NoNewPrivs' /proc/self/status");
    sandbox.spec.system_calls = SystemCalls::Unfiltered;
    sandbox.spec.no_new_privileges = true;
    let text = sandbox.output();
    for expect in ["Seccomp:\t0", "NoNewPrivs:\t1"] {
        assert!(text.contains(expect), "{expect:?} is not in:\n{text}");
    }
}
