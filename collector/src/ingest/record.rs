//! A record of the durable log: one delivery that was taken, or refused for good.
//!
//! ```text
//! | u32, little-endian: length of the header | header, protobuf | body |
//! ```
//!
//! The body is the batch exactly as the agent sent it. A refused delivery has
//! none: its number is consumed, and that is what has to be remembered. The
//! log checks lengths and bytes, so a record that cannot be parsed was written
//! by a newer version of this program.

use bytes::Bytes;
use prost::Message;
use sumun_proto::v1::Lane;
use uuid::Uuid;

/// A failed decoding.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too short, or of an unknown form.
    #[error("log record is malformed: {0}")]
    Malformed(&'static str),
    /// The header is no protobuf.
    #[error("log record's header is malformed")]
    Header(#[from] prost::DecodeError),
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(int64, tag = "1")]
    received_ns: i64,
    #[prost(string, tag = "2")]
    tenant: String,
    #[prost(bytes = "vec", tag = "3")]
    agent: Vec<u8>,
    #[prost(string, tag = "4")]
    host_name: String,
    #[prost(fixed64, tag = "5")]
    epoch: u64,
    #[prost(int32, tag = "6")]
    lane: i32,
    #[prost(uint64, tag = "7")]
    number: u64,
    #[prost(bytes = "vec", tag = "8")]
    sha256: Vec<u8>,
    #[prost(string, tag = "9")]
    refused: String,
    /// First number that is missing before this one; 0 = none is missing.
    #[prost(uint64, tag = "10")]
    missing_from: u64,
}

/// One delivery in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it arrived, ns since the Unix epoch.
    pub received_ns: i64,
    /// Tenant of the certificate it came with.
    pub tenant: String,
    /// Agent of that certificate.
    pub agent: Uuid,
    /// Name of the host, as the agent gave it.
    pub host_name: String,
    /// Delivery epoch.
    pub epoch: u64,
    /// Lane.
    pub lane: Lane,
    /// Number in epoch and lane.
    pub number: u64,
    /// Hash of the body, as the agent gave it.
    pub sha256: [u8; 32],
    /// Why it was refused; empty = taken.
    pub refused: String,
    /// First number that was lost by damage of this log before this one; 0 = none.
    pub missing_from: u64,
}

impl Record {
    /// What stands in the log before the body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let header = Header {
            received_ns: self.received_ns,
            tenant: self.tenant.clone(),
            agent: self.agent.as_bytes().to_vec(),
            host_name: self.host_name.clone(),
            epoch: self.epoch,
            lane: self.lane as i32,
            number: self.number,
            sha256: self.sha256.to_vec(),
            refused: self.refused.clone(),
            missing_from: self.missing_from,
        };
        // A header is bounded far below 4 GiB: names by the limits of a
        // message, everything else by its type.
        let length = u32::try_from(header.encoded_len()).unwrap_or(u32::MAX);
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(header.encode_to_vec());
        bytes
    }

    /// Reads a record of the log; returns the body too.
    ///
    /// # Errors
    /// It is not of this form.
    pub fn decode(mut payload: Bytes) -> Result<(Self, Bytes), Error> {
        let short = Error::Malformed("too short");
        let Some((length, _)) = payload.split_first_chunk::<4>() else {
            return Err(short);
        };
        let length = u32::from_le_bytes(*length) as usize;
        let mut rest = payload.split_off(4);
        if rest.len() < length {
            return Err(short);
        }
        let body = rest.split_off(length);
        let header = Header::decode(rest)?;
        let agent = Uuid::from_slice(&header.agent).map_err(|_| Error::Malformed("agent"))?;
        let lane = match Lane::try_from(header.lane) {
            Ok(lane @ (Lane::Alert | Lane::Life | Lane::Bulk)) => lane,
            _ => return Err(Error::Malformed("lane")),
        };
        let Ok(sha256) = header.sha256.try_into() else {
            return Err(Error::Malformed("hash"));
        };
        let record = Record {
            received_ns: header.received_ns,
            tenant: header.tenant,
            agent,
            host_name: header.host_name,
            epoch: header.epoch,
            lane,
            number: header.number,
            sha256,
            refused: header.refused,
            missing_from: header.missing_from,
        };
        Ok((record, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_reads_back(
            received_ns: i64, epoch: u64, number: u64, sha256: [u8; 32], agent: u128,
            host_name: String, refused: String, missing_from: u64, body: Vec<u8>,
        ) {
            let record = Record {
                received_ns, tenant: "default".into(), agent: Uuid::from_u128(agent), host_name,
                epoch, lane: Lane::Bulk, number, sha256, refused, missing_from,
            };
            let mut payload = record.encode();
            payload.extend(&body);
            let (read, rest) = Record::decode(payload.into()).expect("reads back");
            prop_assert_eq!(read, record);
            prop_assert_eq!(&rest[..], &body[..]);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = Record::decode(bytes.into());
        }
    }
}
