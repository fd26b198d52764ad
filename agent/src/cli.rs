//! The command line of `sumun-agent`.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Sees what runs on this host through the kernel, judges it by policy and
/// sends it to a collector.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "sumun-agent", version, max_term_width = 100)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until SIGTERM or SIGINT; SIGHUP reloads the policies
    Run(Config),
    /// Get an identity from a collector and write a configuration
    Enroll(Enroll),
    /// Ask the running agent how it is; exit status 1 when none runs
    Status(Asked),
    /// Check the configuration, the certificate and the policies
    CheckConfig(Config),
    /// Say what this kernel offers and what each kind of event would be seen by
    Probe(Probe),
    /// Say what is missing on this host and how to mend it; exit status 1 when the agent cannot do its work
    Doctor(Status),
    /// Write an archive for those who are asked for help: status, log, configuration, no secret
    Bugreport(Bugreport),
    /// End the isolation of this host: it is back on the network until a rule isolates it again
    Lift(Config),
    /// Hold calls that rules deny: a part of `run`, which starts it
    #[command(hide = true)]
    HoldCalls,
    /// Remove everything that an agent which no longer runs left in the kernel, the isolation of the host too
    Release(Config),
    /// Write man pages and shell completions: for those who make packages
    #[command(hide = true)]
    Pages(Pages),
}

/// `sumun-agent pages`.
#[derive(Debug, clap::Args)]
pub struct Pages {
    /// Where to
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// Which configuration.
#[derive(Debug, clap::Args)]
pub struct Config {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/sumun/agent.toml")]
    pub config: PathBuf,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// One JSON object
    Json,
}

/// What vouches for this host in place of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Join {
    /// Amazon, by the instance's identity document
    Ec2,
    /// The cluster, by a token that it projects into the pod
    Kubernetes,
}

/// `sumun-agent enroll`.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("proof").required(true)))]
pub struct Enroll {
    /// Address of the collector
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    pub collector: String,

    /// File with an enrolment token
    #[arg(long, value_name = "FILE", group = "proof")]
    pub token_file: Option<PathBuf>,

    /// Without a token: what vouches for this host, as the collector's [[join]] wants it
    #[arg(long, value_enum, group = "proof")]
    pub join: Option<Join>,

    /// Metadata service of the instance
    #[arg(long, value_name = "IP:PORT", default_value = "169.254.169.254:80")]
    pub metadata: SocketAddr,

    /// File with the token of the pod's service account
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/sumun/token"
    )]
    pub service_account_token: PathBuf,

    /// CA of the collector's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: PathBuf,

    /// Folder for agent.toml, key, certificate and policies; of /etc/sumun, the state is under /var/lib/sumun
    #[arg(long, value_name = "DIR", default_value = "/etc/sumun")]
    pub out: PathBuf,

    /// Replace the identity that stands there already; policies are left as they are
    #[arg(long)]
    pub force: bool,

    /// For machines: succeed where there is an identity already, but for one that has ended, and wait for a collector that is away
    #[arg(long, conflicts_with = "force")]
    pub once: bool,

    /// File with more of the configuration, everything but [agent] and [collector]; with --once it is taken
    /// over again each time
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// Do not install the starter policies, which alert and stop nothing
    #[arg(long)]
    pub no_policies: bool,

    /// With --once, also on a host that is enrolled: install the starter policies if there is no policy at all
    #[arg(long, requires = "once", conflicts_with = "no_policies")]
    pub starter_policies: bool,
}

/// `sumun-agent status`.
#[derive(Debug, clap::Args)]
pub struct Asked {
    /// Which configuration, and how to print.
    #[command(flatten)]
    pub status: Status,

    /// Exit status 1 as well while it starts or stops: for those who wait until it runs
    #[arg(long)]
    pub running: bool,
}

/// `sumun-agent doctor`, and a part of `status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Which configuration.
    #[command(flatten)]
    pub config: Config,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `sumun-agent bugreport`.
#[derive(Debug, clap::Args)]
pub struct Bugreport {
    /// Which configuration.
    #[command(flatten)]
    pub config: Config,

    /// The archive [default: sumun-bugreport-TIME.tar in this folder]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `sumun-agent probe`.
#[derive(Debug, clap::Args)]
pub struct Probe {
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

fn address(text: &str) -> Result<String, String> {
    match crate::config::server_name(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("not HOST:PORT, such as 10.0.0.5:7443 or [fd00::5]:7443".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn an_address_without_a_port_is_wrong_usage() {
        let error = Args::try_parse_from([
            "sumun-agent",
            "enroll",
            "--collector",
            "10.0.0.5",
            "--token-file",
            "t",
            "--ca",
            "c",
        ])
        .expect_err("no port");
        assert_eq!(error.exit_code(), 2);
    }
}
