//! Where the kernel of a host can make a call fail before it does anything.

use sumun_abi::verdict::denied;
use sumun_proto::catalogue::kind_name;
use sumun_proto::v1::Kind;

use crate::explain::Effective;
use crate::verdict::AFTER;

/// Kinds that some door can deny, by their place in `sumun_abi::verdict::denied`.
pub const DENIABLE: [Kind; denied::COUNT] = {
    let mut kinds = [Kind::Unspecified; denied::COUNT];
    kinds[denied::EXEC] = Kind::Exec;
    kinds[denied::OPEN] = Kind::Open;
    kinds[denied::RENAME] = Kind::Rename;
    kinds[denied::UNLINK] = Kind::Unlink;
    kinds[denied::LINK] = Kind::Link;
    kinds[denied::CONNECT] = Kind::Connect;
    kinds[denied::BIND] = Kind::Bind;
    kinds[denied::SYSCTL] = Kind::Sysctl;
    kinds[denied::MOUNT] = Kind::Mount;
    kinds[denied::MODULE_LOAD] = Kind::ModuleLoad;
    kinds[denied::PTRACE] = Kind::Ptrace;
    kinds[denied::MAP_WX] = Kind::MapWx;
    kinds[denied::TRUNCATE] = Kind::Truncate;
    kinds[denied::CHMOD] = Kind::Chmod;
    kinds[denied::CHOWN] = Kind::Chown;
    kinds[denied::PIVOT_ROOT] = Kind::PivotRoot;
    kinds
};

/// Kinds that programs on the root of all cgroups can deny, on nearly every kernel. The others need BPF LSM.
pub(crate) const CGROUP: [Kind; 3] = [Kind::Connect, Kind::Bind, Kind::Sysctl];

/// How the kernel kills by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Killing {
    /// On exec, before the first instruction.
    BeforeStart,
    /// On the kinds of [`AFTER`], once the call is through.
    After,
}

impl Killing {
    /// Its name as an effective mode.
    #[must_use]
    pub fn mode(self) -> &'static str {
        match self {
            Killing::BeforeStart => Effective::KillBeforeStart,
            Killing::After => Effective::KillAfter,
        }
        .name()
    }

    /// How it kills on a kind that it judges by itself.
    fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Exec => Some(Killing::BeforeStart),
            kind => AFTER.contains(&kind).then_some(Killing::After),
        }
    }
}

/// The doors of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// Offline: what hosts may have.
    foreseen: bool,
    /// Kinds that are denied here, and why others are not.
    known: Vec<(Kind, Result<(), String>)>,
    /// Ways to kill that do not work here, and why.
    without: Vec<(Killing, String)>,
}

/// Who denies a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// The kernel of this host, or of nearly every one.
    Here,
    /// The kernel of hosts with BPF LSM; whether it is one, is not known.
    WithLsm,
}

impl Doors {
    /// Those of a host, of which each was tried; a kind that is not named has none.
    #[must_use]
    pub fn of_host(known: Vec<(Kind, Result<(), String>)>) -> Self {
        Self {
            foreseen: false,
            known,
            without: Vec::new(),
        }
    }

    /// Those that a host may have: to explain policies offline.
    #[must_use]
    pub fn foreseen() -> Self {
        Self {
            foreseen: true,
            known: Vec::new(),
            without: Vec::new(),
        }
    }

    /// The same on a host where these ways to kill do not work, and why.
    #[must_use]
    pub fn without(self, without: Vec<(Killing, String)>) -> Self {
        Self { without, ..self }
    }

    /// Whether the kernel kills by itself on a kind that it judges.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) fn kills(&self, kind: Kind) -> Result<(), String> {
        let failed = Killing::of(kind).and_then(|killing| {
            let mut without = self.without.iter();
            without.find(|(known, _)| *known == killing)
        });
        failed.map_or(Ok(()), |(killing, why)| {
            Err(format!(
                "{} does not work on this host: {why}",
                killing.mode()
            ))
        })
    }

    /// Who denies a kind.
    ///
    /// # Errors
    /// Why nobody does.
    pub(crate) fn door(&self, kind: Kind) -> Result<Door, String> {
        if !DENIABLE.contains(&kind) {
            return Err(format!("nothing can deny {}", kind_name(kind)));
        }
        if self.foreseen {
            return Ok(match CGROUP.contains(&kind) {
                true => Door::Here,
                false => Door::WithLsm,
            });
        }
        match self.known.iter().find(|(known, _)| *known == kind) {
            Some((_, Ok(()))) => Ok(Door::Here),
            Some((_, Err(why))) => Err(why.clone()),
            None => Err("the doors of this kernel have not been tried".to_owned()),
        }
    }
}
