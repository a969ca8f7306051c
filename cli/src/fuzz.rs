//! What people hand to the program, drawn from bytes: texts, command lines and files. None of it may panic
//! or take long, and what is taken means something.
//!
//! This is the fuzz target `texts`; what it kept of a long run is replayed as a test.

use arbitrary::{Arbitrary, Result, Unstructured};
use clap::Parser as _;
use serde_json::{Value, json};
use wgpu_attention::{Mask, Pattern};

use crate::input::File;
use crate::{Cli, Command, run};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| texts(bytes));

/// What the grammars consist of, and what nearly belongs to them.
const WORDS: [&str; 36] = [
    "causal",
    "causal_top_left",
    "window(",
    "sink(",
    "prefix(",
    "documents",
    "lengths",
    "roles",
    "tree",
    "dense",
    "full",
    "&",
    "|",
    "(",
    ")",
    ",",
    "inf",
    "0",
    "17",
    "4294967295",
    "99999999999",
    "-1",
    "0.5",
    "NaN",
    "1e300",
    " ",
    "+",
    "=",
    "random(",
    "bigbird(",
    "seed=",
    "é",
    "oracle(",
    "released:",
    "/",
    "16",
];

/// Options of `run` and some values for each; none for those that stand alone.
const RUN: [(&str, &[&str]); 20] = [
    ("--op", &["linear", "attention"]),
    ("--prefix", &["", "a."]),
    (
        "--mask",
        &[
            "causal & (window(3,0) | sink(1))",
            "documents & causal | prefix(2)",
            "roles & lengths",
            "tree | dense",
            "dense & lengths | documents & tree | roles | causal_top_left",
        ],
    ),
    ("--activation", &["sigmoid", "softmax"]),
    ("--sigmoid-bias", &["-1.5", "inf"]),
    ("--align", &["top-left", "bottom-right"]),
    ("--scale", &["0.5", "-1", "NaN", "3e38"]),
    ("--softcap", &["10", "0", "-1"]),
    ("--keys", &["blocks", "indices", "dense"]),
    ("--block", &["16", "16,32", "0", "7", "128,4294967295", "4294967280,16"]),
    (
        "--pattern",
        &[
            "sink(1) + window(2)",
            "strided(3)",
            "dilated(2,3) + global(1)",
            "documents",
            "roles + window(1)",
            "random(0.5, 7)",
            "bigbird(window=1, global=1, random=1)",
            "oracle(density=0.5)",
            "window(4294967295) + dilated(4294967295,4294967295)",
        ],
    ),
    ("--lse", &[]),
    ("--rule", &["decay", "gated", "delta", "gated-delta"]),
    ("--feature-map", &["identity", "silu", "elu1", "taylor2"]),
    ("--normalize", &[]),
    ("--epsilon", &["0", "1e-3", "-1"]),
    ("--slopes", &["released:1/4", "paper:0/1", "released:4294967295/0", "paper:1/1"]),
    ("--chunk", &["16", "48", "7", "0"]),
    ("--scores", &["scaled", "modified", "masked", "probabilities"]),
    ("--json", &[]),
];

/// Options of `run` that were added when there was a corpus: drawn last, so that its files mean what they
/// meant when they were found.
const LATER: [(&str, &[&str]); 2] = [
    ("--strict", &[]),
    (
        "--lists",
        &["shared", "batch", "query-head", "batch,key-head", "key-head", "batch,query-head"],
    ),
];

/// Options of the other commands.
const OTHERS: [(&str, &[&str]); 14] = [
    ("--quick", &[]),
    ("--adapter", &["reference"]),
    ("--seconds", &["0.1", "-1", "1e300", "NaN"]),
    ("--family", &["flash,linear", "merge"]),
    ("--dtype", &["f16,bf16", "f64"]),
    ("--head-dim", &["64,128", "4294967296"]),
    ("--heads", &["4", "0"]),
    ("--lengths", &["128", "0"]),
    ("--causal=no,yes", &[]),
    ("--block", &["64,32", "1"]),
    ("--density", &["0.1,0.5", "0", "1.5"]),
    ("--parts", &["4", "0"]),
    ("--variant", &["all", "tiled"]),
    ("--prefix", &["layer1."]),
];

fn texts(bytes: &[u8]) {
    // Bytes that are too few for what is drawn are as good as none.
    let _ = draw(&mut Unstructured::new(bytes));
}

fn draw(u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=7)? {
        0 => parse(&String::from_utf8_lossy(u.bytes(u.len())?)),
        1 | 2 => parse(&words(u)?),
        3 => other_command(u)?,
        _ => run_on_a_file(u)?,
    }
    Ok(())
}

/// Words in any order.
fn words(u: &mut Unstructured<'_>) -> Result<String> {
    (0..u.int_in_range(0..=24)?).map(|_| u.choose(&WORDS).copied()).collect()
}

/// A mask and a pattern, or sentences about why not; masks mean what their own text means.
fn parse(text: &str) {
    if let Err(error) = text.parse::<Pattern>() {
        assert!(!error.to_string().is_empty(), "`{text}`");
    }
    match text.parse::<Mask>() {
        Err(error) => assert!(!error.to_string().is_empty(), "`{text}`"),
        Ok(mask) => {
            assert_eq!(mask.validate(), Ok(()), "`{text}`");
            assert_eq!(mask.to_string().parse(), Ok(mask.clone()), "`{text}` as `{mask}`");
        }
    }
}

/// Some of these options, with values that are theirs or anything.
fn options(u: &mut Unstructured<'_>, known: &[(&str, &[&str])]) -> Result<Vec<String>> {
    let mut arguments = Vec::new();
    for _ in 0..u.int_in_range(0..=6)? {
        let (name, values) = u.choose(known)?;
        arguments.push((*name).to_owned());
        if u.ratio(1, 6)? {
            arguments.push(words(u)?);
        } else if !values.is_empty() {
            arguments.push((*u.choose(values)?).to_owned());
        }
    }
    Ok(arguments)
}

fn other_command(u: &mut Unstructured<'_>) -> Result<()> {
    let command = *u.choose(&["info", "bench", "quality", "run", "help"])?;
    let program = ["wgpu-attention", command, "in.safetensors"].map(str::to_owned);
    let arguments = program.into_iter().chain(options(u, &OTHERS)?);
    if let Err(error) = Cli::try_parse_from(arguments) {
        assert!(!error.to_string().is_empty());
    }
    Ok(())
}

/// `run` by the reference, on tensors in memory.
fn run_on_a_file(u: &mut Unstructured<'_>) -> Result<()> {
    let fixed = ["wgpu-attention", "run", "in.safetensors", "--adapter", "reference", "--check"];
    let drawn = options(u, &RUN)?;
    let file = File::from_bytes(file(u)?);
    let arguments = fixed.map(str::to_owned).into_iter().chain(drawn).chain(options(u, &LATER)?);
    let Ok(Cli { command: Command::Run(args) }) = Cli::try_parse_from(arguments) else {
        return Ok(());
    };
    match run::report(&args, &file, &|sentence| assert!(!sentence.is_empty())) {
        Ok(report) => assert!(!report.to_string().is_empty()),
        Err(error) => assert!(!format!("{error:#}").is_empty()),
    }
    Ok(())
}

/// The sizes that the tensors of a file share.
#[derive(Arbitrary)]
struct Sizes {
    batch: u8,
    heads: u8,
    groups: u8,
    lens: [u8; 2],
    dims: [u8; 2],
    documents: u8,
}

/// A file with most of what a configuration may ask for, in the shapes and types that go with each other
/// but for a few mistakes.
fn file(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let sizes = Sizes::arbitrary(u)?;
    let below = |byte: u8, n: usize| usize::from(byte) % n;
    let batch = below(sizes.batch, 3);
    let key_heads = 1 + below(sizes.heads, 2);
    let heads = key_heads * (1 + below(sizes.groups, 2));
    let [queries, keys] = sizes.lens.map(|len| below(len, 20));
    let [dim, value_dim] = sizes.dims.map(|dim| 1 + below(dim, 8));
    let [documents, own] = [below(sizes.documents, 3), 1 + below(sizes.documents >> 4, 2)];
    let blocks = [queries, keys].map(|len| len.div_ceil(16));
    let tensors: [(&str, &str, Vec<usize>); 29] = [
        ("q", "F32", vec![batch, heads, queries, dim]),
        ("k", "F32", vec![batch, key_heads, keys, dim]),
        ("v", "F32", vec![batch, key_heads, keys, value_dim]),
        ("a.q", "F32", vec![batch, heads, queries, dim]),
        ("out", "F32", vec![batch, heads, queries, value_dim]),
        ("alibi_slopes", "F32", vec![heads]),
        ("key_bias", "F32", vec![1, heads, keys]),
        ("bias", "F32", vec![1, 1, queries, keys]),
        ("sinks", "F32", vec![heads]),
        ("query_offset", "I64", vec![batch]),
        ("mask", "BOOL", vec![batch, 1, queries, keys]),
        ("cu_seqlens_q", "U32", vec![documents + 1]),
        ("cu_seqlens_k", "U32", vec![documents + 1]),
        ("cu_seqlens", "U32", vec![documents + 1]),
        ("key_lengths", "U32", vec![batch]),
        ("roles_q", "U8", vec![queries]),
        ("roles_k", "U8", vec![keys]),
        ("role_table", "U8", vec![own + 1, own + 1]),
        ("tree_bits", "I64", vec![queries]),
        ("block_mask", "BOOL", vec![1, heads, blocks[0], blocks[1]]),
        ("block_offsets", "U32", vec![blocks[0] + 1]),
        ("block_entries", "U32", vec![documents]),
        ("key_index_offsets", "U32", vec![heads * blocks[0] + 1]),
        ("key_indices", "U32", vec![documents]),
        ("decay", "F32", vec![key_heads]),
        ("gate", "F32", vec![batch, key_heads, keys]),
        ("beta", "F32", vec![batch, own, keys]),
        ("state", "F32", vec![batch * documents.max(1), key_heads, dim, value_dim]),
        ("normalizer", "F32", vec![batch * documents.max(1), key_heads, dim]),
    ];
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    let left_out = u32::arbitrary(u)? & u32::arbitrary(u)?;
    for (index, (name, dtype, shape)) in tensors.into_iter().enumerate() {
        if left_out >> index & 1 == 1 {
            continue;
        }
        let (dtype, shape) = if u.ratio(1, 24)? { mistaken(u, shape)? } else { (dtype, shape) };
        let bits = DTYPES.iter().find(|(name, _)| *name == dtype).map_or(0, |(_, bits)| *bits);
        let count = shape.iter().fold(1usize, |count, &size| count.saturating_mul(size));
        let start = data.len();
        fill(u, dtype, (count.min(1 << 12) * bits).div_ceil(8), &mut data)?;
        let tensor = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name.to_owned(), tensor);
    }
    let header = Value::from(header).to_string();
    let mut file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    // Rarely, what no writer would have written.
    if u.ratio(1, 8)? {
        file.truncate(u.int_in_range(0..=file.len())?);
        for _ in 0..u.int_in_range(0..=3)? {
            let place = u.choose_index(file.len().max(1))?;
            if let Some(byte) = file.get_mut(place) {
                *byte = u8::arbitrary(u)?;
            }
        }
    }
    Ok(file)
}

/// Types of elements and their bits.
const DTYPES: [(&str, usize); 12] = [
    ("F32", 32),
    ("F16", 16),
    ("BF16", 16),
    ("U32", 32),
    ("I32", 32),
    ("U64", 64),
    ("I64", 64),
    ("U8", 8),
    ("BOOL", 8),
    ("I16", 16),
    ("F8_E4M3", 8),
    ("F4", 4),
];

/// Another type or another shape, perhaps of nothing and yet vast.
fn mistaken(u: &mut Unstructured<'_>, mut shape: Vec<usize>) -> Result<(&'static str, Vec<usize>)> {
    let (dtype, _) = *u.choose(&DTYPES)?;
    match u.int_in_range(0..=3)? {
        0 => {}
        1 => shape.push(1),
        2 => drop(shape.pop()),
        _ => {
            let place = u.choose_index(shape.len().max(1))?;
            if let Some(size) = shape.get_mut(place) {
                *size = *u.choose(&[0, 1, 2, 17, 600, 1 << 16, 1 << 28, u32::MAX as usize])?;
            }
        }
    }
    Ok((dtype, shape))
}

/// Adds `count` bytes that mean something in a type.
fn fill(u: &mut Unstructured<'_>, dtype: &str, count: usize, data: &mut Vec<u8>) -> Result<()> {
    let end = data.len() + count;
    let step = u.int_in_range(0..=3)?;
    let extreme = u.ratio(1, 12)?;
    let mut number = 0u64;
    while data.len() < end {
        match dtype {
            _ if extreme => data.push(u8::arbitrary(u)?),
            // Small numbers, most gates among them at most 0.
            "F32" => data.extend((-0.25f32 * (number % 5) as f32).to_le_bytes()),
            "F16" | "BF16" => data.extend((0x3c00 + number as u16 % 64).to_le_bytes()),
            "U32" | "I32" => data.extend((number as u32).to_le_bytes()),
            "U64" | "I64" => data.extend(number.to_le_bytes()),
            _ => data.push(number as u8 & 1),
        }
        number += step;
    }
    data.truncate(end);
    Ok(())
}

/// What runs of the fuzzer have found worth keeping.
#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_is_taken_or_refused() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/texts");
        let files = std::fs::read_dir(folder).expect("the corpus");
        let mut count = 0;
        for file in files {
            let file = file.expect("a file").path();
            eprintln!("{}", file.display());
            super::texts(&std::fs::read(&file).expect("readable"));
            count += 1;
        }
        assert!(count > 10, "only {count} files in {folder}");
    }
}
