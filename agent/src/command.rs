//! What each command of `sumun-agent` does.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::{Args, Asked, Command, Enroll, Output, Probe, Status};
use crate::config::Config;
use crate::doctor::{self, report};
use crate::enforce::{fanotify, isolate};
use crate::forward::identity::Identity;
use crate::kernel::{self, KernelConfig};
use crate::pipeline::policies;
use crate::released::{self, Note};
use crate::{enroll, run, status};

/// Runs a command.
///
/// # Errors
/// What went wrong, for people.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Run(at) => run::run(Config::load(&at.config)?).map(|()| ExitCode::SUCCESS),
        Command::Enroll(args) => enrol(args),
        Command::Status(args) => show_status(args),
        Command::CheckConfig(at) => check(&Config::load(&at.config)?),
        Command::Probe(args) => probe(args),
        Command::Doctor(args) => diagnose(args),
        Command::Bugreport(args) => {
            let out = args.out.clone().unwrap_or_else(report::default_name);
            report::write(&args.config.config, &out)
                .with_context(|| format!("cannot write {}", out.display()))?;
            println!("{}: look through it before you send it", out.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::HoldCalls => fanotify::hold_calls(),
        Command::Lift(at) => lift(&Config::load(&at.config)?),
        Command::Release(at) => release(&at.config),
        Command::Pages(args) => sumun_pages::write(Args::command(), "8", &args.folder)
            .with_context(|| format!("cannot write to {}", args.folder.display()))
            .map(|()| ExitCode::SUCCESS),
    }
}

fn enrol(args: &Enroll) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let waiting = |reason: &str| eprintln!("sumun-agent: {reason}; trying again");
    let outcome = runtime.block_on(enroll::enroll(args, &run::host_name(), waiting))?;
    let enrolled = match outcome {
        enroll::Outcome::Enrolled(enrolled) => enrolled,
        enroll::Outcome::Known {
            config,
            changed,
            policies,
        } => {
            let settings = if changed { "; settings taken over" } else { "" };
            println!(
                "enrolled already; configuration: {}{settings}",
                config.display()
            );
            if policies > 0 {
                println!("there was no policy: {policies} starter policies installed");
            }
            return Ok(ExitCode::SUCCESS);
        }
    };
    println!(
        "enrolled as {} of tenant {}; configuration: {}",
        enrolled.agent_id,
        enrolled.tenant,
        enrolled.config.display()
    );
    if enrolled.policies > 0 {
        println!(
            "{} starter policies were written to {}; they alert and stop nothing",
            enrolled.policies,
            args.out.join("policies").display()
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn show_status(args: &Asked) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.status.config.config)?;
    let answer = status::ask(&config.run)?;
    match args.status.output {
        Output::Json => println!("{answer}"),
        Output::Table => print!("{}", status::status_text(&answer)),
    }
    let runs = answer["state"] == status::Phase::Running.name();
    Ok(match args.running && !runs {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn check(config: &Config) -> anyhow::Result<ExitCode> {
    Identity::load(&config.collector)?;
    let loaded = policies::load(&config.policies, &policies::Loaded::default())?;
    for refused in loaded.refused() {
        eprintln!("{}", refused.error);
    }
    for policy in loaded.report(&[], &fanotify::Report::default()).policies {
        let named = policy.policy.unwrap_or_default();
        println!(
            "{}: policy {} version {}, {} rules",
            policy.file,
            named.name,
            named.version,
            policy.rules.len()
        );
    }
    if !loaded.refused().is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    println!("{}: the configuration is sound", config.path.display());
    Ok(ExitCode::SUCCESS)
}

fn probe(args: &Probe) -> anyhow::Result<ExitCode> {
    let report = kernel::probe();
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&report)?),
        Output::Table => print!("{report}"),
    }
    let works = report.object.available && report.hooks.iter().all(|hook| hook.available);
    Ok(if works {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn diagnose(args: &Status) -> anyhow::Result<ExitCode> {
    let told = doctor::diagnose(&args.config.config);
    match args.output {
        Output::Json => println!("{}", serde_json::to_string(&told)?),
        Output::Table => print!("{told}"),
    }
    Ok(if told.works() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn lift(config: &Config) -> anyhow::Result<ExitCode> {
    released::log("end of the host's isolation asked for");
    let answer = status::lift(&config.run).context(
        "the isolation of the host is not ended; where no agent runs, `sumun-agent release` ends it",
    )?;
    match answer["lifted"].as_str() {
        Some(rule) => println!("the host is back on the network; it was isolated for {rule}"),
        None => println!("the host was not isolated"),
    }
    Ok(ExitCode::SUCCESS)
}

fn release(config: &Path) -> anyhow::Result<ExitCode> {
    // Where there is none there is no state, either.
    let state = match config.exists() {
        true => Some(Config::load(config)?.state),
        false => None,
    };
    // Before it is done; a full disk keeps nobody from it.
    let note = state.as_deref().map(Note::of);
    let noted = note.as_ref().map(Note::add).transpose();
    if let Err(error) = &noted {
        eprintln!(
            "sumun-agent: cannot note who releases the host: {error}; the system's log has it"
        );
    }
    released::log("release of the host asked for");
    // First, as it fails beside an agent that runs: what that one holds stays so.
    let removed = kernel::release(&KernelConfig::default());
    if let (Err(kernel::Error::Running { .. }), Some(note), Ok(Some(len))) =
        (&removed, &note, &noted)
    {
        note.take_back(*len)
            .context("cannot take back the note that the host is released")?;
    }
    let removed = removed?;
    if let Some(state) = state {
        let path = isolate::state_file(&state);
        isolate::forget(&path).with_context(|| {
            format!(
                "cannot remove {}: the next agent would cut the host off again",
                path.display()
            )
        })?;
    }
    if removed {
        println!("removed the agent's programs and maps from the kernel");
    } else {
        println!("there was nothing to remove");
    }
    Ok(ExitCode::SUCCESS)
}
