//! Whose a process is: every cgroup that a record may still name, with the workload it belongs to.
//!
//! A cgroup is known from the record of its making, which comes before any process can be in it; those that were
//! there before come from a walk after the hooks are attached, and after a restart those that have gone since from
//! batches still in the spool. A cgroup that was removed stays until the bulk ring has been read beyond
//! its end.
//!
//! A pod is named when its first container is, which is the one that holds its namespaces: all containers that are made in it
//! later have its name and labels from their making on.
//!
//! Memory is bounded by numbers: [`CGROUPS_MAX`] in all, [`NESTED_MAX`] below one unit or container of the host and
//! [`BELOW_MAX`] below all of them, so that who may make cgroups crowds out only its own, whatever it calls them. What is
//! left out is counted; its events name no workload.

pub mod below;
pub mod path;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use sumun_proto::v1;

use super::runtime::Question;

/// Most cgroups that are kept.
pub const CGROUPS_MAX: usize = 64 * 1024;
/// Most cgroups that are kept of a unit or container of the host, with all below it, containers of users included.
pub const NESTED_MAX: usize = 1024;
/// Most cgroups that are kept below units and containers of the host; the rest is for these themselves.
pub const BELOW_MAX: usize = CGROUPS_MAX / 4 * 3;

/// Most cgroups of before a restart that are kept beside all these: their last records may still be read.
pub const RESTORED_MAX: usize = CGROUPS_MAX / 4;
/// The account of cgroups below one that is not known.
const NOBODYS: u64 = 0;
/// Paths of which some are taken for unread: as [`crate::kernel::cgroup::walk`] leaves them out.
type Unread = HashSet<String>;

/// A container, or its pod, that could not be asked about is asked about again after so long, longer each time …
const UNASKED_AGAIN: Duration = Duration::from_secs(2);
/// … and at most.
const UNASKED_AGAIN_MAX: Duration = Duration::from_secs(60);
/// Tries until the time is doubled.
const UNASKED_TRIES: u32 = 8;
/// While there is no runtime to ask, containers are pending for so long: it may be about to begin …
const NOBODY_AFTER: Duration = Duration::from_secs(5);
/// … or, of one that was there before, to begin again.
pub(super) const AWAY_AFTER: Duration = Duration::from_secs(600);

/// A workload: one cgroup with all below it.
#[derive(Debug)]
pub struct Workload {
    /// As batches tell it.
    pub told: v1::Workload,
    /// The host's runtimes may be asked of it.
    pub by_host: bool,
}

/// Counters, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadStats {
    /// Cgroups known.
    pub cgroups: usize,
    /// Cgroups that were not taken or given up early, because there were too many.
    pub left_out: u64,
    /// Records that named a cgroup of which nothing was known.
    pub unknown: u64,
    /// Containers that no runtime has named yet, but may.
    pub pending: usize,
}

#[derive(Debug)]
struct Known {
    path: Rc<str>,
    workload: Rc<Workload>,
    /// From a batch of before a restart: nobody has been asked of it.
    restored: bool,
    /// The cgroup of the host's unit or container that it is counted against.
    account: u64,
}

/// All cgroups that a record may still name, by id.
#[derive(Debug, Default)]
pub struct Workloads {
    cgroups: HashMap<u64, Known>,
    /// Of those that are there now.
    paths: HashMap<Rc<str>, u64>,
    /// Removed ones, oldest first, with the cycle in which that was read.
    gone: VecDeque<(u64, u64)>,
    /// The cgroups of each workload.
    below: HashMap<u64, Vec<u64>>,
    /// How many cgroups count against each unit or container of the host.
    accounts: HashMap<u64, usize>,
    /// Those that are below them.
    deeper: usize,
    cycle: u64,
    stats: WorkloadStats,
    /// There is a runtime that can be asked.
    pub asking: bool,
    /// There was one.
    asked_before: bool,
    /// Containers to ask about, at most one question for each, and at most [`CGROUPS_MAX`]; the oldest first.
    questions: VecDeque<Question>,
    /// Containers that are asked about and not named yet.
    pending: HashSet<u64>,
    /// Containers that are asked about once more, and of which nobody has to wait for an answer.
    once_more: HashSet<u64>,
    /// What could not be asked, by when it is asked again, ns since boot: one for each that is there at most.
    later: BTreeMap<(u64, u64), Question>,
    /// Of [`Workloads::cgroups`] those of before a restart; [`RESTORED_MAX`] at most.
    restored: usize,
    /// Cgroups of which something else is known than before, and such as are gone.
    changed: HashSet<u64>,
    /// What was told of workloads before a restart, until a walk has shown which of them are there.
    told_before: HashMap<u64, v1::Facts>,
}

impl Workloads {
    /// A cgroup was made at this time since boot, or with 0 found; the ones above it have to be known before.
    pub fn made(&mut self, id: u64, path: &str, made_ns: u64) {
        if id == 0 {
            return;
        }
        if let Some(known) = self.cgroups.get(&id) {
            // Of before a restart, perhaps: it is still there.
            if self.paths.get(&known.path) != Some(&id) {
                self.gone.retain(|(_, gone)| *gone != id);
            }
            if &*known.path == path && !known.restored {
                self.paths.insert(Rc::clone(&known.path), id);
                // Of what is not there, nobody has told the kernel.
                self.changed.insert(id);
                return;
            }
        }
        self.forget(id);
        let workload = self.workload_of(id, path);
        let account = self.account(id, path);
        let of_account = self.accounts.get(&account).copied().unwrap_or(0);
        if self.cgroups.len() - self.restored >= CGROUPS_MAX
            || of_account >= NESTED_MAX
            || account != id && self.deeper >= BELOW_MAX
        {
            self.stats.left_out += 1;
            return;
        }
        self.charge(id, account);
        self.below.entry(workload.told.id).or_default().push(id);
        if workload.told.id == id && workload.told.pending {
            self.pending.insert(id);
            self.questions.push_back(question(&workload.told, made_ns));
            if self.questions.len() > CGROUPS_MAX {
                // There are no more that are asked about: the others have gone.
                let mut questions = std::mem::take(&mut self.questions);
                questions.retain(|question| self.wants(question));
                self.questions = questions;
            }
        }
        let path: Rc<str> = path.into();
        self.paths.insert(Rc::clone(&path), id);
        self.changed.insert(id);
        let known = Known {
            path,
            workload,
            restored: false,
            account,
        };
        let named = known.workload.told.facts.clone();
        self.cgroups.insert(id, known);
        if let Some(named) = named.filter(|named| named.workload == id) {
            self.named(id, &named);
        }
    }

    /// A cgroup has another path, and so has all below it.
    pub fn renamed(&mut self, id: u64, path: &str) {
        let Some(known) = self.cgroups.get(&id) else {
            return self.made(id, path, 0);
        };
        let before = format!("{}/", known.path);
        let mut below: Vec<(u64, String)> = self
            .paths
            .iter()
            .filter_map(|(known, id)| {
                Some((*id, format!("{path}/{}", known.strip_prefix(&before)?)))
            })
            .collect();
        // Parents first.
        below.sort_by_key(|(_, path)| path.len());
        self.made(id, path, 0);
        for (id, path) in below {
            self.made(id, &path, 0);
        }
    }

    /// A cgroup was removed. Records that were written before may still name it.
    pub fn removed(&mut self, id: u64) {
        if let Some(known) = self.cgroups.get(&id) {
            if self.paths.get(&known.path) == Some(&id) {
                self.paths.remove(&known.path);
            }
            self.gone.push_back((self.cycle, id));
            self.changed.insert(id);
        }
    }

    /// Removes all but these, which a walk has found, and what is below a path where it did not look.
    pub fn removed_all_but(&mut self, alive: &HashSet<u64>, unread: &Unread) {
        let is_unread = |path: &str| {
            let ends = path.match_indices('/').map(|(end, _)| end);
            let mut above = ends.map(|end| &path[..end.max(1)]).chain([path]);
            !unread.is_empty() && above.any(|above| unread.contains(above))
        };
        let gone: Vec<u64> = self
            .paths
            .iter()
            .filter(|(path, id)| !alive.contains(id) && !is_unread(path))
            .map(|(_, id)| *id)
            .collect();
        for id in gone {
            self.removed(id);
        }
    }

    /// The workload of a cgroup that a record names.
    pub fn of(&mut self, cgroup: u64) -> Option<Rc<Workload>> {
        match self.cgroups.get(&cgroup) {
            Some(known) => Some(Rc::clone(&known.workload)),
            None => {
                self.stats.unknown += 1;
                None
            }
        }
    }

    /// Adds the cgroups that a batch of before a restart names and that are not known. They count as gone until a walk
    /// finds them, and take no room from what is there.
    pub fn restore(&mut self, batch: &v1::Batch) {
        for image in &batch.images {
            let told = (image.workload as usize)
                .checked_sub(1)
                .and_then(|index| batch.workloads.get(index));
            let (Some(told), id) = (told, image.cgroup_id) else {
                continue;
            };
            if id == 0 || self.cgroups.contains_key(&id) {
                continue;
            }
            let of_workload = self.below.get(&told.id).map_or(0, Vec::len);
            if self.restored >= RESTORED_MAX || of_workload >= NESTED_MAX {
                self.stats.left_out += 1;
                continue;
            }
            let path = if told.id == id {
                told.cgroup.as_str()
            } else {
                ""
            };
            let workload = Rc::new(Workload {
                told: told.clone(),
                by_host: path::classify(&told.cgroup).by_host,
            });
            self.below.entry(told.id).or_default().push(id);
            let path = path.into();
            self.restored += 1;
            let known = Known {
                path,
                workload,
                restored: true,
                account: NOBODYS,
            };
            self.cgroups.insert(id, known);
            self.gone.push_back((self.cycle, id));
        }
    }

    /// What was told of a workload before a restart of the agent, since this boot. It is so until somebody says otherwise: who has
    /// to be asked may be slow, and rules must not begin with less than they had.
    pub fn restore_facts(&mut self, facts: v1::Facts) {
        let room = self.told_before.len() < CGROUPS_MAX;
        match self.told_before.get_mut(&facts.workload) {
            Some(known) if known.version > facts.version => {}
            Some(known) => *known = facts,
            None if facts.workload != 0 && room => {
                self.told_before.insert(facts.workload, facts);
            }
            None => {}
        }
    }

    /// A walk has shown what is there: what was told of others is of no use any more.
    pub fn restored(&mut self) {
        self.told_before = HashMap::new();
    }

    /// A cycle of reading is over.
    pub fn end_cycle(&mut self, bulk_emptied: bool) {
        if bulk_emptied {
            while let Some((cycle, id)) = self.gone.front().copied() {
                if cycle >= self.cycle {
                    break;
                }
                self.gone.pop_front();
                self.forget(id);
            }
        }
        self.cycle += 1;
    }

    /// There is a runtime that can be asked, or there is none any more. Once there is one, it is asked of what is there already.
    pub fn ask(&mut self, asking: bool) {
        self.asked_before |= asking;
        if !std::mem::replace(&mut self.asking, asking) && asking {
            let unasked = self.there().filter(|(id, path, workload)| {
                let told = &workload.told;
                let named = told.facts.as_ref();
                told.id == *id
                    && named.is_none_or(|facts| facts.container_name.is_empty())
                    && !told.pending
                    && is_asked_about(&path::classify(path))
            });
            let unasked: Vec<u64> = unasked.map(|(id, ..)| id).collect();
            // What was known of them is so until there is an answer: a rule that takes pending ones for its own must not begin to act in
            // those that it was told are none.
            for id in unasked {
                if let Some(known) = self.cgroups.get(&id) {
                    self.questions.push_back(question(&known.workload.told, 0));
                    self.once_more.insert(id);
                }
            }
        }
    }

    /// Could not be asked now; it is still to be asked.
    pub fn ask_later(&mut self, question: Question) {
        self.questions.push_front(question);
    }

    /// Somebody who may know it could not be asked, at this time since boot: it is asked about again, as long as it is there.
    pub fn ask_again(&mut self, mut question: Question, now_ns: u64) {
        if !self.wants(&question) {
            return;
        }
        let wait = UNASKED_AGAIN * 2_u32.pow((question.tries / UNASKED_TRIES).min(8));
        let wait = wait.min(UNASKED_AGAIN_MAX).as_nanos();
        question.tries = question.tries.saturating_add(1);
        let at = now_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX));
        self.later.insert((at, question.workload), question);
        if self.later.len() > CGROUPS_MAX {
            let mut later = std::mem::take(&mut self.later);
            later.retain(|_, question| self.wants(question));
            self.later = later;
        }
    }

    /// What is due is asked again.
    pub fn ask_due(&mut self, now_ns: u64) {
        while let Some(first) = self.later.first_entry()
            && first.key().0 <= now_ns
        {
            self.questions.push_back(first.remove());
        }
    }

    /// Whether somebody still needs to know: who has gone meanwhile is not asked about.
    fn wants(&self, question: &Question) -> bool {
        let id = question.workload;
        match &question.named {
            None => self.pending.contains(&id) || self.once_more.contains(&id),
            Some(_) => self.facts_of(id).is_some_and(|facts| facts.pod_pending),
        }
    }

    /// Containers of which nobody was there to be asked for so long, at this time since boot: they have no names. Of one that begins later
    /// they are asked all the same ([`Workloads::ask`]).
    pub fn give_up(&mut self, now_ns: u64) -> Vec<u64> {
        for question in &mut self.questions {
            if question.waits_ns == 0 {
                question.waits_ns = now_ns.max(1);
            }
        }
        let patience = match self.asked_before {
            true => AWAY_AFTER,
            false => NOBODY_AFTER,
        };
        let mut given_up = Vec::new();
        while let Some(question) = self.questions.front() {
            let waited = Duration::from_nanos(now_ns.saturating_sub(question.waits_ns));
            if waited < patience {
                break;
            }
            given_up.push(question.workload);
            self.questions.pop_front();
        }
        for id in &given_up {
            self.learned(*id, None);
        }
        given_up
    }

    /// So many of the containers to ask about.
    pub fn take_questions(&mut self, room: usize) -> Vec<Question> {
        let mut taken = Vec::new();
        while taken.len() < room
            && let Some(question) = self.questions.pop_front()
        {
            if self.wants(&question) {
                taken.push(question);
            }
        }
        taken
    }

    /// Takes what a runtime said of a workload; `None`: nobody will say anything.
    pub fn learned(&mut self, id: u64, facts: Option<&v1::Facts>) {
        self.pending.remove(&id);
        self.once_more.remove(&id);
        self.teach(id, |told| {
            // Who does not know the container may have named its pod.
            if facts.is_some() {
                told.facts = facts.cloned();
            }
            told.pending = false;
        });
        if let Some(facts) = facts {
            self.named(id, facts);
        }
    }

    /// Its runtime was asked, and knows no such container. What is still there all the same is none, whatever its path says: somebody
    /// has made a cgroup below a pod's, and it is not of that pod. One that has gone meanwhile may have been one, already forgotten.
    pub fn denied(&mut self, id: u64) {
        let known = self.cgroups.get(&id);
        if known.is_some_and(|known| self.paths.get(&known.path) == Some(&id)) {
            self.teach(id, |told| {
                let by_pod = |facts: &v1::Facts| facts.source == BY_POD;
                if told.facts.as_ref().is_some_and(by_pod) {
                    told.facts = None;
                }
            });
        }
        self.learned(id, None);
    }

    /// A container's facts name its pod: that is known of all others in it, too.
    pub(super) fn named(&mut self, container: u64, facts: &v1::Facts) {
        let Some(known) = self.cgroups.get(&container) else {
            return;
        };
        let at = known.workload.told.cgroup.clone();
        let pod = match known.workload.told.kind.as_str() {
            "pod" => Some(container),
            _ => at
                .rsplit_once('/')
                .and_then(|(above, _)| self.paths.get(above))
                .copied(),
        };
        let Some((pod, known)) = pod.and_then(|pod| Some((pod, self.cgroups.get(&pod)?))) else {
            return;
        };
        let told = &known.workload.told;
        if told.kind != "pod" || told.id != pod || told.pod_uid != facts.pod_uid {
            return;
        }
        let named = v1::Facts {
            source: facts.source.clone(),
            pod_name: facts.pod_name.clone(),
            pod_uid: facts.pod_uid.clone(),
            namespace: facts.namespace.clone(),
            pod_labels: facts.pod_labels.clone(),
            pod_labels_flaws: facts.pod_labels_flaws,
            cut: facts.cut,
            ..v1::Facts::default()
        };
        // What a pod is called does not change.
        if facts.pod_name.is_empty() || told.facts.is_some() {
            return;
        }
        let below = format!("{}/", known.path);
        let inside = self
            .paths
            .iter()
            .filter(|(path, _)| path.starts_with(&below));
        let others: Vec<u64> = inside.map(|(_, id)| *id).collect();
        for id in others.into_iter().chain([pod]) {
            self.teach(id, |told| {
                if told.facts.is_none() && (told.pending || told.kind == "pod") {
                    told.facts = Some(match told.kind.as_str() {
                        "pod" => named.clone(),
                        _ => by_pod(named.clone()),
                    });
                }
            });
        }
    }

    /// What changes of a workload changes for all cgroups that belong to it.
    fn teach(&mut self, id: u64, change: impl Fn(&mut v1::Workload)) {
        // Of a container in a container there is another one of the same number.
        let mut taught: Vec<(Rc<Workload>, Rc<Workload>)> = Vec::new();
        for cgroup in self.below.get(&id).into_iter().flatten() {
            let Some(known) = self.cgroups.get_mut(cgroup) else {
                continue;
            };
            let before = Rc::clone(&known.workload);
            let done = taught.iter().find(|(old, _)| Rc::ptr_eq(old, &before));
            let after = match done {
                Some((_, after)) => Rc::clone(after),
                None => {
                    let mut told = before.told.clone();
                    change(&mut told);
                    let after = Rc::new(Workload {
                        told,
                        by_host: before.by_host,
                    });
                    taught.push((before, Rc::clone(&after)));
                    after
                }
            };
            known.workload = after;
            self.changed.insert(*cgroup);
        }
    }

    /// The cgroups of which something has changed since this was called last, gone ones included.
    pub fn take_changed(&mut self) -> HashSet<u64> {
        std::mem::take(&mut self.changed)
    }

    /// All cgroups that are there, by path.
    pub fn there(&self) -> impl Iterator<Item = (u64, &str, &Rc<Workload>)> {
        let all = self.paths.values();
        all.filter_map(|id| Some((*id, self.cgroups.get(id)?)))
            .map(|(id, known)| (id, &*known.path, &known.workload))
    }

    /// A cgroup that is there.
    #[must_use]
    pub fn there_is(&self, id: u64) -> Option<(&str, &Rc<Workload>)> {
        let known = self.cgroups.get(&id)?;
        (self.paths.get(&known.path) == Some(&id)).then_some((&*known.path, &known.workload))
    }

    /// The cgroup of a path.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<u64> {
        self.paths.get(path).copied()
    }

    /// Workloads that are there and of which something was told.
    #[must_use]
    pub fn told_of(&self) -> Vec<u64> {
        let there = self.paths.values().copied();
        there.filter(|id| self.facts_of(*id).is_some()).collect()
    }

    /// What was told of a workload.
    #[must_use]
    pub fn facts_of(&self, id: u64) -> Option<&v1::Facts> {
        let told = &self.cgroups.get(&id)?.workload.told;
        told.facts.as_ref().filter(|_| told.id == id)
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> WorkloadStats {
        WorkloadStats {
            cgroups: self.cgroups.len(),
            pending: self.pending.len(),
            ..self.stats
        }
    }

    /// Whom a cgroup counts against: the outermost one above it that is the host's. All of whom that one is not known share one account.
    fn account(&self, id: u64, path: &str) -> u64 {
        let end = path::classify(path).made_by_host;
        match end < path.len() {
            true => self.at(&path[..end]).unwrap_or(NOBODYS),
            false => id,
        }
    }

    fn charge(&mut self, id: u64, account: u64) {
        *self.accounts.entry(account).or_default() += 1;
        self.deeper += usize::from(account != id);
    }

    fn forget(&mut self, id: u64) {
        let Some(known) = self.cgroups.remove(&id) else {
            return;
        };
        if known.restored {
            self.restored -= 1;
        } else {
            if let Some(count) = self.accounts.get_mut(&known.account) {
                *count -= 1;
                if *count == 0 {
                    self.accounts.remove(&known.account);
                }
            }
            self.deeper -= usize::from(known.account != id);
        }
        if self.paths.get(&known.path) == Some(&id) {
            self.paths.remove(&known.path);
        }
        self.pending.remove(&id);
        self.once_more.remove(&id);
        let workload = known.workload.told.id;
        if let Some(below) = self.below.get_mut(&workload) {
            if let Some(at) = below.iter().position(|known| *known == id) {
                below.swap_remove(at);
            }
            if below.is_empty() {
                self.below.remove(&workload);
            }
        }
    }

    /// The workload that a new cgroup belongs to: that of the cgroup in which its workload is rooted, or one of its own.
    fn workload_of(&self, id: u64, path: &str) -> Rc<Workload> {
        let place = path::classify(path);
        let root = &path[..place.root];
        let rooted = (root != path)
            .then(|| self.cgroups.get(self.paths.get(root)?))
            .flatten();
        if let Some(known) = rooted
            && known.workload.told.nested == place.nested
        {
            return Rc::clone(&known.workload);
        }
        let pod = root.rsplit_once('/').map(|(above, _)| above);
        let pod = pod.filter(|_| place.kind == path::Kind::Container && place.by_host);
        let pod = pod.and_then(|pod| self.cgroups.get(self.paths.get(pod)?));
        let pod = pod.filter(|pod| pod.workload.told.kind == "pod");
        let is_container = is_asked_about(&place);
        let told_before = match rooted {
            None if is_container => self.told_before.get(&id),
            _ => None,
        };
        // A container in a container is told apart, and is part of the outer one.
        let id = rooted.map_or(id, |known| known.workload.told.id);
        Rc::new(Workload {
            told: v1::Workload {
                id,
                facts: told_before.cloned().or_else(|| {
                    let of = |known: &Known| known.workload.told.facts.clone();
                    match rooted {
                        Some(known) => of(known),
                        None => pod.and_then(of).map(by_pod),
                    }
                }),
                pending: match rooted {
                    Some(known) => known.workload.told.pending,
                    None => is_container,
                },
                ..of_path(path)
            },
            by_host: place.by_host,
        })
    }
}

/// Who tells of a container, as facts name it, of which only its path says whose pod it is in.
const BY_POD: &str = "pod";

/// What is told of a pod, for a container that has not been named.
fn by_pod(facts: v1::Facts) -> v1::Facts {
    v1::Facts {
        source: BY_POD.into(),
        ..facts
    }
}

/// What the path of a cgroup alone tells of the workload that it belongs to.
#[must_use]
pub fn of_path(path: &str) -> v1::Workload {
    let place = path::classify(path);
    let root = &path[..place.root];
    v1::Workload {
        kind: place.kind.to_string(),
        cgroup: if root.is_empty() { "/" } else { root }.to_owned(),
        container_id: place.container.to_owned(),
        runtime: place.runtime.to_owned(),
        nested: place.nested.to_owned(),
        pod_uid: place.pod_uid,
        pod_qos: place.pod_qos.to_owned(),
        ecs_task: place.ecs_task.to_owned(),
        unit: place.unit.to_owned(),
        slice: place.slice.to_owned(),
        login_uid: place.login_uid,
        login_session: place.login_session.to_owned(),
        ..v1::Workload::default()
    }
}

/// Whether a runtime of the host may know it. (Of the containers of lxc none of those that are asked does.)
fn is_asked_about(place: &path::Place<'_>) -> bool {
    place.by_host && place.kind == path::Kind::Container && place.runtime != "lxc"
}

fn question(told: &v1::Workload, made_ns: u64) -> Question {
    Question {
        workload: told.id,
        container: told.container_id.clone(),
        runtime: told.runtime.clone(),
        made_ns,
        waits_ns: 0,
        tries: 0,
        named: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f0a5a3b1c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f607";

    fn workload(all: &mut Workloads, cgroup: u64) -> Option<(u64, String)> {
        let workload = all.of(cgroup)?;
        Some((workload.told.id, workload.told.cgroup.clone()))
    }

    #[test]
    fn what_is_below_a_workload_belongs_to_it_also_when_its_path_is_used_again() {
        let mut all = Workloads::default();
        all.made(1, "/", 0);
        all.made(5, "/system.slice", 0);
        all.made(6, "/system.slice/a.service", 0);
        all.made(7, "/system.slice/a.service/worker", 0);
        let unit = Some((6, "/system.slice/a.service".to_owned()));
        assert_eq!(workload(&mut all, 7), unit);
        all.removed(7);
        all.removed(6);
        all.made(8, "/system.slice/a.service", 0);
        all.made(9, "/system.slice/a.service/worker", 0);
        assert_eq!(workload(&mut all, 7), unit);
        assert_eq!(workload(&mut all, 9).map(|(id, _)| id), Some(8));
        all.end_cycle(false);
        assert_eq!(workload(&mut all, 7), unit);
        // Only once what was written before its end has been read.
        all.end_cycle(true);
        assert_eq!(workload(&mut all, 7), None);
        assert_eq!(workload(&mut all, 8).map(|(id, _)| id), Some(8));
        assert_eq!(all.stats().unknown, 1);
    }

    #[test]
    fn a_rename_moves_what_is_below() {
        let mut all = Workloads::default();
        all.made(1, "/", 0);
        all.made(2, "/a", 0);
        all.made(3, "/a/b", 0);
        all.made(4, "/a/b/c", 0);
        all.renamed(3, &format!("/a/docker-{ID}.scope"));
        let moved = all.of(4).expect("a workload");
        assert_eq!((moved.told.id, moved.told.container_id.as_str()), (3, ID));
        all.made(5, &format!("/a/docker-{ID}.scope/d"), 0);
        assert_eq!(workload(&mut all, 5).map(|(id, _)| id), Some(3));
    }

    #[test]
    fn one_workload_cannot_crowd_out_the_others() {
        let mut all = Workloads::default();
        all.made(1, "/", 0);
        all.made(2, &format!("/docker/{ID}"), 0);
        for id in 10..10 + 2 * NESTED_MAX as u64 {
            all.made(id, &format!("/docker/{ID}/{id}"), 0);
        }
        assert_eq!(all.stats().left_out, NESTED_MAX as u64 + 1);
        all.made(5, "/system.slice/b.service", 0);
        assert!(all.of(5).is_some());
        // What comes and goes leaves room.
        for id in 10..10 + 2 * NESTED_MAX as u64 {
            all.removed(id);
        }
        all.end_cycle(true);
        all.end_cycle(true);
        assert_eq!(all.stats().cgroups, 3);
        assert_eq!(all.below.values().map(Vec::len).sum::<usize>(), 3);
    }

    #[test]
    fn a_runtime_that_begins_later_is_asked_of_what_is_there() {
        let mut all = Workloads::default();
        all.made(1, "/", 0);
        all.made(2, &format!("/docker/{ID}"), 7);
        all.made(3, &format!("/docker/{ID}/below"), 7);
        all.made(4, "/system.slice/a.service", 7);
        all.made(5, "/lxc/a", 7);
        let pending = |all: &mut Workloads| {
            [2, 3, 4, 5].map(|id| all.of(id).expect("a workload").told.pending)
        };
        // Nobody has said that they have no names.
        all.ask(false);
        assert_eq!(pending(&mut all), [true, true, false, false]);
        let second = 1_000_000_000;
        assert!(all.give_up(second).is_empty());
        assert!(all.give_up(5 * second).is_empty());
        assert_eq!(pending(&mut all), [true, true, false, false]);
        assert_eq!(all.give_up(6 * second), [2]);
        assert_eq!(pending(&mut all), [false; 4]);
        assert_eq!(all.stats().pending, 0);
        all.ask(true);
        all.ask(true);
        // They have no names until somebody says otherwise.
        assert_eq!(pending(&mut all), [false; 4]);
        assert!(all.take_questions(0).is_empty());
        let mut asked = all.take_questions(9);
        assert_eq!(
            (asked.len(), asked[0].workload, asked[0].made_ns),
            (1, 2, 0)
        );
        assert_eq!(all.stats().pending, 0);
        all.ask_later(asked.remove(0));
        // It restarts, perhaps.
        all.ask(false);
        assert!(all.give_up(20 * second).is_empty() && all.give_up(100 * second).is_empty());
        assert_eq!(all.give_up(700 * second), [2]);
    }

    #[test]
    fn what_was_told_before_a_restart_is_so_until_somebody_says_otherwise() {
        const UID: &str = "8a5f1e0c-6b1d-4d57-9f5d-0c5b7c3e2a11";
        let told = |version, name: &str| v1::Facts {
            workload: 3,
            version,
            container_name: name.into(),
            pod_name: "cart-0".into(),
            pod_uid: UID.into(),
            ..v1::Facts::default()
        };
        let mut all = Workloads::default();
        all.restore_facts(told(8, "web"));
        all.restore_facts(told(7, "old"));
        all.made(2, &format!("/kubepods/pod{UID}"), 0);
        all.made(3, &format!("/kubepods/pod{UID}/{ID}"), 0);
        all.restored();
        // A name of before is not that of another one.
        all.made(
            4,
            &format!("/kubepods/pod{UID}/{}", ID.replace('4', "5")),
            0,
        );
        let names = |all: &mut Workloads, id| {
            let told = &all.of(id).expect("a workload").told;
            let facts = told.facts.clone().unwrap_or_default();
            (facts.container_name, facts.pod_name, told.pending)
        };
        assert_eq!(names(&mut all, 3), ("web".into(), "cart-0".into(), true));
        assert_eq!(names(&mut all, 2), (String::new(), "cart-0".into(), false));
        assert_eq!(names(&mut all, 4), (String::new(), "cart-0".into(), true));
        // It is asked about all the same.
        assert_eq!(all.take_questions(9).len(), 2);
        all.learned(3, Some(&told(9, "renamed")));
        assert_eq!(names(&mut all, 3).0, "renamed");
    }

    #[test]
    fn a_user_cannot_take_the_room_of_others_by_names_of_containers() {
        let mut all = Workloads::default();
        let user = "/user.slice/user-7.slice/user@7.service";
        for (id, path) in [
            (1, "/"),
            (2, "/user.slice"),
            (3, "/user.slice/user-7.slice"),
        ] {
            all.made(id, path, 0);
        }
        all.made(4, user, 0);
        let last = 10 + 4 * NESTED_MAX as u64;
        for id in 10..last {
            all.made(id, &format!("{user}/{id:064x}"), 0);
        }
        assert_eq!(all.stats().cgroups, 4 + NESTED_MAX - 1);
        // Others' containers are none of the user's.
        all.made(5, &format!("/docker/{ID}"), 0);
        assert!(all.of(5).is_some());
        for id in 10..last {
            all.removed(id);
        }
        all.end_cycle(true);
        all.end_cycle(true);
        assert_eq!((all.stats().cgroups, all.deeper), (5, 0));
        assert_eq!(all.accounts.values().sum::<usize>(), 5);

        // Many units together, which make as many cgroups as they may.
        let mut id = 1_000_000;
        for unit in 0..2 * CGROUPS_MAX / NESTED_MAX {
            let unit = format!("/system.slice/{unit}.service");
            all.made(id, &unit, 0);
            for number in 1..NESTED_MAX as u64 {
                all.made(id + number, &format!("{unit}/{number}"), 0);
            }
            id += 2 * NESTED_MAX as u64;
        }
        assert_eq!(all.deeper, BELOW_MAX);
        all.made(6, "/system.slice/late.service", 0);
        assert!(all.of(6).is_some());
    }

    #[test]
    fn a_pod_is_named_by_its_first_container_for_all_to_come() {
        const OTHER: &str = "aaaaaaaabbbbbbbbccccccccddddddddeeeeeeeeffffffff0000000011111111";
        const UID: &str = "8a5f1e0c-6b1d-4d57-9f5d-0c5b7c3e2a11";
        let mut all = Workloads {
            asking: true,
            ..Workloads::default()
        };
        let pod = format!("/kubepods/pod{UID}");
        all.made(1, "/", 0);
        all.made(2, "/kubepods", 0);
        all.made(3, &pod, 0);
        all.made(4, &format!("{pod}/{ID}"), 5);
        // A sibling that is there already.
        all.made(5, &format!("{pod}/{OTHER}"), 6);
        assert_eq!(all.take_changed().len(), 5);
        let mut facts = v1::Facts {
            source: "cri".into(),
            pod_name: "cart-0".into(),
            pod_uid: "another".into(),
            pod_labels: vec!["app=cart".into()],
            ..v1::Facts::default()
        };
        let named = |all: &mut Workloads, id| {
            let told = &all.of(id).expect("a workload").told;
            let name = told.facts.as_ref().map(|facts| facts.pod_name.clone());
            (name.unwrap_or_default(), told.pending)
        };
        // A runtime that says of it that it is another pod's.
        all.learned(4, Some(&facts));
        assert_eq!(named(&mut all, 3), (String::new(), false));
        facts.pod_uid = UID.into();
        all.learned(4, Some(&facts));
        assert_eq!(all.take_changed(), HashSet::from([3, 4, 5]));
        assert_eq!(named(&mut all, 3), ("cart-0".into(), false));
        assert_eq!(named(&mut all, 5), ("cart-0".into(), true));
        all.removed(5);
        all.made(6, &format!("{pod}/{OTHER}"), 7);
        all.made(7, &format!("{pod}/{OTHER}/below"), 7);
        assert_eq!(named(&mut all, 6), ("cart-0".into(), true));
        assert_eq!(named(&mut all, 7), ("cart-0".into(), true));
        let source = |all: &mut Workloads, id| {
            let facts = all.of(id).and_then(|of| of.told.facts.clone());
            facts.unwrap_or_default().source
        };
        assert_eq!(
            (source(&mut all, 3), source(&mut all, 4)),
            ("cri".into(), "cri".into())
        );
        assert_eq!(
            (source(&mut all, 5), source(&mut all, 7)),
            ("pod".into(), "pod".into())
        );
        // Nobody was there to be asked: its pod is known all the same.
        all.learned(6, None);
        assert_eq!(named(&mut all, 7), ("cart-0".into(), false));
        assert_eq!(all.stats().pending, 1);
        // Its runtime knows no such container, and it is there: it is not of the pod in which its path stands.
        all.denied(6);
        assert_eq!(named(&mut all, 6), (String::new(), false));
        assert_eq!(named(&mut all, 7), (String::new(), false));
        // One that has gone meanwhile may have been one.
        all.denied(5);
        assert_eq!(named(&mut all, 5), ("cart-0".into(), false));
        // Whom the runtime has named is not denied by another answer.
        all.denied(4);
        assert_eq!(named(&mut all, 4), ("cart-0".into(), false));
    }

    #[test]
    fn what_a_runtime_says_is_known_of_all_below_and_asked_once() {
        let mut all = Workloads {
            asking: true,
            ..Workloads::default()
        };
        all.made(1, "/", 0);
        all.made(2, &format!("/docker/{ID}"), 0);
        all.made(3, &format!("/docker/{ID}/below"), 0);
        all.made(4, "/system.slice/a.service", 0);
        // Below a user's manager the host's runtimes have made nothing.
        all.made(
            5,
            &format!("/user.slice/user-7.slice/user@7.service/libpod-{ID}.scope"),
            0,
        );
        let asked = all.take_questions(9);
        let asked: Vec<_> = asked.iter().map(|q| q.workload).collect();
        assert_eq!(asked, [2]);
        let pending = |all: &mut Workloads, id| all.of(id).expect("a workload").told.pending;
        assert!(pending(&mut all, 3) && !pending(&mut all, 4) && !pending(&mut all, 5));
        assert!(all.told_of().is_empty());
        let facts = v1::Facts {
            container_name: "web".into(),
            ..v1::Facts::default()
        };
        all.learned(2, Some(&facts));
        all.made(6, &format!("/docker/{ID}/later"), 0);
        for id in [2, 3, 6] {
            let told = &all.of(id).expect("a workload").told;
            let name = told
                .facts
                .as_ref()
                .map(|facts| facts.container_name.as_str());
            assert_eq!((name, told.pending), (Some("web"), false));
        }
        assert!(all.take_questions(9).is_empty());
    }

    #[test]
    fn those_of_a_batch_are_known_until_they_are_gone_for_certain() {
        let mut first = Workloads::default();
        first.made(6, "/system.slice/a.service", 0);
        first.made(7, "/system.slice/a.service/worker", 0);
        let told = first.of(7).expect("a workload").told.clone();
        let batch = v1::Batch {
            images: vec![v1::Image {
                cgroup_id: 7,
                workload: 1,
                ..v1::Image::default()
            }],
            workloads: vec![told],
            ..v1::Batch::default()
        };
        let mut all = Workloads::default();
        all.restore(&batch);
        all.made(6, "/system.slice/a.service", 0);
        assert_eq!(workload(&mut all, 7).map(|(id, _)| id), Some(6));
        all.made(7, "/system.slice/a.service/worker", 0);
        for _ in 0..3 {
            all.end_cycle(true);
        }
        assert_eq!(workload(&mut all, 7).map(|(id, _)| id), Some(6));
        let alive = HashSet::from([6]);
        let unread = HashSet::from(["/system.slice/a.service".to_owned()]);
        all.removed_all_but(&alive, &unread);
        all.end_cycle(true);
        all.end_cycle(true);
        assert_eq!(workload(&mut all, 7).map(|(id, _)| id), Some(6));
        all.removed_all_but(&alive, &HashSet::from(["/system.slice/b".to_owned()]));
        all.end_cycle(true);
        all.end_cycle(true);
        assert_eq!(workload(&mut all, 7), None);
    }

    #[test]
    fn what_was_there_before_a_restart_takes_no_room_from_what_is_there() {
        let mut all = Workloads::default();
        for id in 100..70_100_u64 {
            let workload = match id % 3 {
                0 => 7,
                _ => id,
            };
            let batch = v1::Batch {
                images: vec![v1::Image {
                    cgroup_id: id,
                    workload: 1,
                    ..v1::Image::default()
                }],
                workloads: vec![v1::Workload {
                    id: workload,
                    cgroup: format!("/user.slice/{workload}"),
                    ..v1::Workload::default()
                }],
                ..v1::Batch::default()
            };
            all.restore(&batch);
        }
        assert_eq!(all.stats().cgroups, RESTORED_MAX);
        all.made(1, "/", 0);
        for id in 2..12 {
            all.made(id, &format!("/system.slice/{id}.service"), 0);
        }
        assert!((2..12).all(|id| all.of(id).is_some()));
        // One of them is there after all.
        all.made(101, "/user.slice/101", 0);
        assert_eq!(all.stats().cgroups, RESTORED_MAX + 11);
        all.end_cycle(true);
        all.end_cycle(true);
        assert_eq!((all.stats().cgroups, all.restored), (12, 0));
        assert_eq!(all.accounts.values().sum::<usize>(), 12);
    }

    #[test]
    fn those_below_one_that_is_not_known_share_an_account() {
        let mut all = Workloads::default();
        for id in 10..10 + 2 * NESTED_MAX as u64 {
            let user = id % 2;
            let unit = format!("/user.slice/user-{user}.slice/user@{user}.service");
            all.made(id, &format!("{unit}/{id}"), 0);
        }
        assert_eq!((all.stats().cgroups, all.deeper), (NESTED_MAX, NESTED_MAX));
        all.made(5, "/system.slice/b.service", 0);
        assert!(all.of(5).is_some());
    }

    #[test]
    fn who_could_not_be_asked_about_is_asked_about_again_while_it_is_there() {
        let mut all = Workloads {
            asking: true,
            ..Workloads::default()
        };
        all.made(1, "/", 0);
        all.made(2, &format!("/docker/{ID}"), 0);
        let second = 1_000_000_000;
        let (mut now, mut times) = (0, 0);
        while now < 4 * 3600 * second {
            now += second;
            all.ask_due(now);
            for question in all.take_questions(9) {
                times += 1;
                all.ask_again(question, now);
            }
        }
        // Often at first, and then each minute.
        assert!((4 * 60..4 * 60 + 60).contains(&times), "{times}");
        assert_eq!(all.stats().pending, 1);
        // Its names are told, and what only the kubelet says is not yet.
        let mut facts = v1::Facts {
            workload: 2,
            container_name: "web".into(),
            pod_pending: true,
            ..v1::Facts::default()
        };
        all.learned(2, Some(&facts));
        now += 60 * second;
        all.ask_due(now);
        assert!(all.take_questions(9).is_empty());
        let question = Question {
            named: Some(Box::new(facts.clone())),
            ..question(&all.of(2).expect("a workload").told, 0)
        };
        all.ask_again(question.clone(), now);
        all.ask_due(now + 2 * second);
        assert_eq!(all.take_questions(9).len(), 1);
        all.ask_again(question.clone(), now);
        facts.pod_pending = false;
        all.learned(2, Some(&facts));
        all.ask_due(now + 60 * second);
        assert!(all.take_questions(9).is_empty());
        all.ask_again(question, now);
        assert!(all.later.is_empty());
    }
}
