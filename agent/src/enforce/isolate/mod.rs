//! Rules that isolate: the host is cut off from the network while one of them holds it, but for what keeps it reachable by its
//! collector.
//!
//! It is done as soon as the event is judged, before the event is written. What is in force is kept in the state directory, so that
//! another agent, also after a reboot, goes on with it and knows for which rule. It ends when its time is over, when
//! the rule is not in force any more, or by `sumun-agent lift`; and in the kernel by itself when no agent has been there for longer
//! than rules that kill and deny hold.

pub mod allow;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sumun_engine::Hit;
use sumun_policy::Mode;
use sumun_policy::time::written;
use sumun_proto::v1::{self, RuleRef, Verdict};

use self::allow::{Allow, dns_servers, mounted_from};
use crate::kernel::isolate::Isolator;
use crate::pipeline::clock::boot_ns;
use crate::pipeline::policies::wall_ns;
use crate::status::Status;

const ISOLATE: &str = "isolate";
const ALERT: &str = "alert";
const ISOLATED: &str = "isolated";
const WOULD_ISOLATE: &str = "would-isolate";
const FAILED: &str = "failed";
const UNDECIDED: &str = "undecided";

/// Who complains in the status.
const TROUBLE: &str = "isolate";
/// The same of what is written down.
const UNSAVED: &str = "isolation.json";
/// When what did not work is tried again: its cgroup may be there then.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// An end that moves by less is left where it is: a rule may match a thousand times a second.
const MOVES_NS: u64 = 1_000_000_000;

/// `[enforce.isolate]`, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whose sockets are cut off: a cgroup of the unified hierarchy, from its root, and those below it.
    pub cgroup: PathBuf,
    /// What goes on, besides what always does.
    pub allow: Vec<Allow>,
    /// The servers of file systems that are mounted over the network stay reachable.
    pub mounts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cgroup: "/".into(),
            allow: Vec::new(),
            mounts: true,
        }
    }
}

/// A rule that holds the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    policy: String,
    rule: String,
    /// For how long it does after its last match, ns; 0: it has no end of its own, here and below.
    lasts_ns: u64,
    /// Until when by the wall clock, for people and across a reboot.
    until_ns: i64,
    /// The same by the kernel's clock, which nobody sets, in this boot.
    until_boot_ns: u64,
}

/// What is in force; in the state directory as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InForce {
    /// One at least. Not more than there are rules that isolate.
    holders: Vec<Holder>,
    /// Wall clock, ns.
    since_ns: i64,
    boot_id: String,
    /// Where the collector was reached; what was found when it began, so that nobody can add to it afterwards.
    collector: Vec<SocketAddr>,
    dns: Vec<IpAddr>,
    mounts: Vec<SocketAddr>,
}

impl InForce {
    /// Who holds the host longest.
    fn last(&self) -> Option<&Holder> {
        let endless = self.holders.iter().find(|holder| holder.until_boot_ns == 0);
        endless.or_else(|| {
            self.holders
                .iter()
                .max_by_key(|holder| holder.until_boot_ns)
        })
    }

    /// The end by the wall clock and by the kernel's; 0: there is none.
    fn until(&self) -> (i64, u64) {
        self.last()
            .map_or((0, 0), |holder| (holder.until_ns, holder.until_boot_ns))
    }

    /// The kernel's clock began anew: what was left goes on, but never longer than a match makes it, whatever the wall clock says.
    fn after_reboot(&mut self, boot_id: &str, wall: i64, boot: u64) {
        self.boot_id = boot_id.to_owned();
        for holder in &mut self.holders {
            if holder.until_ns != 0 {
                let left = holder.until_ns.saturating_sub(wall).max(1).cast_unsigned();
                holder.until_boot_ns = boot.saturating_add(left.min(holder.lasts_ns));
            }
        }
    }
}

/// Cuts the host off.
pub struct Isolation {
    kernel: Isolator,
    settings: Settings,
    status: Arc<Status>,
    /// The state.
    path: PathBuf,
    boot_id: String,
    /// Whether it works here, once it was tried: not before a rule asks for it.
    works: Option<Result<(), String>>,
    /// A rule asks for it, and it did not work: it is tried again then.
    again: Option<Instant>,
    now: Option<InForce>,
    /// What is in force could not be written down.
    unsaved: bool,
    /// Addresses of the collector that the list in force was made with.
    applied: Vec<SocketAddr>,
}

/// A rule that isolates.
#[derive(Clone, Debug)]
pub struct ByRule {
    /// Its name.
    pub rule: RuleRef,
    /// For how long.
    pub lasts: Option<Duration>,
}

impl Isolation {
    /// Goes on with what was in force when the agent ended: once the rules are known, see [`Self::set_rules`].
    #[must_use]
    pub fn open(
        kernel: Isolator,
        settings: Settings,
        status: Arc<Status>,
        state: &Path,
        boot_id: [u8; 16],
    ) -> Self {
        let path = state_file(state);
        let now = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(now) => Some(now),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "cannot read for which rule the host was cut off: it is not any more");
                    None
                }
            },
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(path = %path.display(), %error, "cannot read whether the host was cut off");
                }
                None
            }
        };
        Self {
            kernel,
            settings,
            status,
            path,
            boot_id: hex::encode(boot_id),
            works: None,
            again: None,
            now,
            unsaved: false,
            applied: Vec::new(),
        }
    }

    /// From now on these rules isolate, in `enforce`; with `asked`, some rule does at least in `observe`. Rules that are not in force
    /// any more hold the host no longer, unless a file of policies was `refused` of which nothing is loaded: theirs may be in it.
    pub fn set_rules(&mut self, rules: &HashSet<(String, String)>, asked: bool, refused: bool) {
        if asked {
            self.try_out();
        } else {
            self.again = None;
        }
        let Some(now) = &mut self.now else {
            if self.kernel.keeps_back() {
                tracing::error!(
                    "the host was cut off, and nothing says for which rule: it is not any more"
                );
                self.end("nothing says for which rule");
            }
            return;
        };
        if !refused {
            let before = now.holders.len();
            now.holders
                .retain(|holder| rules.contains(&(holder.policy.clone(), holder.rule.clone())));
            if now.holders.is_empty() {
                self.end("no rule that holds it is in force any more");
                return;
            }
            if now.holders.len() != before {
                self.save();
                // The end may be another: so it is put in force again.
                self.applied.clear();
            }
        }
        self.tick();
    }

    /// Finds out whether the host can be cut off, unless it is known that it can.
    fn try_out(&mut self) {
        if matches!(self.works, Some(Ok(()))) {
            return;
        }
        let tried = self.kernel.try_out();
        self.again = None;
        if let Err(reason) = &tried {
            if self.works.as_ref() != Some(&tried) {
                tracing::warn!(reason, "this host cannot be cut off");
            }
            self.again = Some(Instant::now() + TRY_AGAIN);
        }
        self.works = Some(tried);
    }

    /// Why the host cannot be cut off; `None` if it can, or if no rule has asked.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.works.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// Adds the verdicts of rules that isolate to those of other rules, and cuts the host off if one asks for it.
    pub fn judge(
        &mut self,
        hits: &[Hit],
        verdicts: &mut Vec<Option<Verdict>>,
        dealt_with: bool,
        asked: impl Fn(usize) -> ByRule,
    ) {
        if hits.iter().all(|hit| hit.isolate.is_none()) {
            return;
        }
        verdicts.resize(hits.len(), None);
        for (hit, verdict) in hits.iter().zip(verdicts) {
            let Some(mode) = hit.isolate else { continue };
            let (effective, outcome, reason) = match mode {
                _ if !hit.is_certain() => (
                    ALERT,
                    UNDECIDED,
                    "a value that the rule or an exception asks for is unknown".to_owned(),
                ),
                Mode::Observe => (ALERT, WOULD_ISOLATE, "the policy is in observe".to_owned()),
                Mode::Enforce if dealt_with => (
                    ALERT,
                    FAILED,
                    "this record was dealt with before the agent was restarted, or is older than the rules that are loaded now: it is not acted on".to_owned(),
                ),
                Mode::Enforce => match self.isolate(&asked(hit.rule)) {
                    Ok(reason) => (ISOLATE, ISOLATED, reason),
                    Err(reason) => (ALERT, FAILED, format!("not isolated: {reason}")),
                },
            };
            *verdict = Some(Verdict {
                requested: match mode {
                    Mode::Enforce => "enforce",
                    Mode::Observe => "observe",
                }
                .into(),
                effective: effective.into(),
                outcome: outcome.into(),
                reason,
            });
        }
    }

    /// Cuts the host off for a rule, or moves the end of what is in force. What is to be said of it.
    fn isolate(&mut self, asked: &ByRule) -> Result<String, String> {
        if let Some(reason) = self.trouble() {
            return Err(reason.to_owned());
        }
        let (wall, boot) = (wall_ns(), boot_ns().map_err(|error| error.to_string())?);
        let lasts_ns = asked.lasts.map_or(0, |lasts| {
            u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX).max(1)
        });
        let holder = Holder {
            policy: asked.rule.policy.clone(),
            rule: asked.rule.rule.clone(),
            lasts_ns,
            until_ns: match lasts_ns {
                0 => 0,
                lasts => wall.saturating_add(i64::try_from(lasts).unwrap_or(i64::MAX)),
            },
            until_boot_ns: match lasts_ns {
                0 => 0,
                lasts => boot.saturating_add(lasts),
            },
        };
        let wanted = match &self.now {
            Some(now) => {
                let mut wanted = now.clone();
                let same = |known: &&mut Holder| {
                    (&known.policy, &known.rule) == (&holder.policy, &holder.rule)
                };
                match wanted.holders.iter_mut().find(same) {
                    // Its later end counts, and none is the latest.
                    Some(known) => {
                        let later = known.until_boot_ns != 0
                            && (holder.until_boot_ns == 0
                                || holder.until_boot_ns
                                    > known.until_boot_ns.saturating_add(MOVES_NS));
                        if !later {
                            return Ok(told(now));
                        }
                        *known = holder;
                    }
                    None => wanted.holders.push(holder),
                }
                wanted
            }
            None => {
                let collector = self.collector();
                if collector.is_empty() {
                    return Err("the collector's address is not known yet, and the host would not be reachable by it".to_owned());
                }
                InForce {
                    holders: vec![holder],
                    since_ns: wall,
                    boot_id: self.boot_id.clone(),
                    collector,
                    dns: resolvers(),
                    mounts: if self.settings.mounts {
                        mounts()
                    } else {
                        Vec::new()
                    },
                }
            }
        };
        let said = told(&wanted);
        // Written down first: an agent that is killed in between is followed by one that does it.
        let before = self.now.replace(wanted.clone());
        self.save();
        if let Err(error) = self.force(&wanted) {
            self.now = before;
            self.save();
            return Err(error);
        }
        if before.is_none() {
            tracing::warn!("the host is {said}");
        }
        self.publish();
        Ok(said)
    }

    /// Makes the kernel do as is said.
    fn force(&mut self, wanted: &InForce) -> Result<(), String> {
        let collector = self.reached(wanted);
        let list = allow::list(
            &self.settings.allow,
            &collector,
            &wanted.dns,
            &wanted.mounts,
        );
        let entries: Vec<_> = list.iter().map(Allow::entry).collect();
        self.kernel.isolate(&entries, wanted.until().1)?;
        self.applied = collector;
        Ok(())
    }

    /// Where the collector is: where it was last reached, or else could be.
    fn collector(&self) -> Vec<SocketAddr> {
        let mut found = self.status.peers.all();
        found.truncate(allow::FOUND_MAX);
        found
    }

    /// The same for what is in force, of an agent that has not reached it yet.
    fn reached(&self, now: &InForce) -> Vec<SocketAddr> {
        let mut found = self.collector();
        if !self.status.peers.is_connected() {
            let known = now.collector.iter();
            let more: Vec<_> = known.filter(|known| !found.contains(known)).collect();
            found.extend(more);
        }
        found.truncate(allow::FOUND_MAX);
        found
    }

    /// Once a second: ends what is over, and lets the collector be reached where it is now.
    pub fn tick(&mut self) {
        if self.again.is_some_and(|again| again <= Instant::now()) {
            self.try_out();
        }
        if self.unsaved {
            self.save();
        }
        let Some(mut now) = self.now.clone() else {
            return;
        };
        let Ok(boot) = boot_ns() else {
            return;
        };
        if now.boot_id != self.boot_id {
            now.after_reboot(&self.boot_id, wall_ns(), boot);
        }
        now.holders
            .retain(|holder| holder.until_boot_ns == 0 || holder.until_boot_ns > boot);
        if now.holders.is_empty() {
            self.end("its time is over");
            return;
        }
        let collector = self.reached(&now);
        if self.status.peers.is_connected() {
            now.collector.clone_from(&collector);
        }
        let forced = match self.kernel.is_in_force() && collector == self.applied {
            true => Ok(()),
            false => self.force(&now),
        };
        let error = forced.err();
        if self.status.trouble(TROUBLE, error.clone())
            && let Some(error) = error
        {
            tracing::error!(
                error,
                "the host is to be cut off from the network, and is not as it should be"
            );
        }
        if self.now.as_ref() != Some(&now) {
            self.now = Some(now);
            self.save();
        }
        self.publish();
    }

    /// Ends what is in force by an administrator's word.
    pub fn lift(&mut self) {
        if self.now.is_some() || self.kernel.keeps_back() {
            self.end("lifted by command");
        }
    }

    fn end(&mut self, why: &str) {
        let ended = self.kernel.end();
        if let Err(error) = &ended {
            tracing::error!(error, "the host cannot be let back to the network");
        } else {
            tracing::warn!(why, "the host is not cut off from the network any more");
        }
        self.status.trouble(TROUBLE, ended.err());
        self.now = None;
        self.applied.clear();
        self.save();
        self.publish();
    }

    /// Writes down what is in force, whole or not at all.
    fn save(&mut self) {
        let written = match &self.now {
            None => forget(&self.path),
            Some(now) => {
                let part = self.path.with_extension("part");
                serde_json::to_vec(now)
                    .map_err(io::Error::other)
                    .and_then(|bytes| fs::write(&part, bytes))
                    .and_then(|()| fs::File::open(&part)?.sync_all())
                    .and_then(|()| fs::rename(&part, &self.path))
            }
        };
        self.unsaved = written.is_err();
        let error = written.err().map(|error| {
            format!(
                "cannot write {}, so another agent will not know whether the host is cut off: {error}",
                self.path.display()
            )
        });
        if self.status.trouble(UNSAVED, error.clone())
            && let Some(error) = error
        {
            tracing::error!("{error}");
        }
    }

    fn publish(&self) {
        let told = self.now.as_ref().map(|now| {
            let dropped = self.kernel.dropped();
            let list = allow::list(&self.settings.allow, &self.applied, &now.dns, &now.mounts);
            let holder = now.last();
            v1::Isolation {
                policy: holder.map_or_else(String::new, |holder| holder.policy.clone()),
                rule: holder.map_or_else(String::new, |holder| holder.rule.clone()),
                since_ns: now.since_ns,
                until_ns: now.until().0,
                cgroup: self.settings.cgroup.display().to_string(),
                allowed: list.iter().map(ToString::to_string).collect(),
                dropped_sent: dropped.sent,
                dropped_received: dropped.received,
            }
        });
        self.status.update(|parts| parts.isolation = told);
    }
}

/// Where it is kept.
#[must_use]
pub fn state_file(state: &Path) -> PathBuf {
    state.join("isolation.json")
}

/// Nothing is in force any more, as far as the state directory says.
///
/// # Errors
/// The file cannot be removed.
pub fn forget(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What is said of what is in force.
fn told(now: &InForce) -> String {
    let until = match now.until().0 {
        0 => "until it is lifted or the rule is not in force any more".to_owned(),
        until => format!("until {}", written(until)),
    };
    let rules: Vec<_> = now
        .holders
        .iter()
        .map(|holder| format!("{}/{}", holder.policy, holder.rule))
        .collect();
    format!(
        "cut off since {} for {}, {until}; packets that are forwarded are not kept back",
        written(now.since_ns),
        rules.join(", ")
    )
}

fn resolvers() -> Vec<IpAddr> {
    let mut found = Vec::new();
    // Where a resolver of the host's own asks: resolv.conf names that one then.
    for path in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        for server in dns_servers(&fs::read_to_string(path).unwrap_or_default()) {
            if !found.contains(&server) {
                found.push(server);
            }
        }
    }
    found.truncate(allow::FOUND_MAX);
    found
}

fn mounts() -> Vec<SocketAddr> {
    // The agent may have mounts of its own.
    let text = fs::read_to_string("/proc/1/mountinfo")
        .or_else(|_| fs::read_to_string("/proc/self/mountinfo"));
    let mut found = mounted_from(&text.unwrap_or_default());
    found.truncate(allow::FOUND_MAX);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(rule: &str, lasts_ns: u64, until_ns: i64, until_boot_ns: u64) -> Holder {
        Holder {
            policy: "p".into(),
            rule: rule.into(),
            lasts_ns,
            until_ns,
            until_boot_ns,
        }
    }

    fn in_force(holders: Vec<Holder>) -> InForce {
        InForce {
            holders,
            since_ns: 0,
            boot_id: "before".into(),
            collector: Vec::new(),
            dns: Vec::new(),
            mounts: Vec::new(),
        }
    }

    #[test]
    fn the_longest_of_its_rules_holds_the_host() {
        let (short, long) = (holder("short", 10, 10, 110), holder("long", 50, 50, 150));
        assert_eq!(
            in_force(vec![short.clone(), long.clone()]).until(),
            (50, 150)
        );
        let endless = holder("endless", 0, 0, 0);
        let now = in_force(vec![short, endless, long]);
        assert_eq!(now.until(), (0, 0));
        assert_eq!(now.last().map(|holder| &*holder.rule), Some("endless"));
    }

    #[test]
    fn after_a_reboot_what_was_left_goes_on_whatever_the_clock_says() {
        for (wall, left) in [(40, 10), (60, 1), (-1_000_000, 50)] {
            let mut now = in_force(vec![holder("a", 50, 50, 7), holder("b", 0, 0, 0)]);
            now.after_reboot("after", wall, 1_000);
            assert_eq!(now.holders[0].until_boot_ns, 1_000 + left, "{wall}");
            assert_eq!(now.holders[1].until_boot_ns, 0);
            assert_eq!(now.boot_id, "after");
        }
    }
}
