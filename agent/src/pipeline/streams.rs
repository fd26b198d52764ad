//! Sequence numbers of the kernel streams: what is new, what was seen before a
//! restart, and exactly what is missing.
//!
//! A stream is a ring, a CPU and a nesting level. Its numbers are contiguous in the kernel, so a
//! jump is a loss, and a number that the kernel has given out, whose record is not in the ring
//! although no program is running, is a loss at the tail.

use std::collections::HashMap;

use sumun_abi::loss::{Stream, reason};
use sumun_abi::record::{Header, LEVELS};
use sumun_proto::v1::{Gap, Origin};

use super::consumed::Consumed;
use crate::kernel::StreamId;

/// What a record's number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The next one, or the first after a gap.
    New,
    /// Dealt with before a restart.
    Before,
}

/// The level under which a stream's count of nested losses is kept.
#[expect(
    clippy::cast_possible_truncation,
    reason = "LEVELS is a small constant"
)]
const NESTED_LEVEL: u8 = LEVELS as u8;

#[derive(Clone, Copy, Debug, Default)]
struct Position {
    seq: u64,
    boot_ns: u64,
}

/// Positions of all streams in this cycle of reading.
#[derive(Debug, Default)]
pub struct Streams {
    positions: HashMap<StreamId, Position>,
    losses: HashMap<StreamId, [u64; reason::COUNT]>,
    /// The pinned maps are older than what is known of them: a stream's first
    /// number says nothing about what came before.
    unknown_start: bool,
    /// Boot time before which nothing was read: the left end of a first gap.
    since_ns: u64,
}

impl Streams {
    /// Streams of which nothing has been read in this run.
    #[must_use]
    pub fn new(unknown_start: bool, since_ns: u64) -> Self {
        Self {
            unknown_start,
            since_ns,
            ..Self::default()
        }
    }

    /// Takes a record's number. A gap before it comes with it.
    pub fn take(&mut self, header: &Header, consumed: &Consumed) -> (Seen, Option<Gap>) {
        let stream = StreamId {
            ring: header.ring,
            cpu: header.cpu,
            level: header.level,
        };
        let since = self.since_ns;
        let position = self.positions.entry(stream).or_insert_with(|| Position {
            seq: consumed.get(stream),
            boot_ns: since,
        });
        if header.seq <= position.seq {
            return (Seen::Before, None);
        }
        let missing = header.seq - position.seq - 1;
        let first_ever = position.seq == 0 && self.unknown_start;
        let gap = (missing > 0).then(|| Gap {
            reason: if first_ever {
                "state_lost"
            } else {
                "ring_full"
            }
            .into(),
            count: Some(missing).filter(|_| !first_ever),
            from_boot_ns: position.boot_ns,
            to_boot_ns: header.boot_ns,
            stream: Some(origin(stream)),
            first_seq: position.seq + 1,
            last_seq: header.seq - 1,
            detail: String::new(),
        });
        *position = Position {
            seq: header.seq,
            boot_ns: header.boot_ns,
        };
        (Seen::New, gap)
    }

    /// Compares with what the kernel had given out when no program was running, after the
    /// rings have been read beyond that moment: gaps at the tails, and records that
    /// had no number at all.
    pub fn compare(
        &mut self,
        kernel: &[(StreamId, Stream)],
        now_ns: u64,
        consumed: &Consumed,
    ) -> Vec<(StreamId, Gap)> {
        let mut gaps = Vec::new();
        for (stream, state) in kernel {
            let since = self.since_ns;
            let position = self.positions.entry(*stream).or_insert_with(|| Position {
                seq: consumed.get(*stream),
                boot_ns: since,
            });
            let before = self.losses.insert(*stream, state.lost);
            if state.seq > position.seq {
                let first_ever = position.seq == 0 && self.unknown_start;
                gaps.push((
                    *stream,
                    Gap {
                        reason: if first_ever {
                            "state_lost"
                        } else {
                            tail_reason(before, state)
                        }
                        .into(),
                        count: Some(state.seq - position.seq).filter(|_| !first_ever),
                        from_boot_ns: position.boot_ns,
                        to_boot_ns: now_ns,
                        stream: Some(origin(*stream)),
                        first_seq: position.seq + 1,
                        last_seq: state.seq,
                        detail: String::new(),
                    },
                ));
                *position = Position {
                    seq: state.seq,
                    boot_ns: now_ns,
                };
            }
            // Nested losses have no number of their own: their count is kept like
            // one, under a level that no record has.
            let counter = StreamId {
                level: NESTED_LEVEL,
                ..*stream
            };
            let nested = state.lost[reason::NESTED as usize];
            let known = self.positions.entry(counter).or_insert_with(|| Position {
                seq: consumed.get(counter),
                boot_ns: since,
            });
            if nested > known.seq {
                gaps.push((
                    *stream,
                    Gap {
                        reason: "nested".into(),
                        count: Some(nested - known.seq),
                        from_boot_ns: known.boot_ns,
                        to_boot_ns: now_ns,
                        stream: Some(origin(*stream)),
                        ..Gap::default()
                    },
                ));
            }
            // All levels of a CPU share the reason, only the deepest counts it.
            *known = Position {
                seq: nested.max(known.seq),
                boot_ns: now_ns,
            };
        }
        self.since_ns = now_ns;
        self.unknown_start = false;
        gaps
    }

    /// Writes the positions into what will be stored.
    pub fn store(&self, consumed: &mut Consumed) {
        for (stream, position) in &self.positions {
            consumed.set(*stream, position.seq);
        }
    }

    /// Forgets what was read since the last `store`: it will be read again.
    pub fn rewind(&mut self, consumed: &Consumed) {
        for (stream, position) in &mut self.positions {
            position.seq = consumed.get(*stream);
        }
    }
}

fn origin(stream: StreamId) -> Origin {
    Origin {
        ring: stream.ring.into(),
        cpu: stream.cpu,
        level: stream.level.into(),
        seq: 0,
    }
}

fn tail_reason(before: Option<[u64; reason::COUNT]>, now: &Stream) -> &'static str {
    let before = before.unwrap_or_default();
    let more = |reason: u32| now.lost[reason as usize] > before[reason as usize];
    if more(reason::TOO_LONG) {
        "too_long"
    } else if more(reason::LIMITED) && !more(reason::RING_FULL) {
        "limited"
    } else {
        "ring_full"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(ring: u8, cpu: u32, level: u8) -> StreamId {
        StreamId { ring, cpu, level }
    }

    fn header(seq: u64, boot_ns: u64) -> Header {
        Header {
            len: 32,
            kind: 1,
            ring: 1,
            level: 0,
            cpu: 0,
            generation: 0,
            seq,
            boot_ns,
        }
    }

    fn consumed() -> (tempfile::TempDir, Consumed) {
        let dir = tempfile::tempdir().expect("a directory");
        let (consumed, _) = Consumed::open(dir.path(), 1, 1, [0; 16]).expect("open");
        (dir, consumed)
    }

    #[test]
    fn a_jump_is_a_gap_of_exactly_the_missing_numbers() {
        let (_dir, consumed) = consumed();
        let mut streams = Streams::new(false, 5);
        assert_eq!(streams.take(&header(1, 10), &consumed), (Seen::New, None));
        let (seen, gap) = streams.take(&header(5, 20), &consumed);
        let gap = gap.expect("a gap");
        assert_eq!(seen, Seen::New);
        assert_eq!((gap.count, gap.first_seq, gap.last_seq), (Some(3), 2, 4));
        assert_eq!((gap.from_boot_ns, gap.to_boot_ns), (10, 20));
        assert_eq!(
            streams.take(&header(5, 20), &consumed),
            (Seen::Before, None)
        );
    }

    #[test]
    fn a_tail_that_never_came_is_found_by_the_counters() {
        let (_dir, consumed) = consumed();
        let mut streams = Streams::new(false, 0);
        streams.take(&header(1, 10), &consumed);
        let state = Stream {
            seq: 4,
            lost: [3, 0, 0, 0],
        };
        let gaps = streams.compare(&[(stream(1, 0, 0), state)], 50, &consumed);
        assert_eq!(gaps.len(), 1);
        assert_eq!((gaps[0].1.count, gaps[0].1.first_seq), (Some(3), 2));
        assert!(
            streams
                .compare(&[(stream(1, 0, 0), state)], 60, &consumed)
                .is_empty()
        );
        assert_eq!(streams.take(&header(5, 70), &consumed), (Seen::New, None));
    }

    #[test]
    fn nested_losses_have_no_number_and_are_counted() {
        let (_dir, consumed) = consumed();
        let mut streams = Streams::new(false, 0);
        let mut state = Stream::default();
        assert!(
            streams
                .compare(&[(stream(0, 0, 3), state)], 10, &consumed)
                .is_empty()
        );
        let stored = consumed.get(stream(0, 0, NESTED_LEVEL));
        assert_eq!(stored, 0);
        state.lost[reason::NESTED as usize] = 2;
        let gaps = streams.compare(&[(stream(0, 0, 3), state)], 20, &consumed);
        assert_eq!(
            (gaps[0].1.reason.as_str(), gaps[0].1.count),
            ("nested", Some(2))
        );
        assert_eq!((gaps[0].1.from_boot_ns, gaps[0].1.to_boot_ns), (10, 20));
    }

    #[test]
    fn a_restart_skips_what_was_stored_and_a_failed_cycle_reads_again() {
        let (_dir, mut consumed) = consumed();
        consumed.set(stream(1, 0, 0), 7);
        let mut streams = Streams::new(false, 0);
        assert_eq!(streams.take(&header(7, 1), &consumed).0, Seen::Before);
        assert_eq!(streams.take(&header(8, 1), &consumed), (Seen::New, None));
        streams.rewind(&consumed);
        assert_eq!(streams.take(&header(8, 1), &consumed), (Seen::New, None));
        streams.store(&mut consumed);
        streams.rewind(&consumed);
        assert_eq!(streams.take(&header(8, 1), &consumed).0, Seen::Before);
    }

    #[test]
    fn pins_of_which_nothing_is_known_make_a_gap_without_a_number() {
        let (_dir, consumed) = consumed();
        let mut streams = Streams::new(true, 0);
        let gap = streams.take(&header(1000, 9), &consumed).1.expect("a gap");
        assert_eq!((gap.count, gap.reason.as_str()), (None, "state_lost"));
    }
}
