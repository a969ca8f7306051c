//! Rows scattered into a cache.

use super::{Layout, Placed, Random, on_device};
use wgpu_attention::{Array, Context, Error, Scatter, ScatterInputs};

/// A scatter with everything it reads.
pub struct Case {
    pub scatter: Scatter,
    pub layout: Layout,
    pub rows: Vec<f32>,
    pub starts: Vec<u32>,
    pub cache: Vec<f32>,
    /// Whether the starts lie on the device, where nobody checks them.
    pub unseen: bool,
}

impl Case {
    pub fn draw(scatter: Scatter, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let Scatter { shape: [batch, _, len, _], capacity, dtype, circular, .. } = scatter;
        let highest = if circular { capacity } else { (capacity + 1).saturating_sub(len) };
        let count = |shape: [u32; 4]| shape.iter().map(|&n| n as usize).product();
        Self {
            starts: (0..batch).map(|_| random.below(highest)).collect(),
            rows: random.normal(dtype, count(scatter.shape)),
            cache: random.normal(dtype, count(scatter.cache())),
            layout: Layout::Dense,
            unseen: false,
            scatter,
        }
    }

    /// The cache after the rows have been written into it.
    pub fn run(&self, context: &Context) -> Result<Vec<f32>, Error> {
        let Self { scatter, layout, .. } = self;
        let place =
            |shape, values| Placed::new(context, scatter.dtype, shape, *layout, Some(values));
        let rows = place(scatter.shape, &self.rows);
        let cache = place(scatter.cache(), &self.cache);
        let unseen = on_device(context, &self.starts);
        let starts = match self.unseen {
            true => Array::device(&unseen, 0, self.starts.len()),
            false => Array::u32(&self.starts),
        };
        let inputs = ScatterInputs::new(rows.view(), starts);
        let bound = pollster::block_on(scatter.plan(context))?.bind(&inputs, cache.view())?;
        pollster::block_on(context.run(&bound))?;
        Ok(cache.read(context))
    }

    /// The cache as it should be.
    pub fn expected(&self) -> Vec<f32> {
        let [_, heads, len, dim] = self.scatter.shape.map(|n| n as usize);
        let capacity = self.scatter.capacity as usize;
        let mut cache = self.cache.clone();
        for (index, row) in self.rows.chunks(dim.max(1)).enumerate() {
            let (head, t) = (index / len, index % len);
            let position = (self.starts[head / heads] as usize + t) % capacity;
            cache[(head * capacity + position) * dim..][..dim].copy_from_slice(row);
        }
        cache
    }
}
