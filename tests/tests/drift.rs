//! Programs that did not come with the image of their container: told, and killed before they start. And who wrote them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sumun_tests::check::{by_text, int, text};
use sumun_tests::clock::unix_ns;
use sumun_tests::container::{self, Cgroup, Rootfs, has, id, pod_uid};
use sumun_tests::host::{Agent, Collector, Turn, scratch};

/// How long the store may take until an answer is complete.
const LIMIT: Duration = Duration::from_secs(60);

/// By name, because the root of this host may lie on an overlay, too.
const POLICY: &str = r#"
[policy]
name = "drift"
version = 1
mode = "enforce"

[[rule]]
id = "not-in-image"
on = ["exec"]
when = 'proc.exe.name in ["drift-image", "drift-changed", "drift-dropped", "drift-volume", "drift-chroot"] && !proc.exe.in_image'
effect = "kill"

[[rule]]
id = "just-written"
on = ["exec"]
when = 'proc.exe.name == "drift-young" && proc.exe.in_image && proc.exe.age < 3600'

[[rule]]
id = "own"
on = ["exec"]
when = 'proc.exe.name.startsWith("drift-") && proc.exe.written_by_lineage'

[[rule]]
id = "not-copied"
on = ["exec"]
when = 'proc.exe.name.startsWith("drift-") && !(proc.exe.written_by.endsWith("/cp") || proc.exe.written_by == "/bin/busybox")'
"#;

/// What is run in the container; a program ends with the number of its arguments, itself included.
const SCRIPT: &str = r#"
b=/bin/busybox
/drift-image; echo image=$?
/drift-young; echo young=$?
$b cp /drift-image /drift-dropped; /drift-dropped; echo dropped=$?
$b cp /drift-image /volume/drift-volume; /volume/drift-volume; echo volume=$?
$b touch /drift-changed; /drift-changed; echo changed=$?
$b cp /drift-image /volume/drift-chroot; $b chroot /volume /drift-chroot; echo chroot=$?
$b chroot /folder /drift-inside; echo inside=$?
"#;

/// What is run on the host: a shell's own copy, and one that a job of cron makes for another; as above.
const ON_HOST: &str = r#"
cp "$1" drift-own; ./drift-own; echo own=$?
cp /bin/sh cron
./cron -c 'sh -c "cp $0 drift-job; true"; sh -c "./drift-job; echo job=\$?"; true' "$1"
"#;

/// An overlay on a root, unmounted when it is dropped.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(folder: PathBuf, lower: &str) -> Result<Self> {
        let parts = ["upper", "work", "merged"].map(|name| folder.join(name));
        for part in &parts {
            fs::create_dir_all(part)?;
        }
        let [upper, work, merged] = parts;
        let options = format!(
            "lowerdir={lower},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        let output = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&merged)
            .output()
            .context("start mount")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self(merged))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn programs_that_did_not_come_with_the_image_are_told_and_killed_before_they_start() {
    let Some(turn) = Turn::take("programs_that_did_not_come_with_the_image") else {
        return;
    };
    if !has("runc") {
        println!("SKIPPED drift: runc is not installed");
        return;
    }
    let scratch = scratch();
    let rootfs = Rootfs::make(scratch.path()).expect("a root");
    rootfs.shell().expect("a shell");
    fs::create_dir(rootfs.path().join("volume")).expect("a folder");
    for name in ["drift-image", "drift-young", "drift-changed"] {
        // Each its own file: a change of one is not a change of all.
        fs::copy(rootfs.path().join("program"), rootfs.path().join(name)).expect("a program");
    }
    fs::create_dir(rootfs.path().join("folder")).expect("a folder");
    fs::copy(
        rootfs.path().join("program"),
        rootfs.path().join("folder/drift-inside"),
    )
    .expect("a program");
    let host = scratch.path().join("host");
    fs::create_dir(&host).expect("a folder");
    let lower = rootfs.path().to_str().expect("UTF-8");
    let overlay = match Overlay::mount(scratch.path().join("overlay"), lower) {
        Ok(overlay) => overlay,
        Err(error) => {
            println!("SKIPPED drift: no overlay can be mounted here: {error:#}");
            return;
        }
    };
    let collector = Collector::start().expect("a collector");
    let mut agent = Agent::start(turn, &collector, &[("drift", POLICY)]).expect("an agent");
    let since = unix_ns();
    let (container, pod) = (id(8001), pod_uid(8001));
    let cgroup = format!("/kubepods/pod{pod}/{container}");
    let bundle = scratch.path().join("bundle");
    let args = ["/bin/busybox", "sh", "-c", SCRIPT];
    let output = container::runc(&overlay.0, &bundle, &container, &cgroup, &args).expect("runc");
    let on_host = Command::new("/bin/sh")
        .args(["-c", ON_HOST, "sh"])
        .arg(rootfs.path().join("program"))
        .current_dir(&host)
        .output()
        .expect("a shell");
    let until = unix_ns();
    assert_eq!(
        String::from_utf8_lossy(&on_host.stdout),
        "own=1\njob=1\n",
        "{}",
        String::from_utf8_lossy(&on_host.stderr)
    );
    drop(Cgroup::make(&cgroup));
    let said = String::from_utf8_lossy(&output.stdout);
    let statuses: Vec<_> = said.lines().collect();
    let wanted = [
        "image=1",
        "young=1",
        "dropped=137",
        "volume=137",
        "changed=137",
        "chroot=137",
        "inside=1",
    ];
    assert_eq!(
        statuses,
        wanted,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let ctl = collector.ctl();
    let filter = r#"kind == "exec" && proc.exe.name.startsWith("drift-")"#;
    let answer = ctl
        .complete_events(since, until, filter, LIMIT)
        .expect("an answer");
    let rows = by_text(&answer.rows, "proc.exe.name");
    for (name, in_image, outcome) in [
        ("drift-image", true, ""),
        ("drift-young", true, ""),
        ("drift-dropped", false, "killed"),
        ("drift-volume", false, "killed"),
        ("drift-changed", false, "killed"),
        ("drift-chroot", false, "killed"),
        ("drift-inside", true, ""),
    ] {
        let [row] = rows[name][..] else {
            panic!("{name}: {:?}", rows[name]);
        };
        let said = row.pointer("/proc/exe/in_image");
        assert_eq!(
            said.and_then(|value| value.as_bool()),
            Some(in_image),
            "{row}"
        );
        assert_eq!(text(row, "container.id"), container, "{row}");
        assert_eq!(text(row, "verdict.outcome"), outcome, "{row}");
        if !outcome.is_empty() {
            assert_eq!(text(row, "verdict.effective"), "kill-before-start", "{row}");
        }
        assert!(int(row, "proc.exe.age") < Some(600), "{row}");
        assert!(text(row, "proc.exe.written_at") > "2020", "{row}");
    }
    // The same is asked of what is stored.
    let filter = r#"kind == "exec" && proc.exe.name.startsWith("drift-") && !proc.exe.in_image && proc.exe.age < 600"#;
    let stored = ctl
        .complete_events(since, until, filter, LIMIT)
        .expect("an answer");
    assert_eq!(stored.rows.len(), 4);

    // Who wrote them: nobody what came with the image, what was copied the copy's program, by whom it was asked for or not.
    let copier = fs::canonicalize("/bin/cp").expect("cp");
    let copier = copier.to_str().expect("UTF-8");
    let busybox = "/bin/busybox";
    for (name, by, lineage) in [
        ("drift-image", None, None),
        ("drift-young", None, None),
        ("drift-inside", None, None),
        ("drift-dropped", Some(busybox), Some(true)),
        ("drift-volume", Some(busybox), Some(true)),
        ("drift-chroot", Some(busybox), Some(true)),
        ("drift-own", Some(copier), Some(true)),
        ("drift-job", Some(copier), Some(false)),
    ] {
        let row = rows[name][0];
        let said = |pointer| row.pointer(pointer);
        let path = said("/proc/exe/written_by").and_then(|value| value.as_str());
        let own = said("/proc/exe/written_by_lineage").and_then(|value| value.as_bool());
        assert_eq!((path, own), (by, lineage), "{row}");
        let rules = sumun_tests::check::list(row, "rules");
        let told = rules.contains(&"drift/own");
        assert_eq!(told, lineage == Some(true), "{rules:?}: {row}");
        assert!(!rules.contains(&"drift/not-copied"), "{rules:?}: {row}");
    }
    let filter =
        r#"kind == "exec" && proc.exe.written_by_lineage && proc.exe.written_by.endsWith("/cp")"#;
    let found = ctl
        .complete_events(since, until, filter, LIMIT)
        .expect("an answer");
    assert_eq!(text(&found.rows[0], "proc.exe.name"), "drift-own");
    // By its id the writer's own exec is found, though it has long ended.
    let writer = text(rows["drift-job"][0], "proc.exe.written_by_exec_id");
    let filter = format!(r#"kind == "exec" && proc.exec_id == {writer}"#);
    let found = ctl
        .complete_events(since, until, &filter, LIMIT)
        .expect("an answer");
    let [cp] = &found.rows[..] else {
        panic!("{writer}: {:?}", found.rows);
    };
    assert_eq!(text(cp, "proc.exe.path"), copier);
    let args = sumun_tests::check::list(cp, "proc.args");
    assert_eq!(args.last(), Some(&"drift-job"));
    let young = &rows["drift-young"][0];
    assert_eq!(
        sumun_tests::check::list(young, "rules"),
        ["drift/just-written"],
        "{young}"
    );
    agent.stop().expect("the agent stops when told to");
    agent.release().expect("nothing is left in the kernel");
}
