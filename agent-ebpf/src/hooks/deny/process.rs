//! Executions, denied by BPF LSM: the script, and then its interpreter.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use sumun_abi::{event::kind, slot, verdict::denied};

use super::{answer, begin, is_child_of_canary, record};
use crate::{
    kernel::{file::File, get},
    policy::deny,
};

/// A program is about to be executed; of a script, once for each interpreter.
#[lsm(hook = "bprm_check_security")]
fn deny_lsm_exec(ctx: LsmContext) -> i32 {
    if is_child_of_canary(denied::EXEC) {
        return answer(true);
    }
    let Some((run, index)) = begin(denied::EXEC) else {
        return 0;
    };
    let file = File(get(run.number(ctx.arg(0)), slot::BPRM_FILE));
    let denied = record(run, kind::EXEC).is_some()
        && deny::sumun_ask_file(
            run.level,
            index,
            denied::EXEC as u32,
            file.dentry(),
            file.mnt(),
        ) != 0;
    run.end();
    answer(denied)
}
