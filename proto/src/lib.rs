//! What the agent, the collector and the command line agree on: the wire
//! format (`sumun.v1`), the field catalogue, and the typed view of an event
//! that predicates, rules and columns read.
#![forbid(unsafe_code)]

pub mod catalogue;
pub mod docs;
pub mod identity;
pub mod text;
pub mod view;

/// The gRPC package `sumun.v1`, generated from `proto/sumun/v1`.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files carry the documentation"
)]
pub mod v1 {
    tonic::include_proto!("sumun.v1");
}

/// The part of Kubernetes' Container Runtime Interface that the agent asks.
#[expect(
    missing_docs,
    clippy::allow_attributes_without_reason,
    reason = "generated; the interface's own documentation says what they mean"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

pub use catalogue::{FIELDS, FieldId, FieldInfo, FieldType, Tier};
pub use view::{Host, StrList, Value, View};

/// Largest encoded `Batch` an agent writes and a collector takes, in bytes.
pub const BATCH_MAX: usize = 2 * 1024 * 1024;

/// Largest gRPC message on the ingest port: a batch and its envelope.
pub const MESSAGE_MAX: usize = BATCH_MAX + 64 * 1024;

/// Most batches of one lane that may be sent and not yet acknowledged; the
/// collector remembers the hashes of as many.
pub const WINDOW: usize = 1024;

/// The `Batch.format` that this version writes and reads.
pub const FORMAT: u32 = 1;
