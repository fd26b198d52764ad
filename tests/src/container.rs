//! Containers by the runtimes that are there: bundles for runc, and cgroups that are made by hand.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::elf;

/// Where the hierarchy is mounted that names processes' cgroups: of the pids controller, else the unified one.
#[must_use]
pub fn hierarchy() -> PathBuf {
    let pids = Path::new("/sys/fs/cgroup/pids");
    if pids.join("cgroup.procs").exists() {
        pids.into()
    } else {
        "/sys/fs/cgroup".into()
    }
}

/// Where all hierarchies are mounted.
fn hierarchies() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    if top.join("cgroup.procs").exists() {
        return vec![top.into()];
    }
    let found = fs::read_dir(top).into_iter().flatten().flatten();
    let found = found.map(|entry| entry.path());
    found
        .filter(|path| path.join("cgroup.procs").exists())
        .collect()
}

/// Whether a program is installed.
#[must_use]
pub fn has(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is installed.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Those of the capabilities (without `CAP_`) that this host lets anybody have; the others are told, and left out: no runtime can give them.
///
/// # Panics
/// One of them is not known here.
#[must_use]
pub fn capabilities(names: Vec<String>) -> Vec<String> {
    // include/uapi/linux/capability.h
    const NUMBERS: [(&str, u32); 12] = [
        ("DAC_OVERRIDE", 1),
        ("DAC_READ_SEARCH", 2),
        ("KILL", 5),
        ("NET_ADMIN", 12),
        ("SYS_CHROOT", 18),
        ("SYS_PTRACE", 19),
        ("SYS_ADMIN", 21),
        ("SYS_RESOURCE", 24),
        ("SYSLOG", 34),
        ("PERFMON", 38),
        ("BPF", 39),
        ("CHECKPOINT_RESTORE", 40),
    ];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bounds = bounds.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let bounds = bounds.expect("/proc/self/status tells the bounds");
    let has = |name: &String| {
        let number = NUMBERS.iter().find(|(known, _)| known == name);
        let (_, number) = number.unwrap_or_else(|| panic!("CAP_{name} is not known here"));
        bounds & (1 << number) != 0
    };
    let (there, lacking): (Vec<_>, Vec<_>) = names.into_iter().partition(has);
    if !lacking.is_empty() {
        println!("left out, because this host gives it to nobody: {lacking:?}");
    }
    there
}

/// An id as runtimes draw them, but told by its number: 64 hexadecimal digits.
#[must_use]
pub fn id(number: u64) -> String {
    let mut id = String::new();
    for part in 0..4_u64 {
        let word = number
            .wrapping_add(part)
            .wrapping_add(u64::from(std::process::id()) << 32)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Writing to a string cannot fail.
        let _ = write!(id, "{word:016x}");
    }
    id
}

/// A pod's uid, told by its number.
#[must_use]
pub fn pod_uid(number: u64) -> String {
    let id = id(number ^ 0xffff_0000);
    let groups = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    groups.map(|(from, to)| &id[from..to]).join("-")
}

/// A root file system with nothing but programs that end at once.
#[derive(Debug)]
pub struct Rootfs {
    path: PathBuf,
}

impl Rootfs {
    /// Makes it in a folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn make(folder: &Path) -> Result<Self> {
        let path = folder.join("rootfs");
        for name in ["proc", "dev"] {
            fs::create_dir_all(path.join(name))?;
        }
        elf::write(&path.join("program"))?;
        Ok(Self { path })
    }

    /// Adds a program of this name.
    ///
    /// # Errors
    /// There is one.
    pub fn program(&self, name: &str) -> Result<()> {
        fs::hard_link(self.path.join("program"), self.path.join(name))
            .with_context(|| format!("add the program {name}"))
    }

    /// Adds a shell, `/bin/busybox`.
    ///
    /// # Errors
    /// There is no busybox on this host.
    pub fn shell(&self) -> Result<()> {
        let busybox = find("busybox").context("find busybox")?;
        fs::create_dir_all(self.path.join("bin"))?;
        fs::copy(busybox, self.path.join("bin/busybox"))?;
        Ok(())
    }

    /// Runs a program in a container of runc until it ends.
    ///
    /// # Errors
    /// runc cannot be started.
    pub fn run(&self, bundle: &Path, id: &str, cgroup: &str, program: &str) -> Result<Output> {
        // The status tells whether it ran: runc's own is 1 when something else failed.
        let args = [&format!("/{program}"), "has", "run"];
        runc(&self.path, bundle, id, cgroup, &args)
    }

    /// Packs it as a tar beside it.
    ///
    /// # Errors
    /// `tar` fails.
    pub fn tar(&self) -> Result<PathBuf> {
        let tar = self.path.with_file_name("image.tar");
        let made = Command::new("tar")
            .arg("-C")
            .arg(&self.path)
            .arg("-cf")
            .arg(&tar)
            .arg(".")
            .status()?;
        ensure!(made.success(), "tar ended with {made}");
        Ok(tar)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Runs a command in a container of runc on this root until it ends. Nothing can be written there but `/volume`, a tmpfs, if
/// the root has such a folder: then everything can, and it may call chroot.
///
/// # Errors
/// runc cannot be started.
pub fn runc(root: &Path, bundle: &Path, id: &str, cgroup: &str, args: &[&str]) -> Result<Output> {
    fs::create_dir_all(bundle)?;
    let namespaces: Vec<_> = ["pid", "mount", "ipc", "uts"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let mut mounts = vec![json!({ "destination": "/proc", "type": "proc", "source": "proc" })];
    let volume = root.join("volume").is_dir();
    if volume {
        mounts.push(json!({ "destination": "/volume", "type": "tmpfs", "source": "tmpfs" }));
    }
    let rights = match volume {
        true => capabilities(vec!["SYS_CHROOT".to_owned()]),
        false => Vec::new(),
    };
    let rights: Vec<_> = rights.iter().map(|name| format!("CAP_{name}")).collect();
    let rights = json!({ "bounding": rights, "permitted": rights, "effective": rights });
    let config = json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": args, "cwd": "/", "capabilities": rights },
        "root": { "path": root, "readonly": !volume },
        "mounts": mounts,
        "linux": { "namespaces": namespaces, "cgroupsPath": cgroup },
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    Command::new("runc")
        .arg("--root")
        .arg(bundle.join("state"))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg(id)
        .stdin(Stdio::null())
        .output()
        .context("start runc")
}

/// A cgroup that is removed when it is dropped.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes it with those above it; the path begins with a slash.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(path: &str) -> Result<Self> {
        let path = hierarchy().join(path.trim_start_matches('/'));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id: the number of its inode.
    ///
    /// # Errors
    /// It is gone.
    pub fn id(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// Runs a program in it until it ends: a shell joins it and becomes the program.
    ///
    /// # Errors
    /// It cannot be started, or the shell does not get there.
    pub fn run(&self, program: &Path) -> Result<()> {
        let script = r#"echo $$ > "$1/cgroup.procs" && exec "$2""#;
        let output = Command::new("/bin/sh")
            .args(["-c", script, "sh"])
            .arg(&self.path)
            .arg(program)
            .output()?;
        // The program ends with the number of its arguments.
        ensure!(
            output.status.code() == Some(1),
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Ok(below) = self.path.strip_prefix(hierarchy()) {
            remove(below);
        }
    }
}

/// Removes a cgroup and those above it, as far as nobody is in them: where a runtime has made it in every hierarchy, it leaves those above it
/// in every one.
pub fn remove(below: &Path) {
    for top in hierarchies() {
        let mut path = below;
        while !path.as_os_str().is_empty() {
            match fs::remove_dir(top.join(path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => break,
                _ => path = path.parent().unwrap_or(Path::new("")),
            }
        }
    }
}
