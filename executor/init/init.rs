//! Pid 1 of a step, as a program of its own: a few hundred bytes without libraries, so that nothing of
//! the builder (its memory, environment, descriptors, its binary) can be reached through /proc/1.
//! `build.rs` compiles it, `init_program.rs` starts it.
//!
//! `init PID`: reaps every process, passes signals on to all of them, and when PID ends writes
//! `exited CODE` or `killed SIGNAL` to descriptor 3 and ends; the kernel then kills what is left.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const EXIT_GROUP: usize = 231;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const RT_SIGTIMEDWAIT: usize = 128;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const EXIT_GROUP: usize = 94;
    pub const WAIT4: usize = 260;
    pub const KILL: usize = 129;
    pub const RT_SIGTIMEDWAIT: usize = 137;
}

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "mov rdi, rsp", "and rsp, -16", "call {main}", main = sym main);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "bl {main}", main = sym main);

const REPORT: usize = 3;
const SIG_SETMASK: usize = 2;
const SIGCHLD: isize = 17;
const WNOHANG: usize = 1;
const ALL_SIGNALS: u64 = u64::MAX;
const SIGNAL_SET_BYTES: usize = 8;

/// A system call with up to four arguments.
fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the callers below pass descriptors, numbers, and pointers to values that live across the
    // call and are as large as the call expects; the kernel keeps all registers but those named.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b,
            in("rdx") c, in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b,
            in("x2") c, in("x3") d, options(nostack));
    }
    result
}

fn exit(status: usize) -> ! {
    loop {
        call(number::EXIT_GROUP, status, 0, 0, 0);
    }
}

extern "C" fn main(stack: *const usize) -> ! {
    let all = ALL_SIGNALS;
    call(number::RT_SIGPROCMASK, SIG_SETMASK, &raw const all as usize, 0, SIGNAL_SET_BYTES);
    // SAFETY: at a process's start the stack holds argc, then argc pointers to strings (ELF psABI);
    // `init_program` passes two.
    let command = number_of(unsafe { *stack.add(2) } as *const u8);
    loop {
        reap(command);
        let signal =
            call(number::RT_SIGTIMEDWAIT, &raw const all as usize, 0, 0, SIGNAL_SET_BYTES);
        if signal > 0 && signal != SIGCHLD {
            call(number::KILL, usize::MAX, signal as usize, 0, 0);
        }
    }
}

fn number_of(text: *const u8) -> isize {
    let mut value = 0;
    let mut at = text;
    loop {
        // SAFETY: `text` is a string that ends in zero, and this stops there.
        let byte = unsafe { *at };
        if !byte.is_ascii_digit() {
            return value;
        }
        value = value * 10 + isize::from(byte - b'0');
        // SAFETY: the byte was a digit, so the zero is still to come.
        at = unsafe { at.add(1) };
    }
}

/// Collects all processes that have ended; ends if the command is one of them.
fn reap(command: isize) {
    loop {
        let mut status = 0u32;
        let ended = call(number::WAIT4, usize::MAX, &raw mut status as usize, WNOHANG, 0);
        if ended <= 0 {
            return;
        }
        if ended == command {
            tell(status);
        }
    }
}

/// Writes the report (wait(2): the low seven bits are the signal, the next byte the code).
fn tell(status: u32) -> ! {
    let signal = status & 0x7f;
    let (word, value) =
        if signal == 0 { (*b"exited ", (status >> 8) & 0xff) } else { (*b"killed ", signal) };
    let digit = |divisor: u32| b'0' + (value / divisor % 10) as u8;
    let mut line = [0; 11];
    let mut at = 0;
    while at < word.len() {
        line[at] = word[at];
        at += 1;
    }
    (line[7], line[8], line[9], line[10]) = (digit(100), digit(10), digit(1), b'\n');
    call(number::WRITE, REPORT, &raw const line as usize, line.len(), 0);
    exit(0)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(1)
}
