//! A resting process holds only what rest needs.
//!
//! Starting up, and every burst of work, touches far more code and heap than resting does. The
//! kernel keeps those pages in the process until memory runs short, and the allocator keeps freed
//! ones for the next burst; on a machine that also runs the pods, that is memory taken from them.
//! [`rest_lightly`] hands both back after each burst, and again and again while the process rests:
//! what a burst left in caches and histories goes minutes after it, and rest itself touches, timer by
//! timer, ever more text. That comes back from the page cache at the next touch: about a thousand
//! faults a minute.

use std::cell::Cell;
use std::ffi::{CStr, c_char};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::runtime;

use crate::Supervisor;

/// How often the process looks whether it rests.
const PERIOD: Duration = Duration::from_secs(10);
/// While it rests, memory is given back once in so many periods: it costs some milliseconds.
const GIVE_BACK_EVERY: u32 = 6;
/// Below this share of one core the process rests.
const RESTING_SHARE: f64 = 0.02;
/// What a touch of the program's text maps at most.
const PIECE: usize = 16 * 1024;

/// jemalloc, for everything in the process: a server makes and drops a hundred small objects per
/// request, and glibc's allocator takes a lock for most of them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads before its first allocation: few arenas, since what is freed in one is not used
/// in another; and what was freed goes back to the kernel after a second. A thread looks through what it
/// keeps ready after each MiB, not after 64 KiB, which it goes through in a millisecond: [`runtime`] has it
/// given back at rest.
// SAFETY: the name is jemalloc's own for this, and nothing else defines it; it is a pointer to a C string.
#[unsafe(export_name = "malloc_conf")]
#[used]
static OPTIONS: Option<&'static c_char> =
    // SAFETY: points to the first byte of a literal, which ends with zero and lives as long as the program.
    Some(unsafe { &*c"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,tcache_gc_incr_bytes:1048576".as_ptr() });

const THREAD_FLUSH: &CStr = c"thread.tcache.flush";

/// How often memory was given back so far.
static GIVEN_BACK: AtomicU32 = AtomicU32::new(0);

/// The runtime of a process that rests lightly: a worker that goes to sleep gives back what the
/// allocator kept ready for it, once after each time that the process as a whole gave memory back.
/// Only a thread itself can do that.
pub fn runtime() -> runtime::Builder {
    thread_local! { static SEEN: Cell<u32> = const { Cell::new(0) } }
    let mut builder = runtime::Builder::new_multi_thread();
    builder.enable_all().on_thread_park(|| {
        let given_back = GIVEN_BACK.load(Ordering::Relaxed);
        if SEEN.replace(given_back) != given_back {
            command(THREAD_FLUSH);
        }
    });
    builder
}

/// Has jemalloc do something that takes and returns nothing.
fn command(name: &CStr) {
    // SAFETY: the name ends with zero; without a place for a result or an argument none is touched. May
    // be called at any time, from any thread.
    let refused = unsafe { tikv_jemalloc_sys::mallctl(name.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
    debug_assert_eq!(refused, 0, "{name:?}");
}

/// Starts the task that gives memory back when work has ended, and while there is none.
pub fn rest_lightly(supervisor: &Supervisor) {
    // The thread that started everything only waits from here on.
    command(THREAD_FLUSH);
    supervisor.spawn("memory", async {
        let programs = programs();
        programs.iter().filter(|program| program.text).for_each(map_finely);
        let (mut rested, mut before) = (0, processor_time());
        loop {
            tokio::time::sleep(PERIOD).await;
            let now = processor_time();
            if (now - before).as_secs_f64() >= PERIOD.as_secs_f64() * RESTING_SHARE {
                rested = 0;
            } else {
                if rested % GIVE_BACK_EVERY == 0 {
                    give_back(&programs);
                }
                rested += 1;
            }
            before = now;
        }
    });
}

/// User and system time of this process so far.
fn processor_time() -> Duration {
    let mut at = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which outlives the call.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut at) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap_or(0))
}

fn give_back(programs: &[Program]) {
    GIVEN_BACK.fetch_add(1, Ordering::Relaxed);
    // The unused pages of all arenas: 4096 stands for all.
    command(c"arena.4096.purge");
    for program in programs {
        // SAFETY: the range is a mapping of a file that nothing writes to. Its pages are unmodified
        // copies of that file's, so dropping them changes nothing: the next touch maps them again.
        unsafe {
            libc::madvise(program.start as *mut libc::c_void, program.length, libc::MADV_DONTNEED);
        }
    }
}

/// Makes a fault map little around what is touched. The kernel maps what it has in the page cache of
/// the 64 KiB around it, but never beyond the mapping; what rest touches is scattered, so most of
/// that would be mapped in vain. Every other piece gets a flag that its neighbours do not have, and
/// so is a mapping of its own. The flag means nothing here: text is not in core dumps anyway.
fn map_finely(program: &Program) {
    let end = program.start + program.length;
    let first = program.start.next_multiple_of(2 * PIECE);
    for piece in (first..end.saturating_sub(PIECE)).step_by(2 * PIECE) {
        // SAFETY: inside the mapping; leaves its pages and their protection as they are.
        if unsafe { libc::madvise(piece as *mut libc::c_void, PIECE, libc::MADV_DONTDUMP) } != 0 {
            return;
        }
    }
}

/// A mapping of a program's or library's text or constants.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    start: usize,
    length: usize,
    text: bool,
}

fn programs() -> Vec<Program> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter_map(program).collect()
}

/// The mapping of a line of `/proc/PID/maps` (proc(5)), if the file can give it again. A read-only
/// mapping further into the file may hold relocated data, which the file cannot; the one at its start
/// holds the ELF header, and so never does.
fn program(line: &str) -> Option<Program> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let file = fields.nth(2)?;
    let text = permissions == "r-xp";
    let constants = permissions == "r--p" && offset.bytes().all(|digit| digit == b'0');
    if !(text || constants) || !file.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some(Program { start, length: end.checked_sub(start)?, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_file_can_give_again_is_given_back() {
        let constants = "7f0000000000-7f0000001000 r--p 00000000 fd:00 131 /usr/bin/skiff";
        let expected = Program { start: 0x7f00_0000_0000, length: 0x1000, text: false };
        assert_eq!(program(constants), Some(expected));
        let text = "7f0000001000-7f0000003000 r-xp 00001000 fd:00 131 /usr/bin/skiff";
        let expected = Program { start: 0x7f00_0000_1000, length: 0x2000, text: true };
        assert_eq!(program(text), Some(expected));
        for kept in [
            "7f0000003000-7f0000004000 r--p 00003000 fd:00 131 /usr/bin/skiff",
            "7f0000004000-7f0000005000 rw-p 00004000 fd:00 131 /usr/bin/skiff",
            "7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]",
            "7f0000006000-7f0000007000 r-xp 00000000 00:00 0",
            "nonsense",
            "",
        ] {
            assert_eq!(program(kept), None, "{kept}");
        }
    }

    #[test]
    fn the_process_goes_on_after_giving_back() {
        let kept: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        let programs = programs();
        let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap_or_default().lines().count();
        let before = mappings();
        programs.iter().filter(|program| program.text).for_each(map_finely);
        assert!(mappings() > before, "text is mapped in pieces");
        give_back(&programs);
        let workers = runtime().build().unwrap();
        let lengths: usize = workers.block_on(async {
            let tasks = kept.chunks(100).map(|part| part.to_vec());
            let tasks = tasks.map(|part| tokio::spawn(async move { part.iter().map(String::len).sum::<usize>() }));
            futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum()
        });
        assert_eq!(lengths, 2890);
        assert!(processor_time() > Duration::ZERO);
    }
}
