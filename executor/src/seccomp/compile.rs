//! From a profile to a program of the kernel's packet filter (seccomp(2), "classic BPF"): which ABI, then
//! a binary search for the number, then the arguments.

use std::collections::BTreeMap;
use std::io;

use super::abi::{Abi, PROCESSORS_OWN};
use super::{Action, Condition, Op, Profile};

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
const INSTRUCTIONS_MAX: usize = 4096;

/// Where `struct seccomp_data` has the number, the ABI and the arguments.
const NUMBER: u32 = 0;
const AUDIT: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const GO: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

type Program = Vec<libc::sock_filter>;

/// What happens to one number: conditional actions in order, then the one that is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdict {
    cases: Vec<(Vec<Condition>, Action)>,
    otherwise: Option<Action>,
}

/// The program for a list of ABIs.
pub(super) fn program(profile: &Profile, abis: &[Abi]) -> io::Result<Program> {
    let mut program = vec![plain(LOAD, AUDIT)];
    for abi in abis {
        let body = body(profile, abi)?;
        program.push(jump(IF_EQUAL, abi.audit, 1, 0));
        program.push(skip(body.len())?);
        program.extend(body);
    }
    // An ABI that nobody knows has no calls.
    program.push(answer(Action::Errno(no_call())));
    if program.len() > INSTRUCTIONS_MAX {
        let message = format!("{} instructions, {INSTRUCTIONS_MAX} are possible", program.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(program)
}

fn no_call() -> u16 {
    u16::try_from(libc::ENOSYS).unwrap_or(1)
}

fn body(profile: &Profile, abi: &Abi) -> io::Result<Program> {
    let verdicts = verdicts(profile, abi);
    // Where the answer changes: first number and verdict of each range.
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |from: u32, verdict: Verdict| match ranges.last() {
        Some((_, last)) if *last == verdict => {}
        _ => ranges.push((from, verdict)),
    };
    let always = |action| Verdict { cases: Vec::new(), otherwise: Some(action) };
    let newer = match profile.default {
        Action::Allow | Action::Log => profile.default,
        _ => Action::Errno(no_call()),
    };
    let newest = verdicts.range(..PROCESSORS_OWN).next_back().map(|(&number, _)| number);
    let mut next = 0;
    for (&number, verdict) in &verdicts {
        if number > next {
            let is_newer = newest.is_none_or(|newest| next > newest);
            push(next, always(if is_newer { newer } else { profile.default }));
        }
        let mut verdict = verdict.clone();
        verdict.otherwise.get_or_insert(profile.default);
        push(number, verdict);
        next = number + 1;
    }
    push(next, always(newer));
    if let Some(foreign) = abi.foreign_from {
        push(foreign, always(Action::Errno(no_call())));
    }
    let mut program = vec![plain(LOAD, NUMBER)];
    search(&ranges, &mut program)?;
    Ok(program)
}

fn verdicts(profile: &Profile, abi: &Abi) -> BTreeMap<u32, Verdict> {
    let mut verdicts: BTreeMap<u32, Verdict> = BTreeMap::new();
    for rule in &profile.rules {
        for number in rule.names.iter().filter_map(|name| (abi.number)(name)) {
            let verdict = verdicts.entry(number).or_default();
            if rule.conditions.is_empty() {
                verdict.otherwise.get_or_insert(rule.action);
            } else {
                verdict.cases.push((rule.conditions.clone(), rule.action));
            }
        }
    }
    verdicts
}

/// Halves the ranges until one is left.
fn search(ranges: &[(u32, Verdict)], program: &mut Program) -> io::Result<()> {
    let [(_, only)] = ranges else {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let Some((pivot, _)) = right.first() else { return Ok(()) };
        let mut below = Vec::new();
        search(left, &mut below)?;
        program.push(jump(IF_AT_LEAST, *pivot, 0, 1));
        program.push(skip(below.len())?);
        program.extend(below);
        return search(right, program);
    };
    for (conditions, action) in &only.cases {
        let mut rest = vec![answer(*action)];
        for condition in conditions.iter().rev() {
            let mut test = test(condition, rest.len())?;
            test.extend(rest);
            rest = test;
        }
        program.extend(rest);
    }
    program.push(answer(only.otherwise.unwrap_or(Action::KillProcess)));
    Ok(())
}

/// Goes on where a condition holds, else skips what is behind it.
fn test(condition: &Condition, behind: usize) -> io::Result<Program> {
    let low = ARGUMENTS + 8 * u32::from(condition.argument);
    let high = low + 4;
    let halves = |value: u64| {
        let bytes = value.to_le_bytes();
        let half = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        (half(0), half(4))
    };
    let (value_low, value_high) = halves(condition.value);
    // `go` is where the condition holds: behind the skip that ends every test.
    Ok(match condition.op {
        Op::Equal | Op::Masked(_) => {
            let (mask_low, mask_high) = match condition.op {
                Op::Masked(mask) => halves(mask),
                _ => (u32::MAX, u32::MAX),
            };
            vec![
                plain(LOAD, high),
                plain(AND, mask_high),
                jump(IF_EQUAL, value_high, 0, 3),
                plain(LOAD, low),
                plain(AND, mask_low),
                jump(IF_EQUAL, value_low, 1, 0),
                skip(behind)?,
            ]
        }
        Op::NotEqual => vec![
            plain(LOAD, high),
            jump(IF_EQUAL, value_high, 0, 3),
            plain(LOAD, low),
            jump(IF_EQUAL, value_low, 0, 1),
            skip(behind)?,
        ],
        Op::Greater | Op::GreaterOrEqual => {
            let than = if condition.op == Op::Greater { IF_GREATER } else { IF_AT_LEAST };
            vec![
                plain(LOAD, high),
                jump(IF_GREATER, value_high, 4, 0),
                jump(IF_EQUAL, value_high, 0, 2),
                plain(LOAD, low),
                jump(than, value_low, 1, 0),
                skip(behind)?,
            ]
        }
        Op::Less | Op::LessOrEqual => {
            // The same comparison, with its ends changed.
            let than = if condition.op == Op::Less { IF_AT_LEAST } else { IF_GREATER };
            vec![
                plain(LOAD, high),
                jump(IF_GREATER, value_high, 3, 0),
                jump(IF_EQUAL, value_high, 0, 3),
                plain(LOAD, low),
                jump(than, value_low, 0, 1),
                skip(behind)?,
            ]
        }
    })
}

fn plain(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: 0, k: value }
}

fn jump(code: u32, value: u32, when_true: u8, when_false: u8) -> libc::sock_filter {
    libc::sock_filter { jt: when_true, jf: when_false, ..plain(code, value) }
}

fn skip(instructions: usize) -> io::Result<libc::sock_filter> {
    Ok(plain(GO, u32::try_from(instructions).map_err(io::Error::other)?))
}

fn answer(action: Action) -> libc::sock_filter {
    let value = match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Errno(number) => libc::SECCOMP_RET_ERRNO | u32::from(number),
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::Log => libc::SECCOMP_RET_LOG,
    };
    plain(RETURN, value)
}
