//! Whatever arrives on a stream or lies in the log is read without a panic,
//! and what is taken can be taken again from the log.

use bolero::check;
use prost::Message;
use sha2::{Digest, Sha256};
use sumun_collector::ingest::check::check_delivery;
use sumun_collector::ingest::record::Record;
use sumun_collector::tenant::ca::checked_key;
use sumun_proto::v1::forward_request::Message as Ask;
use sumun_proto::v1::{Batch, Delivery, ForwardRequest};

#[test]
fn any_message() {
    check!().for_each(|bytes: &[u8]| {
        if let Ok(request) = ForwardRequest::decode(bytes)
            && let Some(Ask::Delivery(delivery)) = request.message
        {
            let _ = check_delivery(delivery);
        }
    });
}

#[test]
fn any_body() {
    check!().for_each(|bytes: &[u8]| {
        let delivery = Delivery {
            epoch: 1,
            lane: i32::from(bytes.first().is_some_and(|byte| *byte > 127)) + 1,
            number: 1,
            sha256: Sha256::digest(bytes).to_vec(),
            body: bytes.to_vec().into(),
        };
        let checked = check_delivery(delivery);
        if let Ok(checked) = checked
            && let Ok(batch) = checked.batch
        {
            let again = Batch::decode(checked.body).expect("it was decoded before");
            assert_eq!(*batch, again);
        }
    });
}

#[test]
fn any_log_record() {
    check!().for_each(|bytes: &[u8]| {
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
    check!().for_each(|bytes: &[u8]| {
        let _ = checked_key(bytes);
    });
}
