//! What no policy may kill: without it the host or whoever tends it is lost.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;

use crate::enrich::host::{self, Files};
use crate::enrich::workload::path::{Kind, classify};
use crate::kernel::known::{Known, known};
use crate::kernel::stat::Stat;

/// Descriptors of a process that are looked at.
const DESCRIPTORS_MAX: usize = 4096;
/// Bytes of a table of sockets that are read: listening ones stand first.
const TABLE_MAX: u64 = 16 * 1024 * 1024;
/// State of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";
const SSHD: &[u8] = b"sshd";
/// What sshd hands a login to, from OpenSSH 9.8 and 10.0 on.
const SESSIONS: [&[u8]; 2] = [b"sshd-session", b"sshd-auth"];
/// What runs the host or its containers. The kernel side has the same list (`agent-ebpf/src/policy/guard.rs`).
const SERVICES: [&[u8]; 18] = [
    b"systemd-logind",
    b"systemd-journald",
    b"systemd-udevd",
    // Newer versions' systemd-udevd is a link to it.
    b"udevadm",
    b"kubelet",
    b"k3s",
    b"kubelite",
    b"containerd",
    b"containerd-shim",
    b"containerd-shim-runc-v1",
    b"containerd-shim-runc-v2",
    b"dockerd",
    b"crio",
    b"conmon",
    b"conmonrs",
    b"podman",
    b"runc",
    b"crun",
];
/// Bytes of `/proc/PID/cgroup` that are read: a path has a page at most, and there are a dozen hierarchies.
const CGROUPS_MAX: u64 = 64 * 1024;
/// From a process of a login to root's process that it was forked by, at most.
const FORKS_MAX: usize = 4;
/// What the kernel appends to the path of a file that has no name any more, as an executable that was replaced by an update.
pub(super) const DELETED: &[u8] = b" (deleted)";

/// Why a process is not killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// The first process: the kernel panics without it.
    Init,
    /// A part of the kernel.
    KernelThread,
    /// The agent itself.
    Agent,
    /// The process that takes logins over the network.
    SshListener,
    /// What runs the host or its containers: unless the rule is forced.
    Service,
}

impl fmt::Display for Guarded {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Init => "no policy may kill the first process",
            Self::KernelThread => "no policy may kill a thread of the kernel",
            Self::Agent => "no policy may kill the agent",
            Self::SshListener => "no policy may kill the process that listens for ssh",
            Self::Service => {
                "no rule without force = true may kill what runs the host or its containers"
            }
        })
    }
}

/// How a process is to be killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// It has just executed its program: a listener does not listen yet.
    pub starting: bool,
    /// The rule means what runs the host and its containers, too.
    pub forced: bool,
}

/// Whether a process must not be killed; `stat` is its.
///
/// # Errors
/// When it cannot be told; then it is not to be killed either.
pub fn of(pid: u32, stat: Stat, how: How) -> Result<Option<Guarded>, String> {
    if pid == 1 {
        return Ok(Some(Guarded::Init));
    }
    if stat.is_kernel_thread() || pid == 0 {
        return Ok(Some(Guarded::KernelThread));
    }
    if pid == std::process::id() {
        return Ok(Some(Guarded::Agent));
    }
    let unknown = |what: &str, (path, error): (String, io::Error)| {
        format!(
            "cannot read {path}: {error}; whether it {what} is not known, so it is not \
             killed: give the agent CAP_SYS_PTRACE and the host's /proc"
        )
    };
    let listener = is_ssh_listener(pid, how.starting);
    if listener.map_err(|error| unknown("listens for ssh", error))? {
        return Ok(Some(Guarded::SshListener));
    }
    let service = !how.forced
        && is_service(pid).map_err(|error| unknown("runs the host or its containers", error))?;
    Ok(service.then_some(Guarded::Service))
}

/// Whether a call of a process must not be denied, and why: no program that lets people in may be
/// hindered, nor may the shell that it starts for them.
///
/// # Errors
/// When it cannot be told; then nothing is to be denied either.
pub fn of_call(pid: u32, stat: Stat) -> Result<Option<String>, String> {
    // Services are not asked for: it takes a walk on a file system, and whoever holds a call waits for nothing.
    let how = How {
        starting: true,
        forced: true,
    };
    if let Some(guarded) = of(pid, stat, how)? {
        return Ok(Some(
            guarded.to_string().replace("kill", "deny anything to"),
        ));
    }
    let session = is_of_host(pid, |name| SESSIONS.contains(&name));
    let session = session.map_err(|(path, error)| {
        format!("cannot read {path}: {error}; whether it lets people in is not known, so nothing is denied to it")
    })?;
    Ok(session.then(|| "no policy may deny anything to what lets people in by ssh".to_owned()))
}

/// Whether a file of this name may be sshd's.
#[must_use]
pub fn is_name_of_sshd(name: &[u8]) -> bool {
    name == SSHD || SESSIONS.contains(&name)
}

/// Whether a file of this name may be that of what runs the host or its containers.
#[must_use]
pub fn is_name_of_service(name: &[u8]) -> bool {
    SERVICES.contains(&name)
}

/// Whether this is the host's sshd, or what it hands a login to; not, if that cannot be told.
#[must_use]
pub fn is_sshd(pid: u32) -> bool {
    is_of_host(pid, is_name_of_sshd).unwrap_or(false)
}

/// The host's sshd, not any program of that name: its file is root's, it is in the agent's pid
/// namespace, which is the host's, and it is root's process or was made by one, so that a container or a user cannot put on its name.
fn is_ssh_listener(pid: u32, starting: bool) -> Result<bool, (String, io::Error)> {
    Ok(is_of_host(pid, |name| name == SSHD)? && (starting || listens(pid)?))
}

/// What runs the host or its containers: not any program of such a name, but root's, started as a service of the host. Its file is root's
/// and lies in folders into which nobody else can put anything; its root directory is that of process 1; and by its cgroups
/// it is neither of a container nor of a login's session, in which people start what they like.
fn is_service(pid: u32) -> Result<bool, (String, io::Error)> {
    // The file last: who is not root can have one of a file system that does not answer.
    if !is_named(pid, is_name_of_service)? || real_uid(pid)? != Some(0) {
        return Ok(false);
    }
    let host = host_root()?;
    let roots = [format!("/proc/{pid}/root"), format!("{host}/")];
    let [own, top] = roots.map(|path| {
        let root = known(&path);
        there(&path, root)
    });
    let same = match (own?, top?) {
        (Some(own), Some(top)) => own.id == top.id,
        _ => false,
    };
    Ok(same
        && is_of_no_session(pid)?
        && is_of_host(pid, is_name_of_service)?
        && lies_safely(pid, host)?)
}

/// What stands before the host's paths, in whatever mount namespace the agent is.
fn host_root() -> Result<&'static str, (String, io::Error)> {
    match host::files() {
        Files::Here => Ok(""),
        Files::There(_) => Ok("/proc/1/root"),
        Files::Unknown(error) => Err(("/proc/1/ns/mnt".to_owned(), error)),
    }
}

/// By its cgroups, of no container and of no session.
fn is_of_no_session(pid: u32) -> Result<bool, (String, io::Error)> {
    let path = format!("/proc/{pid}/cgroup");
    let Some(file) = there(&path, fs::File::open(&path))? else {
        return Ok(false);
    };
    let mut told = Vec::new();
    let read = file.take(CGROUPS_MAX).read_to_end(&mut told);
    there(&path, read)?;
    let told = String::from_utf8_lossy(&told);
    // `hierarchy:controllers:path`
    let mut paths = told.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    Ok(paths.all(|path| {
        !matches!(
            classify(path).kind,
            Kind::Container | Kind::Machine | Kind::Pod | Kind::Session
        )
    }))
}

/// All folders above its file are root's, and not for all to write.
fn lies_safely(pid: u32, host: &str) -> Result<bool, (String, io::Error)> {
    let exe = format!("/proc/{pid}/exe");
    let Some(path) = there(&exe, fs::read_link(&exe))? else {
        return Ok(false);
    };
    for folder in path.ancestors().skip(1) {
        let Some(folder) = folder.to_str() else {
            return Ok(false);
        };
        let folder = format!("{host}{folder}");
        let found = there(&folder, known(&folder))?;
        if found.is_none_or(|found| found.uid != 0 || found.mode & 0o002 != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A program of the host by the name of its file.
fn is_of_host(pid: u32, named: impl Fn(&[u8]) -> bool) -> Result<bool, (String, io::Error)> {
    if !is_named(pid, &named)? {
        return Ok(false);
    }
    let spaces = [
        format!("/proc/{pid}/ns/pid"),
        "/proc/self/ns/pid".to_owned(),
    ];
    let [own, host] = spaces.map(|path| {
        let space = fs::read_link(&path);
        there(&path, space)
    });
    Ok(own? == host? && is_of_root(pid)? && program(pid, named)?.is_some())
}

/// Whether the file of a process's program has such a name.
fn is_named(pid: u32, named: impl Fn(&[u8]) -> bool) -> Result<bool, (String, io::Error)> {
    let exe = format!("/proc/{pid}/exe");
    let Some(path) = there(&exe, fs::read_link(&exe))? else {
        return Ok(false);
    };
    let path = path.as_os_str().as_bytes();
    let path = path.strip_suffix(DELETED).unwrap_or(path);
    Ok(path.rsplit(|byte| *byte == b'/').next().is_some_and(named))
}

/// The file of a process's program, if it has such a name and is root's alone.
fn program(pid: u32, named: impl Fn(&[u8]) -> bool) -> Result<Option<Known>, (String, io::Error)> {
    if !is_named(pid, named)? {
        return Ok(None);
    }
    let exe = format!("/proc/{pid}/exe");
    let file = match known(&exe) {
        // A file system of somebody's own shows its files to nobody else: it is none of root's.
        Err(_) if real_uid(pid)? != Some(0) => None,
        found => there(&exe, found)?,
    };
    Ok(file.filter(|file| file.uid == 0 && file.mode & 0o022 == 0))
}

/// Whether root runs a process, or a process of sshd that root runs has made it: by an exec of its own (`sshd-auth`), or by
/// forks alone. Anybody can give a file of root's any name, by a mount in a user namespace of their own or by a link, and
/// can run sshd itself with a library of theirs.
fn is_of_root(pid: u32) -> Result<bool, (String, io::Error)> {
    let (first, mut pid) = (pid, pid);
    for _ in 0..FORKS_MAX {
        if real_uid(pid)? == Some(0) {
            return Ok(pid == first || program(pid, is_name_of_sshd)?.is_some());
        }
        let Some((own, parent)) = stat(pid)?.map(|own| (own, own.parent())) else {
            return Ok(false);
        };
        let Some(above) = stat(parent)? else {
            return Ok(false);
        };
        if !is_named(parent, is_name_of_sshd)? {
            return Ok(false);
        }
        if !own.is_fork_of(above) {
            return Ok(real_uid(parent)? == Some(0) && program(parent, is_name_of_sshd)?.is_some());
        }
        pid = parent;
    }
    Ok(false)
}

fn stat(pid: u32) -> Result<Option<Stat>, (String, io::Error)> {
    Stat::of(pid).map_err(|error| (format!("/proc/{pid}/stat"), error))
}

/// Real user id of a process, in the agent's user namespace.
fn real_uid(pid: u32) -> Result<Option<u32>, (String, io::Error)> {
    let path = format!("/proc/{pid}/status");
    let Some(status) = there(&path, fs::read(&path))? else {
        return Ok(None);
    };
    let mut lines = status.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"Uid:"));
    Ok(line.and_then(|line| {
        let words = std::str::from_utf8(line).ok()?;
        words.split_ascii_whitespace().next()?.parse().ok()
    }))
}

/// Whether one of the sockets of a process takes TCP connections.
fn listens(pid: u32) -> Result<bool, (String, io::Error)> {
    let folder = format!("/proc/{pid}/fd");
    let Some(descriptors) = there(&folder, fs::read_dir(&folder))? else {
        return Ok(false);
    };
    let mut sockets = HashSet::new();
    for descriptor in descriptors.take(DESCRIPTORS_MAX).flatten() {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        let inode = target
            .to_str()
            .and_then(|name| name.strip_prefix("socket:[")?.strip_suffix(']'));
        sockets.extend(inode.map(str::to_owned));
    }
    if sockets.is_empty() {
        return Ok(false);
    }
    for table in ["tcp", "tcp6"] {
        let path = format!("/proc/{pid}/net/{table}");
        let Some(file) = there(&path, fs::File::open(&path))? else {
            continue;
        };
        for line in BufReader::new(file.take(TABLE_MAX)).lines() {
            let line = line.map_err(|error| (path.clone(), error))?;
            let mut fields = line.split_ascii_whitespace();
            if fields.nth(3) == Some(LISTENING)
                && fields.nth(5).is_some_and(|inode| sockets.contains(inode))
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// `None` for what is not there (any more).
fn there<T>(path: &str, read: io::Result<T>) -> Result<Option<T>, (String, io::Error)> {
    match read {
        Ok(found) => Ok(Some(found)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err((path.to_owned(), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    fn guarded(pid: u32) -> Option<Guarded> {
        let stat = Stat::of(pid).expect("stat").expect("a process");
        of(pid, stat, How::default()).expect("it can be told")
    }

    #[test]
    fn neither_the_first_process_nor_the_agent_nor_the_kernel_may_be_killed() {
        assert_eq!(guarded(1), Some(Guarded::Init));
        assert_eq!(guarded(std::process::id()), Some(Guarded::Agent));
        // kthreadd; a container does not see it.
        if Stat::of(2)
            .ok()
            .flatten()
            .is_some_and(Stat::is_kernel_thread)
        {
            assert_eq!(guarded(2), Some(Guarded::KernelThread));
        }
    }

    #[test]
    fn a_process_that_listens_is_told_from_one_that_does_not() {
        let own = std::process::id();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        assert!(listens(own).expect("its sockets"));
        // By another name it is nobody's door.
        assert!(!is_ssh_listener(own, true).expect("its name"));
        drop(listener);
        let listener = TcpListener::bind("[::1]:0");
        assert!(listener.is_err() || listens(own).expect("its sockets"));
        assert!(!listens(u32::MAX).expect("nobody"));
    }

    #[test]
    fn the_sshd_of_root_that_listens_may_not_be_killed() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: a program of root's is needed");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["sshd", "ssh-door"] {
            let program = dir.path().join(name);
            fs::copy("/bin/sleep", &program).expect("a copy");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let mut child = Command::new(&program)
                .arg("60")
                .stdin(OwnedFd::from(listener))
                .spawn()
                .expect("a child");
            let before = guarded(child.id());
            // As after an update of the package.
            fs::remove_file(&program).expect("it is there");
            let after = guarded(child.id());
            child.kill().expect("a signal");
            child.wait().expect("its end");
            let expected = (name == "sshd").then_some(Guarded::SshListener);
            assert_eq!((before, after), (expected, expected), "{name}");
        }
    }

    #[test]
    fn an_ordinary_process_may_be_killed() {
        // Also one called sshd that listens to nothing.
        let dir = tempfile::tempdir().expect("a directory");
        let sshd = dir.path().join("sshd");
        fs::copy("/bin/sleep", &sshd).expect("a copy");
        for program in [sshd.as_path(), "/bin/sleep".as_ref()] {
            let mut child = Command::new(program)
                .arg("60")
                .stdin(Stdio::null())
                .spawn()
                .expect("a child");
            let found = guarded(child.id());
            child.kill().expect("a signal");
            child.wait().expect("its end");
            assert_eq!(found, None, "{}", program.display());
        }
    }
    #[test]
    fn a_user_cannot_put_on_the_name_of_sshd() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: a program of root's is needed");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its own");
        let program = dir.path().join("sshd-session");
        fs::copy("/bin/sleep", &program).expect("a copy");
        for (uid, expected) in [(0, true), (65534, false)] {
            let mut child = Command::new(&program)
                .arg("60")
                .stdin(Stdio::null())
                .uid(uid)
                .spawn()
                .expect("a child");
            let stat = Stat::of(child.id()).expect("stat").expect("a process");
            let found = of_call(child.id(), stat);
            child.kill().expect("a signal");
            child.wait().expect("its end");
            assert_eq!(found.map(|why| why.is_some()), Ok(expected), "uid {uid}");
        }
    }

    #[test]
    fn what_runs_containers_is_spared_where_only_root_can_have_put_it() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED: a program of root's is needed");
            return;
        }
        let safe = tempfile::tempdir_in("/var/lib").expect("a directory");
        fs::set_permissions(safe.path(), fs::Permissions::from_mode(0o755)).expect("its own");
        let anywhere = tempfile::tempdir().expect("a directory");
        let told = |program: &std::path::Path, uid: u32| {
            let mut child = Command::new(program)
                .arg("60")
                .stdin(Stdio::null())
                .uid(uid)
                .spawn()
                .expect("a child");
            // As after an update of the package.
            fs::remove_file(program).expect("it is there");
            let stat = Stat::of(child.id()).expect("stat").expect("a process");
            let forced = How {
                forced: true,
                ..How::default()
            };
            let found = [How::default(), forced]
                .map(|how| of(child.id(), stat, how).expect("it can be told"));
            child.kill().expect("a signal");
            child.wait().expect("its end");
            found
        };
        for name in SERVICES {
            let name = std::str::from_utf8(name).expect("ASCII");
            let program = safe.path().join(name);
            fs::copy("/bin/sleep", &program).expect("a copy");
            assert_eq!(told(&program, 0), [Some(Guarded::Service), None], "{name}");
        }
        // By its name alone nothing is spared: where all can put files, as somebody's process, as somebody's file.
        for (place, uid, mode) in [
            (anywhere.path(), 0, 0o755),
            (safe.path(), 65534, 0o755),
            (safe.path(), 0, 0o777),
        ] {
            let program = place.join("containerd");
            fs::copy("/bin/sleep", &program).expect("a copy");
            fs::set_permissions(&program, fs::Permissions::from_mode(mode)).expect("its own");
            assert_eq!(told(&program, uid), [None, None], "{uid} {mode:o}");
        }
        let program = safe.path().join("containers");
        fs::copy("/bin/sleep", &program).expect("a copy");
        assert_eq!(told(&program, 0), [None, None]);
    }
}
