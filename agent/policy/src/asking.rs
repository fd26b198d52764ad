//! A predicate for who knows of a process the path of its cgroup, but nothing of what runtimes and the cloud tell.
//!
//! What the path tells (container, unit, pod) is judged as it stands. Each single condition that reads more is a question with a number:
//! somebody else answers it for each cgroup beforehand, and only the answers are needed when a call is judged.

use sumun_proto::view::facts::{is_of_host, is_of_workload};
use sumun_proto::{FieldId, View};

use crate::ir::{Expr, Predicate};
use crate::matcher::Matcher;
use crate::outcome::Verdict;
use crate::verdict::scope::{is_of_scope, negated};

/// Most questions of all predicates together.
pub const QUESTIONS_MAX: usize = 64;

/// Whether more than the path of its cgroup is needed to know a field of a process: its number, or what others tell.
fn is_told(field: FieldId) -> bool {
    is_of_workload(field)
        || is_of_host(field)
        || matches!(field, FieldId::WorkloadId | FieldId::K8sPodUid)
}

/// A single condition that sets what is told beside a value of the call itself: what is told, and the other. Whoever answers questions
/// does so before there is a call, and whoever judges the call has answers and not what is told: nobody has both.
#[must_use]
pub fn mixed(expr: &Expr) -> Option<(FieldId, FieldId)> {
    match expr {
        Expr::Not(inner) => mixed(inner),
        Expr::And(parts) | Expr::Or(parts) => parts.iter().find_map(mixed),
        single => {
            let (mut told, mut other) = (None, None);
            single.visit(&mut |field| {
                if is_told(field) {
                    told = Some(field);
                } else if !is_of_scope(field) {
                    other = Some(field);
                }
            });
            told.zip(other)
        }
    }
}

/// A predicate, taken apart.
#[derive(Debug)]
pub struct Asking {
    whole: Part,
}

#[derive(Debug)]
enum Part {
    All(Vec<Part>),
    Any(Vec<Part>),
    Question(usize),
    One(Matcher),
    /// Nobody can tell ([`mixed`]).
    Unknown,
}

/// Questions by their numbers; each is there once.
#[derive(Clone, Debug, Default)]
pub struct Questions(Vec<Predicate>);

impl Questions {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Predicate] {
        &self.0
    }

    fn number(&mut self, asked: Predicate) -> usize {
        let known = self.0.iter().position(|known| *known == asked);
        known.unwrap_or_else(|| {
            self.0.push(asked);
            self.0.len() - 1
        })
    }
}

impl Asking {
    /// Takes a predicate apart, and adds its questions to those of others.
    #[must_use]
    pub fn new(predicate: &Predicate, questions: &mut Questions) -> Self {
        Self {
            whole: Part::new(predicate.expr(), true, questions),
        }
    }

    /// What it says of an event, with the answers of the cgroup of its process; `None` is unknown.
    #[must_use]
    pub fn matches(&self, view: &View<'_>, answer: &impl Fn(usize) -> Option<bool>) -> Verdict {
        self.whole.matches(view, answer)
    }
}

impl Part {
    /// That an expression is true for certain, or false for certain: an error is neither.
    fn new(expr: &Expr, positive: bool, questions: &mut Questions) -> Self {
        let mut told = false;
        expr.visit(&mut |field| told |= is_told(field));
        let one = || match positive {
            true => Predicate::new(expr.clone()),
            false => Predicate::new(negated(expr)),
        };
        if !told {
            return Self::One(Matcher::compile(&one()));
        }
        let mut all = |parts: &[Expr]| {
            let parts = parts
                .iter()
                .map(|part| Self::new(part, positive, questions));
            parts.collect()
        };
        match (expr, positive) {
            (Expr::Not(inner), _) => Self::new(inner, !positive, questions),
            (Expr::And(parts), true) | (Expr::Or(parts), false) => Self::All(all(parts)),
            (Expr::Or(parts), true) | (Expr::And(parts), false) => Self::Any(all(parts)),
            (single, _) if mixed(single).is_some() => Self::Unknown,
            _ => Self::Question(questions.number(one())),
        }
    }

    fn matches(&self, view: &View<'_>, answer: &impl Fn(usize) -> Option<bool>) -> Verdict {
        // The one that decides, else a doubt.
        let join = |parts: &[Self], decides: Verdict, else_: Verdict| {
            let mut whole = else_;
            for part in parts {
                match part.matches(view, answer) {
                    verdict if verdict == decides => return decides,
                    Verdict::Undecided => whole = Verdict::Undecided,
                    _ => {}
                }
            }
            whole
        };
        match self {
            Self::All(parts) => join(parts, Verdict::NoMatch, Verdict::Match),
            Self::Any(parts) => join(parts, Verdict::Match, Verdict::NoMatch),
            Self::Question(number) => match answer(*number) {
                Some(true) => Verdict::Match,
                Some(false) => Verdict::NoMatch,
                None => Verdict::Undecided,
            },
            Self::One(matcher) => matcher.matches(view),
            Self::Unknown => Verdict::Undecided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sumun_proto::Host;
    use sumun_proto::v1::{Batch, Event, Image, Workload};

    fn judged(text: &str, answer: Option<bool>) -> (Vec<String>, Verdict) {
        let predicate = Predicate::parse(text, &Default::default()).expect("a predicate");
        let mut questions = Questions::default();
        let asking = Asking::new(&predicate, &mut questions);
        let batch = Batch {
            images: vec![Image {
                workload: 1,
                uid: 7,
                ..Image::default()
            }],
            workloads: vec![Workload {
                unit: "web.service".into(),
                ..Workload::default()
            }],
            ..Batch::default()
        };
        let event = Event {
            image: 1,
            ..Event::default()
        };
        let view = View {
            host: &Host::default(),
            batch: &batch,
            event: &event,
            alert: None,
        };
        let asked = questions.all().iter().map(ToString::to_string).collect();
        (asked, asking.matches(&view, &|_| answer))
    }

    #[test]
    fn only_what_others_tell_is_asked() {
        let (yes, no) = (Some(true), Some(false));
        let app = r#""app=cart" in k8s.labels"#;
        for (text, asked, answer, verdict) in [
            (
                r#"unit == "web.service""#.to_owned(),
                0,
                None,
                Verdict::Match,
            ),
            (app.to_owned(), 1, None, Verdict::Undecided),
            (app.to_owned(), 1, yes, Verdict::Match),
            (format!("{app} && proc.uid == 7"), 1, yes, Verdict::Match),
            (format!("{app} && proc.uid == 8"), 1, None, Verdict::NoMatch),
            (format!("{app} || proc.uid == 7"), 1, None, Verdict::Match),
            (format!("{app} || {app}"), 1, no, Verdict::NoMatch),
            (
                format!("!({app} || proc.uid == 7)"),
                1,
                yes,
                Verdict::NoMatch,
            ),
            (
                format!("!({app} && proc.uid == 7)"),
                1,
                None,
                Verdict::Undecided,
            ),
        ] {
            let (questions, judged) = judged(&text, answer);
            assert_eq!((questions.len(), judged), (asked, verdict), "{text}");
        }
        // Whoever answers knows no call, and who knows the call no names: nobody can say.
        for text in [
            "proc.exe.name == container.name",
            "!(proc.exe.name == container.name)",
        ] {
            assert_eq!(judged(text, no), (Vec::new(), Verdict::Undecided), "{text}");
        }
        // What is absent is neither equal nor unequal: the question is the other one, and no answer to the one answers it.
        let (questions, _) = judged(r#"!(container.name == "web") && proc.uid == 7"#, yes);
        assert_eq!(questions.len(), 1);
        assert!(
            questions[0].starts_with('!') || questions[0].contains("!="),
            "{questions:?}"
        );
    }
}
