//! Compares what is stored with what the oracle says was done.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::ctl::Ctl;
use crate::oracle::{Connection, Exec, FileCall, Try};

/// Text at a dotted name of a row; empty when absent.
#[must_use]
pub fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    at(row, name).and_then(Value::as_str).unwrap_or_default()
}

/// Integer at a dotted name, a number or (64 bits) a string.
#[must_use]
pub fn int(row: &Value, name: &str) -> Option<i64> {
    match at(row, name)? {
        Value::Number(number) => number.as_i64(),
        // Unsigned ids may be written either way.
        Value::String(digits) => digits
            .parse::<i64>()
            .ok()
            .or_else(|| digits.parse::<u64>().ok().map(u64::cast_signed)),
        _ => None,
    }
}

fn number(row: &Value, name: &str) -> Option<u64> {
    int(row, name).map(i64::cast_unsigned)
}

fn at<'a>(row: &'a Value, name: &str) -> Option<&'a Value> {
    name.split('.').try_fold(row, |value, key| value.get(key))
}

/// Of every fork, exec and exit of the host in a time it is known whose it is.
///
/// # Panics
/// When there is one of which it is not, or no complete answer.
pub fn nobody_is_unknown(ctl: &Ctl, (since, until): (u64, u64), limit: Duration) {
    let life = r#"kind in ["fork", "exec", "exit"]"#;
    let known = "has(workload.kind) && has(workload.id) && has(workload.cgroup)";
    let ask = |filter: &str| {
        let answer = ctl.complete_events(since, until, filter, limit);
        answer.expect("an answer").rows
    };
    let unknown = ask(&format!("{life} && !({known})"));
    assert!(
        unknown.is_empty(),
        "{} of unknown workloads: {}",
        unknown.len(),
        unknown[0]
    );
    let (known, all) = (ask(&format!("{life} && {known}")), ask(life));
    println!("{} events, {} with a workload", all.len(), known.len());
    assert_eq!(known.len(), all.len());
}

/// The items of a list of text.
#[must_use]
pub fn list<'a>(row: &'a Value, name: &str) -> Vec<&'a str> {
    at(row, name)
        .and_then(Value::as_array)
        .map(|items| items.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// What does not agree; the first few in words, all counted.
#[derive(Debug, Default)]
pub struct Problems {
    count: usize,
    words: String,
}

impl Problems {
    /// Most problems told in words.
    const TOLD: usize = 12;

    /// One more.
    pub fn add(&mut self, problem: &str) {
        self.count += 1;
        if self.count <= Self::TOLD {
            // Writing to a String cannot fail.
            let _ = writeln!(self.words, "- {problem}");
        }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Fails the test if there are any.
    ///
    /// # Panics
    /// There are.
    #[track_caller]
    pub fn none(&self, what: &str) {
        assert!(
            self.count == 0,
            "{what}: {} problems, the first:\n{}",
            self.count,
            self.words
        );
    }

    fn differ<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, stored: &T, done: &T) {
        if stored != done {
            self.add(&format!("{what}: stored {stored:?}, done {done:?}"));
        }
    }
}

/// Rows by the text of one field.
#[must_use]
pub fn by_text<'a>(rows: &'a [Value], name: &str) -> HashMap<&'a str, Vec<&'a Value>> {
    let mut map: HashMap<&str, Vec<&Value>> = HashMap::new();
    for row in rows {
        map.entry(text(row, name)).or_default().push(row);
    }
    map
}

fn only<'a>(
    rows: Option<&Vec<&'a Value>>,
    what: &str,
    problems: &mut Problems,
) -> Option<&'a Value> {
    match rows.map_or(&[][..], Vec::as_slice) {
        [one] => Some(one),
        [] => {
            problems.add(&format!("{what} is not stored"));
            None
        }
        many => {
            problems.add(&format!("{what} is stored {} times", many.len()));
            None
        }
    }
}

/// `rows` hold the fork, exec and exit of every program of the oracle once, with the right words.
#[must_use]
pub fn execs(done: &[Exec], rows: &[Value], parent_exe: &str) -> Problems {
    let mut problems = Problems::default();
    let of_kind = |kind: &str| -> Vec<Value> {
        rows.iter()
            .filter(|row| text(row, "kind") == kind)
            .cloned()
            .collect()
    };
    let (execs, exits) = (of_kind("exec"), of_kind("exit"));
    problems.differ("rows of kind exec", &execs.len(), &done.len());
    problems.differ("rows of kind exit", &exits.len(), &done.len());
    let (execs, exits) = (
        by_text(&execs, "proc.exe.path"),
        by_text(&exits, "proc.exe.path"),
    );
    for one in done {
        let path = &one.path;
        if let Some(row) = only(
            execs.get(path.as_str()),
            &format!("exec {path}"),
            &mut problems,
        ) {
            problems.differ(
                &format!("{path}: pid"),
                &number(row, "proc.pid"),
                &Some(one.pid.into()),
            );
            problems.differ(
                &format!("{path}: parent"),
                &number(row, "proc.parent.pid"),
                &Some(one.parent.into()),
            );
            problems.differ(
                &format!("{path}: parent's executable"),
                &text(row, "proc.parent.exe.path"),
                &parent_exe,
            );
            let flaws = list(row, "proc.args_flaws");
            let args = list(row, "proc.args");
            if one.too_long {
                let kept = args.len().min(one.args.len() - 1);
                problems.differ(
                    &format!("{path}: arguments"),
                    &args[..kept].to_vec(),
                    &texts(&one.args[..10]),
                );
                problems.differ(&format!("{path}: flaws"), &flaws, &vec!["truncated"]);
            } else {
                problems.differ(&format!("{path}: arguments"), &args, &texts(&one.args));
                problems.differ(&format!("{path}: flaws"), &flaws, &Vec::new());
            }
        }
        if let Some(row) = only(
            exits.get(path.as_str()),
            &format!("exit {path}"),
            &mut problems,
        ) {
            problems.differ(
                &format!("{path}: status"),
                &int(row, "exit.code"),
                &Some(one.code.into()),
            );
            problems.differ(
                &format!("{path}: exit's pid"),
                &number(row, "proc.pid"),
                &Some(one.pid.into()),
            );
        }
    }
    problems
}

fn texts(strings: &[String]) -> Vec<&str> {
    strings.iter().map(String::as_str).collect()
}

/// `rows` hold every call of the oracle once, with the right object.
#[must_use]
pub fn file_calls(done: &[FileCall], rows: &[Value]) -> Problems {
    let mut problems = Problems::default();
    problems.differ("rows", &rows.len(), &done.len());
    let mut stored: HashMap<(&str, &str), Vec<&Value>> = HashMap::new();
    for row in rows {
        stored
            .entry((text(row, "kind"), text(row, "file.path")))
            .or_default()
            .push(row);
    }
    let known: HashSet<_> = done
        .iter()
        .map(|one| (one.kind.as_str(), one.path.as_str()))
        .collect();
    for (_, rows) in stored.iter().filter(|(what, _)| !known.contains(*what)) {
        problems.add(&format!("nobody did {rows:?}"));
    }
    for one in done {
        let what = format!("{} {}", one.kind, one.path);
        let found = stored.get(&(one.kind.as_str(), one.path.as_str()));
        let Some(row) = only(found, &what, &mut problems) else {
            continue;
        };
        problems.differ(
            &format!("{what}: pid"),
            &number(row, "proc.pid"),
            &Some(one.pid.into()),
        );
        problems.differ(
            &format!("{what}: tid"),
            &number(row, "proc.tid"),
            &Some(one.tid.into()),
        );
        // Of names it depends on the host who is known to have done what; then it is the same object.
        let caller = text(row, "file.source") == "caller";
        if matches!(one.kind.as_str(), "open" | "close_write") || !caller {
            problems.differ(
                &format!("{what}: device"),
                &number(row, "file.dev"),
                &Some(one.dev),
            );
            problems.differ(
                &format!("{what}: inode"),
                &number(row, "file.ino"),
                &Some(one.ino),
            );
            problems.differ(
                &format!("{what}: source"),
                &text(row, "file.source"),
                &"object",
            );
        }
        // Whoever else renames folders on this host can make some doubtful.
        let flaws = list(row, "file.flaws");
        if matches!(one.kind.as_str(), "rename" | "unlink") && !caller && flaws != ["racy"] {
            problems.differ(&format!("{what}: flaws"), &flaws, &Vec::new());
        }
        if one.kind == "open" {
            for field in ["file.access.write", "file.create"] {
                problems.differ(
                    &format!("{what}: {field}"),
                    &at(row, field),
                    &Some(&Value::Bool(true)),
                );
            }
            problems.differ(
                &format!("{what}: 32-bit"),
                &at(row, "file.compat"),
                &Some(&Value::Bool(one.compat)),
            );
        }
        if let Some(new) = &one.new_path {
            problems.differ(
                &format!("{what}: new path"),
                &text(row, "file.new_path"),
                &new.as_str(),
            );
        }
    }
    problems
}

/// `rows` are exactly the connections of the oracle.
#[must_use]
pub fn connections(done: &[Connection], rows: &[Value]) -> Problems {
    let mut problems = Problems::default();
    let end = |row: &Value, side: &str| {
        let port = int(row, &format!("net.{side}.port")).unwrap_or(-1);
        (
            text(row, &format!("net.{side}.ip")).to_owned(),
            u16::try_from(port).unwrap_or_default(),
        )
    };
    let mut counts: HashMap<Connection, i64> = HashMap::new();
    for one in done {
        *counts.entry(one.clone()).or_default() += 1;
    }
    for row in rows {
        let stored = Connection {
            kind: text(row, "kind").to_owned(),
            pid: u32::try_from(int(row, "proc.pid").unwrap_or_default()).unwrap_or_default(),
            src: end(row, "src"),
            dst: end(row, "dst"),
            result: i32::try_from(int(row, "result").unwrap_or(i64::from(i32::MIN)))
                .unwrap_or(i32::MIN),
        };
        *counts.entry(stored).or_default() -= 1;
    }
    for (one, count) in counts {
        match count {
            0 => {}
            1.. => problems.add(&format!("{one:?} is missing {count} times")),
            _ => problems.add(&format!("{one:?} is stored {} times too often", -count)),
        }
    }
    problems
}

/// How the tries to mislead ended.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Tries.
    pub tries: usize,
    /// Races that were won against a naive observer.
    pub won: usize,
    /// Reported with the object's own path, device and inode, unmarked.
    pub right: usize,
    /// Marked lost, racy or the caller's word.
    pub marked: usize,
    /// Of those, noticed only after the call had returned.
    pub late: usize,
    /// Another object, unmarked.
    pub wrong: usize,
    /// Not reported.
    pub missing: usize,
    /// Reported more than once.
    pub doubled: usize,
    /// The first of the bad ones, in words.
    pub problems: Problems,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{} tries, {} races won: {} right, {} marked ({} late), {} wrong and unmarked, {} missing, {} doubled",
            self.tries,
            self.won,
            self.right,
            self.marked,
            self.late,
            self.wrong,
            self.missing,
            self.doubled
        )
    }
}

/// What [`tries`] needs of a row. The whole row takes some ten kilobytes of memory, so a hundred
/// thousand of them a gigabyte.
#[derive(Clone, Debug)]
pub struct Told {
    kind: String,
    tid: u64,
    boot_ns: u64,
    path: String,
    dev: Option<u64>,
    ino: Option<u64>,
    /// Says that its object is not known.
    lost: bool,
    /// Says that it may be another object.
    marked: bool,
    /// What is said of it is the kernel's word.
    object: bool,
}

impl Told {
    /// Takes it out of a row.
    #[must_use]
    pub fn of(row: &Value) -> Self {
        let flaws = list(row, "file.flaws");
        Self {
            kind: text(row, "kind").to_owned(),
            tid: number(row, "proc.tid").unwrap_or_default(),
            boot_ns: number(row, "boot_ns").unwrap_or_default(),
            path: text(row, "file.path").to_owned(),
            dev: number(row, "file.dev"),
            ino: number(row, "file.ino"),
            lost: flaws.contains(&"lost"),
            object: text(row, "file.source") == "object",
            marked: text(row, "file.source") == "caller"
                || flaws.iter().any(|flaw| ["lost", "racy"].contains(flaw)),
        }
    }
}

/// Finds the row of every try: of its thread, between its beginning and its end. A `lost` open may
/// also be noticed a little later, when the call that took its descriptor away returns: what
/// is left over of those rows goes to the last try before it that has none.
#[must_use]
pub fn tries(done: &[Try], rows: &[Told]) -> Verdict {
    let mut verdict = Verdict {
        tries: done.len(),
        won: done.iter().filter(|one| one.won).count(),
        ..Verdict::default()
    };
    let mut stored: HashMap<(u64, &str), Vec<&Told>> = HashMap::new();
    for row in rows {
        let key = (row.tid, row.kind.as_str());
        stored.entry(key).or_default().push(row);
    }
    for rows in stored.values_mut() {
        rows.sort_by_key(|row| row.boot_ns);
    }
    let mut missing: Vec<&Try> = Vec::new();
    let mut taken: HashSet<(u64, u64)> = HashSet::new();
    let mut crowded: HashMap<(u64, u64), &Try> = HashMap::new();
    for one in done {
        let tid = u64::from(one.tid);
        let rows = stored
            .get(&(tid, one.kind.as_str()))
            .map_or(&[][..], Vec::as_slice);
        let from = rows.partition_point(|row| row.boot_ns < one.begun);
        let to = rows.partition_point(|row| row.boot_ns <= one.ended);
        let within = &rows[from..to];
        // Of two, the one that is not lost is its own.
        let own = within.iter().find(|row| !row.lost).or(within.last());
        let Some(own) = own else {
            missing.push(one);
            continue;
        };
        judge(one, own, &mut verdict);
        taken.insert((tid, own.boot_ns));
        for row in within.iter().filter(|row| row.boot_ns != own.boot_ns) {
            crowded.insert((tid, row.boot_ns), one);
        }
    }
    missing.sort_by_key(|one| one.ended);
    let mut spare: Vec<&Told> = stored
        .values()
        .flatten()
        .copied()
        .filter(|row| row.kind == "open" && !taken.contains(&(row.tid, row.boot_ns)))
        .collect();
    spare.sort_unstable_by_key(|row| row.boot_ns);
    for row in spare {
        let before = missing.iter().rposition(|one| {
            row.lost
                && u64::from(one.tid) == row.tid
                && one.kind == "open"
                && one.ended < row.boot_ns
        });
        if let Some(index) = before {
            missing.remove(index);
            verdict.marked += 1;
            verdict.late += 1;
        } else if let Some(one) = crowded.get(&(row.tid, row.boot_ns)) {
            verdict.doubled += 1;
            verdict
                .problems
                .add(&format!("{one:?} is reported more than once"));
        }
    }
    verdict.missing = missing.len();
    for one in missing {
        verdict.problems.add(&format!("{one:?} is not reported"));
    }
    verdict
}

/// What was really done to names is told by the kernel's word, by the thread that did it, each of it once: path, device and inode. Of a few, where a
/// busy host did not say in time where a folder is, the name stands for the path.
#[must_use]
pub fn truths(done: &[Try], rows: &[Told]) -> Problems {
    // Thread, path, device and inode.
    type Truth<'a> = (u64, &'a str, Option<u64>, Option<u64>);
    let mut problems = Problems::default();
    let mut counts: HashMap<Truth<'_>, i64> = HashMap::new();
    for one in done {
        let truth = (
            one.tid.into(),
            one.path.as_str(),
            Some(one.dev),
            Some(one.ino),
        );
        *counts.entry(truth).or_default() += 1;
    }
    let tids: HashSet<u64> = done.iter().map(|one| one.tid.into()).collect();
    let told = rows
        .iter()
        .filter(|row| row.object && tids.contains(&row.tid));
    for row in told {
        *counts
            .entry((row.tid, row.path.as_str(), row.dev, row.ino))
            .or_default() -= 1;
    }
    let alone = |path: &str| !path.contains('/');
    let over = counts
        .iter()
        .filter(|(truth, count)| **count < 0 && alone(truth.1));
    let over: Vec<_> = over.map(|(truth, count)| (*truth, -*count)).collect();
    let mut named = 0;
    for ((tid, name, dev, ino), mut left) in over {
        for (truth, count) in counts.iter_mut().filter(|(_, count)| **count > 0) {
            let last = truth.1.rsplit('/').next();
            if (truth.0, last, truth.2, truth.3) == (tid, Some(name), dev, ino) {
                let taken = left.min(*count);
                (*count, left, named) = (*count - taken, left - taken, named + taken);
            }
        }
        counts.insert((tid, name, dev, ino), -left);
    }
    println!("{named} of {} are told by their name alone", done.len());
    if named > done.len() as i64 / 10 {
        problems.add("too many are told by their name alone");
    }
    for (truth, count) in counts {
        match count {
            0 => {}
            1.. => problems.add(&format!("{truth:?} is not told {count} times")),
            _ => problems.add(&format!("{truth:?} is told {} times too often", -count)),
        }
    }
    problems
}

fn judge(one: &Try, row: &Told, verdict: &mut Verdict) {
    let right = row.path == one.path && row.dev == Some(one.dev) && row.ino == Some(one.ino);
    if row.marked {
        verdict.marked += 1;
    } else if right {
        verdict.right += 1;
    } else {
        verdict.wrong += 1;
        verdict
            .problems
            .add(&format!("{one:?} is reported as {row:?}"));
    }
}

/// Life records of one agent: every sequence number of every stream from its
/// first to its last is stored exactly once or lies in a gap. Returns how many lie in gaps.
#[must_use]
pub fn streams(rows: &[Value], gaps: &[Value], problems: &mut Problems) -> u64 {
    type Stream = (String, u64, u64, u64, u64);
    let stream = |row: &Value| -> Option<Stream> {
        Some((
            text(row, "boot_id").to_owned(),
            number(row, "origin.pin")?,
            number(row, "origin.ring")?,
            number(row, "origin.cpu")?,
            number(row, "origin.level")?,
        ))
    };
    let mut seen: HashMap<Stream, Vec<u64>> = HashMap::new();
    for row in rows {
        match (stream(row), number(row, "origin.seq")) {
            (Some(stream), Some(seq)) => seen.entry(stream).or_default().push(seq),
            _ => problems.add(&format!("a row without an origin: {row}")),
        }
    }
    let mut missing = 0;
    for (stream_of, mut numbers) in seen {
        numbers.sort_unstable();
        let in_gap = |seq: u64| {
            gaps.iter().any(|gap| {
                stream(gap).as_ref() == Some(&stream_of)
                    && number(gap, "gap.first_seq").is_some_and(|first| first <= seq)
                    && number(gap, "gap.last_seq").is_some_and(|last| seq <= last)
            })
        };
        for pair in numbers.windows(2) {
            if pair[0] == pair[1] {
                problems.add(&format!("{stream_of:?}: {} is stored twice", pair[0]));
            }
            for seq in pair[0] + 1..pair[1] {
                if in_gap(seq) {
                    missing += 1;
                } else {
                    problems.add(&format!("{stream_of:?}: {seq} is missing and in no gap"));
                }
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attempt() -> Try {
        Try {
            kind: "open".into(),
            tid: 7,
            begun: 100,
            ended: 200,
            path: "/a".into(),
            dev: 1,
            ino: 2,
            won: true,
        }
    }

    fn row(time: u64, path: &str, ino: &str, flaws: &[&str]) -> Value {
        json!({"kind": "open", "boot_ns": time.to_string(), "proc": {"tid": 7},
            "file": {"path": path, "dev": 1, "ino": ino, "flaws": flaws, "source": "object"}})
    }

    #[test]
    fn tries_are_right_marked_wrong_missing_or_doubled() {
        let judge = |rows: &[Value]| {
            let told: Vec<_> = rows.iter().map(Told::of).collect();
            let verdict = tries(&[attempt()], &told);
            (
                verdict.right,
                verdict.marked,
                verdict.wrong,
                verdict.missing,
                verdict.doubled,
            )
        };
        assert_eq!(judge(&[row(150, "/a", "2", &[])]), (1, 0, 0, 0, 0));
        assert_eq!(judge(&[row(150, "/b", "3", &["racy"])]), (0, 1, 0, 0, 0));
        assert_eq!(judge(&[row(150, "/b", "3", &[])]), (0, 0, 1, 0, 0));
        assert_eq!(judge(&[row(250, "/a", "2", &[])]), (0, 0, 0, 1, 0));
        let twice = [row(150, "/a", "2", &[]), row(160, "/a", "2", &[])];
        assert_eq!(judge(&twice), (1, 0, 0, 0, 1));
        // Noticed when the other's call returned; but only what is lost may come late.
        assert_eq!(judge(&[row(250, "", "0", &["lost"])]), (0, 1, 0, 0, 0));
        assert_eq!(judge(&[row(50, "", "0", &["lost"])]), (0, 0, 0, 1, 0));
    }

    #[test]
    fn a_stream_without_a_number_is_found_out() {
        let row = |seq: u64| {
            json!({"boot_id": "b", "origin": {"pin": "1", "ring": 0, "cpu": 0, "level": 0,
                "seq": seq.to_string()}})
        };
        let gap = json!({"boot_id": "b", "origin": {"pin": "1", "ring": 0, "cpu": 0, "level": 0},
            "gap": {"first_seq": "3", "last_seq": "4"}});
        let mut problems = Problems::default();
        let rows = [row(1), row(2), row(5)];
        assert_eq!(streams(&rows, std::slice::from_ref(&gap), &mut problems), 2);
        assert_eq!(problems.count(), 0);
        assert_eq!(streams(&rows, &[], &mut problems), 0);
        assert_eq!(problems.count(), 2);
        assert_eq!(streams(&[row(1), row(1)], &[], &mut problems), 0);
        assert_eq!(problems.count(), 3);
    }
}
