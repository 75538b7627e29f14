//! Aligned memory backed by huge pages.
