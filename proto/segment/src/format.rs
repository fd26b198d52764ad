//! Bytes of the two headers. The layout is described at the top of the crate.

use crate::Seq;

/// Largest payload of one record, in bytes.
pub const MAX_PAYLOAD: u64 = 64 * 1024 * 1024;
/// Bytes a record takes on disk besides its payload.
pub const RECORD_OVERHEAD: u64 = RECORD_HEADER as u64;
/// Bytes a segment takes on disk besides its records.
pub const SEGMENT_OVERHEAD: u64 = SEGMENT_HEADER as u64;

pub(crate) const RECORD_HEADER: usize = 24;
pub(crate) const SEGMENT_HEADER: usize = 32;
pub(crate) const VERSION: u32 = 1;
/// No sequence is higher; so arithmetic on a forged one cannot overflow.
pub(crate) const SEQ_MAX: Seq = Seq::MAX / 2;
const MAGIC: [u8; 8] = *b"SUMUNLOG";

/// What every checksum of a log's records starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogId(pub(crate) u64);

impl LogId {
    /// A fresh id. Not a secret in the cryptographic sense: it has to be
    /// unknown to whoever chooses payloads, and differ from log to log.
    pub(crate) fn random() -> Self {
        use std::hash::{BuildHasher, Hasher};
        LogId(
            std::collections::hash_map::RandomState::new()
                .build_hasher()
                .finish(),
        )
    }

    fn seed(self) -> u32 {
        crc32c::crc32c(&self.0.to_le_bytes())
    }
}

/// A segment's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) version: u32,
    pub(crate) first: Seq,
    pub(crate) log: LogId,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut bytes = [0; SEGMENT_HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.log.0.to_le_bytes());
        let crc = Self::crc(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no header of any version.
    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Option<Self> {
        if bytes[0..8] != MAGIC || u32_at(bytes, 12) != Self::crc(bytes) {
            return None;
        }
        Some(SegmentHeader {
            version: u32_at(bytes, 8),
            first: u64_at(bytes, 16),
            log: LogId(u64_at(bytes, 24)),
        })
    }

    fn crc(bytes: &[u8; SEGMENT_HEADER]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
    }
}

/// A record's header, decoded and found consistent with its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) len: u32,
    pub(crate) behind: u32,
    pub(crate) seq: Seq,
    payload_crc: u32,
}

impl RecordHeader {
    /// Header of a record whose payload is `parts`, `len` bytes together.
    pub(crate) fn of(log: LogId, seq: Seq, durable: Seq, len: u32, parts: &[&[u8]]) -> Self {
        let payload_crc = parts
            .iter()
            .fold(log.seed(), |crc, part| crc32c::crc32c_append(crc, part));
        RecordHeader {
            len,
            behind: u32::try_from(seq.saturating_sub(durable)).unwrap_or(u32::MAX),
            seq,
            payload_crc,
        }
    }

    pub(crate) fn encode(&self, log: LogId) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        bytes[0..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.behind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(log.seed(), &bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no record header of this log. The first
    /// RECORD_HEADER bytes of `bytes` are looked at.
    pub(crate) fn decode(log: LogId, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<RECORD_HEADER>()?;
        let header = RecordHeader {
            len: u32_at(bytes, 0),
            behind: u32_at(bytes, 4),
            seq: u64_at(bytes, 8),
            payload_crc: u32_at(bytes, 16),
        };
        // The cheap tests first: a search tries every byte of a damaged area.
        if u64::from(header.len) > MAX_PAYLOAD || header.seq == 0 || header.seq > SEQ_MAX {
            return None;
        }
        let crc = crc32c::crc32c_append(log.seed(), &bytes[..20]);
        (crc == u32_at(bytes, 20)).then_some(header)
    }

    pub(crate) fn matches(&self, log: LogId, payload: &[u8]) -> bool {
        crc32c::crc32c_append(log.seed(), payload) == self.payload_crc
    }

    /// Bytes of header and payload.
    pub(crate) fn on_disk(&self) -> u64 {
        RECORD_OVERHEAD + u64::from(self.len)
    }

    /// The highest sequence that was durable when this record was written.
    pub(crate) fn durable(&self) -> Seq {
        self.seq.saturating_sub(u64::from(self.behind))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip_and_no_flipped_bit() {
        let log = LogId(42);
        let segment = SegmentHeader {
            version: VERSION,
            first: 7,
            log,
        };
        let bytes = segment.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Some(segment));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), None, "bit {bit}");
        }

        let record = RecordHeader::of(log, 9, 4, 5, &[b"he", b"llo"]);
        assert_eq!((record.behind, record.durable()), (5, 4));
        assert!(record.matches(log, b"hello"));
        assert!(!record.matches(log, b"hellp"));
        assert!(!record.matches(LogId(43), b"hello"));
        let bytes = record.encode(log);
        assert_eq!(RecordHeader::decode(log, &bytes), Some(record));
        assert_eq!(RecordHeader::decode(LogId(43), &bytes), None);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(log, &bad), None, "bit {bit}");
        }
    }

    #[test]
    fn zeros_are_no_record() {
        for id in 0..1000 {
            assert_eq!(RecordHeader::decode(LogId(id), &[0; RECORD_HEADER]), None);
        }
    }
}
