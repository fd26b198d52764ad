//! What the host says of itself.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use sumun_proto::text;
use sumun_proto::v1::System;

/// Longest line that is taken.
const LINE_MAX: usize = 256;

/// Where the host's files are, as an agent in a pod has to ask: it has a mount namespace of its own.
#[derive(Debug)]
pub enum Files {
    /// Where the agent is.
    Here,
    /// In the mount namespace of this file of `/proc`.
    There(&'static Path),
    /// Nobody tells.
    Unknown(io::Error),
}

/// Looks at the mount namespace of the first process, or, where that is closed to others, of the kernel's threads, which is the one that
/// the first process was started in.
#[must_use]
pub fn files() -> Files {
    let namespace = |path: &'static str| {
        let (own, other) = (fs::read_link("/proc/self/ns/mnt")?, fs::read_link(path)?);
        Ok(match own == other {
            true => Files::Here,
            false => Files::There(Path::new(path)),
        })
    };
    namespace("/proc/1/ns/mnt").unwrap_or_else(|error| {
        // In a namespace of processes of its own a pod has others there.
        let kernel = fs::read_to_string("/proc/2/comm").is_ok_and(|name| name == "kthreadd\n");
        match kernel.then(|| namespace("/proc/2/ns/mnt")) {
            Some(Ok(files)) => files,
            _ => Files::Unknown(error),
        }
    })
}

/// Takes this thread to where the host's files are: of an agent in a pod, paths mean to it from then on what they mean to the host.
///
/// # Errors
/// It cannot, and what it would need.
pub fn go_to_files() -> Result<(), String> {
    let place = match files() {
        Files::Here => return Ok(()),
        Files::There(place) => place,
        Files::Unknown(error) => {
            return Err(format!(
                "it is not known whether the files here are the host's (/proc/1/ns/mnt: {error}); it needs CAP_SYS_PTRACE"
            ));
        }
    };
    let why = |error: String| {
        let place = place.display();
        format!("cannot go to where the host's files are ({place}): {error}")
    };
    let namespace = fs::File::open(place).map_err(|error| why(error.to_string()))?;
    // The working directory is the process's, and a thread that changes its mounts has to have one of its own.
    unshare(CloneFlags::CLONE_FS)
        .and_then(|()| setns(namespace, CloneFlags::CLONE_NEWNS))
        .map_err(|errno| {
            why(format!(
                "{errno}; it needs CAP_SYS_ADMIN and CAP_SYS_CHROOT"
            ))
        })
}

/// Number of the mount namespace where the host's files are; `None` if nobody tells.
#[must_use]
pub fn mounts() -> Option<u32> {
    let place = match files() {
        Files::Here => Path::new("/proc/self/ns/mnt"),
        Files::There(place) => place,
        Files::Unknown(_) => return None,
    };
    u32::try_from(fs::metadata(place).ok()?.ino()).ok()
}

/// From where the host's own files are read; of an agent in a pod that may not look there, nothing is: they are not the image's.
#[must_use]
pub fn root() -> &'static Path {
    match files() {
        Files::There(_) => Path::new("/proc/1/root"),
        Files::Here | Files::Unknown(_) => Path::new("/"),
    }
}

/// Reads it once: it changes with an upgrade of the system at most.
#[must_use]
pub fn system(kernel: &str) -> System {
    let release = fs::read_to_string(root().join("etc/os-release"))
        .or_else(|_| fs::read_to_string(root().join("usr/lib/os-release")))
        .unwrap_or_default();
    let machine_id = fs::read_to_string(root().join("etc/machine-id")).unwrap_or_default();
    System {
        kernel: kernel.to_owned(),
        machine_id: line(machine_id.trim()),
        ..released(&release)
    }
}

/// `os-release`: lines of NAME=VALUE, the value in quotes where it has blanks.
fn released(text: &str) -> System {
    let of = |name: &str| {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default();
        line(value.trim_matches(['"', '\'']))
    };
    let (id, version) = (of("ID"), of("VERSION_ID"));
    System {
        os: of("PRETTY_NAME"),
        os_id: match version.is_empty() {
            true => id,
            false => format!("{id}:{version}"),
        },
        ..System::default()
    }
}

fn line(value: &str) -> String {
    let short: String = value.chars().take(LINE_MAX).collect();
    text::from_bytes(short.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_with_and_without_quotes() {
        let told = released("NAME=x\nPRETTY_NAME=\"Debian 12 (x)\"\nID=debian\nVERSION_ID='12'\n");
        assert_eq!(
            (told.os.as_str(), told.os_id.as_str()),
            ("Debian 12 (x)", "debian:12")
        );
        assert_eq!(released("ID=arch\n").os_id, "arch");
        assert_eq!(released(""), System::default());
    }
}
