//! The process of a pod's sandbox: holds the pod's namespaces, reaps orphans when the pod shares
//! its PID namespace, and ends on SIGTERM or SIGINT.
//!
//! It is one static executable without libc or Rust's standard library, compiled by `build.rs` and
//! embedded in the agent, so that a node needs no registry for its sandbox image.
//!
//! The signals are blocked and taken with `rt_sigtimedwait`: as process 1 of a PID namespace a
//! signal with its default action would be dropped, a blocked one is queued.

#![no_std]
#![no_main]

use core::arch::asm;

const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
const SIG_BLOCK: usize = 0;
/// Size in bytes of the kernel's signal set.
const SIGSET_SIZE: usize = 8;
/// `wait4` returns at once when no child has ended.
const WNOHANG: usize = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const EXIT_GROUP: usize = 231;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const WAIT4: usize = 61;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const EXIT_GROUP: usize = 94;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const WAIT4: usize = 260;
}

/// # Safety
/// The arguments must be valid for the system call: pointers alive until it returns.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the x86-64 Linux convention; rcx and r11 are what the instruction overwrites.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
/// The arguments must be valid for the system call: pointers alive until it returns.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the arm64 Linux convention.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c,
            in("x3") d, options(nostack));
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: takes no pointers.
        unsafe { syscall(number::EXIT_GROUP, code, 0, 0, 0) };
    }
}

/// Takes the next of the blocked signals.
fn next_signal(set: &u64) -> isize {
    // SAFETY: `set` outlives the call; no information and no timeout are asked for.
    unsafe { syscall(number::RT_SIGTIMEDWAIT, set as *const u64 as usize, 0, 0, SIGSET_SIZE) }
}

fn reap() {
    // SAFETY: no status and no resource usage are asked for, so no pointer is passed.
    while unsafe { syscall(number::WAIT4, usize::MAX, 0, WNOHANG, 0) } > 0 {}
}

#[unsafe(no_mangle)]
pub extern "C" fn _start() -> ! {
    let set: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
    // SAFETY: `set` outlives the call.
    unsafe { syscall(number::RT_SIGPROCMASK, SIG_BLOCK, &set as *const u64 as usize, 0, SIGSET_SIZE) };
    loop {
        match next_signal(&set) as u64 {
            SIGINT | SIGTERM => exit(0),
            SIGCHLD => reap(),
            // interrupted by a stop and continue
            _ => {}
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(2)
}
