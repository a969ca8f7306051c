//! How much work a call is, by estimate: long work is submitted in pieces.

use super::{Attention, Output};
use crate::attention::arrays::Arrays;
use crate::attention::keys::Keys;
use crate::attention::mask::MaskRows;

/// Blocks of queries that are asked for their keys, of so many queries each.
const SAMPLES: u64 = 16;
const BLOCK: u32 = 64;

/// The keys that a query visits on average, as far as host arrays tell; all of them where they do
/// not.
pub(super) fn keys_per_query(attention: &Attention, arrays: &Arrays<'_>) -> f64 {
    let shape = &attention.shape;
    let all = f64::from(shape.key_len);
    if matches!(attention.output, Output::Scores(_)) {
        return all;
    }
    if attention.keys != Keys::Dense {
        let entries = arrays.list_entries.map_or(0, |entries| entries.len()) as f64;
        let keys = entries * f64::from(attention.keys.block_k());
        return (keys / attention.keys.rows(shape).max(1) as f64).clamp(1.0, all.max(1.0));
    }
    let Ok(rows) = MaskRows::new(attention, arrays) else { return all };
    let blocks = shape.query_len.div_ceil(BLOCK);
    let count = u64::from(blocks) * u64::from(shape.batch);
    let samples = count.clamp(1, SAMPLES);
    // In the middle of as many equal shares.
    let keys = (0..samples).map(|sample| {
        let index = (2 * sample + 1) * count / (2 * samples);
        let (batch, block) = (index / u64::from(blocks.max(1)), index % u64::from(blocks.max(1)));
        let first = block as u32 * BLOCK;
        let ranges = rows.block_ranges(batch as u32, first..first + BLOCK);
        ranges.iter().map(|range| range.len() as f64).sum::<f64>()
    });
    (keys.sum::<f64>() / samples as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::keys::Lists;
    use crate::attention::mask::Mask;
    use crate::launch::Array;
    use crate::shape::Shape;
    use crate::tensor::DType;

    #[test]
    fn what_is_not_visited_costs_nothing() {
        let shape = Shape::new(2, 3, 4096, 64);
        let attention = |mask| Attention::new(shape, DType::F32).with_mask(mask);
        let none = Arrays::default();
        assert_eq!(keys_per_query(&attention(Mask::full()), &none), 4096.0);
        let causal = keys_per_query(&attention(Mask::causal()), &none);
        assert!((causal / 2048.0 - 1.0).abs() < 0.1, "{causal}");
        let window = attention(Mask::causal() & Mask::window(Some(63), None));
        let window = keys_per_query(&window, &none);
        assert!((64.0..=128.0).contains(&window), "{window}");

        // Documents of 256 queries and keys each; unknown ones may be as long as the sequence.
        let starts: Vec<u32> = (0..=16).map(|document| 256 * document).collect();
        let mut arrays = Arrays::default();
        let documents = attention(Mask::documents());
        assert_eq!(keys_per_query(&documents, &arrays), 4096.0);
        arrays.query_starts = Some(Array::u32(&starts));
        arrays.key_starts = Some(Array::u32(&starts));
        assert_eq!(keys_per_query(&documents, &arrays), 256.0);

        // Two blocks of 128 keys for each block of queries.
        let keys = Keys::Blocks { block_q: 64, block_k: 128, lists: Lists::SHARED };
        let entries = [0; 128];
        let arrays = Arrays { list_entries: Some(Array::u32(&entries)), ..Arrays::default() };
        let listed = attention(Mask::full()).with_keys(keys);
        assert_eq!(keys_per_query(&listed, &arrays), 256.0);
    }

    #[test]
    fn nothing_at_all_is_no_trouble() {
        for shape in [Shape::new(0, 1, 5, 8), Shape::new(1, 1, 0, 8).with_key_len(0)] {
            let attention = Attention::new(shape, DType::F32).with_mask(Mask::causal());
            assert!(keys_per_query(&attention, &Arrays::default()).is_finite());
        }
    }
}
