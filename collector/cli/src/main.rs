//! `sumunctl`, the command line of the collector's administrators.
//!
//! `main` only wires: parse, run, turn the outcome into the exit status 0
//! (done), 1 (failed) or 2 (wrong usage).
#![forbid(unsafe_code)]

mod agents;
mod args;
mod context;
mod explain;
mod failure;
mod fleet;
mod joins;
mod moment;
mod output;
mod plan;
mod policy;
mod remote;
mod rows;
mod search;
mod show;
mod tokens;
mod tree;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::args::{Alerts, Args, Command, Joins, Policy, Tokens};
use crate::failure::Failure;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                // Nobody may be reading; there is nothing left to tell then.
                let _ = writeln!(std::io::stderr(), "sumunctl: {message}");
            }
            failure.exit_code()
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let Args {
        config,
        output,
        command,
    } = args;
    // What is done offline needs neither a context nor a runtime.
    match &command {
        Command::Policy(Policy::Check(files)) => return policy::check(files, output),
        Command::Policy(Policy::Explain(files)) => return explain::print(files, output),
        Command::Pages(pages) => {
            return sumun_pages::write(Args::command(), "1", &pages.folder)
                .map_err(|error| Failure::failed(error.into(), "cannot write the pages"));
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(error.into(), "cannot start the runtime"))?;
    runtime.block_on(async {
        let remote = remote::Remote::connect(&context::Context::load(&config)?).await?;
        match command {
            Command::Events(args::Events::List(list)) => {
                search::list(remote, search::Kind::Events, list, output).await
            }
            Command::Alerts(Alerts::List(list)) => {
                search::list(remote, search::Kind::Alerts, list, output).await
            }
            Command::Alerts(Alerts::Show(show)) => show::alert(remote, show, output).await,
            Command::Gaps(args::Gaps::List(list)) => {
                search::list(remote, search::Kind::Gaps, list, output).await
            }
            Command::Agents(args::Agents::List) => agents::list(remote, output).await,
            Command::Agents(args::Agents::Show(show)) => agents::show(remote, show, output).await,
            Command::Tree(query) => tree::print(remote, query, output).await,
            Command::Policy(Policy::Check(_) | Policy::Explain(_)) | Command::Pages(_) => Ok(()),
            Command::Policy(Policy::Plan(plan)) => plan::print(remote, plan, output).await,
            Command::Policy(Policy::List(list)) => fleet::list(remote, list, output).await,
            Command::Tokens(Tokens::Create(create)) => tokens::create(remote, create, output).await,
            Command::Joins(Joins::List) => joins::list(remote, output).await,
            Command::Joins(Joins::Log(log)) => joins::log(remote, log, output).await,
            Command::Joins(Joins::Forget(forget)) => joins::forget(remote, forget).await,
        }
    })
}
