//! What is installed by the tools of others is good by their own rules: the chart, its plain rendering, what is for AWS.

use std::path::Path;
use std::process::Command;

use sumun_tests::kubelet;

#[test]
fn manifests_are_good_by_the_rules_of_those_who_read_them() {
    let Some(python) = kubelet::python() else {
        return println!(
            "SKIPPED manifests: Python's packages of deploy/setup/requirements.txt are not there (make setup-test)"
        );
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/check.py");
    let output = Command::new(python)
        .arg(script)
        .output()
        .expect("python can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
