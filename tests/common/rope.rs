//! A rotation, run and compared with the f64 reference.

use super::{Layout, Placed, Random, on_device};
use wgpu_attention::attention::tolerance::compare;
use wgpu_attention::rope::reference::{HostRope, rotate, rotate_eager};
use wgpu_attention::{Array, Context, Error, Rope, RopeInputs, rope};

/// Rows of the tables.
pub const ROWS: u32 = 50;

/// A rotation with everything it reads.
pub struct Case {
    pub rope: Rope,
    pub layout: Layout,
    pub input: Vec<f32>,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    pub positions: Vec<u32>,
    /// Whether the positions lie on the device, where nobody checks them.
    pub unseen: bool,
}

impl Case {
    /// Positions for each of `entries` batch entries.
    pub fn draw(rope: Rope, entries: u32, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = rope.shape.iter().map(|&n| n as usize).product();
        let (cos, sin) = rope::table(ROWS, rope.rotary_dim, 10_000.0);
        let round = |numbers: &[f32]| rope.table.decode(&rope.table.encode(numbers));
        let positions = (0..entries * rope.shape[2]).map(|_| random.below(ROWS)).collect();
        Self {
            input: random.normal(rope.dtype, count),
            cos: round(&cos),
            sin: round(&sin),
            positions,
            unseen: false,
            layout: Layout::Dense,
            rope,
        }
    }

    pub fn run(&self, context: &Context) -> Result<Vec<f32>, Error> {
        let (rope, half) = (&self.rope, self.rope.rotary_dim / 2);
        let input = Placed::new(context, rope.dtype, rope.shape, self.layout, Some(&self.input));
        let rows = if self.positions.is_empty() { rope.shape[2] } else { ROWS };
        let entries = self.cos.len() as u32 / (rows * half).max(1);
        let table = |numbers: &[f32]| {
            let shape = [entries, 1, rows, half];
            Placed::new(context, rope.table, shape, Layout::Apart(3), Some(numbers))
        };
        let (cos, sin) = (table(&self.cos), table(&self.sin));
        let mut inputs = RopeInputs::new(input.view(), cos.view(), sin.view());
        let unseen = on_device(context, &self.positions);
        if self.unseen {
            inputs = inputs.with_positions(Array::device(&unseen, 0, self.positions.len()));
        } else if !self.positions.is_empty() {
            inputs = inputs.with_positions(Array::u32(&self.positions));
        }
        let out = Placed::new(context, rope.dtype, rope.shape, self.layout, None);
        let bound = pollster::block_on(rope.plan(context))?.bind(&inputs, out.view())?;
        pollster::block_on(context.run(&bound))?;
        Ok(out.read(context))
    }

    pub fn check(&self, context: &Context) {
        self.judge(&self.run(context).expect("runs"));
    }

    /// Compares a result with the reference.
    pub fn judge(&self, got: &[f32]) {
        let mut host = HostRope::default();
        (host.input, host.cos, host.sin) = (&self.input, &self.cos, &self.sin);
        host.positions = &self.positions;
        let reference = rotate(&self.rope, &host).expect("valid");
        let eager = rotate_eager(&self.rope, &host).expect("valid");
        let found = compare(got, &reference, &eager, self.rope.dtype, 4.0);
        assert!(found.ok, "{:?} {:?}: {found:?}", self.rope, self.layout);
    }
}
