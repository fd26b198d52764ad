//! The collector from outside: real TLS on loopback, real files, the program
//! itself where it is killed. One binary, for linking the lake once.

mod common;
mod enrolment;
mod faults;
mod fuzz;
mod ingest;
mod init;
