//! Masks as text: the parser and the printer of mask expressions.

use std::fmt;
use std::str::FromStr;

use super::Mask;
use crate::Error;

impl FromStr for Mask {
    type Err = Error;

    fn from_str(_expression: &str) -> Result<Self, Error> {
        unimplemented!()
    }
}

impl fmt::Display for Mask {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}
