//! A child of a test that opens and connects: the test's own program, told by a variable what to do.
//!
//! A binary that uses it has a test `actor` that calls [`act`]; without the variable it does nothing.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::{ffi::OsStrExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use sumun_proto::text;

use crate::mapped;

/// What to do, one after the other, a line each.
const ACTS: &str = "SUMUN_TEST_ACTS";
/// What it says before anything, and when it is through.
const BEGUN: &str = "begun";
const THROUGH: &str = "through";

/// This program under another name.
pub(crate) fn program(path: PathBuf) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let own = std::env::current_exe().unwrap();
    if fs::hard_link(&own, &path).is_err() {
        fs::copy(&own, &path).unwrap();
    }
    path
}

/// The program as a child that does these things: `read PATH`, `write PATH`, `create PATH`, `rewrite PATH` (truncates),
/// `close PATH` (writes and closes), `load PATH` (maps it to be executed), `connect ADDRESS`, `begin ADDRESS` (without waiting in the call), `accept` (a
/// connection of its own), `drop NUMBER` (a capability, from the effective ones), `wait` (for the end of the input), `thread ACT` (in another thread).
pub(crate) fn command(program: impl AsRef<OsStr>, acts: &[String]) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", "actor", "--nocapture"])
        .env(ACTS, acts.join("\n"))
        .current_dir("/")
        .stderr(Stdio::null());
    command
}

/// Whether it did all of it. It was killed in the middle if not.
pub(crate) fn is_through(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stdout);
    let through = said.contains(THROUGH);
    if !through {
        assert_eq!(output.status.signal(), Some(9), "{said}");
    }
    through
}

/// Whether it was killed before it did anything.
pub(crate) fn is_begun(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stdout).contains(BEGUN)
}

/// Does what the variable says and ends.
pub(crate) fn act() {
    let Ok(acts) = std::env::var(ACTS) else {
        return;
    };
    println!("{BEGUN}");
    for act in acts.lines() {
        match act.strip_prefix("thread ") {
            Some(act) => {
                let act = act.to_owned();
                std::thread::spawn(move || one(&act)).join().unwrap();
            }
            None => one(act),
        }
    }
    println!("{THROUGH}");
    std::process::exit(0);
}

fn one(act: &str) {
    let (what, with) = act.split_once(' ').unwrap_or((act, ""));
    // Paths are written as events have them.
    let bytes = text::to_bytes(with).unwrap();
    let path = Path::new(OsStr::from_bytes(&bytes));
    let mut options = OpenOptions::new();
    match what {
        "read" => drop(options.read(true).open(path)),
        "write" => drop(options.write(true).open(path)),
        "create" => drop(options.write(true).create(true).truncate(false).open(path)),
        "rewrite" => drop(options.write(true).truncate(true).open(path)),
        "append" => drop(options.append(true).open(path)),
        "load" => {
            let file = fs::File::open(path).unwrap();
            mapped::map(&file, libc::PROT_READ | libc::PROT_EXEC).unwrap();
        }
        "connect" => drop(TcpStream::connect(with.parse::<SocketAddr>().unwrap())),
        "begin" => drop(TcpStream::connect_timeout(
            &with.parse().unwrap(),
            Duration::from_secs(5),
        )),
        "accept" => {
            let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let _own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            drop(listener.accept().unwrap());
        }
        "drop" => give_up(with.parse().unwrap()),
        "wait" => drop(std::io::stdin().read_to_end(&mut Vec::new())),
        other => panic!("cannot {other}"),
    }
}

/// Takes a capability out of the thread's effective ones.
#[expect(
    unsafe_code,
    reason = "a call that the standard library keeps away from"
)]
pub(crate) fn give_up(capability: usize) {
    let header = [0x2008_0522_u32, 0];
    // Effective, permitted and inheritable, and the same of the upper half.
    let mut sets = [0_u32; 6];
    // SAFETY: both lead to what the call expects, and live as long as it.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    sets[capability / 32 * 3] &= !(1 << (capability % 32));
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!((got, set), (0, 0));
}
