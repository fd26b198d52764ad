//! The processes that were there before the hooks.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use aya::{
    Ebpf,
    programs::{Iter, links::FdLink},
};
use sumun_abi::{
    event::process::Exec,
    plain,
    record::{ARGS_MAX, FLAW_RACY, FLAW_TRUNCATED, RECORD_MAX, SOURCE_CALLER, Span},
};

use super::{Error, Kernel, chain, folder, verifier};

/// The kernel's own list of who runs, about to be read. Reading it needs nothing else of the kernel side: another thread can.
#[derive(Debug)]
pub struct Tasks(File);

impl Tasks {
    /// Calls `each` with one `TASK` record per process that runs now, without arguments. How many there were is returned.
    ///
    /// # Errors
    /// The iterator breaks off.
    pub fn each(mut self, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
        let mut buffer = vec![0; 8 * RECORD_MAX];
        let mut held = 0;
        let mut count = 0;
        loop {
            let read = self.0.read(&mut buffer[held..])?;
            if read == 0 {
                return Ok(count);
            }
            held += read;
            let mut at = 0;
            while let Some(len) = buffer[at..held].first_chunk::<4>() {
                let len = u32::from_ne_bytes(*len) as usize;
                if len < size_of::<Exec>() || at + len > held {
                    break;
                }
                each(&buffer[at..at + len]);
                count += 1;
                at += len;
            }
            buffer.copy_within(at..held, 0);
            held -= at;
        }
    }
}

impl Kernel {
    /// Calls `each` with one `TASK` record per process that runs now. To miss none
    /// attach the hooks first; one that is reported twice has the same start time.
    ///
    /// The kernel cannot read another process's arguments here, so they come
    /// from `/proc`, marked as the process's own word. How many there were is returned.
    ///
    /// # Errors
    /// The iterator is refused or breaks off.
    pub fn bootstrap_tasks(&mut self, mut each: impl FnMut(&[u8])) -> Result<u64, Error> {
        self.running()?
            .each(|record| {
                let mut record = record.to_vec();
                add_arguments(&mut record);
                each(&record);
            })
            .map_err(Error::call("read the task iterator"))
    }

    /// Who runs when it is read.
    ///
    /// # Errors
    /// The iterator is refused.
    pub fn running(&mut self) -> Result<Tasks, Error> {
        let refused = |reason: String| Error::Hook {
            hook: "tasks",
            reason,
        };
        // `attach` has loaded it, unless the kernel refused it.
        if self.tasks().map_err(refused)?.fd().is_err() {
            let btf = self.take_btf()?;
            self.load_tasks(&btf).map_err(refused)?;
        }
        let program = self.tasks().map_err(refused)?;
        let file = program
            .attach()
            .and_then(|id| program.take_link(id))
            .map_err(|error| refused(chain(&error)))?
            .into_file()
            .map_err(|error| refused(chain(&error)))?;
        Ok(Tasks(file))
    }
}

impl Kernel {
    /// Loads the iterator, once.
    pub(super) fn load_tasks(&mut self, btf: &aya::Btf) -> Result<(), String> {
        let program = self.tasks()?;
        if program.fd().is_ok() {
            return Ok(());
        }
        verifier::load(|| program.load("task", btf)).map_err(|error| chain(&error))
    }

    fn tasks(&mut self) -> Result<&mut Iter, String> {
        self.ebpf
            .program_mut("tasks")
            .ok_or("the object has no program tasks")?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| chain(&error))
    }
}

/// Loads an iterator over tasks and pins it in place of a previous agent's: each time the pin is opened, it begins.
pub(super) fn pin_iterator(
    ebpf: &mut Ebpf,
    name: &str,
    pin: &Path,
    btf: &aya::Btf,
) -> Result<(), String> {
    let program: &mut Iter = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the object has no program {name}"))?
        .try_into()
        .map_err(|error: aya::programs::ProgramError| chain(&error))?;
    if program.fd().is_err() {
        verifier::load(|| program.load("task", btf)).map_err(|error| chain(&error))?;
    }
    let link = program
        .attach()
        .and_then(|id| program.take_link(id))
        .map_err(|error| chain(&error))?;
    let link = FdLink::try_from(link).map_err(|error| chain(&error))?;
    if pin.exists() {
        std::fs::remove_file(pin)
            .map_err(|error| format!("cannot remove {}: {error}", pin.display()))?;
    }
    link.pin(pin).map_err(|error| chain(&error))?;
    Ok(())
}

/// Appends what `/proc` says about the arguments. A process that has gone
/// meanwhile keeps its record without them.
fn add_arguments(record: &mut Vec<u8>) {
    let Some(mut exec) = plain::read::<Exec>(record) else {
        return;
    };
    let Ok(file) = folder::open(exec.actor.pid, "cmdline") else {
        return;
    };
    let mut arguments = Vec::new();
    if file
        .take(ARGS_MAX as u64)
        .read_to_end(&mut arguments)
        .is_err()
        || arguments.is_empty()
    {
        return;
    }
    let mut flaws = FLAW_RACY;
    if exec.args_total > ARGS_MAX as u64 {
        flaws |= FLAW_TRUNCATED;
    }
    let (Ok(offset), Ok(len)) = (u16::try_from(record.len()), u16::try_from(arguments.len()))
    else {
        return;
    };
    if record.len() + arguments.len() > RECORD_MAX {
        return;
    }
    record.extend_from_slice(&arguments);
    exec.header.len = record.len() as u32;
    exec.args = Span {
        offset,
        len,
        source: SOURCE_CALLER,
        flaws,
        pad: 0,
    };
    record[..size_of::<Exec>()].copy_from_slice(plain::bytes(&exec));
}
