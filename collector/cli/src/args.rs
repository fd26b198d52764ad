//! The command line: nouns, verbs and their flags.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::moment::{Moment, Span};

/// Query a Sumun collector and administer it.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage. The last line on standard
/// error of a query is `{"completeness":{...}}`: whether the answer holds
/// everything that happened, and for each host, gap and scope why not.
#[derive(Debug, Parser)]
#[command(name = "sumunctl", version, max_term_width = 100)]
pub(crate) struct Args {
    /// The context file: address, CA and token of the collector
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "SUMUN_CONFIG",
        default_value = "/etc/sumun/admin.toml"
    )]
    pub(crate) config: PathBuf,

    /// How to print: a table for people, one JSON array, or one JSON object a line
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Columns for people
    Table,
    /// One JSON array
    Json,
    /// One JSON object a line, without a limit
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What happened on the hosts
    #[command(subcommand)]
    Events(Events),
    /// What rules found
    #[command(subcommand)]
    Alerts(Alerts),
    /// What is known to be missing, and why
    #[command(subcommand)]
    Gaps(Gaps),
    /// The hosts' agents
    #[command(subcommand)]
    Agents(Agents),
    /// A process with its ancestors and descendants
    Tree(TreeArgs),
    /// Policies: files, offline, and what the hosts have loaded
    #[command(subcommand)]
    Policy(Policy),
    /// Tokens for enrolling agents and for administrators
    #[command(subcommand)]
    Tokens(Tokens),
    /// Agents that joined without a token: what their cloud or cluster vouched for
    #[command(subcommand)]
    Joins(Joins),
    /// Write man pages and shell completions: for those who make packages
    #[command(hide = true)]
    Pages(Pages),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Pages {
    /// Where to
    #[arg(value_name = "FOLDER")]
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Events {
    /// List events, oldest first
    List(ListArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Alerts {
    /// List alerts, oldest first
    List(ListArgs),
    /// Show everything about an alert
    Show(ShowAlert),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Gaps {
    /// List gaps, oldest first
    List(ListArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Agents {
    /// List agents with their state
    List,
    /// Show one agent: hooks, lanes, losses
    Show(ShowAgent),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Check policy files: exit status 1 when one of them would be refused
    Check(PolicyFiles),
    /// Say of each rule which condition is judged where, what it costs and what its effect will be
    Explain(PolicyFiles),
    /// Foresee what would become of each rule on each host, by what their agents have found out about their kernels
    Plan(PlanPolicies),
    /// List the policies that each host has loaded, and what of them is in force
    List(ListPolicies),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Create a token and print it; it cannot be shown again
    Create(CreateToken),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Joins {
    /// List instances and nodes, and the agent that each is bound to
    List,
    /// List who enrolled or was refused, and why, oldest first
    Log(JoinLog),
    /// Let another agent join as this instance or node, as after its disk was replaced
    Forget(ForgetJoin),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct JoinLog {
    /// At most this many rows, the newest; 0 is all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) limit: u32,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ForgetJoin {
    /// As `joins list` shows it
    #[arg(value_name = "SUBJECT")]
    pub(crate) subject: String,
}

/// A search.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) range: Range,

    /// Only rows for which this predicate is true, e.g. 'proc.exe.name == "bash"'
    #[arg(
        long = "where",
        value_name = "PREDICATE",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) predicate: String,

    /// At most this many rows, the newest; 0 is no limit [default: 100, with -o jsonl none]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
}

/// The range of time a query is about.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Range {
    /// From here on: a duration ago (5m, 2h, 3d) or a time in RFC 3339
    #[arg(long, value_name = "WHEN", default_value = "1h")]
    pub(crate) since: Moment,

    /// Up to here, exclusive [default: now]
    #[arg(long, value_name = "WHEN")]
    pub(crate) until: Option<Moment>,

    /// Exit with status 1 when the answer is not complete
    #[arg(long)]
    pub(crate) require_complete: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShowAlert {
    /// The id that `alerts list` shows
    #[arg(value_name = "ID")]
    pub(crate) id: crate::rows::AlertId,

    /// Look from here on: a duration ago (5m, 2h, 3d) or a time in RFC 3339
    #[arg(long, value_name = "WHEN", default_value = "30d")]
    pub(crate) since: Moment,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShowAgent {
    /// Id or host name
    #[arg(value_name = "HOST")]
    pub(crate) host: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TreeArgs {
    /// Id or name of the host
    #[arg(value_name = "HOST")]
    pub(crate) host: String,

    /// Process id, or the exec_id of a program image
    #[arg(value_name = "PID|EXEC_ID")]
    pub(crate) process: u64,

    #[command(flatten)]
    pub(crate) range: Range,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ListPolicies {
    /// Only the host with this id or name
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PlanPolicies {
    #[command(flatten)]
    pub(crate) files: PolicyFiles,

    /// Only the host with this id or name
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,

    /// Exit with status 1 when a rule would do less on some host than it asks for
    #[arg(long)]
    pub(crate) require_effective: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PolicyFiles {
    /// Policy files
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CreateToken {
    /// For an administrator; without it the token enrols agents
    #[arg(long)]
    pub(crate) admin: bool,

    /// How many agents it may enrol
    #[arg(long, value_name = "N", conflicts_with = "admin", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) uses: u32,

    /// How long it is valid (30m, 24h, 90d) [default: 24h; an administrator's does not expire]
    #[arg(long, value_name = "DURATION")]
    pub(crate) valid: Option<Span>,

    /// What to call it
    #[arg(
        long,
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) name: String,
}
