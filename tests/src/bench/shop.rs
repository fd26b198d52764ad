//! Policies as a shop with many services would have them: rules of each service, written out or
//! with lists, each with paths, names and ports of its own.

use std::fmt::Write as _;
use std::path::Path;

/// Rules of one policy file.
const FILE_RULES: usize = 250;

/// Policy files (name, text).
pub type Policies = Vec<(String, String)>;

/// So many rules on opens, in policies of 250. Every fourth service lives below
/// `beside`, so that its paths begin as those of its neighbours do.
#[must_use]
pub fn files(count: usize, beside: &Path) -> Policies {
    let base = beside.display().to_string();
    policies("files", count, |number| file_rule(number, &base))
}

/// So many rules: two fifths on execs, two on opens, one on connects.
#[must_use]
pub fn mixed(count: usize) -> Policies {
    policies("mixed", count, |number| match number % 5 {
        0 | 2 => exec_rule(number),
        1 | 3 => file_rule(number, "/opt"),
        _ => connect_rule(number),
    })
}

fn policies(name: &str, count: usize, rule: impl Fn(usize) -> String) -> Policies {
    let starts = (0..count).step_by(FILE_RULES);
    starts
        .map(|start| {
            let numbers = start..count.min(start + FILE_RULES);
            let name = format!("{name}-{start}");
            let mut text = format!("[policy]\nname = \"{name}\"\nversion = 1\n\n[lists]\n");
            text += "deployers = [\"dpkg\", \"apt\", \"rpm\", \"ansible\", \"puppet\"]\n";
            text += "shells = [\"sh\", \"dash\", \"bash\", \"zsh\", \"busybox\"]\n";
            for number in numbers.clone() {
                let _ = writeln!(
                    text,
                    "secrets_{number} = [\"/etc/service-{number}/tls.key\", \"/etc/service-{number}/token\", \"/var/lib/service-{number}/vault\"]"
                );
            }
            for number in numbers {
                let _ = write!(text, "\n[[rule]]\nid = \"rule-{number}\"\n{}", rule(number));
            }
            (name, text)
        })
        .collect()
}

fn file_rule(number: usize, base: &str) -> String {
    let home = match number % 4 {
        0 => format!("{base}/service-{number}"),
        _ => format!("/srv/service-{number}"),
    };
    let when = match number / 5 % 5 {
        0 => format!(r#"file.path.startsWith("{home}/secrets/")"#),
        1 => format!(r#"file.access.write && file.path.startsWith("{home}/bin/")"#),
        2 => format!(r#"file.path == "{home}/config.yml" && !(proc.exe.name in lists.deployers)"#),
        3 => format!("file.path in lists.secrets_{number}"),
        _ => format!(r#"file.access.write && file.path.glob("{home}/*.d/**")"#),
    };
    format!("on = [\"open\"]\nwhen = '{when}'\neffect = \"record\"\n")
}

fn exec_rule(number: usize) -> String {
    let when = match number / 5 % 5 {
        0 => format!(
            r#"proc.exe.name in lists.shells && proc.ancestors.exists(a, a.exe.name == "service-{number}")"#
        ),
        1 => format!(r#"proc.exe.name == "tool-{number}" && "--dump" in proc.args"#),
        2 => format!(r#"proc.exe.path.startsWith("/srv/service-{number}/upload/")"#),
        3 => format!(
            r#"proc.exe.name in ["tool-{number}", "helper-{number}"] && proc.uid != {}"#,
            10_000 + number
        ),
        _ => format!(
            r#"proc.exe.name in ["curl", "wget"] && proc.args.exists(x, x.startsWith("http://service-{number}."))"#
        ),
    };
    format!("on = [\"exec\"]\nwhen = '{when}'\nseverity = \"high\"\n")
}

fn connect_rule(number: usize) -> String {
    let (port, third) = (20_000 + number, number % 250);
    let when = match number / 5 % 4 {
        0 => format!("net.dst.port == {port}"),
        1 => format!(
            r#"cidr("10.{}.{third}.0/24").containsIP(net.dst.ip)"#,
            number / 250
        ),
        2 => format!(r#"proc.exe.name == "tool-{number}" && !(net.dst.port in [53, 443])"#),
        _ => format!("net.dst.port == {port} && proc.exe.name in lists.shells"),
    };
    format!("on = [\"connect\"]\nwhen = '{when}'\neffect = \"record\"\n")
}

/// Twenty rules that kill and that the kernel judges alone, and that nothing matches: by names,
/// prefixes, ancestors and ids.
#[must_use]
pub fn kills() -> String {
    let mut text = "[policy]\nname = \"kills\"\nversion = 1\nmode = \"enforce\"\n".to_owned();
    for number in 0..20 {
        let when = match number % 4 {
            0 => format!(r#"proc.exe.name in ["miner-{number}", "scanner-{number}"]"#),
            1 => format!(r#"proc.exe.path.startsWith("/srv/service-{number}/upload/")"#),
            2 => format!(
                r#"proc.exe.name in ["sh-{number}", "bash-{number}"] && proc.ancestors.exists(a, a.exe.name == "service-{number}")"#
            ),
            _ => format!(
                r#"proc.uid >= {} && proc.uid < {} && !proc.exe.path.startsWith("/usr/local/tools-{number}/")"#,
                50_000 + 10 * number,
                50_009 + 10 * number
            ),
        };
        let _ = write!(
            text,
            "\n[[rule]]\nid = \"kill-{number}\"\non = [\"exec\"]\nwhen = '{when}'\neffect = \"kill\"\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use sumun_policy::doors::Doors;
    use sumun_policy::plan::{KindPlan, Plan};
    use sumun_policy::verdict::VerdictPlan;
    use sumun_policy::{CheckedPolicy, check_files};
    use sumun_proto::v1::Kind;

    use super::*;

    fn checked(policies: &[(String, String)]) -> Vec<CheckedPolicy> {
        let files = policies
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()));
        check_files(files)
            .into_iter()
            .map(|check| {
                assert!(check.errors.is_empty(), "{check}");
                check.policy.expect("a policy without errors")
            })
            .collect()
    }

    #[test]
    fn the_kernel_filters_a_thousand_rules_on_opens() {
        let policies = checked(&files(1000, Path::new("/tmp/bench")));
        let rules: usize = policies.iter().map(|policy| policy.rules.len()).sum();
        assert_eq!(rules, 1000);
        let (plan, widened) = Plan::build(&policies);
        assert!(widened.is_empty(), "{widened:?}");
        let open = plan.kinds.iter().find(|(kind, _)| *kind == Kind::Open);
        assert!(
            matches!(open, Some((_, KindPlan::Clauses(clauses))) if clauses.len() > 1),
            "{open:?}"
        );
    }

    #[test]
    fn the_mixed_rules_are_valid() {
        for count in [1, 100, 1000] {
            let rules = checked(&mixed(count))
                .iter()
                .map(|one| one.rules.len())
                .sum::<usize>();
            assert_eq!(rules, count);
        }
    }

    #[test]
    fn the_kernel_judges_all_rules_that_kill() {
        let policies = checked(&[("kills".to_owned(), kills())]);
        let (plan, late) = VerdictPlan::build(&policies, &Doors::default(), 0);
        assert!(late.is_empty(), "{late:?}");
        assert!(plan.atoms.len() > 20, "{}", plan.atoms.len());
    }
}
