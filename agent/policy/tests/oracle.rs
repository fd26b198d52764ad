//! The matcher means what CEL means: held against the interpreter of the
//! library that also parses, on random predicates and events.

#[path = "common/mod.rs"]
mod common;
#[path = "common/glob.rs"]
mod glob;

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, Program, Value as Cel};
use common::{CAPABILITY_SETS, Case, Dice, KINDS};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sumun_policy::{Lists, Matcher, Predicate, Verdict};
use sumun_proto::view::{CAPABILITIES, ancestor_value};
use sumun_proto::{FIELDS, FieldId, FieldType, Value, View};

/// The functions of predicates that CEL does not have.
fn functions() -> Context<'static, 'static> {
    let mut context = Context::default();
    context
        .add_function("cidr", |net: Arc<String>| net)
        .expect("cidr is free");
    context
        .add_function(
            "containsIP",
            |This(net): This<Arc<String>>, address: Arc<String>| -> bool {
                let net: ipnet::IpNet = net.parse().expect("a network");
                net.contains(&address.parse::<std::net::IpAddr>().expect("an address"))
            },
        )
        .expect("containsIP is free");
    context
        .add_function("lowerAscii", |This(text): This<Arc<String>>| -> String {
            text.to_ascii_lowercase()
        })
        .expect("lowerAscii is free");
    context
        .add_function(
            "glob",
            |This(text): This<Arc<String>>, glob: Arc<String>| -> bool {
                glob::matches(&glob, &text)
            },
        )
        .expect("glob is free");
    context
        .add_function("timestamp", |text: Arc<String>| -> i64 {
            sumun_policy::time::parse(&text).expect("a time")
        })
        .expect("timestamp is free");
    context
}

/// The event as CEL sees it: nested maps, absent fields left out.
fn event<'a>(functions: &'a Context<'_, 'static>, view: &View<'_>) -> Context<'a, 'static> {
    let mut root = Tree::default();
    for field in FIELDS {
        if field.ty == FieldType::ImageList {
            let ancestors = view
                .ancestors()
                .map(|image| {
                    let mut item = Tree::default();
                    for (name, id) in sumun_policy::ir::ANCESTOR_FIELDS {
                        item.put(name, cel_value(name, ancestor_value(image, *id)));
                    }
                    item.value()
                })
                .collect::<Vec<_>>();
            root.put(field.name, Some(Cel::List(Arc::new(ancestors))));
        } else {
            root.put(field.name, cel_value(field.name, view.get(field.id)));
        }
    }
    let mut context = functions.new_inner_scope();
    for (name, tree) in root.branches {
        context.add_variable_from_value(name, tree.value());
    }
    for (name, value) in root.leaves {
        context.add_variable_from_value(name, value);
    }
    context
}

#[derive(Default)]
struct Tree {
    branches: HashMap<String, Tree>,
    leaves: HashMap<String, Cel>,
}

impl Tree {
    fn put(&mut self, name: &str, value: Option<Cel>) {
        match name.split_once('.') {
            // The group is there even when the field is not.
            Some((first, rest)) => self
                .branches
                .entry(first.to_owned())
                .or_default()
                .put(rest, value),
            None => {
                if let Some(value) = value {
                    self.leaves.insert(name.to_owned(), value);
                }
            }
        }
    }

    fn value(self) -> Cel {
        let mut map = self.leaves;
        for (name, tree) in self.branches {
            map.insert(name, tree.value());
        }
        Cel::from(map)
    }
}

fn cel_value(name: &str, value: Value<'_>) -> Option<Cel> {
    Some(match value {
        // To CEL it is a list of their names.
        Value::Int(set) if CAPABILITY_SETS.contains(&name) => {
            let set = CAPABILITIES
                .iter()
                .filter(|(bit, _)| set & bit.cast_signed() != 0);
            Cel::List(Arc::new(
                set.map(|(_, name)| Cel::from((*name).to_owned())).collect(),
            ))
        }
        Value::Absent => return None,
        Value::Unknown => panic!("the oracle knows no unknown values: {name}"),
        Value::Bool(value) => Cel::Bool(value),
        Value::Int(value) | Value::Time(value) => Cel::Int(value),
        Value::Str(text) => Cel::from(text.into_owned()),
        Value::List(items) => {
            assert!(items.complete, "the oracle knows no unknown values");
            Cel::List(Arc::new(
                items
                    .iter()
                    .map(|item| Cel::from(item.into_owned()))
                    .collect(),
            ))
        }
    })
}

fn oracle(program: &Program, context: &Context<'_, '_>) -> bool {
    matches!(program.execute(context), Ok(Cel::Bool(true)))
}

/// Predicates of each test.
const PREDICATES: u32 = 3600;
/// Events for each predicate.
const EVENTS: usize = 32;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: PREDICATES,
        max_shrink_iters: 1000,
        max_global_rejects: 10 * PREDICATES,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What was compared, so that a test which compares too little fails.
#[derive(Default)]
struct Counts {
    cases: Cell<u64>,
    matched: Cell<u64>,
    of_globs: Cell<u64>,
    of_lower_case: Cell<u64>,
}

impl Counts {
    fn add(&self, text: &str, matched: bool) {
        let one = |count: &Cell<u64>, yes: bool| count.set(count.get() + u64::from(yes));
        one(&self.cases, true);
        one(&self.matched, matched);
        one(&self.of_globs, text.contains(".glob("));
        one(&self.of_lower_case, text.contains(".lowerAscii()"));
    }

    /// Prints the counts where they are seen also when the test passes.
    fn told(&self, what: &str) {
        let Counts {
            cases,
            matched,
            of_globs,
            of_lower_case,
        } = self;
        let (cases, matched) = (cases.get(), matched.get());
        let (globs, lower) = (of_globs.get(), of_lower_case.get());
        let _ = writeln!(
            std::io::stderr(),
            "{what}: {cases} cases, {matched} of them true, {globs} with a glob, {lower} in lower case"
        );
        assert!(cases >= 100_000, "{cases} cases");
        for count in [matched, cases - matched, globs, lower] {
            assert!(count > cases / 20, "{count} of {cases}");
        }
    }
}

/// 3,600 predicates on 32 events each, as written and in canonical form.
#[test]
fn matcher_and_interpreter_agree() {
    let counts = Counts::default();
    let functions = functions();
    let shapes = proptest::collection::vec(any::<u8>(), 0..120);
    let bytes = proptest::collection::vec(any::<u8>(), 60);
    let events = proptest::collection::vec(bytes, EVENTS);
    let run = TestRunner::new(config()).run(&(shapes, events), |(shape, events)| {
        let text = common::predicate(&mut Dice::new(&shape), 3);
        let predicate = match Predicate::parse(&text, &Lists::new()) {
            Ok(predicate) => predicate,
            Err(problems) => panic!("{text}: {problems:?}"),
        };
        let canonical = predicate.to_string();
        let again = Predicate::parse_canonical(&canonical);
        prop_assert_eq!(again.as_ref(), Ok(&predicate), "{}", canonical);
        let matcher = Matcher::compile(&predicate);
        let written = Program::compile(&text).expect("it was parsed before");
        let normal = Program::compile(&canonical).expect("it was parsed before");
        for bytes in &events {
            let mut dice = Dice::new(bytes);
            let kind = dice.pick(KINDS);
            let case = common::event(&mut dice, kind, false);
            // An event without an image has an unknown ancestry: the interpreter cannot say that.
            if case.view().image().is_none() && text.contains("proc.ancestors") {
                continue;
            }
            let verdict = matcher.matches(&case.view());
            prop_assert_ne!(verdict, Verdict::Undecided);
            let context = event(&functions, &case.view());
            let expected = oracle(&written, &context);
            prop_assert_eq!(
                verdict == Verdict::Match,
                expected,
                "{} on {:?}",
                text,
                case
            );
            prop_assert_eq!(
                oracle(&normal, &context),
                expected,
                "{} on {:?}",
                canonical,
                case
            );
            counts.add(&text, expected);
        }
        Ok(())
    });
    common::passed(run);
    counts.told("matcher against interpreter");
}

/// An unknown value stands for every value: what is decided with it
/// stays so whatever it turns out to be.
#[test]
fn what_is_decided_does_not_depend_on_the_unknown() {
    let counts = Counts::default();
    let shapes = proptest::collection::vec(any::<u8>(), 0..120);
    let bytes = || proptest::collection::vec(any::<u8>(), 60);
    let events = proptest::collection::vec((bytes(), bytes()), EVENTS);
    let run = TestRunner::new(config()).run(&(shapes, events), |(shape, events)| {
        let text = common::predicate(&mut Dice::new(&shape), 3);
        // The lists of flaws are known, and change when the unknown is filled.
        prop_assume!(!text.contains("flaws"));
        let predicate = Predicate::parse(&text, &Lists::new()).expect("well-typed");
        let matcher = Matcher::compile(&predicate);
        for (event, filling) in &events {
            let mut dice = Dice::new(event);
            let kind = dice.pick(KINDS);
            let case = common::event(&mut dice, kind, true);
            let verdict = matcher.matches(&case.view());
            let filled = fill(case.clone(), &mut Dice::new(filling));
            let known = matcher.matches(&filled.view());
            if verdict != Verdict::Undecided {
                prop_assert_eq!(known, verdict, "{} on {:?} filled {:?}", text, case, filled);
            }
            counts.add(&text, known == Verdict::Match);
        }
        Ok(())
    });
    common::passed(run);
    counts.told("unknown against filled");
}

/// The event with everything unknown replaced by something known.
fn fill(mut case: Case, dice: &mut Dice<'_>) -> Case {
    use sumun_abi::event::file::{OPEN_TRUNCATE, OPEN_TRUNCATE_UNKNOWN};
    const UNKNOWN: u32 = 0b1011;
    for image in &mut case.batch.images {
        if image.exe_flaws & UNKNOWN != 0 {
            // A truncated path has lost its start, never its name.
            let name = image.exe_path.rsplit('/').next().unwrap_or("").to_owned();
            image.exe_path = if image.exe_flaws & 0b1010 == 0 {
                format!("{}/{name}", dice.pick(&["/bin", "/etc/ssh", ""]))
            } else {
                dice.pick(common::PATHS).to_owned()
            };
            image.exe_flaws &= !UNKNOWN;
        }
        if image.args_flaws & UNKNOWN != 0 {
            image.args.pop();
            for _ in 0..dice.roll(3) {
                image.args.push(dice.pick(&["-c", "x", "sh"]).to_owned());
            }
            image.args_flaws = 0;
        }
    }
    if let Some(file) = &mut case.event.file {
        if file.flaws & 0b1011 != 0 {
            let name = file
                .path
                .as_deref()
                .map(|path| path.rsplit('/').next().unwrap_or("").to_owned());
            file.path = Some(match name {
                Some(name) if file.flaws & 0b1010 == 0 => format!("/etc/{name}"),
                _ => dice.pick(common::PATHS).to_owned(),
            });
            file.flaws &= !0b1011;
        }
        if file.flags & OPEN_TRUNCATE_UNKNOWN != 0 {
            file.flags &= !(OPEN_TRUNCATE_UNKNOWN | OPEN_TRUNCATE);
            if dice.chance(8) {
                file.flags |= OPEN_TRUNCATE;
            }
        }
    }
    if let Some(network) = &mut case.event.network
        && network.flags & u32::from(sumun_abi::event::network::CONN_LOST) != 0
    {
        network.flags = 0;
        network.src_ip = vec![10, 0, 0, 1];
        network.dst_ip = vec![8, 8, 8, u8::try_from(dice.roll(9)).unwrap_or(0)];
    }
    // The chain of ancestors that was not known to its end: here it ends, or has one more.
    // The parent of the event's own image is left as it is, since `proc.parent` reads it.
    if case.batch.images.len() > 1 && case.batch.images[0].parent_pid != 0 {
        if dice.chance(8) && case.batch.images[0].pid <= 2 {
            case.batch.images[0].parent_pid = 0;
        } else {
            let mut more = case.batch.images[0].clone();
            (more.pid, more.parent_pid) = (1, 0);
            more.exe_path = dice.pick(common::PATHS).to_owned();
            case.batch.images.insert(0, more);
            for (index, image) in case.batch.images.iter_mut().enumerate() {
                image.parent = u32::try_from(index).unwrap_or(0);
            }
            case.event.image += 1;
        }
    }
    case
}

/// The fields that ancestors have are the ones the interpreter sees.
#[test]
fn every_ancestor_field_is_a_field_of_the_process() {
    for (name, id) in sumun_policy::ir::ANCESTOR_FIELDS {
        assert_eq!(FieldId::by_name(&format!("proc.{name}")), Some(*id));
    }
}
