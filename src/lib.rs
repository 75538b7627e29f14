//! mach.
