//! Tenants: their certificate authority, their tokens, their agents.

pub mod ca;
pub mod identity;
pub mod registry;
pub mod token;

/// The tenant that `init` makes.
pub const DEFAULT_TENANT: &str = "default";
