//! Compiles a plan into the kernel's filter and swaps it in.

use std::{
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, LpmTrie, MapData, MapError, lpm_trie};
use sumun_abi::{
    event::file,
    policy::{
        ACCESS_BITS, Filter, MATCH_DATA, MODE_ALL, MODE_FILTERED, MODE_NONE, Match, WRITERS,
        action, filtered, tag, whole,
    },
    record::LEVELS,
    verdict::Verdicts,
};
use sumun_policy::plan::{CLAUSES_MAX, Clause, ENTRIES_MAX, KindPlan, Plan, tells_failures};
use sumun_policy::verdict::VerdictPlan;
use sumun_proto::v1::Kind;

use super::{
    Error, Kernel, Of, chain,
    hooks::{HOOKS, SYS_ENTER},
    trie::{Key, Space, Trie},
    verdicts::{self, Known},
};

/// Longest time that a program can be under way, many times over.
const QUIET_DEADLINE: Duration = Duration::from_secs(2);

/// Kinds by their place in `Filter`.
pub(super) const KINDS: [(Kind, usize); filtered::COUNT] = [
    (Kind::Open, filtered::OPEN),
    (Kind::CloseWrite, filtered::CLOSE_WRITE),
    (Kind::Rename, filtered::RENAME),
    (Kind::Unlink, filtered::UNLINK),
    (Kind::Connect, filtered::CONNECT),
    (Kind::Accept, filtered::ACCEPT),
    (Kind::ConnectUdp, filtered::CONNECT_UDP),
    (Kind::ConnectUnix, filtered::CONNECT_UNIX),
    (Kind::MapExec, filtered::MAP_EXEC),
];

/// Clauses that the kinds of files share, and as many those of connections: a bit each.
const SPACE: usize = u64::BITS as usize;
const _: () = assert!(SPACE >= CLAUSES_MAX);

/// Kinds that are sent whole: their bit in `Filter::whole`, and the actions that lead to them.
const WHOLE: [(Kind, u32, &[u8]); whole::COUNT] = {
    use action::*;
    [
        (Kind::Setid, whole::SETID, &[SETID, SETGROUPS]),
        (Kind::Capset, whole::CAPSET, &[CAPSET]),
        (Kind::Ptrace, whole::PTRACE, &[PTRACE]),
        (Kind::ProcessVmReadv, whole::VM_READ, &[VM_READ]),
        (Kind::ProcessVmWritev, whole::VM_WRITE, &[VM_WRITE]),
        (Kind::PidfdGetfd, whole::PIDFD_GETFD, &[PIDFD_GETFD]),
        (Kind::MemfdCreate, whole::MEMFD, &[MEMFD]),
        (Kind::Unshare, whole::UNSHARE, &[UNSHARE, CLONE, CLONE3]),
        (Kind::Setns, whole::SETNS, &[SETNS]),
        (
            Kind::MapWx,
            whole::MAP_WX,
            &[MPROTECT, MMAP, MMAP_OLD, SHMAT, IPC],
        ),
        (
            Kind::ModuleLoad,
            whole::MODULE_LOAD,
            &[INIT_MODULE, FINIT_MODULE],
        ),
        (Kind::ModuleUnload, whole::MODULE_UNLOAD, &[DELETE_MODULE]),
        (Kind::Bpf, whole::BPF, &[BPF]),
        (
            Kind::Mount,
            whole::MOUNT,
            &[MOUNT, MOVE_MOUNT, FSMOUNT, MOUNT_AT],
        ),
        (Kind::Umount, whole::UMOUNT, &[UMOUNT]),
        (Kind::PivotRoot, whole::PIVOT_ROOT, &[PIVOT_ROOT]),
        (Kind::Chroot, whole::CHROOT, &[CHROOT]),
        (Kind::KexecLoad, whole::KEXEC, &[KEXEC]),
        (Kind::IoUringSetup, whole::IO_URING, &[IO_URING]),
        (Kind::Chmod, whole::CHMOD, &[CHMOD, FCHMOD, FCHMODAT]),
        (Kind::Chown, whole::CHOWN, &[CHOWN, FCHOWN, FCHOWNAT]),
        (Kind::Truncate, whole::TRUNCATE, &[TRUNCATE, FTRUNCATE]),
        (Kind::Link, whole::LINK, &[LINK, LINKAT]),
        (Kind::Symlink, whole::SYMLINK, &[SYMLINK, SYMLINKAT]),
        (
            Kind::Setxattr,
            whole::SETXATTR,
            &[SETXATTR, FSETXATTR, SETXATTRAT],
        ),
        (Kind::Bind, whole::BIND, &[BIND, SOCKETCALL]),
        (Kind::Listen, whole::LISTEN, &[LISTEN, SOCKETCALL]),
        // From a door of its own.
        (Kind::Sysctl, whole::SYSCTL, &[]),
        (Kind::Socket, whole::SOCKET, &[SOCKET, SOCKETCALL]),
        (Kind::Dns, whole::DNS, &[]),
        (Kind::Prctl, whole::PRCTL, &[PRCTL]),
        (Kind::Userfaultfd, whole::USERFAULTFD, &[USERFAULTFD]),
    ]
};

/// Calls that open.
const OPENS: [u8; 5] = {
    use action::*;
    [OPEN, OPENAT, OPENAT2, CREAT, OPEN_BY_HANDLE]
};

/// Calls that rename, and that remove.
const RENAMES: [u8; 2] = [action::RENAME, action::RENAMEAT];
const UNLINKS: [u8; 3] = [action::UNLINK, action::UNLINKAT, action::RMDIR];

/// Kinds of which calls that failed are told if rules ask for that, and their actions.
fn failing() -> impl Iterator<Item = (Kind, &'static [u8])> {
    let whole = WHOLE.iter().map(|(kind, _, actions)| (*kind, *actions));
    whole
        .chain([
            (Kind::Open, &OPENS[..]),
            (Kind::Rename, &RENAMES[..]),
            (Kind::Unlink, &UNLINKS[..]),
        ])
        .filter(|(kind, _)| tells_failures(*kind))
}

#[expect(unsafe_code, reason = "aya wants to know that a value is plain data")]
// SAFETY: `repr(C)`, integers only, without implicit padding (size asserted in the abi).
unsafe impl aya::Pod for Of<Match> {}

/// The maps of the filter.
pub(super) struct Maps {
    pub(super) filters: Array<MapData, Of<Filter>>,
    pub(super) matches: LpmTrie<MapData, [u8; MATCH_DATA], Of<Match>>,
}

/// What a swap could not do as the plans ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swapped {
    /// Kinds of which everything is sent because their clauses do not fit in.
    pub widened: Vec<Kind>,
    /// No rule kills in the kernel: their texts do not fit in.
    pub late: bool,
    /// Processes of whose ancestors the kernel knows nothing: there was no room.
    pub unseeded: usize,
    /// Cgroups of which the kernel knows only what is said of all below one above: there was no room.
    pub unscoped: usize,
}

/// A filter ready to be written.
#[derive(Debug)]
struct Compiled {
    filter: Filter,
    entries: Vec<(Key, Match)>,
    verdicts: Verdicts,
    /// Kinds of which everything is sent because their clauses do not fit.
    widened: Vec<Kind>,
}

impl Kernel {
    /// Generation of the filter that is active, or that will be when the hooks are attached.
    #[must_use]
    pub fn filter_generation(&self) -> u32 {
        self.maps
            .filters
            .get(&self.active, 0)
            .map_or(0, |filter| filter.0.generation)
    }

    /// The highest generation that any filter has had: the next one needs a higher.
    #[must_use]
    pub fn last_generation(&self) -> u32 {
        let of = |index| self.maps.filters.get(&index, 0);
        [0, 1]
            .into_iter()
            .filter_map(|index| of(index).ok())
            .map(|filter| filter.0.generation)
            .max()
            .unwrap_or(0)
    }

    /// Makes `plan` the filter, without rules that kill. Returns the kinds of which everything is
    /// sent because their clauses do not fit in.
    ///
    /// # Errors
    /// As [`Kernel::set_rules`].
    pub fn set_filter(&mut self, plan: &Plan, generation: u32) -> Result<Vec<Kind>, Error> {
        let swapped = self.set_rules(plan, &VerdictPlan::default(), generation, Known::default)?;
        Ok(swapped.widened)
    }

    /// Makes `plan` the filter. Records judged by it carry `generation` in their header, and after
    /// this returns no record is judged by the previous one any more. Before
    /// [`Kernel::attach`] it only prepares: a previous agent's programs go on with theirs.
    ///
    /// The rules that kill are swapped with it. `known` is asked for what the new plan needs to be told of processes and
    /// cgroups, if it asks about ancestors, at other events than execs about executables, or about workloads.
    ///
    /// # Errors
    /// A map cannot be written, or closes are asked for and their hook is refused. The
    /// previous filter then stays.
    pub fn set_rules(
        &mut self,
        plan: &Plan,
        verdicts: &VerdictPlan,
        generation: u32,
        known: impl FnOnce() -> Known,
    ) -> Result<Swapped, Error> {
        let mut compiled = compile(plan, verdicts, generation);
        if self.points.used {
            compiled.filter.known |= self.points.wanted(&compiled.filter);
            compiled.filter.known |= self.rings.wanted(&compiled.filter);
        }
        let index = 1 - self.active;
        // The other filter may still be in use by a program that began before the last swap.
        self.wait_quiet()?;
        self.clear_entries(index)?;
        for (key, value) in &compiled.entries {
            self.maps
                .matches
                .insert(&map_key(key, index), Of(*value), 0)
                .map_err(Error::map("fill", "MATCH"))?;
        }
        self.maps
            .filters
            .set(index, Of(compiled.filter), 0)
            .map_err(Error::map("write", "FILTERS"))?;
        self.verdicts
            .plans
            .set(index, Of(compiled.verdicts), 0)
            .map_err(Error::map("write", "VERDICTS"))?;
        self.clear_seeds(index)?;
        self.clear_scopes(index)?;
        let asks = compiled.verdicts.lineage | compiled.verdicts.kept | compiled.verdicts.scope;
        let mut swapped = Swapped {
            widened: compiled.widened,
            late: compiled.verdicts.clauses == 0 && !verdicts.clauses.is_empty(),
            unseeded: 0,
            unscoped: 0,
        };
        if asks != 0 {
            let Known { processes, cgroups } = known();
            let told = processes
                .iter()
                .take_while(|seed| self.seed_for(index, generation, seed).is_ok())
                .count();
            swapped.unseeded = processes.len() - told;
            let told = cgroups
                .iter()
                .take_while(|(id, scope)| self.scope_for(index, generation, *id, *scope).is_ok())
                .count();
            swapped.unscoped = cgroups.len() - told;
        }
        let entries = compiled.filter.entry_actions != 0;
        let denied = super::doors::wanted(&compiled.filter, &compiled.verdicts);
        self.watch_writers(&compiled.filter)?;
        if self.attached {
            self.open_doors(denied)?;
            self.open_points(compiled.filter.known);
            if entries && !self.entries {
                self.attach_on_demand()?;
            }
            self.switch_sockets(&compiled.filter, true)
                .map_err(|reason| Error::Hook {
                    hook: "sockets",
                    reason,
                })?;
            self.switch(index)?;
            // From here on the new rules are in force, whatever cannot be tidied up.
            if let Err(error) = self.tidy(index, (entries, denied), &compiled.filter) {
                tracing::warn!(
                    error = chain(&error),
                    "the rules are swapped, but not all of the old ones could be removed"
                );
            }
        } else {
            self.active = index;
        }
        (self.entries, self.denied) = (entries, denied);
        self.watches_writers(&compiled.filter);
        Ok(swapped)
    }

    /// Waits until nothing is judged by the old rules any more, and removes what only they need.
    fn tidy(
        &mut self,
        index: u32,
        (entries, denied): (bool, u32),
        filter: &Filter,
    ) -> Result<(), Error> {
        self.wait_quiet()?;
        self.close_doors(denied)?;
        self.close_points(filter.known)?;
        self.switch_sockets(filter, false)
            .map_err(|reason| Error::Hook {
                hook: "sockets",
                reason,
            })?;
        if !entries && self.entries {
            self.pins.remove_link(SYS_ENTER)?;
        }
        self.clear_seeds(1 - index)?;
        self.clear_scopes(1 - index)?;
        self.forget_lineage()
    }

    pub(super) fn attach_on_demand(&mut self) -> Result<(), Error> {
        for hook in HOOKS.iter().filter(|hook| hook.on_demand) {
            self.attach_door(hook).map_err(|reason| Error::Hook {
                hook: hook.program,
                reason,
            })?;
        }
        Ok(())
    }

    /// Removes the entries of one filter, whoever made them.
    fn clear_entries(&mut self, index: u32) -> Result<(), Error> {
        let keys: Result<Vec<_>, MapError> = self.maps.matches.keys().collect();
        let ours = if index == 0 { 0 } else { tag::FILTER };
        for key in keys.map_err(Error::map("list", "MATCH"))? {
            let data = key.data();
            if data[0] & tag::FILTER == ours {
                self.maps
                    .matches
                    .remove(&key)
                    .map_err(Error::map("clear", "MATCH"))?;
            }
        }
        Ok(())
    }

    /// Waits until each level of each CPU has been seen idle: every program that was under
    /// way at the beginning has ended.
    fn wait_quiet(&self) -> Result<(), Error> {
        let begun = Instant::now();
        let mut idle: Vec<[bool; LEVELS as usize]> = Vec::new();
        loop {
            let values = self.busy.get(&0, 0).map_err(Error::map("read", "BUSY"))?;
            idle.resize(values.len(), [false; LEVELS as usize]);
            for (idle, busy) in idle.iter_mut().zip(values.iter()) {
                for (idle, busy) in idle.iter_mut().zip(busy) {
                    *idle |= *busy == 0;
                }
            }
            if idle.iter().all(|levels| levels.iter().all(|idle| *idle)) {
                return Ok(());
            }
            if begun.elapsed() > QUIET_DEADLINE {
                return Err(Error::Busy(QUIET_DEADLINE.as_millis() as u64));
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

fn map_key(key: &Key, index: u32) -> lpm_trie::Key<[u8; MATCH_DATA]> {
    let mut data = [0; MATCH_DATA];
    data[..key.data.len()].copy_from_slice(&key.data);
    if index != 0 {
        data[0] |= tag::FILTER;
    }
    lpm_trie::Key::new(key.bits, data)
}

fn compile(plan: &Plan, verdicts: &VerdictPlan, generation: u32) -> Compiled {
    let mut widened = Vec::new();
    let mut trie = Trie::default();
    // The rules that kill first: what they leave is room enough to widen every kind.
    let verdicts = verdicts::compile(verdicts, generation, &mut trie)
        .filter(|_| trie.len() <= ENTRIES_MAX / 2)
        .unwrap_or_else(|| {
            trie = Trie::default();
            Verdicts {
                generation,
                ..Verdicts::default()
            }
        });
    loop {
        let mut compiler = Compiler {
            trie: trie.clone(),
            ..Compiler::default()
        };
        compiler.filter.generation = generation;
        if plan.writers {
            compiler.filter.known = WRITERS;
        }
        match compiler.add(plan, &widened) {
            Ok(()) => {
                (compiler.filter.actions, compiler.filter.entry_actions) =
                    actions(&compiler.filter);
                return Compiled {
                    filter: compiler.filter,
                    entries: compiler.trie.finish(),
                    verdicts,
                    widened,
                };
            }
            // Each turn widens one more kind, so this ends.
            Err(kind) => widened.push(kind),
        }
    }
}

#[derive(Default)]
struct Compiler {
    filter: Filter,
    trie: Trie,
    file_clauses: usize,
    net_clauses: usize,
}

impl Compiler {
    /// Adds all kinds; the kind that does not fit, if one does not.
    fn add(&mut self, plan: &Plan, widened: &[Kind]) -> Result<(), Kind> {
        for (kind, place) in KINDS {
            let named_by_caller = matches!(kind, Kind::Rename | Kind::Unlink);
            self.filter.mode[place] = match plan.kind(kind) {
                KindPlan::None => MODE_NONE,
                KindPlan::Clauses(clauses) if !named_by_caller && !widened.contains(&kind) => {
                    for clause in clauses {
                        self.clause(kind, place, clause).ok_or(kind)?;
                    }
                    MODE_FILTERED
                }
                // What the caller says of a name never filters.
                KindPlan::All | KindPlan::Clauses(_) => MODE_ALL,
            };
        }
        for (kind, place, _) in WHOLE {
            if *plan.kind(kind) != KindPlan::None {
                self.filter.whole |= 1 << place;
            }
        }
        for (kind, actions) in failing() {
            let words = plan.failures(kind).words();
            for action in actions {
                *self.filter.failures.of_mut(*action) = words;
            }
        }
        Ok(())
    }

    fn clause(&mut self, kind: Kind, place: usize, clause: &Clause) -> Option<()> {
        let network = matches!(kind, Kind::Connect | Kind::Accept | Kind::ConnectUdp);
        let count = if network {
            &mut self.net_clauses
        } else {
            &mut self.file_clauses
        };
        if *count >= SPACE {
            return None;
        }
        let bit = 1 << *count;
        *count += 1;
        self.filter.clauses[place] |= bit;
        let space = if network { Space::Net } else { Space::File };
        if clause.exe_names.is_none() && clause.exe_paths.is_none() {
            *match space {
                Space::File => &mut self.filter.any_exe_file,
                Space::Net => &mut self.filter.any_exe_net,
            } |= bit;
        }
        for name in clause.exe_names.iter().flatten() {
            self.trie.exe(tag::EXE_NAME, name, bit, space);
        }
        for path in clause.exe_paths.iter().flatten() {
            self.trie.exe(tag::EXE_PATH, path, bit, space);
        }
        if network {
            self.network(clause, bit);
        } else {
            self.file(clause, bit);
        }
        (self.trie.len() <= ENTRIES_MAX).then_some(())
    }

    fn file(&mut self, clause: &Clause, bit: u64) {
        match clause.access_any {
            None => self.filter.any_access |= bit,
            Some(asked) => {
                for (clauses, access) in self.filter.access.iter_mut().zip(ACCESS_BITS) {
                    if asked & access != 0 {
                        *clauses |= bit;
                    }
                }
                if asked & !ACCESS_BITS.iter().fold(0, |all, one| all | one) & !file::CALL_COMPAT
                    != 0
                {
                    // A bit that the kernel side does not judge.
                    self.filter.any_access |= bit;
                }
            }
        }
        let prefixes = clause.path_prefixes.as_deref().unwrap_or_default();
        let exact = clause.path_exact.as_deref().unwrap_or_default();
        let everything = clause.path_prefixes.is_none() && clause.path_exact.is_none();
        // The root directory itself has neither parent nor name.
        let any = everything
            || prefixes.iter().any(Vec::is_empty)
            || exact.iter().any(|path| path == b"/");
        if any {
            self.filter.any_path |= bit;
            return;
        }
        for prefix in prefixes {
            self.trie.path_prefix(prefix, bit);
        }
        for path in exact {
            self.trie.path_exact(path, bit);
        }
    }

    fn network(&mut self, clause: &Clause, bit: u64) {
        for (ports, any, tag) in [
            (
                &clause.src_ports,
                &mut self.filter.any_src_port,
                tag::SRC_PORT,
            ),
            (
                &clause.dst_ports,
                &mut self.filter.any_dst_port,
                tag::DST_PORT,
            ),
        ] {
            match ports {
                None => *any |= bit,
                Some(ports) => ports
                    .iter()
                    .for_each(|ports| self.trie.ports(tag, *ports, bit)),
            }
        }
        for (nets, any, tags) in [
            (
                &clause.src_nets,
                &mut self.filter.any_src_net,
                (tag::SRC_NET4, tag::SRC_NET6),
            ),
            (
                &clause.dst_nets,
                &mut self.filter.any_dst_net,
                (tag::DST_NET4, tag::DST_NET6),
            ),
        ] {
            match nets {
                None => *any |= bit,
                Some(nets) => nets
                    .iter()
                    .for_each(|(address, bits)| self.trie.net(tags, *address, *bits, bit)),
            }
        }
    }
}

/// What the exit hook and the entry hook have to act on.
fn actions(filter: &Filter) -> (u64, u64) {
    use action::*;
    let mode = &filter.mode;
    let bits = |these: &[u8]| these.iter().fold(0, |all, one| all | action::bit(*one));
    let mut actions = 0;
    let mut add = |when: bool, these: &[u8]| {
        if when {
            actions |= bits(these);
        }
    };
    let wanted = |kind: usize| mode[kind] != MODE_NONE;
    add(wanted(filtered::OPEN), &OPENS);
    // What is left out has to be this open's own file.
    add(
        mode[filtered::OPEN] == MODE_FILTERED,
        &[CLOSE, DUP, FCNTL, GETFD, PIDFD_GETFD],
    );
    add(wanted(filtered::RENAME), &RENAMES);
    add(wanted(filtered::UNLINK), &UNLINKS);
    add(wanted(filtered::MAP_EXEC), &[MMAP, MMAP_OLD]);
    add(wanted(filtered::CONNECT), &[CONNECT, SOCKETCALL]);
    add(wanted(filtered::ACCEPT), &[ACCEPT, SOCKETCALL]);
    add(wanted(filtered::CONNECT_UNIX), &[CONNECT, SOCKETCALL]);
    for (_, these) in failing() {
        let failures = |action: &u8| filter.failures.of(*action).iter().any(|word| *word != 0);
        add(these.iter().any(failures), these);
    }
    add(filter.known & WRITERS != 0, &OPENS);
    add(filter.known & WRITERS != 0, &[MEMFD]);
    // Cached verdicts depend on where directories are.
    let cached = [
        filtered::OPEN,
        filtered::CLOSE_WRITE,
        filtered::CONNECT_UNIX,
        filtered::MAP_EXEC,
    ]
    .iter()
    .any(|kind| mode[*kind] == MODE_FILTERED);
    add(
        cached,
        &[
            RENAME, RENAMEAT, RMDIR, UNLINKAT, MOUNT, UMOUNT, PIVOT_ROOT, CHROOT, MOVE_MOUNT,
        ],
    );
    for (_, place, these) in WHOLE {
        add(filter.whole >> place & 1 != 0, these);
    }
    // The bit of the first is that of setgroups, too.
    let mut entry = actions & bits(&[SETID, CAPSET]);
    if wanted(filtered::CLOSE_WRITE) {
        entry |= bits(&[CLOSE]);
    }
    (actions, entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::doors::KINDS_OF_DOORS;
    use crate::kernel::sockets::{SOCKET_HOOKS, SocketHook};

    fn plan(kind: Kind, clauses: Vec<Clause>) -> Plan {
        Plan {
            kinds: vec![(kind, KindPlan::Clauses(clauses))],
            ..Plan::default()
        }
    }

    #[test]
    fn too_many_clauses_widen_their_kind_and_no_other() {
        let clause = |n: usize| Clause {
            path_exact: Some(vec![format!("/srv/{n}").into_bytes()]),
            ..Clause::default()
        };
        let mut plan = plan(Kind::Open, (0..SPACE).map(clause).collect());
        assert_eq!(compile(&plan, &VerdictPlan::default(), 1).widened, []);
        plan.kinds
            .push((Kind::CloseWrite, KindPlan::Clauses(vec![clause(0)])));
        let compiled = compile(&plan, &VerdictPlan::default(), 1);
        assert_eq!(compiled.widened, [Kind::CloseWrite]);
        assert_eq!(compiled.filter.mode[filtered::OPEN], MODE_FILTERED);
        assert_eq!(compiled.filter.mode[filtered::CLOSE_WRITE], MODE_ALL);
    }

    #[test]
    fn too_many_entries_widen_their_kind() {
        let paths = (0..ENTRIES_MAX)
            .map(|n| format!("/srv/{n}").into_bytes())
            .collect();
        let clause = Clause {
            path_exact: Some(paths),
            ..Clause::default()
        };
        let compiled = compile(&plan(Kind::Open, vec![clause]), &VerdictPlan::default(), 1);
        assert_eq!(compiled.widened, [Kind::Open]);
        assert_eq!(compiled.entries, []);
    }

    #[test]
    fn every_kind_has_its_way_to_user_space() {
        use sumun_policy::plan::{is_life, is_own, is_whole};
        use sumun_proto::catalogue::KINDS as ALL;

        for (name, kind) in ALL.iter().filter(|(_, kind)| !is_own(*kind)) {
            let filtered = KINDS.iter().any(|(known, _)| known == kind);
            let whole: Vec<_> = WHOLE.iter().filter(|(known, ..)| known == kind).collect();
            let caller = matches!(kind, Kind::Rename | Kind::Unlink);
            assert_eq!(
                whole.len(),
                usize::from(is_whole(*kind) && !caller),
                "{name}"
            );
            assert!(is_life(*kind) || filtered || !whole.is_empty(), "{name}");
            let mut hooks = HOOKS
                .iter()
                .map(|hook| hook.kinds)
                .chain(SOCKET_HOOKS.iter().map(SocketHook::kinds))
                .chain([KINDS_OF_DOORS]);
            assert!(hooks.any(|kinds| kinds.contains(name)), "{name}");
            let plan = plan(*kind, vec![Clause::default()]);
            let compiled = compile(&plan, &VerdictPlan::default(), 1);
            for (_, place, actions) in whole {
                assert_eq!(compiled.filter.whole, 1 << place, "{name}");
                for action in *actions {
                    assert_ne!(compiled.filter.actions & action::bit(*action), 0, "{name}");
                }
            }
        }
        let before = plan(Kind::Setid, vec![Clause::default()]);
        let compiled = compile(&before, &VerdictPlan::default(), 1);
        assert_eq!(compiled.filter.entry_actions, 1 << action::SETID);
    }

    #[test]
    fn names_of_the_caller_never_filter() {
        let clause = Clause {
            path_exact: Some(vec![b"/x".to_vec()]),
            ..Clause::default()
        };
        let compiled = compile(
            &plan(Kind::Rename, vec![clause]),
            &VerdictPlan::default(),
            1,
        );
        assert_eq!(compiled.filter.mode[filtered::RENAME], MODE_ALL);
    }
}
