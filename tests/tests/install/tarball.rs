//! The tarball: unpacked anywhere it enrols and runs, and where its programs are static, in a root that has nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sumun_tests::host::{Turn, scratch};
use sumun_tests::process::Process;

use super::pack;

const LIMIT: Duration = Duration::from_secs(60);

/// What is in an unpacked tarball.
struct Unpacked {
    root: PathBuf,
    is_static: bool,
}

impl Unpacked {
    /// One of its programs; in its own root, if that is all that it needs.
    fn program(&self, name: &str) -> Command {
        if self.is_static {
            let mut chroot = Command::new("chroot");
            chroot.arg(&self.root).arg(format!("/usr/bin/{name}"));
            return chroot;
        }
        let mut program = Command::new(self.root.join("usr/bin").join(name));
        program.current_dir(&self.root);
        program
    }

    fn run(&self, name: &str, args: &[&str]) -> String {
        let output = self
            .program(name)
            .args(args)
            .output()
            .expect("it can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} {args:?}: {text}{errors}");
        text
    }

    /// A folder of the unpacked tree as its programs name it.
    fn place(&self, name: &str) -> String {
        match self.is_static {
            true => format!("/{name}"),
            false => self.root.join(name).display().to_string(),
        }
    }
}

/// The libraries that a program asks for, and whether it asks for a loader.
fn needed(program: &Path) -> (Vec<String>, bool) {
    let read = |option: &str| {
        let output = Command::new("readelf")
            .args(["-W", option])
            .arg(program)
            .output();
        String::from_utf8_lossy(&output.expect("readelf").stdout).into_owned()
    };
    let dynamic = read("-d");
    let named = |line: &str| {
        let (_, rest) = line.split_once("(NEEDED)")?;
        Some(rest.split_once('[')?.1.split(']').next()?.to_owned())
    };
    (
        dynamic.lines().filter_map(named).collect(),
        read("-l").contains("INTERP"),
    )
}

#[test]
fn the_tarball_enrols_and_runs_from_where_it_was_unpacked() {
    let name = "tarball";
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED {name}: an agent needs root");
    }
    if Command::new("readelf").arg("--version").output().is_err() {
        return println!("SKIPPED {name}: binutils are not installed (make setup-test)");
    }
    let dir = scratch();
    let out = dir.path().join("out");
    pack("tar", None, &out);
    let archive = fs::read_dir(&out).expect("a folder").next();
    let archive = archive.expect("a tarball").expect("a tarball").path();
    let unpacked = Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(dir.path())
        .status();
    assert!(unpacked.expect("tar").success());
    let root = archive
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .replace(".tar.gz", "");
    let root = dir.path().join(root);
    let page = fs::read_to_string(root.join("README.md")).expect("a page");
    let is_static = page.contains("the programs are static");
    for program in ["sumun-agent", "sumun-collector", "sumunctl"] {
        let (libraries, loader) = needed(&root.join("usr/bin").join(program));
        if is_static {
            assert!(libraries.is_empty() && !loader, "{program}: {libraries:?}");
            continue;
        }
        let told = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux"];
        let untold = libraries
            .iter()
            .find(|library| !told.iter().any(|told| library.starts_with(told)));
        assert_eq!(untold, None, "{program}: the page does not tell of it");
    }
    if !is_static {
        println!(
            "SKIPPED {name}, in an empty root: its programs are not static (deploy/packages/static makes some)"
        );
    }
    let it = Unpacked { root, is_static };

    if is_static {
        // What a kernel gives everybody.
        fs::create_dir_all(it.root.join("dev")).expect("a folder");
        for (device, minor) in [("null", "3"), ("random", "8"), ("urandom", "9")] {
            let place = it.root.join("dev").join(device);
            let made = Command::new("mknod")
                .arg(place)
                .args(["c", "1", minor])
                .status();
            assert!(made.expect("mknod").success());
        }
    }
    // By a name, which the program itself has to resolve.
    let collector = match is_static {
        true => {
            fs::write(it.root.join("etc/hosts"), "127.0.0.1 collector.example\n").expect("a file");
            "collector.example"
        }
        false => "localhost",
    };
    let home = it.place("collector");
    it.run(
        "sumun-collector",
        &[
            "init",
            &home,
            "--listen",
            "127.0.0.1:0",
            "--name",
            collector,
        ],
    );
    let mut serve = it.program("sumun-collector");
    serve.args(["run", "--config", &format!("{home}/collector.toml")]);
    let _serves = Process::start(
        "sumun-collector",
        &mut serve,
        &dir.path().join("collector.log"),
    );
    let address = it.root.join("collector/collector.addr");
    let begun = Instant::now();
    while !address.exists() {
        assert!(begun.elapsed() < LIMIT, "the collector is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    let port = fs::read_to_string(&address).expect("an address");
    let port = port.trim().rsplit_once(':').expect("a port").1.to_owned();
    let agent = it.place("agent");
    let (token, authority) = (format!("{home}/enroll.token"), format!("{home}/ca/ca.pem"));
    it.run(
        "sumun-agent",
        &[
            "enroll",
            "--collector",
            &format!("{collector}:{port}"),
            "--token-file",
            &token,
            "--ca",
            &authority,
            "--out",
            &agent,
        ],
    );
    let admin = format!("{home}/admin.toml");
    let agents = || {
        it.run(
            "sumunctl",
            &["--config", &admin, "agents", "list", "-o", "jsonl"],
        )
    };
    assert!(agents().contains("\"offline\""), "{}", agents());
    if is_static {
        // Nor anything of the system but the kernel's own file systems, which an agent has to see.
        for (kind, place) in [("proc", "proc"), ("sysfs", "sys")] {
            fs::create_dir_all(it.root.join(place)).expect("a folder");
            let mounted = Command::new("mount")
                .args(["-t", kind, kind])
                .arg(it.root.join(place))
                .status();
            assert!(mounted.expect("mount").success());
        }
    }
    let checked = std::panic::catch_unwind(|| {
        let Some(_turn) = Turn::take(name) else {
            return;
        };
        let config = format!("{agent}/agent.toml");
        let release = || it.run("sumun-agent", &["release", "--config", &config]);
        release();
        let mut run = it.program("sumun-agent");
        run.args(["run", "--config", &config]);
        let mut running = Process::start("sumun-agent", &mut run, &dir.path().join("agent.log"))
            .expect("started");
        let begun = Instant::now();
        while !agents().contains("\"online\"") {
            assert!(
                running.ended().is_none() && begun.elapsed() < LIMIT,
                "{}",
                running.said()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        running.stop().expect("it stops");
        release();
    });
    if is_static {
        for place in ["sys/fs/bpf", "sys", "proc"] {
            // bpffs only where the agent has mounted it.
            let _ = Command::new("umount").arg(it.root.join(place)).output();
        }
    }
    if let Err(panic) = checked {
        std::panic::resume_unwind(panic);
    }
}
