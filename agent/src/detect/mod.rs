//! Drives the engine: each event is judged by the rules of the filter
//! generation that let it through.

use std::sync::Arc;
use std::time::Duration;

use sumun_engine::{Engine, Hit};
use sumun_policy::Rate;
use sumun_proto::v1::{Batch, RuleRef, Severity};
use sumun_proto::{Host, View};

/// The rules in force, and those before them until the rings have been read
/// beyond the swap.
#[derive(Debug)]
pub struct Detector {
    host: Host,
    /// Newest last; never more than a few, as each is retired by the cycle that empties the rings.
    generations: Vec<(u32, Arc<Engine>)>,
    hits: Vec<Hit>,
}

impl Detector {
    /// No rules yet.
    #[must_use]
    pub fn new(host: Host) -> Self {
        Self {
            host,
            generations: Vec::new(),
            hits: Vec::new(),
        }
    }

    /// Adds the rules of a generation.
    pub fn load(&mut self, generation: u32, engine: Arc<Engine>) {
        self.generations.push((generation, engine));
    }

    /// Takes the rules of a generation back: the kernel did not take its filter.
    pub fn unload(&mut self, generation: u32) {
        self.generations.retain(|(known, _)| *known != generation);
    }

    /// Forgets all generations but this: no record of another can come.
    pub fn retire(&mut self, current: u32) {
        if self.generations.len() > 1 {
            self.generations.retain(|(known, _)| *known == current);
        }
    }

    /// Judges the last event of a batch. A record of a generation that is not known (from before a
    /// restart) is judged by the newest rules.
    pub fn judge(&mut self, generation: u32, batch: &Batch) -> &[Hit] {
        self.hits.clear();
        if let (Some(engine), Some(event)) =
            (engine(&self.generations, generation), batch.events.last())
        {
            let view = View {
                host: &self.host,
                batch,
                event,
                alert: None,
            };
            engine.evaluate(&view, &mut self.hits);
        }
        &self.hits
    }

    /// What batches say of a rule.
    #[must_use]
    pub fn describe(&self, generation: u32, rule: usize) -> RuleRef {
        engine(&self.generations, generation)
            .and_then(|engine| engine.rules().get(rule))
            .cloned()
            .unwrap_or_else(|| RuleRef {
                policy: "unloaded".into(),
                rule: format!("rule-{}", unloaded(rule)),
                title: "A rule of policies that are no longer loaded".into(),
                severity: Severity::High.into(),
                ..RuleRef::default()
            })
    }

    /// Whether records of a generation are judged by the rules that were loaded when they were made.
    #[must_use]
    pub fn knows(&self, generation: u32) -> bool {
        self.generations
            .iter()
            .any(|(known, _)| *known == generation)
    }

    /// Whether a generation is known and has a rule of this number.
    #[must_use]
    pub fn has(&self, generation: u32, rule: usize) -> bool {
        self.generations
            .iter()
            .any(|(known, engine)| *known == generation && rule < engine.rules().len())
    }

    /// The generation by whose rules records of this one are judged.
    #[must_use]
    pub fn judged_by(&self, generation: u32) -> u32 {
        match self.generations.last() {
            Some((newest, _))
                if self
                    .generations
                    .iter()
                    .all(|(known, _)| *known != generation) =>
            {
                *newest
            }
            _ => generation,
        }
    }

    /// How many alerts of a rule go out one by one.
    #[must_use]
    pub fn rate(&self, generation: u32, rule: usize) -> Option<Rate> {
        engine(&self.generations, generation)?.rate(rule)
    }

    /// Whether a rule that kills means what runs the host and its containers, too.
    #[must_use]
    pub fn is_forced(&self, generation: u32, rule: usize) -> bool {
        engine(&self.generations, generation).is_some_and(|engine| engine.is_forced(rule))
    }

    /// Whether a rule that kills means all that descend from the process, too.
    #[must_use]
    pub fn kills_lineage(&self, generation: u32, rule: usize) -> bool {
        engine(&self.generations, generation).is_some_and(|engine| engine.kills_lineage(rule))
    }

    /// For how long a rule isolates; `None` if it does not, or without an end.
    #[must_use]
    pub fn lasts(&self, generation: u32, rule: usize) -> Option<Duration> {
        engine(&self.generations, generation)?.lasts(rule)
    }

    /// Name of an exception of a rule.
    #[must_use]
    pub fn exception(&self, generation: u32, rule: usize, exception: usize) -> String {
        engine(&self.generations, generation)
            .and_then(|engine| engine.exception(rule, exception))
            .map(str::to_owned)
            .unwrap_or_default()
    }
}

/// The number under which a rule of policies that are no longer loaded is told, and back.
#[must_use]
pub fn unloaded(rule: usize) -> usize {
    usize::MAX - rule
}

fn engine(generations: &[(u32, Arc<Engine>)], generation: u32) -> Option<&Arc<Engine>> {
    generations
        .iter()
        .find(|(known, _)| *known == generation)
        .or(generations.last())
        .map(|(_, engine)| engine)
}
