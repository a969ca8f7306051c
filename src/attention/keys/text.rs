//! Patterns as text.

use std::fmt;
use std::str::FromStr;

use super::Pattern;
use super::patterns::Part;
use crate::error::Error;

impl FromStr for Pattern {
    type Err = Error;

    /// Parses parts joined by `+`, as in the documentation of [`Pattern`]. Numbers stand in the
    /// order given there or by name; seeds are 0 unless given. White space means nothing.
    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('+').map(|part| parse(part.trim()));
        let first = parts.next().unwrap_or_else(|| parse(""))?;
        parts.try_fold(first, |pattern, part| Ok(pattern + part?))
    }
}

impl fmt::Display for Pattern {
    /// Writes the parts joined by ` + `, each as it is parsed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts.iter().enumerate() {
            write!(f, "{}{part}", if index > 0 { " + " } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Sink(n) => write!(f, "sink({n})"),
            Self::Window(left) => write!(f, "window({left})"),
            Self::Strided(stride) => write!(f, "strided({stride})"),
            Self::Dilated { count, step } => write!(f, "dilated({count},{step})"),
            Self::Global(n) => write!(f, "global({n})"),
            Self::Documents => f.write_str("documents"),
            Self::Roles => f.write_str("roles"),
            Self::Random { density, seed } => write!(f, "random({density},{seed})"),
            Self::BigBird { window, global, random, seed } => {
                write!(f, "bigbird({window},{global},{random},{seed})")
            }
        }
    }
}

fn parse(text: &str) -> Result<Pattern, Error> {
    let refuse = |expected: &str| Err(Error::config("pattern", expected, format!("`{text}`")));
    let (name, inside) = match text.split_once('(') {
        None => (text, ""),
        Some((name, rest)) => match rest.trim_end().strip_suffix(')') {
            Some(inside) => (name.trim(), inside),
            None => return refuse("a closing bracket"),
        },
    };
    let names: &[&str] = match name {
        "sink" | "global" => &["n"],
        "window" => &["left"],
        "strided" => &["stride"],
        "dilated" => &["count", "step"],
        "documents" | "roles" => &[],
        "random" => &["density", "seed"],
        "bigbird" => &["window", "global", "random", "seed"],
        _ => {
            return refuse(
                "sink(n), window(left), strided(stride), dilated(count,step), global(n), \
                 documents, roles, random(density,seed) or bigbird(window,global,random,seed)",
            );
        }
    };
    let mut values = [None; 4];
    let given = inside.split(',').map(str::trim).filter(|argument| !argument.is_empty());
    for (place, argument) in given.enumerate() {
        let (place, number) = match argument.split_once('=') {
            None => (Some(place), argument),
            Some((name, number)) => (names.iter().position(|n| *n == name.trim()), number.trim()),
        };
        let slot = place.filter(|place| *place < names.len()).map(|place| &mut values[place]);
        match (slot, number.parse::<f64>()) {
            (Some(slot @ None), Ok(number)) => *slot = Some(number),
            _ => return refuse(&format!("numbers {names:?}, each once")),
        }
    }
    let seed = names.iter().position(|name| *name == "seed");
    if let Some(value) = seed.map(|place| &mut values[place]) {
        value.get_or_insert(0.0);
    }
    if values[..names.len()].contains(&None) {
        return refuse(&format!("numbers {names:?}"));
    }
    let values = values.map(Option::unwrap_or_default);
    let whole = |value: f64| value >= 0.0 && value <= f64::from(u32::MAX) && value.fract() == 0.0;
    let counts = if name == "random" { 1 } else { 0 };
    if !values[counts..].iter().all(|&value| whole(value)) {
        return refuse("whole numbers of at least 0");
    }
    let [a, b, c, d] = values.map(|value| value as u32);
    let pattern = Pattern::part(match name {
        "sink" => Part::Sink(a),
        "global" => Part::Global(a),
        "window" => Part::Window(a),
        "strided" => Part::Strided(a),
        "dilated" => Part::Dilated { count: a, step: b },
        "documents" => Part::Documents,
        "roles" => Part::Roles,
        "random" => Part::Random { density: values[0], seed: b.into() },
        _ => Part::BigBird { window: a, global: b, random: c, seed: d.into() },
    });
    match pattern.validate() {
        Err(Error::Config { expected, .. }) => refuse(&expected),
        other => other.map(|()| pattern),
    }
}
