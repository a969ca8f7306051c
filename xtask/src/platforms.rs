//! The table of `README.md` that says what ran where and when.

use crate::Stop;
use crate::record::Record;

/// The file, from the repository's root.
pub const FILE: &str = "README.md";

/// What stands before and after the table.
const MARKS: [&str; 2] = [
    "<!-- platforms: written by `cargo xtask conformance --gpus` -->\n",
    "<!-- platforms end -->\n",
];

/// The rows that hold at every commit, since CI runs them.
const TABLE: &str = "| where | driver | what ran | when | commit |
|---|---|---|---|---|
| Linux, on the CPU | lavapipe | all tests | every change | every |
| Linux, on the CPU | SwiftShader | all tests | every change | every |
| Chromium | SwiftShader | tests of the npm package | every change | every |
";

/// The table with a row for each record. The README has no relative links: where the package is published they
/// would lead nowhere.
fn table(gpus: &[Record]) -> String {
    let mut text = TABLE.to_owned();
    for record in gpus {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} |\n",
            record.device,
            record.driver(),
            record.outcome(),
            record.day(),
            record.commit_text()
        ));
    }
    if gpus.is_empty() {
        text.push_str("| GPU | | no record of all tests is kept | | |\n");
    }
    text
}

/// The file's text with the table of these records.
pub fn updated(readme: &str, gpus: &[Record]) -> Result<String, Stop> {
    let parts = readme
        .split_once(MARKS[0])
        .and_then(|(before, rest)| rest.split_once(MARKS[1]).map(|(_, after)| (before, after)));
    match parts {
        Some((before, after)) => {
            Ok(format!("{before}{}\n{}\n{}{after}", MARKS[0], table(gpus), MARKS[1]))
        }
        None => Err(Stop {
            status: 1,
            message: format!("{FILE} has no lines `{}` and `{}`", MARKS[0].trim(), MARKS[1].trim()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    #[test]
    fn the_table_is_replaced_and_the_rest_stays() {
        let readme = format!("# A\n\n{}old\n{}\nrest\n", MARKS[0], MARKS[1]);
        let without = updated(&readme, &[]).expect("marked");
        assert!(without.starts_with("# A\n") && without.ends_with("\nrest\n"), "{without}");
        assert!(without.contains("| GPU | | no record") && !without.contains("old"), "{without}");
        let with = updated(&without, &[sample()]).expect("marked");
        let row = "| NVIDIA H200 | NVIDIA 580.159.04, vulkan | 21 of 21 tests passed in 2 binaries, 1 \
                   ignored; benchmark | 2026-12-01 | 1f1bfc5 |";
        assert!(with.contains(row) && !with.contains("no record"), "{with}");
        assert_eq!(updated(&with, &[sample()]).expect("marked"), with);
    }

    #[test]
    fn a_file_without_marks_is_an_error() {
        let stop = updated("# A\n", &[]).expect_err("no marks");
        assert!(stop.message.contains("<!-- platforms end -->"), "{}", stop.message);
    }
}
