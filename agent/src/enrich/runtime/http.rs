//! One request and its answer in HTTP/1.1, over any stream: what local runtimes and metadata services need, and no more.
//!
//! No redirects, no connection that is kept, no answer larger than is asked for.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest status line with its headers.
const HEAD_MAX: usize = 16 * 1024;

/// A request without a body.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `GET` or `PUT`.
    pub method: &'a str,
    /// From the first slash on.
    pub path: &'a str,
    /// The header `Host`.
    pub host: &'a str,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its number.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

/// Sends a request and reads the answer with a body of at most `most` bytes.
///
/// # Errors
/// The connection broke, or what came is not HTTP, or, of the kind [`io::ErrorKind::FileTooLarge`], too long.
pub async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: Request<'_>,
    most: usize,
) -> io::Result<Answer> {
    let Request {
        method,
        path,
        host,
        headers,
    } = request;
    if path.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
        return Err(bad("the path has bytes that a request cannot hold"));
    }
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if method != "GET" {
        text.push_str("Content-Length: 0\r\n");
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await?;
    read(&mut stream, most).await
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, most: usize) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end;
        }
        if bytes.len() > HEAD_MAX || stream.read_buf(&mut bytes).await? == 0 {
            return Err(bad("the answer has no whole head"));
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| bad("the answer is not HTTP"))?;
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(
                value
                    .parse::<usize>()
                    .map_err(|_| bad("a length that is none"))?,
            );
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.eq_ignore_ascii_case("chunked");
        }
    }
    bytes.drain(..end + 4);
    // A chunk's head is short, but there may be many: their sum is bounded with the body.
    let room = if chunked { 2 * most + HEAD_MAX } else { most };
    if length.is_some_and(|length| length > most) {
        return Err(too_long());
    }
    while length.is_none_or(|length| bytes.len() < length) {
        if bytes.len() > room {
            return Err(too_long());
        }
        if chunked && bytes.ends_with(b"\r\n0\r\n\r\n") {
            break;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            break;
        }
    }
    let body = match length {
        _ if chunked => joined(&bytes).ok_or_else(|| bad("a chunk that is none"))?,
        Some(length) if bytes.len() < length => return Err(bad("the answer ends early")),
        Some(length) => bytes[..length].to_vec(),
        None => bytes,
    };
    if body.len() > most {
        return Err(too_long());
    }
    Ok(Answer { status, body })
}

/// The bytes of all chunks; `None` if they do not end.
fn joined(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let start = end + 2;
        let last = start.checked_add(size)?;
        body.extend_from_slice(bytes.get(start..last)?);
        bytes = bytes.get(last..)?.strip_prefix(b"\r\n")?;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "the answer is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &[u8]) -> io::Result<Answer> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(read(&mut &*bytes, 64))
    }

    #[test]
    fn bodies_are_read_by_length_by_chunks_and_to_the_end() {
        let whole = |text: &str| answer(text.as_bytes()).map(|answer| answer.body);
        let head = "HTTP/1.1 200 OK\r\n";
        let body = whole(&format!("{head}content-length: 3\r\n\r\nabcd")).expect("a body");
        assert_eq!(body, b"abc");
        let chunks = "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let body = whole(&format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}"));
        assert_eq!(body.expect("a body"), b"abcde");
        assert_eq!(whole(&format!("{head}\r\nall")).expect("a body"), b"all");
        assert_eq!(
            answer(b"HTTP/1.1 404 No\r\n\r\n")
                .expect("an answer")
                .status,
            404
        );
    }

    #[test]
    fn what_is_too_long_or_no_answer_is_an_error() {
        let long = "x".repeat(65);
        for text in [
            String::new(),
            "SSH-2.0\r\n\r\n".into(),
            format!("HTTP/1.1 200 OK\r\n\r\n{long}"),
            "HTTP/1.1 200 OK\r\nContent-Length: 65\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort".into(),
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".into(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(),
            format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(10_000)),
        ] {
            assert!(answer(text.as_bytes()).is_err(), "{text:.60}");
        }
        bolero::check!().for_each(|bytes: &[u8]| {
            if let Ok(answer) = answer(bytes) {
                assert!(answer.body.len() <= 64);
            }
        });
    }
}
