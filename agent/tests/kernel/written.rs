//! Who opened an executable for writing, as its exec tells it; and of which overlay it is, whatever its process has as its root.
#![expect(
    unsafe_code,
    reason = "calls that the standard library has not, and what a child does before its exec"
)]

use std::{
    ffi::{CStr, CString},
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
};

#[cfg(target_arch = "x86_64")]
use crate::low::{Low, int80};
use crate::{
    actor,
    bench::{self, Bench},
    elf,
    points::points,
    rings,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    unistd::{Pid, chdir, chroot},
};
use sumun_abi::event::process::{EXE_IN_IMAGE, EXE_LAYERED, Exec, WRITERS_ENTRIES, Writer, writer};
use sumun_agent::receive::record::Body;
use sumun_policy::plan::Plan;

fn ask(bench: &mut Bench, writers: bool) {
    let generation = bench.kernel().last_generation() + 1;
    let plan = Plan {
        writers,
        ..Plan::default()
    };
    assert_eq!(bench.kernel().set_filter(&plan, generation).unwrap(), []);
    drop(bench.settle());
}

/// The record of a program that is executed now and ends at once.
fn exec(bench: &mut Bench, command: &mut Command) -> Exec {
    let mut child = command.spawn().unwrap();
    let pid = child.id();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), None, "{command:?}");
    let is = |body: &Body| match body {
        Body::Exec(exec) if exec.actor.pid == pid => Some(*exec),
        _ => None,
    };
    let seen = bench.settle();
    let execs: Vec<_> = seen.iter().filter_map(|seen| is(&seen.body)).collect();
    let [exec] = execs[..] else {
        panic!("{} execs of {command:?}", execs.len())
    };
    exec
}

fn run(bench: &mut Bench, path: &Path) -> Writer {
    exec(bench, &mut Command::new(path)).writer
}

/// A program at a path, made by this process.
fn program(path: PathBuf) -> PathBuf {
    elf::write(&path).unwrap();
    path
}

/// The pid of a child that does one thing and has ended.
fn by_child(act: &str, path: &Path) -> u32 {
    let own = std::env::current_exe().unwrap();
    let mut child = actor::command(own, &[format!("{act} {}", path.display())])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

/// Opens a file for writing.
type Open = fn(&CStr) -> OwnedFd;

fn text(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn descriptor(fd: libc::c_long) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just given this descriptor to us alone.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

#[test]
fn the_last_to_open_an_executable_for_writing_is_told_at_its_exec() {
    let Some(mut bench) = bench::take("written") else {
        return;
    };
    whatever_the_call(&mut bench);
}

#[test]
fn decision_points_tell_the_same_and_see_io_uring() {
    let Some(mut bench) = points("written-points") else {
        return;
    };
    whatever_the_call(&mut bench);
    let dir = tempfile::tempdir().unwrap();
    let path = program(dir.path().join("ring"));
    let writer = by_child("write", &path);
    assert_eq!(run(&mut bench, &path).pid, writer);
    match rings::open(&text(&path), libc::O_WRONLY) {
        Ok(opened) => drop(opened.unwrap()),
        Err(refused) => return eprintln!("SKIPPED io_uring: {refused:?}"),
    }
    let told = run(&mut bench, &path);
    assert_eq!((told.state, told.pid), (writer::SEEN, std::process::id()));
}

fn whatever_the_call(bench: &mut Bench) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let old = program(at("old"));
    let own = std::process::id();
    ask(bench, true);

    // From before: nobody was seen, and its time says that nobody can have been.
    let found = exec(bench, &mut Command::new(&old));
    assert_eq!(found.writer.state, writer::NOT_SEEN);
    assert_ne!(found.watched_since_ns, 0);

    let made = program(at("made"));
    let told = run(bench, &made);
    assert_eq!((told.state, told.pid), (writer::SEEN, own));
    assert!(told.boot_ns >= found.watched_since_ns && told.start_ns != 0);
    // Other names, and who only reads, change nothing.
    fs::rename(&made, at("renamed")).unwrap();
    fs::hard_link(at("renamed"), at("linked")).unwrap();
    by_child("read", &at("linked"));
    assert_eq!(run(bench, &at("linked")), told);
    // Who opens it is told, also without a byte written.
    for act in ["write", "append", "create"] {
        let path = program(at(act));
        let pid = by_child(act, &path);
        let told = run(bench, &path);
        assert_eq!((told.state, told.pid), (writer::SEEN, pid), "{act}");
    }
    // A file that takes the place and maybe the number of another is another.
    let again = at("again");
    let number = fs::metadata(program(again.clone())).unwrap().ino();
    let pid = by_child("write", &again);
    assert_eq!(run(bench, &again).pid, pid);
    fs::remove_file(&again).unwrap();
    let reused = fs::metadata(program(again.clone())).unwrap().ino() == number;
    println!("the number of a removed file was used again: {reused}");
    assert_eq!(run(bench, &again).pid, own);

    // Calls that the standard library does not make.
    let calls: &[(&str, Open)] = &[
        ("openat2", |path| {
            let how = nix::fcntl::OpenHow::new().flags(nix::fcntl::OFlag::O_RDWR);
            nix::fcntl::openat2(nix::fcntl::AT_FDCWD, path, how).unwrap()
        }),
        #[cfg(target_arch = "x86_64")]
        ("creat", |path| {
            // SAFETY: a text that ends with a zero and outlives the call.
            descriptor(unsafe { libc::syscall(libc::SYS_creat, path.as_ptr(), 0o755) })
        }),
        #[cfg(target_arch = "x86_64")]
        ("a 32-bit open", |path| {
            let path = Low::new().put(path.to_bytes_with_nul());
            descriptor(int80(5, path, libc::O_WRONLY as u32, 0, 0).into())
        }),
    ];
    for (name, call) in calls {
        let path = program(at(name));
        let pid = by_child("write", &path);
        assert_eq!(run(bench, &path).pid, pid, "{name}");
        let content = fs::read(&path).unwrap();
        let mut file = File::from(call(&text(&path)));
        file.write_all(&content).unwrap();
        drop(file);
        assert_eq!(run(bench, &path).pid, own, "{name}");
    }
    // Without a name at first, and without one at all.
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o755)
        .open(dir.path())
        .unwrap();
    file.write_all(&fs::read(&old).unwrap()).unwrap();
    let from = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let to = text(&at("named"));
    // SAFETY: texts that end with a zero and outlive the call.
    let linked = unsafe {
        libc::linkat(
            libc::AT_FDCWD,
            text(&from).as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    assert_eq!(linked, 0, "{}", io::Error::last_os_error());
    drop(file);
    let told = run(bench, &at("named"));
    assert_eq!((told.state, told.pid), (writer::SEEN, own));
    // SAFETY: as above.
    let memory =
        descriptor(unsafe { libc::syscall(libc::SYS_memfd_create, c"nameless".as_ptr(), 0) });
    let mut memory = File::from(memory);
    memory.write_all(&fs::read(&old).unwrap()).unwrap();
    let reader = format!("/proc/{own}/fd/{}", memory.as_raw_fd());
    let reader = File::open(reader).unwrap();
    drop(memory);
    let path = PathBuf::from(format!("/proc/{own}/fd/{}", reader.as_raw_fd()));
    let told = run(bench, &path);
    assert_eq!((told.state, told.pid), (writer::SEEN, own));
}

#[test]
fn what_was_written_while_nobody_asked_is_nobodys() {
    let Some(mut bench) = bench::take("written-unasked") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = program(dir.path().join("program"));
    let told = exec(&mut bench, &mut Command::new(&path));
    assert_eq!((told.writer, told.watched_since_ns), (Writer::default(), 0));
    ask(&mut bench, true);
    let pid = by_child("write", &path);
    assert_eq!(run(&mut bench, &path).pid, pid);
    // Other rules, the same question: it goes on.
    let since = exec(&mut bench, &mut Command::new(&path)).watched_since_ns;
    ask(&mut bench, true);
    let told = exec(&mut bench, &mut Command::new(&path));
    assert_eq!((told.writer.pid, told.watched_since_ns), (pid, since));
    ask(&mut bench, false);
    by_child("write", &path);
    assert_eq!(run(&mut bench, &path), Writer::default());
    ask(&mut bench, true);
    let told = exec(&mut bench, &mut Command::new(&path));
    assert_eq!((told.writer.state, told.writer.pid), (writer::NOT_SEEN, 0));
    assert!(told.watched_since_ns > since);
}

#[test]
fn too_many_files_make_room_for_each_other_and_are_counted() {
    let Some(mut bench) = bench::take("written-many") else {
        return;
    };
    ask(&mut bench, true);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    // What is asked for stays longer.
    let other = program(dir.path().join("other"));
    assert_eq!(run(&mut bench, &other).state, writer::SEEN);
    let before = bench.kernel().writers_forgotten().unwrap();
    let flood = || {
        // The map keeps the newest 128 of each processor whatever comes from others.
        let own = sched_getcpu().unwrap();
        let mut one = CpuSet::new();
        one.set(own).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        program(path.clone());
        for _ in 0..WRITERS_ENTRIES + WRITERS_ENTRIES / 2 {
            // SAFETY: a text that ends with a zero and outlives the call.
            drop(descriptor(unsafe {
                libc::syscall(libc::SYS_memfd_create, c"many".as_ptr(), 0)
            }));
        }
    };
    thread::scope(|scope| scope.spawn(flood).join().unwrap());
    let after = bench.kernel().writers_forgotten().unwrap();
    println!("{before:?}, then {after:?}");
    assert_eq!(run(&mut bench, &path).state, writer::NOT_SEEN);
    assert!(after.evicted > before.evicted);
}

/// A mount that goes with it.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(kind: &str, at: PathBuf, options: &str) -> nix::Result<Self> {
        fs::create_dir_all(&at).unwrap();
        mount(Some(kind), &at, Some(kind), MsFlags::empty(), Some(options))?;
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Gives the calling thread a mount namespace of its own with this root, as a container has.
pub(crate) fn enter(root: &Path) -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    chdir(root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")
}

/// A command in a mount namespace of its own with this root, as a container has, that then calls chroot for a folder of it.
fn contained(root: &Path, inside: &'static str, program: &str) -> Command {
    let root = root.to_owned();
    let mut command = Command::new(program);
    let enter = move || {
        enter(&root)?;
        chroot(inside)?;
        chdir("/")?;
        Ok(())
    };
    // SAFETY: calls without locks; paths were made before.
    unsafe { command.pre_exec(enter) };
    command
}

#[test]
fn an_executable_is_of_the_image_by_the_root_of_its_mount_namespace() {
    let Some(mut bench) = bench::take("written-layers") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let _disk = Mounted::new("tmpfs", at("disk"), "mode=755").unwrap();
    for name in ["lower", "own", "upper", "work", "own-upper", "own-work"] {
        fs::create_dir(at("disk").join(name)).unwrap();
    }
    let disk = |name: &str| at("disk").join(name);
    for name in ["image", "changed", "copied", "beside"] {
        program(disk("lower").join(name));
        program(disk("own").join(name));
    }
    fs::create_dir(disk("lower/folder")).unwrap();
    program(disk("lower/folder/image"));
    let overlay = |at: PathBuf, [lower, upper, work]: [&str; 3]| {
        let [lower, upper, work] = [lower, upper, work].map(disk);
        let (lower, upper, work) = (lower.display(), upper.display(), work.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        Mounted::new("overlay", at, &options)
    };
    let root = match overlay(at("root"), ["lower", "upper", "work"]) {
        Ok(root) => root,
        Err(error) => return eprintln!("SKIPPED written-layers: no overlay here: {error}"),
    };
    let root = root.0.as_path();
    let _other = Mounted::new("tmpfs", root.join("tmp"), "mode=755").unwrap();
    program(root.join("tmp/image"));
    let _own = overlay(root.join("merged"), ["own", "own-upper", "own-work"]).unwrap();
    ask(&mut bench, true);

    let flags = |exec: &Exec| exec.exe_flags & (EXE_LAYERED | EXE_IN_IMAGE);
    let image = EXE_LAYERED | EXE_IN_IMAGE;
    for (inside, program, expected) in [
        (".", "/image", image),
        ("/folder", "/image", image),
        (".", "/tmp/image", EXE_LAYERED),
        (".", "/merged/image", EXE_LAYERED),
        // Of these the process's root says nothing.
        ("/tmp", "/image", EXE_LAYERED),
        ("/merged", "/image", EXE_LAYERED),
    ] {
        let told = exec(&mut bench, &mut contained(root, inside, program));
        assert_eq!(flags(&told), expected, "{program} in {inside}");
    }
    // From a lower layer: nobody has written it, whenever its image was unpacked.
    let told = exec(&mut bench, &mut contained(root, ".", "/image"));
    assert_eq!(told.writer.state, writer::LOWER);
    let own = std::process::id();
    // Through the overlay, and into its upper layer from outside.
    let pid = by_child("write", &root.join("changed"));
    let told = exec(&mut bench, &mut contained(root, ".", "/changed"));
    assert_eq!((told.writer.state, told.writer.pid), (writer::SEEN, pid));
    assert_eq!(flags(&told), EXE_LAYERED);
    let pid = by_child("write", &disk("upper/changed"));
    let told = exec(&mut bench, &mut contained(root, ".", "/changed"));
    assert_eq!((told.writer.state, told.writer.pid), (writer::SEEN, pid));
    program(root.join("new"));
    let told = exec(&mut bench, &mut contained(root, ".", "/new"));
    assert_eq!((told.writer.state, told.writer.pid), (writer::SEEN, own));
    // Copied up for its mode alone: its content is nobody's, or the copier's where the copy is seen.
    fs::set_permissions(root.join("copied"), Permissions::from_mode(0o700)).unwrap();
    let told = exec(&mut bench, &mut contained(root, ".", "/copied"));
    assert!(
        told.writer.state == writer::NOT_SEEN || told.writer.pid == own,
        "{told:?}"
    );
}
