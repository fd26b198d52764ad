//! From a batch to rows.
//!
//! A [`RowSet`] is the rows of one batch in one table, in the form they are held in
//! memory: what is the same for the whole batch is there once, what belongs to an
//! image once per image, and only the rest once per row. [`gather`] makes
//! plain columns of any rows of several sets.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::array::{
    Array, ArrayRef, BooleanBuilder, Int64Builder, ListBuilder, RecordBatch, StringBuilder,
    TimestampNanosecondBuilder, new_null_array,
};
use datafusion::arrow::compute::interleave;
use datafusion::arrow::datatypes::{DataType, Schema};
use sumun_proto::v1::{Batch, Event, Gap, Image, Kind, Lane};
use sumun_proto::view::workload::OF_WORKLOAD;
use sumun_proto::view::{ancestor_value, boot_id_text, is_first};
use sumun_proto::{FieldId, FieldType, Host, Value, View, catalogue, text};

use crate::error::{Error, Result};
use crate::family::{Column, Family, UNKNOWABLE, unknown_bit};

/// Most ancestors of one row that are stored; a longer chain is incomplete.
pub const ANCESTORS_MAX: usize = 256;
/// Most ancestors that the images of one batch may have together: a batch
/// of [`sumun_proto::BATCH_MAX`] bytes of real processes has far fewer.
pub const ANCESTORS_OF_BATCH_MAX: usize = 2_000_000;

/// Rows of one batch in one table.
#[derive(Debug)]
pub struct RowSet {
    family: Family,
    host: Arc<Host>,
    /// Arrays of one item.
    once: Vec<ArrayRef>,
    /// Arrays of one item per image, shared by the tables of the batch; item 0 is NULL.
    images: Arc<Vec<ArrayRef>>,
    /// Item of `images` of each row.
    image: Vec<u32>,
    /// Arrays of one item per row.
    own: Vec<ArrayRef>,
    times: Vec<i64>,
    min_time: i64,
    max_time: i64,
    bytes: usize,
}

impl RowSet {
    /// The table.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// The host all rows are of.
    #[must_use]
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// True when there are no rows; [`rows`] makes no such set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Earliest time of a row, ns since the Unix epoch; of a gap, its start.
    #[must_use]
    pub fn min_time(&self) -> i64 {
        self.min_time
    }

    /// Latest time of a row; of a gap, its end.
    #[must_use]
    pub fn max_time(&self) -> i64 {
        self.max_time
    }

    /// Bytes held in memory. Images shared with another table's set are counted in each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// `time` of each row.
    pub(crate) fn times(&self) -> &[i64] {
        &self.times
    }
}

/// Where the values of a column are in a set.
#[derive(Clone, Copy, Debug)]
enum Place {
    Once(usize),
    Image(usize),
    Own(usize),
}

/// How the sets of one table are laid out.
#[derive(Debug, Default)]
struct Layout {
    /// By column of the table.
    places: Vec<Place>,
    once: Vec<Column>,
    own: Vec<Column>,
}

/// Columns of an image, the same in every table that has them.
static IMAGE_COLUMNS: LazyLock<Vec<Column>> = LazyLock::new(|| {
    Family::Process
        .columns()
        .iter()
        .copied()
        .filter(|column| is_of_image(*column))
        .collect()
});

static LAYOUTS: LazyLock<[Layout; Family::ALL.len()]> = LazyLock::new(|| {
    Family::ALL.map(|family| {
        let mut layout = Layout::default();
        for column in family.columns() {
            let place = if is_of_batch(*column) {
                layout.once.push(*column);
                Place::Once(layout.once.len() - 1)
            } else if let Some(image) = IMAGE_COLUMNS.iter().position(|known| known == column) {
                Place::Image(image)
            } else {
                layout.own.push(*column);
                Place::Own(layout.own.len() - 1)
            };
            layout.places.push(place);
        }
        layout
    })
});

fn is_of_batch(column: Column) -> bool {
    matches!(
        column,
        Column::Field(
            FieldId::BootId
                | FieldId::HostId
                | FieldId::HostName
                | FieldId::OriginPin
                | FieldId::GapLane
        )
    )
}

/// Whether the value depends on the image alone. The thread is the event's, and so is the time from the last change.
fn is_of_image(column: Column) -> bool {
    match column {
        Column::Field(id) => {
            OF_WORKLOAD.contains(&id)
                || !matches!(id, FieldId::ProcTid | FieldId::ProcExeAge)
                    && id.info().name.starts_with("proc.")
        }
        Column::AncestorsPid
        | Column::AncestorsExecId
        | Column::AncestorsExePath
        | Column::AncestorsUnknown => true,
        Column::Unknown => false,
    }
}

/// All rows of a batch, one set for each table that has any.
///
/// # Errors
/// [`Error::Malformed`] for a batch whose images are linked into more ancestors
/// than any host has.
pub fn rows(host: &Arc<Host>, batch: &Batch) -> Result<Vec<RowSet>> {
    let mut events: [Vec<&Event>; Family::EVENTS.len()] = Default::default();
    for event in &batch.events {
        let kind = Kind::try_from(event.kind).unwrap_or(Kind::Unspecified);
        let family = Family::of_kind(kind);
        match Family::EVENTS
            .iter()
            .position(|known| Some(*known) == family)
        {
            Some(place) => events[place].push(event),
            None => {
                return Err(Error::Malformed(format!(
                    "event of unknown kind {}",
                    event.kind
                )));
            }
        }
    }
    let images = if batch.events.is_empty() && batch.alerts.is_empty() {
        Images::default()
    } else {
        Images::of(host, batch)?
    };
    let mut sets = Vec::new();
    for (family, events) in Family::EVENTS.into_iter().zip(events) {
        let views: Vec<_> = events
            .into_iter()
            .map(|event| View {
                host,
                batch,
                event,
                alert: None,
            })
            .collect();
        sets.extend(views_set(family, host, &images, &views));
    }
    let mut alerts = Vec::with_capacity(batch.alerts.len());
    for alert in &batch.alerts {
        let Some(event) = alert.event.as_ref() else {
            return Err(Error::Malformed("alert without its event".into()));
        };
        alerts.push(View {
            host,
            batch,
            event,
            alert: Some(alert),
        });
    }
    sets.extend(views_set(Family::Alert, host, &images, &alerts));
    sets.extend(gaps(host, batch));
    Ok(sets)
}

/// Arrays of the images that events name.
#[derive(Debug, Default)]
struct Images {
    arrays: Arc<Vec<ArrayRef>>,
    /// Bits of the unknown, by item.
    unknown: Vec<i64>,
    bytes: usize,
}

impl Images {
    fn of(host: &Arc<Host>, batch: &Batch) -> Result<Self> {
        let mut used = vec![false; batch.images.len() + 1];
        let of_alerts = batch.alerts.iter().filter_map(|alert| alert.event.as_ref());
        for event in batch.events.iter().chain(of_alerts) {
            if let Some(used) = used.get_mut(event.image as usize) {
                *used = true;
            }
        }
        // Item 0 is the image that is not known.
        let events: Vec<_> = used
            .iter()
            .enumerate()
            .map(|(index, used)| Event {
                image: if *used { index as u32 } else { 0 },
                ..Event::default()
            })
            .collect();
        let views: Vec<_> = events
            .iter()
            .map(|event| View {
                host,
                batch,
                event,
                alert: None,
            })
            .collect();
        let chains = Chains::of(&views)?;
        let arrays: Vec<_> = IMAGE_COLUMNS
            .iter()
            .map(|column| match column {
                Column::Field(id) => field_array(*id, &views),
                other => chains.array(*other),
            })
            .collect();
        let unknown = views
            .iter()
            .enumerate()
            .map(|(item, view)| {
                if view.event.image == 0 {
                    return 0;
                }
                let cut = if chains.complete[item] {
                    0
                } else {
                    unknown_bit(FieldId::ProcAncestors).unwrap_or(0)
                };
                cut | unknown_bits(view, &UNKNOWABLE[..OF_IMAGE])
            })
            .collect();
        let bytes = bytes_of(&arrays);
        Ok(Images {
            arrays: Arc::new(arrays),
            unknown,
            bytes,
        })
    }
}

/// The first so many of [`UNKNOWABLE`] are of the image.
const OF_IMAGE: usize = 7;

fn unknown_bits(view: &View<'_>, fields: &[FieldId]) -> i64 {
    fields
        .iter()
        .filter(|id| match view.get(**id) {
            Value::Unknown => true,
            Value::List(list) => !list.complete,
            _ => false,
        })
        .filter_map(|id| unknown_bit(*id))
        .fold(0, |bits, bit| bits | bit)
}

/// The ancestors of each item.
struct Chains<'a> {
    chains: Vec<Option<Vec<&'a Image>>>,
    complete: Vec<bool>,
}

impl<'a> Chains<'a> {
    fn of(views: &[View<'a>]) -> Result<Self> {
        let mut chains = Vec::with_capacity(views.len());
        let mut complete = Vec::with_capacity(views.len());
        let mut total = 0;
        for view in views {
            if view.event.image == 0 {
                chains.push(None);
                complete.push(true);
                continue;
            }
            let chain: Vec<_> = view.ancestors().take(ANCESTORS_MAX).collect();
            total += chain.len();
            if total > ANCESTORS_OF_BATCH_MAX {
                return Err(Error::Malformed(format!(
                    "its images have more than {ANCESTORS_OF_BATCH_MAX} ancestors"
                )));
            }
            let top = chain.last().copied().or_else(|| view.image());
            complete.push(top.is_some_and(is_first));
            chains.push(Some(chain));
        }
        Ok(Chains { chains, complete })
    }

    fn array(&self, column: Column) -> ArrayRef {
        match column {
            Column::AncestorsPid => self.ints(|image| image.pid.into()),
            Column::AncestorsExecId => self.ints(|image| image.exec_id.cast_signed()),
            Column::AncestorsExePath => {
                let mut list = ListBuilder::new(StringBuilder::new());
                for chain in &self.chains {
                    for image in chain.iter().flatten() {
                        match ancestor_value(image, FieldId::ProcExePath) {
                            Value::Str(path) => list.values().append_value(path),
                            Value::Unknown => list.values().append_value(&image.exe_path),
                            _ => list.values().append_null(),
                        }
                    }
                    list.append(chain.is_some());
                }
                Arc::new(list.finish())
            }
            _ => {
                let mut list = ListBuilder::new(Int64Builder::new());
                for chain in &self.chains {
                    let marks: Vec<_> = chain.iter().flatten().map(|image| mark(image)).collect();
                    let any = marks.iter().any(|mark| *mark != 0);
                    if any {
                        list.values().append_slice(&marks);
                    }
                    list.append(any);
                }
                Arc::new(list.finish())
            }
        }
    }

    fn ints(&self, value: impl Fn(&Image) -> i64) -> ArrayRef {
        let mut list = ListBuilder::new(Int64Builder::new());
        for chain in &self.chains {
            for image in chain.iter().flatten() {
                list.values().append_value(value(image));
            }
            list.append(chain.is_some());
        }
        Arc::new(list.finish())
    }
}

/// What is unknown of an ancestor, as `_ancestors_unknown` says it.
fn mark(image: &Image) -> i64 {
    if ancestor_value(image, FieldId::ProcExeName) == Value::Unknown {
        2
    } else {
        i64::from(ancestor_value(image, FieldId::ProcExePath) == Value::Unknown)
    }
}

fn views_set(
    family: Family,
    host: &Arc<Host>,
    images: &Images,
    views: &[View<'_>],
) -> Option<RowSet> {
    let first = views.first()?;
    let layout = &LAYOUTS[family as usize];
    let once: Vec<_> = layout
        .once
        .iter()
        .map(|column| match column {
            Column::Field(id) => field_array(*id, std::slice::from_ref(first)),
            _ => new_null_array(&DataType::Int64, 1),
        })
        .collect();
    let image: Vec<_> = views
        .iter()
        .map(|view| match view.image() {
            Some(_) => view.event.image,
            None => 0,
        })
        .collect();
    let own: Vec<_> = layout
        .own
        .iter()
        .map(|column| match column {
            Column::Field(id) => field_array(*id, views),
            _ => unknown_array(views, &image, images),
        })
        .collect();
    let times: Vec<_> = views.iter().map(|view| view.wall(view.boot_ns())).collect();
    let bytes = bytes_of(&own) + images.bytes + 12 * times.len();
    Some(RowSet {
        family,
        host: Arc::clone(host),
        once,
        images: Arc::clone(&images.arrays),
        image,
        own,
        min_time: times.iter().copied().min()?,
        max_time: times.iter().copied().max()?,
        times,
        bytes,
    })
}

fn unknown_array(views: &[View<'_>], image: &[u32], images: &Images) -> ArrayRef {
    let mut array = Int64Builder::with_capacity(views.len());
    for (view, image) in views.iter().zip(image) {
        let bits = images.unknown[*image as usize] | unknown_bits(view, &UNKNOWABLE[OF_IMAGE..]);
        array.append_option((bits != 0).then_some(bits));
    }
    Arc::new(array.finish())
}

/// The values of a field on each view.
fn field_array(id: FieldId, views: &[View<'_>]) -> ArrayRef {
    match id.info().ty {
        FieldType::Int => {
            let mut array = Int64Builder::with_capacity(views.len());
            for view in views {
                array.append_option(match view.get(id) {
                    Value::Int(value) => Some(value),
                    _ => None,
                });
            }
            Arc::new(array.finish())
        }
        FieldType::Bool => {
            let mut array = BooleanBuilder::with_capacity(views.len());
            for view in views {
                array.append_option(match view.get(id) {
                    Value::Bool(value) => Some(value),
                    _ => None,
                });
            }
            Arc::new(array.finish())
        }
        FieldType::Time => {
            let mut array = TimestampNanosecondBuilder::with_capacity(views.len());
            for view in views {
                array.append_option(match view.get(id) {
                    Value::Time(value) => Some(value),
                    _ => None,
                });
            }
            Arc::new(array.finish().with_timezone("UTC"))
        }
        FieldType::Str => {
            let mut array = StringBuilder::new();
            for view in views {
                match view.get(id) {
                    Value::Str(value) => array.append_value(value),
                    Value::Unknown => array.append_option(visible(view, id)),
                    _ => array.append_null(),
                }
            }
            Arc::new(array.finish())
        }
        FieldType::StrList | FieldType::ImageList => {
            let mut array = ListBuilder::new(StringBuilder::new());
            for view in views {
                let value = view.get(id);
                if let Value::List(list) = &value {
                    for item in list.iter() {
                        array.values().append_value(item);
                    }
                }
                array.append(matches!(value, Value::List(_)));
            }
            Arc::new(array.finish())
        }
    }
}

/// What is left of a text that is unknown as a whole.
fn visible<'a>(view: &View<'a>, id: FieldId) -> Option<&'a str> {
    let file = view.event.file.as_ref();
    let image = view.image();
    let parent = || sumun_proto::view::image_at(view.batch, image?.parent);
    let target = || {
        let privilege = view.event.privilege.as_ref()?;
        privilege.target.as_ref()?.exe_path.as_deref()
    };
    let kernel = view.event.kernel.as_ref();
    let left = match id {
        FieldId::ProcExePath => &image?.exe_path,
        FieldId::ProcExeName => text::file_name(&image?.exe_path),
        FieldId::ProcCwd => &image?.cwd,
        FieldId::ProcScriptPath => &image?.script,
        FieldId::ProcParentExePath => &parent()?.exe_path,
        FieldId::ProcParentExeName => text::file_name(&parent()?.exe_path),
        FieldId::FilePath => file?.path.as_deref()?,
        FieldId::FileName => text::file_name(file?.path.as_deref()?),
        FieldId::FileNewPath => file?.new_path.as_deref()?,
        FieldId::NetDstPath => view.event.network.as_ref()?.dst_path.as_deref()?,
        FieldId::FileXattr => file?.xattr.as_deref()?,
        FieldId::TargetExePath => target()?,
        FieldId::TargetExeName => text::file_name(target()?),
        FieldId::ModuleParams => kernel?.parameters.as_deref()?,
        FieldId::MountSource => kernel?.source.as_deref()?,
        FieldId::MountTarget => kernel?.target.as_deref()?,
        FieldId::MountType => kernel?.fs.as_deref()?,
        FieldId::SysctlName => kernel?.name.as_deref()?,
        FieldId::SysctlValue => kernel?.value.as_deref()?,
        _ => return None,
    };
    (!left.is_empty()).then_some(left)
}

fn gaps(host: &Arc<Host>, batch: &Batch) -> Option<RowSet> {
    if batch.gaps.is_empty() {
        return None;
    }
    let layout = &LAYOUTS[Family::Gap as usize];
    let wall = |boot: u64| batch.wall_offset_ns.wrapping_add(boot.cast_signed());
    let lane = Lane::try_from(batch.lane).unwrap_or(Lane::Unspecified);
    let once = layout.once.iter().map(|column| {
        let text = |value: String| -> ArrayRef {
            let mut array = StringBuilder::new();
            array.append_value(value);
            Arc::new(array.finish())
        };
        match column {
            Column::Field(FieldId::BootId) => text(boot_id_text(&batch.boot_id)),
            Column::Field(FieldId::HostId) => text(host.id.clone()),
            Column::Field(FieldId::HostName) => text(host.name.clone()),
            Column::Field(FieldId::GapLane) => text(catalogue::lane_name(lane).to_owned()),
            _ => {
                let mut array = Int64Builder::new();
                array.append_value(batch.pin_generation.cast_signed());
                Arc::new(array.finish())
            }
        }
    });
    let int = |value: &dyn Fn(&Gap) -> Option<i64>| -> ArrayRef {
        let mut array = Int64Builder::new();
        for gap in &batch.gaps {
            array.append_option(value(gap));
        }
        Arc::new(array.finish())
    };
    let time = |value: &dyn Fn(&Gap) -> u64| -> ArrayRef {
        let mut array = TimestampNanosecondBuilder::new();
        for gap in &batch.gaps {
            array.append_value(wall(value(gap)));
        }
        Arc::new(array.finish().with_timezone("UTC"))
    };
    let text = |value: &dyn Fn(&Gap) -> Option<&str>| -> ArrayRef {
        let mut array = StringBuilder::new();
        for gap in &batch.gaps {
            array.append_option(value(gap));
        }
        Arc::new(array.finish())
    };
    let own: Vec<ArrayRef> = layout
        .own
        .iter()
        .map(|column| {
            let Column::Field(id) = column else {
                return new_null_array(&DataType::Int64, batch.gaps.len());
            };
            match id {
                FieldId::Time | FieldId::GapFrom => time(&|gap| gap.from_boot_ns),
                FieldId::GapTo => time(&|gap| gap.to_boot_ns),
                FieldId::BootNs => int(&|gap| Some(gap.from_boot_ns.cast_signed())),
                FieldId::OriginRing => int(&|gap| Some(gap.stream.as_ref()?.ring.into())),
                FieldId::OriginCpu => int(&|gap| Some(gap.stream.as_ref()?.cpu.into())),
                FieldId::OriginLevel => int(&|gap| Some(gap.stream.as_ref()?.level.into())),
                FieldId::GapCount => int(&|gap| gap.count.map(u64::cast_signed)),
                FieldId::GapFirstSeq => {
                    int(&|gap| gap.stream.as_ref().map(|_| gap.first_seq.cast_signed()))
                }
                FieldId::GapLastSeq => {
                    int(&|gap| gap.stream.as_ref().map(|_| gap.last_seq.cast_signed()))
                }
                FieldId::GapReason => text(&|gap| Some(&gap.reason)),
                FieldId::GapDetail => {
                    text(&|gap| Some(&*gap.detail).filter(|detail| !detail.is_empty()))
                }
                other => match other.info().ty {
                    FieldType::Str => new_null_array(&DataType::Utf8, batch.gaps.len()),
                    _ => new_null_array(&DataType::Int64, batch.gaps.len()),
                },
            }
        })
        .collect();
    let times: Vec<_> = batch
        .gaps
        .iter()
        .map(|gap| wall(gap.from_boot_ns))
        .collect();
    let ends = batch.gaps.iter().map(|gap| wall(gap.to_boot_ns));
    Some(RowSet {
        family: Family::Gap,
        host: Arc::clone(host),
        once: once.collect(),
        images: Arc::default(),
        image: vec![0; times.len()],
        bytes: bytes_of(&own) + 12 * times.len(),
        own,
        min_time: times.iter().copied().min()?,
        max_time: ends.max()?,
        times,
    })
}

fn bytes_of(arrays: &[ArrayRef]) -> usize {
    arrays
        .iter()
        .map(|array| array.get_array_memory_size())
        .sum()
}

/// Columns `columns` (ascending, of the table's schema) of the given rows: pairs
/// of (index into `sets`, row). The sets are of one table.
///
/// # Errors
/// What Arrow refuses: columns of more than 2 GiB.
pub fn gather(
    family: Family,
    sets: &[&RowSet],
    picked: &[(usize, usize)],
    columns: &[usize],
) -> Result<RecordBatch> {
    let layout = &LAYOUTS[family as usize];
    let failed = |source| Error::Rows {
        table: family.name(),
        source,
    };
    let whole = sets.len() == 1
        && picked.len() == sets[0].len()
        && picked.iter().enumerate().all(|(at, (_, row))| at == *row);
    let mut of_images = None;
    let mut of_batches = None;
    let mut arrays = Vec::with_capacity(columns.len());
    for column in columns {
        let array = match layout.places[*column] {
            Place::Own(own) if whole => Arc::clone(&sets[0].own[own]),
            Place::Own(own) => {
                let from: Vec<&dyn Array> = sets.iter().map(|set| &*set.own[own]).collect();
                interleave(&from, picked).map_err(failed)?
            }
            Place::Image(image) => {
                let items = of_images.get_or_insert_with(|| -> Vec<_> {
                    picked
                        .iter()
                        .map(|(set, row)| (*set, sets[*set].image[*row] as usize))
                        .collect()
                });
                let from: Vec<&dyn Array> = sets.iter().map(|set| &*set.images[image]).collect();
                interleave(&from, items).map_err(failed)?
            }
            Place::Once(once) => {
                let items = of_batches.get_or_insert_with(|| -> Vec<_> {
                    picked.iter().map(|(set, _)| (*set, 0)).collect()
                });
                let from: Vec<&dyn Array> = sets.iter().map(|set| &*set.once[once]).collect();
                interleave(&from, items).map_err(failed)?
            }
        };
        arrays.push(array);
    }
    let schema: Schema = family.schema().project(columns).map_err(failed)?;
    RecordBatch::try_new_with_options(
        Arc::new(schema),
        arrays,
        &datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(picked.len())),
    )
    .map_err(failed)
}
