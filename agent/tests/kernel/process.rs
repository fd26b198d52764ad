//! Process life on the running kernel: exact paths, arguments, parents and ends.
#![expect(
    unsafe_code,
    reason = "what a child does between fork and exec is up to who starts it"
)]

use std::{
    ffi::OsString,
    fs::{self, File},
    os::{
        fd::FromRawFd,
        unix::{ffi::OsStringExt, fs::PermissionsExt, process::CommandExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::bench::{self, Bench, Seen};
use sumun_abi::{
    event::process::{EXE_INTERPRETED, EXE_SECURE, Exec},
    record::{ARGS_MAX, FLAW_TRUNCATED, SOURCE_COPY, SOURCE_OBJECT},
};
use sumun_agent::receive::record::Body;

#[test]
fn exec_names_the_file_and_every_argument() {
    let Some(mut bench) = bench::take("exec") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("a program");
    std::fs::copy("/bin/true", &program).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&program, &link).unwrap();
    let odd = OsString::from_vec(vec![b'x', 0xff, b'\n', b'\\']);
    let mut child = Command::new(&link)
        .arg0("another name")
        .args(["", "two words"])
        .arg(&odd)
        .current_dir(dir.path())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.wait().unwrap();

    let seen = bench.until("exec and exit", |seen| {
        seen.iter()
            .any(|r| matches!(r.body, Body::Exit(exit) if exit.actor.pid == pid))
    });
    let execs: Vec<_> = seen
        .iter()
        .filter_map(|r| match r.body {
            Body::Exec(exec) if exec.actor.pid == pid => Some((r, exec)),
            _ => None,
        })
        .collect();
    let [(record, exec)] = execs[..] else {
        panic!("{} execs", execs.len())
    };
    assert_eq!(record.text(exec.exe), program.to_str().unwrap());
    assert_eq!((exec.exe.source, exec.exe.flaws), (SOURCE_OBJECT, 0));
    assert_eq!(record.text(exec.cwd), dir.path().to_str().unwrap());
    let start = usize::from(exec.args.offset);
    let arguments = &record.bytes[start..start + usize::from(exec.args.len)];
    assert_eq!(arguments, b"another name\0\0two words\0x\xff\n\\\0");
    assert_eq!((exec.args.source, exec.args.flaws), (SOURCE_COPY, 0));
    assert_eq!(exec.args_total, arguments.len() as u64);
    assert_eq!(exec.parent_pid, std::process::id());
    assert_eq!((exec.actor.uid, exec.actor.euid), (0, 0));
    assert_ne!(exec.actor.cap_effective, 0);
    assert_ne!(exec.actor.cgroup_id, 0);
    let meta = std::fs::metadata(&program).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((exec.exe_ino, exec.exe_nlink), (meta.ino(), 1));
    let own = |name: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let text = link.to_str().unwrap().to_owned();
        text[text.find('[').unwrap() + 1..text.len() - 1]
            .parse::<u32>()
            .unwrap()
    };
    assert_eq!(
        (
            exec.ns.mnt,
            exec.ns.pid,
            exec.ns.net,
            exec.ns.user,
            exec.ns.uts,
            exec.ns.ipc,
            exec.ns.cgroup
        ),
        (
            own("mnt"),
            own("pid"),
            own("net"),
            own("user"),
            own("uts"),
            own("ipc"),
            own("cgroup")
        )
    );
    let forks: Vec<_> = seen
        .iter()
        .filter_map(|r| match r.body {
            Body::Fork(fork) if fork.child.pid == pid => Some(fork),
            _ => None,
        })
        .collect();
    let [fork] = forks[..] else {
        panic!("{} forks", forks.len())
    };
    assert_eq!(fork.actor.pid, std::process::id());
    assert_eq!(fork.child.start_ns, exec.actor.start_ns);
    assert_ne!(fork.child.image, exec.actor.image);
    assert_eq!(exec.parent_start_ns, fork.actor.start_ns);
}

#[test]
fn long_arguments_are_cut_and_marked() {
    let Some(mut bench) = bench::take("args") else {
        return;
    };
    let long = "y".repeat(100_000);
    let mut child = Command::new("/bin/true").arg(&long).spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let seen = bench.until("the exec", |seen| {
        seen.iter()
            .any(|r| matches!(r.body, Body::Exec(exec) if exec.actor.pid == pid))
    });
    for record in &seen {
        if let Body::Exec(exec) = record.body
            && exec.actor.pid == pid
        {
            assert_eq!(usize::from(exec.args.len), ARGS_MAX);
            assert_eq!(exec.args.flaws, FLAW_TRUNCATED);
            assert_eq!(exec.args_total, 100_000 + 1 + "/bin/true".len() as u64 + 1);
            let wanted = format!("/bin/true\0{long}");
            assert_eq!(record.text(exec.args), wanted[..ARGS_MAX]);
        }
    }
}

/// The one exec of a child, which has been waited for.
fn exec_of(bench: &mut Bench, pid: u32) -> (Seen, Exec) {
    let seen = bench.until("the exit", |seen| {
        seen.iter()
            .any(|r| matches!(r.body, Body::Exit(exit) if exit.actor.pid == pid))
    });
    let mut execs: Vec<_> = seen
        .into_iter()
        .filter_map(|record| match record.body {
            Body::Exec(exec) if exec.actor.pid == pid => Some((record, exec)),
            _ => None,
        })
        .collect();
    assert_eq!(execs.len(), 1, "{execs:?}");
    execs.remove(0)
}

/// An executable file with this text.
fn write_script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_script_is_its_interpreter_with_the_script_as_argument() {
    let Some(mut bench) = bench::take("script") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let (script, second) = (dir.join("script"), dir.join("second"));
    write_script(&script, "#!/bin/sh -e\nexit 3\n");
    // One that another script runs.
    write_script(&second, &format!("#!{}\n", script.display()));
    let shell = fs::canonicalize("/bin/sh").unwrap();
    // By its whole name; by one that is relative to where the child is; by a link.
    std::os::unix::fs::symlink(&script, dir.join("link")).unwrap();
    let (whole, link) = (script.display().to_string(), dir.join("link"));
    let link = link.display().to_string();
    let second = second.display().to_string();
    for (given, args) in [
        (whole.as_str(), format!("/bin/sh\0-e\0{whole}\0")),
        ("./script", "/bin/sh\0-e\0./script\0".to_owned()),
        (&link, format!("/bin/sh\0-e\0{link}\0")),
        (&second, format!("/bin/sh\0-e\0{whole}\0{second}\0")),
    ] {
        let mut child = Command::new(given).current_dir(&dir).spawn().unwrap();
        let pid = child.id();
        assert_eq!(child.wait().unwrap().code(), Some(3));
        let (record, exec) = exec_of(&mut bench, pid);
        assert_eq!(record.text(exec.exe), shell.to_str().unwrap());
        assert_eq!(exec.exe_flags & EXE_INTERPRETED, EXE_INTERPRETED);
        assert_eq!(record.text(exec.script), given);
        assert_eq!((exec.script.source, exec.script.flaws), (SOURCE_COPY, 0));
        assert_eq!(record.text(exec.cwd), dir.to_str().unwrap());
        assert_eq!(record.text(exec.args), args);
    }
    // What is no script has none.
    let mut child = Command::new("/bin/true").spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let (record, exec) = exec_of(&mut bench, pid);
    assert_eq!(exec.exe_flags & (EXE_INTERPRETED | EXE_SECURE), 0);
    assert_eq!(record.text(exec.script), "");
}

/// A kind of file that the kernel lets /bin/cat run, until it is dropped.
struct Format(PathBuf);

impl Format {
    /// `None` where the kernel does not know binfmt_misc.
    fn register(place: &Path, extension: &str) -> Option<Self> {
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        if let Err(errno) =
            nix::mount::mount(Some("sumun"), place, Some("binfmt_misc"), flags, none)
        {
            eprintln!("SKIPPED binfmt_misc: {errno}");
            return None;
        }
        let format = Format(place.to_owned());
        let line = format!(":{extension}:E::{extension}::/bin/cat:");
        fs::write(place.join("register"), line).unwrap();
        Some(format)
    }
}

impl Drop for Format {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("sumun") {
                let _ = fs::write(entry.path(), "-1");
            }
        }
        let _ = nix::mount::umount(&self.0);
    }
}

#[test]
fn what_binfmt_runs_is_told_like_a_script() {
    let Some(mut bench) = bench::take("binfmt") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let place = dir.join("formats");
    fs::create_dir(&place).unwrap();
    let extension = format!("sumun{}", std::process::id());
    let Some(_format) = Format::register(&place, &extension) else {
        return;
    };
    let file = dir.join(format!("text.{extension}"));
    write_script(&file, "text\n");
    let mut child = Command::new(&file).stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let (record, exec) = exec_of(&mut bench, pid);
    let cat = fs::canonicalize("/bin/cat").unwrap();
    assert_eq!(record.text(exec.exe), cat.to_str().unwrap());
    assert_eq!(exec.exe_flags & EXE_INTERPRETED, EXE_INTERPRETED);
    assert_eq!(record.text(exec.script), file.to_str().unwrap());
}

#[test]
fn a_program_that_runs_as_its_owner_is_told() {
    const NOBODY: u32 = 65534;
    let Some(mut bench) = bench::take("setid") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let flags = nix::sys::statvfs::statvfs(dir.path()).unwrap().flags();
    if flags.contains(nix::sys::statvfs::FsFlags::ST_NOSUID) {
        eprintln!("SKIPPED a_program_that_runs_as_its_owner_is_told: {dir:?} is mounted nosuid");
        return;
    }
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("true");
    fs::copy("/bin/true", &program).unwrap();
    for (mode, user, secure) in [
        (0o755, NOBODY, false),
        (0o4755, NOBODY, true),
        (0o2755, NOBODY, true),
        // It is root's already.
        (0o4755, 0, false),
    ] {
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(&program);
        // SAFETY: nothing but system calls.
        unsafe {
            command.pre_exec(move || {
                for call in [libc::SYS_setresgid, libc::SYS_setresuid] {
                    if libc::syscall(call, user, user, user) != 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        assert!(child.wait().unwrap().success());
        let (_, exec) = exec_of(&mut bench, pid);
        assert_eq!(
            exec.exe_flags & EXE_SECURE != 0,
            secure,
            "{mode:o} by {user}"
        );
        let owner = if mode & 0o4000 != 0 { 0 } else { user };
        assert_eq!((exec.actor.uid, exec.actor.euid), (user, owner));
    }
}

/// A child that waits, in a session of its own with a terminal of its own; and that terminal's number.
struct OnTerminal {
    child: Child,
    number: String,
    _master: File,
}

impl OnTerminal {
    fn start() -> Option<Self> {
        // SAFETY: a new descriptor, and a buffer of the given length.
        let (master, path) = unsafe {
            let master = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
            if master < 0 {
                let why = std::io::Error::last_os_error();
                eprintln!("SKIPPED a terminal: {why}");
                return None;
            }
            let mut path = [0_u8; 64];
            assert_eq!((libc::grantpt(master), libc::unlockpt(master)), (0, 0));
            assert_eq!(libc::ptsname_r(master, path.as_mut_ptr().cast(), 64), 0);
            let end = path.iter().position(|byte| *byte == 0).unwrap();
            (
                File::from_raw_fd(master),
                String::from_utf8(path[..end].to_vec()).unwrap(),
            )
        };
        let slave = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut command = Command::new("/bin/sleep");
        command.arg("600").stdin(Stdio::from(slave));
        // SAFETY: nothing but system calls.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Some(Self {
            child: command.spawn().unwrap(),
            number: path.strip_prefix("/dev/pts/").unwrap().to_owned(),
            _master: master,
        })
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn whose_terminal_it_is_is_told() {
    let Some(mut bench) = bench::take("terminal") else {
        return;
    };
    let Some(on) = OnTerminal::start() else {
        return;
    };
    let pid = on.child.id();
    let wanted = format!("pts{}", on.number);
    let seen = bench.until("the exec", |seen| {
        seen.iter()
            .any(|r| matches!(r.body, Body::Exec(exec) if exec.actor.pid == pid))
    });
    for record in &seen {
        if let Body::Exec(exec) = record.body
            && exec.actor.pid == pid
        {
            assert_eq!(record.text(exec.tty), wanted);
            assert_eq!(exec.session, pid);
        }
    }
    // The same by the list of who runs; what has a session and no terminal has none.
    let mut alone = Command::new("/bin/sleep");
    // SAFETY: a system call.
    unsafe {
        alone.arg("600").pre_exec(|| match libc::setsid() {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut alone = alone.spawn().unwrap();
    let mut found = std::collections::HashMap::new();
    bench
        .kernel()
        .bootstrap_tasks(|bytes| {
            let record = sumun_agent::receive::record::Record::parse(bytes).unwrap();
            if let Body::Task(task) = record.body {
                let tty = String::from_utf8_lossy(record.text(task.tty)).into_owned();
                found.insert(task.actor.pid, (tty, task.session));
            }
        })
        .unwrap();
    let other = alone.id();
    alone.kill().unwrap();
    alone.wait().unwrap();
    assert_eq!(found[&pid], (wanted, pid));
    assert_eq!(found[&other], (String::new(), other));
}

#[test]
fn who_logged_in_is_told() {
    let Some(mut bench) = bench::take("login") else {
        return;
    };
    if !Path::new("/proc/self/loginuid").exists() {
        eprintln!("SKIPPED who_logged_in_is_told: this kernel keeps no login users");
        return;
    }
    let mut command = Command::new("/bin/true");
    // SAFETY: nothing but system calls.
    unsafe {
        command.pre_exec(|| {
            let path = c"/proc/self/loginuid";
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY);
            if fd < 0 || libc::write(fd, c"4711".as_ptr().cast(), 4) != 4 {
                return Err(std::io::Error::last_os_error());
            }
            libc::close(fd);
            Ok(())
        });
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIPPED who_logged_in_is_told: no login user can be set: {error}");
            return;
        }
    };
    let pid = child.id();
    child.wait().unwrap();
    let (_, exec) = exec_of(&mut bench, pid);
    assert_eq!(exec.auid, 4711);
    assert_ne!(exec.audit_session, u32::MAX);
}

#[test]
fn each_process_ends_once_and_threads_are_no_processes() {
    let Some(mut bench) = bench::take("exit") else {
        return;
    };
    let mut pids = Vec::new();
    for round in 0..bench::times(200) {
        // Threads that leave together, by exit of the process and by a signal.
        let script = if round % 2 == 0 {
            "exit 7"
        } else {
            "kill -9 $$"
        };
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .spawn()
            .unwrap();
        pids.push((child.id(), child.wait().unwrap().into_raw() as u32));
    }
    let threads: Vec<_> = (0..50).map(|_| std::thread::spawn(|| {})).collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let seen = bench.settle();
    for (pid, status) in pids {
        let codes: Vec<u32> = seen
            .iter()
            .filter_map(|r| match r.body {
                Body::Exit(exit) if exit.actor.pid == pid => Some(exit.code),
                _ => None,
            })
            .collect();
        assert_eq!(codes, [status], "of pid {pid}");
    }
    let own = std::process::id();
    assert!(
        !seen
            .iter()
            .any(|r| matches!(r.body, Body::Fork(fork) if fork.child.pid == own))
    );
    assert!(
        !seen
            .iter()
            .any(|r| matches!(r.body, Body::Exit(exit) if exit.actor.pid == own))
    );
}

#[test]
fn the_iterator_finds_every_process_that_runs() {
    let Some(mut bench) = bench::take("tasks") else {
        return;
    };
    let mut children: Vec<_> = (0..300)
        .map(|n| {
            Command::new("/bin/sleep")
                .arg(format!("{}", 1000 + n))
                .spawn()
                .unwrap()
        })
        .collect();
    let mut found = std::collections::HashMap::new();
    let count = bench
        .kernel()
        .bootstrap_tasks(|bytes| {
            let record = sumun_agent::receive::record::Record::parse(bytes).unwrap();
            let Body::Task(task) = record.body else {
                panic!("not a task")
            };
            let text = |span| String::from_utf8_lossy(record.text(span)).into_owned();
            let old = found.insert(task.actor.pid, (task, text(task.exe), text(task.args)));
            assert!(old.is_none(), "pid {} twice", task.actor.pid);
        })
        .unwrap();
    let pids: Vec<u32> = children.iter().map(std::process::Child::id).collect();
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(count as usize, found.len());
    let sleep = std::fs::canonicalize("/bin/sleep").unwrap();
    let own = &found[&std::process::id()];
    assert_eq!(own.1, std::env::current_exe().unwrap().to_str().unwrap());
    for (n, pid) in pids.iter().enumerate() {
        let (task, exe, args) = &found[pid];
        assert_eq!(exe, sleep.to_str().unwrap());
        assert_eq!(*args, format!("/bin/sleep\0{}\0", 1000 + n));
        assert_eq!(task.parent_pid, std::process::id());
        assert_eq!(task.parent_start_ns, own.0.actor.start_ns);
    }
    assert!(
        found.contains_key(&1),
        "pid 1 is missing among {:?}",
        found.keys()
    );
}
