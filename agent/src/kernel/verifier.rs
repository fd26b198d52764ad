//! Giving programs to the verifier.

use aya::programs::ProgramError;
use nix::sys::signal::{SigSet, SigmaskHow};

/// How often a program is given to it, where something else than a signal comes between.
const TRIES: u32 = 20;

/// Loads a program with signals blocked for this thread: the verifier breaks off with EAGAIN while one waits for it (`do_check`,
/// kernel/bpf/verifier.c), as that of a child that has ended while another was being started. They wait for as long as it takes, or go to another thread.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn load(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let mut tries = 1;
    let done = loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES =>
            {
                tries += 1;
            }
            done => break done,
        }
    };
    if let Ok(before) = before {
        // What could be set before can be set again.
        let _ = before.thread_set_mask();
    }
    done
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_signal_is_waited_for_and_a_refusal_is_one() {
        for (errno, expected) in [(libc::EAGAIN, TRIES), (libc::EACCES, 1)] {
            let mut tries = 0;
            let refused = load(|| {
                tries += 1;
                Err(ProgramError::LoadError {
                    io_error: io::Error::from_raw_os_error(errno),
                    verifier_log: aya_obj::VerifierLog::new(String::new()),
                })
            });
            assert!(refused.is_err());
            assert_eq!(tries, expected);
        }
        let mut tries = 0;
        let loaded = load(|| {
            tries += 1;
            match tries {
                3 => Ok(()),
                _ => Err(ProgramError::LoadError {
                    io_error: io::Error::from_raw_os_error(libc::EAGAIN),
                    verifier_log: aya_obj::VerifierLog::new(String::new()),
                }),
            }
        });
        assert!(loaded.is_ok());
        assert_eq!(tries, 3);
    }
}
