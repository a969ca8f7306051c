//! The parsers of masks and patterns on texts of random bytes and of random words: each is refused with
//! a sentence, or has a meaning that its own text gives back. `WGPU_ATTENTION_FUZZ_SECONDS` draws for
//! longer than the moment that an ordinary run takes.

mod common;

use std::time::{Duration, Instant};

use common::Random;
use wgpu_attention::{Mask, Pattern};

/// What the grammars consist of, and what nearly belongs to them.
const WORDS: [&str; 32] = [
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
];

/// Any bytes, as far as they are text.
fn bytes(random: &mut Random) -> String {
    let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.bits() as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Words in any order.
fn words(random: &mut Random) -> String {
    (0..random.below(24)).map(|_| WORDS[random.below(WORDS.len() as u32) as usize]).collect()
}

/// Never panics; what parses is a valid mask that its own text means too.
fn parse(text: &str) -> bool {
    let pattern = text.parse::<Pattern>().is_ok();
    match text.parse::<Mask>() {
        Err(error) => {
            assert!(!error.to_string().is_empty(), "`{text}`");
            pattern
        }
        Ok(mask) => {
            assert_eq!(mask.validate(), Ok(()), "`{text}`");
            assert_eq!(mask.to_string().parse(), Ok(mask.clone()), "`{text}` as `{mask}`");
            true
        }
    }
}

#[test]
fn parsers_take_any_text() {
    let seconds = std::env::var("WGPU_ATTENTION_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(0));
    let start = Instant::now();
    let mut random = Random::new(seconds.unwrap_or(0));
    let (mut texts, mut parsed) = (0u64, 0u64);
    while texts < 20_000 || start.elapsed() < time {
        for text in [bytes(&mut random), words(&mut random)] {
            texts += 1;
            parsed += u64::from(parse(&text));
        }
    }
    eprintln!("{texts} texts, {parsed} of them parsed");
    assert!(parsed > 100, "only {parsed} of {texts} texts parsed");
    // Depth alone is no way to run out of stack.
    assert!(!parse(&"(".repeat(1 << 20)));
}
