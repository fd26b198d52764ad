//! A host that has the second version of cgroups alone, as distributions are now: whose everything is, there too.
//!
//! The tests of `identity` run in a guest whose kernel is told to leave the first version out; not the one that starts the agent
//! again and again, which takes a minute there.

use std::fs;
use std::path::Path;
use std::process::Command;

use sumun_tests::container::find;
use sumun_tests::programs;

/// The kernel of the guest, as tests/vm/fetch-kernels names it.
const KERNEL: &str = "6.12";

/// The guest's root is a file system that no program can leave by `pivot_root`, which runc does: so the tests run below another one.
const SCRIPT: &str = "
set -e
if grep -qw cgroup /proc/filesystems && mount -t cgroup -o pids none /tmp 2>/dev/null; then
    echo 'the first version of cgroups is there'
    exit 1
fi
mkdir /new
mount -t tmpfs tmpfs /new
for name in bin sbin lib lib64; do ln -s usr/$name /new/$name; done
for name in usr etc proc sys dev run sumun; do
    mkdir /new/$name
    mount --rbind /$name /new/$name
done
mkdir /new/tmp /new/root /new/var
exec chroot /new env SUMUN_BIN=/sumun SUMUN_TEST_EMULATED=1 /sumun/identity --test-threads=1 --show-output containers_of_runc short_lived
";

#[test]
fn whose_everything_is_where_only_the_second_version_is() {
    if cfg!(not(target_arch = "x86_64")) {
        println!("SKIPPED cgroup v2 alone: the guests are x86_64");
        return;
    }
    if programs::guests_run_elsewhere() || !programs::guest_kernel("cgroup v2 alone", KERNEL) {
        return;
    }
    let Some(runc) = find("runc") else {
        println!("SKIPPED cgroup v2 alone: runc is not installed");
        return;
    };
    let identity = programs::test("identity");
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let script = scratch.path().join("script");
    fs::write(&script, SCRIPT).expect("a script");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/run"));
    command.args(["--memory", "3072", "--timeout", "600"]);
    command.args(["--cmdline", "cgroup_no_v1=all"]);
    let ours = ["sumun-agent", "sumun-collector", "sumunctl"];
    let ours = ours.map(|name| (programs::path(name), format!("/sumun/{name}")));
    let others = [
        (identity, "/sumun/identity".to_owned()),
        (script, "/sumun/script".to_owned()),
        (runc, "/usr/bin/runc".to_owned()),
    ];
    for (file, place) in ours.into_iter().chain(others) {
        command
            .arg("--file")
            .arg(format!("{}:{place}", file.display()));
    }
    command.args([KERNEL, "--", "sh", "/sumun/script"]);
    let output = command.output().expect("the harness can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("2 passed; 0 failed"), "{said}");
    assert!(!said.contains("SKIPPED"), "{said}");
    println!("{said}");
}
