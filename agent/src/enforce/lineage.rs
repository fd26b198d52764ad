//! What the kernel has to be told about processes and their ancestors: the answers of those that are older than the plan of the
//! rules that kill, or that the kernel had no room for.

use std::collections::HashSet;
use std::rc::Rc;

use sumun_abi::verdict::{LINEAGE_ENTRIES, Lineage};
use sumun_policy::verdict::{Atom, Texts, VerdictPlan};
use sumun_proto::text;
use sumun_proto::view::{UNKNOWN_TEXT, has_no_parent};

use crate::enrich::process::{ImageKey, Node, Program, Tree};
use crate::kernel::{Kernel, Seed};

/// Most processes that are told of: two plans are in the kernel's map during a swap.
const TOLD_MAX: usize = LINEAGE_ENTRIES as usize / 2;

/// Processes of which the kernel knows nothing, until it is told.
#[derive(Debug, Default)]
pub struct Untold {
    /// Those that a record has shown. Bounded by what one cycle reads.
    pub processes: Vec<Rc<Node>>,
    /// Processes that have ended.
    pub ended: Vec<(u32, u64)>,
    /// Those it was told of, by pid and start: what is in the kernel's map, hence as many at most.
    told: HashSet<(u32, u64)>,
    /// Since the last swap the rings have not been read up to it.
    stale: bool,
}

impl Untold {
    /// Words for every process that lives, for a plan that is about to become the active one, and how
    /// many there is no room for.
    pub fn everyone(&mut self, tree: &Tree, plan: &VerdictPlan) -> (Vec<Seed>, usize) {
        let mut seeds: Vec<Seed> = tree.living().map(|node| seed(&node, plan)).collect();
        // Where there is no room for all, the older ones are more likely to have children.
        seeds.sort_unstable_by_key(|seed| seed.start_ns);
        let left_out = seeds.len().saturating_sub(TOLD_MAX);
        seeds.truncate(TOLD_MAX);
        self.told = seeds.iter().map(|seed| (seed.pid, seed.start_ns)).collect();
        self.stale = true;
        (seeds, left_out)
    }

    /// Nothing of the cycle counts: it will be read again.
    pub fn discard(&mut self) {
        self.processes.clear();
        self.ended.clear();
    }

    /// Tells the kernel of the processes that the last cycle has shown, and drops those that have ended. How
    /// many there was no room for. `emptied`: everything that was recorded before the cycle has been read.
    pub fn tell(
        &mut self,
        kernel: &mut Kernel,
        tree: &Tree,
        plan: &VerdictPlan,
        emptied: bool,
    ) -> usize {
        for (pid, start_ns) in self.ended.drain(..) {
            if self.told.remove(&(pid, start_ns)) {
                kernel.unseed(pid, start_ns);
            }
        }
        let asked = asked(plan) != 0;
        if asked && emptied && std::mem::take(&mut self.stale) {
            // What was read since the plan was swapped may know more than what was told then.
            self.processes = tree.living().collect();
        }
        let mut left_out = 0;
        for node in self.processes.drain(..) {
            if !asked || !tree.is_alive(&node) {
                continue;
            }
            let key = (node.key.pid, node.key.start_ns);
            if self.told.len() >= TOLD_MAX && !self.told.contains(&key) {
                left_out += 1;
                continue;
            }
            let seed = seed(&node, plan);
            if kernel.seed(&seed).is_ok() {
                self.told.insert(key);
            } else {
                left_out += 1;
            }
        }
        left_out
    }
}

fn seed(node: &Rc<Node>, plan: &VerdictPlan) -> Seed {
    let ImageKey {
        pid,
        start_ns,
        image,
    } = node.key;
    let own = answers(node, ancestors(plan));
    let exe = answers(node, own_image(plan));
    let mut above = (0, 0);
    let mut top = Rc::clone(node);
    loop {
        if has_no_parent(top.key.pid, top.parent_pid()) {
            break;
        }
        // Who only was found running may have had another parent, or its parent another image, at its
        // fork: good enough to tell, not to kill. And the chain may go on unseen.
        let Some(parent) = top.parent().filter(|_| !top.is_found()) else {
            above.1 = bits(ancestors(plan));
            break;
        };
        let (yes, unknown) = answers(&parent, ancestors(plan));
        above.0 |= yes;
        above.1 |= unknown;
        top = parent;
    }
    Seed {
        pid,
        start_ns,
        lineage: Lineage {
            generation: 0,
            pad: 0,
            image,
            above_yes: above.0,
            above_unknown: above.1 & !above.0,
            own_yes: own.0,
            own_unknown: own.1,
            exe_yes: exe.0,
            exe_unknown: exe.1,
        },
    }
}

/// The bits of the atoms that the kernel has to be told about; 0: the plan does not ask for any.
#[must_use]
pub fn asked(plan: &VerdictPlan) -> u64 {
    bits(ancestors(plan)) | plan.kept()
}

fn bits<'a>(atoms: impl Iterator<Item = (u64, &'a Texts)>) -> u64 {
    atoms.fold(0, |bits, (bit, _)| bits | bit)
}

/// What other events than execs ask about the executable.
fn own_image(plan: &VerdictPlan) -> impl Iterator<Item = (u64, &Texts)> {
    let (kept, atoms) = (plan.kept(), plan.atoms.iter().enumerate());
    atoms.filter_map(move |(place, atom)| match atom {
        Atom::Exe(texts) if kept & 1 << place != 0 => Some((1 << place, texts)),
        _ => None,
    })
}

fn ancestors(plan: &VerdictPlan) -> impl Iterator<Item = (u64, &Texts)> {
    let atoms = plan.atoms.iter().enumerate();
    atoms.filter_map(|(place, atom)| match atom {
        Atom::Ancestor(texts) => Some((1 << place, texts)),
        _ => None,
    })
}

/// What an image answers to questions about executables: yes, and unknown.
fn answers<'a>(node: &Node, atoms: impl Iterator<Item = (u64, &'a Texts)>) -> (u64, u64) {
    let Some(program) = node.program() else {
        return (0, bits(atoms));
    };
    // A kernel thread has no executable: whether it is one that is asked for has no answer.
    let Some(path) = known_path(&program) else {
        return (0, bits(atoms));
    };
    let yes = atoms
        .filter(|(_, texts)| holds(texts, &path))
        .fold(0, |bits, (bit, _)| bits | bit);
    (yes, 0)
}

fn known_path(program: &Program) -> Option<Vec<u8>> {
    if program.exe_flaws & UNKNOWN_TEXT != 0 || program.exe_path.is_empty() {
        return None;
    }
    text::to_bytes(&program.exe_path)
}

/// Whether the path of an executable is one that is asked for.
fn holds(texts: &Texts, path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let among = |sorted: &[Vec<u8>], text: &[u8]| {
        let found = sorted.binary_search_by(|asked| asked.as_slice().cmp(text));
        found.is_ok()
    };
    among(&texts.names, name)
        || among(&texts.paths, path)
        || texts.prefixes.iter().any(|asked| path.starts_with(asked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::process::{Began, Limits};
    use sumun_abi::event::process::{Actor, Namespaces};
    use sumun_abi::record::FLAW_TRUNCATED;

    fn actor(pid: u32) -> Actor {
        Actor {
            pid,
            tid: pid,
            start_ns: u64::from(pid) * 10,
            image: 1,
            ..Actor::default()
        }
    }

    fn runs(tree: &mut Tree, pid: u32, parent: u32, path: &str, flaws: u32) -> Rc<Node> {
        began(tree, pid, parent, path, flaws, false)
    }

    fn began(
        tree: &mut Tree,
        pid: u32,
        parent: u32,
        path: &str,
        flaws: u32,
        bootstrapped: bool,
    ) -> Rc<Node> {
        tree.began(Began {
            actor: actor(pid),
            program: Program {
                exe_path: path.into(),
                exe_flaws: flaws,
                bootstrapped,
                ..Program::default()
            },
            ns: Namespaces::default(),
            parent: ImageKey {
                pid: parent,
                start_ns: u64::from(parent) * 10,
                image: 1,
            },
        })
    }

    #[test]
    fn a_process_is_told_with_what_its_ancestors_are() {
        let named = |name: &str| {
            Atom::Ancestor(Texts {
                names: vec![name.into()],
                ..Texts::default()
            })
        };
        let below = Texts {
            prefixes: vec![b"/opt/".to_vec()],
            ..Texts::default()
        };
        let plan = VerdictPlan {
            atoms: vec![
                Atom::Exe(Texts::default()),
                named("nginx"),
                named("sh"),
                Atom::Ancestor(below),
            ],
            clauses: Vec::new(),
        };
        let mut tree = Tree::new(Limits { bytes: 1 << 20 });
        runs(&mut tree, 1, 0, "/sbin/init", 0);
        runs(&mut tree, 2, 1, "/usr/sbin/nginx", 0);
        let shell = runs(&mut tree, 3, 2, "/bin/sh", 0);
        let lost = runs(&mut tree, 4, 1, "/opt/x", u32::from(FLAW_TRUNCATED));
        let child = runs(&mut tree, 5, 4, "/bin/sh", 0);
        let stray = runs(&mut tree, 6, 77, "/bin/sh", 0);
        let found = began(&mut tree, 7, 2, "/bin/sh", 0, true);
        let below = runs(&mut tree, 8, 7, "/bin/ls", 0);
        let nameless = tree.find(&actor(9));

        let words = |node: &Rc<Node>| {
            let lineage = seed(node, &plan).lineage;
            (
                lineage.above_yes,
                lineage.above_unknown,
                lineage.own_yes,
                lineage.own_unknown,
            )
        };
        assert_eq!(words(&shell), (0b0010, 0, 0b0100, 0));
        assert_eq!(words(&lost), (0, 0, 0, 0b1110));
        assert_eq!(words(&child), (0, 0b1110, 0b0100, 0));
        assert_eq!(words(&stray), (0, 0b1110, 0b0100, 0));
        assert_eq!(words(&found), (0, 0b1110, 0b0100, 0));
        assert_eq!(words(&below), (0b0100, 0b1010, 0, 0));
        assert_eq!(words(&nameless), (0, 0b1110, 0, 0b1110));
        let (all, left_out) = Untold::default().everyone(&tree, &plan);
        assert_eq!((all.len(), left_out), (9, 0));
    }
}
