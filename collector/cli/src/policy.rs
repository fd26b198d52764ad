//! `policy check`: what an agent would say about policy files, offline.

use std::io::Write as _;

use serde_json::{Value, json};
use sumun_policy::problem::Problem;
use sumun_policy::{CheckedPolicy, FileCheck, check_files};

use crate::args::{Output, PolicyFiles};
use crate::failure::Failure;
use crate::moment;
use crate::output::quantity;

/// Checks the files as if they were loaded together; fails when one is refused.
pub(crate) fn check(args: &PolicyFiles, output: Output) -> Result<(), Failure> {
    let mut checks = checked(args)?;
    for check in &mut checks {
        check.warn_of_expiry(moment::now());
    }
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => {
            for check in &checks {
                out.write_all(page(check).as_bytes())?;
            }
        }
        Output::Json => writeln!(out, "{}", Value::Array(checks.iter().map(row).collect()))?,
        Output::Jsonl => {
            for check in &checks {
                writeln!(out, "{}", row(check))?;
            }
        }
    }
    out.flush()?;
    if checks.iter().any(|check| check.policy.is_none()) {
        return Err(Failure::Said);
    }
    Ok(())
}

/// The files, checked as if they were loaded together.
pub(crate) fn checked(args: &PolicyFiles) -> Result<Vec<FileCheck>, Failure> {
    let mut texts = Vec::new();
    for path in &args.files {
        // A file that is not UTF-8 is a file with a fault, like any other that cannot be read.
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::failed(
                error.into(),
                format!("cannot read the policy {}", path.display()),
            )
        })?;
        texts.push((path.display().to_string(), text));
    }
    Ok(check_files(
        texts
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str())),
    ))
}

/// The policies of the files, if none of them is refused: half of them would be told of with the cost and the room of half of the rules.
pub(crate) fn sound(args: &PolicyFiles) -> Result<Vec<CheckedPolicy>, Failure> {
    let checks = checked(args)?;
    if checks.iter().any(|check| check.policy.is_none()) {
        let mut err = std::io::stderr().lock();
        for check in checks.iter().filter(|check| check.policy.is_none()) {
            writeln!(err, "{check}")?;
        }
        return Err(Failure::Said);
    }
    Ok(checks
        .into_iter()
        .filter_map(|check| check.policy)
        .collect())
}

fn page(check: &FileCheck) -> String {
    let mut page = check.to_string();
    if !page.is_empty() {
        page.push('\n');
    }
    if let Some(policy) = &check.policy {
        page.push_str(&format!(
            "{}: policy {} version {}, {} rules\n",
            check.path,
            policy.name,
            policy.version,
            policy.rules.len()
        ));
        for list in policy.large_lists() {
            page.push_str(&format!(
                "{}: lists.{} has {} items, {} in the agent however many rules name it; policy explain says what the kernel takes of it\n",
                check.path,
                list.name(),
                list.len(),
                quantity(list.bytes() as u64)
            ));
        }
    }
    page
}

/// A checked file as JSON; the keys are part of the documented output.
fn row(check: &FileCheck) -> Value {
    let problems = |problems: &[Problem]| -> Vec<Value> {
        problems
            .iter()
            .map(|problem| {
                json!({
                    "line": problem.line,
                    "column": problem.column,
                    "message": problem.message,
                })
            })
            .collect()
    };
    json!({
        "file": check.path,
        "ok": check.policy.is_some(),
        "policy": check.policy.as_ref().map(|policy| json!({
            "name": policy.name,
            "version": policy.version,
            "rules": policy.rules.iter().map(|rule| &rule.id).collect::<Vec<_>>(),
            "lists": policy.large_lists().map(|list| json!({
                "name": list.name(),
                "items": list.len(),
                "matcher_bytes": list.bytes(),
                "hash": list.sha256(),
            })).collect::<Vec<_>>(),
        })),
        "errors": problems(&check.errors),
        "warnings": problems(&check.warnings),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_and_a_bad_file() {
        let good = "[policy]\nname = \"web\"\nversion = 1\n[[rule]]\nid = \"a\"\n\
            title = \"t\"\non = [\"exec\"]\nwhen = 'proc.exe.name == \"sh\"'\n";
        let items: Vec<String> = (0..2000).map(|n| format!("'/usr/{n}'")).collect();
        let long = format!("{good}[lists]\nbad = [{}]\n", items.join(","));
        let checks = check_files([("long.toml", long.as_str())]);
        let said = page(&checks[0]);
        assert!(
            said.contains("long.toml: lists.bad has 2000 items, 41 KiB in the agent"),
            "{said}"
        );
        let list = &row(&checks[0])["policy"]["lists"][0];
        assert_eq!(
            (&list["name"], &list["items"]),
            (&json!("bad"), &json!(2000))
        );
        assert_eq!(list["hash"].as_str().map(str::len), Some(64));
        let bad = good.replace("when", "wehn");
        let checks = check_files([("good.toml", good), ("bad.toml", bad.as_str())]);
        assert_eq!(
            page(&checks[0]),
            "good.toml: policy web version 1, 1 rules\n"
        );
        assert_eq!(row(&checks[0])["policy"]["rules"][0], "a");
        assert!(
            page(&checks[1]).starts_with("bad.toml:"),
            "{}",
            page(&checks[1])
        );
        assert_eq!(row(&checks[1])["ok"], false);
    }
}
