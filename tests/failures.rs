//! What goes wrong on a device comes back as an error, the context says that it is lost, and a new one
//! works beside it; and what is dropped is gone.

mod common;

use common::{Case, context};
use pollster::block_on;
use wgpu_attention::{Attention, Context, DType, Error, Inputs, Mask, Outputs, Shape, View, wgpu};

fn attention() -> Attention {
    Attention::new(Shape::new(1, 2, 40, 16), DType::F32).with_mask(Mask::causal())
}

/// A context with a device of its own, which a test may ruin.
fn own() -> Option<Context> {
    context()?;
    Some(block_on(Context::request()).expect("a second device"))
}

fn buffer(context: &Context, shape: [u32; 4]) -> wgpu::Buffer {
    context.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: shape.iter().map(|&n| u64::from(n)).product::<u64>() * 4,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

#[test]
fn a_device_destroyed_under_way() {
    let Some(ruined) = own() else { return };
    let attention = attention();
    let shape = attention.shape;
    let plan = block_on(attention.plan(&ruined)).expect("planned");
    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let [q, k, v, out] = tensors.map(|shape| buffer(&ruined, shape));
    let view = |buffer, shape| View::new(buffer, DType::F32, shape);
    let inputs =
        Inputs::new(view(&q, shape.query()), view(&k, shape.key()), view(&v, shape.value()));
    let outputs = Outputs::new(view(&out, shape.out()));
    let bound = plan.bind(&inputs, &outputs).expect("bound");
    block_on(ruined.run(&bound)).expect("runs while there is a device");
    assert_eq!(ruined.lost(), None);

    let mut encoder = ruined.device().create_command_encoder(&Default::default());
    bound.encode(&mut encoder);
    ruined.queue().submit([encoder.finish()]);
    ruined.device().destroy();

    for round in 0..2 {
        let error = block_on(ruined.run(&bound)).expect_err("there is no device");
        assert!(matches!(error, Error::DeviceLost(_)), "round {round}, run: {error:?}");
        let error = block_on(ruined.read(view(&out, shape.out()))).expect_err("there is no device");
        assert!(matches!(error, Error::DeviceLost(_)), "round {round}, read: {error:?}");
        assert!(ruined.lost().is_some(), "round {round}");
    }
    let other = Attention::new(Shape::new(1, 2, 40, 24), DType::F32);
    let error = block_on(other.plan(&ruined)).map(|_| ()).expect_err("nothing compiles any more");
    assert!(matches!(error, Error::DeviceLost(_)), "plan: {error:?}");
    let error = plan.bind(&inputs, &outputs).map(|_| ()).expect_err("nothing is bound any more");
    assert!(matches!(error, Error::DeviceLost(_)), "bind: {error:?}");

    let fresh = own().expect("as before");
    let case = Case::new(attention, 1);
    let variant = plan.variant();
    case.judge(&case.run(&fresh, variant).expect("runs"), "on a device after the lost one");
}

/// The resident set in bytes, where the system tells.
fn resident() -> Option<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    pages.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

#[test]
fn a_thousand_plans_leave_nothing_behind() {
    let Some(context) = own() else { return };
    let attention = attention();
    let shape = attention.shape;
    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let [q, k, v, out] = tensors.map(|shape| buffer(&context, shape));
    let view = |buffer, shape| View::new(buffer, DType::F32, shape);
    let inputs =
        Inputs::new(view(&q, shape.query()), view(&k, shape.key()), view(&v, shape.value()));
    let cycle = || {
        let plan = block_on(attention.plan(&context)).expect("planned");
        let bound = plan.bind(&inputs, &Outputs::new(view(&out, shape.out()))).expect("bound");
        block_on(context.run(&bound)).expect("runs");
    };
    (0..200).for_each(|_| cycle());
    let before = resident();
    (0..1000).for_each(|_| cycle());
    assert_eq!(context.pipelines(), 1);
    if let (Some(before), Some(after)) = (before, resident()) {
        let grown = after.saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} bytes more after a thousand cycles");
    }
}
