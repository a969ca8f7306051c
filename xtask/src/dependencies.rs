//! What the dependencies may be: their licences, their versions, and the Rust that they demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use spdx::{Expression, ParseMode};

use crate::Stop;
use crate::steps::{cannot_run, cargo};

/// Licences that go with ours, MIT or Apache-2.0 at the user's choice.
const ALLOWED: &[&str] = &[
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that are there in two versions, and why.
const TWICE: &[(&str, &str)] = &[
    ("hashbrown", "wgpu and indexmap stand on different ones"),
    ("syn", "derive macros are on their way from 2 to 3"),
];

/// Checks the whole lock file: every licence, every crate that is there twice, and that the library's
/// own dependencies ask for no newer Rust than it does.
pub fn check() -> Result<(), Stop> {
    let mut command = cargo("metadata --format-version 1 --locked");
    let output = command.output().map_err(|error| cannot_run(&command, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Stop { status: 1, message: format!("{command:?} failed: {said}") });
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| Stop { status: 1, message: format!("{command:?}: {error}") })?;
    let faults = faults(&metadata);
    if faults.is_empty() {
        return Ok(());
    }
    Err(Stop { status: 1, message: faults.join("; ") })
}

fn faults(metadata: &Value) -> Vec<String> {
    let packages: Vec<&Value> = metadata["packages"].as_array().into_iter().flatten().collect();
    let mut faults: Vec<String> = packages.iter().filter_map(|package| licence(package)).collect();
    faults.extend(duplicates(&packages));
    faults.extend(too_new(metadata, &packages));
    faults
}

fn name(package: &Value) -> String {
    let word = |key: &str| package[key].as_str().unwrap_or("?");
    format!("{} {}", word("name"), word("version"))
}

/// What is wrong with a package's licence.
fn licence(package: &Value) -> Option<String> {
    let Some(text) = package["license"].as_str() else {
        return Some(format!("{} names no licence", name(package)));
    };
    let allowed = |expression: Expression| {
        expression
            .evaluate(|wanted| wanted.license.id().is_some_and(|id| ALLOWED.contains(&id.name)))
    };
    match Expression::parse_mode(text, ParseMode::LAX).map(allowed) {
        Ok(true) => None,
        Ok(false) => Some(format!("{} is under `{text}`, which is not allowed", name(package))),
        Err(error) => Some(format!("{} has a licence nobody can read: {error}", name(package))),
    }
}

fn duplicates(packages: &[&Value]) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        if let (Some(name), Some(version)) = (package["name"].as_str(), package["version"].as_str())
        {
            versions.entry(name).or_default().insert(version);
        }
    }
    let twice = versions.iter().filter(|(_, versions)| versions.len() > 1);
    let known = |name: &str| TWICE.iter().any(|(twice, _)| *twice == name);
    let unknown = twice
        .clone()
        .filter(|(name, _)| !known(name))
        .map(|(name, versions)| format!("{name} is there in versions {versions:?}"));
    let stale = TWICE
        .iter()
        .filter(|(name, _)| !twice.clone().any(|(twice, _)| twice == name))
        .map(|(name, _)| format!("{name} is there once and need not be excused"));
    unknown.chain(stale).collect()
}

/// The library's dependencies, theirs included, that want a newer Rust than the library states.
fn too_new(metadata: &Value, packages: &[&Value]) -> Vec<String> {
    let nodes: HashMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let by_id: HashMap<&str, &Value> =
        packages.iter().filter_map(|package| Some((package["id"].as_str()?, *package))).collect();
    let Some(library) = packages.iter().find(|package| package["name"] == "wgpu-attention") else {
        return vec!["the library itself is missing".into()];
    };
    let stated = rust_version(library);
    if stated.is_none() {
        return vec!["the library states no `rust-version`".into()];
    }
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<&str> = library["id"].as_str().into_iter().collect();
    let mut faults = Vec::new();
    while let Some(id) = waiting.pop() {
        if !seen.insert(id) {
            continue;
        }
        let package = by_id.get(id).copied().unwrap_or(&Value::Null);
        if rust_version(package) > stated {
            faults.push(format!(
                "{} wants Rust {}, the library states {}",
                name(package),
                package["rust_version"],
                library["rust_version"]
            ));
        }
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten() {
            let kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            // What only tests and build scripts need has no kind `null`.
            if kinds.into_iter().any(|kind| kind["kind"].is_null()) {
                waiting.extend(dependency["pkg"].as_str());
            }
        }
    }
    faults
}

/// `1.87` or `1.87.0` as numbers.
fn rust_version(package: &Value) -> Option<[u32; 3]> {
    let mut parts = package["rust_version"].as_str()?.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, version: &str, license: &str, rust: &str) -> Value {
        json!({"id": format!("{name}@{version}"), "name": name, "version": version,
               "license": license, "rust_version": rust})
    }

    #[test]
    fn licences_are_read_as_expressions() {
        let verdict = |text| licence(&package("a", "1.0.0", text, "1.80"));
        for good in ["MIT", "Apache-2.0/MIT", "(MIT OR GPL-3.0-only) AND Unicode-3.0"] {
            assert_eq!(verdict(good), None, "{good}");
        }
        for bad in ["GPL-3.0-only", "MIT AND LGPL-2.1-or-later", "a licence of our own"] {
            assert!(verdict(bad).is_some(), "{bad}");
        }
        assert!(licence(&json!({"name": "a", "version": "1.0.0"})).is_some());
    }

    #[test]
    fn versions_and_the_wanted_rust_are_compared() {
        let packages = [
            package("wgpu-attention", "0.1.0", "MIT", "1.87"),
            package("new", "1.0.0", "MIT", "1.88.0"),
            package("tested", "1.0.0", "MIT", "1.99"),
            package("hashbrown", "0.16.0", "MIT", "1.80"),
            package("hashbrown", "0.17.0", "MIT", "1.80"),
            package("log", "0.3.0", "MIT", "1.80"),
            package("log", "0.4.0", "MIT", "1.80"),
        ];
        let nodes = json!([{"id": "wgpu-attention@0.1.0", "deps": [
            {"pkg": "new@1.0.0", "dep_kinds": [{"kind": null}]},
            {"pkg": "tested@1.0.0", "dep_kinds": [{"kind": "dev"}]},
        ]}]);
        let metadata = json!({"packages": packages, "resolve": {"nodes": nodes}});
        let faults = faults(&metadata);
        let expected = ["log is there in versions", "syn is there once", "new 1.0.0 wants Rust"];
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.starts_with(expected), "{fault}");
        }
    }
}
