//! `sumun-agent`: parses the command line and hands over.

use std::process::ExitCode;

use clap::Parser as _;
use sumun_agent::cli::Args;

fn main() -> ExitCode {
    match sumun_agent::command::run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sumun-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
