//! Expert residency: the bank that holds routed experts.
