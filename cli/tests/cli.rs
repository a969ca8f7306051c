//! The command-line program from outside: results, exit status, and what it says about bad input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::Value;
use tempfile::TempDir;

mod common;

fn minilm() -> String {
    common::data("minilm-512.safetensors")
}

fn program(args: &[&str]) -> Output {
    common::program().args(args).output().expect("the program runs")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// The whole of stdout as JSON, of a run that ended well.
fn json(args: &[&str]) -> Value {
    let output = program(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}{}", stdout(&output), stderr(&output));
    serde_json::from_str(stdout(&output)).expect("stdout holds JSON alone")
}

/// A tensor to be: name, dtype, shape, bytes.
#[derive(Clone)]
struct Tensor(&'static str, Dtype, Vec<usize>, Vec<u8>);

fn floats(name: &'static str, shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let seed = name.len() + 3;
    let bytes = (0..count)
        .flat_map(|i| (((i * seed * 37) % 61) as f32 / 30.0 - 1.0).to_le_bytes())
        .collect();
    Tensor(name, Dtype::F32, shape.to_vec(), bytes)
}

fn integers(name: &'static str, shape: &[usize], numbers: &[i64]) -> Tensor {
    let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    Tensor(name, Dtype::I64, shape.to_vec(), bytes)
}

fn bytes(name: &'static str, dtype: Dtype, shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    Tensor(name, dtype, shape.to_vec(), (0..count).map(|i| u8::from(i % 3 != 1)).collect())
}

/// Two sequences, four query heads over two, six queries, ten keys, and all side arrays.
fn everything() -> Vec<Tensor> {
    vec![
        floats("q", &[2, 4, 6, 8]),
        floats("k", &[2, 2, 10, 8]),
        floats("v", &[2, 2, 10, 4]),
        floats("alibi_slopes", &[4]),
        floats("key_bias", &[1, 4, 10]),
        floats("bias", &[2, 1, 6, 10]),
        bytes("mask", Dtype::BOOL, &[1, 4, 6, 10]),
        integers("query_offset", &[2], &[4, -1]),
        integers("cu_seqlens_q", &[3], &[0, 4, 6]),
        integers("cu_seqlens_k", &[3], &[0, 5, 10]),
        integers("key_lengths", &[2], &[10, 7]),
        integers("roles_q", &[6], &[0, 0, 1, 1, 2, 2]),
        integers("roles_k", &[10], &[0, 0, 0, 1, 1, 1, 2, 2, 2, 2]),
        bytes("role_table", Dtype::U8, &[3, 3]),
        integers("tree_bits", &[6], &[1, 3, 7, 11, 19, -1]),
    ]
}

/// All of [`everything`], with these in place of those of their names.
fn with(changed: &[Tensor]) -> Vec<Tensor> {
    let kept = everything().into_iter().filter(|old| changed.iter().all(|new| new.0 != old.0));
    kept.chain(changed.iter().cloned()).collect()
}

fn without(name: &str) -> Vec<Tensor> {
    everything().into_iter().filter(|tensor| tensor.0 != name).collect()
}

/// A folder with an input file in it.
struct Folder(TempDir);

impl Folder {
    fn new(tensors: &[Tensor]) -> Self {
        let views = tensors.iter().map(|Tensor(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor"))
        });
        Self::of_bytes(&serialize(views, None).expect("a file"))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        fs::write(folder.path("in.safetensors"), bytes).expect("a file");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `run in.safetensors --output out.safetensors` and more.
    fn run(&self, args: &[&str]) -> Output {
        let [input, output] = ["in.safetensors", "out.safetensors"].map(|name| self.path(name));
        let paths = [text(&input), "--output", text(&output)];
        program(&[&["run"], &paths[..], args].concat())
    }

    fn files(&self) -> usize {
        fs::read_dir(self.0.path()).expect("a folder").count()
    }

    /// Runs, and expects bad input that says all of `words`, and nothing written.
    fn refused(&self, args: &[&str], words: &[&str]) {
        let output = self.run(args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: no `{word}` in: {said}");
        }
        assert_eq!(stdout(&output), "", "{args:?}");
        assert_eq!(self.files(), 1, "{args:?} left a file behind");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// One of the results, as numbers.
fn read_floats(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = fs::read(path).expect("a file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = file.tensor(name).expect(name);
    assert_eq!(tensor.dtype(), Dtype::F32);
    let number = |chunk: &[u8]| f32::from_le_bytes(chunk.try_into().expect("four bytes"));
    (tensor.shape().to_vec(), tensor.data().chunks_exact(4).map(number).collect())
}

#[test]
fn reference_reproduces_minilm() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.safetensors");
    let args =
        ["run", &minilm(), "--prefix", "layer3.", "--adapter", "reference", "--check", "--json"];
    let report = json(&[&args[..], &["--output", text(&out)]].concat());
    assert_eq!(report["check"]["ok"], true);
    assert_eq!(report["check"]["rows"], report["check"]["of"]);
    assert_eq!(report["check"]["tensors"][1]["against"], "layer3.out");

    let (shape, got) = read_floats(&out, "out");
    let (_, wanted) = read_floats(Path::new(&minilm()), "layer3.out");
    assert_eq!(shape, [1, 12, 512, 32]);
    let error = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-6, "{error}");
}

#[test]
fn results_have_the_shapes_and_infinities_that_are_promised() {
    let folder = Folder::new(&with(&[integers("key_lengths", &[2], &[0, 7])]));
    let args = ["--adapter", "reference", "--mask", "lengths", "--lse", "--scores", "masked"];
    let output = folder.run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let out = folder.path("out.safetensors");
    let (shape, numbers) = read_floats(&out, "out");
    assert_eq!(shape, [2, 4, 6, 4]);
    assert!(numbers[..4 * 6 * 4].iter().all(|&x| x == 0.0), "rows without keys are 0");
    let (shape, lse) = read_floats(&out, "lse");
    assert_eq!(shape, [2, 4, 6]);
    assert!(lse[..24].iter().all(|&x| x == f32::NEG_INFINITY));
    assert!(lse[24..].iter().all(|x| x.is_finite()));
    let (shape, scores) = read_floats(&out, "scores");
    assert_eq!(shape, [2, 4, 6, 10]);
    assert_eq!(scores.iter().filter(|&&x| x == f32::NEG_INFINITY).count(), 240 + 24 * 3);
}

#[test]
fn every_mask_word_finds_its_tensors() {
    let folder = Folder::new(&with(&[floats("sinks", &[4])]));
    for mask in ["documents & causal", "lengths | sink(1)", "roles", "tree", "dense & window(2)"] {
        let output = folder.run(&["--adapter", "reference", "--mask", mask, "--check"]);
        assert_eq!(output.status.code(), Some(0), "{mask}: {}", stderr(&output));
    }
}

#[test]
fn missing_tensors_are_named() {
    for (tensor, mask) in [
        ("q", "full"),
        ("k", "full"),
        ("v", "full"),
        ("cu_seqlens_q", "documents"),
        ("cu_seqlens_k", "documents"),
        ("key_lengths", "lengths & causal"),
        ("roles_q", "roles"),
        ("roles_k", "roles"),
        ("role_table", "roles"),
        ("tree_bits", "tree"),
        ("mask", "dense"),
    ] {
        let name = format!("`{tensor}`");
        Folder::new(&without(tensor)).refused(&["--mask", mask], &[&name, "expected", "got"]);
    }
    let prefixed = ["--prefix", "layer3."];
    Folder::new(&everything()).refused(&prefixed, &["`layer3.q`", "alibi_slopes"]);
}

#[test]
fn wrong_tensors_are_named_with_what_was_expected_and_what_came() {
    let wide = || integers("key_lengths", &[2], &[10, 1 << 40]);
    let cases: Vec<(Tensor, &str, &[&str])> = vec![
        (floats("q", &[4, 6, 8]), "full", &["`q`", "[B, Hq, Nq, dk]", "[4, 6, 8]"]),
        (floats("q", &[1 << 32, 2, 4, 0, 8]), "full", &["`q`", "[B, Hq, Nq, dk]", "4294967296, 2"]),
        (floats("q", &[2, 4, 0, 1 << 32]), "full", &["`q`", "[B, Hq, Nq, dk]", "4294967296]"]),
        (floats("k", &[2, 2, 10, 7]), "full", &["`k`", "= [2, any, any, 8]", "[2, 2, 10, 7]"]),
        (floats("k", &[2, 3, 10, 8]), "full", &["key_heads", "divisor of the 4", "got 3"]),
        (floats("k", &[2, 0, 10, 8]), "full", &["key_heads", "got 0"]),
        (floats("v", &[2, 2, 9, 4]), "full", &["`v`", "[2, any, 10, any]", "[2, 2, 9, 4]"]),
        (floats("v", &[2, 2, 10, 600]), "full", &["value_dim", "576", "600"]),
        (Tensor("q", Dtype::F64, vec![2, 4, 6, 8], vec![0; 3072]), "full", &["`q`", "F16", "F64"]),
        (Tensor("v", Dtype::F16, vec![2, 2, 10, 4], vec![0; 320]), "full", &["`v`", "f32", "f16"]),
        (floats("alibi_slopes", &[3]), "full", &["`alibi_slopes`", "[Hq] = [4]", "[3]"]),
        (floats("key_bias", &[3, 4, 10]), "full", &["`key_bias`", "[2|1, 4|1, 10]", "[3, 4, 10]"]),
        (floats("sinks", &[1, 4]), "full", &["`sinks`", "[Hq] = [4]", "[1, 4]"]),
        (floats("bias", &[2, 1, 6, 9]), "full", &["`bias`", "[2|1, 4|1, 6, 10]", "[2, 1, 6, 9]"]),
        (floats("query_offset", &[2]), "full", &["`query_offset`", "I32", "F32"]),
        (floats("out", &[2, 4, 6, 8]), "full", &["`out`", "[2, 4, 6, 4]", "[2, 4, 6, 8]"]),
        (floats("mask", &[1, 4, 6, 10]), "dense", &["`mask`", "BOOL or U8", "F32"]),
        (integers("cu_seqlens_q", &[3], &[0, 5, 4]), "documents", &["`cu_seqlens_q`", "ascending"]),
        (integers("cu_seqlens_k", &[2], &[0, 10]), "documents", &["`cu_seqlens_k`", "3", "2"]),
        (
            integers("key_lengths", &[2], &[10, 11]),
            "lengths",
            &["`key_lengths`", "numbers of keys from 0 to 10, got 11 at index 1"],
        ),
        (integers("key_lengths", &[2], &[-3, 7]), "lengths", &["`key_lengths`", "-3 at index 0"]),
        (wide(), "lengths", &["`key_lengths`", "1099511627776 at index 1"]),
        (
            integers("roles_q", &[6], &[0, 3, 0, 0, 0, 0]),
            "roles",
            &["`roles_q`", "0 to 2", "got 3"],
        ),
        (bytes("role_table", Dtype::BOOL, &[2, 3]), "roles", &["`role_table`", "[R, R]", "[2, 3]"]),
        (integers("tree_bits", &[5], &[0; 5]), "tree", &["`tree_bits`", "[6]", "[5]"]),
    ];
    for (tensor, mask, words) in cases {
        Folder::new(&with(&[tensor])).refused(&["--adapter", "reference", "--mask", mask], words);
    }
}

#[test]
fn wrong_options_are_named() {
    let folder = Folder::new(&everything());
    let cases: &[(&[&str], &[&str])] = &[
        (&["--mask", "causal & windw(3)"], &["--mask", "column 10"]),
        (&["--mask", "sink(1)|sink(2)|prefix(3)|causal|tree"], &["mask", "at most 4"]),
        (&["--scale", "nan"], &["scale", "finite"]),
        (&["--softcap", "-1"], &["softcap", "above 0"]),
        (&["--sigmoid-bias", "-1"], &["--sigmoid-bias", "softmax"]),
        (&["--activation", "sigmoid", "--lse"], &["lse", "sigmoid"]),
        (&["--align", "top-left"], &["--align", "`query_offset`"]),
        (&["--scores", "raw"], &["--scores", "probabilities"]),
        (&["--variant", "fast"], &["--variant", "tiled"]),
        (&["--pattern", "moon(3)"], &["--pattern", "strided(stride)", "oracle"]),
        (&["--pattern", "oracle(density=2)"], &["--pattern", "up to 1"]),
        (&["--pattern", "sink(1)", "--keys", "blocks"], &["--pattern", "--keys"]),
        (&["--keys", "blocks"], &["`block_offsets`", "--keys is blocks"]),
        (&["--keys", "indices"], &["`key_index_offsets`", "--keys is indices"]),
        (&["--block", "a"], &["--block", "number of tokens"]),
        (&["--pattern", "sink(1)", "--block", "0"], &["--block", "at least 1"]),
        (&["--pattern", "sink(1)", "--block", "16,0"], &["--block", "at least 1"]),
        (&["--keys", "blocks", "--block", "17"], &["--block", "multiple of 16", "17"]),
        (&["--block", "64"], &["--block", "--keys or --pattern"]),
        (&["--lists", "batch"], &["--lists", "--keys"]),
        (&["--pattern", "sink(1)", "--lists", "batch"], &["--lists", "--keys"]),
        (&["--keys", "blocks", "--lists", "head"], &["--lists", "batch,query-head", "`head`"]),
        (&["--pattern", "oracle(0.5,16)", "--block", "16"], &["--block", "oracle", "both"]),
        (&["--pattern", "strided(0)"], &["--pattern", "stride of at least 1", "`strided(0)`"]),
        (&["--pattern", "dilated(3,0)"], &["--pattern", "step of at least 1", "`dilated(3,0)`"]),
        (&["--pattern", "random(2)"], &["--pattern", "up to 1", "`random(2)`"]),
        (&["--op", "linear", "--block", "16"], &["--block", "--op attention"]),
        (&["--adapter", "no such adapter"], &["--adapter", "no such adapter"]),
        (&["--adapter", "reference", "--variant", "tiled"], &["--variant", "reference"]),
        (&["--adapter", "reference", "--tune"], &["--tune", "reference"]),
        (&["--variant", "tiled", "--tune"], &["--variant", "--tune"]),
        (&["--op", "linear", "--tune"], &["--tune", "--op attention"]),
    ];
    for (args, words) in cases {
        folder.refused(args, words);
    }
    let nothing_asked = program(&["run", text(&folder.path("in.safetensors"))]);
    assert_eq!(nothing_asked.status.code(), Some(2));
    assert!(stderr(&nothing_asked).contains("--output"));
}

#[test]
fn unreadable_files_are_named() {
    let whole = fs::read(minilm()).expect("test data");
    for broken in [&whole[..0], &whole[..7], &whole[..100], &whole[..whole.len() - 1]] {
        Folder::of_bytes(broken).refused(&[], &["in.safetensors", "safetensors file"]);
    }
    let unknown = br#"{"q":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}"#;
    let unknown = [&(unknown.len() as u64).to_le_bytes()[..], unknown, &[0; 4]].concat();
    Folder::of_bytes(&unknown).refused(&[], &["in.safetensors", "F7"]);
    let absent = program(&["run", "no/such.safetensors", "--check"]);
    assert_eq!(absent.status.code(), Some(2));
    assert!(stderr(&absent).contains("no/such.safetensors"));
}

#[test]
fn unwritable_outputs_are_refused_before_anything_is_computed() {
    let folder = Folder::new(&everything());
    let input = folder.path("in.safetensors");
    let [absent, itself] = [folder.path("no/out"), folder.path("./in.safetensors")];
    for output in [&absent, &itself, folder.0.path()] {
        // An adapter that does not exist: it is not reached.
        let args = ["run", text(&input), "--adapter", "none", "--output", text(output)];
        let output = program(&args);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("--output"), "{}", stderr(&output));
        assert_eq!(folder.files(), 1);
    }
}

/// Rows that f32 cannot tell are counted and said, and the status is neither that of a success nor that of
/// a failure.
#[test]
fn a_check_that_cannot_judge_says_so() {
    let mut tensors = with(&[floats("bias", &[1, 1, 6, 10])]);
    let bias = tensors.last_mut().expect("the bias");
    for row in bias.3.chunks_mut(10 * 4).take(2) {
        row.chunks_mut(4).for_each(|number| number.copy_from_slice(&(-1e9f32).to_le_bytes()));
    }
    let folder = Folder::new(&tensors);
    let output = folder.run(&["--adapter", "reference", "--check", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let report: Value = serde_json::from_str(stdout(&output)).expect("JSON alone");
    let check = &report["check"];
    assert_eq!((&check["ok"], &check["verdict"]), (&false.into(), &"unjudged".into()));
    // Two of six queries, in each of the other rows.
    assert_eq!(
        check["tensors"][0]["unjudged"].as_u64(),
        Some(check["of"].as_u64().unwrap_or(0) / 3)
    );
    assert_eq!(folder.files(), 2, "nothing was seen to be wrong, so the output is written");
    let output = folder.run(&["--adapter", "reference", "--check"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stdout(&output).contains("rows unjudged"), "{}", stdout(&output));
    assert!(stderr(&output).contains("could not judge"), "{}", stderr(&output));
}

#[test]
fn a_failed_check_writes_nothing() {
    let folder = Folder::new(&with(&[floats("out", &[2, 4, 6, 4])]));
    let output = folder.run(&["--adapter", "reference", "--check", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let report: Value = serde_json::from_str(stdout(&output)).expect("JSON alone");
    assert_eq!(report["check"]["ok"], false);
    assert_eq!(report["check"]["tensors"][0]["ok"], true, "the reference agrees with itself");
    assert_eq!(report["check"]["tensors"][1]["ok"], false, "but not with the file");
    assert_eq!(folder.files(), 1);
}

#[test]
fn device_agrees_with_the_reference_on_real_activations() {
    if common::context().is_none() {
        return;
    }
    let minilm = json(&["run", &minilm(), "--prefix", "layer3.", "--check", "--json"]);
    assert_eq!(minilm["check"]["tensors"][1]["against"], "layer3.out");
    assert_eq!(minilm["check"]["tensors"][1]["ok"], true);
    let smollm2 = common::data("smollm2-1024.safetensors");
    for layer in ["layer10.", "layer20."] {
        let causal = ["run", &smollm2, "--prefix", layer, "--mask", "causal", "--check", "--json"];
        assert_eq!(json(&causal)["check"]["tensors"][0]["ok"], true);
    }
}

#[test]
fn device_agrees_with_the_reference_on_all_modifiers() {
    if common::context().is_none() {
        return;
    }
    let folder = Folder::new(&with(&[floats("sinks", &[4])]));
    let mask = "documents & causal | lengths & roles | tree | dense & window(2,1)";
    let args = ["--mask", mask, "--softcap", "5", "--lse", "--scores", "probabilities", "--check"];
    let output = folder.run(&args);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    for name in ["out", "lse", "scores"] {
        let (_, numbers) = read_floats(&folder.path("out.safetensors"), name);
        assert!(numbers.iter().all(|x| !x.is_nan()), "{name}");
    }
}

/// One sequence with lists of keys in every form: 2 heads over 1, 40 queries, 70 keys.
fn listed() -> Vec<Tensor> {
    vec![
        floats("q", &[1, 2, 40, 8]),
        floats("k", &[1, 1, 70, 8]),
        floats("v", &[1, 1, 70, 4]),
        bytes("block_mask", Dtype::BOOL, &[1, 2, 3, 5]),
        integers("key_index_offsets", &[4], &[0, 2, 2, 5]),
        integers("key_indices", &[5], &[3, 69, 0, 1, 40]),
    ]
}

#[test]
fn device_agrees_with_the_reference_on_lists_and_patterns() {
    if common::context().is_none() {
        return;
    }
    let folder = Folder::new(&listed());
    let offsets = Folder::new(&[
        listed()[0].clone(),
        listed()[1].clone(),
        listed()[2].clone(),
        integers("block_offsets", &[7], &[0, 1, 2, 2, 4, 4, 5]),
        integers("block_entries", &[5], &[5, 60, 0, 20, 33]),
    ]);
    for (folder, args) in [
        (&folder, ["--keys", "blocks", "--block", "16"]),
        (&offsets, ["--keys", "blocks", "--block", "16"]),
        (&folder, ["--keys", "indices", "--block", "16"]),
        (&folder, ["--pattern", "sink(2) + window(9)", "--block", "16,32"]),
        (&folder, ["--pattern", "oracle(density=0.3, block=16)", "--mask", "causal"]),
    ] {
        let output = folder.run(&[&args[..], &["--check", "--lse"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    }
    let wrong = [listed(), vec![integers("block_offsets", &[2], &[0, 0])]].concat();
    let wrong: Vec<_> = wrong.into_iter().filter(|tensor| tensor.0 != "block_mask").collect();
    let wrong = [wrong, vec![integers("block_entries", &[1], &[0])]].concat();
    let keys = ["--keys", "blocks", "--block", "16"];
    let readings = ["`block_offsets`", "4 (shared), 7 (query-head)", "got 2 values"];
    Folder::new(&wrong).refused(&keys, &readings);
}

/// Each row of a list names one key: who has a list of his own gets that key's value.
#[test]
fn lists_that_fit_two_readings_are_told_apart() {
    let value = |batch: usize, head: usize, key: usize| (100 * batch + 10 * head + key) as f32;
    let values = (0..2).flat_map(|batch| {
        (0..3).flat_map(move |head| (0..6).map(move |key| value(batch, head, key)))
    });
    let folder = Folder::new(&[
        floats("q", &[2, 6, 16, 8]),
        floats("k", &[2, 3, 6, 8]),
        Tensor("v", Dtype::F32, vec![2, 3, 6, 1], values.flat_map(f32::to_le_bytes).collect()),
        integers("key_index_offsets", &[7], &[0, 1, 2, 3, 4, 5, 6]),
        integers("key_indices", &[6], &[0, 1, 2, 3, 4, 5]),
    ]);
    let list = ["--adapter", "reference", "--keys", "indices", "--block", "16"];
    let both = ["`key_index_offsets`", "--lists query-head or --lists batch,key-head", "7 values"];
    folder.refused(&list, &both);
    type Row = fn(usize, usize) -> usize;
    let readings: [(&str, Row); 2] =
        [("query-head", |_, head| head), ("batch, key-head", |batch, head| 3 * batch + head / 2)];
    for (lists, row) in readings {
        let output = folder.run(&[&list[..], &["--lists", lists]].concat());
        assert_eq!(output.status.code(), Some(0), "{lists}: {}", stderr(&output));
        let (_, numbers) = read_floats(&folder.path("out.safetensors"), "out");
        fs::remove_file(folder.path("out.safetensors")).expect("there");
        for (index, number) in numbers.iter().enumerate() {
            let (batch, head) = (index / 96, index / 16 % 6);
            assert_eq!(*number, value(batch, head / 2, row(batch, head)), "{lists} {batch} {head}");
        }
    }
    folder.refused(
        &[&list[..], &["--lists", "batch"]].concat(),
        &["`key_index_offsets`", "3 values: 2 x 1 x 1 rows and the end", "7 values"],
    );
}

#[test]
fn lists_without_queries_are_taken() {
    let empty = |name| floats(name, &[2, 6, 0, 8]);
    let folder = Folder::new(&[
        empty("q"),
        floats("k", &[2, 3, 70, 8]),
        floats("v", &[2, 3, 70, 4]),
        integers("block_offsets", &[1], &[0]),
        integers("block_entries", &[0], &[]),
        integers("key_index_offsets", &[1], &[0]),
        integers("key_indices", &[0], &[]),
        bytes("masked.block_mask", Dtype::BOOL, &[2, 1, 0, 5]),
        empty("masked.q"),
        floats("masked.k", &[2, 3, 70, 8]),
        floats("masked.v", &[2, 3, 70, 4]),
    ]);
    let device: &[&[&str]] = if common::context().is_some() { &[&[]] } else { &[] };
    for adapter in [&[&["--adapter", "reference"][..]], device].concat() {
        for list in [
            &["--keys", "blocks"][..],
            &["--keys", "indices"],
            &["--keys", "blocks", "--lists", "batch,query-head"],
            &["--keys", "blocks", "--block", "16", "--prefix", "masked."],
        ] {
            let output = folder.run(&[adapter, list, &["--check"]].concat());
            assert_eq!(output.status.code(), Some(0), "{list:?}: {}", stderr(&output));
            let (shape, _) = read_floats(&folder.path("out.safetensors"), "out");
            assert_eq!(shape, [2, 6, 0, 4]);
        }
    }
}

/// What the library refuses is told by the names that the file has.
#[test]
fn lists_are_named_as_in_the_file() {
    let lists = |offsets: &[i64], entries: &[i64]| {
        let tensors = vec![
            floats("a.q", &[1, 2, 40, 8]),
            floats("a.k", &[1, 1, 70, 8]),
            floats("a.v", &[1, 1, 70, 4]),
            integers("a.block_offsets", &[offsets.len()], offsets),
            integers("a.block_entries", &[entries.len()], entries),
            integers("a.key_index_offsets", &[offsets.len()], offsets),
            integers("a.key_indices", &[entries.len()], entries),
            bytes("a.mask", Dtype::BOOL, &[1, 1, 40, 70]),
        ];
        Folder::new(&tensors)
    };
    let run = ["--adapter", "reference", "--prefix", "a.", "--block", "16", "--keys"];
    for (offsets, entries, [blocks, indices], words) in [
        (
            &[0, 1, 2, 3],
            &[0, 16, 70],
            ["`a.block_entries`", "`a.key_indices`"],
            "expected keys from 0 to 69, got 70 at place 0 of row 2",
        ),
        (
            &[0, 2, 2, 3],
            &[3, 3, 0],
            ["`a.block_entries`", "`a.key_indices`"],
            "after the one before, got 3 at place 1 of row 0",
        ),
        (
            &[0, 2, 1, 3],
            &[0, 16, 0],
            ["`a.block_offsets`", "`a.key_index_offsets`"],
            "expected ascending values, got 1 after 2 at 2",
        ),
    ] {
        let folder = lists(offsets, entries);
        folder.refused(&[&run[..], &["blocks"]].concat(), &[blocks, words]);
        folder.refused(&[&run[..], &["indices"]].concat(), &[indices, words]);
    }
    let folder = lists(&[0; 44], &[]);
    let readings = ["`a.block_offsets`", "4 (shared), 7 (query-head), got 44 values"];
    folder.refused(&[&run[..], &["blocks"]].concat(), &readings);
    if common::context().is_some() {
        // The mask has gaps in every block.
        let claim = lists(&[0, 1, 1, 1], &[0x8000_0000]);
        let args = ["--prefix", "a.", "--block", "16", "--keys", "blocks", "--mask", "dense"];
        claim.refused(&args, &["`a.block_entries`", "full entries only where"]);
    }
}

/// Every tensor of a file is used, or named on stderr, or refused where that was asked for.
#[test]
fn unused_tensors_are_told() {
    let unused = |folder: &Folder, args: &[&str], said: &[&str]| {
        let output = folder.run(&[&["--adapter", "reference", "--json"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        let lines: Vec<&str> = stderr(&output).lines().collect();
        assert_eq!(lines.len(), said.len(), "{args:?}: {lines:?}");
        for (line, words) in lines.iter().zip(said) {
            assert!(line.starts_with("warning: tensor"), "{line}");
            assert!(line.contains(words), "{args:?}: no `{words}` in: {line}");
        }
        let report: Value = serde_json::from_str(stdout(&output)).expect("JSON alone");
        assert_eq!(report["dtype"], "f32");
        fs::remove_file(folder.path("out.safetensors")).expect("written");
        let strict = [&["--adapter", "reference", "--strict"], args].concat();
        if said.is_empty() {
            assert_eq!(folder.run(&strict).status.code(), Some(0), "{args:?}");
        } else {
            folder.refused(&strict, &[&["--strict: "], said].concat());
        }
    };
    let all = [
        "`cu_seqlens_k` is not used: it needs the word `documents`",
        "`cu_seqlens_q` is not used: it needs the word `documents`",
        "`key_lengths` is not used: it needs the word `lengths`",
        "`mask` is not used: it needs the word `dense`",
        "`role_table` is not used: it needs the word `roles`",
        "`roles_k` is not used: it needs the word `roles`",
        "`roles_q` is not used: it needs the word `roles`",
        "`tree_bits` is not used: it needs the word `tree`",
    ];
    unused(&Folder::new(&everything()), &["--mask", "causal"], &all);
    let every_word = ["--mask", "documents & tree | lengths | roles | dense"];
    unused(&Folder::new(&everything()), &every_word, &[]);
    let some = ["q", "k", "v"]
        .map(|name| everything().into_iter().find(|tensor| tensor.0 == name).expect("there"));
    let and = |more: Vec<Tensor>| Folder::new(&[some.to_vec(), more].concat());
    let list = vec![
        bytes("block_mask", Dtype::BOOL, &[1, 1, 1, 1]),
        integers("block_offsets", &[2], &[0, 0]),
        integers("key_indices", &[0], &[]),
    ];
    let needs = [
        "`block_mask` is not used: it needs --keys blocks",
        "`block_offsets` is not used: it needs --keys blocks and a file without `block_mask`",
        "`key_indices` is not used: it needs --keys indices",
    ];
    unused(&and(list.clone()), &[], &needs);
    unused(&and(list), &["--keys", "blocks", "--block", "16"], &needs[1..]);
    let strange = vec![
        bytes("attn_mask", Dtype::BOOL, &[1, 4, 6, 10]),
        floats("gate", &[2, 2, 6]),
        floats("tokens", &[3]),
    ];
    let said = [
        "`attn_mask` is not used: --op attention knows no such name; did you mean `mask`?",
        "`gate` is not used: it needs --op linear",
        "`tokens` is not used: --op attention knows no such name",
    ];
    unused(&and(strange), &[], &said);
}

#[test]
fn the_help_says_what_is_not_obvious() {
    let help = program(&["run", "--help"]);
    for words in [
        "window(L,R) with `inf` for no bound",
        "query i sees the keys up to i + key_lengths[b] − Nq",
        "An entry of `block_entries` is the first key of its block",
        "--strict",
        "--lists",
    ] {
        assert!(stdout(&help).contains(words), "no `{words}`");
    }
}

/// A machine without a driver still has the reference.
#[test]
#[cfg(target_os = "linux")]
fn without_a_driver_the_reference_is_named() {
    let without = |args: &[&str]| {
        let mut program = common::program();
        let none = "/nonexistent/driver.json";
        program.env("VK_DRIVER_FILES", none).env("VK_ICD_FILENAMES", none);
        program.env_remove("VK_ADD_DRIVER_FILES").args(args).output().expect("the program runs")
    };
    let run = without(&["run", &minilm(), "--prefix", "layer3.", "--check"]);
    assert_eq!(run.status.code(), Some(1), "{}", stderr(&run));
    assert!(stderr(&run).contains("--adapter reference"), "{}", stderr(&run));
    let info = without(&["info", "--json"]);
    assert_eq!((info.status.code(), stdout(&info).trim()), (Some(0), "[]"));
    assert!(stderr(&info).contains("--adapter reference"), "{}", stderr(&info));
}

/// Mesa's device selection complains where there is no folder for Wayland's sockets.
#[test]
fn good_results_come_without_noise() {
    if common::context().is_none() {
        return;
    }
    for folder in [None, Some("relative")] {
        let mut program = common::program();
        program.env_remove("XDG_RUNTIME_DIR").envs(folder.map(|f| ("XDG_RUNTIME_DIR", f)));
        let info = program.args(["info", "--json"]).output().expect("the program runs");
        assert_eq!(info.status.code(), Some(0));
        assert!(!stderr(&info).contains("XDG_RUNTIME_DIR"), "{}", stderr(&info));
    }
}

#[test]
fn quality_is_measured_and_drawn() {
    if common::context().is_none() {
        return;
    }
    let q = |name| floats(name, &[1, 1, 200, 8]);
    let folder = Folder::new(&[q("q"), q("k"), q("v"), floats("sinks", &[1]), q("extra")]);
    let [input, csv, svg] = ["in.safetensors", "q.csv", "q.svg"].map(|name| folder.path(name));
    let files = [text(&input), "--csv", text(&csv), "--svg", text(&svg), "--prefix", ""];
    let small = ["--density", "0.3", "--seconds", "0"];
    let output = program(&[&["quality"], &files[..], &small].concat());
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).contains("oracle"));
    assert!(stderr(&output).contains("tensor `extra` is not used"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(csv).expect("written").lines().count(), 2 + 6);
    assert!(fs::read_to_string(svg).expect("written").starts_with("<svg"));
}

#[test]
fn kernels_are_printed_and_refused_by_name() {
    if common::context().is_none() {
        return;
    }
    let printed =
        program(&["run", &minilm(), "--prefix", "layer3.", "--print-wgsl", "--variant", "tiled"]);
    assert_eq!(printed.status.code(), Some(0), "{}", stderr(&printed));
    assert!(stdout(&printed).contains("@compute"));
    // By the name that the program prints, too.
    let label = ["--print-wgsl", "--variant", "attention.tiled"];
    let by_label = program(&[&["run", &minilm(), "--prefix", "layer3."], &label[..]].concat());
    assert_eq!(stdout(&by_label), stdout(&printed), "{}", stderr(&by_label));
    let unsupported =
        program(&["run", &minilm(), "--prefix", "layer3.", "--check", "--variant", "scores"]);
    assert_eq!(unsupported.status.code(), Some(2), "{}", stderr(&unsupported));
    assert!(stderr(&unsupported).contains("attention.scores"));
}

#[test]
fn tuned_kernels_are_kept_and_right() {
    if common::context().is_none() {
        return;
    }
    let cache = tempfile::tempdir().expect("a folder");
    let args = ["run", &minilm(), "--prefix", "layer3.", "--check", "--json", "--tune"];
    let tuned = common::program()
        .args(args)
        .env("WGPU_ATTENTION_CACHE", cache.path())
        .output()
        .expect("the program runs");
    assert_eq!(tuned.status.code(), Some(0), "{}", stderr(&tuned));
    let report: Value = serde_json::from_str(stdout(&tuned)).expect("JSON");
    let kept = fs::read_to_string(cache.path().join("tuned.tsv")).expect("a file of choices");
    let kernel = report["variant"].as_str().and_then(|label| label.strip_prefix("attention."));
    let chosen =
        format!("{} {}", kernel.expect("a kernel"), report["tiles"].as_str().expect("tiles"));
    assert!(kept.contains(&chosen), "{chosen} is not in {kept}");
}
