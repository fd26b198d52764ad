//! Calls that do no harm, made to see that a door makes them fail: with the programs attached, each is denied to
//! the thread that tries it (an exec to its child), and to no other (`CANARY`). Before that each is made without, and
//! must not fail in the same way: a failure that was there before proves nothing.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::memfd::{MFdFlags, memfd_create},
};
use sumun_proto::v1::Kind;

/// Makes the calls of a kind that a rung denies, each in every way that passes a door of its own. With `denied`, all have to
/// fail with EPERM; else none may.
pub(super) fn try_kind(kind: Kind, rung: &str, denied: bool) -> Result<(), String> {
    let tries = Tries { denied };
    match kind {
        Kind::Connect => tries.connect(rung == "cgroup"),
        Kind::Bind => tries.bind(),
        Kind::Sysctl => tries.one("reading a setting", fs::read("/proc/sys/kernel/ostype")),
        Kind::Open => {
            // Made without an open.
            let made = memfd_create("sumun-canary", MFdFlags::MFD_CLOEXEC);
            let made = made.map_err(|errno| format!("cannot make a file to try it on: {errno}"))?;
            let made = File::from(made);
            tries.one("an open", File::open(path_of(&made)))
        }
        Kind::Exec => {
            // It has no form that could be executed: without the door it fails with ENOEXEC.
            let (_file, path) = nameless("sumun-canary", b"")?;
            let mut command = Command::new(path);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            tries.one("an exec", command.spawn())
        }
        Kind::Rename => tries.in_folder(|folder| {
            fs::write(folder.join("a"), "")?;
            Ok(vec![(
                "a rename",
                fs::rename(folder.join("a"), folder.join("b")),
            )])
        }),
        Kind::Unlink => tries.in_folder(|folder| {
            fs::write(folder.join("a"), "")?;
            fs::create_dir(folder.join("d"))?;
            Ok(vec![
                ("the removal of a name", fs::remove_file(folder.join("a"))),
                ("the removal of a folder", fs::remove_dir(folder.join("d"))),
            ])
        }),
        Kind::Link => tries.in_folder(|folder| {
            fs::write(folder.join("a"), "")?;
            Ok(vec![(
                "a link",
                fs::hard_link(folder.join("a"), folder.join("b")),
            )])
        }),
        Kind::Truncate => tries.in_folder(|folder| {
            let path = folder.join("a");
            let name = CString::new(path.as_os_str().as_bytes())?;
            let file = File::create_new(&path)?;
            Ok(vec![
                (
                    "a change of length",
                    nix::unistd::truncate(name.as_c_str(), 0).map_err(Into::into),
                ),
                ("one by a descriptor", file.set_len(0)),
            ])
        }),
        Kind::Chmod => tries.in_folder(|folder| {
            let path = folder.join("a");
            fs::write(&path, "")?;
            let mode = fs::Permissions::from_mode(0o600);
            Ok(vec![(
                "a change of permissions",
                fs::set_permissions(path, mode),
            )])
        }),
        Kind::Chown => tries.in_folder(|folder| {
            let path = folder.join("a");
            fs::write(&path, "")?;
            let changed = std::os::unix::fs::chown(path, None, None);
            Ok(vec![("a change of owner", changed)])
        }),
        Kind::Mount => tries.in_folder(mounts),
        // What is no mount can be no root: without the door it fails with EINVAL or EBUSY.
        Kind::PivotRoot => tries.in_folder(|folder| {
            let turned = nix::unistd::pivot_root(folder, folder);
            Ok(vec![("another root", turned.map_err(Into::into))])
        }),
        Kind::ModuleLoad => tries.modules(),
        Kind::Ptrace => tries.reach(),
        Kind::MapWx => tries.memory(),
        _ => Err("there is nothing to try it with".to_owned()),
    }
}

/// Calls of each kind that decision points see, none of which may fail.
pub(super) fn change_names() -> Result<(), String> {
    let tries = Tries { denied: false };
    tries.in_folder(|folder| {
        let at = |name: &str| folder.join(name);
        fs::write(at("a"), "")?;
        fs::create_dir(at("d"))?;
        let name = CString::new(at("a").as_os_str().as_bytes())?;
        Ok(vec![
            (
                "a change of permissions",
                fs::set_permissions(at("a"), fs::Permissions::from_mode(0o600)),
            ),
            (
                "a change of owner",
                std::os::unix::fs::chown(at("a"), None, None),
            ),
            (
                "a change of length",
                nix::unistd::truncate(name.as_c_str(), 0).map_err(Into::into),
            ),
            ("a rename", fs::rename(at("a"), at("b"))),
            ("a link", fs::hard_link(at("b"), at("c"))),
            ("a symbolic link", std::os::unix::fs::symlink("b", at("s"))),
            ("the removal of a name", fs::remove_file(at("c"))),
            ("the removal of a folder", fs::remove_dir(at("d"))),
        ])
    })
}

/// Renames and removals in a folder of its own in this place, made by what is called with the folder when it is ready for them.
pub(super) fn names(
    place: &Path,
    ready: impl FnOnce(&Path, &dyn Fn() -> Result<(), String>) -> Result<(), String>,
) -> Result<(), String> {
    let folder =
        folder_in(place).map_err(|error| format!("cannot make a folder to try it in: {error}"))?;
    let at = |name: &str| folder.join(name);
    let calls = || -> io::Result<()> {
        fs::write(at("a"), "")?;
        fs::create_dir(at("d"))?;
        fs::rename(at("a"), at("b"))?;
        fs::remove_file(at("b"))?;
        fs::remove_dir(at("d"))
    };
    let told = ready(&folder, &|| {
        calls().map_err(|error| format!("cannot make a file to try it on: {error}"))
    });
    // What is left of it is in nobody's way.
    let _ = fs::remove_dir_all(&folder);
    told
}

/// The port of the discard protocol: nobody is there, and nothing leaves the host.
const NOBODY: u16 = 9;
/// The longest that a connect may take.
const PATIENCE: Duration = Duration::from_millis(200);

struct Tries {
    denied: bool,
}

impl Tries {
    /// What became of one call.
    fn one<T>(&self, what: &str, result: io::Result<T>) -> Result<(), String> {
        match (
            self.denied,
            result.map_err(|error| (error.raw_os_error(), error)),
        ) {
            (true, Err((Some(libc::EPERM), _))) => Ok(()),
            (true, Err((_, error))) => Err(format!(
                "attached without effect: {what} that it denies ended otherwise: {error}"
            )),
            (true, Ok(_)) => Err(format!(
                "attached without effect: {what} that it denies went on"
            )),
            (false, Err((Some(libc::EPERM | libc::EACCES), error))) => Err(format!(
                "it cannot be tried, as {what} of the agent fails without it, too: {error}"
            )),
            // Whether it comes to anything does not matter.
            (false, _) => Ok(()),
        }
    }

    fn connect(&self, datagrams: bool) -> Result<(), String> {
        let failed = |error| format!("cannot make a socket to try it on: {error}");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, NOBODY));
        // Not for long: a packet filter may let nothing come back.
        let connected = TcpStream::connect_timeout(&to, PATIENCE);
        self.one(
            "a connect over IPv4",
            connected.map(drop).or_else(is_refused),
        )?;
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        if datagrams {
            self.one("a datagram over IPv4", socket.send_to(b"", to))?;
        }
        match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
            Ok(socket) => {
                let to = (Ipv6Addr::LOCALHOST, NOBODY);
                if datagrams {
                    self.one("a datagram over IPv6", socket.send_to(b"", to))?;
                }
                self.one("a connect over IPv6", socket.connect(to))
            }
            Err(error) if is_without(&error) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    fn bind(&self) -> Result<(), String> {
        self.one(
            "a bind over IPv4",
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)),
        )?;
        match UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
            Err(error) if is_without(&error) => Ok(()),
            tried => self.one("a bind over IPv6", tried),
        }
    }

    /// Calls on names in a folder of their own.
    fn in_folder(
        &self,
        calls: impl FnOnce(&Path) -> io::Result<Vec<(&'static str, io::Result<()>)>>,
    ) -> Result<(), String> {
        let folder = folder()?;
        let tried = calls(&folder)
            .map_err(|error| format!("cannot make a file to try it on: {error}"))
            .and_then(|results| {
                results
                    .into_iter()
                    .try_for_each(|(what, result)| self.one(what, result))
            });
        // The doors deny to the thread that tries, so it may be the next one that can.
        let _ = std::thread::spawn(move || fs::remove_dir_all(folder)).join();
        tried
    }

    /// Modules that are none: without the door both fail with ENOEXEC.
    #[expect(unsafe_code, reason = "no crate has these calls")]
    fn modules(&self) -> Result<(), String> {
        let image = [0_u8; 4096];
        let (file, _path) = nameless("sumun-canary", &image)?;
        // SAFETY: a descriptor, a C string and numbers.
        let read =
            unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
        self.one("a module from a file", returned(read))?;
        // SAFETY: the image is as long as is said, the parameters are a C string.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_init_module,
                image.as_ptr(),
                image.len(),
                c"".as_ptr(),
            )
        };
        self.one("a module from memory", returned(taken))
    }

    /// A byte of a child that does nothing.
    #[expect(unsafe_code, reason = "a child that is only a child")]
    fn reach(&self) -> Result<(), String> {
        // SAFETY: the child only waits and ends: it calls nothing that is not safe after a fork of many threads.
        let child = unsafe { libc::fork() };
        match child {
            -1 => {
                return Err(format!(
                    "cannot make a process to try it on: {}",
                    io::Error::last_os_error()
                ));
            }
            0 => loop {
                // SAFETY: as above.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::pause();
                }
            },
            _ => {}
        }
        let mut byte = 0_u8;
        let local = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        let remote = libc::iovec {
            iov_base: (&raw const byte).cast_mut().cast(),
            iov_len: 1,
        };
        // SAFETY: one byte of our own to write to; the other address is looked up in the child.
        let read =
            unsafe { libc::process_vm_readv(child, &raw const local, 1, &raw const remote, 1, 0) };
        let tried = self.one(
            "a look into a child's memory",
            returned(read as libc::c_long),
        );
        // SAFETY: a child of ours, which nobody else waits for.
        unsafe {
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
        tried
    }

    #[expect(unsafe_code, reason = "memory that is given back at once")]
    fn memory(&self) -> Result<(), String> {
        const SIZE: usize = 4096;
        // As the door knows them: the agent's unit may forbid it to map what can be written and executed.
        let (plain, tried) = (libc::PROT_READ, libc::PROT_WRITE);
        let map = |protection| {
            // SAFETY: new memory that nothing else uses.
            let at = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    SIZE,
                    protection,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            match at {
                libc::MAP_FAILED => Err(io::Error::last_os_error()),
                at => Ok(at),
            }
        };
        let unmap = |at| {
            // SAFETY: what `map` has given.
            unsafe { libc::munmap(at, SIZE) };
        };
        self.one("a mapping", map(tried).map(unmap))?;
        let at = map(plain).map_err(|error| format!("cannot map memory to try it on: {error}"))?;
        // SAFETY: memory of ours.
        let changed = unsafe { libc::mprotect(at, SIZE, tried) };
        let changed = returned(libc::c_long::from(changed));
        unmap(at);
        self.one("a change of protection", changed)
    }
}

/// What a system call returned.
fn returned(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Nobody listens, which is as good as an answer.
fn is_refused(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Ok(()),
        _ => Err(error),
    }
}

/// A host without IPv6 has no such sockets.
fn is_without(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// A file without a name, and a path to it. Nobody has it open for writing: it could not be executed.
pub(super) fn nameless(name: &str, content: &[u8]) -> Result<(File, PathBuf), String> {
    let failed = |error: io::Error| format!("cannot make a file to try it on: {error}");
    let made = memfd_create(name, MFdFlags::MFD_CLOEXEC);
    let mut made = File::from(made.map_err(|errno| failed(errno.into()))?);
    made.write_all(content).map_err(failed)?;
    made.set_permissions(fs::Permissions::from_mode(0o700))
        .map_err(failed)?;
    let file = File::open(path_of(&made)).map_err(failed)?;
    drop(made);
    let path = path_of(&file);
    Ok((file, path))
}

fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// A folder of our own, wherever there is room for one.
fn folder() -> Result<PathBuf, String> {
    let mut failed = None;
    for place in [
        PathBuf::from("/run"),
        std::env::temp_dir(),
        PathBuf::from("/dev/shm"),
    ] {
        match folder_in(&place) {
            Ok(folder) => return Ok(folder),
            Err(error) => failed = Some(error),
        }
    }
    let error = failed.map_or_else(String::new, |error| error.to_string());
    Err(format!("cannot make a folder to try it in: {error}"))
}

fn folder_in(place: &Path) -> io::Result<PathBuf> {
    let folder = place.join(format!(
        ".sumun-canary-{}-{:08x}",
        std::process::id(),
        rand::random::<u32>()
    ));
    fs::create_dir(&folder).map(|()| folder)
}

/// What is prepared to be mounted and never is, set up anew.
#[expect(unsafe_code, reason = "no crate has these calls")]
fn set_up_anew() -> io::Result<io::Result<()>> {
    // include/uapi/linux/mount.h
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    const RECONFIGURE: libc::c_uint = 7;
    let made = |fd: libc::c_long| {
        returned(fd)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: a new descriptor that nobody else has.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: a C string and a number.
    let prepared = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOSE_ON_EXEC) };
    let prepared = made(prepared)?;
    let configure = |command: libc::c_uint| {
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: a descriptor and numbers; these commands take neither key nor value.
        returned(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                prepared.as_raw_fd(),
                command,
                none,
                none,
                0,
            )
        })
    };
    configure(CREATE)?;
    // SAFETY: a descriptor and numbers.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, prepared.as_raw_fd(), CLOSE_ON_EXEC, 0) };
    let _mount = made(mount)?;
    Ok(configure(RECONFIGURE))
}

/// A mount that is taken away again, a move of what is no mount, which without the door fails with EINVAL, and a change of what is
/// mounted.
#[expect(unsafe_code, reason = "no crate has this call")]
fn mounts(folder: &Path) -> io::Result<Vec<(&'static str, io::Result<()>)>> {
    let at = folder.join("at");
    fs::create_dir(&at)?;
    let mounted = mount(
        Some("none"),
        &at,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("size=4k"),
    );
    if mounted.is_ok() {
        umount2(&at, MntFlags::MNT_DETACH)?;
    }
    let (from, to) = (
        CString::new(folder.as_os_str().as_bytes())?,
        CString::new(at.as_os_str().as_bytes())?,
    );
    // SAFETY: two C strings and numbers.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            libc::AT_FDCWD,
            from.as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            0,
        )
    };
    Ok(vec![
        ("a mount", mounted.map_err(Into::into)),
        ("a mount that is moved", returned(moved)),
        ("a mount that is set up anew", set_up_anew()?),
    ])
}
