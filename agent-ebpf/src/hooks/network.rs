//! Connections made and accepted. Network hooks are being written here (hooks/network.rs and kernel/socket.rs).
