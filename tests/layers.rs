//! The layers of the library: a module uses what lies below it, never what lies beside or above.

use std::fs;
use std::path::Path;

/// From the bottom up; modules of one layer do not use each other, but for those of the first.
const LAYERS: [&[&str]; 6] = [
    &["error", "tensor", "shape", "caps", "params"],
    &["reference", "shader"],
    &["device"],
    &["launch"],
    &["attention", "linear", "merge", "rope", "scatter"],
    &["onnx"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Every `crate::module` of a line outside of comments.
fn modules(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    code.split("crate::").skip(1).map(|rest| {
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default()
    })
}

fn check(folder: &Path, module: Option<&str>, faults: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        let of = module.unwrap_or(&stem);
        if path.is_dir() {
            check(&path, Some(of), faults);
            continue;
        }
        // The crate's root says what is public, and nobody imports through it.
        if path.extension().is_none_or(|extension| extension != "rs") || of == "lib" {
            continue;
        }
        let mine = layer(of);
        if mine.is_none() {
            faults.push(format!("`{of}` has no layer"));
        }
        let text = fs::read_to_string(&path).expect("a source");
        for (number, line) in text.lines().enumerate() {
            for used in modules(line).filter(|used| *used != of) {
                let allowed = match (layer(used), mine) {
                    (Some(theirs), Some(mine)) => theirs < mine || (theirs, mine) == (0, 0),
                    _ => false,
                };
                if !allowed {
                    faults.push(format!("{}:{}: `{of}` uses `{used}`", path.display(), number + 1));
                }
            }
        }
    }
}

#[test]
fn modules_use_what_lies_below_them() {
    let mut faults = Vec::new();
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut faults);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn uses_are_found() {
    let found = |line: &'static str| modules(line).collect::<Vec<_>>();
    assert_eq!(found("use crate::launch::{Array, Bound};"), ["launch"]);
    assert_eq!(
        found("    crate::shader::compose(crate::caps::X) // crate::onnx"),
        ["shader", "caps"]
    );
    assert_eq!(found("use crate::{Caps, Error};"), [""]);
    assert_eq!(found("/// [`Caps`](crate::Caps)"), [""; 0]);
}
