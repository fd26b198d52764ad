//! Rules: read again, swapped in all the places that judge, kept in force, and told of whom they are about.

use sumun_proto::catalogue::kind_name;

use super::{Pipeline, Reload};
use crate::enforce::fanotify::Keeper;
use crate::enforce::scope;
use crate::kernel::{Known, cgroup, heap};
use crate::pipeline::clock::boot_ns;
use crate::pipeline::core::Core;
use crate::pipeline::policies::{self, Loaded};

/// At least this between two looks for exceptions that have expired, ns.
const EXPIRE_EVERY_NS: u64 = 1_000_000_000;
const POLICIES: &str = "policies";
const EXPIRED: &str = "exceptions";
const DENY: &str = "deny";

impl Pipeline {
    /// Begins to read the policies again. Long lists take a good part of a second: the rings go on being read.
    pub(super) fn begin_reload(&self) -> Reload {
        let (directory, before) = (self.policies.clone(), self.loaded.clone());
        std::thread::spawn(move || {
            let read = policies::load(&directory, &before);
            // What reading has taken is several times what is kept.
            heap::give_back();
            read
        })
    }

    /// Takes the policies that were read; a bad file leaves the rules that were loaded from it.
    pub(super) fn reload(&mut self, read: Reload) {
        let applied = match read.join() {
            Ok(Ok(loaded)) => self
                .apply(loaded, false)
                .map_err(|error| error.context("the kernel does not take the new filter")),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(anyhow::anyhow!(
                "the thread that reads them panicked; see the log"
            )),
        };
        match applied {
            Ok(()) => {
                self.status.trouble(POLICIES, None);
                tracing::info!(hash = %self.loaded.hash(), rules = self.loaded.rules(), "policies are loaded");
            }
            Err(error) => {
                let error = format!("{error:#}; the loaded policies stay");
                tracing::error!(error, "the policies are not reloaded");
                self.status.trouble(POLICIES, Some(error));
            }
        }
        self.publish();
    }

    /// Swaps filter and rules; the scopes that change are recorded at the swap.
    pub(super) fn apply(&mut self, mut loaded: Loaded, first: bool) -> anyhow::Result<()> {
        let generation = self.generation.wrapping_add(1);
        // Known before the kernel can stamp a record with it.
        self.core.detector.load(generation, loaded.engine());
        // From before the rules ask.
        let points = self.kernel.points();
        self.asked
            .begin(&mut self.core.changes, points, loaded.plan());
        let before_ns = boot_ns()?;
        let verdicts = loaded.verdicts();
        let Core {
            tree,
            untold,
            workloads,
            scopes,
            ..
        } = &mut self.core;
        let mut left_out = 0;
        let mut scoped = scope::Plan::default();
        let known = || {
            let (processes, more) = untold.everyone(tree, verdicts);
            left_out = more;
            let (plan, cgroups) = scopes.everyone(workloads, verdicts);
            scoped = plan;
            Known { processes, cgroups }
        };
        match self
            .kernel
            .set_rules(loaded.plan(), verdicts, generation, known)
        {
            Ok(swapped) => {
                let unscoped = self.core.scopes.swap(scoped, swapped.unscoped);
                if unscoped > 0 {
                    tracing::warn!(
                        cgroups = unscoped,
                        "the kernel has no room for whose all cgroups are: rules that ask for workloads are judged late there"
                    );
                }
                if swapped.late {
                    let reason =
                        "the texts of the rules that kill need more room than the kernel's map has";
                    tracing::warn!("{reason}: what they name is killed after it has started");
                    loaded.without_kernel(reason);
                }
                if swapped.unseeded + left_out > 0 {
                    tracing::warn!(
                        processes = swapped.unseeded + left_out,
                        "the kernel has no room for the ancestry of all processes: rules that ask for ancestors kill some after they have started"
                    );
                }
                for kind in swapped.widened {
                    tracing::warn!(
                        kind = kind_name(kind),
                        "the rules need more room than the kernel's filter has; every event of the kind is sent"
                    );
                }
            }
            Err(error) => {
                self.core.detector.unload(generation);
                self.asked.end(&mut self.core.changes, false);
                return Err(error.into());
            }
        }
        let after_ns = boot_ns()?;
        self.asked.end(&mut self.core.changes, true);
        self.core.tree.keep_writers(loaded.plan().writers);
        self.generation = generation;
        self.loaded = loaded;
        let (rules, asked) = self.loaded.isolating();
        let refused = self
            .loaded
            .refused()
            .iter()
            .any(|file| file.kept.is_empty());
        self.core.isolation.set_rules(&rules, asked, refused);
        let held = !self.loaded.held().is_empty();
        if let Err(error) = self.unsaid.set(held || self.unsaid.is_left()) {
            tracing::warn!(%error, "cannot write that calls are held: if the agent is killed, nothing says that denied calls may be missing");
        }
        self.hold_calls(generation);
        if let Err(error) = self.applied.write(generation, self.loaded.hash()) {
            tracing::warn!(%error, "cannot write which rules are applied: after a restart nothing is killed for what is recorded until then");
        }
        if first {
            return Ok(());
        }
        self.scope(before_ns, after_ns);
        Ok(())
    }

    /// Says what is collected, if it is something else than before.
    pub(super) fn scope(&mut self, before_ns: u64, after_ns: u64) {
        let hooks = self.kernel.hooks();
        let mut scopes = self.loaded.scopes(hooks, self.generation, after_ns);
        policies::narrow(&mut scopes, &self.standing.report.blind);
        for scope in policies::changes(&self.scopes, &scopes, before_ns) {
            self.core.life.open().scope(scope);
        }
        self.scopes = scopes;
    }

    /// Hands the rules by which calls are held, and what is known for them, to whoever holds them.
    pub(super) fn hold_calls(&mut self, generation: u32) {
        let rules = self.loaded.held();
        let Core {
            workloads, scopes, ..
        } = &mut self.core;
        let questions = Keeper::questions(rules);
        let cgroups = scopes.hold(workloads, &questions);
        let hierarchy = cgroup::hierarchy(self.kernel.cgroup_controller());
        let hierarchy = hierarchy
            .inspect_err(|error| tracing::warn!(%error, "whose a process is that opens a file cannot be told"))
            .ok();
        self.keeper
            .set(rules, generation, &self.host, (hierarchy, cgroups));
    }

    /// Says once of each exception that it has expired; the engine judges that for each event by itself,
    /// the kernel is given its rules anew. It is also told that there is an agent.
    pub(super) fn expire(&mut self) {
        let now_ns = policies::wall_ns();
        let (from_ns, passed) = (self.expired_through_ns, now_ns - self.expired_through_ns);
        // Also after the clock was set back.
        if passed.unsigned_abs() < EXPIRE_EVERY_NS {
            return;
        }
        self.expired_through_ns = now_ns;
        if let Err(error) = self.hold() {
            tracing::error!(
                error = format!("{error:#}"),
                "the rules that kill may expire"
            );
        }
        self.core.isolation.tick();
        self.loaded.tell_expired(from_ns, now_ns);
        // Also when a clock that was set back makes exceptions apply again, and until it is done.
        let Some(renewed) = self.loaded.renewed(now_ns) else {
            self.status.trouble(EXPIRED, None);
            return;
        };
        let applied = self.apply(renewed, false);
        let error = applied.err().map(|error| {
            format!("{error:#}; the kernel goes on with exceptions that have expired")
        });
        if self.status.trouble(EXPIRED, error.clone())
            && let Some(error) = error
        {
            tracing::error!(error, "the rules that kill are not swapped");
        }
        self.publish();
    }

    /// The kernel's rules hold from now on for as long as is asked for.
    pub(super) fn hold(&mut self) -> anyhow::Result<()> {
        let hold_ns = u64::try_from(self.hold.as_nanos()).unwrap_or(u64::MAX);
        Ok(self.kernel.hold_until(boot_ns()?.saturating_add(hold_ns))?)
    }

    /// Says when rules that deny are carried out otherwise than before.
    pub(super) fn look_at_keeper(&mut self) {
        let now = self.keeper.report();
        let same = (&now.trouble, &now.missing) == (&self.holding.trouble, &self.holding.missing);
        self.holding = now;
        if same {
            return;
        }
        let trouble = self.holding.trouble.clone();
        if self.status.trouble(DENY, trouble.clone()) {
            match trouble {
                Some(trouble) => tracing::error!(trouble, "nothing is denied"),
                None => tracing::info!("rules that deny are carried out"),
            }
        }
        for missing in &self.holding.missing {
            tracing::warn!(
                rule = missing.rule,
                reason = missing.reason,
                "a rule that denies is not carried out"
            );
        }
        self.publish();
    }

    /// Tells the kernel whose cgroups are.
    pub(super) fn tell_scopes(&mut self) {
        let Core {
            workloads, scopes, ..
        } = &mut self.core;
        scopes.tell(&mut self.kernel, workloads);
        self.keeper.tell(scopes.take_told());
    }

    /// Tells the kernel of the ancestors that it has asked for.
    pub(super) fn tell(&mut self, emptied: bool) {
        let Core { tree, untold, .. } = &mut self.core;
        let left_out = untold.tell(&mut self.kernel, tree, self.loaded.verdicts(), emptied);
        if left_out > 0 {
            tracing::debug!(
                left_out,
                "the kernel has no room for the ancestry of some processes"
            );
        }
    }
}
