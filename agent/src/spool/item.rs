//! One spooled batch: what stands before its body, and how it is written.
//!
//! A record of a lane's log is the length of the header (4 bytes,
//! little-endian), the header (a protobuf message of this module), and the body:
//! an encoded `sumun.v1.Batch`, which the spool does not look into.

use std::collections::BTreeMap;

use prost::Message;
use sha2::{Digest, Sha256};
use sumun_proto::v1;

use super::ledger::Missing;
use crate::kernel::StreamId;

/// A batch to be spooled.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The encoded `sumun.v1.Batch`.
    pub body: &'a [u8],
    /// Events and alerts in it: what a gap counts if it has to be given up.
    pub events: u64,
    /// What gaps in it count, which a gap must count too if it has to be given
    /// up; `None` if one of them does not know its count.
    pub missing: Option<u64>,
    /// Time of its first event, boot ns.
    pub first_boot_ns: u64,
    /// Time of its last event, boot ns.
    pub last_boot_ns: u64,
    /// Boot id of the batch.
    pub boot_id: [u8; 16],
    /// Offset of the wall clock of the batch, ns.
    pub wall_offset_ns: i64,
    /// Generation of the pinned maps its records came through.
    pub pin_generation: u64,
    /// Highest sequence of each kernel stream that is dealt with by it.
    pub highest: &'a BTreeMap<StreamId, u64>,
}

/// What the spool keeps beside a body.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(fixed64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(uint64, tag = "2")]
    pub(super) number: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) sha256: Vec<u8>,
    #[prost(uint64, tag = "4")]
    pub(super) events: u64,
    #[prost(fixed64, tag = "5")]
    pub(super) first_boot_ns: u64,
    #[prost(fixed64, tag = "6")]
    pub(super) last_boot_ns: u64,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) boot_id: Vec<u8>,
    #[prost(sfixed64, tag = "8")]
    pub(super) wall_offset_ns: i64,
    #[prost(fixed64, tag = "9")]
    pub(super) pin_generation: u64,
    #[prost(message, repeated, tag = "10")]
    pub(super) highest: Vec<Highest>,
    /// A gap batch about the refused batch of this log sequence.
    #[prost(uint64, tag = "11")]
    pub(super) about: u64,
    /// Events that gaps in it count; absent = not known.
    #[prost(uint64, optional, tag = "12")]
    pub(super) missing: Option<u64>,
}

/// How far a kernel stream has been dealt with.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Highest {
    #[prost(uint32, tag = "1")]
    ring: u32,
    #[prost(uint32, tag = "2")]
    cpu: u32,
    #[prost(uint32, tag = "3")]
    level: u32,
    #[prost(uint64, tag = "4")]
    seq: u64,
}

impl Highest {
    pub(crate) fn list(highest: &BTreeMap<StreamId, u64>) -> Vec<Self> {
        highest
            .iter()
            .map(|(stream, seq)| Highest {
                ring: stream.ring.into(),
                cpu: stream.cpu,
                level: stream.level.into(),
                seq: *seq,
            })
            .collect()
    }

    /// The entry as the kernel side names it; `None` if no agent wrote this.
    pub(crate) fn stream(self) -> Option<(StreamId, u64)> {
        let stream = StreamId {
            ring: u8::try_from(self.ring).ok()?,
            cpu: self.cpu,
            level: u8::try_from(self.level).ok()?,
        };
        Some((stream, self.seq))
    }
}

/// The highest sequences of the newest generation of pinned maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) pin_generation: u64,
    pub(super) highest: BTreeMap<StreamId, u64>,
}

impl Held {
    /// Takes over what a later batch has; an older generation is over.
    pub(super) fn merge(&mut self, pin_generation: u64, highest: &[Highest]) {
        if highest.is_empty() {
            return;
        }
        if pin_generation != self.pin_generation {
            self.pin_generation = pin_generation;
            self.highest.clear();
        }
        for (stream, seq) in highest.iter().filter_map(|entry| entry.stream()) {
            let held = self.highest.entry(stream).or_default();
            *held = (*held).max(seq);
        }
    }
}

impl Header {
    pub(super) fn of(item: &Item<'_>, epoch: u64, number: u64, about: u64) -> Self {
        Header {
            epoch,
            number,
            sha256: Self::sha256(item.body).to_vec(),
            events: item.events,
            first_boot_ns: item.first_boot_ns,
            last_boot_ns: item.last_boot_ns,
            boot_id: item.boot_id.to_vec(),
            wall_offset_ns: item.wall_offset_ns,
            pin_generation: item.pin_generation,
            highest: Highest::list(item.highest),
            about,
            missing: item.missing,
        }
    }

    /// Events that are missing when this batch is.
    pub(super) fn count(&self) -> Option<u64> {
        self.missing
            .map(|missing| missing.saturating_add(self.events))
    }

    pub(super) fn sha256(body: &[u8]) -> [u8; 32] {
        Sha256::digest(body).into()
    }

    /// Length and header, to stand before the body.
    pub(super) fn prefix(&self) -> Vec<u8> {
        let len = self.encoded_len();
        let mut prefix = Vec::with_capacity(4 + len);
        prefix.extend_from_slice(&(len as u32).to_le_bytes());
        self.encode_raw(&mut prefix);
        prefix
    }

    /// Header and body of a record; `None` if no spool wrote it.
    pub(super) fn split(record: &[u8]) -> Option<(Self, &[u8])> {
        let (len, rest) = record.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        let header = Header::decode(rest.get(..len)?).ok()?;
        if header.sha256.len() != 32 || header.number == 0 {
            return None;
        }
        Some((header, &rest[len..]))
    }
}

/// The body that says what is missing: delivered under the number of what it
/// replaces, or under one of its own.
pub(super) fn gap_body(lane: v1::Lane, missing: &Missing, detail: String) -> Vec<u8> {
    let gap = v1::Gap {
        reason: missing.reason.clone(),
        count: missing.count,
        from_boot_ns: missing.first_boot_ns,
        to_boot_ns: missing.last_boot_ns,
        detail,
        ..v1::Gap::default()
    };
    let batch = v1::Batch {
        gaps: vec![gap],
        ..empty(lane, missing)
    };
    batch.encode_to_vec()
}

/// The body under the other numbers of a missing range: the first says it all.
pub(super) fn filler_body(lane: v1::Lane, missing: &Missing) -> Vec<u8> {
    empty(lane, missing).encode_to_vec()
}

fn empty(lane: v1::Lane, missing: &Missing) -> v1::Batch {
    v1::Batch {
        format: sumun_proto::FORMAT,
        lane: lane.into(),
        boot_id: missing.boot_id.clone(),
        pin_generation: missing.pin_generation,
        wall_offset_ns: missing.wall_offset_ns,
        ..v1::Batch::default()
    }
}
