//! Random configurations on the device against the f64 reference.
//!
//! What is compiled in comes from a small set, see `common/draw.rs`. Real devices, which compile fast, get
//! large cases of any kind beside those.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use common::draw::{DENSE, Drawn, List, Made, Static};
use common::{Random, context, linear};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use wgpu_attention::{
    Alignment, Carry, Context, DType, FeatureMap, LinearAttention, LinearVariant, Rule, Shape,
};

/// Cases of each of what is compiled in.
const CASES: u32 = 12;

/// For how many seconds large cases are drawn; without it 60 on a GPU, and none on a CPU.
const SECONDS: &str = "WGPU_ATTENTION_RANDOM_SECONDS";

/// The number of the first large case; without it the time of day.
const SEED: &str = "WGPU_ATTENTION_RANDOM_SEED";

/// Rows of a large case that are compared with the reference, of each variant.
const ROWS: usize = 96;

/// Lengths of large cases are below this one.
const LONGEST: u32 = 2001;

fn drawn() -> impl Strategy<Value = Drawn> {
    let sizes = (
        1..4u32,
        (1..7u32, any::<u32>(), any::<u32>()),
        (0..90u32, prop_oneof![4 => 0..150u32, 1 => 150..400u32]),
        (any::<u32>(), any::<u32>()),
    );
    let axes = (
        prop::collection::vec(any::<u32>(), 4),
        any::<u32>(),
        prop::option::of(-2.0..2.0f32),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<u64>(),
    );
    (sizes, axes).prop_map(|((batch, heads, lens, dims), axes)| {
        let (words, positions, scale, modifiers, output, layout, seed) = axes;
        Drawn {
            batch,
            heads,
            lens,
            dims,
            words,
            positions,
            scale,
            modifiers,
            output,
            layout,
            lists: 0,
            seed,
        }
    })
}

/// Draws cases of one static configuration, the same ones every time.
fn check(context: &Context, index: u8, fixed: &Static) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[index; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&drawn(), |drawn| {
        fixed.case(&drawn).check(context);
        Ok(())
    });
    match result {
        Ok(()) => {}
        // The reason names variant, layout and configuration of the smallest case that fails.
        Err(TestError::Fail(reason, drawn)) => panic!("{reason}\ndrawn as {drawn:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn random_configurations_agree_with_the_reference() {
    let Some(context) = context() else { return };
    for (index, fixed) in (0..).zip(&DENSE) {
        check(context, index, fixed);
    }
    eprintln!("{} pipelines", context.pipelines());
    if context.caps().is_cpu {
        // Three variants of each of four and two of the other three, one kernel of scores, and two that
        // round to 16 bits.
        assert!(context.pipelines() <= 21, "{} pipelines", context.pipelines());
    }
}

/// A number from the environment.
fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no whole number: {text}")))
}

/// A large case of attention: any dims up to 256, any modifiers, mask, list and output.
fn large(random: &mut Random) -> common::Case {
    let mut coin = || random.below(2) == 1;
    let fixed = Static {
        dtype: DType::F16,
        alignment: Alignment::Vec4,
        sigmoid: coin(),
        modified: coin(),
        pair_tests: coin(),
        four_terms: coin(),
        head_dim: (0, 256),
        value_dim: (0, 256),
        list: None,
        made: Made::Out,
    };
    let dtype = DType::ALL[random.below(3) as usize];
    let alignment = match random.below(4) {
        0 => Alignment::Any,
        1 => Alignment::Vec4,
        _ if dtype == DType::F32 => Alignment::Vec4,
        _ => Alignment::Vec8,
    };
    let made = match random.below(12) {
        0 => Made::Scores,
        1 => Made::BlockSums,
        _ => Made::Out,
    };
    let list = match random.below(6) {
        _ if made != Made::Out => None,
        0 => Some(List::Indices),
        1 => Some(List::Blocks(16 << random.below(4))),
        _ => None,
    };
    // Half of the cases in f16, whose kernels are the most.
    let dtype = if random.below(2) == 0 { DType::F16 } else { dtype };
    let fixed = Static { dtype, alignment, list, made, ..fixed };
    // The arrays of a mask and a bias have a number a pair.
    let longest = if made == Made::BlockSums { LONGEST / 4 } else { LONGEST };
    let lens = (random.below(longest), random.below(longest));
    let pairs = u64::from(lens.0) * u64::from(lens.1);
    let most = (4_000_000 / pairs.max(1)).clamp(1, 6) as u32;
    let mut bits = || random.bits() as u32;
    let drawn = Drawn {
        batch: 1 + bits() % most.min(2),
        heads: (1 + bits() % most, bits(), bits()),
        lens,
        dims: (bits(), bits()),
        words: (0..4).map(|_| bits()).collect(),
        positions: bits(),
        scale: (bits() % 3 == 0).then(|| bits() as f32 / u32::MAX as f32 * 0.4 - 0.2),
        modifiers: bits(),
        output: bits(),
        layout: bits(),
        lists: bits(),
        seed: random.bits(),
    };
    fixed.case(&drawn)
}

/// A large case of linear attention: any rule, map, dims and states.
fn large_linear(random: &mut Random) -> linear::Case {
    let per_key_dim = random.below(2) == 1;
    let rules =
        [Rule::Decay, Rule::Gated { per_key_dim }, Rule::Delta, Rule::GatedDelta { per_key_dim }];
    let rule = rules[random.below(4) as usize];
    let map = FeatureMap::ALL[random.below(3) as usize];
    let dtype = DType::ALL[random.below(3) as usize];
    let elements = 1 << random.below(4);
    let mut dim = || elements * (1 + random.below(192 / elements));
    let dims = (dim(), dim());
    let group = 1 + random.below(2);
    let len = 1 + random.below(LONGEST - 1);
    let shape = Shape::new(1, group, len, dims.0).with_key_value_heads(1).with_value_dim(dims.1);
    let carry = [Carry::None, Carry::Out, Carry::InOut][random.below(3) as usize];
    let mut linear = LinearAttention::new(shape, dtype)
        .with_rule(rule)
        .with_feature_map(map)
        .with_carry(carry)
        .with_scale(0.25);
    // Weights of maps that are not positive may sum to nothing.
    if map == FeatureMap::Elu1 && !rule.is_delta() && random.below(2) == 0 {
        linear = linear.with_normalizer(1e-3);
    }
    let starts = (random.below(3) == 0).then(|| {
        let mut starts = vec![0, random.below(len + 1), random.below(len + 1), len];
        starts.sort_unstable();
        starts
    });
    linear.documents = starts.is_some();
    linear::Case::with_starts(linear, random.bits(), starts)
}

/// Draws the large case of a number and runs every variant of it; says how many ran.
fn check_large(context: &Context, number: u64) -> usize {
    let mut random = Random::new(number);
    if random.below(4) > 0 {
        return large(&mut random).check_rows(context, ROWS).len();
    }
    let case = large_linear(&mut random);
    let (case, halves) = (&case, &case.in_halves());
    let all = LinearVariant::ALL.into_iter();
    let ran = all.filter(|&variant| {
        let case = if variant == LinearVariant::Coop { halves } else { case };
        let supported = variant.supports(context.caps(), &case.linear).is_ok();
        if supported {
            case.check_variant(context, variant);
        }
        supported
    });
    ran.count()
}

/// Cases are numbered, so that one that fails can be drawn again.
#[test]
fn large_random_cases_agree_with_the_reference() {
    let Some(context) = context() else { return };
    let seconds = asked(SECONDS).unwrap_or(if context.caps().is_cpu { 0 } else { 60 });
    let time_of_day = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
    let first = asked(SEED).unwrap_or_else(time_of_day);
    let (next, ran) = (AtomicU64::new(first), AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(seconds);
    let threads = if context.caps().is_cpu { 1 } else { 6 };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while Instant::now() < end {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    // Told even where the case takes the process with it.
                    let told = Told(number);
                    ran.fetch_add(check_large(context, number) as u64, Ordering::Relaxed);
                    std::mem::forget(told);
                }
            });
        }
    });
    let cases = next.into_inner() - first;
    eprintln!("{cases} large cases from number {first} on, {} runs of kernels", ran.into_inner());
}

/// Names the case that panicked.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("{SEED}={} draws this case again", self.0);
    }
}
