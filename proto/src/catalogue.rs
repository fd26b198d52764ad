//! The field catalogue, generated from `fields.toml`.

/// Type of a field in predicates and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// Text in the catalogue's form (see [`crate::text`]).
    Str,
    /// Signed 64-bit integer.
    Int,
    /// Boolean.
    Bool,
    /// Nanoseconds since the Unix epoch.
    Time,
    /// List of text.
    StrList,
    /// List of ancestor images.
    ImageList,
}

/// The lowest stage that can judge a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The kernel's pre-filter.
    Kernel,
    /// The agent's matcher.
    Agent,
}

/// One row of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct FieldInfo {
    /// Its id.
    pub id: FieldId,
    /// Name in predicates and JSON, with dots.
    pub name: &'static str,
    /// Column in the lake.
    pub column: &'static str,
    /// Type.
    pub ty: FieldType,
    /// Written as a string in JSON: a 64-bit number.
    pub json_string: bool,
    /// Unit, or empty.
    pub unit: &'static str,
    /// Tables that have the column.
    pub families: &'static [&'static str],
    /// Kinds on which it can be present; empty = all kinds of the families.
    pub kinds: &'static [&'static str],
    /// One sentence.
    pub doc: &'static str,
    /// When it is absent; empty = never.
    pub absent: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Lowest stage that can judge it.
    pub tier: Tier,
    /// Path in OCSF 1.8, or empty.
    pub ocsf: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/catalogue.rs"));

impl FieldId {
    /// The field's row.
    #[must_use]
    pub fn info(self) -> &'static FieldInfo {
        &FIELDS[self as usize]
    }

    /// The field of that dotted name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        FIELDS
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.id)
    }
}

/// Event kinds by name, in the order of their numbers.
pub const KINDS: &[(&str, crate::v1::Kind)] = &[
    ("fork", crate::v1::Kind::Fork),
    ("exec", crate::v1::Kind::Exec),
    ("exit", crate::v1::Kind::Exit),
    ("open", crate::v1::Kind::Open),
    ("close_write", crate::v1::Kind::CloseWrite),
    ("rename", crate::v1::Kind::Rename),
    ("unlink", crate::v1::Kind::Unlink),
    ("chmod", crate::v1::Kind::Chmod),
    ("chown", crate::v1::Kind::Chown),
    ("truncate", crate::v1::Kind::Truncate),
    ("link", crate::v1::Kind::Link),
    ("symlink", crate::v1::Kind::Symlink),
    ("setxattr", crate::v1::Kind::Setxattr),
    ("map_exec", crate::v1::Kind::MapExec),
    ("connect", crate::v1::Kind::Connect),
    ("accept", crate::v1::Kind::Accept),
    ("bind", crate::v1::Kind::Bind),
    ("listen", crate::v1::Kind::Listen),
    ("connect_udp", crate::v1::Kind::ConnectUdp),
    ("connect_unix", crate::v1::Kind::ConnectUnix),
    ("socket", crate::v1::Kind::Socket),
    ("dns", crate::v1::Kind::Dns),
    ("setid", crate::v1::Kind::Setid),
    ("capset", crate::v1::Kind::Capset),
    ("ptrace", crate::v1::Kind::Ptrace),
    ("process_vm_readv", crate::v1::Kind::ProcessVmReadv),
    ("process_vm_writev", crate::v1::Kind::ProcessVmWritev),
    ("pidfd_getfd", crate::v1::Kind::PidfdGetfd),
    ("memfd_create", crate::v1::Kind::MemfdCreate),
    ("unshare", crate::v1::Kind::Unshare),
    ("setns", crate::v1::Kind::Setns),
    ("map_wx", crate::v1::Kind::MapWx),
    ("prctl", crate::v1::Kind::Prctl),
    ("userfaultfd", crate::v1::Kind::Userfaultfd),
    ("module_load", crate::v1::Kind::ModuleLoad),
    ("module_unload", crate::v1::Kind::ModuleUnload),
    ("bpf", crate::v1::Kind::Bpf),
    ("mount", crate::v1::Kind::Mount),
    ("umount", crate::v1::Kind::Umount),
    ("pivot_root", crate::v1::Kind::PivotRoot),
    ("chroot", crate::v1::Kind::Chroot),
    ("kexec_load", crate::v1::Kind::KexecLoad),
    ("io_uring_setup", crate::v1::Kind::IoUringSetup),
    ("sysctl", crate::v1::Kind::Sysctl),
    ("integrity", crate::v1::Kind::Integrity),
];

/// Table of the lake that holds events of a kind.
#[must_use]
pub fn family(kind: crate::v1::Kind) -> &'static str {
    use crate::v1::Kind;
    match kind {
        Kind::Unspecified => "",
        Kind::Fork | Kind::Exec | Kind::Exit => "process",
        Kind::Open
        | Kind::CloseWrite
        | Kind::Rename
        | Kind::Unlink
        | Kind::Chmod
        | Kind::Chown
        | Kind::Truncate
        | Kind::Link
        | Kind::Symlink
        | Kind::Setxattr
        | Kind::MapExec => "file",
        Kind::Connect
        | Kind::Accept
        | Kind::Bind
        | Kind::Listen
        | Kind::ConnectUdp
        | Kind::ConnectUnix
        | Kind::Socket
        | Kind::Dns => "network",
        Kind::Setid
        | Kind::Capset
        | Kind::Ptrace
        | Kind::ProcessVmReadv
        | Kind::ProcessVmWritev
        | Kind::PidfdGetfd
        | Kind::MemfdCreate
        | Kind::Unshare
        | Kind::Setns
        | Kind::MapWx
        | Kind::Prctl
        | Kind::Userfaultfd => "privilege",
        Kind::ModuleLoad
        | Kind::ModuleUnload
        | Kind::Bpf
        | Kind::Mount
        | Kind::Umount
        | Kind::PivotRoot
        | Kind::Chroot
        | Kind::KexecLoad
        | Kind::IoUringSetup
        | Kind::Sysctl
        | Kind::Integrity => "kernel",
    }
}

/// Name of a kind; empty for an unspecified one.
#[must_use]
pub fn kind_name(kind: crate::v1::Kind) -> &'static str {
    KINDS
        .iter()
        .find(|(_, known)| *known == kind)
        .map_or("", |(name, _)| name)
}

/// Name of a lane.
#[must_use]
pub fn lane_name(lane: crate::v1::Lane) -> &'static str {
    use crate::v1::Lane;
    match lane {
        Lane::Unspecified => "",
        Lane::Alert => "alert",
        Lane::Life => "life",
        Lane::Bulk => "bulk",
    }
}

/// Name of a severity.
#[must_use]
pub fn severity_name(severity: crate::v1::Severity) -> &'static str {
    use crate::v1::Severity;
    match severity {
        Severity::Unspecified => "",
        Severity::Info => "info",
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
        Severity::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_index_the_table() {
        for (index, field) in FIELDS.iter().enumerate() {
            assert_eq!(field.id as usize, index);
            assert_eq!(FieldId::by_name(field.name), Some(field.id));
            assert_eq!(field.column, field.name.replace('.', "_"));
        }
    }

    #[test]
    fn names_and_columns_are_unique() {
        let mut columns: Vec<_> = FIELDS.iter().map(|field| field.column).collect();
        columns.sort_unstable();
        columns.dedup();
        assert_eq!(columns.len(), FIELDS.len());
    }

    #[test]
    fn kinds_of_fields_exist() {
        for field in FIELDS {
            for kind in field.kinds {
                assert!(
                    KINDS.iter().any(|(name, _)| name == kind),
                    "{}: {kind}",
                    field.name
                );
            }
        }
    }
}
