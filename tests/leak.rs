//! What is dropped is gone. In a process of its own, whose memory no other test changes.

mod common;

use common::{context, scratch};
use pollster::block_on;
use wgpu_attention::{Attention, DType, Inputs, Mask, Outputs, Shape, View};

/// The resident set in bytes, where the system tells.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

#[test]
fn a_thousand_plans_leave_nothing_behind() {
    let Some(context) = context() else { return };
    let attention = Attention::new(Shape::new(1, 2, 40, 16), DType::F32).with_mask(Mask::causal());
    let shape = attention.shape;
    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let [q, k, v, out] = tensors.map(|shape| scratch(context, shape));
    let view = |buffer, shape| View::new(buffer, DType::F32, shape);
    let inputs =
        Inputs::new(view(&q, shape.query()), view(&k, shape.key()), view(&v, shape.value()));
    let cycle = || {
        let plan = block_on(attention.plan(context)).expect("planned");
        let bound = plan.bind(&inputs, &Outputs::new(view(&out, shape.out()))).expect("bound");
        // Recorded but never submitted; wgpu keeps what new buffers hold until the next submission.
        let mut encoder = context.device().create_command_encoder(&Default::default());
        bound.encode(&mut encoder);
        drop(encoder);
        block_on(context.run(&bound)).expect("runs");
    };
    (0..200).for_each(|_| cycle());
    let before = resident();
    (0..1000).for_each(|_| cycle());
    assert_eq!(context.pipelines(), 1);
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        eprintln!("{} KiB more after a thousand cycles", grown >> 10);
        assert!(grown < 2 << 20, "{grown} bytes more after a thousand cycles");
    }
}
