//! `sumun-agent bugreport`: one archive with what the authors ask for, and no secret of the host.
//!
//! In it: versions, [`super::diagnose`], the probe, status and metrics of the running agent, its configuration, the
//! names of its policies and the last lines of its log. Not in it: key, certificate, token, policies' text, events.
//! Every text goes through the same [`Redactor`] as arguments do, with the operator's own rules.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::config::Config;
use crate::kernel;
use crate::privacy::{Redactor, Rules};
use crate::status;

/// Bytes of one part at most; the end of what is longer is kept.
const PART_MAX: usize = 4 << 20;
/// Lines of the log.
const LINES: &str = "2000";
/// How long the metrics may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Writes the archive; only its owner may read it. A file of that name is not replaced.
///
/// # Errors
/// The file cannot be written.
pub fn write(config: &Path, out: &Path) -> io::Result<()> {
    let parts = parts(config);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    for (name, text) in &parts {
        file.write_all(&header(name, text.len(), now))?;
        file.write_all(text.as_bytes())?;
        file.write_all(&[0; 512][..text.len().next_multiple_of(512) - text.len()])?;
    }
    file.write_all(&[0; 1024])?;
    file.sync_all()
}

/// Names and texts, redacted.
fn parts(path: &Path) -> Vec<(&'static str, String)> {
    let loaded = Config::load(path);
    let rules = match &loaded {
        // What is sent to strangers is redacted even where the operator's own collector is told all.
        Ok(config) => Rules {
            on: true,
            ..config.privacy.clone()
        },
        Err(_) => Rules {
            on: true,
            ..Rules::default()
        },
    };
    let redactor = Redactor::new(rules);
    let mut parts = vec![
        ("versions.txt", versions()),
        ("doctor.txt", super::diagnose(path).to_string()),
        (
            "probe.json",
            serde_json::to_string_pretty(&kernel::probe()).unwrap_or_default(),
        ),
        ("agent.toml", read(path)),
        ("agent.log", log()),
    ];
    if let Ok(config) = &loaded {
        parts.push(("policies.txt", names(&config.policies)));
        match status::ask(&config.run) {
            Ok(answer) => {
                parts.push((
                    "metrics.txt",
                    metrics(answer["metrics"].as_str().unwrap_or_default()),
                ));
                parts.push((
                    "status.json",
                    serde_json::to_string_pretty(&answer).unwrap_or_default(),
                ));
            }
            Err(error) => parts.push(("status.json", crate::forward::connect::chain(&error))),
        }
    }
    parts
        .into_iter()
        .map(|(name, text)| (name, clean(&redactor, text)))
        .collect()
}

/// The end of a text, line by line without secrets.
fn clean(redactor: &Redactor, mut text: String) -> String {
    if text.len() > PART_MAX {
        let mut from = text.len() - PART_MAX;
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text.drain(..from);
    }
    // A key goes over lines: the whole first.
    let mut whole = vec![text];
    if let Some(told) = redactor.redact(&whole, true) {
        whole = told;
    }
    let mut out = String::with_capacity(whole[0].len());
    for line in whole[0].split_inclusive('\n') {
        match redactor.redact(&[line.to_owned()], false) {
            Some(told) => out.push_str(&told[0]),
            None => out.push_str(line),
        }
    }
    out
}

fn versions() -> String {
    let name = nix::sys::utsname::uname();
    let kernel = name.as_ref().map_or_else(ToString::to_string, |name| {
        let text = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
        format!(
            "{} {} {}",
            text(name.release()),
            text(name.version()),
            text(name.machine())
        )
    });
    format!(
        "sumun-agent {}\nkernel {kernel}\n\n{}",
        env!("CARGO_PKG_VERSION"),
        read(Path::new("/etc/os-release"))
    )
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("{}: {error}\n", path.display()))
}

fn names(folder: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let size = entry.metadata().map_or(0, |meta| meta.len());
            format!("{} {size}\n", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    names.concat()
}

fn log() -> String {
    let lines = Command::new("journalctl")
        .args([
            "--unit",
            "sumun-agent",
            "--no-pager",
            "--output",
            "short-iso",
            "--lines",
            LINES,
        ])
        .output();
    match lines {
        Ok(lines) => String::from_utf8_lossy(&lines.stdout).into_owned(),
        Err(error) => format!("journalctl: {error}; where does this host keep the agent's log?\n"),
    }
}

fn metrics(address: &str) -> String {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(PART_MAX as u64).read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().unwrap_or_else(|error| format!("metrics at {address:?}: {error}\n"))
}

/// Where the archive goes if nothing else is said.
#[must_use]
pub fn default_name() -> PathBuf {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format!("sumun-bugreport-{now}.tar").into()
}

/// A header of `ustar` (POSIX.1-1988, tar).
fn header(name: &str, len: usize, now: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put =
        |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "sumun-bugreport/");
    put(16, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{len:011o}\0"));
    put(136, &format!("{now:011o}\0"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    block[148..156].copy_from_slice(sum.as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_one_and_has_no_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("agent.toml");
        fs::write(
            &config,
            "# [collector] password = \"Zqsecret\"\n# https://me:Zqsecret@host\n",
        )
        .expect("a file");
        let out = folder.path().join("report.tar");
        write(&config, &out).expect("written");
        assert!(write(&config, &out).is_err(), "it is not replaced");
        let listed = Command::new("tar")
            .arg("-xOf")
            .arg(&out)
            .output()
            .expect("tar");
        let text = String::from_utf8_lossy(&listed.stdout);
        assert!(
            listed.status.success() && text.contains("sumun-agent ") && text.contains("[redacted]"),
            "{text}"
        );
        assert!(!text.contains("Zqsecret"), "{text}");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(&out).expect("it is there").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
}
