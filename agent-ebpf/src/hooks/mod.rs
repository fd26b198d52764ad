//! One file per event family.

mod process;
