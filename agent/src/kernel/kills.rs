//! The ways in which the kernel kills, each tried at the start: on a child of the agent's own that does no harm, by a rule like any
//! other that stands behind those that are loaded. So all of it has to work: hook, filter, path, judgement and signal.
//!
//! The child is a program of some forty bytes in a file without a name: it opens `/` and ends. By its name one rule kills it when it
//! starts, another when it opens.

use std::{
    fs::File,
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitStatus, Stdio},
};

use serde::Serialize;
use sumun_policy::{
    doors::Killing,
    file::check_file,
    plan::{CLAUSES_MAX, KindPlan, Plan, is_life},
    verdict::{ATOMS_MAX, CLAUSES_MAX as VERDICTS_MAX, VerdictPlan},
};
use sumun_proto::v1::Kind;

use super::{Error, Kernel, Known, tries};

/// A way to kill, as it works on this host.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct KillStatus {
    /// `kill-before-start` or `kill-after`.
    pub mode: &'static str,
    /// A child of the agent's own was killed so, or whether it would be could not be tried. Else rules are carried out late.
    pub available: bool,
    /// Why it does not work here, or could not be tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl KillStatus {
    /// Whether it was tried.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.available || self.reason.is_none()
    }
}

/// Each way, the kind on which it is tried, and the end of the child's name.
const WAYS: [(Killing, Kind, &str); 2] = [
    (Killing::BeforeStart, Kind::Exec, "start"),
    (Killing::After, Kind::Open, "open"),
];
/// A way works if a child is killed at one of so many tries: a kernel may leave a program out where another exec preempts it, which is counted.
const TRIES: usize = 5;
/// `SIGKILL`
const SIGKILL: i32 = 9;

/// The rules that kill the children, behind those of a plan.
#[derive(Debug)]
pub struct Trial {
    /// What the names of its children begin with: nobody else's do.
    name: String,
    /// Why there is no room for its rules.
    left_out: Option<&'static str>,
}

impl Trial {
    /// Puts its rules behind those of the plans, of which there are `rules`.
    #[must_use]
    pub fn behind(plan: &mut Plan, verdicts: &mut VerdictPlan, rules: usize) -> Self {
        let name = format!("sumun-trial-{:016x}", rand::random::<u64>());
        let left_out = add(&name, plan, verdicts, rules).err();
        Self { name, left_out }
    }

    /// The kernel takes no rules with those of the trial among them. True if they had been.
    pub fn leave_out(&mut self) -> bool {
        let there = self.left_out.is_none();
        self.left_out
            .get_or_insert("the loaded rules leave no room beside them in the kernel's map");
        there
    }
}

fn add(
    name: &str,
    plan: &mut Plan,
    verdicts: &mut VerdictPlan,
    rules: usize,
) -> Result<(), &'static str> {
    let own = VerdictPlan::build(&[policy(name)?], &sumun_policy::doors::Doors::foreseen(), 0);
    let (own_plan, _) = Plan::build(&[policy(name)?]);
    if !own.1.is_empty() {
        return Err("its rules are not judged by the kernel");
    }
    let own = own.0;
    let before = verdicts.atoms.len();
    if before + own.atoms.len() > ATOMS_MAX
        || verdicts.clauses.len() + own.clauses.len() > VERDICTS_MAX
    {
        return Err("the loaded rules leave no room beside them in the kernel");
    }
    for (kind, asked) in own_plan.kinds {
        let clauses = match asked {
            KindPlan::None => continue,
            KindPlan::All if is_life(kind) => continue,
            KindPlan::All => return Err("its rules cannot be filtered for"),
            KindPlan::Clauses(clauses) => clauses,
        };
        match plan.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, KindPlan::All)) => {}
            Some((_, KindPlan::Clauses(known))) => {
                if known.len() + clauses.len() > CLAUSES_MAX {
                    return Err(
                        "the loaded rules leave no room beside them in the kernel's filter",
                    );
                }
                known.extend(clauses);
            }
            Some((_, none)) => *none = KindPlan::Clauses(clauses),
            None => plan.kinds.push((kind, KindPlan::Clauses(clauses))),
        }
    }
    verdicts.atoms.extend(own.atoms);
    verdicts
        .clauses
        .extend(own.clauses.into_iter().map(|mut clause| {
            clause.need <<= before;
            clause.forbid <<= before;
            clause.rule += rules;
            clause
        }));
    Ok(())
}

/// The rules, in the language of policies.
fn policy(name: &str) -> Result<sumun_policy::CheckedPolicy, &'static str> {
    let rules = WAYS.map(|(_, kind, end)| {
        let on = sumun_proto::catalogue::kind_name(kind);
        // By what it opens the filter knows that it is asked for.
        let what = match kind {
            Kind::Open => "file.path == \"/\" && ",
            _ => "",
        };
        // A file without a name has this path, without a slash.
        format!(
            "[[rule]]\nid = \"{end}\"\non = [\"{on}\"]\nwhen = '{what}proc.exe.path.startsWith(\"memfd:{name}-{end}\")'\neffect = \"kill\"\n"
        )
    });
    let text = format!(
        "[policy]\nname = \"trial\"\nversion = 1\nmode = \"enforce\"\n{}",
        rules.concat()
    );
    check_file("trial", &text)
        .policy
        .ok_or("its rules are not understood")
}

impl Kernel {
    /// Tries the ways to kill, with the rules of a trial in force. The children's numbers: what is recorded of them is no event.
    pub fn try_kills(&mut self, trial: &Trial) -> Vec<u32> {
        let mut children = Vec::new();
        let mut run = |end: &str| {
            let (pid, status) = run(&format!("{}-{end}", trial.name))?;
            children.push(pid);
            Ok::<_, String>(status)
        };
        // Without a rule it has to end by itself, or its end would prove nothing.
        let free = run("free").and_then(|status| match status.success() {
            true => Ok(()),
            false => Err(format!(
                "a program in a file without a name ends so: {status}"
            )),
        });
        let untold = free
            .err()
            .or_else(|| trial.left_out.map(str::to_owned))
            .map(|reason| format!("it could not be tried: {reason}"));
        self.kills = WAYS
            .iter()
            .map(|(killing, kind, end)| {
                let status = |available, reason| KillStatus {
                    mode: killing.mode(),
                    available,
                    reason,
                };
                if let Some(reason) = &untold {
                    return status(true, Some(reason.clone()));
                }
                let on = sumun_proto::catalogue::kind_name(*kind);
                let is_killed = |ended: &Result<ExitStatus, String>| {
                    ended.as_ref().is_ok_and(|ended| ended.signal() == Some(SIGKILL))
                };
                let mut ended = run(end);
                for _ in 1..TRIES {
                    if is_killed(&ended) {
                        break;
                    }
                    ended = run(end);
                }
                match ended {
                    Ok(ended) if ended.signal() == Some(SIGKILL) => status(true, None),
                    Ok(ended) => status(
                        false,
                        Some(format!(
                            "without effect: a child of the agent's own that a rule kills on {on} went on, {TRIES} times: {ended}"
                        )),
                    ),
                    Err(reason) => status(true, Some(format!("it could not be tried: {reason}"))),
                }
            })
            .collect();
        children
    }

    /// Tries them on a kernel side that has no rules and is not attached: it is then.
    pub(super) fn kill_on_trial(&mut self) -> Result<(), Error> {
        let (mut plan, mut verdicts) = (Plan::default(), VerdictPlan::default());
        let trial = Trial::behind(&mut plan, &mut verdicts, 0);
        let generation = self.last_generation().wrapping_add(1);
        self.set_rules(&plan, &verdicts, generation, Known::default)?;
        self.attach()?;
        self.hold_until(u64::MAX)?;
        self.try_kills(&trial);
        Ok(())
    }

    /// How the kernel kills here; empty until it was tried.
    #[must_use]
    pub fn kills(&self) -> &[KillStatus] {
        &self.kills
    }

    /// The ways that were seen not to work, and why.
    pub(super) fn without_kills(&self) -> Vec<(Killing, String)> {
        let failed = self.kills.iter().filter(|status| !status.available);
        failed
            .filter_map(|status| {
                let (killing, ..) = WAYS
                    .iter()
                    .find(|(killing, ..)| killing.mode() == status.mode)?;
                Some((*killing, status.reason.clone()?))
            })
            .collect()
    }
}

fn run(name: &str) -> Result<(u32, ExitStatus), String> {
    let (_file, path): (File, _) = tries::nameless(name, &program())?;
    let mut child = Command::new(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| {
            format!("a program in a file without a name cannot be started: {error}")
        })?;
    let status = child
        .wait()
        .map_err(|error| format!("cannot wait for a child: {error}"))?;
    Ok((child.id(), status))
}

/// Where it is loaded.
const BASE: u64 = 0x40_0000;
/// Bytes before its instructions: those of an ELF header and one program header.
const HEADERS: u64 = 64 + 56;

/// openat(AT_FDCWD, "/", O_DIRECTORY), exit_group(0), and the path.
#[cfg(target_arch = "x86_64")]
const CODE: (u16, &[u8]) = (
    62,
    &[
        0xb8, 0x01, 0x01, 0x00, 0x00, // mov eax, 257
        0x48, 0xc7, 0xc7, 0x9c, 0xff, 0xff, 0xff, // mov rdi, -100
        0x48, 0x8d, 0x35, 0x13, 0x00, 0x00, 0x00, // lea rsi, [rip + 19]
        0xba, 0x00, 0x00, 0x01, 0x00, // mov edx, 0x10000
        0x45, 0x31, 0xd2, // xor r10d, r10d
        0x0f, 0x05, // syscall
        0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax, 231
        0x31, 0xff, // xor edi, edi
        0x0f, 0x05, // syscall
        b'/', 0,
    ],
);
#[cfg(target_arch = "aarch64")]
const CODE: (u16, &[u8]) = (
    183,
    &[
        0x08, 0x07, 0x80, 0xd2, // mov x8, 56
        0x60, 0x0c, 0x80, 0x92, // mov x0, -100
        0xe1, 0x00, 0x00, 0x10, // adr x1, . + 28
        0x02, 0x00, 0x88, 0xd2, // mov x2, 0x4000
        0x03, 0x00, 0x80, 0xd2, // mov x3, 0
        0x01, 0x00, 0x00, 0xd4, // svc 0
        0xc8, 0x0b, 0x80, 0xd2, // mov x8, 94
        0x00, 0x00, 0x80, 0xd2, // mov x0, 0
        0x01, 0x00, 0x00, 0xd4, // svc 0
        b'/', 0,
    ],
);

/// The program: an ELF file whose one segment is the file.
fn program() -> Vec<u8> {
    let (machine, code) = CODE;
    let length = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // ET_EXEC, the machine, EV_CURRENT.
    for half in [2_u16, machine, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    // Entry, program headers, no sections.
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    // No flags; sizes and numbers of headers.
    for half in [0_u16, 0, 64, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, to be read and executed.
    for half in [1_u32, 5] {
        file.extend(half.to_le_bytes());
    }
    for word in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_does_nothing_and_ends() {
        let (_, status) = run("sumun-trial-test").expect("it starts");
        assert!(status.success(), "{status}");
    }

    #[test]
    fn its_rules_stand_behind_the_others_while_there_is_room() {
        let (mut plan, mut verdicts) = (Plan::default(), VerdictPlan::default());
        let first = Trial::behind(&mut plan, &mut verdicts, 3);
        assert_eq!(first.left_out, None);
        let asked = plan.kinds.iter().find(|(kind, _)| *kind == Kind::Open);
        assert!(matches!(asked, Some((_, KindPlan::Clauses(one))) if one.len() == 1));
        let rules: Vec<_> = verdicts.clauses.iter().map(|clause| clause.rule).collect();
        assert_eq!(rules, [3, 4]);
        let before = verdicts.atoms.len();
        assert_eq!(Trial::behind(&mut plan, &mut verdicts, 5).left_out, None);
        let last = &verdicts.clauses[3];
        assert!(last.need >> before != 0 && last.need.trailing_zeros() as usize >= before);
        while Trial::behind(&mut plan, &mut verdicts, 0)
            .left_out
            .is_none()
        {}
        assert!(verdicts.atoms.len() <= ATOMS_MAX && verdicts.clauses.len() <= VERDICTS_MAX);
    }
}
