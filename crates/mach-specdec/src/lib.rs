//! Speculative decoding: propose some tokens cheaply, verify them in one pass of the target, keep what the target itself
//! would have chosen.
//!
//! Three questions, three interfaces: a [`Proposer`] says what to try ([`DFlashProposer`] drafts, [`MtpProposer`],
//! [`CopyProposer`], [`LabelProposer`]), a [`BlockPolicy`](policy::BlockPolicy) how much, and [`verify`] runs the target and commits.
//! Acceptance is sample-and-match: what is emitted is the target's own choice at every position, so the output is
//! that of plain decoding, whatever is proposed. A draft that chooses with the target's noise (see [`Picker`]) agrees
//! with it nearly as often as rejection sampling would let it.

#![forbid(unsafe_code)]

mod copy;
mod dflash;
mod gate;
mod label;
mod mtp;
pub mod policy;
mod proposer;
mod speculator;
mod stats;
mod taps;
mod verify;

pub use copy::CopyProposer;
pub use dflash::{DFlashProposer, choose};
pub use gate::{DecodePath, DraftState, EffectivePath, Gate, resolve};
pub use label::LabelProposer;
pub use mach_models::dflash::{DFlash, DraftError, DraftOptions};
pub use mach_models::mtp::Mtp;
pub use mtp::{MtpDraft, MtpProposer};
pub use proposer::{Argmax, Draft, Drafting, Picker, Proposed, Proposer};
pub use speculator::{Lane, Proposal, Speculator};
pub use stats::{GuardStats, ProposerStats, SpecdecStats};
pub use taps::Taps;
pub use verify::{Choice, Verified, VerifyError, verify};
