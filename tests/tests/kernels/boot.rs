//! Starting the kernel tests: in a virtual machine, and what they tell of this host.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::facts::{self, Said};
use super::root;
use sumun_tests::programs;

/// One start of a virtual machine, a column of the tables.
pub struct Boot {
    pub column: &'static str,
    /// As tests/vm/fetch-kernels names it.
    kernel: &'static str,
    /// More words for its command line.
    cmdline: &'static str,
    /// Tests that are asked, by what their names begin with; without any, all.
    asked: &'static [&'static str],
    /// And those that are not.
    skipped: &'static [&'static [&'static str]],
}

/// In a guest each load takes a quarter of a minute and more, and these tests load again and again.
const LOADS_AGAIN: &[&str] = &["recovery::", "probe::the_probe"];
/// Renames and removals by fanotify are for kernels without decision points, like those of most hosts that run the tests natively, and a
/// file system has some milliseconds to answer: emulated processors often miss that, and then an event says less, as it should. The
/// newest kernel tries it all the same, and nobody is misled on any. (What is compared is any part of a name.)
const IN_TIME: &[&str] = &[
    "names::what_",
    "names::a_whole_tree",
    "names::thirty_two_bit",
    "names::an_overflow",
    "names::new_mounts",
    "names::a_program",
];
/// Between the first and the last of the kernels that are supported, what an agent leaves behind is left to those.
const LEFT_BEHIND: &[&str] = &["deny::without_the_agent", "points::the_next_agent"];

pub const BOOTS: [Boot; 5] = [
    whole("newest", &[LOADS_AGAIN]),
    whole("5.10", &[LOADS_AGAIN, IN_TIME]),
    whole("6.12", &[LOADS_AGAIN, IN_TIME, LEFT_BEHIND]),
    whole("6.1", &[LOADS_AGAIN, IN_TIME, LEFT_BEHIND]),
    // Debian's 5.10 has BPF LSM, and does not start it by itself.
    Boot {
        column: "5.10, `lsm=…,bpf`",
        kernel: "5.10",
        cmdline: "lsm=lockdown,yama,apparmor,bpf",
        asked: &["deny_lsm::", "misleading::lsm::", FACTS],
        skipped: &[],
    },
];

/// The test that tells what the page is made of.
const FACTS: &str = "probe::what_this_kernel_gives_is_told";

/// How the names of the tests end that try to mislead.
pub const TRIES: &str = "misleads_nobody";

/// Without these the tables say little: where continuous integration runs (`CI` is set), they are no skip.
const REQUIRED: [&str; 2] = ["5.10", "6.12"];

/// Programs of the host that the tests run under their own names, which busybox's one would not take.
const TOOLS: [&str; 5] = [
    "/bin/cat",
    "/bin/true",
    "/bin/sleep",
    "/bin/bash",
    "/sbin/ip",
];

/// What the tests lay wires and layers with is no part of these kernels, but beside them.
const MODULES: [&str; 3] = ["veth", "overlay", "binfmt_misc"];

/// What the tests load by themselves.
const MODULE_FILES: [&str; 1] = ["dummy"];

/// How long a guest may take, in seconds; there may be others beside it.
const PATIENCE: &str = "1800";

const fn whole(kernel: &'static str, skipped: &'static [&'static [&'static str]]) -> Boot {
    Boot {
        column: kernel,
        kernel,
        cmdline: "",
        asked: &[],
        skipped,
    }
}

/// Boots a kernel and runs the tests in it. `None` if it is not there.
///
/// # Errors
/// What was said by tests that failed.
pub fn boot(boot: &Boot, program: &Path, scratch: &Path) -> Result<Option<Said>, String> {
    let Boot { column, kernel, .. } = *boot;
    if !programs::guest_kernel("kernels", kernel) {
        assert!(
            std::env::var_os("CI").is_none() || !REQUIRED.contains(&kernel),
            "no kernel {kernel}: tests/vm/fetch-kernels {kernel}"
        );
        return Ok(None);
    }
    let begun = std::time::Instant::now();
    let script = scratch.join(format!(
        "{}.sh",
        column.replace(|character: char| !character.is_ascii_alphanumeric(), "-")
    ));
    let skipped = boot.skipped.iter().copied().flatten();
    let skipped: String = skipped.map(|test| format!(" --skip {test}")).collect();
    // What the tests' children print is not theirs.
    let lines = format!(
        "SUMUN_TEST_EMULATED=1 /sumun/kernel --test-threads=1 --show-output {}{skipped} 2>/tmp/errors\nstatus=$?\n[ $status = 0 ] || tail -n 50 /tmp/errors\nexit $status\n",
        boot.asked.join(" ")
    );
    fs::write(&script, lines).expect("the scratch directory can be written");
    let mut command = Command::new(root().join("tests/vm/run"));
    command.args(["--timeout", PATIENCE, "--memory", "2048"]);
    command.args(["--cmdline", boot.cmdline]);
    let files = [
        (program.display().to_string(), "/sumun/kernel"),
        (script.display().to_string(), "/sumun/guest.sh"),
    ];
    for (file, place) in files {
        command.args(["--file", &format!("{file}:{place}")]);
    }
    for tool in TOOLS {
        command.args(["--file", tool]);
    }
    for module in MODULES {
        command.args(["--module", module]);
    }
    for module in MODULE_FILES {
        command.args(["--module-file", module]);
    }
    command.args([kernel, "--", "sh", "/sumun/guest.sh"]);
    let output = command.output().expect("the harness can be started");
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{column}: {}\n{text}\n{errors}", output.status));
    }
    let said = facts::read(&text);
    println!(
        "{column}: {} tests in {:.0?}",
        said.tests.len(),
        begun.elapsed()
    );
    Ok(Some(said))
}

/// The facts of this host, and what comes of tries to mislead; the other tests run with all others. `None` if it can run no agent.
pub fn native(program: &Path) -> Option<Said> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED kernels: what this host gives: not root");
        return None;
    }
    let output = Command::new(program)
        .args([FACTS, TRIES, "--test-threads=1", "--show-output"])
        .output()
        .expect("the test program can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    Some(facts::read(&text))
}
