//! CPU arithmetic under the numerics contract.
