//! The victim of `make demo`: a web server with a hole. `GET /?COMMAND` hands the
//! command to a shell, as many a real one has done. It listens on loopback only, on the
//! port it writes to the file given as its argument, serves a handful of requests and ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context, Result};

/// Requests until it ends by itself, whatever happens to its starter.
const REQUESTS: usize = 8;

fn main() -> Result<()> {
    let port_file = std::env::args()
        .nth(1)
        .context("a file for the port is missing")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let part = format!("{port_file}.new");
    std::fs::write(&part, listener.local_addr()?.port().to_string())?;
    std::fs::rename(&part, &port_file)?;
    for stream in listener.incoming().take(REQUESTS) {
        if answer(stream?)? {
            break;
        }
    }
    Ok(())
}

/// True when the request asked the server to end.
fn answer(stream: TcpStream) -> Result<bool> {
    // All of it: closing with something unread would reset the connection.
    let mut lines = BufReader::new(stream.try_clone()?.take(16 * 1024)).lines();
    let Some(line) = lines.next().transpose()? else {
        return Ok(false);
    };
    for header in lines {
        if header?.is_empty() {
            break;
        }
    }
    let target = line.split(' ').nth(1).unwrap_or("/");
    let mut stream = stream;
    let body = match target.strip_prefix("/?") {
        Some(command) => {
            Command::new("/bin/sh")
                .args(["-c", &command.replace('+', " ")])
                .output()?
                .stdout
        }
        None => b"welcome\n".to_vec(),
    };
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(&body)?;
    Ok(target == "/end")
}
