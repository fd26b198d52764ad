//! The container images that `deploy/container/build` makes without a registry: each is loaded and run.

use std::path::Path;
use std::process::{Command, Output};

use sumun_tests::host::scratch;
use sumun_tests::programs;

/// Podman with a store of its own, so that nothing of it stays, and without a network.
fn podman(store: &Path, args: &[&str]) -> Output {
    Command::new("podman")
        .arg("--root")
        .arg(store.join("root"))
        .arg("--runroot")
        .arg(store.join("run"))
        .args([
            "--cgroup-manager=cgroupfs",
            "--storage-driver=vfs",
            "--runtime=runc",
        ])
        .args(args)
        .output()
        .expect("podman can be started")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn each_image_loads_and_runs_its_program() {
    let name = "container";
    let missing = ["podman", "runc", "strip"].into_iter().find(|tool| {
        !std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).exists()))
    });
    if let Some(tool) = missing {
        return println!("SKIPPED {name}: {tool} is not installed (make setup-test)");
    }
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED {name}: a container is started by root only");
    }
    let dir = scratch();
    let programs = programs::path("sumun-agent");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/container/build");
    let built = Command::new(script)
        .arg(programs.parent().expect("a program lies in a folder"))
        .arg(dir.path().join("images"))
        .output()
        .expect("the script can be started");
    assert!(built.status.success(), "{}", said(&built));
    let mut images = 0;
    for entry in std::fs::read_dir(dir.path().join("images")).expect("images") {
        let archive = entry.expect("an image").path();
        let loaded = podman(
            dir.path(),
            &["load", "-q", "-i", &archive.display().to_string()],
        );
        assert!(loaded.status.success(), "{}", said(&loaded));
        let image = said(&loaded);
        let image = image
            .lines()
            .find_map(|line| line.strip_prefix("Loaded image: "))
            .unwrap_or_else(|| panic!("no name of an image in: {image}"));
        let program = image
            .rsplit('/')
            .next()
            .and_then(|name| name.split(':').next())
            .expect("an image has a name");
        // With nothing that an agent needs.
        let limits = [
            "run",
            "--rm",
            "--network=none",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
            "--read-only",
        ];
        let version = podman(dir.path(), &[&limits[..], &[image, "--version"]].concat());
        let text = said(&version);
        assert!(
            version.status.success() && text.starts_with(program),
            "{image}: {text}"
        );
        if program == "sumun-agent" {
            // It says what it is not allowed to do, instead of failing without a word.
            let doctor = podman(dir.path(), &[&limits[..], &[image, "doctor"]].concat());
            let text = said(&doctor);
            assert_eq!(doctor.status.code(), Some(1), "{text}");
            assert!(text.contains("BROKEN   capabilities"), "{text}");
        }
        images += 1;
    }
    assert_eq!(images, 3);
}
