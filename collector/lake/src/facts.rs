//! What is told of workloads and hosts by others than the kernel, joined to rows when they are read.
//!
//! Facts arrive later than the events that they are about, so they are no columns: a small table, by
//! host, boot and workload, in which a newer word takes the place of an older one. A field of it in a predicate becomes a
//! function of the row's `host_id`, `boot_id` and `workload_id`; rows that are shown get its values as further columns.
//!
//! What of them is unknown on a row (labels that were cut, names that are still asked for) is not in the bits of the row's own columns,
//! which were written before: it is one more such function, [`TOLD_UNKNOWN`], bit n of which is the n-th of [`OF_FACTS`].

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::Result as PlanResult;
use datafusion::common::cast::{as_int64_array, as_string_array};
use datafusion::common::exec_err;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr as Scan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use prost::Message as _;
use sumun_proto::v1::Facts;
use sumun_proto::view::boot_id_text;
use sumun_proto::view::facts::{OF_FACTS, is_of_host, is_unknown, value};
use sumun_proto::{FieldId, FieldType, Value};

use crate::family::Family;
use crate::scan::named;

/// A column that no table has: the bits of what is unknown of the fields that are told. [`joined`] puts the function in its place.
pub(crate) const TOLD_UNKNOWN: &str = "_told_unknown";

const _: () = assert!(OF_FACTS.len() < 64);

/// Bit of a field in [`TOLD_UNKNOWN`].
pub(crate) fn told_bit(id: FieldId) -> Option<i64> {
    let position = OF_FACTS.iter().position(|known| *known == id)?;
    Some(1 << position)
}

/// Facts by boot and workload.
type Boots = HashMap<String, HashMap<u64, Arc<Facts>>>;

/// All facts of a tenant. A clone is cheap, and what is learned after it is not in it.
#[derive(Clone, Debug, Default)]
pub struct FactTable {
    hosts: HashMap<Arc<str>, Arc<Boots>>,
    /// Of hosts of which facts are gone: the latest event that may be of such a workload, ns since the Unix epoch.
    forgotten: HashMap<Arc<str>, i64>,
    bytes: usize,
}

/// What the entry of a workload takes besides its texts: the facts themselves, keys and their share of the tables.
pub const ENTRY_BYTES: usize = size_of::<Facts>() + 256;

/// Bytes that facts take in memory, about.
#[must_use]
pub fn cost(facts: &Facts) -> usize {
    facts.encoded_len() + ENTRY_BYTES
}

impl FactTable {
    /// Takes what an agent said; false if a newer word is there.
    pub fn learn(&mut self, host: &str, boot_id: &[u8], facts: &Arc<Facts>) -> bool {
        let boots = Arc::make_mut(self.hosts.entry(host.into()).or_default());
        let known = boots.entry(boot_id_text(boot_id)).or_default();
        let newer = known
            .get(&facts.workload)
            .is_none_or(|known| known.version <= facts.version);
        if newer {
            self.bytes += cost(facts);
            let before = known.insert(facts.workload, Arc::clone(facts));
            self.bytes -= before.map_or(0, |before| cost(&before));
        }
        newer
    }

    /// Gives up what is told of a workload, if it is not newer than this. Rows of the host up to `through_ns` may be of it.
    pub fn forget(
        &mut self,
        host: &str,
        boot_id: &[u8],
        (workload, version): (u64, u64),
        through_ns: i64,
    ) {
        let through = self.forgotten.entry(host.into()).or_insert(i64::MIN);
        *through = (*through).max(through_ns);
        let Some(boots) = self.hosts.get_mut(host) else {
            return;
        };
        let boots = Arc::make_mut(boots);
        let boot = boot_id_text(boot_id);
        if let Some(known) = boots.get_mut(&boot) {
            if known
                .get(&workload)
                .is_some_and(|facts| facts.version <= version)
                && let Some(gone) = known.remove(&workload)
            {
                self.bytes -= cost(&gone);
            }
            if known.is_empty() {
                boots.remove(&boot);
            }
        }
        if boots.is_empty() {
            self.hosts.remove(host);
        }
    }

    /// Up to when rows of a host may be of workloads of which nothing is known any more.
    #[must_use]
    pub fn forgotten(&self, host: &str) -> Option<i64> {
        self.forgotten.get(host).copied()
    }

    /// Bytes of all that is told, in memory: see [`cost`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is told of a workload; of the host if it is 0.
    #[must_use]
    pub fn get(&self, host: &str, boot_id: &str, workload: u64) -> Option<&Facts> {
        let known = self.hosts.get(host)?.get(boot_id)?;
        known.get(&workload).map(|facts| &**facts)
    }

    /// Number of workloads and hosts that are told of.
    #[must_use]
    pub fn len(&self) -> usize {
        let boots = self.hosts.values().flat_map(|boots| boots.values());
        boots.map(HashMap::len).sum()
    }

    /// True if nothing is told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

/// A predicate in which each field of the table is a function of the row.
pub(crate) fn joined(table: &Arc<FactTable>, family: Family, filter: Scan) -> PlanResult<Scan> {
    if family == Family::Gap {
        return Ok(filter);
    }
    let replaced = filter.transform(|part| {
        let Scan::Column(column) = &part else {
            return Ok(Transformed::no(part));
        };
        if column.name == TOLD_UNKNOWN {
            return Ok(Transformed::yes(Told::call(table, Wanted::Unknown)));
        }
        let told = told_fields().find(|id| id.info().column == column.name);
        Ok(match told {
            Some(id) => Transformed::yes(Told::call(table, Wanted::Field(id))),
            None => Transformed::no(part),
        })
    })?;
    Ok(replaced.data)
}

/// The fields that the table has, and the one that it corrects.
pub fn told_fields() -> impl Iterator<Item = FieldId> {
    OF_FACTS.iter().copied().chain([FieldId::K8sPodUid])
}

/// A batch of a table's rows with the values of the table as further columns.
#[must_use]
pub fn with_facts(table: &FactTable, batch: &RecordBatch) -> RecordBatch {
    let Some(rows) = Rows::of(batch) else {
        return batch.clone();
    };
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    let mut columns = batch.columns().to_vec();
    for id in told_fields() {
        let own = batch.schema().index_of(id.info().column).ok();
        let fallback = own.and_then(|at| as_string_array(batch.column(at)).ok());
        let array = rows.values(table, id, fallback);
        match own {
            Some(at) => columns[at] = array,
            None => {
                let field = Field::new(id.info().column, array.data_type().clone(), true);
                fields.push(Arc::new(field));
                columns.push(array);
            }
        }
    }
    // Each column has its field and the batch's length.
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap_or_else(|_| batch.clone())
}

/// What names the facts of each row.
struct Rows<'a> {
    hosts: &'a StringArray,
    boots: &'a StringArray,
    workloads: &'a Int64Array,
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch) -> Option<Self> {
        Some(Self {
            hosts: as_string_array(batch.column_by_name("host_id")?).ok()?,
            boots: as_string_array(batch.column_by_name("boot_id")?).ok()?,
            workloads: as_int64_array(batch.column_by_name("workload_id")?).ok()?,
        })
    }

    fn facts<'t>(&self, table: &'t FactTable, id: FieldId, row: usize) -> Option<&'t Facts> {
        let workload = match is_of_host(id) {
            true => 0,
            false if self.workloads.is_valid(row) => self.workloads.value(row).cast_unsigned(),
            false => return None,
        };
        if self.hosts.is_null(row) || self.boots.is_null(row) {
            return None;
        }
        table.get(self.hosts.value(row), self.boots.value(row), workload)
    }

    /// What is unknown on each row, by the bits of the fields.
    fn unknown(&self, table: &FactTable) -> ArrayRef {
        // Looked up once for all that are told of a workload, and of a host.
        let bits = |facts: Option<&Facts>, of_host: bool| -> i64 {
            let unknown = |id: &FieldId| {
                is_of_host(*id) == of_host && facts.is_some_and(|facts| is_unknown(facts, *id))
            };
            let ids = OF_FACTS.into_iter().filter(unknown);
            ids.filter_map(told_bit).sum()
        };
        let of = |row| {
            let workload = self.facts(table, FieldId::ContainerName, row);
            let host = self.facts(table, FieldId::CloudProvider, row);
            bits(workload, false) + bits(host, true)
        };
        Arc::new((0..self.hosts.len()).map(of).collect::<Int64Array>())
    }

    fn values(&self, table: &FactTable, id: FieldId, fallback: Option<&StringArray>) -> ArrayRef {
        let rows = 0..self.hosts.len();
        if id.info().ty == FieldType::StrList {
            let mut array = ListBuilder::new(StringBuilder::new());
            for row in rows {
                let facts = self.facts(table, id, row);
                match facts.and_then(|facts| value(facts, id)) {
                    Some(Value::List(items)) => {
                        for item in items.iter() {
                            array.values().append_value(item);
                        }
                        array.append(true);
                    }
                    _ => array.append(false),
                }
            }
            return Arc::new(array.finish());
        }
        if id.info().ty == FieldType::Int {
            let value = |row| match value(self.facts(table, id, row)?, id)? {
                Value::Int(number) => Some(number),
                _ => None,
            };
            return Arc::new(rows.map(value).collect::<Int64Array>());
        }
        let mut array = StringBuilder::new();
        for row in rows {
            let facts = self.facts(table, id, row);
            match facts.and_then(|facts| value(facts, id)) {
                Some(Value::Str(text)) => array.append_value(text),
                _ => match fallback.filter(|fallback| fallback.is_valid(row)) {
                    Some(fallback) => array.append_value(fallback.value(row)),
                    None => array.append_null(),
                },
            }
        }
        Arc::new(array.finish())
    }
}

/// What is asked of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    Field(FieldId),
    /// [`TOLD_UNKNOWN`].
    Unknown,
}

/// A field of the table as a function of columns: `sumun_told(host_id, boot_id, workload_id[, the column itself])`.
#[derive(Clone, Debug)]
struct Told {
    table: Arc<FactTable>,
    wanted: Wanted,
    signature: Signature,
}

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        self.wanted == other.wanted && Arc::ptr_eq(&self.table, &other.table)
    }
}

impl Eq for Told {}

impl Hash for Told {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.wanted.hash(state);
        Arc::as_ptr(&self.table).hash(state);
    }
}

impl Told {
    fn call(table: &Arc<FactTable>, wanted: Wanted) -> Scan {
        let mut arguments = vec![named("host_id"), named("boot_id"), named("workload_id")];
        if let Wanted::Field(id) = wanted
            && !OF_FACTS.contains(&id)
        {
            arguments.push(named(id.info().column));
        }
        let told = Told {
            table: Arc::clone(table),
            wanted,
            signature: Signature::variadic_any(Volatility::Immutable),
        };
        let function = Arc::new(ScalarUDF::new_from_impl(told));
        Scan::ScalarFunction(ScalarFunction::new_udf(function, arguments))
    }
}

impl ScalarUDFImpl for Told {
    fn name(&self) -> &'static str {
        "sumun_told"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> PlanResult<DataType> {
        let ty = match self.wanted {
            Wanted::Field(id) => id.info().ty,
            Wanted::Unknown => FieldType::Int,
        };
        Ok(match ty {
            FieldType::StrList => {
                DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)))
            }
            FieldType::Int => DataType::Int64,
            _ => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        // Constant columns come as single values.
        let arrays: PlanResult<Vec<ArrayRef>> = args
            .args
            .iter()
            .map(|value| value.to_array(args.number_rows))
            .collect();
        let arrays = arrays?;
        let [hosts, boots, workloads, own @ ..] = arrays.as_slice() else {
            return exec_err!("sumun_told takes three columns");
        };
        let rows = Rows {
            hosts: as_string_array(hosts)?,
            boots: as_string_array(boots)?,
            workloads: as_int64_array(workloads)?,
        };
        let fallback = own.first().map(|own| as_string_array(own)).transpose()?;
        Ok(ColumnarValue::Array(match self.wanted {
            Wanted::Field(id) => rows.values(&self.table, id, fallback),
            Wanted::Unknown => rows.unknown(&self.table),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_word_counts_and_a_clone_keeps_its_own() {
        let facts = |version, name: &str| {
            Arc::new(Facts {
                workload: 7,
                version,
                container_name: name.into(),
                ..Facts::default()
            })
        };
        let (host, boot) = ("h", [1; 16]);
        let mut table = FactTable::default();
        assert!(table.learn(host, &boot, &facts(5, "first")));
        let before = table.clone();
        assert!(!table.learn(host, &boot, &facts(4, "older")));
        assert!(table.learn(host, &boot, &facts(6, "newer")));
        let name = |table: &FactTable| {
            let boot = boot_id_text(&boot);
            table
                .get(host, &boot, 7)
                .map(|facts| facts.container_name.clone())
        };
        assert_eq!(name(&table).as_deref(), Some("newer"));
        assert_eq!(name(&before).as_deref(), Some("first"));
        assert_eq!(table.len(), 1);
        assert!(table.get("h", &boot_id_text(&[2; 16]), 7).is_none());
        assert_eq!(table.bytes(), cost(&facts(6, "newer")));

        // What was told again since stays.
        table.forget(host, &boot, (7, 5), 100);
        assert_eq!(name(&table).as_deref(), Some("newer"));
        table.forget(host, &boot, (7, 6), 50);
        assert_eq!(name(&table), None);
        assert_eq!((table.bytes(), table.len()), (0, 0));
        assert_eq!(table.forgotten(host), Some(100));
        assert_eq!(table.forgotten("other"), None);
    }
}
