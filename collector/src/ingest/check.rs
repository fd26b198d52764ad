//! The checks of a delivery before it is logged: cheap ones first, then
//! whether its body is a batch at all.
//!
//! What an agent's bug or a damaged spool has made is refused for good, with
//! its number consumed, so that the lane goes on. What only a newer version
//! can mean ends the stream instead: the agent keeps it.

use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use sha2::{Digest, Sha256};
use sumun_proto::v1::{Batch, Delivery, Lane};
use sumun_proto::{BATCH_MAX, FORMAT};
use tonic::Status;

/// No item of a batch is smaller than this when it says anything; a body of
/// smaller ones would take hundreds of times its size in memory.
const ITEM_MIN: usize = 16;
/// Empty items that are tolerated beyond that.
const ITEMS_SPARE: usize = 64;

/// A delivery that may be logged.
#[derive(Debug)]
pub struct Checked {
    /// Its lane.
    pub lane: Lane,
    /// Hash of the body: as the agent gave it, or of the body if it gave none.
    pub sha256: [u8; 32],
    /// The body as it came.
    pub body: Bytes,
    /// The batch, or why there is none.
    pub batch: Result<Box<Batch>, String>,
}

/// Checks a delivery.
///
/// # Errors
/// The stream cannot go on: no number, an unknown lane, a newer format.
pub fn check_delivery(delivery: Delivery) -> Result<Checked, Status> {
    let lane = delivery.lane();
    if lane == Lane::Unspecified {
        return Err(Status::invalid_argument("a delivery of an unknown lane"));
    }
    if delivery.number == 0 || delivery.number > i64::MAX.cast_unsigned() {
        return Err(Status::invalid_argument("delivery numbers start at 1"));
    }
    let body = delivery.body;
    let actual: [u8; 32] = Sha256::digest(&body).into();
    let given = <[u8; 32]>::try_from(delivery.sha256.as_slice()).ok();
    let sha256 = given.unwrap_or(actual);
    let batch = if given != Some(actual) {
        Err("the body does not have the hash that was given".to_owned())
    } else {
        decode(&body, lane)
    };
    if let Ok(batch) = &batch
        && batch.format > FORMAT
    {
        return Err(Status::failed_precondition(format!(
            "a batch of format {} and this collector reads up to {FORMAT}: update the collector",
            batch.format
        )));
    }
    Ok(Checked {
        lane,
        sha256,
        body,
        batch: batch.map(Box::new),
    })
}

fn decode(body: &Bytes, lane: Lane) -> Result<Batch, String> {
    if body.len() > BATCH_MAX {
        return Err(format!(
            "the body has {} bytes, {BATCH_MAX} is the most",
            body.len()
        ));
    }
    let malformed = |error: prost::DecodeError| format!("the body is not a batch: {error}");
    let items = items(body).map_err(malformed)?;
    if items > body.len() / ITEM_MIN + ITEMS_SPARE {
        return Err(format!("{items} items in a body of {} bytes", body.len()));
    }
    let batch = Batch::decode(body.clone()).map_err(malformed)?;
    if batch.format > FORMAT {
        return Ok(batch);
    }
    if batch.format == 0 {
        return Err("the body is not a batch: it has no format".to_owned());
    }
    if batch.lane() != lane {
        return Err(format!(
            "a batch of {} was delivered as {}",
            batch.lane().as_str_name(),
            lane.as_str_name()
        ));
    }
    if batch.boot_id.len() != 16 {
        return Err(format!("a boot id of {} bytes", batch.boot_id.len()));
    }
    Ok(batch)
}

/// Counts the messages right below a message, without decoding them.
fn items(body: &Bytes) -> Result<usize, prost::DecodeError> {
    let mut rest = body.clone();
    let mut count = 0;
    while !rest.is_empty() {
        let (tag, wire) = decode_key(&mut rest)?;
        if wire == WireType::LengthDelimited {
            count += 1;
        }
        skip_field(wire, tag, &mut rest, DecodeContext::default())?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(batch: &Batch) -> Delivery {
        let body = batch.encode_to_vec();
        Delivery {
            epoch: 1,
            lane: Lane::Life as i32,
            number: 1,
            sha256: Sha256::digest(&body).to_vec(),
            body: body.into(),
        }
    }

    fn batch() -> Batch {
        Batch {
            format: FORMAT,
            lane: Lane::Life as i32,
            boot_id: vec![7; 16],
            ..Batch::default()
        }
    }

    fn reason(delivery: Delivery) -> String {
        let checked = check_delivery(delivery).expect("the stream goes on");
        checked.batch.expect_err("refused")
    }

    #[test]
    fn a_good_one_passes() {
        let checked = check_delivery(delivery(&batch())).expect("the stream goes on");
        assert_eq!(checked.batch.as_deref(), Ok(&batch()));
    }

    #[test]
    fn bad_ones_are_refused_for_good() {
        let mut wrong_hash = delivery(&batch());
        wrong_hash.sha256[0] ^= 1;
        assert!(reason(wrong_hash).contains("hash"));

        let mut other_lane = delivery(&batch());
        other_lane.lane = Lane::Bulk as i32;
        assert!(reason(other_lane).contains("LANE_LIFE"));

        let body = vec![0xff; 100];
        let garbage = Delivery {
            sha256: Sha256::digest(&body).to_vec(),
            body: body.into(),
            ..delivery(&batch())
        };
        assert!(reason(garbage).contains("not a batch"));

        let body = vec![0; BATCH_MAX + 1];
        let large = Delivery {
            sha256: Sha256::digest(&body).to_vec(),
            body: body.into(),
            ..delivery(&batch())
        };
        assert!(reason(large).contains("the most"));

        let empty = Batch {
            events: vec![sumun_proto::v1::Event::default(); 100_000],
            ..batch()
        };
        assert!(reason(delivery(&empty)).contains("items"));
    }

    #[test]
    fn a_newer_format_stays_with_the_agent() {
        let newer = Batch {
            format: FORMAT + 1,
            ..batch()
        };
        let status = check_delivery(delivery(&newer)).expect_err("not for this version");
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    }
}
