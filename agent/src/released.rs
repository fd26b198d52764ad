//! Who let go of the host. `sumun-agent release` ends what is enforced, so who ran it is noted, in the state directory and in the
//! system's log, before it is done; the next agent tells it with the gap that this leaves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use sumun_policy::time::written;

use crate::pipeline::policies::wall_ns;

/// Where syslog and journald take messages.
const LOG: &str = "/dev/log";
/// `LOG_AUTHPRIV | LOG_NOTICE` (RFC 5424, 6.2.1).
const PRIORITY: u32 = 10 << 3 | 5;
/// `/proc/self/loginuid` of who logged in to nothing.
const NO_LOGIN: &str = "4294967295";
/// Longest file that is added to: what is beyond is in the system's log alone.
const NOTE_MAX: u64 = 16 * 1024;

/// What was noted, until the next agent has told it.
#[derive(Debug)]
pub struct Note(PathBuf);

impl Note {
    /// The note of a state directory.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Note(state.join("released"))
    }

    /// Notes that this process lets go of the host. How long the note was before, for [`Self::take_back`].
    ///
    /// # Errors
    /// It cannot be written, or not be made durable.
    pub fn add(&self) -> io::Result<u64> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0)?;
        let len = file.metadata()?.len();
        if len < NOTE_MAX {
            writeln!(file, "{} by {}", written(wall_ns()), who())?;
            file.sync_all()?;
        }
        if len == 0
            && let Some(folder) = self.0.parent()
        {
            File::open(folder)?.sync_all()?;
        }
        Ok(len)
    }

    /// It did not come to that.
    ///
    /// # Errors
    /// The note cannot be changed.
    pub fn take_back(&self, len: u64) -> io::Result<()> {
        OpenOptions::new().write(true).open(&self.0)?.set_len(len)
    }

    /// What was noted since an agent last told it: times and who.
    #[must_use]
    pub fn read(&self) -> Option<String> {
        let text = fs::read_to_string(&self.0).ok()?;
        let lines: Vec<_> = text.lines().collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    /// It has been told.
    pub fn forget(&self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "{} cannot be removed: the next agent tells once more who released the host",
                self.0.display()
            );
        }
    }
}

/// Says in the system's log what somebody does about the agent; where there is none, nobody is told.
pub fn log(what: &str) {
    let message = format!(
        "<{PRIORITY}>sumun-agent[{}]: {what} by {}",
        std::process::id(),
        who()
    );
    // A full log is not to hold up whoever lets go of a host.
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(message.as_bytes(), LOG)
    });
    if let Err(error) = sent {
        tracing::debug!(
            error = format!("{error:#}"),
            "the system's log takes nothing"
        );
    }
}

/// Who this process is of: the kernel's word, but for the name of the program that started it.
fn who() -> String {
    let login = fs::read_to_string("/proc/self/loginuid").unwrap_or_default();
    let login = match login.trim() {
        "" | NO_LOGIN => "no login".to_owned(),
        uid => format!("login uid {uid}"),
    };
    let parent = std::os::unix::process::parent_id();
    let program = fs::read_link(format!("/proc/{parent}/exe"));
    let program = program.map_or_else(
        |_| "a program that cannot be seen".to_owned(),
        |path| path.display().to_string(),
    );
    format!(
        "uid {}, {login}, started by {program} (pid {parent})",
        nix::unistd::getuid()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_read_until_it_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder of ours");
        let note = Note::of(folder.path());
        assert_eq!(note.read(), None);
        note.forget();
        assert_eq!(note.add().expect("a note"), 0);
        note.add().expect("a note");
        let len = note.add().expect("a note");
        note.take_back(len).expect("a shorter note");
        let told = Note::of(folder.path()).read().expect("a note");
        let uid = format!("uid {}", nix::unistd::getuid());
        assert_eq!(told.matches(&uid).count(), 2, "{told}");
        assert!(
            told.contains(&std::os::unix::process::parent_id().to_string()),
            "{told}"
        );
        note.forget();
        assert_eq!(note.read(), None);
    }

    #[test]
    fn a_note_has_an_end() {
        let folder = tempfile::tempdir().expect("a folder of ours");
        let note = Note::of(folder.path());
        for _ in 0..1000 {
            note.add().expect("a note");
        }
        let len = fs::metadata(folder.path().join("released"))
            .expect("a note")
            .len();
        assert!(len < NOTE_MAX + 1024, "{len}");
    }
}
