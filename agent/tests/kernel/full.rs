//! Maps that are full: what finds no room is said to be unknown, and is sent; and one process number that comes again and again.
#![expect(
    unsafe_code,
    reason = "calls that the standard library keeps away from are what is tested"
)]

use std::{
    ffi::CString,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, connect, getsockname,
            listen, socket,
        },
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use sumun_abi::{
    event::{
        network::{CONN_UNDECIDED, RESULT_UNKNOWN},
        process::outcome,
    },
    verdict::Lineage,
};
use sumun_agent::{
    enrich::process::{Limits, Tree},
    kernel::{Kin, Known, Seed},
    pipeline::clock::boot_ns,
    receive::{
        process,
        record::{Body, Record},
    },
};
use sumun_policy::{
    plan::Plan,
    verdict::{Atom, Texts, VerdictClause, VerdictPlan, kind_bit},
};
use sumun_proto::v1::Kind;

use crate::bench::{self, Bench, Seen};
use crate::elf;

/// Entries of a map that is to be full.
const ROOM: usize = 64;
/// The same of connects under way.
const FLIGHTS: usize = 8;

fn copy(of: &str, to: PathBuf) -> PathBuf {
    fs::copy(fs::canonicalize(of).unwrap(), &to).unwrap();
    to
}

fn path_is(path: &Path) -> Texts {
    Texts {
        paths: vec![path.to_str().unwrap().into()],
        ..Texts::default()
    }
}

/// None of those that run already is one that a rule asks for.
fn strangers(bench: &mut Bench) -> Vec<Seed> {
    let mut seeds = Vec::new();
    bench
        .kernel()
        .bootstrap_tasks(|bytes| {
            if let Body::Task(task) = Record::parse(bytes).unwrap().body {
                seeds.push(Seed {
                    pid: task.actor.pid,
                    start_ns: task.actor.start_ns,
                    lineage: Lineage {
                        image: task.actor.image,
                        ..Lineage::default()
                    },
                });
            }
        })
        .unwrap();
    seeds
}

/// In turn, on one kernel side: loading one takes a quarter of a minute where it is emulated.
#[test]
fn what_finds_no_room_is_counted_or_unknown_and_is_told() {
    let Some(mut bench) = bench::own("full", |config| {
        config.entries = vec![
            ("LINEAGE", ROOM as u32),
            ("FLIGHTS", FLIGHTS as u32),
            ("BORN", 4),
            ("DOOMED", 4),
        ];
    }) else {
        return;
    };
    connects_are_told_at_once_without_a_result(&mut bench);
    those_that_are_made_during_a_hunt_are_counted(&mut bench);
    who_is_doomed_is_killed_by_the_kernel(&mut bench);
    what_lineage_knows_nothing_of_is_left_to_the_agent(&mut bench);
}

fn what_lineage_knows_nothing_of_is_left_to_the_agent(bench: &mut Bench) {
    bench.kernel().hold_until(u64::MAX).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = copy("/bin/sh", dir.path().join("server"));
    let victim = dir.path().join("victim");
    elf::write(&victim).unwrap();
    let plan = VerdictPlan {
        atoms: vec![
            Atom::Exe(path_is(&victim)),
            Atom::Ancestor(path_is(&server)),
        ],
        clauses: vec![VerdictClause {
            rule: 1,
            kinds: kind_bit(Kind::Exec),
            need: 0b11,
            forbid: 0,
        }],
    };
    let seeds = strangers(bench);
    let generation = bench.generation(1);
    let known = || Known {
        processes: seeds,
        ..Known::default()
    };
    bench
        .kernel()
        .set_rules(&Plan::default(), &plan, generation, known)
        .unwrap();
    let others = 2 * ROOM;
    // One before the map is full, one while it is, one after.
    let script = format!(
        "{victim}; echo $?; i=0; while [ $i -lt {others} ]; do sleep 60 & all=\"$all $!\"; i=$((i+1)); done
         {victim}; echo $?; kill $all; wait; {victim}; echo $?",
        victim = victim.display(),
    );
    let output = Command::new(&server)
        .arg0("sh")
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "137\n1\n137\n");
    let seen = bench.settle();
    let path = victim.to_str().unwrap();
    let outcomes: Vec<u32> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Exec(exec) if record.text(exec.exe) == path => Some(exec.outcome),
            _ => None,
        })
        .collect();
    // Neither killed nor left out: the agent judges it.
    let expected = [outcome::KILLED, outcome::UNDECIDED, outcome::KILLED];
    assert_eq!(outcomes, expected);
    // Each fork has a record, and those that found no room say so.
    let server = seen
        .iter()
        .find_map(|record| match record.body {
            Body::Exec(exec) if record.text(exec.exe) == server.to_str().unwrap() => {
                Some(exec.actor.pid)
            }
            _ => None,
        })
        .unwrap();
    let forks: Vec<u32> = seen
        .iter()
        .filter_map(|record| match record.body {
            Body::Fork(fork) if fork.parent_pid == server => Some(fork.lineage_unknown),
            _ => None,
        })
        .collect();
    assert_eq!(forks.len(), others + 3);
    let unknown = forks.iter().filter(|unknown| **unknown != 0).count();
    assert!((others - ROOM + 1..=others).contains(&unknown), "{unknown}");
    assert_eq!((forks[0], forks[others + 2]), (0, 0));
    assert_eq!(bench.lost(), 0);
}

fn connects_are_told_at_once_without_a_result(bench: &mut Bench) {
    const CONNECTS: usize = 30;
    bench.ask(&[Kind::Connect]);
    let tcp = |flags| socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    // Nobody accepts, and there is hardly room to wait: what comes then is not answered.
    let listener = tcp(SockFlag::SOCK_CLOEXEC);
    let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    bind(listener.as_raw_fd(), &any).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let address: SockaddrIn = getsockname(listener.as_raw_fd()).unwrap();
    let sockets: Vec<OwnedFd> = (0..CONNECTS)
        .map(|_| {
            let socket = tcp(SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC);
            let begun = connect(socket.as_raw_fd(), &address);
            assert!(
                matches!(begun, Ok(()) | Err(Errno::EINPROGRESS)),
                "{begun:?}"
            );
            socket
        })
        .collect();
    let told = |seen: &[Seen]| -> Vec<(bool, i32)> {
        let own = seen.iter().filter_map(|record| match record.body {
            Body::Connect(made)
                if made.actor.pid == std::process::id() && made.dst_port == address.port() =>
            {
                Some((made.flags & CONN_UNDECIDED != 0, made.result))
            }
            _ => None,
        });
        own.collect()
    };
    let first = told(&bench.settle());
    let undecided = first.iter().filter(|(undecided, _)| *undecided).count();
    let made = first.len() - undecided;
    println!("{made} made, {undecided} without room, of {CONNECTS}");
    // Others of the host may have been in the map for a moment.
    assert!(undecided >= CONNECTS - FLIGHTS - made && undecided < CONNECTS - made);
    for (undecided, result) in &first {
        assert_eq!(*undecided, *result == RESULT_UNKNOWN, "{first:?}");
    }
    // Those that had room are told when they end: each is told once.
    drop(sockets);
    let rest = told(&bench.settle());
    assert!(rest.iter().all(|(undecided, _)| !undecided), "{rest:?}");
    assert_eq!(first.len() + rest.len(), CONNECTS, "{first:?} {rest:?}");
    assert_eq!(bench.lost(), 0);
}

fn those_that_are_made_during_a_hunt_are_counted(bench: &mut Bench) {
    let mut hunt = bench.kernel().hunt().unwrap();
    hunt.begin(boot_ns().unwrap() + 60_000_000_000).unwrap();
    for _ in 0..10 {
        assert!(Command::new("/bin/true").status().unwrap().success());
    }
    let born = hunt.born().unwrap();
    assert_eq!(born.len(), 4);
    assert!(hunt.full().unwrap() >= 6);
    let kin = |pid| Kin { pid, start_ns: 1 };
    for pid in 1..=4 {
        hunt.doom(kin(pid), false).unwrap();
    }
    assert!(hunt.doom(kin(5), false).is_err());
    hunt.end().unwrap();
    assert_eq!(hunt.born().unwrap(), []);
    hunt.doom(kin(5), false).unwrap();
    hunt.end().unwrap();
}

fn who_is_doomed_is_killed_by_the_kernel(bench: &mut Bench) {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "while :; do (:); done"])
        .spawn()
        .unwrap();
    let pid = child.id();
    let born = |record: &Seen| match record.body {
        Body::Fork(fork) if fork.child.pid == pid => Some(fork.child.start_ns),
        _ => None,
    };
    let seen = bench.until("its fork", |seen| {
        seen.iter().any(|record| born(record).is_some())
    });
    let start_ns = seen.iter().find_map(born).unwrap();
    let mut hunt = bench.kernel().hunt().unwrap();
    hunt.begin(boot_ns().unwrap() + 60_000_000_000).unwrap();
    hunt.doom(Kin { pid, start_ns }, false).unwrap();
    // Nobody sends it a signal from here.
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    hunt.end().unwrap();
}

/// `struct clone_args` (include/uapi/linux/sched.h) as far as it is used.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// A child with this number that executes a program.
fn start_as(pid: libc::pid_t, program: &Path, argument: usize) -> Result<(), Errno> {
    let text = |text: &str| CString::new(text).unwrap();
    let path = text(program.to_str().unwrap());
    let argument = text(&argument.to_string());
    let argv = [path.as_ptr(), argument.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null()];
    let args = CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: (&raw const pid) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: a fork; the child makes nothing but system calls, with what was made before it.
    let result = unsafe {
        let result = libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>());
        if result == 0 {
            libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127);
        }
        result
    };
    match result {
        -1 => Err(Errno::last()),
        _ => Ok(()),
    }
}

#[test]
fn one_number_again_and_again_is_nobody_else_each_time() {
    let Some(mut bench) = bench::take("reuse") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let programs = ["one", "two"].map(|name| dir.path().join(name));
    for program in &programs {
        elf::write(program).unwrap();
    }
    let mut first = Command::new("/bin/true").spawn().unwrap();
    let pid = first.id();
    assert_eq!(first.wait().unwrap().signal(), None);
    let mut tree = Tree::new(Limits { bytes: 8 << 20 });
    drop(bench.settle());
    let turns = bench::times(300);
    for turn in 0..turns {
        let made = start_as(pid.cast_signed(), &programs[turn % 2], turn);
        assert_eq!(made, Ok(()), "turn {turn}");
        let ended = waitpid(Pid::from_raw(pid.cast_signed()), None).unwrap();
        assert!(matches!(ended, WaitStatus::Exited(_, 2)), "{ended:?}");
    }
    let (mut forks, mut execs, mut exits) = (Vec::new(), Vec::new(), Vec::new());
    for seen in bench.settle() {
        let record = Record::parse(&seen.bytes).unwrap();
        // Each event is told of the program that ran in its turn, below this process.
        match &record.body {
            Body::Fork(fork) if fork.child.pid == pid => {
                process::fork(&mut tree, fork);
                assert_eq!(fork.parent_pid, std::process::id());
                forks.push(fork.child.start_ns);
            }
            Body::Exec(exec) if exec.actor.pid == pid => {
                let (_, node, _) = process::exec(&mut tree, &record, exec, 0);
                let program = node.program().unwrap();
                let turn = execs.len();
                assert_eq!(program.exe_path, programs[turn % 2].to_str().unwrap());
                assert_eq!(program.args[1..], [turn.to_string()]);
                assert_eq!(node.parent_pid(), std::process::id());
                execs.push(exec.actor.start_ns);
            }
            Body::Exit(exit) if exit.actor.pid == pid => {
                let (_, node, _) = process::exit(&mut tree, exit);
                let program = node.program().unwrap();
                assert_eq!(program.args[1..], [exits.len().to_string()]);
                exits.push(exit.actor.start_ns);
            }
            _ => {}
        }
    }
    assert_eq!(forks.len(), turns);
    assert_eq!((&execs, &exits), (&forks, &forks));
    let mut starts = forks;
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), turns, "no two are the same process");
    assert_eq!(bench.lost(), 0);
}
