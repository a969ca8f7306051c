//! An application with a device of its own embeds one attention call: it owns the instance, the
//! device, the buffers and the encoder, and records attention between its own commands.
//!
//! Run it with `cargo run --example embed`.

use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{Attention, Context, DType, Inputs, Mask, Outputs, Shape, View, wgpu};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    pollster::block_on(run())
}

async fn run() -> Result<(), Box<dyn std::error::Error>> {
    // The application's own device, with nothing but WebGPU's defaults.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await?;
    let (device, queue) = adapter.request_device(&wgpu::DeviceDescriptor::default()).await?;
    println!("on {}", adapter.get_info().name);

    // Once: 8 query heads share 2 key-value heads, causal, f16.
    let context = Context::new(&adapter, &device, &queue);
    let shape = Shape::new(1, 8, 100, 64).with_key_value_heads(2);
    let plan = Attention::new(shape, DType::F16).with_mask(Mask::causal()).plan(&context).await?;
    println!("planned {} with {:?}", plan.variant(), plan.tiles());

    // The application's buffers; the projections wrote them as [batch, len, heads, dim].
    let tensor = |label, shape: [u32; 4], seed: u32| {
        let count: u32 = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i| ((i * 7 + seed) % 23) as f32 / 23.0).collect();
        device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some(label),
            contents: &DType::F16.encode(&numbers),
            usage: wgpu::BufferUsages::STORAGE,
        })
    };
    let query = tensor("query", shape.query(), 1);
    let key = tensor("key", shape.key(), 2);
    let value = tensor("value", shape.value(), 3);
    let out = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("out"),
        size: shape.out().iter().map(|&n| u64::from(n)).product::<u64>() * DType::F16.size(),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    let inputs = Inputs::new(
        View::packed(&query, DType::F16, shape.query()),
        View::packed(&key, DType::F16, shape.key()),
        View::packed(&value, DType::F16, shape.value()),
    );
    let out = View::packed(&out, DType::F16, shape.out());
    let bound = plan.bind(&inputs, &Outputs::new(out))?;

    // Every frame: recorded into the application's encoder, without allocation or compilation.
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    bound.encode(&mut encoder);
    queue.submit([encoder.finish()]);

    let numbers = context.read(out).await?;
    println!("first row of head 0: {:?} ...", &numbers[..4]);
    assert!(
        numbers.iter().all(|x| (0.0..=1.0).contains(x)),
        "an average of values lies among them"
    );
    Ok(())
}
