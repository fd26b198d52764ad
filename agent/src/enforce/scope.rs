//! Whose each cgroup is, as the kernel has to know it, and who holds calls: the answers to what their rules ask about workloads and hosts.
//!
//! Each cgroup has two: what holds for its own processes, and what holds for those of all cgroups below, those to come
//! included. The kernel asks the nearest cgroup that has an entry, so those that say nothing else than what is above them
//! have none. A pod's cgroup says what its name and labels decide before its first container is made.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use sumun_abi::verdict::{SCOPE_STEPS, SCOPES_ENTRIES, Scope};
use sumun_policy::Predicate;
use sumun_policy::verdict::scope::{self, Question};
use sumun_policy::verdict::{Atom, VerdictPlan};
use sumun_proto::v1;
use sumun_proto::{Host, View};

use crate::enrich::workload::below::holds_below;
use crate::enrich::workload::path::classify;
use crate::enrich::workload::{Workload, Workloads};
use crate::kernel::Kernel;

/// Most cgroups with an entry: two plans are in the kernel's map during a swap.
const TOLD_MAX: usize = SCOPES_ENTRIES as usize / 2;
/// Of them below units and containers of the host, where whoever runs in them may make cgroups: the rest is for these themselves.
const DEEPER_MAX: usize = TOLD_MAX / 4 * 3;
/// With fewer than so much of a bound, those that were left out are tried again.
fn is_room_again(told: usize, max: usize) -> bool {
    told < max / 16 * 15
}
/// When the kernel did not take an entry, all are tried again after so long.
const RETRY: Duration = Duration::from_secs(1);

/// What the kernel is told of cgroups.
#[derive(Debug)]
pub struct Scopes {
    host: Host,
    /// What others than the kernel say of the host.
    facts: v1::Facts,
    active: Plan,
    /// Of the rules by which calls are held.
    held: Held,
    /// All cgroups have to be looked at again.
    stale: bool,
    /// When all cgroups are looked at again, because the kernel did not take some.
    retry: Option<Instant>,
    left_out: u64,
}

/// The questions of a plan, and what is known for them.
#[derive(Debug, Default)]
pub struct Plan {
    /// By their bits.
    questions: Vec<(u64, Question)>,
    /// What is in the kernel's map; [`TOLD_MAX`] at most.
    told: HashMap<u64, Scope>,
    /// Of them those below units and containers of the host; [`DEEPER_MAX`] at most.
    deeper: HashSet<u64>,
    /// Cgroups for which there was no room.
    left_out: u64,
    /// There are such cgroups now: of the host, and below.
    is_short: [bool; 2],
    /// It is asked by paths, and from the root on: what is more than [`SCOPE_STEPS`] deep is what is above it there.
    by_path: bool,
}

/// What who holds calls is told: by the paths of cgroups, which is what `/proc` tells of a process.
#[derive(Debug, Default)]
struct Held {
    plan: Plan,
    /// Of the cgroups that were told of.
    paths: HashMap<u64, String>,
    /// Not taken yet, in this order. Taken in each cycle.
    changes: Vec<Told>,
    /// All cgroups have to be looked at again.
    stale: bool,
}

/// What is known of the cgroup of a path; `None`: it is gone.
pub type Told = (String, Option<Scope>);

/// An entry that the kernel does not have.
struct Differing {
    cgroup: u64,
    scope: Scope,
    /// Cgroups below that have no entry have other answers now.
    moves_below: bool,
}

/// The questions of a plan.
fn questions(plan: &VerdictPlan) -> Vec<(u64, Question)> {
    let atoms = plan.atoms.iter().enumerate();
    atoms
        .filter_map(|(place, atom)| match atom {
            Atom::Scope(scope) => Some((1 << place, Question::new(scope))),
            _ => None,
        })
        .collect()
}

/// Whether the kernel has to be told of cgroups for a plan.
#[must_use]
pub fn asked(plan: &VerdictPlan) -> bool {
    plan.atoms.iter().any(|atom| matches!(atom, Atom::Scope(_)))
}

/// Whether a plan, or these questions, ask what a cloud says of the host.
#[must_use]
pub fn asks_for_cloud(plan: &VerdictPlan, held: &[Predicate]) -> bool {
    let asked = plan.atoms.iter().filter_map(|atom| match atom {
        Atom::Scope(scope) => Some(&scope.asked),
        _ => None,
    });
    let mut fields = asked.chain(held).flat_map(Predicate::fields);
    fields.any(|field| field.info().name.starts_with("cloud."))
}

/// What may be asked of one workload after another.
struct Asked {
    batch: v1::Batch,
    event: v1::Event,
}

impl Asked {
    fn new(facts: &v1::Facts) -> Self {
        Self {
            batch: v1::Batch {
                host: Some(facts.clone()),
                images: vec![v1::Image {
                    workload: 1,
                    ..v1::Image::default()
                }],
                ..v1::Batch::default()
            },
            event: v1::Event {
                image: 1,
                ..v1::Event::default()
            },
        }
    }

    /// What a cgroup answers.
    fn scope(
        &mut self,
        questions: &[(u64, Question)],
        host: &Host,
        (path, workload): (&str, &Workload),
    ) -> Scope {
        self.batch.workloads.clear();
        self.batch.workloads.push(workload.told.clone());
        let view = View {
            host,
            batch: &self.batch,
            event: &self.event,
            alert: None,
        };
        let place = classify(path);
        let mut scope = Scope::default();
        for (bit, question) in questions {
            match question.answer(&view, |_| true) {
                Some(true) => scope.yes |= bit,
                Some(false) => {}
                None => scope.unknown |= bit,
            }
            let holds = |field| holds_below(field, &place, &workload.told);
            match question.answer(&view, holds) {
                Some(true) => scope.below_yes |= bit,
                Some(false) => {}
                None => scope.below_unknown |= bit,
            }
        }
        scope
    }
}

/// The paths above one, the nearest first.
fn above(path: &str) -> impl Iterator<Item = &str> {
    fn next(path: &str) -> Option<&str> {
        match path.rsplit_once('/')? {
            ("", "") => None,
            ("", _) => Some("/"),
            (above, _) => Some(above),
        }
    }
    std::iter::successors(next(path), |path| next(path))
}

impl Plan {
    /// The entries of these cgroups, those above first, that say something else than what the kernel has, and than what
    /// is above. What is told is kept.
    fn differing(
        &mut self,
        (host, facts): (&Host, &v1::Facts),
        workloads: &Workloads,
        all: &[u64],
    ) -> Vec<Differing> {
        let mut asked = Asked::new(facts);
        let mut differing = Vec::new();
        for id in all {
            let Some((path, workload)) = workloads.there_is(*id) else {
                continue;
            };
            if self.by_path && path.matches('/').count() > SCOPE_STEPS as usize {
                continue;
            }
            let scope = asked.scope(&self.questions, host, (path, workload));
            let said = |scope: &Scope| (scope.below_yes, scope.below_unknown);
            let known = self.told.get(id);
            if known == Some(&scope) {
                continue;
            }
            if known.is_none() {
                let mut near = above(path).take(SCOPE_STEPS as usize);
                let above = near.find_map(|path| self.told.get(&workloads.at(path)?));
                if above.is_some_and(|above| {
                    said(above) == (scope.yes, scope.unknown) && said(above) == said(&scope)
                }) {
                    continue;
                }
                let is_deeper = classify(path).made_by_host < path.len();
                if self.told.len() >= TOLD_MAX || is_deeper && self.deeper.len() >= DEEPER_MAX {
                    self.is_short[usize::from(is_deeper)] = true;
                    self.left_out += 1;
                    continue;
                }
                if is_deeper {
                    self.deeper.insert(*id);
                }
            }
            differing.push(Differing {
                cgroup: *id,
                scope,
                // Of another one all below belong to its workload, and have changed with it; or it is new, and they are.
                moves_below: known.is_some_and(|known| said(known) != said(&scope))
                    || workload.told.kind == "pod",
            });
            self.told.insert(*id, scope);
        }
        differing
    }

    /// The cgroups without an entry below these.
    fn below(&self, workloads: &Workloads, moved: &HashSet<String>) -> HashSet<u64> {
        let below = workloads.there().filter(|(id, path, _)| {
            !self.told.contains_key(id) && above(path).any(|path| moved.contains(path))
        });
        below.map(|(id, ..)| id).collect()
    }

    /// A cgroup has no entry any more. False if it had none.
    fn forget(&mut self, id: u64) -> bool {
        self.deeper.remove(&id);
        self.told.remove(&id).is_some()
    }

    /// There is room again for what was left out.
    fn has_room_again(&mut self) -> bool {
        let all = is_room_again(self.told.len(), TOLD_MAX);
        let deeper = all && is_room_again(self.deeper.len(), DEEPER_MAX);
        let mut again = false;
        for (short, room) in self.is_short.iter_mut().zip([all, deeper]) {
            again |= *short && room;
            *short &= !room;
        }
        again
    }
}

impl Scopes {
    /// What a host is asked about.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self {
            host,
            facts: v1::Facts::default(),
            active: Plan::default(),
            held: Held::default(),
            stale: false,
            retry: None,
            left_out: 0,
        }
    }

    /// Takes what others than the kernel say of the host.
    pub fn set_host(&mut self, facts: &v1::Facts) {
        let told = |facts: &v1::Facts| {
            (
                facts.cloud.clone(),
                facts.system.clone(),
                facts.cloud_pending,
            )
        };
        let changed = told(&self.facts) != told(facts);
        self.stale |= changed;
        self.held.stale |= changed;
        self.facts = facts.clone();
    }

    /// Entries of all cgroups that are there, for a plan that is about to become the active one: see [`Scopes::swap`].
    #[must_use]
    pub fn everyone(&self, workloads: &Workloads, plan: &VerdictPlan) -> (Plan, Vec<(u64, Scope)>) {
        let mut plan = Plan {
            questions: questions(plan),
            ..Plan::default()
        };
        if plan.questions.is_empty() {
            return (plan, Vec::new());
        }
        let all = sorted(workloads, workloads.there().map(|(id, ..)| id).collect());
        let told = plan.differing((&self.host, &self.facts), workloads, &all);
        let told = told.into_iter().map(|one| (one.cgroup, one.scope));
        (plan, told.collect())
    }

    /// The plan is the active one. How many cgroups it has no room for, with `unwritten` that the kernel did not take.
    pub fn swap(&mut self, plan: Plan, unwritten: usize) -> u64 {
        let left_out = plan.left_out + unwritten as u64;
        self.left_out += left_out;
        self.active = plan;
        self.retry = None;
        self.stale = false;
        if unwritten > 0 {
            // Which ones it took is not known: all are told again.
            self.active.told.clear();
            self.active.deeper.clear();
            self.retry = Some(Instant::now() + RETRY);
        }
        left_out
    }

    /// Tells the kernel of the cgroups that have changed since, and takes those that are gone out of it.
    pub fn tell(&mut self, kernel: &mut Kernel, workloads: &mut Workloads) {
        let changed = workloads.take_changed();
        self.tell_holder(workloads, &changed);
        if self.active.questions.is_empty() {
            return;
        }
        if self.retry.is_some_and(|at| Instant::now() >= at) {
            self.retry = None;
            self.stale = true;
        }
        self.stale |= self.active.has_room_again();
        let mut round = to_ask(workloads, &changed, std::mem::take(&mut self.stale));
        for id in changed {
            if workloads.there_is(id).is_none() && self.active.forget(id) {
                kernel.unscope(id);
            }
        }
        while !round.is_empty() {
            let all = sorted(workloads, round);
            let before = self.active.left_out;
            let differing = self
                .active
                .differing((&self.host, &self.facts), workloads, &all);
            self.left_out += self.active.left_out - before;
            let mut moved = HashSet::new();
            for one in differing {
                if let Err(error) = kernel.scope(one.cgroup, one.scope) {
                    tracing::debug!(%error, "the kernel has no room for whose a cgroup is");
                    // What it had is not right any more.
                    kernel.unscope(one.cgroup);
                    self.active.forget(one.cgroup);
                    self.retry = Some(Instant::now() + RETRY);
                    self.left_out += 1;
                } else if one.moves_below
                    && let Some((path, _)) = workloads.there_is(one.cgroup)
                {
                    moved.insert(path.to_owned());
                }
            }
            if moved.is_empty() {
                break;
            }
            round = self.active.below(workloads, &moved);
        }
    }

    /// From now on these are the questions of who holds calls, by their numbers; all cgroups that have something to say.
    #[must_use]
    pub fn hold(&mut self, workloads: &Workloads, asked: &[Predicate]) -> Vec<(String, Scope)> {
        let numbered = asked.iter().enumerate();
        let questions = numbered.map(|(number, asked)| {
            let asked = asked.clone();
            let presumed = false;
            (
                1 << number,
                Question::new(&scope::Scope { asked, presumed }),
            )
        });
        self.held = Held {
            plan: Plan {
                questions: questions.collect(),
                by_path: true,
                ..Plan::default()
            },
            ..Held::default()
        };
        self.held.stale = true;
        self.tell_holder(workloads, &HashSet::new());
        let told = self.take_told().into_iter();
        told.filter_map(|(path, scope)| Some((path, scope?)))
            .collect()
    }

    /// What who holds calls has to be told since this was called last.
    #[must_use]
    pub fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.held.changes)
    }

    fn tell_holder(&mut self, workloads: &Workloads, changed: &HashSet<u64>) {
        let Self {
            host, facts, held, ..
        } = self;
        if held.plan.questions.is_empty() {
            return;
        }
        // What is gone, or has another path, first: another may have taken the path.
        for id in changed {
            let path = workloads.there_is(*id).map(|(path, _)| path);
            if held.paths.get(id).map(String::as_str) != path
                && let Some(before) = held.paths.remove(id)
            {
                held.plan.forget(*id);
                held.changes.push((before, None));
            }
        }
        held.stale |= held.plan.has_room_again();
        let mut round = to_ask(workloads, changed, std::mem::take(&mut held.stale));
        while !round.is_empty() {
            let all = sorted(workloads, round);
            let before = held.plan.left_out;
            let differing = held.plan.differing((&*host, &*facts), workloads, &all);
            self.left_out += held.plan.left_out - before;
            let mut moved = HashSet::new();
            for one in differing {
                if let Some((path, _)) = workloads.there_is(one.cgroup) {
                    held.paths.insert(one.cgroup, path.to_owned());
                    held.changes.push((path.to_owned(), Some(one.scope)));
                    if one.moves_below {
                        moved.insert(path.to_owned());
                    }
                }
            }
            round = match moved.is_empty() {
                true => HashSet::new(),
                false => held.plan.below(workloads, &moved),
            };
        }
    }

    /// Cgroups of which the kernel knows no more than what is said of all below one above.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The active plan asks whose cgroups are.
    #[must_use]
    pub fn are_asked(&self) -> bool {
        !self.active.questions.is_empty()
    }

    /// There are cgroups of which the kernel should know more and does not.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let short = |plan: &Plan| plan.is_short.contains(&true);
        short(&self.active) || short(&self.held.plan) || self.retry.is_some()
    }

    /// Cgroups that the kernel was told of.
    #[must_use]
    pub fn told(&self) -> usize {
        self.active.told.len()
    }
}

/// The cgroups to be asked about: all that are there, or of those that have changed the ones that still are.
fn to_ask(workloads: &Workloads, changed: &HashSet<u64>, all: bool) -> HashSet<u64> {
    if all {
        return workloads.there().map(|(id, ..)| id).collect();
    }
    let there = |id: &u64| workloads.there_is(*id).is_some();
    changed.iter().copied().filter(there).collect()
}

/// Those above before those below.
fn sorted(workloads: &Workloads, all: HashSet<u64>) -> Vec<u64> {
    let mut all: Vec<u64> = all.into_iter().collect();
    all.sort_by_cached_key(|id| workloads.there_is(*id).map_or(0, |(path, _)| path.len()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f0a5a3b1c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f607";
    const OTHER: &str = "aaaaaaaabbbbbbbbccccccccddddddddeeeeeeeeffffffff0000000011111111";
    const UID: &str = "8a5f1e0c-6b1d-4d57-9f5d-0c5b7c3e2a11";

    fn plan(asked: &[&str]) -> VerdictPlan {
        let atoms = asked.iter().map(|asked| {
            Atom::Scope(scope::Scope {
                asked: Predicate::parse(asked, &Default::default()).expect("a predicate"),
                presumed: false,
            })
        });
        VerdictPlan {
            atoms: atoms.collect(),
            clauses: Vec::new(),
        }
    }

    fn words(scope: &Scope) -> [u64; 4] {
        [
            scope.yes,
            scope.unknown,
            scope.below_yes,
            scope.below_unknown,
        ]
    }

    #[test]
    fn a_named_pod_answers_for_its_containers_before_they_are_there() {
        let mut all = Workloads::default();
        let pod = format!("/kubepods/pod{UID}");
        for (id, path) in [
            (1, "/".to_owned()),
            (2, "/kubepods".to_owned()),
            (3, pod.clone()),
            (4, format!("{pod}/{ID}")),
            (5, format!("{pod}/{OTHER}")),
            (6, format!("{pod}/{OTHER}/below")),
            (7, "/system.slice".to_owned()),
            (8, "/system.slice/a.service".to_owned()),
            (9, "/system.slice/a.service/below".to_owned()),
        ] {
            all.asking = true;
            all.made(id, &path, 0);
        }
        let plan = plan(&[
            "'app=cart' in k8s.labels",
            "container.name == 'web'",
            "host.name == 'here'",
        ]);
        let scopes = Scopes::new(Host {
            name: "here".into(),
            ..Host::default()
        });
        let told = |all: &Workloads| {
            let (_, told) = scopes.everyone(all, &plan);
            let told = told.iter().map(|(id, scope)| (*id, words(scope)));
            told.collect::<HashMap<_, _>>()
        };
        let before = told(&all);
        assert_eq!(before[&1], [0b100, 0, 0b100, 0b011]);
        // Who is asked about is as unknown as all below the pod.
        assert_eq!(before[&3], [0b100, 0, 0b100, 0b011]);
        assert!(!before.contains_key(&4) && !before.contains_key(&5));
        assert_eq!(before[&8], [0b100, 0, 0b100, 0]);
        assert!(!before.contains_key(&9));
        all.learned(
            4,
            Some(&v1::Facts {
                source: "cri".into(),
                pod_name: "cart-0".into(),
                pod_uid: UID.into(),
                pod_labels: vec!["app=cart".into()],
                ..v1::Facts::default()
            }),
        );
        let named = told(&all);
        assert_eq!(named[&3], [0b101, 0, 0b101, 0b010]);
        // The one that holds its namespaces has no name.
        assert_eq!(named[&4], [0b101, 0, 0b101, 0]);
        // What is to be known of a sibling, the pod says of all below.
        assert!(!named.contains_key(&5) && !named.contains_key(&6));
    }

    #[test]
    fn above_is_every_path_up_to_the_root() {
        let all = |path| above(path).collect::<Vec<_>>();
        assert_eq!(all("/a/b/c"), ["/a/b", "/a", "/"]);
        assert_eq!(all("/a"), ["/"]);
        assert_eq!(all("/"), [""; 0]);
    }
}
