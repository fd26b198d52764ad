//! Credentials, reaching into other processes, namespaces and memory that can hold code, on the running kernel.
#![expect(
    unsafe_code,
    reason = "calls that the standard library keeps away from are what is tested"
)]

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    process::{Child, Command},
    ptr,
};

use crate::bench::{self, Seen};
use libc::{c_long, syscall};
use sumun_abi::event::{
    file::CALL_COMPAT,
    privilege::{CREDS_BEFORE_UNKNOWN, Control, Credentials, MEMORY_FILE, Memory, Reach, Spaces},
};
use sumun_agent::{kernel::syscalls, receive::record::Body};
use sumun_policy::plan::{KindPlan, Plan};
use sumun_proto::v1::Kind;

/// Runs in a thread of its own, whose credentials and namespaces end with it.
fn apart(run: impl FnOnce() + Send + 'static) {
    std::thread::spawn(run).join().unwrap();
}

/// A call that has to succeed.
macro_rules! done {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        // SAFETY: its pointers lead to what the call expects, and live as long as it.
        let result = unsafe { syscall($number $(, $argument)*) };
        assert!(result >= 0, "{}: {}", stringify!($number), std::io::Error::last_os_error());
        result
    }};
}

fn own<T>(seen: &[Seen], of: impl Fn(&Body) -> Option<(Kind, T)>) -> Vec<(Kind, T, &Seen)> {
    let pid = std::process::id();
    seen.iter()
        .filter(|record| record.actor().pid == pid)
        .filter_map(|record| of(&record.body).map(|(kind, body)| (kind, body, record)))
        .collect()
}

fn changes(seen: &[Seen]) -> Vec<(Kind, Credentials)> {
    own(seen, |body| match body {
        Body::Credentials(kind, record) => Some((*kind, *record)),
        _ => None,
    })
    .into_iter()
    .map(|(kind, record, _)| (kind, record))
    .collect()
}

fn name(number: u32, flags: u32) -> &'static str {
    syscalls::name(number, flags & CALL_COMPAT != 0).unwrap()
}

const NOBODY: u32 = 65534;

#[test]
fn credentials_are_told_before_and_after() {
    let Some(mut bench) = bench::take("credentials") else {
        return;
    };
    bench.ask(&[Kind::Setid, Kind::Capset]);
    apart(|| {
        // Nothing changes: nothing is told.
        done!(libc::SYS_setresuid, -1, 0, -1);
        done!(libc::SYS_setfsuid, 0);
        done!(libc::SYS_setresgid, -1, NOBODY, -1);
        done!(libc::SYS_setresuid, -1, NOBODY, -1);
        done!(libc::SYS_setresuid, -1, 0, -1);
        // A capability less (CAP_SYS_CHROOT, 18).
        let header = [0x2008_0522_u32, 0];
        let mut sets = [0_u32; 6];
        done!(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        sets[0] &= !(1 << 18);
        done!(libc::SYS_capset, header.as_ptr(), sets.as_ptr());
        // A group more, which no number of these is: the call is told.
        done!(libc::SYS_setgroups, 1, [NOBODY].as_ptr());
    });
    let seen = bench.settle();
    let found = changes(&seen);
    let [group, down, up, less, groups] = &found[..] else {
        panic!("{found:?}")
    };
    for (kind, record) in &found {
        let call = name(record.number, record.flags);
        match kind {
            Kind::Capset => assert_eq!(call, "capset"),
            _ => assert!(
                ["setresuid", "setresgid", "setgroups"].contains(&call),
                "{call}"
            ),
        }
        assert_eq!(record.flags & CREDS_BEFORE_UNKNOWN, 0);
        assert_eq!(record.actor.euid, record.after.euid);
    }
    assert_eq!(
        (group.0, group.1.before.egid, group.1.after.egid),
        (Kind::Setid, 0, NOBODY)
    );
    assert_eq!(group.1.after.fsgid, NOBODY);
    let (before, after) = (down.1.before, down.1.after);
    assert_eq!((before.uid, before.euid, before.suid), (0, 0, 0));
    assert_eq!((after.uid, after.euid, after.suid), (0, NOBODY, 0));
    assert_ne!(before.cap_effective, 0);
    // What no longer is root has no effective capabilities, and gets them back with root.
    assert_eq!(
        (after.cap_effective, after.cap_permitted),
        (0, before.cap_permitted)
    );
    assert_eq!((up.1.before.euid, up.1.after.euid), (NOBODY, 0));
    assert_eq!(up.1.after.cap_effective, before.cap_effective);
    assert_eq!(less.0, Kind::Capset);
    assert_eq!(
        less.1.before.cap_effective & !less.1.after.cap_effective,
        1 << 18
    );
    assert_eq!(less.1.before.cap_permitted, less.1.after.cap_permitted);
    assert_eq!(
        (groups.0, name(groups.1.number, groups.1.flags)),
        (Kind::Setid, "setgroups")
    );
    assert_eq!(groups.1.before, groups.1.after);
}

/// A process that waits; ends with the test.
struct Other(Child);

impl Other {
    fn start() -> Self {
        Other(Command::new("/bin/sleep").arg("600").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn reaches(seen: &[Seen]) -> Vec<(Kind, Reach, String)> {
    own(seen, |body| match body {
        Body::Reach(kind, record) => Some((*kind, *record)),
        _ => None,
    })
    .into_iter()
    .map(|(kind, record, whole)| (kind, record, whole.text(record.exe)))
    .collect()
}

#[test]
fn who_reaches_into_whom_is_told_by_the_kernels_object() {
    let Some(mut bench) = bench::take("reach") else {
        return;
    };
    let other = Other::start();
    let (pid, path) = (other.pid(), fs::canonicalize("/bin/sleep").unwrap());
    // What `sleep` has mapped, once it is there.
    let address = loop {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let line = maps
            .lines()
            .find(|line| line.contains(path.to_str().unwrap()));
        if let Some((start, _)) = line.and_then(|line| line.split_once('-')) {
            break usize::from_str_radix(start, 16).unwrap();
        }
        std::thread::yield_now();
    };
    bench.ask(&[
        Kind::Ptrace,
        Kind::ProcessVmReadv,
        Kind::ProcessVmWritev,
        Kind::PidfdGetfd,
    ]);
    let nobody = 4_194_303;
    apart(move || {
        let mut bytes = [0_u8; 4];
        let local = libc::iovec {
            iov_base: (&raw mut bytes).cast(),
            iov_len: 4,
        };
        let remote = libc::iovec {
            iov_base: address as *mut _,
            iov_len: 4,
        };
        done!(
            libc::SYS_process_vm_readv,
            pid,
            &raw const local,
            1,
            &raw const remote,
            1,
            0
        );
        assert_eq!(&bytes, b"\x7fELF");
        // Its own memory is nobody else's.
        let here = libc::iovec {
            iov_base: (&raw mut bytes).cast(),
            iov_len: 4,
        };
        let own = std::process::id();
        done!(
            libc::SYS_process_vm_readv,
            own,
            &raw const local,
            1,
            &raw const here,
            1,
            0
        );
        // The first page of a program cannot be written.
        // SAFETY: valid vectors.
        let written = unsafe {
            syscall(
                libc::SYS_process_vm_writev,
                pid,
                &raw const local,
                1,
                &raw const remote,
                1,
                0,
            )
        };
        assert_eq!(written, -1);
        let pidfd = done!(libc::SYS_pidfd_open, pid, 0);
        // SAFETY: new descriptors of ours.
        let _pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
        let taken = done!(libc::SYS_pidfd_getfd, pidfd, 1, 0);
        // SAFETY: as above.
        drop(unsafe { OwnedFd::from_raw_fd(taken as i32) });
        // SAFETY: no memory is involved.
        let failed = unsafe { syscall(libc::SYS_ptrace, 16, nobody, 0, 0) };
        assert_eq!(failed, -1);
        done!(libc::SYS_ptrace, libc::PTRACE_ATTACH as c_long, pid, 0, 0);
        // SAFETY: as above.
        unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
        // Looking is not told, changing is.
        done!(
            libc::SYS_ptrace,
            libc::PTRACE_PEEKDATA as c_long,
            pid,
            address,
            &raw mut bytes
        );
        done!(
            libc::SYS_ptrace,
            libc::PTRACE_POKEDATA as c_long,
            pid,
            address,
            0x0102_0304_i64
        );
        done!(libc::SYS_ptrace, libc::PTRACE_DETACH as c_long, pid, 0, 0);
    });
    let seen = bench.settle();
    let found = reaches(&seen);
    let short: Vec<_> = found
        .iter()
        .map(|(kind, reach, _)| (*kind, reach.request, reach.result))
        .collect();
    assert_eq!(
        short,
        [
            (Kind::ProcessVmReadv, 0, 0),
            (Kind::ProcessVmWritev, 0, -libc::EFAULT),
            (Kind::PidfdGetfd, 1, 0),
            (Kind::Ptrace, 16, -libc::ESRCH),
            (Kind::Ptrace, 16, 0),
            (Kind::Ptrace, 5, 0),
        ]
    );
    for (at, (_, reach, exe)) in found.iter().enumerate() {
        if at == 3 {
            assert_eq!((reach.target.pid, reach.given), (0, nobody));
            assert_eq!(reach.target.start_ns, 0);
            continue;
        }
        assert_eq!(reach.target.pid, pid as u32, "{reach:?}");
        assert_eq!(reach.target.tid, pid as u32);
        assert_eq!(exe, path.to_str().unwrap());
        assert_ne!(reach.target.start_ns, 0);
    }
    assert_eq!(found[4].1.given, pid);
}

#[test]
fn a_program_that_asks_to_be_traced_is_told() {
    let Some(mut bench) = bench::take("traceme") else {
        return;
    };
    bench.ask(&[Kind::Ptrace]);
    let mut command = Command::new("/bin/true");
    // SAFETY: one system call.
    unsafe {
        command.pre_exec(|| {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let pid = child.id();
    let _ = child.kill();
    let _ = child.wait();
    let seen = bench.settle();
    let told = seen.iter().find_map(|record| match record.body {
        Body::Reach(Kind::Ptrace, reach) if reach.actor.pid == pid => Some(reach),
        _ => None,
    });
    let reach = told.expect("the request");
    assert_eq!((reach.request, reach.result, reach.target.pid), (0, 0, pid));
}

fn spaces(seen: &[Seen]) -> Vec<(Kind, Spaces)> {
    own(seen, |body| match body {
        Body::Spaces(kind, record) => Some((*kind, *record)),
        _ => None,
    })
    .into_iter()
    .map(|(kind, record, _)| (kind, record))
    .collect()
}

#[test]
fn namespaces_made_and_entered_are_told() {
    let Some(mut bench) = bench::take("namespaces") else {
        return;
    };
    let old = fs::metadata("/proc/self/ns/uts").unwrap().ino();
    bench.ask(&[Kind::Unshare, Kind::Setns]);
    apart(|| {
        let first = fs::File::open("/proc/self/ns/uts").unwrap();
        done!(libc::SYS_unshare, libc::CLONE_FILES);
        done!(libc::SYS_unshare, libc::CLONE_NEWUTS | libc::CLONE_NEWIPC);
        // Which kind it is, is the descriptor's to say.
        done!(libc::SYS_setns, first.as_raw_fd(), 0);
        let mut status = 0;
        // SAFETY: the child does nothing but end, in a copy of this memory.
        unsafe {
            let flags = c_long::from(libc::CLONE_NEWUTS | libc::SIGCHLD);
            let child = syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
            if child == 0 {
                libc::_exit(0);
            }
            assert!(child > 0);
            libc::waitpid(child as i32, &raw mut status, 0);
            let mut how = [0_u64; 8];
            how[0] = libc::CLONE_NEWIPC as u64;
            how[4] = libc::SIGCHLD as u64;
            let child = syscall(libc::SYS_clone3, how.as_ptr(), 64);
            if child == 0 {
                libc::_exit(0);
            }
            assert!(child > 0);
            libc::waitpid(child as i32, &raw mut status, 0);
        }
    });
    let seen = bench.settle();
    let found = spaces(&seen);
    let short: Vec<_> = found
        .iter()
        .map(|(kind, record)| {
            (
                *kind,
                name(record.number, record.flags),
                record.namespaces as i32,
                record.child != 0,
            )
        })
        .collect();
    let (uts, ipc) = (libc::CLONE_NEWUTS, libc::CLONE_NEWIPC);
    assert_eq!(
        short,
        [
            (Kind::Unshare, "unshare", uts | ipc, false),
            (Kind::Setns, "setns", uts, false),
            (Kind::Unshare, "clone", uts, true),
            (Kind::Unshare, "clone3", ipc, true),
        ]
    );
    assert_ne!(u64::from(found[0].1.ns.uts), old);
    assert_eq!(u64::from(found[1].1.ns.uts), old);
    assert_eq!(found[0].1.ns.ipc, found[1].1.ns.ipc);
}

fn memories(seen: &[Seen]) -> Vec<(Kind, Memory, String)> {
    own(seen, |body| match body {
        Body::Memory(kind, record) => Some((*kind, *record)),
        _ => None,
    })
    .into_iter()
    .map(|(kind, record, whole)| (kind, record, whole.text(record.path)))
    .collect()
}

/// `SHM_EXEC`, include/uapi/linux/shm.h.
const SHM_EXEC: i32 = 0o100_000;

/// Shared memory of a page, removed when it is dropped.
struct Segment(c_long);

impl Segment {
    fn new() -> Self {
        Self(done!(libc::SYS_shmget, libc::IPC_PRIVATE, 4096, 0o700))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: integers only.
        unsafe { syscall(libc::SYS_shmctl, self.0, libc::IPC_RMID, 0, 0) };
    }
}

#[test]
fn memory_that_can_be_written_and_executed_is_told() {
    let Some(mut bench) = bench::take("memory") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap().join("file");
    fs::write(&path, [0; 4096]).unwrap();
    let file = fs::File::open(&path).unwrap();
    bench.ask(&[Kind::MapWx, Kind::MemfdCreate]);
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let private = libc::MAP_PRIVATE;
    let map = |prot: i32, flags: i32, fd: i32| {
        done!(
            libc::SYS_mmap,
            0,
            4096,
            c_long::from(prot),
            c_long::from(flags),
            c_long::from(fd),
            c_long::from(0)
        ) as usize
    };
    let plain = map(read | write, private | libc::MAP_ANONYMOUS, -1);
    let both = map(read | write | execute, private | libc::MAP_ANONYMOUS, -1);
    let mapped = map(write | execute, private, file.as_raw_fd());
    done!(
        libc::SYS_mprotect,
        plain,
        4096,
        c_long::from(read | execute)
    );
    done!(
        libc::SYS_mprotect,
        plain,
        4096,
        c_long::from(read | write | execute)
    );
    let name_of_file = CString::new("code").unwrap();
    let memfd = done!(libc::SYS_memfd_create, name_of_file.as_ptr(), 1);
    // SAFETY: a new descriptor of ours.
    let memfd = fs::File::from(unsafe { OwnedFd::from_raw_fd(memfd as i32) });
    let segment = Segment::new();
    let attach = |flags: i32| {
        let at = done!(libc::SYS_shmat, segment.0, 0, c_long::from(flags)) as usize;
        done!(libc::SYS_shmdt, at);
        at
    };
    attach(0);
    attach(SHM_EXEC | libc::SHM_RDONLY);
    let attached = attach(SHM_EXEC);
    let seen = bench.settle();
    for at in [plain, both, mapped] {
        done!(libc::SYS_munmap, at, 4096);
    }
    let found = memories(&seen);
    let short: Vec<_> = found
        .iter()
        .map(|(kind, memory, _)| {
            (
                *kind,
                name(memory.number, memory.flags),
                memory.address as usize,
                memory.protection as i32,
            )
        })
        .collect();
    assert_eq!(
        short,
        [
            (Kind::MapWx, "mmap", both, read | write | execute),
            (Kind::MapWx, "mmap", mapped, write | execute),
            (Kind::MapWx, "mprotect", plain, read | write | execute),
            (Kind::MemfdCreate, "memfd_create", 0, 0),
            (Kind::MapWx, "shmat", attached, read | write | execute),
        ]
    );
    assert_eq!(
        (
            found[4].1.len,
            found[4].1.call_flags as i32,
            found[4].2.as_str()
        ),
        (0, SHM_EXEC, "")
    );
    assert_eq!(found[0].1.len, 4096);
    assert_eq!(
        (found[0].1.flags & MEMORY_FILE, found[0].2.as_str()),
        (0, "")
    );
    assert_eq!(found[1].2, path.to_str().unwrap());
    assert_eq!(found[1].1.ino, file.metadata().unwrap().ino());
    assert_eq!(found[3].2, "memfd:code");
    assert_eq!(found[3].1.ino, memfd.metadata().unwrap().ino());
}

#[test]
fn how_a_process_is_treated_is_told() {
    let Some(mut bench) = bench::take("controls") else {
        return;
    };
    let was = done!(libc::SYS_prctl, libc::PR_GET_DUMPABLE);
    bench.ask(&[Kind::Prctl, Kind::Userfaultfd]);
    done!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0);
    done!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, was);
    // A 32-bit option: what stands above it is nothing.
    done!(
        libc::SYS_prctl,
        1_u64 << 32 | libc::PR_SET_DUMPABLE as u64,
        was
    );
    // Every day's: not told. Nor is the name of a thread that is not the first.
    done!(libc::SYS_prctl, libc::PR_GET_DUMPABLE);
    apart(|| {
        done!(libc::SYS_prctl, libc::PR_SET_NAME, c"kworker/0:1".as_ptr());
    });
    // Nor is asking for capabilities; to raise one that it does not inherit is refused.
    let ambient = |what: i32| {
        // SAFETY: no memory is involved.
        unsafe { syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, what, 21, 0, 0) }
    };
    assert_eq!(ambient(libc::PR_CAP_AMBIENT_IS_SET), 0);
    let raised = match ambient(libc::PR_CAP_AMBIENT_RAISE) {
        0 => 0,
        _ => -std::io::Error::last_os_error().raw_os_error().unwrap(),
    };
    let mut seen = bench.settle();
    let own = |seen: &[Seen]| -> Vec<Control> {
        own(seen, |body| match body {
            Body::Control(kind, record) => Some((*kind, *record)),
            _ => None,
        })
        .into_iter()
        .map(|(_, record, _)| record)
        .collect()
    };
    let found = own(&seen);
    let short: Vec<_> = found
        .iter()
        .map(|record| (record.option as i32, record.second as i64, record.result))
        .collect();
    let dumpable = libc::PR_SET_DUMPABLE;
    let expected = [
        (dumpable, 0, 0),
        (dumpable, was, 0),
        (dumpable, was, 0),
        (libc::PR_CAP_AMBIENT, 2, raised),
    ];
    assert_eq!(short, expected);
    assert!(
        found
            .iter()
            .all(|record| name_of(record) == "prctl" && record.number == libc::SYS_prctl as u32)
    );
    assert_eq!(found[3].third, 21);

    // The first thread of a process has its name told, as the kernel has it.
    let renamed = format!("{}-and-more", "kworker/0:9");
    let mut child = Command::new("/bin/true");
    let text = CString::new(renamed).unwrap();
    // SAFETY: prctl may be called between fork and exec.
    unsafe {
        child.pre_exec(
            move || match syscall(libc::SYS_prctl, libc::PR_SET_NAME, text.as_ptr()) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        );
    }
    let mut child = child.spawn().unwrap();
    let pid = child.id();
    child.wait().unwrap();
    // Refused to many: told all the same.
    // SAFETY: no memory is involved.
    let fault = unsafe { syscall(libc::SYS_userfaultfd, 0x8_0800) };
    let refused = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let fault = if fault < 0 {
        -refused
    } else {
        // SAFETY: a new descriptor of ours.
        drop(unsafe { OwnedFd::from_raw_fd(fault as i32) });
        0
    };
    seen = bench.settle();
    let named: Vec<_> = seen
        .iter()
        .filter(|record| record.actor().pid == pid)
        .filter_map(|record| match &record.body {
            Body::Control(Kind::Prctl, control) => Some(*control),
            _ => None,
        })
        .collect();
    let [named] = &named[..] else {
        panic!("{named:?}")
    };
    assert_eq!(named.option as i32, libc::PR_SET_NAME);
    assert_eq!(&named.name, b"kworker/0:9-and\0");
    let [made] = &own(&seen)[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (name_of(made), made.second, made.result),
        ("userfaultfd", 0x8_0800, fault)
    );
    if fault == -libc::ENOSYS {
        eprintln!(
            "SKIPPED how_a_process_is_treated_is_told: this kernel has no userfaultfd; only that it was asked for was seen"
        );
    }

    // Each is sent for itself, though they share a bit of the filter.
    bench.ask(&[Kind::Userfaultfd]);
    done!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, was);
    assert_eq!(own(&bench.settle()), []);
    bench.ask(&[Kind::Prctl]);
    // SAFETY: no memory is involved; what it returns is closed with the process.
    unsafe { syscall(libc::SYS_userfaultfd, 0x8_0800) };
    assert_eq!(own(&bench.settle()), []);
}

fn name_of(record: &Control) -> &'static str {
    name(record.number, record.flags)
}

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_through_x32_are_told_too() {
    /// `__X32_SYSCALL_BIT` (arch/x86/include/uapi/asm/unistd.h).
    const X32: c_long = 0x4000_0000;
    let Some(mut bench) = bench::take("x32") else {
        return;
    };
    // SAFETY: no memory is involved.
    let has = unsafe { syscall(X32 | libc::SYS_getpid) } == c_long::from(std::process::id());
    if !has {
        eprintln!(
            "SKIPPED x32 calls that succeed: this kernel has no x32, or it is off; attempts are looked at"
        );
    }
    let other = Other::start();
    let pid = other.pid();
    let asked = [
        Kind::Ptrace,
        Kind::ProcessVmReadv,
        Kind::ProcessVmWritev,
        Kind::KexecLoad,
        Kind::Setid,
    ];
    let predicate =
        sumun_policy::Predicate::parse("result == -38", &sumun_policy::Lists::default());
    let errors = sumun_policy::errors::Errors::asked(&predicate.unwrap());
    let plan = Plan {
        kinds: asked.map(|kind| (kind, KindPlan::All)).into(),
        failures: vec![(Kind::Setid, errors)],
        ..Plan::default()
    };
    let generation = bench.kernel().last_generation() + 1;
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
    drop(bench.settle());
    apart(move || {
        // SAFETY: no memory is involved, or none that the kernel comes to.
        unsafe {
            // PTRACE_SEIZE, which ends with this thread.
            assert_eq!(syscall(X32 | 521, 0x4206, pid, 0, 0) == 0, has);
            syscall(X32 | 539, pid, 0, 0, 0, 0, 0);
            syscall(X32 | 540, pid, 0, 0, 0, 0, 0);
            assert_eq!(syscall(X32 | 528, 0, 99, 0, 0), -1);
            let down = syscall(X32 | libc::SYS_setresuid, -1, NOBODY, -1);
            assert_eq!(down == 0, has);
        }
    });
    let seen = bench.settle();
    let result = if has { 0 } else { -libc::ENOSYS };
    let reached: Vec<_> = reaches(&seen)
        .iter()
        .map(|(kind, reach, _)| {
            let name = name(reach.number, reach.flags);
            (*kind, name, reach.target.pid, reach.result)
        })
        .collect();
    let pid = pid as u32;
    assert_eq!(
        reached,
        [
            (Kind::Ptrace, "ptrace", pid, result),
            (Kind::ProcessVmReadv, "process_vm_readv", pid, result),
            (Kind::ProcessVmWritev, "process_vm_writev", pid, result),
        ]
    );
    let kexec = own(&seen, |body| match body {
        Body::Setup(kind, setup) => Some((*kind, (setup.result < 0, setup.number))),
        _ => None,
    });
    let kexec: Vec<_> = kexec.iter().map(|(kind, told, _)| (*kind, *told)).collect();
    assert_eq!(kexec, [(Kind::KexecLoad, (true, 528))]);
    let changed = changes(&seen);
    let [(Kind::Setid, down)] = &changed[..] else {
        panic!("{changed:?}")
    };
    // The entry of the call was seen, too.
    assert_eq!(
        (down.flags & CREDS_BEFORE_UNKNOWN, down.result),
        (0, result)
    );
    let after = if has { NOBODY } else { 0 };
    assert_eq!((down.before.euid, down.after.euid), (0, after));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn thirty_two_bit_calls_are_told_too() {
    use crate::low::{Low, int80};
    let Some(mut bench) = bench::take("privilege32") else {
        return;
    };
    if int80(20, 0, 0, 0, 0) != std::process::id() as i32 {
        eprintln!("SKIPPED thirty_two_bit_calls_are_told_too: this kernel has no 32-bit calls");
        return;
    }
    let mut low = Low::new();
    let (label, how) = (low.put(b"low"), {
        // mmap's own form: address, length, protection, flags, descriptor, offset.
        let words = [0_u32, 4096, 7, 0x22, u32::MAX, 0];
        low.put(&words.map(u32::to_ne_bytes).concat())
    });
    let segment = Segment::new();
    let (id, place) = (segment.0 as u32, low.put(&[0; 4]));
    bench.ask(&[
        Kind::Setid,
        Kind::MapWx,
        Kind::MemfdCreate,
        Kind::Unshare,
        Kind::Prctl,
        Kind::Userfaultfd,
    ]);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // setresuid32, mprotect, mmap, memfd_create, unshare.
            assert_eq!(int80(208, u32::MAX, NOBODY, u32::MAX, 0), 0);
            assert_eq!(int80(208, u32::MAX, 0, u32::MAX, 0), 0);
            // setgroups in both its forms.
            assert_eq!((int80(81, 0, 0, 0, 0), int80(206, 0, 0, 0, 0)), (0, 0));
            assert_eq!(int80(125, label & !4095, 4096, 7, 0), 0);
            let at = int80(90, how, 0, 0, 0);
            assert!(!(-4095..=0).contains(&at), "{at}");
            let fd = int80(356, label, 1, 0, 0);
            assert!(fd >= 0, "{fd}");
            // SAFETY: a new descriptor of ours.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            // shmat by ipc: without and with the right to execute; and, from 5.1 on, by itself.
            assert_eq!(int80(117, 21, id, 0, place), 0);
            assert_eq!(int80(117, 21, id, SHM_EXEC as u32, place), 0);
            let at = int80(397, id, 0, SHM_EXEC as u32, 0);
            assert!(!(-4095..=0).contains(&at), "{at}");
            assert_eq!(int80(310, libc::CLONE_NEWUTS as u32, 0, 0, 0), 0);
            // prctl, and userfaultfd with a flag that there is none of.
            assert_eq!(int80(172, libc::PR_SET_DUMPABLE as u32, 1, 0, 0), 0);
            assert!(int80(374, 2, 0, 0, 0) < 0);
        });
        thread.join().unwrap();
    });
    let seen = bench.settle();
    let changed = changes(&seen);
    let calls: Vec<_> = changed
        .iter()
        .map(|(_, record)| name(record.number, record.flags))
        .collect();
    assert_eq!(calls, ["setresuid", "setresuid", "setgroups", "setgroups"]);
    for (_, record) in &changed {
        assert_ne!(record.flags & CALL_COMPAT, 0);
    }
    assert_eq!(
        (changed[0].1.before.euid, changed[0].1.after.euid),
        (0, NOBODY)
    );
    let calls: Vec<_> = memories(&seen)
        .iter()
        .map(|(_, memory, path)| (name(memory.number, memory.flags), memory.len, path.clone()))
        .collect();
    assert_eq!(
        calls,
        [
            ("mprotect", 4096, String::new()),
            ("mmap", 4096, String::new()),
            ("memfd_create", 0, "memfd:low".to_owned()),
            ("shmat", 0, String::new()),
            ("shmat", 0, String::new()),
        ]
    );
    let made = spaces(&seen);
    assert_eq!(
        (made.len(), made[0].1.namespaces as i32),
        (1, libc::CLONE_NEWUTS)
    );
    let controls: Vec<_> = own(&seen, |body| match body {
        Body::Control(kind, record) => Some((*kind, *record)),
        _ => None,
    })
    .into_iter()
    .map(|(_, record, _)| (name_of(&record), record.second, record.flags))
    .collect();
    assert_eq!(
        controls,
        [("prctl", 1, CALL_COMPAT), ("userfaultfd", 2, CALL_COMPAT)]
    );
}

#[test]
fn kinds_that_nobody_asks_for_are_not_sent() {
    let Some(mut bench) = bench::take("unasked") else {
        return;
    };
    bench.ask(&[Kind::Capset]);
    let other = Other::start();
    apart(|| {
        done!(libc::SYS_unshare, libc::CLONE_NEWUTS);
        done!(libc::SYS_setresuid, -1, NOBODY, -1);
    });
    // SAFETY: no memory is involved.
    unsafe { syscall(libc::SYS_ptrace, 0x4206, other.pid(), 0, 0) };
    let pid = std::process::id();
    let told = bench
        .settle()
        .into_iter()
        .filter(|record| record.actor().pid == pid)
        .filter(|record| !matches!(record.body, Body::Fork(_) | Body::Exec(_) | Body::Exit(_)));
    assert_eq!(told.count(), 0);
}
