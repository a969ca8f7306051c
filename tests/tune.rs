//! Kernels and tiles chosen by their time on the device.

mod common;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Case, context, variants};
use wgpu_attention::{
    Activation, Attention, Broadcast, Context, DType, KeyList, Keys, Lists, Mask, Plan, Positions,
    Shape, Stage,
};

/// What a call takes at most, and what a busy machine may take longer than expected.
const DEADLINE: Duration = Duration::from_millis(2000 + 1500);

/// Blocks of 16 queries leave one tile of each kernel.
fn attention() -> Attention {
    let keys = Keys::Blocks { block_q: 16, block_k: 64, lists: Lists::SHARED };
    Attention::new(Shape::new(1, 2, 100, 32), DType::F32).with_keys(keys)
}

/// Times are those of one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A context on the same device that has compiled and found out nothing.
fn fresh(context: &Context) -> Context {
    Context::with_caps(context.caps().clone(), context.device(), context.queue())
}

fn tuned(context: &Context, attention: &Attention) -> Plan {
    pollster::block_on(attention.plan_tuned(context)).expect("plans")
}

/// The fields of the only choice in a folder: adapter, configuration, best, slower, compilation.
fn choice(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("tuned.tsv")).expect("a file of choices");
    let mut lines = text.lines().skip(1);
    let line = lines.next().expect("a choice");
    assert_eq!(lines.next(), None, "one configuration was tuned");
    line.split('\t').map(str::to_owned).collect()
}

/// How many kernels a choice's fields call slower than the best.
fn beaten(fields: &[String]) -> usize {
    fields[3].split("; ").filter(|name| !name.is_empty()).count()
}

/// Tunes until every candidate has been tried; drivers compile slowly, so that takes some calls.
fn finish(context: &Context, folder: &Path) -> Vec<String> {
    let candidates = variants(context, &attention()).len();
    for _ in 0..20 {
        tuned(context, &attention());
        let fields = choice(folder);
        if beaten(&fields) + 1 >= candidates {
            return fields;
        }
    }
    panic!("tuning does not end");
}

#[test]
fn the_winner_is_a_candidate_and_right() {
    let Some(context) = context() else { return };
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let fields = finish(&fresh(context).with_cache(folder.path()), folder.path());
    let all: Vec<&str> = fields[3].split("; ").chain([&fields[2][..]]).collect();
    assert!(all.len() > 1, "nothing was compared: {fields:?}");
    let unique: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(unique.len(), all.len(), "tried twice: {fields:?}");

    // Known now: one pipeline is compiled and nothing is timed.
    let known = fresh(context).with_cache(folder.path());
    let plan = tuned(&known, &attention());
    assert_eq!(known.pipelines(), 1, "{fields:?}");
    let tiles = plan.tiles().expect("tiles");
    assert_eq!(format!("{} {tiles}", plan.variant()), fields[2]);
    assert!(variants(context, &attention()).contains(&plan.variant()));
    assert_eq!(choice(folder.path()), fields, "tuned again");
    let shape = attention().shape;
    let mut case = Case::new(attention(), 1);
    let rows: Vec<_> = (0..attention().keys.rows(&shape)).map(|_| vec![0, 64]).collect();
    let list = KeyList::from_rows(attention().keys, &shape, &rows).expect("a valid list");
    case.sides.list = Some(list);
    case.judge(&case.run_plan(&known, &plan).expect("runs"), "tuned");

    // So it is for lengths of the same power of two.
    let mut other = attention();
    other.shape = Shape::new(1, 2, 128, 32);
    tuned(&known, &other);
    assert_eq!(known.pipelines(), 1);
}

/// Without a folder the context itself remembers.
#[test]
fn a_context_remembers() {
    let Some(context) = context() else { return };
    let _alone = alone();
    let context = fresh(context);
    let plans: Vec<_> = (0..6).map(|_| tuned(&context, &attention())).collect();
    let candidates = variants(&context, &attention()).len();
    assert_eq!(context.pipelines(), candidates, "not everything was compared");
    let [.., before, last] = &plans[..] else { panic!("six plans") };
    assert_eq!((last.variant(), last.tiles()), (before.variant(), before.tiles()));
}

/// Where compiling has taken longer than a call may take, a call tries one other kernel all the same.
#[test]
fn slow_compilers_are_not_given_up() {
    let Some(context) = context() else { return };
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tuned.tsv");
    tuned(&fresh(context).with_cache(folder.path()), &attention());
    let known = fs::read_to_string(&file).expect("a file of choices");
    let [adapter, configuration, best, ..] = &choice(folder.path())[..] else { panic!("{known}") };
    let head = known.lines().next().expect("a first line");
    let slow = format!("{head}\n{adapter}\t{configuration}\t{best}\t\t3600000\n");
    fs::write(&file, slow).expect("written");

    let context = fresh(context).with_cache(folder.path());
    let tried = [(); 3].map(|()| {
        tuned(&context, &attention());
        beaten(&choice(folder.path()))
    });
    let others = variants(&context, &attention()).len() - 1;
    assert_eq!(tried, [1, 2, 3].map(|calls| others.min(calls)));
}

#[test]
fn bad_files_are_ignored_and_written_anew() {
    let Some(context) = context() else { return };
    let _alone = alone();
    let context = fresh(context);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tuned.tsv");
    // With compiled pipelines, but without what was found out.
    let again = || tuned(&context.with_cache(folder.path()), &attention());
    again();
    let good = fs::read_to_string(&file).expect("a file of choices");
    let fields = choice(folder.path());
    let head = good.lines().next().expect("a first line");
    let bad = [
        Vec::new(),
        vec![0xff; 100],
        b"something else\n".to_vec(),
        good.replacen("wgpu-attention 0", "wgpu-attention 99", 1).into_bytes(),
        good.as_bytes()[..good.len() / 2].to_vec(),
        // No such kernel, and everything else slower.
        good.replace(&fields[2], "tiled 1x1").into_bytes(),
        format!("{head}\n{}\t{}\n\t\t\t\t\n", fields[0], fields[1]).into_bytes(),
        format!("{head}\n{}\t{}\tx\ty\tz\n", fields[0], fields[1]).into_bytes(),
    ];
    for contents in bad {
        fs::write(&file, &contents).expect("written");
        let plan = again();
        let text = fs::read_to_string(&file).expect("written anew");
        let name = format!("\t{} {}\t", plan.variant(), plan.tiles().expect("tiles"));
        let shown = String::from_utf8_lossy(&contents);
        assert!(text.starts_with(head) && text.contains(&name), "{shown:?} became {text:?}");
    }
}

/// Two seconds by estimate, which one compilation may exceed: it can take longer than all before it. So
/// a call takes far less than trying everything where compilers are slow.
#[test]
fn the_deadline_holds() {
    let Some(context) = context() else { return };
    let _alone = alone();
    let attention = Attention::new(Shape::new(1, 4, 300, 32), DType::F32).with_mask(Mask::causal());
    let folder = tempfile::tempdir().expect("a folder");
    let context = fresh(context).with_cache(folder.path());
    for call in 0..3 {
        let start = Instant::now();
        tuned(&context, &attention);
        let (time, compiled) = (start.elapsed(), context.pipelines());
        let milliseconds = choice(folder.path())[4].parse().expect("milliseconds");
        let slowest = Duration::from_millis(milliseconds);
        eprintln!("call {call} {time:?}, {compiled} compiled, the slowest in {slowest:?}");
        assert!(time < DEADLINE.max(2 * slowest), "call {call} took {time:?}");
    }
}

/// Whatever a configuration reads is made up for it.
#[test]
fn every_configuration_can_be_timed() {
    let Some(context) = context() else { return };
    let _alone = alone();
    let shape = Shape::new(2, 4, 33, 32).with_key_value_heads(2).with_key_len(65);
    let mask: Mask = "documents & causal | roles & tree | dense & lengths | sink(2)"
        .parse()
        .expect("a valid expression");
    let lists = Lists::SHARED;
    let attention = |dtype| Attention::new(shape, dtype);
    let configurations = [
        attention(DType::BF16)
            .with_mask(mask)
            .with_positions(Positions::PerBatch)
            .with_softcap(5.0)
            .with_alibi()
            .with_sinks()
            .with_lse()
            .with_key_bias(Broadcast { per_batch: true, per_head: true })
            .with_bias(DType::F16, Broadcast { per_batch: false, per_head: true }),
        attention(DType::F16).with_keys(Keys::Blocks { block_q: 32, block_k: 64, lists }),
        attention(DType::F32)
            .with_keys(Keys::Indices { block_q: 16, lists })
            .with_activation(Activation::Sigmoid { bias: None }),
        Attention::new(Shape::new(1, 3, 70, 7), DType::F16),
        Attention::new(Shape::new(1, 2, 5, 16).with_key_len(0), DType::F32),
        Attention::new(Shape::new(0, 2, 5, 16), DType::F32),
        attention(DType::F32).with_scores(Stage::Masked),
        attention(DType::F32).with_block_sums(64, 64),
    ];
    for attention in configurations {
        let folder = tempfile::tempdir().expect("a folder");
        let context = context.with_cache(folder.path());
        let plan = tuned(&context, &attention);
        if plan.tiles().is_some() {
            assert!(folder.path().join("tuned.tsv").exists(), "not timed: {attention:?}");
        }
        if !attention.shape.out().contains(&0) && attention.keys == Keys::Dense {
            let case = Case::new(attention.clone(), 3);
            if !matches!(attention.output, wgpu_attention::Output::BlockSums { .. }) {
                case.judge(&case.run_plan(&context, &plan).expect("runs"), "tuned");
            }
        }
    }
}
