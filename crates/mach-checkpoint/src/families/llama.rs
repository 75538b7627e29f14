//! Llama on disk, and the many models of its form.

use super::{DENSE, Row};
use crate::Family;

pub(super) static ROW: Row =
    Row { model_type: "llama", family: Family::Llama, module: "mach_models::llama", ..DENSE };
