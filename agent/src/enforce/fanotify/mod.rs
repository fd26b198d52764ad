//! The rung `fanotify`: opens and executions of files that rules name are held by the kernel until they have
//! been judged, and fail if a rule denies them.
//!
//! Whoever waits, waits for user space. So the answers come from a process of its own (`holder`), which has the
//! rules that deny and nothing else; a thread of the agent (`keeper`) watches it and ends it when it does not answer: with its
//! end the kernel lets go what waits. It ends with the agent.

mod aside;
mod holder;
mod judge;
mod keeper;
mod marks;
mod opener;
mod wire;

pub use self::holder::run as hold_calls;
pub use self::keeper::{Keeper, Report};
pub use self::wire::{Call, Counts, Decision};
