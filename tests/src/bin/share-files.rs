//! A process and its child with one table of open files: what one opens, both have.
//!
//! `share-files --path FILE --seconds N [--write]`: makes the child, prints its id, waits for a line of input, opens the
//! file, and then stays for so long, as the child does from the start.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use sumun_tests::args::Args;
use sumun_tests::raw;

fn main() -> Result<()> {
    let args = Args::parse()?;
    let path = args.path("path")?;
    let seconds = u32::try_from(args.number("seconds", 60)?)?;
    let child = raw::clone_sharing_files(seconds).context("clone")?;
    println!("{child}");
    std::io::stdout().flush()?;
    std::io::stdin().read_line(&mut String::new())?;
    let mut options = File::options();
    options.read(true).write(args.has("write"));
    let opened = options.open(&path);
    let _file = opened.with_context(|| format!("open {}", path.display()))?;
    std::thread::sleep(Duration::from_secs(seconds.into()));
    Ok(())
}
