//! Whatever arrives on a stream or lies in the log is read without a panic,
//! and what is taken can be taken again from the log.

use bolero::check;
use prost::Message;
use sha2::{Digest, Sha256};
use sumun_collector::ingest::check::check_delivery;
use sumun_collector::ingest::record::Record;
use sumun_collector::tenant::ca::checked_key;
use sumun_proto::Host;
use sumun_proto::v1::forward_request::Message as Ask;
use sumun_proto::v1::{Batch, Delivery, ForwardRequest, Lane};

use crate::common::batch;

#[test]
fn any_message() {
    check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        if let Ok(request) = ForwardRequest::decode(bytes)
            && let Some(Ask::Delivery(delivery)) = request.message
        {
            let _ = check_delivery(delivery);
        }
    });
}

#[test]
fn any_body() {
    check!().with_iterations(20_000).for_each(body_is_read);
}

/// A good batch, damaged: each edit is where, how and with what.
#[test]
fn damaged_body() {
    let good = batch(1, 20).encode_to_vec();
    check!()
        .with_iterations(20_000)
        .with_max_len(60)
        .for_each(|edits: &[u8]| {
            let mut body = good.clone();
            for edit in edits.chunks_exact(4) {
                let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % body.len().max(1);
                match edit[2] % 4 {
                    0 => body.truncate(at),
                    1 => body.insert(at.min(body.len()), edit[3]),
                    2 => drop(body.drain(at..(at + usize::from(edit[3])).min(body.len()))),
                    _ => {
                        if let Some(byte) = body.get_mut(at) {
                            *byte = edit[3];
                        }
                    }
                }
            }
            body_is_read(&body);
        });
}

fn body_is_read(bytes: &[u8]) {
    let checked = check_delivery(Delivery {
        epoch: 1,
        lane: Lane::Life as i32,
        number: 1,
        sha256: Sha256::digest(bytes).to_vec(),
        body: bytes.to_vec().into(),
    });
    if let Ok(checked) = checked
        && let Ok(batch) = checked.batch
    {
        let again = Batch::decode(checked.body).expect("it was decoded before");
        assert_eq!(*batch, again);
        // What is taken has rows, or a gap in their place.
        let host = Host {
            id: "id".into(),
            name: "name".into(),
        };
        let _ = sumun_lake::rows(&std::sync::Arc::new(host), &batch);
    }
}

#[test]
fn any_log_record() {
    check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        if let Ok((record, body)) = Record::decode(bytes.to_vec().into()) {
            let mut payload = record.encode();
            payload.extend(&body);
            let (again, rest) = Record::decode(payload.into()).expect("it reads back");
            assert_eq!((again, rest), (record, body));
        }
    });
}

#[test]
fn any_signing_request() {
    check!().with_iterations(20_000).for_each(|bytes: &[u8]| {
        let _ = checked_key(bytes);
    });
}
