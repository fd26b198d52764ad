//! What the probe says of the running kernel agrees with what loading finds.

use crate::bench;

#[test]
fn the_probe_loads_every_hook_and_leaves_nothing() {
    if let Some(reason) = bench::unable() {
        eprintln!("SKIPPED the_probe_loads_every_hook_and_leaves_nothing: {reason}");
        return;
    }
    let _turn = bench::turn();
    let report = sumun_agent::kernel::probe();
    eprintln!("{report:#?}");
    assert!(report.btf.available && report.object.available && report.ring_buffer.available);
    assert!(report.task_iterator.available);
    assert!(report.missing_capabilities.is_empty());
    assert!(!report.hooks.is_empty());
    for hook in &report.hooks {
        assert!(hook.available, "{hook:?}");
    }
    let name = format!("/sys/fs/bpf/sumun-probe-{}", std::process::id());
    assert!(!std::path::Path::new(&name).exists());
}
