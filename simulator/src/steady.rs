//! One source of chance for a whole process: what asks the system for random bytes gets a fixed stream instead, so that
//! hash maps, back-off and the branches of `select!` fall out alike in every run. Linked into simulations alone (decision
//! 0036), where it stands before the C library's function of that name.
#![allow(unsafe_code)]

use std::cell::Cell;

use rustix::process::Pid;

thread_local! {
    static STREAM: Cell<u64> = const { Cell::new(0) };
}

/// The next bytes of this thread's stream.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if !buffer.is_null() {
        // SAFETY: the caller of getrandom(2) hands over `length` bytes that may be written; any byte is a valid u8.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<std::mem::MaybeUninit<u8>>(), length) };
        for byte in bytes {
            STREAM.set(crate::dice::step(STREAM.get()));
            byte.write(STREAM.get().to_le_bytes()[3]);
        }
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// From here on this thread draws from the beginning of a stream, whatever was drawn before.
pub fn begin(seed: u64) {
    STREAM.set(seed);
}

unsafe extern "C" {
    fn fork() -> i32;
}

/// Does something in a copy of this process, which ends with the code that comes of it. Everything that was made ready before,
/// such as validators, is ready in the copy; and each copy begins in the same state.
///
/// # Errors
/// Where no copy can be made.
pub fn apart(act: impl FnOnce() -> u8) -> std::io::Result<Pid> {
    // SAFETY: the process has one thread (see `main.rs`), so that no lock is held by a thread that the copy does not have.
    match unsafe { fork() } {
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or(101);
            std::process::exit(i32::from(code));
        }
        copy => Pid::from_raw(copy.max(0)).ok_or_else(std::io::Error::last_os_error),
    }
}
