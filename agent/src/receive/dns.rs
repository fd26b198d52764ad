//! DNS messages, as far as events tell of them: the question, and the addresses, names and texts of the answer (RFC 1035).
//!
//! The bytes come from anybody. Names are followed through pointers that only ever lead backwards, and everything is bounded; what
//! cannot be read is a flaw, never an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sumun_abi::record::{FLAW_PARTIAL, FLAW_TRUNCATED};
use sumun_proto::text;

/// Bytes of the header.
const HEADER: usize = 12;
/// Bytes of a name, with the lengths of its labels (RFC 1035, 2.3.4).
const NAME_MAX: usize = 255;
/// Most answers of a message that are told; those beyond it are a flaw.
pub const ANSWERS_MAX: usize = 64;
/// Most bytes of a text (a TXT record has strings of at most 255).
const TEXT_MAX: usize = 1024;

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const PTR: u16 = 12;
const MX: u16 = 15;
const TXT: u16 = 16;
const AAAA: u16 = 28;
/// The class of the Internet.
const IN: u16 = 1;

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// It is an answer.
    pub response: bool,
    /// Of an answer, what the server says.
    pub rcode: u8,
    /// Name and type of the first question; of more there are none in practice.
    pub question: Option<(String, u16)>,
    /// Addresses, names and texts of the answer, in the catalogue's form.
    pub answers: Vec<String>,
    /// The addresses among them, each with the seconds that it holds.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Bits of `FLAW_*`.
    pub flaws: u8,
}

/// Reads a message of which all bytes are there; `None` if it has not even a header.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<Message> {
    let header = bytes.get(..HEADER)?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let flags = word(2);
    let mut message = Message {
        response: flags & 0x8000 != 0,
        rcode: (flags & 0xf) as u8,
        ..Message::default()
    };
    // The server has left something out.
    if flags & 0x0200 != 0 {
        message.flaws |= FLAW_TRUNCATED;
    }
    if body(bytes, word(4), word(6), &mut message).is_none() {
        message.flaws |= FLAW_PARTIAL;
    }
    Some(message)
}

fn body(bytes: &[u8], questions: u16, answers: u16, message: &mut Message) -> Option<()> {
    let mut at = HEADER;
    for question in 0..questions {
        let (name, after) = name(bytes, at)?;
        let kind = u16_at(bytes, after)?;
        u16_at(bytes, after + 2)?;
        at = after + 4;
        if question == 0 {
            message.question = Some((name, kind));
        }
    }
    for answer in 0..answers {
        if usize::from(answer) >= ANSWERS_MAX {
            message.flaws |= FLAW_TRUNCATED;
            return Some(());
        }
        let (_, after) = name(bytes, at)?;
        let (kind, class) = (u16_at(bytes, after)?, u16_at(bytes, after + 2)?);
        let ttl = u32::from(u16_at(bytes, after + 4)?) << 16 | u32::from(u16_at(bytes, after + 6)?);
        let len = usize::from(u16_at(bytes, after + 8)?);
        let start = after + 10;
        let data = bytes.get(start..start + len)?;
        at = start + len;
        if class != IN {
            continue;
        }
        let told = match kind {
            A | AAAA => {
                let address = address(kind, data)?;
                message.addresses.push((address, ttl));
                address.to_string()
            }
            CNAME | PTR | NS => self::name(bytes, start)?.0,
            // After a preference.
            MX => self::name(bytes, start + 2)?.0,
            TXT => strings(data, &mut message.flaws),
            _ => continue,
        };
        message.answers.push(told);
    }
    Some(())
}

fn address(kind: u16, data: &[u8]) -> Option<IpAddr> {
    match kind {
        A => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
        // Written as events write addresses: one of IPv4 as such.
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).to_canonical()),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([two[0], two[1]]))
}

/// The name at a place, in lower case and without a final dot, and where what comes after it begins. A dot in a label is
/// `\x2e`.
fn name(bytes: &[u8], at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut after = None;
    let (mut here, mut len) = (at, 0);
    loop {
        let first = *bytes.get(here)?;
        match first >> 6 {
            0 if first == 0 => {
                if name.is_empty() {
                    name.push('.');
                }
                return Some((name, after.unwrap_or(here + 1)));
            }
            0 => {
                let end = here + 1 + usize::from(first);
                let label = bytes.get(here + 1..end)?;
                len += label.len() + 1;
                if len > NAME_MAX {
                    return None;
                }
                if !name.is_empty() {
                    name.push('.');
                }
                push_label(&mut name, label);
                here = end;
            }
            3 => {
                let to = usize::from(u16_at(bytes, here)? & 0x3fff);
                after.get_or_insert(here + 2);
                // Only backwards: so it ends.
                if to >= here {
                    return None;
                }
                here = to;
                len += 1;
                if len > NAME_MAX {
                    return None;
                }
            }
            _ => return None,
        }
    }
}

fn push_label(name: &mut String, label: &[u8]) {
    let lower = label.to_ascii_lowercase();
    for (index, part) in lower.split(|byte| *byte == b'.').enumerate() {
        if index > 0 {
            name.push_str("\\x2e");
        }
        text::push_bytes(name, part);
    }
}

/// The strings of a TXT record, one after the other.
fn strings(data: &[u8], flaws: &mut u8) -> String {
    let mut bytes = Vec::new();
    let mut rest = data;
    while let Some((len, tail)) = rest.split_first() {
        let (string, after) = tail.split_at(tail.len().min(usize::from(*len)));
        bytes.extend_from_slice(string);
        rest = after;
    }
    if bytes.len() > TEXT_MAX {
        bytes.truncate(TEXT_MAX);
        *flaws |= FLAW_TRUNCATED;
    }
    text::from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name in labels.
    fn labels(name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            bytes.push(u8::try_from(label.len()).expect("a short label"));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        bytes
    }

    fn message(flags: u16, name: &str, kind: u16, answers: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0x12, 0x34];
        bytes.extend(flags.to_be_bytes());
        for count in [1, answers.len(), 0, 0] {
            bytes.extend(u16::try_from(count).expect("few").to_be_bytes());
        }
        bytes.extend(labels(name));
        bytes.extend([kind, IN].map(u16::to_be_bytes).concat());
        for (kind, data) in answers {
            // The question's name.
            bytes.extend([0xc0, 12]);
            bytes.extend([*kind, IN, 0, 300].map(u16::to_be_bytes).concat());
            let len = u16::try_from(data.len()).expect("short");
            bytes.extend(len.to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    #[test]
    fn a_question_and_its_answer_are_read() {
        let asked = read(&message(0x0100, "WWW.Example.COM", AAAA, &[])).expect("a message");
        let question = Some(("www.example.com".to_owned(), AAAA));
        let wanted = Message {
            question: question.clone(),
            ..Message::default()
        };
        assert_eq!(asked, wanted);
        let six: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        let answers = [
            (CNAME, labels("edge.example.net")),
            (A, vec![192, 0, 2, 7]),
            (AAAA, six.octets().to_vec()),
            (TXT, b"\x03one\x02\xff2".to_vec()),
            (MX, [vec![0, 10], vec![0xc0, 12]].concat()),
            (99, vec![1]),
        ];
        let bytes = message(0x8183, "www.example.com", AAAA, &answers);
        let told = read(&bytes).expect("a message");
        assert_eq!((told.response, told.rcode, told.flaws), (true, 3, 0));
        assert_eq!(told.question, question);
        assert_eq!(
            told.answers,
            [
                "edge.example.net",
                "192.0.2.7",
                "2001:db8::1",
                "one\\xff2",
                "www.example.com"
            ]
        );
        assert_eq!(
            told.addresses,
            [("192.0.2.7".parse().expect("one"), 300), (six.into(), 300)]
        );
        // Cut anywhere it is partial, and never more than it was.
        for len in HEADER..bytes.len() {
            let cut = read(&bytes[..len]).expect("a message");
            assert_eq!(cut.flaws, FLAW_PARTIAL, "{len}");
            assert_eq!(told.answers[..cut.answers.len()], cut.answers);
        }
        assert_eq!(read(&bytes[..HEADER - 1]), None);
    }

    #[test]
    fn names_that_are_no_names_are_flaws() {
        let with = |name: &[u8]| {
            let mut bytes = message(0, "", A, &[]);
            bytes.truncate(HEADER);
            bytes.extend_from_slice(name);
            bytes.extend([0, 1, 0, 1]);
            read(&bytes).expect("a message")
        };
        let dotted = with(b"\x03a.b\x01\\\0");
        assert_eq!(dotted.question, Some(("a\\x2eb.\\\\".to_owned(), A)));
        assert_eq!(with(b"\0").question, Some((".".to_owned(), A)));
        // A pointer to itself, one forwards, a reserved form, a name that is too long.
        let long = [
            [b"\x3f".as_slice(), &[b'x'; 63]].concat().repeat(4),
            vec![0],
        ]
        .concat();
        for name in [b"\xc0\x0c".as_slice(), b"\xc0\x10", b"\x40\0", &long] {
            let read = with(name);
            assert_eq!((read.question, read.flaws), (None, FLAW_PARTIAL));
        }
    }

    /// Whatever the bytes are: bounded, in the catalogue's form, and the same again.
    #[test]
    fn arbitrary_bytes_are_bounded() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let Some(message) = read(bytes) else {
                assert!(bytes.len() < HEADER);
                return;
            };
            assert!(message.answers.len() <= ANSWERS_MAX);
            assert!(message.addresses.len() <= message.answers.len());
            let names = message.question.iter().map(|(name, _)| name);
            for told in names.chain(&message.answers) {
                assert!(told.len() <= 4 * (TEXT_MAX + NAME_MAX), "{told}");
                assert!(text::to_bytes(told).is_some(), "{told}");
            }
            assert_eq!(read(bytes), Some(message));
        });
    }
}
