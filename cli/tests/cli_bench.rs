//! `bench` from outside: what it measures, records, compares and draws.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

mod common;

fn program(args: &[&str]) -> Output {
    common::program().arg("bench").args(args).output().expect("the program runs")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The record of a run that ended well.
fn json(args: &[&str]) -> Value {
    let output = program(&[&["--json"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}{}", stdout(&output), stderr(&output));
    serde_json::from_str(stdout(&output)).expect("stdout holds JSON alone")
}

#[test]
fn times_what_it_has_checked() {
    if common::context().is_none() {
        return;
    }
    let small = ["--quick", "--family", "flash", "--heads", "2", "--lengths", "65"];
    let given = ["--dtype", "f32", "--causal", "--variant", "tiled", "--seconds", "0"];
    let record = json(&[&small[..], &given].concat());
    for ceiling in ["fma_tflops", "copy_gigabytes_per_second"] {
        assert!(record["ceilings"][ceiling].as_f64() > Some(0.0), "{ceiling}");
    }
    assert_eq!(record["rows"].as_array().map(Vec::len), Some(1));
    let row = &record["rows"][0];
    assert_eq!(row["label"], "attention/tiled/f32/softmax/causal/b1h2n65d64");
    assert!(row["percent_of_ceiling"].as_f64() > Some(0.0));
    assert!(row["max_error"].as_f64() <= row["bound"].as_f64());
    assert!(
        row["min_ms"].as_f64() > Some(0.0) && row["median_ms"].as_f64() >= row["min_ms"].as_f64()
    );
    assert_eq!(row["repetitions"], 10);
}

/// A peer that needs nothing but a shell: it says that it took 1 ms.
#[cfg(unix)]
const PEER: &str = r#"#!/bin/sh
cat >/dev/null
echo '{"label":"attention/tiled/f32/softmax/b1h1n32d16","program":"other 1","median_ms":1,"min_ms":1,
"max_ms":1,"repetitions":10,"steady":true,"clock":"none","max_error":0}' | tr -d '\n'
echo
echo '{"skipped":"the rest is not for it"}'
"#;

#[cfg(unix)]
#[test]
fn compares_and_reports() {
    use std::os::unix::fs::PermissionsExt as _;
    if common::context().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let [json, csv, report, peers] =
        ["a.json", "b.csv", "report", "peers"].map(|name| folder.path().join(name));
    fs::create_dir(&peers).expect("a folder");
    fs::write(peers.join("peer-other"), PEER).expect("written");
    fs::set_permissions(peers.join("peer-other"), fs::Permissions::from_mode(0o755)).expect("set");
    let small = ["--quick", "--seconds", "0", "--heads", "1", "--head-dim", "16"];
    let cases = ["--variant", "tiled", "--dtype", "f32", "--lengths", "32,64"];
    let family = ["--family", "flash,sparse", "--density", "0.5", "--block", "16"];
    let asked = [&small[..], &cases, &family].concat();

    let first = program(&[&asked[..], &["--json", text(&json), "--csv", text(&csv)]].concat());
    assert_eq!(first.status.code(), Some(0), "{}{}", stdout(&first), stderr(&first));
    assert!(stdout(&first).contains("ceilings: fma"), "{}", stdout(&first));
    assert!(
        fs::read_to_string(csv)
            .expect("written")
            .contains("attention/tiled/f32/softmax/b1h1n64d16")
    );

    let more = ["--compare", text(&json), "--report", text(&report), "--peers", text(&peers)];
    let second = program(&[&asked[..], &more].concat());
    let said = stdout(&second);
    assert_eq!(second.status.code(), Some(0), "{said}{}", stderr(&second));
    assert!(said.contains("this run is faster") && said.contains("geometric mean"), "{said}");
    assert!(said.contains("other 1"), "{said}");
    assert!(stderr(&second).contains("the rest is not for it"), "{}", stderr(&second));
    let page = fs::read_to_string(report.join("index.html")).expect("written");
    for words in ["flash: time", "sparse: time", "roofline", "1 / density", "Other programs"] {
        assert!(page.contains(words), "no `{words}` in the report");
    }
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(
        !page.contains("{{") && !page.contains("src=") && !page.contains("href="),
        "all in one"
    );
}

#[test]
fn bad_options_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let [record, empty, inside] =
        ["old.json", "empty", "old.json/in"].map(|name| folder.path().join(name));
    fs::write(&record, "{}").expect("written");
    fs::create_dir(&empty).expect("a folder");
    let cases: [(&[&str], &str); 9] = [
        (&["--compare", "no/such.json"], "no/such.json"),
        (&["--compare", text(&record)], "expected a record of `bench --json`"),
        (&["--peers", "no/such/folder"], "no/such/folder"),
        (&["--peers", text(&empty)], "which has none"),
        (&["--report", text(&inside)], "--report: cannot make the folder"),
        (&["--family", "flash,dense"], "possible values: flash"),
        (&["--density", "1.5"], "above 0 and up to 1"),
        (&["--dtype", "f8"], "expected one of f32, f16, bf16"),
        (&["--causal=maybe"], "possible values: no, yes"),
    ];
    for (args, words) in cases {
        let refused = program(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(words), "{args:?}: {}", stderr(&refused));
        assert_eq!(stdout(&refused), "", "{args:?}");
    }
    if common::context().is_none() {
        return;
    }
    for (args, words) in [(["--kv-heads", "5"], "key_heads"), (["--variant", "fast"], "--variant")]
    {
        let refused = program(&args);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(words), "{}", stderr(&refused));
    }
}

#[test]
fn times_every_kernel_of_linear_attention() {
    let Some(context) = common::context() else { return };
    // A CPU driver has one kernel more, and in front.
    let (first, count) = if context.caps().is_cpu { ("columns", 3) } else { ("chunked", 2) };
    let small =
        ["--quick", "--family", "linear", "--seconds", "0", "--heads", "2", "--dtype", "f32"];
    let shape = ["--lengths", "96", "--head-dim", "16", "--variant", "all"];
    for (carry, end) in [(&[][..], ""), (&["--carry"][..], "/carry")] {
        let record = json(&[&small[..], &shape, carry].concat());
        let rows = record["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), count, "{rows:?}");
        assert_eq!(rows[0]["label"], format!("linear/{first}/f32/decay/b1h2n96d16{end}"));
        assert_eq!(rows[0]["repetitions"], 10);
    }
}
