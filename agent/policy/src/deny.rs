//! Rules that deny: whether the kernel judges them alone; if not, which files they name, and whether whoever holds an open or
//! an exec can judge them.
//!
//! The kernel holds the opens of files and folders that were named to it, never those of a pattern. So a
//! rule is carried out only if every event that it matches is one of a file that it names, as
//! such or by a folder; and only if all that it reads is known before the file is open.

use std::collections::BTreeSet;

use sumun_proto::v1::Kind;
use sumun_proto::{FieldId, text};

use crate::asking::{Asking, QUESTIONS_MAX, Questions, mixed};
use crate::doors::{Door, Doors};
use crate::explain::{Effective, each_list};
use crate::file::{CheckedPolicy, Effect, Mode, Rule};
use crate::ir::{Compare, Expr, Operand, Pattern, Predicate, Set, TextTest};
use crate::list::List;
use crate::narrow::narrow;
use crate::plan::Clause;
use crate::verdict::scope::{is_of_scope, remark};
use crate::verdict::{Late, late_alone};

/// Most files and folders that all rules together may name.
pub const NAMES_MAX: usize = 4096;

/// Folders without which no program starts and nobody logs in.
const SYSTEM: [&[u8]; 13] = [
    b"/bin/",
    b"/dev/",
    b"/etc/",
    b"/lib/",
    b"/lib64/",
    b"/proc/",
    b"/run/",
    b"/sbin/",
    b"/sys/",
    b"/usr/bin/",
    b"/usr/lib/",
    b"/usr/sbin/",
    b"/var/",
];

/// A rule on a kind of event of which opens or executions are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyRule {
    /// Its place among all rules of the policies.
    pub rule: usize,
    /// Open or exec.
    pub kind: Kind,
    /// Every event that it matches is one of these.
    pub names: Names,
    /// What has to hold.
    pub predicate: Predicate,
    /// With a selector whose pending workloads count as inside: the selector, and the rule's own condition.
    pub presumed: Option<[Predicate; 2]>,
    /// What passes, each until a time, ns since the Unix epoch.
    pub exceptions: Vec<(Predicate, Option<i64>)>,
}

impl DenyRule {
    /// All that it reads.
    pub fn predicates(&self) -> impl Iterator<Item = &Predicate> {
        let exceptions = self.exceptions.iter().map(|(predicate, _)| predicate);
        let presumed = self.presumed.iter().flatten();
        std::iter::once(&self.predicate)
            .chain(presumed)
            .chain(exceptions)
    }
}

/// Files by their path, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Whole paths.
    pub files: BTreeSet<Vec<u8>>,
    /// What paths begin with; each has a `/` after which nothing, or the beginning of a name, follows.
    pub prefixes: BTreeSet<Vec<u8>>,
}

impl Names {
    /// Whether a path is one of them.
    #[must_use]
    pub fn contain(&self, path: &[u8]) -> bool {
        self.files.contains(path) || self.prefixes.iter().any(|prefix| path.starts_with(prefix))
    }

    fn len(&self) -> usize {
        self.files.len() + self.prefixes.len()
    }

    fn and(self, other: Self) -> Self {
        let dear = |names: &Self| (names.prefixes.len(), names.files.len());
        if dear(&other) < dear(&self) {
            other
        } else {
            self
        }
    }

    fn or(mut self, other: Self) -> Self {
        self.files.extend(other.files);
        self.prefixes.extend(other.prefixes);
        self
    }
}

/// The rules that deny in `enforce` and that can be carried out by holding opens and executions, on
/// each of their kinds; of those that the kernel judges alone only the files that are named by their whole path: the kernel
/// goes by the path through which a file is reached, and whoever holds calls knows it by its other names, too. `late` is what
/// [`crate::verdict::VerdictPlan::build`] leaves to the agent with the same doors.
#[must_use]
pub fn plan(policies: &[CheckedPolicy], doors: &Doors, late: &[Late]) -> Vec<DenyRule> {
    let mut plan = Vec::new();
    let mut room = NAMES_MAX;
    let mut questions = Questions::default();
    let rules = policies
        .iter()
        .flat_map(|policy| policy.rules.iter().map(move |rule| (policy.mode, rule)));
    for (number, (mode, rule)) in rules.enumerate() {
        if rule.effect != Effect::Deny || mode != Mode::Enforce {
            continue;
        }
        for kind in &rule.kinds {
            let Ok(mut names) = held(rule, *kind) else {
                continue;
            };
            if by_kernel(number, *kind, doors, late).is_ok() {
                names.prefixes.clear();
                if names.files.is_empty() {
                    continue;
                }
            }
            // Rules are taken in their order; who is left out is told by `left_out`.
            let Some(left) = room.checked_sub(names.len()) else {
                continue;
            };
            let asks = DenyRule {
                rule: number,
                kind: *kind,
                names,
                predicate: rule.predicate.clone(),
                presumed: rule
                    .presumed
                    .as_ref()
                    .map(|presumed| [presumed.selector.clone(), presumed.when.clone()]),
                exceptions: rule
                    .exceptions
                    .iter()
                    .map(|exception| (exception.predicate.clone(), exception.expires_ns))
                    .collect(),
            };
            let mut more = questions.clone();
            for predicate in asks.predicates() {
                let _ = Asking::new(predicate, &mut more);
            }
            if more.all().len() > QUESTIONS_MAX {
                continue;
            }
            (room, questions) = (left, more);
            plan.push(asks);
        }
    }
    plan
}

/// Whether the kernel judges a rule that denies in `enforce` on a kind, or why not.
fn by_kernel(number: usize, kind: Kind, doors: &Doors, late: &[Late]) -> Result<Door, String> {
    let door = doors.door(kind)?;
    let late = late
        .iter()
        .find(|late| late.rule == number && late.kind == kind);
    match late {
        Some(late) => Err(late.reason.clone()),
        None => Ok(door),
    }
}

/// Why a rule is not denied on a kind, by whoever could.
fn both(kind: Kind, held: &str, kernel: &str) -> String {
    match kind {
        Kind::Open | Kind::Exec => {
            format!("{held}; and the kernel does not deny it alone: {kernel}")
        }
        _ => kernel.to_owned(),
    }
}

/// How a rule that denies is carried out on a kind, and why that is less.
pub(crate) fn effective(
    mode: Mode,
    (number, rule): (usize, &Rule),
    kind: Kind,
    doors: &Doors,
    late: &[Late],
) -> (Effective, String) {
    let kernel = match mode {
        Mode::Enforce => by_kernel(number, kind, doors, late),
        Mode::Observe => doors
            .door(kind)
            .and_then(|door| late_alone(rule, kind).map_or(Ok(door), Err)),
    };
    let remark = remark(rule);
    let remarked = |reason: String| match remark {
        Some(remark) => format!("{reason}; {remark}"),
        None => reason,
    };
    match (mode, kernel, held(rule, kind)) {
        (Mode::Observe, Err(kernel), Err(held)) => (
            Effective::Alert,
            format!(
                "observe: reports what would be denied; in enforce it would not be: {}",
                both(kind, &held, &kernel)
            ),
        ),
        (Mode::Observe, ..) => (
            Effective::Alert,
            "observe: reports what would be denied".to_owned(),
        ),
        (Mode::Enforce, Ok(Door::Here), _) => {
            (Effective::Deny, remark.unwrap_or_default().to_owned())
        }
        (Mode::Enforce, Ok(Door::WithLsm), Ok(_)) => (
            Effective::DenyViaAgent,
            remarked(
                "held by a permission event until the agent has judged it, and let through if it does not within 100 ms; where BPF LSM is active the kernel denies it alone"
                    .to_owned(),
            ),
        ),
        (Mode::Enforce, Ok(Door::WithLsm), Err(held)) => (
            Effective::Deny,
            remarked(match kind {
                Kind::Open | Kind::Exec => format!("only where BPF LSM is active; elsewhere an alert is raised: {held}"),
                _ => "only where BPF LSM is active; elsewhere an alert is raised".to_owned(),
            }),
        ),
        (Mode::Enforce, Err(kernel), Ok(_)) => (
            Effective::DenyViaAgent,
            remarked(format!(
                "held by a permission event until the agent has judged it; let through if it does not within 100 ms; the kernel does not deny it alone: {kernel}"
            )),
        ),
        (Mode::Enforce, Err(kernel), Err(held)) => (
            Effective::Alert,
            format!("not denied: {}", both(kind, &held, &kernel)),
        ),
    }
}

/// Why a rule that denies may not be carried out on a kind, wherever it is loaded, or on many hosts; as far as can be told
/// without one.
pub(crate) fn doubted(rule: &Rule, kind: Kind) -> Option<String> {
    let doors = Doors::foreseen();
    let kernel = doors
        .door(kind)
        .and_then(|door| late_alone(rule, kind).map_or(Ok(door), Err));
    match (kernel, held(rule, kind)) {
        (Ok(Door::Here), _) | (_, Ok(_)) => None,
        (Ok(Door::WithLsm), Err(held)) => Some(match kind {
            Kind::Open | Kind::Exec => format!(
                "is denied only where BPF LSM is active, elsewhere an alert is raised: {held}"
            ),
            _ => "is denied only where BPF LSM is active, elsewhere an alert is raised".to_owned(),
        }),
        (Err(kernel), Err(held)) => Some(format!(
            "nothing is denied, an alert is raised: {}",
            both(kind, &held, &kernel)
        )),
    }
}

/// The files that a rule names on a kind, or why its opens or executions cannot be held and judged.
pub(crate) fn held(rule: &Rule, kind: Kind) -> Result<Names, String> {
    let path = match kind {
        Kind::Open => FieldId::FilePath,
        Kind::Exec => FieldId::ProcExePath,
        _ => return Err("only open and exec can be held".to_owned()),
    };
    let exceptions = rule.exceptions.iter().map(|exception| &exception.predicate);
    for predicate in std::iter::once(&rule.predicate).chain(exceptions) {
        if let Some(field) = predicate
            .fields()
            .into_iter()
            .find(|field| !is_known(*field, kind))
        {
            let name = field.info().name;
            return Err(match kind {
                Kind::Open => format!("{name} is not known while the file is being opened"),
                _ => format!("{name} is not known before the program has started"),
            });
        }
        if let Some((told, other)) = mixed(predicate.expr()) {
            return Err(format!(
                "one condition reads both {} and {}: what is told of workloads is looked up before the call is made, so that a condition cannot set it beside the call itself",
                told.info().name,
                other.info().name
            ));
        }
    }
    let mut large = None;
    let mut see = |list: &List, _: &Expr, _: bool| large = Some(list.name().to_owned());
    each_list(rule.predicate.expr(), true, &mut see);
    for exception in &rule.exceptions {
        each_list(exception.predicate.expr(), true, &mut see);
    }
    if let Some(list) = large {
        return Err(format!(
            "the list {list} is too long for the process that holds calls, which has the texts of rules and not their lists"
        ));
    }
    let name = path.info().name;
    let names = names(rule.predicate.expr(), path).ok_or_else(|| {
        format!(
            "no condition that always applies says which files: write {name} with ==, in, startsWith or a glob that begins with a folder"
        )
    })?;
    if names.len() > NAMES_MAX {
        return Err(format!("it names more than {NAMES_MAX} files and folders"));
    }
    if names.prefixes.contains(&b"/"[..]) {
        return Err("it names every file there is: name a folder".to_owned());
    }
    Ok(names)
}

/// Whether a field is known to whoever holds the call: from the file itself, from the kernel's copy of the call, from
/// what `/proc` tells of the one that waits, and of its workload and host from what the agent tells ([`crate::asking`]).
fn is_known(field: FieldId, kind: Kind) -> bool {
    match field {
        FieldId::Kind
        | FieldId::HostId
        | FieldId::HostName
        | FieldId::ProcPid
        | FieldId::ProcExePath
        | FieldId::ProcExeName
        | FieldId::ProcUid
        | FieldId::ProcGid => true,
        // A program may be set-user-id.
        FieldId::ProcEuid
        | FieldId::ProcEgid
        | FieldId::ProcCapEffective
        | FieldId::ProcTid
        | FieldId::FilePath
        | FieldId::FileName
        | FieldId::FileMode
        | FieldId::FileDeleted
        | FieldId::FileAccessRead
        | FieldId::FileAccessWrite
        | FieldId::FileAccessAppend
        | FieldId::FileTrunc => kind == Kind::Open,
        field => is_of_scope(field),
    }
}

/// The files one of which the path has to be for the expression to be true.
fn names(expr: &Expr, path: FieldId) -> Option<Names> {
    let file = |text: &str| {
        let bytes = text::to_bytes(text)?;
        bytes.starts_with(b"/").then_some(bytes)
    };
    let files = |texts: &mut dyn Iterator<Item = &String>| {
        // A text that is no path names nothing.
        Some(Names {
            files: texts.filter_map(|text| file(text)).collect(),
            prefixes: BTreeSet::new(),
        })
    };
    let prefix = |start: &str| {
        let mut start = start;
        // Half of an escape is no byte.
        let bytes = loop {
            match text::to_bytes(start) {
                Some(bytes) => break bytes,
                None => start = &start[..start.char_indices().next_back()?.0],
            }
        };
        bytes.starts_with(b"/").then(|| Names {
            files: BTreeSet::new(),
            prefixes: BTreeSet::from([bytes]),
        })
    };
    match expr {
        Expr::Compare {
            op: Compare::Eq,
            left: Operand::Field(field),
            right: Operand::Str(text),
        } if *field == path => files(&mut std::iter::once(text)),
        Expr::In {
            value: Operand::Field(field),
            set: Set::Str(texts),
        } if *field == path => files(&mut texts.iter()),
        Expr::Text {
            test: TextTest::Prefix,
            value: Operand::Field(field),
            text,
        } if *field == path => prefix(text),
        Expr::Matches {
            value: Operand::Field(field),
            pattern: pattern @ Pattern::Glob(_),
        } if *field == path => prefix(&pattern.start()),
        Expr::And(parts) => parts
            .iter()
            .filter_map(|part| names(part, path))
            .reduce(Names::and),
        Expr::Or(parts) => {
            let all: Option<Vec<_>> = parts.iter().map(|part| names(part, path)).collect();
            all?.into_iter().reduce(Names::or)
        }
        _ => None,
    }
}

/// A folder of the system that a rule would close to every program, if there is one.
pub(crate) fn closes(rule: &Rule, kind: Kind) -> Option<String> {
    let narrowed = narrow(&rule.predicate, kind);
    let open_to_all = |clause: &Clause| clause.exe_names.is_none() && clause.exe_paths.is_none();
    if kind == Kind::Open && !narrowed.clauses.iter().any(open_to_all) {
        return None;
    }
    let names = held(rule, kind).ok()?;
    SYSTEM
        .iter()
        .find(|folder| {
            names
                .prefixes
                .iter()
                .any(|prefix| folder.starts_with(prefix))
        })
        .map(|folder| text::from_bytes(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::check_file;

    fn rule(on: &str, when: &str) -> Rule {
        let text = format!(
            "[policy]\nname = \"p\"\nmode = \"enforce\"\n[[rule]]\nid = \"r\"\non = [{on:?}]\nwhen = '''{when}'''\neffect = \"deny\"\nforce = true\n"
        );
        let check = check_file("p.toml", &text);
        let policy = check.policy.unwrap_or_else(|| panic!("{:?}", check.errors));
        policy.rules[0].clone()
    }

    fn named(on: &str, when: &str) -> Result<Vec<String>, String> {
        let kind = if on == "open" { Kind::Open } else { Kind::Exec };
        let names = held(&rule(on, when), kind)?;
        let files = names.files.iter().map(|path| text::from_bytes(path));
        let below = names
            .prefixes
            .iter()
            .map(|path| format!("{}*", text::from_bytes(path)));
        Ok(files.chain(below).collect())
    }

    #[test]
    fn what_has_to_hold_names_the_files() {
        for (when, expected) in [
            (r#"file.path == "/a/b""#, &["/a/b"][..]),
            (r#"file.path in ["/a", "/b", "c"]"#, &["/a", "/b"]),
            (r#"file.path.startsWith("/a/")"#, &["/a/*"]),
            (r#"file.path.glob("/a/*.d/**") && proc.uid != 0"#, &["/a/*"]),
            // The plainest of several is enough.
            (
                r#"file.path.startsWith("/a/") && file.path == "/a/b""#,
                &["/a/b"],
            ),
            (
                r#"file.path == "/a" || file.path.startsWith("/b/c") && proc.exe.name == "x""#,
                &["/a", "/b/c*"],
            ),
            (r#"file.path == "/a" && file.access.write"#, &["/a"]),
            (r#"file.path == r"/a\xff""#, &[r"/a\xff"]),
        ] {
            assert_eq!(
                named("open", when).as_deref(),
                Ok(&expected
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect::<Vec<_>>()[..]),
                "{when}"
            );
        }
        assert_eq!(
            named("exec", r#"proc.exe.path == "/a/nc" && !(proc.uid == 0)"#),
            Ok(vec!["/a/nc".to_owned()])
        );
    }

    #[test]
    fn what_names_no_file_or_cannot_be_known_is_said() {
        for (on, when, reason) in [
            (
                "open",
                r#"file.path.glob("**/id_rsa")"#,
                "says which files: write file.path",
            ),
            ("open", r#"!(file.path == "/a")"#, "says which files"),
            (
                "open",
                r#"file.path == "/a" || proc.uid == 0"#,
                "says which files",
            ),
            ("open", r#"file.path.endsWith("/a")"#, "says which files"),
            (
                "open",
                r#"file.path.startsWith("/")"#,
                "every file there is",
            ),
            (
                "open",
                r#"file.path == "/a" && "-c" in proc.args"#,
                "proc.args is not known while",
            ),
            (
                "open",
                r#"file.path == "/a" && file.create"#,
                "file.create is not known while",
            ),
            (
                "exec",
                r#"proc.exe.name == "nc""#,
                "says which files: write proc.exe.path",
            ),
            (
                "exec",
                r#"proc.exe.path == "/a" && proc.euid == 0"#,
                "proc.euid is not known before",
            ),
            (
                "exec",
                r#"proc.exe.path == "/a" && proc.ancestors.exists(a, a.exe.name == "sh")"#,
                "proc.ancestors is not known before",
            ),
            (
                "exec",
                r#"proc.exe.path.startsWith("/opt/") && !(proc.exe.name == container.name)"#,
                "one condition reads both container.name and proc.exe.name",
            ),
            (
                "open",
                r#"file.path == "/a" && k8s.labels.exists(l, l == file.name)"#,
                "one condition reads both k8s.labels and file.name",
            ),
            (
                "unlink",
                r#"file.path == "/a""#,
                "only open and exec can be held",
            ),
        ] {
            let kind = match on {
                "open" => Kind::Open,
                "exec" => Kind::Exec,
                _ => Kind::Unlink,
            };
            let why = held(&rule(on, when), kind).expect_err(when);
            assert!(why.contains(reason), "{when}: {why}");
        }
    }

    #[test]
    fn a_rule_that_closes_the_system_needs_force() {
        let fault = |on: &str, when: &str, force: bool| {
            let text = format!(
                "[policy]\nname = \"p\"\nmode = \"enforce\"\n[[rule]]\nid = \"r\"\non = [{on:?}]\nwhen = '''{when}'''\neffect = \"deny\"\nforce = {force}\n"
            );
            let check = check_file("p.toml", &text);
            check.errors.first().map(|problem| problem.message.clone())
        };
        for (on, when) in [
            ("open", r#"file.path.startsWith("/usr/")"#),
            ("open", r#"file.path.startsWith("/etc/") && proc.uid != 0"#),
            ("open", r#"file.path.startsWith("/e")"#),
            ("exec", r#"proc.exe.path.startsWith("/usr/")"#),
        ] {
            let message = fault(on, when, false).unwrap_or_else(|| panic!("{when} is taken"));
            assert!(message.contains("force = true"), "{message}");
            assert_eq!(fault(on, when, true), None, "{when}");
        }
        for (on, when) in [
            ("open", r#"file.path.startsWith("/etc/cron.d/")"#),
            (
                "open",
                r#"file.path.startsWith("/etc/") && proc.exe.name == "nginx""#,
            ),
            ("exec", r#"proc.exe.path == "/usr/bin/nc""#),
        ] {
            assert_eq!(fault(on, when, false), None, "{when}");
        }
        let message = fault("open", "true", false).expect("every open");
        assert!(message.contains("force = true"), "{message}");
        let message = fault("exit", "proc.uid == 0", false).expect("an exit");
        assert!(message.contains("nothing to deny on exit"), "{message}");
    }
}
