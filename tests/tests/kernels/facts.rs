//! What a kernel said.

use std::collections::BTreeMap;

/// What came of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Skipped(String),
}

impl Outcome {
    /// Why it was skipped, if it was.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ok => None,
            Self::Skipped(reason) => Some(reason),
        }
    }
}

/// A kind of event.
pub struct Kind {
    pub name: String,
    pub family: String,
    pub rung: String,
    /// Why it does not come.
    pub reason: Option<String>,
}

/// What makes calls of a kind fail.
pub struct Door {
    pub kind: String,
    pub rung: String,
    /// Why they do not fail.
    pub reason: Option<String>,
}

/// What `probe::what_this_kernel_gives_is_told` has printed.
pub struct Facts {
    pub release: String,
    pub kinds: Vec<Kind>,
    pub doors: Vec<Door>,
    /// Why opens and execs cannot be held for the agent.
    pub fanotify: Option<String>,
    /// By program; of kernels that count them (from 5.16).
    pub instructions: BTreeMap<String, u64>,
}

impl Facts {
    /// Of all programs.
    pub fn total(&self) -> u64 {
        self.instructions.values().sum()
    }
}

/// All that was printed.
pub struct Said {
    /// By module and name.
    pub tests: BTreeMap<(String, String), Outcome>,
    pub facts: Facts,
}

/// Reads what a run that ended well has printed.
pub fn read(text: &str) -> Said {
    let mut facts = None;
    let mut tests = BTreeMap::new();
    // Whose output is being told, and what was skipped.
    let (mut test, mut skipped) = (None, Vec::new());
    for line in text.lines() {
        if let Some((_, json)) = line.split_once("FACTS ") {
            let value =
                serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
            facts = Some(facts_of(&value));
        } else if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|line| line.strip_suffix(" stdout ----"))
        {
            test = name.split_once("::");
        } else if let Some(skip) = line.strip_prefix("SKIPPED ") {
            skipped.extend(test.zip(skip.split_once(": ")));
        } else if let Some((name, _)) = line
            .strip_prefix("test ")
            .and_then(|test| test.split_once(" ... "))
            && let Some((module, name)) = name.split_once("::")
            && name != "actor"
        {
            // A test's child may have printed into the rest of the line.
            tests.insert((module.to_owned(), name.to_owned()), Outcome::Ok);
        }
    }
    for ((module, name), (_, reason)) in skipped {
        let outcome = Outcome::Skipped(reason.to_owned());
        tests.insert((module.to_owned(), name.to_owned()), outcome);
    }
    Said {
        tests,
        facts: facts.unwrap_or_else(|| panic!("no facts: {text}")),
    }
}

fn facts_of(value: &serde_json::Value) -> Facts {
    let word = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let list = |name: &str| value[name].as_array().expect("a list").iter();
    let of = |one: &serde_json::Value, name: &str| word(&one[name]).expect("a word");
    Facts {
        release: of(value, "release"),
        kinds: list("kinds")
            .map(|one| Kind {
                name: of(one, "kind"),
                family: of(one, "family"),
                rung: of(one, "rung"),
                reason: word(&one["reason"]),
            })
            .collect(),
        doors: list("doors")
            .map(|one| Door {
                kind: of(one, "kind"),
                rung: of(one, "rung"),
                reason: word(&one["reason"]),
            })
            .collect(),
        fanotify: word(&value["fanotify"]),
        instructions: value["instructions"]
            .as_object()
            .expect("counts by name")
            .iter()
            .filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
            .collect(),
    }
}
