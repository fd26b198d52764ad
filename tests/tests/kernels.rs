//! The kernel side on other kernels: each of tests/vm/fetch-kernels is booted once, and the tests of
//! `agent/tests` that ask the kernel run in it. What came of them is the table in docs/kernel-support.md, and
//! what the verifier had to walk through is held to what is recorded there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sumun_tests::programs;

/// One start of a virtual machine, a column of the table.
struct Boot {
    column: &'static str,
    /// As tests/vm/fetch-kernels names it.
    kernel: &'static str,
    /// More words for its command line.
    cmdline: &'static str,
    /// The programs that are run.
    programs: &'static [&'static str],
    /// All of them are with `SUMUN_KERNELS=all`.
    whole: bool,
}

/// What every kernel is asked each time; all of it takes three times as long.
const MAIN: &[&str] = &[
    "kernel_file",
    "kernel_network",
    "kernel_dns",
    "kernel_verdict",
    "kernel_deny_lsm",
];

const BOOTS: [Boot; 5] = [
    main_of("5.10", true),
    // Debian's 5.10 has BPF LSM, and does not start it by itself.
    Boot {
        column: "5.10, `lsm=…,bpf`",
        kernel: "5.10",
        cmdline: "lsm=lockdown,yama,apparmor,bpf",
        programs: &["kernel_deny_lsm"],
        whole: false,
    },
    main_of("6.1", false),
    main_of("6.12", false),
    main_of("newest", true),
];

const fn main_of(kernel: &'static str, whole: bool) -> Boot {
    Boot {
        column: kernel,
        kernel,
        cmdline: "",
        programs: MAIN,
        whole,
    }
}

/// True when the oldest and the newest kernel are to be asked everything.
fn asks_all() -> bool {
    std::env::var("SUMUN_KERNELS").is_ok_and(|asked| asked == "all")
}

/// True when docs/kernel-support.md is to be written.
fn writes() -> bool {
    std::env::var_os("SUMUN_WRITE_DOCS").is_some()
}

/// Columns of the kernels that count what the verifier walks through (from 5.16).
const COUNTING: [&str; 3] = ["6.1", "6.12", "newest"];

/// Without these the table says little: where continuous integration runs (`CI` is set), they are no skip.
const REQUIRED: [&str; 2] = ["5.10", "6.12"];

/// Test programs of `agent/tests`, with the heading they stand under.
const PROGRAMS: &[(&str, &str)] = &[
    ("kernel_process", "processes, tracepoint"),
    ("kernel_file", "files, tracepoint"),
    ("kernel_file_changes", "changes of files, tracepoint"),
    ("kernel_network", "connections, tracepoint"),
    ("kernel_sockets", "sockets, tracepoint"),
    ("kernel_unix", "Unix and raw sockets, tracepoint"),
    ("kernel_udp", "UDP, programs on cgroups"),
    ("kernel_dns", "DNS, programs on cgroups"),
    ("kernel_failed_open", "opens that fail, tracepoint"),
    ("kernel_privilege", "privileges, tracepoint"),
    ("kernel_kernel", "the kernel itself, tracepoint"),
    ("kernel_filter", "what leaves the kernel"),
    ("kernel_verdict", "kill-before-start, tracepoint"),
    ("kernel_kill_after", "kill-after, tracepoint"),
    ("kernel_cgroup", "cgroups, tracepoint"),
    ("kernel_deny", "deny, programs on cgroups"),
    ("kernel_deny_lsm", "deny, lsm"),
];

/// Programs of the host that the tests run under their own names, which busybox's one would not take.
const TOOLS: [&str; 4] = ["/bin/cat", "/bin/true", "/bin/sleep", "/bin/bash"];

/// What the verifier may have to walk through for all programs together.
const INSTRUCTIONS_MAX: u64 = 1_500_000;

/// What came of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Skipped(String),
}

impl Outcome {
    /// As the table has it.
    fn cell(&self) -> &'static str {
        match self {
            Outcome::Ok => "yes",
            Outcome::Skipped(_) => "skipped",
        }
    }
}

/// What a kernel said.
#[derive(Default)]
struct Said {
    /// By (place in [`PROGRAMS`], name of the test).
    tests: BTreeMap<(usize, String), Outcome>,
    /// By hook; of kernels that count them (from 5.16).
    instructions: BTreeMap<String, u64>,
    /// By rung; with the reason why not.
    rungs: BTreeMap<&'static str, Option<String>>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The test programs, as cargo names them; built before this one.
fn test_programs() -> Vec<PathBuf> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args([
        "test",
        "--release",
        "--workspace",
        "--no-run",
        "--message-format=json",
    ]);
    for (program, _) in PROGRAMS {
        cargo.args(["--test", program]);
    }
    let output = cargo.output().expect("cargo can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    let mut found = BTreeMap::new();
    for line in said.lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        if let (Some(name), Some(path)) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
        ) {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    PROGRAMS
        .iter()
        .map(|(program, _)| {
            found.remove(*program).unwrap_or_else(|| {
                panic!(
                    "cargo names no test {program}: {}",
                    String::from_utf8_lossy(&output.stderr)
                )
            })
        })
        .collect()
}

/// Boots a kernel and runs the tests in it. `None` if it is not there.
fn boot(boot: &Boot, programs_of_tests: &[PathBuf], scratch: &Path) -> Option<Said> {
    let Boot { column, kernel, .. } = *boot;
    let cache = PathBuf::from(std::env::var_os("SUMUN_CACHE").expect("tests/run sets SUMUN_CACHE"));
    if !cache.join("kernels").join(kernel).join("vmlinuz").exists() {
        let reason = format!("no kernel {kernel}: tests/vm/fetch-kernels {kernel}");
        assert!(
            std::env::var_os("CI").is_none() || !REQUIRED.contains(&kernel),
            "{reason}"
        );
        eprintln!("SKIPPED kernels: {reason}");
        return None;
    }
    let script = scratch.join(format!(
        "{}.sh",
        column.replace(|character: char| !character.is_ascii_alphanumeric(), "-")
    ));
    let mut lines = String::from("/sumun/sumun-agent probe -o json | sed 's/^/PROBE /'\n");
    let places: Vec<usize> = (0..PROGRAMS.len())
        .filter(|place| boot.whole && asks_all() || boot.programs.contains(&PROGRAMS[*place].0))
        .collect();
    for place in &places {
        // Each with a limit of its own: one that hangs is named.
        writeln!(
            lines,
            "echo PROGRAM {place} $(cut -d' ' -f1 /proc/uptime); SUMUN_TEST_SHARE=1 timeout 200 /sumun/{place} --test-threads=1 --show-output 2>/tmp/errors; status=$?; echo; [ $status = 0 ] || tail -n 50 /tmp/errors; echo STATUS {place} $status"
        )
        .expect("a string takes everything");
    }
    fs::write(&script, lines).expect("the scratch directory can be written");

    let mut command = Command::new(root().join("tests/vm/run"));
    command.args([
        "--timeout",
        "900",
        "--memory",
        "2048",
        "--cmdline",
        boot.cmdline,
    ]);
    command.arg("--file").arg(format!(
        "{}:/sumun/sumun-agent",
        programs::path("sumun-agent").display()
    ));
    for place in &places {
        let program = programs_of_tests[*place].display();
        command
            .arg("--file")
            .arg(format!("{program}:/sumun/{place}"));
    }
    for tool in TOOLS {
        command.arg("--file").arg(tool);
    }
    command
        .arg("--file")
        .arg(format!("{}:/sumun/guest.sh", script.display()))
        .args([kernel, "--", "sh", "/sumun/guest.sh"]);
    let output = command.output().expect("the harness can be started");
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let said = read(&text);
    let passed = places
        .iter()
        .all(|place| text.lines().any(|line| line == format!("STATUS {place} 0")));
    assert!(
        output.status.success() && passed,
        "{column}: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Some(said)
}

/// Reads what the guest printed.
fn read(text: &str) -> Said {
    let mut said = Said::default();
    let mut probe = String::new();
    let mut place = 0;
    // Whose output is being told, and what was skipped.
    let (mut test, mut reasons) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(json) = line.strip_prefix("PROBE ") {
            probe.push_str(json);
            probe.push('\n');
        } else if let Some(number) = line.strip_prefix("PROGRAM ") {
            let (number, second) = number.split_once(' ').expect("two numbers of ours");
            place = number.parse().expect("a number of ours");
            println!("{second:>7} s {}", PROGRAMS[place].0);
        } else if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|line| line.strip_suffix(" stdout ----"))
        {
            test = name.to_owned();
        } else if let Some((_, reason)) = line
            .strip_prefix("SKIPPED ")
            .and_then(|skipped| skipped.split_once(": "))
        {
            reasons.insert((place, test.clone()), reason.to_owned());
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|test| test.split_once(" ... "))
            .map(|(name, _)| name)
        {
            // Of a program that ended well; a test's child may have printed into the line.
            said.tests.insert((place, name.to_owned()), Outcome::Ok);
        }
    }
    for (key, reason) in reasons {
        said.tests.insert(key, Outcome::Skipped(reason));
    }
    // What the tests run as their actors is no test.
    said.tests.retain(|(_, name), _| name != "actor");

    let probe: serde_json::Value =
        serde_json::from_str(&probe).unwrap_or_else(|error| panic!("{error}: {text}"));
    for hook in probe["hooks"].as_array().into_iter().flatten() {
        let name = hook["hook"].as_str().unwrap_or_default().to_owned();
        assert_eq!(hook["available"], true, "{hook}");
        if let Some(count) = hook["verified_instructions"].as_u64() {
            said.instructions.insert(name, count);
        }
    }
    for rung in ["lsm", "fentry", "fanotify"] {
        let reason = (probe[rung]["available"] != true).then(|| {
            probe[rung]["reason"]
                .as_str()
                .unwrap_or("no reason given")
                .to_owned()
        });
        said.rungs.insert(rung, reason);
    }
    said
}

fn table(said: &BTreeMap<&str, Said>) -> String {
    let mut rows: BTreeMap<(usize, &str), [&str; BOOTS.len()]> = BTreeMap::new();
    let mut skips: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (column, boot) in BOOTS.iter().enumerate() {
        for ((place, name), outcome) in &said[boot.column].tests {
            let cells = rows.entry((*place, name)).or_insert(["-"; BOOTS.len()]);
            cells[column] = outcome.cell();
            if let Outcome::Skipped(reason) = outcome {
                let skip = format!("{}: {reason}", name.replace('_', " "));
                skips.entry(skip).or_default().push(boot.column);
            }
        }
    }
    let columns = BOOTS.map(|boot| boot.column).join(" | ");
    let mut text = format!(
        "| seen in a test | {columns} |\n|---{}|\n",
        "|---".repeat(BOOTS.len())
    );
    let empty = "| ".repeat(BOOTS.len());
    let mut under = usize::MAX;
    for ((place, name), cells) in rows {
        if place != under {
            under = place;
            writeln!(text, "| **{}** {empty}|", PROGRAMS[place].1).expect("a string");
        }
        writeln!(
            text,
            "| {} | {} |",
            name.replace('_', " "),
            cells.join(" | ")
        )
        .expect("a string");
    }
    writeln!(text, "| **rungs that were tried out** {empty}|").expect("a string");
    for rung in ["fentry", "lsm", "fanotify"] {
        let cells = BOOTS.map(|boot| match &said[boot.column].rungs[rung] {
            None => "yes",
            Some(_) => "no",
        });
        writeln!(text, "| {rung} | {} |", cells.join(" | ")).expect("a string");
    }
    for (reason, columns) in skips {
        writeln!(text, "\nSkipped on {}: {reason}.", columns.join("; ")).expect("a string");
    }
    text
}

fn instructions(said: &BTreeMap<&str, Said>) -> String {
    let mut text = format!("| hook | {} |\n|---|---|---|---|\n", COUNTING.join(" | "));
    let hooks: BTreeSet<&String> = said
        .values()
        .flat_map(|one| one.instructions.keys())
        .collect();
    for hook in hooks {
        let cells = COUNTING.map(|column| {
            let count = said[column].instructions.get(hook);
            count.map_or("-".to_owned(), u64::to_string)
        });
        writeln!(text, "| {hook} | {} |", cells.join(" | ")).expect("a string");
    }
    text
}

/// The part of the page between the two marks of this name, and where it lies.
fn part<'a>(page: &'a str, name: &str) -> (&'a str, std::ops::Range<usize>) {
    let (begin, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let from = page.find(&begin).map(|at| at + begin.len());
    let from = from.unwrap_or_else(|| panic!("docs/kernel-support.md has no mark {begin}"));
    let to = page[from..].find(&end).map(|at| from + at);
    let to = to.unwrap_or_else(|| panic!("docs/kernel-support.md has no mark {end}"));
    (&page[from..to], from..to)
}

/// The cell of a test below the heading of its program.
fn written<'a>(page: &'a str, column: &str, place: usize, name: &str) -> Option<&'a str> {
    let column = BOOTS.iter().position(|boot| boot.column == column)?;
    let (rows, _) = part(page, "kernels");
    let heading = format!("| **{}** ", PROGRAMS[place].1);
    let name = format!("| {} |", name.replace('_', " "));
    let mut below = rows.lines().skip_while(|line| !line.starts_with(&heading));
    below.next()?;
    let row = below
        .take_while(|line| !line.starts_with("| **"))
        .find(|line| line.starts_with(&name))?;
    row.split('|').nth(2 + column).map(str::trim)
}

/// What is recorded of a hook on a kernel.
fn recorded(page: &str, hook: &str, kernel: &str) -> Option<u64> {
    let column = ["6.1", "6.12", "newest"]
        .iter()
        .position(|one| *one == kernel)?;
    let (rows, _) = part(page, "instructions");
    let row = rows
        .lines()
        .find(|line| line.starts_with(&format!("| {hook} |")))?;
    row.split('|').nth(2 + column)?.trim().parse().ok()
}

#[test]
fn every_kernel_does_what_the_table_says() {
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("SKIPPED kernels: the guests are x86_64");
        return;
    }
    if std::env::var_os("SUMUN_KERNELS").is_none() {
        eprintln!("SKIPPED kernels: it takes a quarter of an hour; make test-kernels runs it");
        return;
    }
    let page_path = root().join("docs/kernel-support.md");
    let page = fs::read_to_string(&page_path).expect("docs/kernel-support.md can be read");
    let programs_of_tests = test_programs();
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let said = Mutex::new(BTreeMap::new());
    let next = AtomicUsize::new(0);
    // The long ones first.
    let mut order: Vec<&Boot> = BOOTS.iter().collect();
    order.sort_by_key(|boot| !boot.whole);
    // Most of a guest's time is the verifier's, which is one thread.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(one) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let begun = std::time::Instant::now();
                    let Some(came) = boot(one, &programs_of_tests, scratch.path()) else {
                        continue;
                    };
                    let total: u64 = came.instructions.values().sum();
                    println!(
                        "{}: {} tests in {:?}; {total} instructions verified",
                        one.column,
                        came.tests.len(),
                        begun.elapsed()
                    );
                    assert!(total <= INSTRUCTIONS_MAX, "{}: {total}", one.column);
                    said.lock().expect("no panic").insert(one.column, came);
                }
            });
        }
    });
    let said = said.into_inner().expect("no panic");
    if said.len() < BOOTS.len() {
        return;
    }
    if writes() {
        let mut page = page;
        for (name, text) in [
            ("kernels", table(&said)),
            ("instructions", instructions(&said)),
        ] {
            let (_, range) = part(&page, name);
            page.replace_range(range, &text);
        }
        fs::write(&page_path, page).expect("docs/kernel-support.md can be written");
        return;
    }
    for (column, one) in &said {
        for ((place, name), outcome) in &one.tests {
            assert_eq!(
                written(&page, column, *place, name),
                Some(outcome.cell()),
                "{name} on {column}: docs/kernel-support.md is stale: SUMUN_WRITE_DOCS=1 make test-kernels"
            );
        }
    }
    for (kernel, one) in &said {
        for (hook, count) in &one.instructions {
            let known = recorded(&page, hook, kernel);
            // Other compilers and later patches of a kernel move it a little.
            assert!(
                known.is_some_and(|known| *count <= known + known / 5 + 2_000),
                "{hook} on {kernel}: {count} instructions, recorded are {known:?}: make it cheaper, or SUMUN_WRITE_DOCS=1 make test-kernels"
            );
        }
    }
}
