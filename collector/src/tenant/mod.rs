//! Tenants: their certificate authority, their tokens, their agents, and who becomes one without a token.

pub mod ca;
pub mod identity;
pub mod join;
pub mod registry;
pub mod token;

/// The tenant that `init` makes.
pub const DEFAULT_TENANT: &str = "default";
