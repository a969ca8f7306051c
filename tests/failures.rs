//! What goes wrong on a device comes back as an error, the context says that it is lost, and a new one
//! works beside it; and limits below the real ones are kept.

mod common;

use common::{Case, context, emulating, scratch, variants};
use pollster::block_on;
use wgpu_attention::{
    Array, Arrays, Attention, Broadcast, Caps, Context, DType, Error, Inputs, LinearAttention,
    LinearVariant, Mask, Outputs, Shape, Variant, View, wgpu,
};

fn attention() -> Attention {
    Attention::new(Shape::new(1, 2, 40, 16), DType::F32).with_mask(Mask::causal())
}

/// A context with a device of its own, which a test may ruin.
fn own() -> Option<Context> {
    context()?;
    Some(block_on(Context::request()).expect("a second device"))
}

#[test]
fn a_device_destroyed_under_way() {
    let Some(ruined) = own() else { return };
    let attention = attention();
    let shape = attention.shape;
    let plan = block_on(attention.plan(&ruined)).expect("planned");
    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let [q, k, v, out] = tensors.map(|shape| scratch(&ruined, shape));
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

fn mock(context: &Context, change: impl FnOnce(&mut Caps)) -> Context {
    let mut caps = context.caps().clone();
    change(&mut caps);
    Context::with_caps(caps, context.device(), context.queue())
}

/// A device that goes away while another thread plans and binds: what comes back is a plan or an error.
#[test]
fn a_device_destroyed_while_planning() {
    if context().is_none() {
        return;
    }
    for pause in [0, 1, 5] {
        let ruined = &own().expect("a second device");
        let shape = attention().shape;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(pause));
                ruined.device().destroy();
            });
            if let Err(error) = block_on(attention().plan(ruined)) {
                assert!(matches!(error, Error::DeviceLost(_)), "{error:?}");
            }
        });
        let out = scratch(ruined, shape.out());
        let read = block_on(ruined.read(View::new(&out, DType::F32, shape.out())));
        assert!(matches!(read, Err(Error::DeviceLost(_))), "{read:?}");
        assert!(ruined.lost().is_some());
    }
}

/// Capabilities that the device has not make the compiler refuse the shader, and an array beyond the
/// largest buffer makes the device refuse the binding. Both are errors, and the device goes on.
#[test]
fn what_the_device_refuses_is_an_error() {
    let Some(shared) = context() else { return };
    let same =
        |adapter: &wgpu::Adapter| shared.caps().adapter.starts_with(&adapter.get_info().name);
    let adapters = block_on(Context::adapters());
    let adapter = adapters.into_iter().find(same).expect("the adapter of the shared context");
    let required_limits = wgpu::Limits { max_buffer_size: 1 << 20, ..Default::default() };
    let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
    let (device, queue) = block_on(adapter.request_device(&descriptor)).expect("a device");
    let honest = Context::new(&adapter, &device, &queue);

    let boastful = mock(&honest, |caps| caps.subgroup = Some((4, 32)));
    let planned = block_on(attention().plan_with(&boastful, Variant::Subgroup)).map(|_| ());
    let Err(Error::Shader { label, message }) = planned else { panic!("{planned:?}") };
    assert_eq!(label, "attention.subgroup");
    assert!(message.to_lowercase().contains("subgroup"), "{message}");

    // The bits of a mask of two megabytes, where a buffer may have one.
    let boundless = mock(&honest, |caps| caps.storage_binding = u64::MAX);
    let shape = Shape::new(1, 1, 4096, 4);
    let dense = Attention::new(shape, DType::F32).with_mask(Mask::dense());
    let plan = block_on(dense.plan(&boundless)).expect("planned");
    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let [q, k, v, out] = tensors.map(|shape| scratch(&boundless, shape));
    let view = |buffer, shape| View::new(buffer, DType::F32, shape);
    let mut arrays = Arrays::default();
    arrays.dense_mask = Some((Array::Reserved { len: 4096 * 128 }, Broadcast::SHARED));
    let inputs =
        Inputs::new(view(&q, shape.query()), view(&k, shape.key()), view(&v, shape.value()))
            .with_arrays(arrays);
    let bound = plan.bind(&inputs, &Outputs::new(view(&out, shape.out()))).map(|_| ());
    assert!(matches!(bound, Err(Error::Validation(_) | Error::OutOfMemory(_))), "{bound:?}");

    let case = Case::new(attention(), 2);
    case.judge(&case.run(&boundless, Variant::Tiled).expect("runs"), "after refusals");
}

/// WebGPU's own floors, one at a time, on devices that have more.
#[test]
fn work_fits_the_floors() {
    let Some(context) = context() else { return };
    let floors = [
        mock(context, |caps| caps.storage_binding = 1 << 20),
        mock(context, |caps| caps.workgroups_per_dimension = 65_535),
        mock(context, |caps| (caps.workgroup_memory, caps.workgroup_invocations) = (16 << 10, 128)),
    ];
    // Queries, keys, values and outputs of 1.2 MiB each.
    let split = Attention::new(Shape::new(4, 8, 300, 32), DType::F32).with_mask(Mask::causal());
    let case = Case::new(split, 3);
    for floor in &floors {
        for variant in variants(floor, &case.attention) {
            case.judge(&case.run(floor, variant).expect("runs"), "on a floor");
        }
    }
    for storage_buffers in 0..8 {
        let few = mock(context, |caps| caps.storage_buffers = storage_buffers);
        let planned = block_on(case.attention.plan(&few)).map(|_| ());
        let Err(error) = planned else { panic!("planned with {storage_buffers}") };
        let limit = format!("maxStorageBuffersPerShaderStage is {storage_buffers}");
        assert!(error.to_string().contains(&limit), "{error}");
    }
}

/// A device whose subgroups have 8 to 32 lanes is planned for 8.
#[test]
fn a_range_of_subgroups_is_planned_for_its_smallest() {
    let with = |subgroup| {
        let mut caps = Caps::portable();
        (caps.subgroup, caps.workgroup_memory) = (Some(subgroup), 32 << 10);
        caps
    };
    for dim in [16, 64, 128, 256] {
        let attention = Attention::new(Shape::new(1, 4, 512, dim), DType::F32);
        let tiles = |smallest, largest| {
            let tiles = Variant::Subgroup.tiles(&with((smallest, largest)), &attention);
            tiles.expect("supported").expect("has tiles")
        };
        assert_eq!(tiles(8, 32), tiles(8, 8), "dim {dim}");
        assert!(tiles(8, 32).lanes <= 8 && tiles(4, 32).lanes <= 4, "dim {dim}");
    }
}

/// A context with matrix units, perhaps emulated ones, that tries kernels before it hands them out.
fn trying() -> Option<Context> {
    let shared = context()?;
    let native = (!shared.caps().matrices.is_empty()).then_some(shared);
    Some(native.or(emulating(shared))?.with_verification(true))
}

/// A driver that multiplies every score by 1.5, in one kernel alone.
#[test]
fn a_kernel_that_computes_wrong_results_is_passed_over() {
    let Some(context) = trying() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let context = context.with_cache(folder.path());
    let attention = Attention::new(Shape::new(1, 2, 70, 16), DType::F16).with_mask(Mask::causal());
    assert_eq!(Variant::Coop.supports(context.caps(), &attention), Ok(()));
    let wrong = context.with_fault(
        "attention.coop",
        "let factor = weigh(&row, &part, scale);",
        "let factor = weigh(&row, &part, 1.5 * scale);",
    );
    let plan = block_on(attention.plan(&wrong)).expect("another kernel is right");
    assert_ne!(plan.variant(), Variant::Coop);
    let case = Case::new(attention.clone(), 1);
    case.judge(&case.run_plan(&wrong, &plan).expect("runs"), "after a kernel that is wrong");
    let forced = block_on(attention.plan_with(&wrong, Variant::Coop)).map(|_| ());
    let Err(Error::Unsupported(refusal)) = forced else { panic!("{forced:?}") };
    assert_eq!(refusal.variant, "attention.coop");
    let part = "it computes wrong results on ";
    assert!(refusal.reason.starts_with(part), "{}", refusal.reason);
    assert!(refusal.reason.contains("`out` is off by "), "{}", refusal.reason);

    // Without trials it is handed out, wrong as it is; and the outcome has been kept.
    let unsuspecting = wrong.with_verification(false);
    let plan = block_on(attention.plan(&unsuspecting)).expect("planned");
    assert_eq!(plan.variant(), Variant::Coop);
    let outcomes = std::fs::read_to_string(folder.path().join("verified.tsv")).expect("a file");
    assert_eq!(outcomes.lines().filter(|line| line.contains("attention.coop")).count(), 1);
    let later = trying().expect("as before").with_cache(folder.path());
    let plan = block_on(attention.plan(&later)).expect("another kernel is right");
    assert_ne!(plan.variant(), Variant::Coop, "the kept outcome counts");
}

/// The same for the states of linear attention.
#[test]
fn a_linear_kernel_that_computes_wrong_results_is_passed_over() {
    let Some(context) = trying() else { return };
    let linear =
        LinearAttention::new(Shape::new(1, 1, 200, 16), DType::F16).with_chunk(32).with_block(16);
    let plan = block_on(linear.plan(&context)).expect("planned");
    assert_eq!(plan.variant(), LinearVariant::Coop, "a right kernel passes its trial");
    let wrong = context.with_fault("linear.coop_state", "exp(-slope", "exp(-1.1 * slope");
    let plan = block_on(linear.plan(&wrong)).expect("another kernel is right");
    assert_ne!(plan.variant(), LinearVariant::Coop);
}
