//! One event as predicates and columns read it.

pub mod facts;
mod kernel;
mod network;
mod privilege;
pub mod workload;

pub use privilege::CAPABILITIES;

use std::borrow::Cow;
use std::net::IpAddr;

use sumun_abi::event::file::{
    ACCESS_APPEND, ACCESS_READ, ACCESS_UNKNOWN, ACCESS_WRITE, CALL_COMPAT, CHANGE_OBJECT,
    CHANGE_TO_OBJECT, FILE_DELETED, FILE_IN_IMAGE, FILE_NOT_IN_IMAGE, NAMES_OBJECT, OPEN_CREATED,
    OPEN_FAILED, OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN,
};
use sumun_abi::record::{
    FLAW_DELETED, FLAW_LOST, FLAW_PARTIAL, FLAW_RACY, FLAW_TRUNCATED, FLAW_UNREACHABLE,
};

use crate::catalogue::{FieldId, family, kind_name, severity_name};
use crate::text::file_name;
use crate::v1::{Alert, Batch, Event, Fold, Image, Kind, RuleRef, Source, Writer};

/// Flaws by bit, with their names in the catalogue.
pub const FLAWS: &[(u32, &str)] = &[
    (FLAW_TRUNCATED as u32, "truncated"),
    (FLAW_PARTIAL as u32, "partial"),
    (FLAW_UNREACHABLE as u32, "unreachable"),
    (FLAW_LOST as u32, "lost"),
    (FLAW_RACY as u32, "racy"),
    (REDACTED, "redacted"),
];

/// A flaw that the agent adds to arguments: secrets were taken out before they were written. The kernel's bits are the low ones.
pub const REDACTED: u32 = 1 << 31;

/// Fields that only the object behind a descriptor tells.
pub const OF_OBJECT: [FieldId; 9] = [
    FieldId::FileDev,
    FieldId::FileIno,
    FieldId::FileMode,
    FieldId::FileAccessRead,
    FieldId::FileAccessWrite,
    FieldId::FileAccessAppend,
    FieldId::FileCreate,
    FieldId::FileDeleted,
    FieldId::FileInImage,
];

/// Fields that tell who wrote an executable.
pub const OF_WRITER: [FieldId; 3] = [
    FieldId::ProcExeWrittenBy,
    FieldId::ProcExeWrittenByExecId,
    FieldId::ProcExeWrittenByLineage,
];

/// Fields that the call tells: what it asked for.
const OF_CALL: [FieldId; 5] = [
    FieldId::FileAccessRead,
    FieldId::FileAccessWrite,
    FieldId::FileAccessAppend,
    FieldId::FileCreate,
    FieldId::FileTrunc,
];

/// Flaws that make a text unknown rather than merely doubtful.
pub const UNKNOWN_TEXT: u32 = (FLAW_TRUNCATED | FLAW_PARTIAL | FLAW_LOST) as u32;

/// The host an event happened on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// `host.id`
    pub id: String,
    /// `host.name`
    pub name: String,
}

/// Value of a field on one event.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// The event has no such thing: an error in CEL's sense, NULL in a column.
    Absent,
    /// It has one, but what it is was lost or cut off.
    Unknown,
    /// Boolean.
    Bool(bool),
    /// Integer; unsigned 64-bit numbers keep their bits.
    Int(i64),
    /// Nanoseconds since the Unix epoch.
    Time(i64),
    /// Text in the catalogue's form.
    Str(Cow<'a, str>),
    /// List of text.
    List(StrList<'a>),
}

/// A list of text, without copying it.
#[derive(Clone, Debug, PartialEq)]
pub struct StrList<'a> {
    items: Items<'a>,
    /// False when items are missing at the end or within: a search that
    /// found nothing is then unknown, not false.
    pub complete: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Items<'a> {
    Strings(&'a [String]),
    Flaws(u32),
    Bits(u64, &'static [(u64, &'static str)]),
    Rules(&'a [RuleRef], &'a [u32]),
    Exceptions(&'a Batch, &'a [u32]),
}

impl<'a> StrList<'a> {
    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = Cow<'a, str>> + use<'a> {
        let (mut strings, mut flaws) = (&[][..], 0);
        let (mut rules, mut exceptions) = (None, None);
        let (mut bits, mut names) = (0, &[][..]);
        match self.items {
            Items::Strings(items) => strings = items,
            Items::Flaws(bits) => flaws = bits,
            Items::Bits(set, known) => (bits, names) = (set, known),
            Items::Rules(all, matched) => rules = Some((all, matched)),
            Items::Exceptions(batch, met) => exceptions = Some((batch, met)),
        }
        let named = FLAWS.iter().filter(move |(bit, _)| flaws & bit != 0);
        let set = names
            .iter()
            .filter(move |(bit, _): &&(u64, &str)| bits & bit != 0);
        let matched = rules.into_iter().flat_map(|(rules, matched)| {
            matched.iter().filter_map(move |index| {
                let rule = at(rules, *index)?;
                Some(Cow::Owned(format!("{}/{}", rule.policy, rule.rule)))
            })
        });
        let met = exceptions.into_iter().flat_map(|(batch, met)| {
            met.iter().filter_map(move |index| {
                let exception = at(&batch.exceptions, *index)?;
                let rule = at(&batch.rules, exception.rule)?;
                let (policy, rule, name) = (&rule.policy, &rule.rule, &exception.name);
                Some(Cow::Owned(format!("{policy}/{rule}/{name}")))
            })
        });
        strings
            .iter()
            .map(|item| Cow::Borrowed(item.as_str()))
            .chain(named.map(|(_, name)| Cow::Borrowed(*name)))
            .chain(set.map(|(_, name)| Cow::Borrowed(*name)))
            .chain(matched)
            .chain(met)
    }

    /// Item at an index. `None` past the end.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Cow<'a, str>> {
        match self.items {
            Items::Strings(strings) => strings.get(index).map(|item| Cow::Borrowed(item.as_str())),
            _ => self.iter().nth(index),
        }
    }

    /// Number of items that are there.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.items {
            Items::Strings(strings) => strings.len(),
            _ => self.iter().count(),
        }
    }

    /// True when no item is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One event of a batch, or one alert with its event.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Where it happened.
    pub host: &'a Host,
    /// The batch, for images, rules and the clock.
    pub batch: &'a Batch,
    /// The event.
    pub event: &'a Event,
    /// The alert, when this is a row of the alert table.
    pub alert: Option<&'a Alert>,
}

impl<'a> View<'a> {
    /// The event's kind; `Unspecified` for one this version does not know.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind::try_from(self.event.kind).unwrap_or(Kind::Unspecified)
    }

    /// The image that did it.
    #[must_use]
    pub fn image(&self) -> Option<&'a Image> {
        image_at(self.batch, self.event.image)
    }

    /// Parent first, then its parent, as far as known. The second value of the
    /// last item tells whether the chain goes on unseen.
    pub fn ancestors(&self) -> impl Iterator<Item = &'a Image> + use<'a> {
        let batch = self.batch;
        let first = self.image().and_then(|image| image_at(batch, image.parent));
        // Parents stand before children, so a malformed batch cannot loop:
        // `image_at` is followed only downwards.
        std::iter::successors(first, move |image| {
            let next = image_at(batch, image.parent)?;
            (std::ptr::from_ref(next) < std::ptr::from_ref(*image)).then_some(next)
        })
    }

    /// True when the chain of ancestors reaches a process without a parent.
    #[must_use]
    pub fn ancestors_complete(&self) -> bool {
        let top = self.ancestors().last().or_else(|| self.image());
        top.is_some_and(is_first)
    }

    /// Wall clock of a boot time, ns since the Unix epoch.
    #[must_use]
    pub fn wall(&self, boot_ns: u64) -> i64 {
        self.batch
            .wall_offset_ns
            .wrapping_add(boot_ns.cast_signed())
    }

    /// Boot time of the row: the event's, or when a folded alert was written.
    #[must_use]
    pub fn boot_ns(&self) -> u64 {
        let fold = self.alert.and_then(|alert| alert.fold.as_ref());
        fold.map_or(self.event.boot_ns, |fold| fold.at_boot_ns)
    }

    /// The rule of the alert.
    #[must_use]
    pub fn rule(&self) -> Option<&'a RuleRef> {
        at(&self.batch.rules, self.alert?.rule)
    }

    /// An address field as an address.
    #[must_use]
    pub fn ip(&self, id: FieldId) -> Option<IpAddr> {
        let network = self.event.network.as_ref()?;
        match id {
            // As in `network`: a socket by itself has no other end.
            FieldId::NetSrcIp if matches!(self.kind(), Kind::Bind | Kind::Listen) => None,
            FieldId::NetSrcIp => ip_from(&network.src_ip),
            FieldId::NetDstIp => ip_from(&network.dst_ip),
            _ => None,
        }
    }

    /// Value of a field.
    #[must_use]
    pub fn get(&self, id: FieldId) -> Value<'a> {
        // No field is in two of these: what rules ask most comes first.
        self.process(id)
            .or_else(|| self.file(id))
            .or_else(|| self.network(id))
            .or_else(|| self.dns(id))
            .or_else(|| self.common(id))
            .or_else(|| self.workload(id))
            .or_else(|| self.told(id))
            .or_else(|| self.exited(id))
            .or_else(|| self.privilege(id))
            .or_else(|| self.kernel(id))
            .or_else(|| self.judged(id))
            .or_else(|| self.alerted(id))
            .unwrap_or(Value::Absent)
    }

    fn common(&self, id: FieldId) -> Option<Value<'a>> {
        let origin = self.event.origin.as_ref();
        Some(match id {
            FieldId::Time => Value::Time(self.wall(self.boot_ns())),
            FieldId::BootNs => int(self.boot_ns()),
            FieldId::BootId => Value::Str(Cow::Owned(boot_id_text(&self.batch.boot_id))),
            FieldId::HostId => text(&self.host.id),
            FieldId::HostName => text(&self.host.name),
            FieldId::Kind => text(kind_name(self.kind())),
            FieldId::OriginPin => int(self.batch.pin_generation),
            FieldId::OriginRing => Value::Int(origin?.ring.into()),
            FieldId::OriginCpu => Value::Int(origin?.cpu.into()),
            FieldId::OriginLevel => Value::Int(origin?.level.into()),
            FieldId::OriginSeq => int(origin?.seq),
            FieldId::Result if self.event.result.is_some() => Value::Int(self.event.result?.into()),
            FieldId::Call if !self.event.call.is_empty() => text(&self.event.call),
            FieldId::Rules if self.alert.is_none() => {
                list(Items::Rules(&self.batch.rules, &self.event.rules), true)
            }
            FieldId::Exceptions if self.alert.is_none() => {
                list(Items::Exceptions(self.batch, &self.event.exceptions), true)
            }
            _ => return None,
        })
    }

    fn process(&self, id: FieldId) -> Option<Value<'a>> {
        let image = self.image()?;
        let seen = || image.seen.then_some(());
        Some(match id {
            FieldId::ProcPid => Value::Int(image.pid.into()),
            FieldId::ProcTid => Value::Int(self.event.tid.into()),
            FieldId::ProcStart => int(image.start_ns),
            FieldId::ProcExecId => int(image.exec_id),
            FieldId::ProcExePath => exe_path(image)?,
            FieldId::ProcExeName => exe_name(image)?,
            FieldId::ProcExeFlaws => list(Items::Flaws(image.exe_flaws), true),
            FieldId::ProcExeDeleted => {
                exe_path(image)?;
                Value::Bool(image.exe_flaws & u32::from(FLAW_DELETED) != 0)
            }
            FieldId::ProcExeInImage => {
                seen()?;
                Value::Bool(image.in_image?)
            }
            FieldId::ProcExeSetid => {
                seen()?;
                Value::Bool(image.setid?)
            }
            // Unknown together with the working directory: the two have one bit in the lake.
            FieldId::ProcScriptPath => {
                seen()?;
                match checked(&image.cwd, image.cwd_flaws) {
                    Value::Unknown => Value::Unknown,
                    _ => text((!image.script.is_empty()).then_some(&image.script)?),
                }
            }
            FieldId::ProcTty => {
                seen()?;
                text((!image.tty.is_empty()).then_some(&image.tty)?)
            }
            FieldId::ProcExeWrittenAt => Value::Time(written_at(image)?),
            FieldId::ProcExeAge => {
                let age = self.wall(self.boot_ns()).saturating_sub(written_at(image)?);
                Value::Int(age.max(0) / 1_000_000_000)
            }
            FieldId::ProcExeWrittenBy
            | FieldId::ProcExeWrittenByExecId
            | FieldId::ProcExeWrittenByLineage => {
                seen()?;
                written_by(image.writer.as_ref()?, id)?
            }
            FieldId::ProcArgs => {
                seen()?;
                if image.kernel_thread {
                    return None;
                }
                list(
                    Items::Strings(&image.args),
                    image.args_flaws & UNKNOWN_TEXT == 0,
                )
            }
            FieldId::ProcArgsFlaws => list(Items::Flaws(image.args_flaws), true),
            FieldId::ProcCwd => {
                seen()?;
                checked(&image.cwd, image.cwd_flaws)
            }
            FieldId::ProcUid => Value::Int(image.uid.into()),
            FieldId::ProcGid => Value::Int(image.gid.into()),
            FieldId::ProcEuid => Value::Int(image.euid.into()),
            FieldId::ProcEgid => Value::Int(image.egid.into()),
            FieldId::ProcAuid => Value::Int(image.auid?.into()),
            FieldId::LoginSrcIp => text((!image.login_ip.is_empty()).then_some(&image.login_ip)?),
            FieldId::LoginSrcPort => nonzero(image.login_port.into())?,
            FieldId::ProcSession => nonzero(image.session.into())?,
            FieldId::ProcCapEffective => match image.cap_effective {
                Some(u64::MAX) => return None,
                Some(set) => int(set),
                None => seen().map(|()| int(0))?,
            },
            FieldId::ProcCapPermitted => seen().map(|()| int(image.cap_permitted))?,
            FieldId::ProcCgroupId => nonzero(image.cgroup_id)?,
            FieldId::ProcCgroupHierarchy => {
                nonzero(image.cgroup_id)?;
                text(&image.cgroup_hierarchy)
            }
            FieldId::ProcNsMnt => nonzero(image.ns?.mnt.into())?,
            FieldId::ProcNsPid => nonzero(image.ns?.pid.into())?,
            FieldId::ProcNsNet => nonzero(image.ns?.net.into())?,
            FieldId::ProcNsUser => nonzero(image.ns?.user.into())?,
            FieldId::ProcPidInside => nonzero(image.ns?.pid_inside.into())?,
            FieldId::ProcParentPid => nonzero(image.parent_pid.into())?,
            FieldId::ProcParentExecId => nonzero(image.parent_exec_id)?,
            FieldId::ProcParentExePath => exe_path(image_at(self.batch, image.parent)?)?,
            FieldId::ProcParentExeName => exe_name(image_at(self.batch, image.parent)?)?,
            _ => return None,
        })
    }

    /// The status is that of wait(2): the low seven bits are the signal, the
    /// second byte is what the process gave to exit(2).
    fn exited(&self, id: FieldId) -> Option<Value<'a>> {
        let status = self.event.exit.as_ref()?.code;
        let signal = status & 0x7f;
        match id {
            FieldId::ExitCode if signal == 0 => Some(Value::Int((status >> 8 & 0xff).into())),
            FieldId::ExitSignal if signal != 0 => Some(Value::Int(signal.into())),
            _ => None,
        }
    }

    fn has_descriptor(&self) -> bool {
        matches!(self.kind(), Kind::Open | Kind::CloseWrite)
    }

    /// Whether the call named an object by itself, so that there was one.
    fn names_object(&self, flags: u32) -> bool {
        match self.kind() {
            Kind::Chmod | Kind::Chown | Kind::Truncate | Kind::Setxattr => {
                flags & CHANGE_OBJECT != 0
            }
            Kind::Rename | Kind::Unlink => flags & NAMES_OBJECT != 0,
            Kind::Link => flags & CHANGE_TO_OBJECT != 0,
            Kind::MapExec | Kind::MemfdCreate | Kind::MapWx | Kind::ModuleLoad => true,
            Kind::Open => flags & OPEN_FAILED == 0,
            _ => self.has_descriptor(),
        }
    }

    fn file(&self, id: FieldId) -> Option<Value<'a>> {
        let file = self.event.file.as_ref()?;
        let opened = matches!(self.kind(), Kind::Open);
        // A descriptor always has an object: when it was gone, what it was is unknown.
        let none = file.dev == 0 && file.ino == 0;
        let lost = none && file.flaws & u32::from(FLAW_LOST) != 0 && self.names_object(file.flags);
        let descriptor = self.has_descriptor();
        let mapped = self.kind() == Kind::MapExec;
        if lost
            && OF_OBJECT.contains(&id)
            && match id {
                FieldId::FileDev | FieldId::FileIno | FieldId::FileMode => true,
                FieldId::FileDeleted => descriptor || mapped,
                FieldId::FileInImage => mapped,
                FieldId::FileCreate => opened,
                _ => descriptor,
            }
        {
            return Some(Value::Unknown);
        }
        let unasked = file.flags & ACCESS_UNKNOWN != 0;
        if unasked && OF_CALL.contains(&id) && opened {
            return Some(Value::Unknown);
        }
        // Of other kinds the kernel tells no object.
        let told = descriptor
            || matches!(
                self.kind(),
                Kind::Chmod
                    | Kind::Chown
                    | Kind::Truncate
                    | Kind::Setxattr
                    | Kind::Rename
                    | Kind::Unlink
                    | Kind::Link
                    | Kind::MapExec
                    | Kind::MemfdCreate
                    | Kind::MapWx
                    | Kind::ModuleLoad
            );
        let object = || (told && !none).then_some(());
        // Of an open that failed they are what it asked for.
        let failed = opened && file.flags & OPEN_FAILED != 0;
        let bit = |bit: u32| {
            descriptor.then_some(())?;
            if !failed {
                object()?;
            }
            Some(Value::Bool(file.flags & bit != 0))
        };
        Some(match id {
            FieldId::FilePath => optional(file.path.as_deref(), file.flaws)?,
            FieldId::FileName => match optional(
                file.path.as_deref(),
                file.flaws & !u32::from(FLAW_TRUNCATED),
            )? {
                // A truncated path has lost its start: the name still stands.
                Value::Str(Cow::Borrowed(path)) => text(file_name(path)),
                other => other,
            },
            FieldId::FileDev => object().map(|()| Value::Int(file.dev.into()))?,
            FieldId::FileIno => object().map(|()| int(file.ino))?,
            // Every inode has a type: zero is what was not told.
            FieldId::FileMode => {
                object().filter(|()| file.mode != 0)?;
                Value::Int(file.mode.into())
            }
            FieldId::FileAccessRead => bit(ACCESS_READ)?,
            FieldId::FileAccessWrite => bit(ACCESS_WRITE)?,
            FieldId::FileAccessAppend => bit(ACCESS_APPEND)?,
            FieldId::FileCreate if failed => Value::Bool(false),
            FieldId::FileCreate if opened => bit(OPEN_CREATED)?,
            FieldId::FileTrunc if opened && file.flags & OPEN_TRUNCATE_UNKNOWN != 0 => {
                Value::Unknown
            }
            FieldId::FileTrunc if opened => Value::Bool(file.flags & OPEN_TRUNCATE != 0),
            FieldId::FileSource => text(source_name(file.source)?),
            FieldId::FileFlaws => list(Items::Flaws(file.flaws), true),
            FieldId::FileDeleted if mapped => {
                object()?;
                Value::Bool(file.flags & FILE_DELETED != 0)
            }
            FieldId::FileInImage if mapped => {
                object().filter(|()| file.flags & (FILE_IN_IMAGE | FILE_NOT_IN_IMAGE) != 0)?;
                Value::Bool(file.flags & FILE_IN_IMAGE != 0)
            }
            FieldId::FileDeleted => {
                descriptor.then_some(())?;
                object()?;
                Value::Bool(file.flaws & u32::from(FLAW_DELETED) != 0)
            }
            FieldId::FileNewPath => optional(file.new_path.as_deref(), file.new_flaws)?,
            FieldId::FileNewFlaws
                if matches!(self.kind(), Kind::Rename | Kind::Link | Kind::Symlink) =>
            {
                list(Items::Flaws(file.new_flaws), true)
            }
            FieldId::FileCompat if family(self.kind()) == "file" => {
                Value::Bool(file.flags & CALL_COMPAT != 0)
            }
            FieldId::FileNewMode if self.kind() == Kind::Chmod => int(file.change?),
            FieldId::FileNewSetuid if self.kind() == Kind::Chmod => {
                Value::Bool(file.change? & 0o4000 != 0)
            }
            FieldId::FileNewSetgid if self.kind() == Kind::Chmod => {
                Value::Bool(file.change? & 0o2000 != 0)
            }
            FieldId::FileNewExec if self.kind() == Kind::Chmod => {
                Value::Bool(file.change? & 0o111 != 0)
            }
            FieldId::FileNewUid if self.kind() == Kind::Chown => Value::Int(file.owner?.into()),
            FieldId::FileNewGid if self.kind() == Kind::Chown => Value::Int(file.group?.into()),
            FieldId::FileLength if self.kind() == Kind::Truncate => int(file.change?),
            FieldId::FileXattr if self.kind() == Kind::Setxattr => {
                optional(file.xattr.as_deref(), file.xattr_flaws)?
            }
            _ => return None,
        })
    }

    /// What became of a rule that kills or denies. An older agent's event has none.
    fn judged(&self, id: FieldId) -> Option<Value<'a>> {
        let verdict = self.event.verdict.as_ref()?;
        let said = match id {
            FieldId::VerdictRequested => &verdict.requested,
            FieldId::VerdictEffective => &verdict.effective,
            FieldId::VerdictOutcome => &verdict.outcome,
            FieldId::VerdictReason => &verdict.reason,
            _ => return None,
        };
        (!said.is_empty()).then(|| text(said))
    }

    fn alerted(&self, id: FieldId) -> Option<Value<'a>> {
        let alert = self.alert?;
        let rule = self.rule()?;
        let fold = alert.fold.as_ref();
        let match_time = |of_fold: fn(&Fold) -> u64| {
            Value::Time(self.wall(fold.map_or(self.event.boot_ns, of_fold)))
        };
        Some(match id {
            FieldId::AlertCount => int(fold.map_or(1, |fold| fold.count)),
            FieldId::AlertFolded => Value::Bool(fold.is_some()),
            FieldId::AlertFirst => match_time(|fold| fold.first_boot_ns),
            FieldId::AlertLast => match_time(|fold| fold.last_boot_ns),
            FieldId::RuleId => text(&rule.rule),
            FieldId::RuleTitle if !rule.title.is_empty() => text(&rule.title),
            FieldId::RuleSeverity => text(severity_name(rule.severity())),
            FieldId::RuleAttack => list(Items::Strings(&rule.attack), true),
            FieldId::RuleUndecided => Value::Bool(alert.undecided),
            FieldId::PolicyName => text(&rule.policy),
            FieldId::PolicyVersion => Value::Int(rule.policy_version.into()),
            _ => return None,
        })
    }
}

/// Value of a field of an ancestor: `pid`, `exec_id`, `exe.path` or `exe.name`
/// given as the field of the process itself.
#[must_use]
pub fn ancestor_value(image: &Image, id: FieldId) -> Value<'_> {
    match id {
        FieldId::ProcPid => Value::Int(image.pid.into()),
        FieldId::ProcExecId => int(image.exec_id),
        FieldId::ProcExePath => exe_path(image).unwrap_or(Value::Absent),
        FieldId::ProcExeName => exe_name(image).unwrap_or(Value::Absent),
        _ => Value::Absent,
    }
}

/// True for the images of processes that have no parent.
#[must_use]
pub fn is_first(image: &Image) -> bool {
    image.parent == 0 && has_no_parent(image.pid, image.parent_pid)
}

/// True for the first process and `kthreadd` (init/main.c). Of any other, a parent that is not named is one that
/// is not known.
#[must_use]
pub fn has_no_parent(pid: u32, parent_pid: u32) -> bool {
    parent_pid == 0 && (1..=2).contains(&pid)
}

/// The image with a one-based index.
#[must_use]
pub fn image_at(batch: &Batch, index: u32) -> Option<&Image> {
    at(&batch.images, index)
}

/// The item with a one-based index.
fn at<T>(items: &[T], index: u32) -> Option<&T> {
    items.get((index as usize).checked_sub(1)?)
}

/// Four or sixteen bytes as an address.
#[must_use]
pub fn ip_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Loopback, link-local, private (RFC 1918), shared (RFC 6598) or unique local (RFC 4193).
#[must_use]
pub fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// A boot id as the kernel writes it; empty when it has not 16 bytes.
#[must_use]
pub fn boot_id_text(bytes: &[u8]) -> String {
    let hex = hex::encode(bytes);
    if hex.len() != 32 {
        return String::new();
    }
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

fn source_name(source: i32) -> Option<&'static str> {
    match Source::try_from(source).ok()? {
        Source::None => None,
        Source::Object => Some("object"),
        Source::Copy => Some("copy"),
        Source::Caller => Some("caller"),
    }
}

fn exe_path(image: &Image) -> Option<Value<'_>> {
    if !image.seen || image.exe_path.is_empty() && image.exe_flaws & UNKNOWN_TEXT == 0 {
        return None;
    }
    Some(checked(&image.exe_path, image.exe_flaws))
}

/// When the executable was last changed, ns since the Unix epoch.
fn written_at(image: &Image) -> Option<i64> {
    let ns = i64::try_from(image.exe_changed_ns).ok();
    ns.filter(|ns| image.seen && *ns != 0)
}

/// What is known of who wrote the executable: which program it was, and whether it is a relative, as a whole or not at all.
fn written_by(writer: &Writer, id: FieldId) -> Option<Value<'_>> {
    if id == FieldId::ProcExeWrittenByExecId {
        return nonzero(writer.exec_id);
    }
    Some(match &writer.path {
        None => Value::Unknown,
        Some(path) if id == FieldId::ProcExeWrittenBy => text(path),
        Some(_) => Value::Bool(writer.lineage),
    })
}

fn exe_name(image: &Image) -> Option<Value<'_>> {
    exe_path(image)?;
    // A truncated path has lost its start: the name still stands.
    Some(
        match checked(
            &image.exe_path,
            image.exe_flaws & !u32::from(FLAW_TRUNCATED),
        ) {
            Value::Str(Cow::Borrowed(path)) => text(file_name(path)),
            other => other,
        },
    )
}

fn checked(value: &str, flaws: u32) -> Value<'_> {
    if flaws & UNKNOWN_TEXT == 0 {
        text(value)
    } else {
        Value::Unknown
    }
}

fn optional(value: Option<&str>, flaws: u32) -> Option<Value<'_>> {
    match value {
        Some(value) => Some(checked(value, flaws)),
        None if flaws & UNKNOWN_TEXT != 0 => Some(Value::Unknown),
        None => None,
    }
}

fn text(value: &str) -> Value<'_> {
    Value::Str(Cow::Borrowed(value))
}

fn list(items: Items<'_>, complete: bool) -> Value<'_> {
    Value::List(StrList { items, complete })
}

fn int(value: u64) -> Value<'static> {
    Value::Int(value.cast_signed())
}

fn nonzero(value: u64) -> Option<Value<'static>> {
    (value != 0).then(|| int(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_has_a_code_or_a_signal() {
        let (host, batch) = (Host::default(), Batch::default());
        let read = |code, id| {
            let event = Event {
                kind: Kind::Exit.into(),
                exit: Some(crate::v1::Exit { code }),
                ..Event::default()
            };
            let view = View {
                host: &host,
                batch: &batch,
                event: &event,
                alert: None,
            };
            match view.get(id) {
                Value::Int(value) => Some(value),
                other => {
                    assert_eq!(other, Value::Absent);
                    None
                }
            }
        };
        assert_eq!(read(0, FieldId::ExitCode), Some(0));
        assert_eq!(read(0xff00, FieldId::ExitCode), Some(255));
        assert_eq!(read(0x100, FieldId::ExitSignal), None);
        // Killed by signal 11, with a core dump.
        assert_eq!(read(0x8b, FieldId::ExitSignal), Some(11));
        assert_eq!(read(0x8b, FieldId::ExitCode), None);
    }

    #[test]
    fn a_verdict_is_there_only_where_a_rule_kills() {
        let (host, batch) = (Host::default(), Batch::default());
        let read = |verdict| {
            let event = Event {
                kind: Kind::Exec.into(),
                verdict,
                ..Event::default()
            };
            let view = View {
                host: &host,
                batch: &batch,
                event: &event,
                alert: None,
            };
            [
                FieldId::VerdictRequested,
                FieldId::VerdictEffective,
                FieldId::VerdictOutcome,
                FieldId::VerdictReason,
            ]
            .map(|id| match view.get(id) {
                Value::Str(said) => said.into_owned(),
                other => format!("{other:?}"),
            })
        };
        assert_eq!(read(None), ["Absent"; 4]);
        let verdict = crate::v1::Verdict {
            requested: "enforce".into(),
            effective: "kill-late".into(),
            outcome: "killed".into(),
            reason: String::new(),
        };
        assert_eq!(
            read(Some(verdict)),
            ["enforce", "kill-late", "killed", "Absent"]
        );
    }

    #[test]
    fn an_event_names_its_rules_and_what_let_it_pass() {
        let host = Host::default();
        let batch = Batch {
            rules: ["a", "b"]
                .map(|rule| RuleRef {
                    policy: "p".into(),
                    rule: rule.into(),
                    ..RuleRef::default()
                })
                .into(),
            exceptions: vec![crate::v1::ExceptionRef {
                rule: 2,
                name: "health check".into(),
            }],
            ..Batch::default()
        };
        let event = Event {
            kind: Kind::Exec.into(),
            rules: vec![1, 2],
            // The second names nothing in the batch.
            exceptions: vec![1, 9],
            ..Event::default()
        };
        let view = View {
            host: &host,
            batch: &batch,
            event: &event,
            alert: None,
        };
        let read = |id| match view.get(id) {
            Value::List(list) => list.iter().collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(read(FieldId::Rules), ["p/a", "p/b"]);
        assert_eq!(read(FieldId::Exceptions), ["p/b/health check"]);
    }

    #[test]
    fn a_folded_alert_has_its_own_time_and_those_of_its_matches() {
        let host = Host::default();
        let batch = Batch {
            wall_offset_ns: 1000,
            rules: vec![RuleRef::default()],
            ..Batch::default()
        };
        let event = Event {
            boot_ns: 5,
            ..Event::default()
        };
        let read = |fold: Option<Fold>| {
            let alert = Alert {
                rule: 1,
                fold,
                ..Alert::default()
            };
            let view = View {
                host: &host,
                batch: &batch,
                event: &event,
                alert: Some(&alert),
            };
            [
                FieldId::Time,
                FieldId::AlertCount,
                FieldId::AlertFolded,
                FieldId::AlertFirst,
                FieldId::AlertLast,
            ]
            .map(|id| format!("{:?}", view.get(id)))
        };
        assert_eq!(
            read(None),
            [
                "Time(1005)",
                "Int(1)",
                "Bool(false)",
                "Time(1005)",
                "Time(1005)"
            ]
        );
        let fold = Fold {
            count: 40,
            first_boot_ns: 5,
            last_boot_ns: 8,
            at_boot_ns: 60,
        };
        assert_eq!(
            read(Some(fold)),
            [
                "Time(1060)",
                "Int(40)",
                "Bool(true)",
                "Time(1005)",
                "Time(1008)"
            ]
        );
    }
}
