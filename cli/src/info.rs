//! `wgpu-attention info`: the adapters of this machine and what the library can use on them.

use anyhow::Result;
use comfy_table::{Table, presets};
use pollster::block_on;
use serde::Serialize;
use wgpu_attention::{Attention, Caps, Context, DType, Shape, Stage, Variant, wgpu};

use crate::{device, print};

/// Shows every adapter with what the library can use on it
#[derive(clap::Args)]
pub struct Args {
    /// Prints a JSON array instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Adapter {
    name: String,
    backend: String,
    r#type: String,
    driver: String,
    /// Why the adapter gives no device; the rest is empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(flatten)]
    device: Option<Device>,
}

#[derive(Serialize)]
struct Device {
    f16: bool,
    /// Smallest and largest.
    subgroup_sizes: Option<(u32, u32)>,
    workgroup_memory_bytes: u32,
    storage_binding_bytes: u64,
    timestamps: bool,
    /// The kernels that run.
    variants: Vec<&'static str>,
}

pub fn info(args: &Args) -> Result<()> {
    let adapters: Vec<Adapter> = block_on(Context::adapters()).iter().map(Adapter::new).collect();
    if adapters.is_empty() {
        eprintln!(
            "no adapter found: expected a Vulkan, Metal or DX12 driver; {}",
            device::WITHOUT_ADAPTER
        );
    }
    if args.json {
        return print(serde_json::to_string_pretty(&adapters)?);
    }
    for adapter in &adapters {
        print(adapter.table())?;
    }
    Ok(())
}

impl Adapter {
    fn new(adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let (device, error) = match block_on(Context::from_adapter(adapter)) {
            Ok(context) => (Some(Device::new(context.caps())), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self {
            name: info.name,
            backend: info.backend.to_string(),
            r#type: format!("{:?}", info.device_type),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            error,
            device,
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["adapter", &self.name]);
        table.add_row(["backend", &self.backend]);
        table.add_row(["type", &self.r#type]);
        table.add_row(["driver", &self.driver]);
        if let Some(error) = &self.error {
            table.add_row(["error", error]);
        }
        if let Some(device) = &self.device {
            let yes_no = |yes| if yes { "yes" } else { "no" }.to_owned();
            let subgroups = match device.subgroup_sizes {
                Some((smallest, largest)) if smallest == largest => smallest.to_string(),
                Some((smallest, largest)) => format!("{smallest} to {largest}"),
                None => "no".to_owned(),
            };
            for (fact, value) in [
                ("native f16", yes_no(device.f16)),
                ("subgroup size", subgroups),
                ("workgroup memory", format!("{} KiB", device.workgroup_memory_bytes >> 10)),
                ("largest binding", format!("{} MiB", device.storage_binding_bytes >> 20)),
                ("timestamps", yes_no(device.timestamps)),
                ("kernels", device.variants.join(", ")),
            ] {
                table.add_row([fact, &value]);
            }
        }
        table
    }
}

impl Device {
    fn new(caps: &Caps) -> Self {
        let attention = Attention::new(Shape::new(1, 1, 1024, 64), DType::F32);
        let scores = attention.clone().with_scores(Stage::Probabilities);
        let runs = |variant: &Variant| {
            [&attention, &scores].iter().any(|config| variant.supports(caps, config).is_ok())
        };
        Self {
            f16: caps.shader_f16,
            subgroup_sizes: caps.subgroup,
            workgroup_memory_bytes: caps.workgroup_memory,
            storage_binding_bytes: caps.storage_binding,
            timestamps: caps.timestamps,
            variants: Variant::ALL.iter().copied().filter(runs).map(Variant::label).collect(),
        }
    }
}
