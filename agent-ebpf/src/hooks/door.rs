//! What is attached: one program per hook that only jumps to the agent's.
//!
//! An agent that takes over from another puts its programs behind the same
//! doors, one by one and each in a single write. So every event is handled by one agent's program:
//! with two attached side by side, an event at the moment of the change would be recorded by both
//! or by none.

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock_addr, cgroup_sysctl, lsm, map},
    maps::ProgramArray,
    programs::{BtfTracePointContext, LsmContext, SkBuffContext, SockAddrContext, SysctlContext},
};

use super::deny::ALLOW;

macro_rules! doors {
    ($($door:ident, $behind:ident, $tracepoint:literal;)*) => {$(
        /// The program behind the door; one entry. Empty: the event passes unseen.
        #[map]
        static $behind: ProgramArray = ProgramArray::pinned(1, 0);

        /// The door.
        #[btf_tracepoint(function = $tracepoint)]
        fn $door(ctx: BtfTracePointContext) -> i32 {
            // SAFETY: the kernel checks that what stands there has the same context.
            unsafe { $behind.tail_call(&ctx, 0) };
            0
        }
    )*};
}

doors! {
    door_fork, AT_FORK, "sched_process_fork";
    door_fork_again, AT_FORK_AGAIN, "sched_process_fork";
    door_exec, AT_EXEC, "sched_process_exec";
    door_exit, AT_EXIT, "sched_process_exit";
    door_sys_exit, AT_SYS_EXIT, "sys_exit";
    door_sys_enter, AT_SYS_ENTER, "sys_enter";
    door_state, AT_STATE, "inet_sock_set_state";
    door_exec_again, AT_EXEC_AGAIN, "sched_process_exec";
    door_module_load, AT_MODULE_LOAD, "module_load";
    door_cgroup_mkdir, AT_CGROUP_MKDIR, "cgroup_mkdir";
    door_cgroup_rename, AT_CGROUP_RENAME, "cgroup_rename";
    door_cgroup_rmdir, AT_CGROUP_RMDIR, "cgroup_rmdir";
    door_state_again, AT_STATE_AGAIN, "inet_sock_set_state";
}

macro_rules! cgroup_doors {
    ($($door:ident, $behind:ident, $attach:ident;)*) => {$(
        /// The program behind the door; one entry. Empty: the call goes on.
        #[map]
        static $behind: ProgramArray = ProgramArray::pinned(1, 0);

        /// The door.
        #[cgroup_sock_addr($attach)]
        fn $door(ctx: SockAddrContext) -> i32 {
            // SAFETY: the kernel checks that what stands there has the same context.
            unsafe { $behind.tail_call(&ctx, 0) };
            ALLOW
        }
    )*};
}

cgroup_doors! {
    door_connect4, AT_CONNECT4, connect4;
    door_connect6, AT_CONNECT6, connect6;
    door_bind4, AT_BIND4, bind4;
    door_bind6, AT_BIND6, bind6;
    door_sendmsg4, AT_SENDMSG4, sendmsg4;
    door_sendmsg6, AT_SENDMSG6, sendmsg6;
}

/// The program behind the door of settings; one entry. Empty: the call goes on.
#[map]
static AT_SYSCTL: ProgramArray = ProgramArray::pinned(1, 0);

/// The door.
#[cgroup_sysctl]
fn door_sysctl(ctx: SysctlContext) -> i32 {
    // SAFETY: the kernel checks that what stands there has the same context.
    unsafe { AT_SYSCTL.tail_call(&ctx, 0) };
    ALLOW
}

macro_rules! lsm_doors {
    ($($door:ident, $behind:ident, $hook:literal;)*) => {$(
        /// The program behind the door; one entry. Empty: the call goes on.
        #[map]
        static $behind: ProgramArray = ProgramArray::pinned(1, 0);

        /// The door.
        #[lsm(hook = $hook)]
        fn $door(ctx: LsmContext) -> i32 {
            // SAFETY: the kernel checks that what stands there has the same context.
            unsafe { $behind.tail_call(&ctx, 0) };
            0
        }
    )*};
}

lsm_doors! {
    door_lsm_exec, AT_LSM_EXEC, "bprm_check_security";
    door_lsm_open, AT_LSM_OPEN, "file_open";
    door_lsm_rename, AT_LSM_RENAME, "path_rename";
    door_lsm_unlink, AT_LSM_UNLINK, "path_unlink";
    door_lsm_rmdir, AT_LSM_RMDIR, "path_rmdir";
    door_lsm_link, AT_LSM_LINK, "path_link";
    door_lsm_connect, AT_LSM_CONNECT, "socket_connect";
    door_lsm_bind, AT_LSM_BIND, "socket_bind";
    door_lsm_mount, AT_LSM_MOUNT, "sb_mount";
    door_lsm_move, AT_LSM_MOVE, "move_mount";
    door_lsm_read, AT_LSM_READ, "kernel_read_file";
    door_lsm_load, AT_LSM_LOAD, "kernel_load_data";
    door_lsm_ptrace, AT_LSM_PTRACE, "ptrace_access_check";
    door_lsm_mmap, AT_LSM_MMAP, "mmap_file";
    door_lsm_mprotect, AT_LSM_MPROTECT, "file_mprotect";
    door_lsm_truncate, AT_LSM_TRUNCATE, "path_truncate";
    door_lsm_ftruncate, AT_LSM_FTRUNCATE, "file_truncate";
    door_lsm_chmod, AT_LSM_CHMOD, "path_chmod";
    door_lsm_chown, AT_LSM_CHOWN, "path_chown";
    door_lsm_remount, AT_LSM_REMOUNT, "sb_remount";
    door_lsm_pivot, AT_LSM_PIVOT, "sb_pivotroot";
}

macro_rules! socket_doors {
    ($($attribute:ident($place:ident) $context:ident: $door:ident, $behind:ident;)*) => {$(
        /// The program behind the door; one entry. Empty: what comes passes unseen.
        #[map]
        static $behind: ProgramArray = ProgramArray::pinned(1, 0);

        /// The door. It lets everything pass.
        #[$attribute($place)]
        fn $door(ctx: $context) -> i32 {
            // SAFETY: as above.
            unsafe { $behind.tail_call(&ctx, 0) };
            1
        }
    )*};
}

socket_doors! {
    cgroup_sock_addr(connect4) SockAddrContext: door_udp_connect4, AT_UDP_CONNECT4;
    cgroup_sock_addr(connect6) SockAddrContext: door_udp_connect6, AT_UDP_CONNECT6;
    cgroup_sock_addr(sendmsg4) SockAddrContext: door_udp_send4, AT_UDP_SEND4;
    cgroup_sock_addr(sendmsg6) SockAddrContext: door_udp_send6, AT_UDP_SEND6;
    cgroup_skb(egress) SkBuffContext: door_dns_out, AT_DNS_OUT;
    cgroup_skb(ingress) SkBuffContext: door_dns_in, AT_DNS_IN;
    cgroup_skb(egress) SkBuffContext: door_isolate_out, AT_ISOLATE_OUT;
    cgroup_skb(ingress) SkBuffContext: door_isolate_in, AT_ISOLATE_IN;
}
