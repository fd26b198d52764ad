//! Which file and network records leave the kernel.
