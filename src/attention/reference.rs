//! The judge: attention in f64, by plain loops and without tricks.
