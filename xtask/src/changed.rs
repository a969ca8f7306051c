//! Whether what needs matrix units has changed since it was last tested on a GPU.
//!
//! CI has no matrix units and emulates them, so that a fault of a GPU's driver shows in the bundle's run alone.
//! [`warning`] holds the newest record of a device with matrix units against the tree. What it says is a warning,
//! not a failure: not everybody who changes a shader has such a device.

use std::path::Path;
use std::process::Command;

use crate::Stop;
use crate::record::{self, FOLDER, Record};

/// The files below `shaders/` that kernels on matrix units consist of, a line each. Tests of the library
/// (`tests/shaders.rs`, `tests/linear_shaders.rs`) hold the list against the kernels.
const SHADERS: &str = include_str!("matrix_shaders.txt");

/// The host's code that those kernels depend on: it composes their text and feeds them.
const SOURCES: [&str; 5] =
    ["src/shader.rs", "src/shader", "src/launch", "src/attention", "src/linear"];

/// How many files a warning names.
const NAMED: usize = 8;

/// The paths whose changes count, from the repository's root.
fn paths() -> Vec<String> {
    let shaders = SHADERS.lines().map(|name| format!("shaders/{name}"));
    SOURCES.map(str::to_owned).into_iter().chain(shaders).collect()
}

/// What there is to say about the newest record of a device with matrix units, if anything.
pub fn warning(root: &Path) -> Result<Option<String>, Stop> {
    let records = record::newest(root)?;
    let with_matrices = records.iter().filter(|record| record.matrix_units);
    let Some(newest) = with_matrices.max_by(|a, b| a.date.cmp(&b.date)) else {
        return Ok(Some(format!(
            "{FOLDER} has no record of tests on a GPU with matrix units: run `cargo xtask gpu-bundle`, \
             then its run.sh on the GPU, and keep the summary there"
        )));
    };
    Ok(since(root, newest, &paths()).map(|reason| {
        format!(
            "{reason}\nrun `cargo xtask gpu-bundle`, then its run.sh on the GPU, and keep the summary \
             in {FOLDER}"
        )
    }))
}

/// What has changed at `paths` since the commit of a record, in words.
fn since(root: &Path, record: &Record, paths: &[String]) -> Option<String> {
    let tested = format!("{} was tested on {}", record.device, record.day());
    let commit = &record.commit;
    let unknown = |reason: &str| {
        Some(format!(
            "{tested} at {}; what has changed since is not known: {reason}",
            record.commit_text()
        ))
    };
    let Some(shallow) = git(root, &["rev-parse", "--is-shallow-repository"]) else {
        return unknown("this folder is no git repository, or git does not run");
    };
    if git(root, &["cat-file", "-e", &format!("{commit}^{{commit}}")]).is_none() {
        return unknown(match shallow.trim() {
            "true" => "this is a shallow clone without that commit",
            _ => "this repository has no such commit",
        });
    }
    let mut arguments = vec!["diff", "--name-only", "--no-renames", commit, "--"];
    arguments.extend(paths.iter().map(String::as_str));
    let Some(listed) = git(root, &arguments) else { return unknown("`git diff` failed") };
    let files: Vec<&str> = listed.lines().collect();
    if files.is_empty() {
        if record.changed {
            return Some(format!("{tested} with changes that no commit holds"));
        }
        return None;
    }
    let mut named = files[..files.len().min(NAMED)].join(", ");
    if files.len() > NAMED {
        named.push_str(&format!(" and {} more", files.len() - NAMED));
    }
    Some(format!(
        "{tested} at {}; since then these parts of kernels on matrix units have changed: {named}",
        record.commit_text()
    ))
}

/// What git prints, or `None` if it fails or is not there.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.args(["-c", "core.quotePath=off"]).args(arguments).current_dir(root);
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The commit that is checked out, or `unknown`, and whether there are changes that it does not hold.
pub fn commit(root: &Path) -> (String, bool) {
    let commit = git(root, &["rev-parse", "HEAD"]);
    let changes = git(root, &["status", "--porcelain"]);
    let hash = commit.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned());
    (hash, changes.is_none_or(|text| !text.trim().is_empty()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A repository with one commit, and the record of that commit.
    fn repository() -> (tempfile::TempDir, Record) {
        let root = tempfile::tempdir().expect("a folder");
        for file in
            ["shaders/attention/coop.wgsl", "shaders/attention/rows.wgsl", "src/linear/a.rs"]
        {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, "first").expect("written");
        }
        let run = |arguments: &[&str]| {
            let who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgSign=false"];
            git(root.path(), &[&who[..], arguments].concat()).expect("git succeeds")
        };
        run(&["init", "--quiet"]);
        run(&["add", "."]);
        run(&["commit", "--quiet", "--message", "first"]);
        let (commit, changed) = commit(root.path());
        let record = Record { commit, changed, ..record::tests::sample() };
        (root, record)
    }

    #[test]
    fn changed_parts_are_named_and_others_are_not() {
        let (root, record) = repository();
        let said = || since(root.path(), &record, &paths());
        assert_eq!(said(), None);
        fs::write(root.path().join("shaders/attention/rows.wgsl"), "second").expect("written");
        assert_eq!(said(), None, "no part of a kernel on matrix units");
        fs::write(root.path().join("shaders/attention/coop.wgsl"), "second").expect("written");
        fs::remove_file(root.path().join("src/linear/a.rs")).expect("removed");
        let text = said().expect("a warning");
        assert!(text.starts_with("NVIDIA H200 was tested on 2026-12-01 at "), "{text}");
        assert!(text.ends_with("changed: shaders/attention/coop.wgsl, src/linear/a.rs"), "{text}");
        let (_, changed) = commit(root.path());
        assert!(changed && !record.changed);
    }

    #[test]
    fn a_tree_that_no_commit_holds_is_said() {
        let (root, record) = repository();
        let record = Record { changed: true, ..record };
        let text = since(root.path(), &record, &paths()).expect("a warning");
        assert!(text.contains("changes that no commit holds"), "{text}");
    }

    #[test]
    fn unknown_commits_and_shallow_clones_are_said() {
        let (root, record) = repository();
        let absent = Record { commit: "0".repeat(40), ..record.clone() };
        let said = |root: &Path, record| since(root, record, &paths());
        let text = said(root.path(), &absent).expect("a warning");
        assert!(text.ends_with("this repository has no such commit"), "{text}");
        let unknown = Record { commit: "unknown".into(), ..record.clone() };
        let text = said(root.path(), &unknown).expect("a warning");
        assert!(text.ends_with("this repository has no such commit"), "{text}");

        let folder = tempfile::tempdir().expect("a folder");
        let shallow = folder.path().join("shallow");
        let source = format!("file://{}", root.path().display());
        let target = shallow.display().to_string();
        git(folder.path(), &["clone", "--quiet", "--depth", "1", &source, &target])
            .expect("cloned");
        let text = said(&shallow, &absent).expect("a warning");
        assert!(text.ends_with("this is a shallow clone without that commit"), "{text}");
        assert_eq!(said(&shallow, &record), None, "its own commit is there");

        let bare = tempfile::tempdir().expect("a folder");
        let text = said(bare.path(), &record).expect("a warning");
        assert!(text.ends_with("no git repository, or git does not run"), "{text}");
    }

    #[test]
    fn a_tree_without_records_is_told_how_to_make_one() {
        let root = tempfile::tempdir().expect("a folder");
        let gpu = root.path().join(FOLDER).join("h200");
        fs::create_dir_all(&gpu).expect("made");
        let said = || warning(root.path()).expect("readable").expect("a warning");
        assert!(said().contains("no record of tests on a GPU with matrix units"));
        let plain = record::tests::SAMPLE.replace("matrix_units\tyes", "matrix_units\tno");
        fs::write(gpu.join("2026-12-01-tests.txt"), plain).expect("written");
        assert!(said().contains("no record of tests on a GPU with matrix units"));
        fs::write(gpu.join("2026-12-01-tests.txt"), record::tests::SAMPLE).expect("written");
        assert!(said().contains("no git repository"), "{}", said());
    }

    #[test]
    fn every_path_that_counts_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for path in paths() {
            assert!(root.join(&path).exists(), "{path}");
        }
    }
}
