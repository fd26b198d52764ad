//! What the host says of itself.

use std::fs;
use std::path::Path;

use sumun_proto::text;
use sumun_proto::v1::System;

/// Longest line that is taken.
const LINE_MAX: usize = 256;

/// Where the host's files are: of an agent in a pod that sees the host's processes, where the first of them has its root.
#[must_use]
pub fn root() -> &'static Path {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
    match (namespace("self"), namespace("1")) {
        (Some(own), Some(first)) if own != first => Path::new("/proc/1/root"),
        _ => Path::new("/"),
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
