//! What the f64 references of all ops share: the tolerance rule, and numbers of either precision.

pub(crate) mod real;
pub mod tolerance;
