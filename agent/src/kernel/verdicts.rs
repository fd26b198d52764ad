//! The rules that kill and deny: their plan in the kernel, whom they may not kill, how long they hold, and
//! what is known of the ancestors of processes that are older than the plan.

use aya::maps::{Array, HashMap, MapData, MapError};
use sumun_abi::{
    policy::{ACCESS_BITS, tag},
    verdict::{
        CLAUSES, Clause, FORCED, Guard, Lineage, LineageKey, NUMBERS, Number, Scope, ScopeKey,
        Verdicts, denied, id, on,
    },
};
use sumun_policy::verdict::{Atom, End, Id, RESULT_ZERO, TEXT_MAX, Texts, VerdictPlan, kind_bit};
use sumun_proto::v1::Kind;

use super::{
    Error, Kernel, Of,
    filter::KINDS,
    trie::{Space, Trie},
};

#[expect(unsafe_code, reason = "aya wants to know that a value is plain data")]
// SAFETY: `repr(C)`, integers only, without implicit padding (size asserted in the abi).
unsafe impl aya::Pod for Of<Verdicts> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<Lineage> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<LineageKey> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<Guard> {}

#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<Scope> {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl aya::Pod for Of<ScopeKey> {}

/// The maps of verdicts.
pub(super) struct Maps {
    pub(super) plans: Array<MapData, Of<Verdicts>>,
    pub(super) lineage: HashMap<MapData, Of<LineageKey>, Of<Lineage>>,
    pub(super) seeds: HashMap<MapData, Of<LineageKey>, Of<Lineage>>,
    pub(super) scopes: HashMap<MapData, Of<ScopeKey>, Of<Scope>>,
    pub(super) guard: Array<MapData, Of<Guard>>,
    pub(super) lease: Array<MapData, u64>,
}

/// What a plan has to be told with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Processes that run, if it asks about ancestors, or at other events than execs about executables.
    pub processes: Vec<Seed>,
    /// Cgroups by their ids, if it asks about workloads or the host; the generation is filled in.
    pub cgroups: Vec<(u64, Scope)>,
}

/// A process and what is known of it and its ancestors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// Process id.
    pub pid: u32,
    /// Start, ns since boot.
    pub start_ns: u64,
    /// The words; the generation is filled in.
    pub lineage: Lineage,
}

/// The plan in the kernel's form, its texts added to the trie. `None`: a text is too long or a
/// number of things too large, which the policy compiler does not make.
pub(super) fn compile(plan: &VerdictPlan, generation: u32, trie: &mut Trie) -> Option<Verdicts> {
    let mut verdicts = Verdicts {
        generation,
        ..Verdicts::default()
    };
    for (place, atom) in plan.atoms.iter().enumerate() {
        let bit = 1_u64.checked_shl(u32::try_from(place).ok()?)?;
        match atom {
            Atom::Exe(asked) => {
                verdicts.exe |= bit;
                texts(trie, asked, bit, Space::File)?;
                verdicts.named |= if asked.names.is_empty() { 0 } else { bit };
            }
            Atom::Ancestor(asked) => {
                verdicts.lineage |= bit;
                texts(trie, asked, bit, Space::Net)?;
                verdicts.named |= if asked.names.is_empty() { 0 } else { bit };
            }
            Atom::File(asked) => {
                verdicts.file |= bit;
                let tags = (tag::VERDICT_FILE_NAME, tag::VERDICT_FILE_PATH);
                texts_under(tags, trie, asked, bit, Space::File)?;
                verdicts.named |= if asked.names.is_empty() { 0 } else { bit };
            }
            Atom::To(asked) => {
                verdicts.to |= bit;
                whole(tag::VERDICT_TO_PATH, trie, asked, bit)?;
            }
            Atom::Setting(asked) => {
                verdicts.setting |= bit;
                whole(tag::VERDICT_SETTING, trie, asked, bit)?;
            }
            Atom::Value(asked) => {
                verdicts.value |= bit;
                whole(tag::VERDICT_VALUE, trie, asked, bit)?;
            }
            Atom::Scope(asked) => {
                verdicts.scope |= bit;
                verdicts.presumed |= if asked.presumed { bit } else { 0 };
            }
            Atom::Flag(flag) => {
                let place = ACCESS_BITS.iter().position(|known| known == flag)?;
                verdicts.access[place] |= bit;
            }
            Atom::Net { end, nets } => {
                let (asked, tags) = match end {
                    End::Src => (
                        &mut verdicts.src_net,
                        (tag::VERDICT_SRC_NET4, tag::VERDICT_SRC_NET6),
                    ),
                    End::Dst => (
                        &mut verdicts.dst_net,
                        (tag::VERDICT_DST_NET4, tag::VERDICT_DST_NET6),
                    ),
                };
                *asked |= bit;
                for (address, bits) in nets {
                    trie.net(tags, *address, *bits, bit);
                }
            }
            Atom::Number { id: asked, range } => {
                let number = verdicts.number.get_mut(verdicts.numbers as usize)?;
                let id = match asked {
                    Id::Uid => id::UID,
                    Id::Gid => id::GID,
                    Id::Euid => id::EUID,
                    Id::Egid => id::EGID,
                    Id::SrcPort => id::SRC_PORT,
                    Id::DstPort => id::DST_PORT,
                    Id::Protocol => id::PROTOCOL,
                    Id::Result => id::RESULT,
                    Id::InImage => id::IN_IMAGE,
                    Id::Capability(0..=31) => id::CAPS_LOW,
                    Id::Capability(_) => id::CAPS_HIGH,
                };
                // Of a capability it is whether it is there, 0 or 1, that is asked for.
                let mask = match asked {
                    Id::Capability(number) => 1 << (number % 32),
                    _ => u32::MAX,
                };
                let place = |number: u32| match asked {
                    Id::Capability(_) => number * mask,
                    _ => number,
                };
                verdicts.numbered[id as usize] |= bit;
                *number = Number {
                    id,
                    first: place(range.0),
                    last: place(range.1),
                    mask,
                    atom: bit,
                };
                verdicts.numbers += 1;
            }
        }
    }
    for clause in &plan.clauses {
        *verdicts.clause.get_mut(verdicts.clauses as usize)? = Clause {
            need: clause.need,
            forbid: clause.forbid,
            rule: match clause.kinds & sumun_policy::verdict::FORCED {
                0 => number(clause.rule)?,
                _ => number(clause.rule)? | FORCED,
            },
            kinds: kinds(clause.kinds),
        };
        verdicts.kinds |= kinds(clause.kinds);
        verdicts.clauses += 1;
    }
    verdicts.kept = plan.kept();
    Some(verdicts)
}

/// The number of a rule, beside which there is room for [`FORCED`].
fn number(rule: usize) -> Option<u32> {
    u32::try_from(rule)
        .ok()
        .filter(|number| number & FORCED == 0)
}

/// Kinds of a clause, as the kernel side names them.
fn kinds(asked: u32) -> u32 {
    let exec = (Kind::Exec, on::EXEC);
    let others = KINDS.map(|(kind, place)| (kind, on::filtered(place)));
    let all = [exec].into_iter().chain(others);
    all.filter(|(kind, _)| asked & kind_bit(*kind) != 0)
        .fold(asked & DENIED, |bits, (_, bit)| bits | bit)
}

/// Bits of calls that are asked about before they happen: the policy compiler numbers them as the kernel side does.
pub(super) const DENIED: u32 = (u32::MAX >> (16 - denied::COUNT)) & !(on::denied(0) - 1);

const _: () = assert!(
    NUMBERS == sumun_policy::verdict::NUMBERS_MAX && CLAUSES == sumun_policy::verdict::CLAUSES_MAX
);
const _: () = assert!(TEXT_MAX < sumun_abi::policy::MATCH_TEXT);
// What the kernel side turns over.
const _: () = assert!(RESULT_ZERO == 1 << 31);

fn texts(trie: &mut Trie, asked: &Texts, bit: u64, space: Space) -> Option<()> {
    let tags = (tag::VERDICT_NAME, tag::VERDICT_PATH);
    texts_under(tags, trie, asked, bit, space)
}

/// Texts without last components.
fn whole(tag: u8, trie: &mut Trie, asked: &Texts, bit: u64) -> Option<()> {
    texts_under((tag, tag), trie, asked, bit, Space::File)
}

fn texts_under(
    (name, path): (u8, u8),
    trie: &mut Trie,
    asked: &Texts,
    bit: u64,
    space: Space,
) -> Option<()> {
    for (tag, texts, prefix) in [
        (name, &asked.names, false),
        (path, &asked.paths, false),
        (path, &asked.prefixes, true),
    ] {
        for text in texts {
            if text.len() > TEXT_MAX {
                return None;
            }
            // A last component has no slash: nothing is called so.
            if tag == path || !text.contains(&b'/') {
                trie.verdict(tag, text, prefix, bit, space);
            }
        }
    }
    Some(())
}

impl Kernel {
    /// Keeps this process, and whatever runs its executable, from being killed by a rule.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn guard(&mut self, guard: Guard) -> Result<(), Error> {
        self.verdicts
            .guard
            .set(0, Of(guard), 0)
            .map_err(Error::map("write", "GUARD"))
    }

    /// Rules go on killing until this boot time, whether or not an agent is there.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn hold_until(&mut self, boot_ns: u64) -> Result<(), Error> {
        self.verdicts
            .lease
            .set(0, boot_ns, 0)
            .map_err(Error::map("write", "LEASE"))
    }

    /// Tells the kernel of a process and its ancestors, for the active plan.
    ///
    /// # Errors
    /// The map is full or cannot be written: such processes are judged late.
    pub fn seed(&mut self, seed: &Seed) -> Result<(), Error> {
        let generation = self.filter_generation();
        self.seed_for(self.active, generation, seed)
    }

    /// The process has ended.
    pub fn unseed(&mut self, pid: u32, start_ns: u64) {
        for plan in [0, 1] {
            let key = LineageKey {
                start_ns,
                pid,
                plan,
            };
            // Mostly there is none.
            let _ = self.verdicts.seeds.remove(&Of(key));
        }
    }

    pub(super) fn seed_for(
        &mut self,
        plan: u32,
        generation: u32,
        seed: &Seed,
    ) -> Result<(), Error> {
        let key = LineageKey {
            start_ns: seed.start_ns,
            pid: seed.pid,
            plan,
        };
        let lineage = Lineage {
            generation,
            ..seed.lineage
        };
        self.verdicts
            .seeds
            .insert(Of(key), Of(lineage), 0)
            .map_err(Error::map("write", "SEEDS"))
    }

    /// Tells the kernel whose a cgroup is, for the active plan.
    ///
    /// # Errors
    /// The map is full or cannot be written: the cgroup has what is known of all below one above it.
    pub fn scope(&mut self, cgroup: u64, scope: Scope) -> Result<(), Error> {
        let generation = self.filter_generation();
        self.scope_for(self.active, generation, cgroup, scope)
    }

    /// The cgroup is gone.
    pub fn unscope(&mut self, cgroup: u64) {
        for plan in [0, 1] {
            let key = ScopeKey {
                cgroup,
                plan,
                pad: 0,
            };
            // Of one of them there mostly is none.
            let _ = self.verdicts.scopes.remove(&Of(key));
        }
    }

    pub(super) fn scope_for(
        &mut self,
        plan: u32,
        generation: u32,
        cgroup: u64,
        scope: Scope,
    ) -> Result<(), Error> {
        let key = ScopeKey {
            cgroup,
            plan,
            pad: 0,
        };
        let scope = Scope {
            cgroup,
            generation,
            ..scope
        };
        self.verdicts
            .scopes
            .insert(Of(key), Of(scope), 0)
            .map_err(Error::map("write", "SCOPES"))
    }

    /// Removes what cgroups answer to a plan that is not active any more.
    pub(super) fn clear_scopes(&mut self, plan: u32) -> Result<(), Error> {
        let keys: Result<Vec<_>, MapError> = self.verdicts.scopes.keys().collect();
        for key in keys.map_err(Error::map("list", "SCOPES"))? {
            if key.0.plan == plan {
                let _ = self.verdicts.scopes.remove(&key);
            }
        }
        Ok(())
    }

    /// Removes the seeds of a plan that is not active any more.
    pub(super) fn clear_seeds(&mut self, plan: u32) -> Result<(), Error> {
        let keys: Result<Vec<_>, MapError> = self.verdicts.seeds.keys().collect();
        for key in keys.map_err(Error::map("list", "SEEDS"))? {
            if key.0.plan == plan {
                let _ = self.verdicts.seeds.remove(&key);
            }
        }
        Ok(())
    }

    /// Removes what processes have inherited, if the active plan asks for nothing of the kind: their exits
    /// would leave it there.
    pub(super) fn forget_lineage(&mut self) -> Result<(), Error> {
        let plan = self.verdicts.plans.get(&self.active, 0);
        let plan = plan.map_err(Error::map("read", "VERDICTS"))?.0;
        if plan.lineage | plan.kept != 0 {
            return Ok(());
        }
        let keys: Result<Vec<_>, MapError> = self.verdicts.lineage.keys().collect();
        for key in keys.map_err(Error::map("list", "LINEAGE"))? {
            let _ = self.verdicts.lineage.remove(&key);
        }
        Ok(())
    }
}
