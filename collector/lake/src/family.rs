//! Tables and their columns, from the catalogue.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use sumun_proto::v1::Kind;
use sumun_proto::view::facts::{OF_FACTS, is_of_workload};
use sumun_proto::view::workload::OF_WORKLOAD;
use sumun_proto::{FIELDS, FieldId, FieldInfo, FieldType};

/// A table of the lake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// fork, exec, exit
    Process,
    /// open, close_write, rename, unlink; chmod, chown and other changes; map_exec
    File,
    /// connect, accept, bind, listen
    Network,
    /// Credentials, reaching into other processes, namespaces, memory that can hold code.
    Privilege,
    /// Modules, BPF programs, mounts, roots, another kernel, io_uring.
    Kernel,
    /// Alerts of rules, each with its event.
    Alert,
    /// What is missing.
    Gap,
}

/// Fields that can be unknown, in the order of their bits in `_unknown`. Bits
/// are appended, never reassigned: files keep them. A list's bit says that it is
/// incomplete.
pub const UNKNOWABLE: &[FieldId] = &[
    FieldId::ProcExePath,
    FieldId::ProcExeName,
    FieldId::ProcArgs,
    FieldId::ProcCwd,
    FieldId::ProcParentExePath,
    FieldId::ProcParentExeName,
    FieldId::ProcAncestors,
    FieldId::FilePath,
    FieldId::FileName,
    FieldId::FileNewPath,
    FieldId::FileTrunc,
    FieldId::NetSrcIp,
    FieldId::NetSrcPort,
    FieldId::NetSrcPrivate,
    FieldId::NetDstIp,
    FieldId::NetDstPort,
    FieldId::NetDstPrivate,
    FieldId::FileDev,
    FieldId::FileIno,
    FieldId::FileMode,
    FieldId::FileAccessRead,
    FieldId::FileAccessWrite,
    FieldId::FileAccessAppend,
    FieldId::FileCreate,
    FieldId::FileDeleted,
    FieldId::FileXattr,
    FieldId::PrivOldUid,
    FieldId::PrivOldGid,
    FieldId::PrivOldSuid,
    FieldId::PrivOldSgid,
    FieldId::PrivOldEuid,
    FieldId::PrivOldEgid,
    FieldId::PrivOldFsuid,
    FieldId::PrivOldFsgid,
    FieldId::PrivOldCapEffective,
    FieldId::PrivOldCapPermitted,
    FieldId::PrivCapGained,
    FieldId::TargetPid,
    FieldId::TargetTid,
    FieldId::TargetStart,
    FieldId::TargetExecId,
    FieldId::TargetUid,
    FieldId::TargetEuid,
    FieldId::TargetExePath,
    FieldId::TargetExeName,
    FieldId::NsTypes,
    FieldId::ModuleName,
    FieldId::ModuleParams,
    FieldId::MountSource,
    FieldId::MountTarget,
    FieldId::MountType,
    FieldId::NetProto,
    FieldId::BpfProgType,
    FieldId::BpfProgName,
    FieldId::BpfProgId,
    FieldId::BpfAttachType,
    FieldId::WorkloadKind,
    FieldId::SysctlName,
    FieldId::SysctlValue,
    FieldId::NetDstPath,
    FieldId::DnsQuestionName,
    FieldId::DnsQuestionType,
    FieldId::DnsAnswers,
    // The last of 64: its bit is the sign's.
    FieldId::ProcExeWrittenBy,
];

/// Column of the bits of [`UNKNOWABLE`]; NULL when none is set.
pub const UNKNOWN_COLUMN: &str = "_unknown";
/// Column that says of each ancestor what is unknown: 0 nothing, 1 its path, 2
/// path and name; NULL when nothing is.
pub const ANCESTORS_UNKNOWN_COLUMN: &str = "_ancestors_unknown";

/// Bit of a field in `_unknown`.
#[must_use]
pub fn unknown_bit(id: FieldId) -> Option<i64> {
    // Which workload it is is known as a whole, or not at all.
    let id = match id {
        _ if OF_WORKLOAD.contains(&id) || is_of_workload(id) => FieldId::WorkloadKind,
        // So is who wrote an executable.
        FieldId::ProcExeWrittenByLineage => FieldId::ProcExeWrittenBy,
        // Where a script was is known with the working directory, what a module was signed with with its name.
        FieldId::ProcScriptPath => FieldId::ProcCwd,
        FieldId::ModuleSignature => FieldId::ModuleName,
        // What else is known of a file that was mapped.
        FieldId::FileInImage => FieldId::FileDeleted,
        _ => id,
    };
    let position = UNKNOWABLE.iter().position(|field| *field == id)?;
    Some(1 << position)
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 7] = [
        Family::Process,
        Family::File,
        Family::Network,
        Family::Privilege,
        Family::Kernel,
        Family::Alert,
        Family::Gap,
    ];

    /// The tables of events.
    pub const EVENTS: [Family; 5] = [
        Family::Process,
        Family::File,
        Family::Network,
        Family::Privilege,
        Family::Kernel,
    ];

    /// Name, as in the catalogue and in paths.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::Process => "process",
            Family::File => "file",
            Family::Network => "network",
            Family::Privilege => "privilege",
            Family::Kernel => "kernel",
            Family::Alert => "alert",
            Family::Gap => "gap",
        }
    }

    /// The family of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Family::ALL.into_iter().find(|family| family.name() == name)
    }

    /// The table that holds events of a kind.
    #[must_use]
    pub fn of_kind(kind: Kind) -> Option<Self> {
        Family::by_name(sumun_proto::catalogue::family(kind))
    }

    /// Fields of the table in column order.
    pub fn fields(self) -> impl Iterator<Item = &'static FieldInfo> {
        FIELDS
            .iter()
            .filter(move |field| field.families.contains(&self.name()))
    }

    /// Whether the table has the field.
    #[must_use]
    pub fn has(self, id: FieldId) -> bool {
        id.info().families.contains(&self.name())
    }

    /// Columns of the table.
    #[must_use]
    pub fn schema(self) -> SchemaRef {
        Arc::clone(&SCHEMAS[self as usize])
    }

    /// Columns with what each is made from.
    pub(crate) fn columns(self) -> &'static [Column] {
        &COLUMNS[self as usize]
    }

    /// Index of a column that the table is known to have.
    pub(crate) fn index(self, column: &str) -> Option<usize> {
        SCHEMAS[self as usize].index_of(column).ok()
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    /// The field of the same name.
    Field(FieldId),
    AncestorsPid,
    AncestorsExecId,
    AncestorsExePath,
    AncestorsUnknown,
    Unknown,
}

impl Column {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Column::Field(id) => id.info().column,
            Column::AncestorsPid => "proc_ancestors_pid",
            Column::AncestorsExecId => "proc_ancestors_exec_id",
            Column::AncestorsExePath => "proc_ancestors_exe_path",
            Column::AncestorsUnknown => ANCESTORS_UNKNOWN_COLUMN,
            Column::Unknown => UNKNOWN_COLUMN,
        }
    }

    fn data_type(self) -> DataType {
        match self {
            Column::Field(id) => match id.info().ty {
                FieldType::Str => DataType::Utf8,
                FieldType::Int => DataType::Int64,
                FieldType::Bool => DataType::Boolean,
                FieldType::Time => time_type(),
                FieldType::StrList | FieldType::ImageList => list_of(DataType::Utf8),
            },
            Column::AncestorsPid | Column::AncestorsExecId | Column::AncestorsUnknown => {
                list_of(DataType::Int64)
            }
            Column::AncestorsExePath => list_of(DataType::Utf8),
            Column::Unknown => DataType::Int64,
        }
    }
}

/// Nanoseconds, UTC.
pub(crate) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

static COLUMNS: LazyLock<[Vec<Column>; Family::ALL.len()]> = LazyLock::new(|| {
    Family::ALL.map(|family| {
        let mut columns = Vec::new();
        for field in family.fields() {
            // What is told later is joined when rows are read.
            if OF_FACTS.contains(&field.id) {
                continue;
            }
            if field.ty == FieldType::ImageList {
                columns.extend([
                    Column::AncestorsPid,
                    Column::AncestorsExecId,
                    Column::AncestorsExePath,
                ]);
            } else {
                columns.push(Column::Field(field.id));
            }
        }
        if family != Family::Gap {
            columns.extend([Column::Unknown, Column::AncestorsUnknown]);
        }
        columns
    })
});

static SCHEMAS: LazyLock<[SchemaRef; Family::ALL.len()]> = LazyLock::new(|| {
    Family::ALL.map(|family| {
        let fields: Vec<_> = family
            .columns()
            .iter()
            .map(|column| Field::new(column.name(), column.data_type(), true))
            .collect();
        Arc::new(Schema::new(fields))
    })
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_column_and_no_name_clashes() {
        for family in Family::ALL {
            let schema = family.schema();
            for field in family.fields() {
                if field.ty != FieldType::ImageList && !OF_FACTS.contains(&field.id) {
                    assert!(schema.index_of(field.column).is_ok(), "{}", field.name);
                }
            }
            let mut names: Vec<_> = schema.fields().iter().map(|field| field.name()).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), schema.fields().len());
            assert_eq!(Family::by_name(family.name()), Some(family));
        }
        assert_eq!(Family::of_kind(Kind::Exec), Some(Family::Process));
        assert_eq!(Family::of_kind(Kind::Unspecified), None);
    }

    #[test]
    fn what_a_lost_open_does_not_tell_can_be_stored_as_unknown() {
        for field in sumun_proto::view::OF_OBJECT {
            assert!(unknown_bit(field).is_some(), "{}", field.info().name);
        }
        assert!(UNKNOWABLE.len() <= 64);
    }
}
