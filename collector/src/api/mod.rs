//! The one port: TLS, who is who, the services.

pub mod admin;
pub mod auth;
pub mod server;
pub mod tls;
