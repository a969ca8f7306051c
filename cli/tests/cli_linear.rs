//! `run --op linear` from outside.

use std::path::{Path, PathBuf};
use std::process::Output;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::Value;

mod common;

fn program(args: &[&str]) -> Output {
    common::program().args(args).output().expect("the program runs")
}

/// A tensor's name and shape, and what makes its numbers of some between −1 and 1.
type Drawn = (&'static str, &'static [usize], fn(f32) -> f32);

/// A file with everything that any rule reads: two sequences of twenty tokens, four query heads
/// over two, eight dimensions and four of values.
fn file(folder: &Path) -> PathBuf {
    let tensors: [Drawn; 9] = [
        ("q", &[2, 4, 20, 8], |x| x),
        ("k", &[2, 2, 20, 8], |x| 0.3 * x),
        ("v", &[2, 2, 20, 4], |x| x),
        ("decay", &[2], |x| x.abs()),
        ("gate", &[2, 2, 20], |x| -x.abs()),
        ("beta", &[2, 1, 20], |x| x.abs()),
        ("state", &[2, 2, 8, 4], |x| x),
        ("normalizer", &[2, 2, 8], |x| 1.0 + x.abs()),
        ("per_dim.gate", &[2, 2, 20, 8], |x| -x.abs()),
    ];
    let encoded: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape, map)| {
            let number = |i: usize| ((i * (name.len() + 3) * 37) % 61) as f32 / 30.0 - 1.0;
            (0..shape.iter().product()).flat_map(|i| map(number(i)).to_le_bytes()).collect()
        })
        .collect();
    let views = tensors.iter().zip(&encoded).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a tensor"))
    });
    let path = folder.join("in.safetensors");
    std::fs::write(&path, serialize(views, None).expect("a file")).expect("written");
    path
}

fn run(input: &Path, args: &[&str]) -> Output {
    let input = input.to_str().expect("UTF-8");
    program(&[&["run", input, "--op", "linear"], args].concat())
}

#[test]
fn every_rule_passes_its_check() {
    if common::context().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let input = file(folder.path());
    let out = folder.path().join("out.safetensors");
    let cases: [&[&str]; 6] = [
        &["--scale", "0.5"],
        &[
            "--rule",
            "gated",
            "--feature-map",
            "elu1",
            "--normalize",
            "--variant",
            "linear.recurrent",
        ],
        &["--rule", "delta", "--variant", "chunked"],
        &["--rule", "gated-delta", "--feature-map", "silu", "--chunk", "16"],
        &["--feature-map", "elu1", "--normalize", "--epsilon", "0.001"],
        &["--rule", "gated", "--adapter", "reference"],
    ];
    for case in cases {
        let output = out.to_str().expect("UTF-8");
        let given = run(&input, &[&["--check", "--json", "--output", output], case].concat());
        let stderr = String::from_utf8_lossy(&given.stderr);
        assert_eq!(given.status.code(), Some(0), "{case:?}: {stderr}");
        let report: Value = serde_json::from_slice(&given.stdout).expect("JSON alone");
        assert_eq!(report["check"]["ok"], true, "{case:?}: {report}");
        let bytes = std::fs::read(&out).expect("written");
        let written = SafeTensors::deserialize(&bytes).expect("safetensors");
        assert_eq!(written.tensor("out").expect("there").shape(), [2, 4, 20, 4]);
        assert_eq!(written.tensor("state").expect("there").shape(), [2, 2, 8, 4]);
        let normalizes = case.contains(&"--normalize");
        assert_eq!(written.tensor("normalizer").is_ok(), normalizes, "{case:?}");
        std::fs::remove_file(&out).expect("there");
    }
}

/// The file holds what every rule reads; what this rule does not read is told, or refused.
#[test]
fn unused_tensors_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = file(folder.path());
    let [decay, gate, beta] = [
        "`decay` is not used: it needs --rule decay",
        "`gate` is not used: it needs --rule gated or --rule gated-delta",
        "`beta` is not used: it needs --rule delta or --rule gated-delta",
    ];
    let normalizer = "`normalizer` is not used: it needs --normalize";
    let other = "`per_dim.gate` is not used: --op linear knows no such name; did you mean `gate`?";
    let cases: [(&[&str], &[&str]); 5] = [
        (&[], &[beta, gate, normalizer, other]),
        (&["--rule", "gated"], &[beta, decay, normalizer, other]),
        (&["--rule", "delta"], &[decay, gate, normalizer, other]),
        (&["--rule", "gated-delta"], &[decay, normalizer, other]),
        (&["--rule", "gated", "--normalize", "--feature-map", "elu1"], &[beta, decay, other]),
    ];
    for (args, said) in cases {
        let args = [&["--json", "--adapter", "reference"], args].concat();
        let given = run(&input, &args);
        let stderr = String::from_utf8_lossy(&given.stderr);
        assert_eq!(given.status.code(), Some(0), "{args:?}: {stderr}");
        let lines: Vec<String> =
            said.iter().map(|said| format!("warning: tensor {said}")).collect();
        assert_eq!(stderr.lines().collect::<Vec<_>>(), lines, "{args:?}");
        let strict = run(&input, &[&args[..], &["--strict"]].concat());
        let stderr = String::from_utf8_lossy(&strict.stderr);
        assert_eq!(strict.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(said.iter().all(|said| stderr.contains(said)), "{args:?}: {stderr}");
    }
}

#[test]
fn bad_input_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let input = file(folder.path());
    let cases: [(&[&str], &str); 7] = [
        (&["--slopes", "released:0/4"], "--slopes"),
        (
            &["--slopes", "paper:0/4", "--rule", "delta"],
            "--slopes: expected with --rule decay only",
        ),
        (&["--slopes", "nonsense"], "released:LAYER/LAYERS"),
        (&["--mask", "causal"], "--mask: expected with --op attention only"),
        (&["--rule", "delta", "--normalize"], "normalize"),
        (&["--prefix", "per_dim.", "--rule", "gated"], "per_dim.q"),
        (&["--chunk", "5"], "chunk"),
    ];
    for (args, words) in cases {
        let given = run(&input, &[&["--check", "--adapter", "reference"], args].concat());
        let stderr = String::from_utf8_lossy(&given.stderr);
        assert_eq!(given.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    let input = input.to_str().expect("UTF-8");
    let given = program(&["run", input, "--check", "--rule", "gated"]);
    assert_eq!(given.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&given.stderr).contains("--op linear only"));
}
