//! Whether the side arrays are the ones a configuration refers to.

use super::Arrays;
use crate::attention::mask::MAX_ROLES;
use crate::attention::score::Broadcast;
use crate::attention::{Attention, Positions};
use crate::error::Error;
use crate::launch::Array;
use crate::launch::array::{check_device, within};

/// Nodes of a tree: the bits of a row of `tree_bits`.
pub(crate) const TREE_NODES: u32 = 64;

/// The largest given offset, up or down: as with lengths, positions stay within the kernels' i32.
const MAX_OFFSET: u32 = 1 << 29;

/// Checks that every array the configuration refers to is there and has the right length, that
/// nothing else is given, and that the values are in range where the host has them (on the device
/// the kernels clamp what they read).
pub(crate) fn check_arrays(attention: &Attention, arrays: &Arrays) -> Result<(), Error> {
    let (shape, mask) = (&attention.shape, &attention.mask);
    let batch = u64::from(shape.batch);
    let (query_len, key_len) = (u64::from(shape.query_len), u64::from(shape.key_len));
    let heads = u64::from(shape.query_heads);
    let leading = |broadcast: Broadcast| {
        let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
        [u64::from(batch), u64::from(heads)]
    };

    let per_batch = attention.positions == Positions::PerBatch;
    let offsets = sized("query_offset", arrays.query_offset, per_batch.then_some([batch]))?;
    check_all("query_offset", offsets, |&bits| {
        (bits.cast_signed().unsigned_abs() > MAX_OFFSET)
            .then(|| (format!("offsets from -{MAX_OFFSET} to {MAX_OFFSET}"), signed(bits)))
    })?;

    let lengths = mask.any(|term| term.lengths).then_some([batch]);
    let key_lengths = sized("key_lengths", arrays.key_lengths, lengths)?;
    check_below("key_lengths", key_lengths, ("numbers of keys", key_len + 1))?;

    let roles = mask.any(|term| term.roles);
    let query_roles = sized("roles_q", arrays.query_roles, roles.then_some([query_len]))?;
    check_below("roles_q", query_roles, ("roles", MAX_ROLES.into()))?;
    let key_roles = sized("roles_k", arrays.key_roles, roles.then_some([key_len]))?;
    check_below("roles_k", key_roles, ("roles", MAX_ROLES.into()))?;
    sized("role_table", arrays.role_table, roles.then_some([MAX_ROLES.into()]))?;

    let tree = mask.any(|term| term.tree);
    sized("tree_bits", arrays.tree_bits, tree.then_some([query_len, 2]))?;
    if mask.any(|term| term.tree && !term.documents) && shape.query_len > TREE_NODES {
        return Err(Error::tensor(
            "tree_bits",
            format!(
                "at most {TREE_NODES} queries (a bit a node) where `tree` is without `documents`"
            ),
            format!("{query_len} queries"),
        ));
    }

    let (dense, broadcast) = arrays.dense_mask.unzip();
    let [mask_batch, mask_heads] = leading(broadcast.unwrap_or(Broadcast::SHARED));
    let bits = [mask_batch, mask_heads, query_len, key_len.div_ceil(32)];
    sized("mask", dense, mask.any(|term| term.dense).then_some(bits))?;

    let slopes = attention.score.alibi.then_some([heads]);
    check_finite("alibi_slopes", sized("alibi_slopes", arrays.alibi_slopes, slopes)?)?;
    let sinks = attention.score.sinks.then_some([heads]);
    check_finite("sinks", sized("sinks", arrays.sinks, sinks)?)?;
    let key_bias = attention.score.key_bias.map(leading).map(|[b, h]| [b, h, key_len]);
    sized("key_bias", arrays.key_bias, key_bias)?;

    crate::attention::keys::check_lists(attention, arrays)?;
    check_documents(attention, arrays)
}

/// Checks that no array is on the device.
pub(crate) fn check_host(arrays: &Arrays) -> Result<(), Error> {
    for (name, array) in [
        ("query_offset", arrays.query_offset),
        ("cu_seqlens_q", arrays.query_starts),
        ("cu_seqlens_k", arrays.key_starts),
        ("key_lengths", arrays.key_lengths),
        ("roles_q", arrays.query_roles),
        ("roles_k", arrays.key_roles),
        ("role_table", arrays.role_table),
        ("tree_bits", arrays.tree_bits),
        ("mask", arrays.dense_mask.map(|(array, _)| array)),
        ("list_offsets", arrays.list_offsets),
        ("list_entries", arrays.list_entries),
        ("alibi_slopes", arrays.alibi_slopes),
        ("key_bias", arrays.key_bias),
        ("sinks", arrays.sinks),
    ] {
        if array.is_some_and(|array| array.host().is_none()) {
            return Err(Error::tensor(name, "values on the host", "an array on the device"));
        }
    }
    Ok(())
}

/// Checks the cumulative lengths: as many on both sides, ascending, within the sequence, and no
/// document with more queries than a tree has nodes.
fn check_documents(attention: &Attention, arrays: &Arrays) -> Result<(), Error> {
    let (shape, mask) = (&attention.shape, &attention.mask);
    let used = mask.any(|term| term.documents);
    // The number of documents is the array's own; the keys' must be the queries'.
    let entries = arrays.query_starts.map_or(2, |starts| starts.len().max(2) as u64);
    let query_starts = sized("cu_seqlens_q", arrays.query_starts, used.then_some([entries]))?;
    let key_starts = sized("cu_seqlens_k", arrays.key_starts, used.then_some([entries]))?;
    check_ascending("cu_seqlens_q", query_starts, shape.query_len)?;
    check_ascending("cu_seqlens_k", key_starts, shape.key_len)?;
    if mask.any(|term| term.tree && term.documents) {
        let counts = query_starts.windows(2).map(|pair| pair[1] - pair[0]);
        if let Some((document, count)) = counts.enumerate().find(|&(_, count)| count > TREE_NODES) {
            return Err(Error::tensor(
                "cu_seqlens_q",
                format!("documents of at most {TREE_NODES} queries (the mask has `tree`)"),
                format!("{count} in document {document}"),
            ));
        }
    }
    Ok(())
}

/// The host's values of an array, none where it is on the device, after checking it against the
/// shape it should have: `None` if the configuration does not use it.
fn sized<'a, const N: usize>(
    name: &str,
    array: Option<Array<'a>>,
    shape: Option<[u64; N]>,
) -> Result<&'a [u32], Error> {
    let (array, shape) = match (array, shape) {
        (None, None) => return Ok(&[]),
        (Some(array), None) => {
            return Err(Error::tensor(
                name,
                "nothing: the configuration does not use it",
                format!("{} values", array.len()),
            ));
        }
        (array, Some(shape)) => (array, shape),
    };
    // Saturated, a length still differs from that of any slice.
    let len = shape.iter().fold(1_u64, |len, &size| len.saturating_mul(size));
    match array {
        Some(array) if array.len() as u64 == len => {
            check_device(name, array)?;
            Ok(array.host().unwrap_or_default())
        }
        other => Err(Error::tensor(
            name,
            format!("{len} values of shape {shape:?}"),
            other.map_or("nothing".to_owned(), |array| format!("{} values", array.len())),
        )),
    }
}

/// Fails at the first value for which `refuse` gives what was expected and what came.
fn check_all(
    name: &str,
    values: &[u32],
    refuse: impl Fn(&u32) -> Option<(String, String)>,
) -> Result<(), Error> {
    let refused =
        values.iter().enumerate().find_map(|(index, value)| Some((index, refuse(value)?)));
    refused.map_or(Ok(()), |(index, (expected, got))| {
        Err(Error::tensor(name, expected, format!("{got} at index {index}")))
    })
}

fn check_finite(name: &str, values: &[u32]) -> Result<(), Error> {
    check_all(name, values, |&bits| {
        let number = f32::from_bits(bits);
        (!number.is_finite()).then(|| ("finite numbers".to_owned(), number.to_string()))
    })
}

fn check_below(name: &str, values: &[u32], (what, count): (&str, u64)) -> Result<(), Error> {
    check_all(name, values, |&value| {
        (u64::from(value) >= count).then(|| (within(what, count), value.to_string()))
    })
}

fn check_ascending(name: &str, starts: &[u32], len: u32) -> Result<(), Error> {
    if let Some(index) = starts.windows(2).position(|pair| pair[0] > pair[1]) {
        let (start, end) = (starts[index], starts[index + 1]);
        let got = format!("{end} after {start} at index {}", index + 1);
        return Err(Error::tensor(name, "ascending values", got));
    }
    match starts.last() {
        Some(&last) if last > len => {
            Err(Error::tensor(name, format!("a last value of at most {len}"), last.to_string()))
        }
        _ => Ok(()),
    }
}

fn signed(bits: u32) -> String {
    bits.cast_signed().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::mask::MaskRows;
    use crate::shape::Shape;
    use crate::tensor::DType;

    /// A configuration of 2 batch entries, 3 heads, 4 queries and 40 keys.
    fn configuration(mask: &str) -> Attention {
        Attention::new(Shape::new(2, 3, 4, 8).with_key_len(40), DType::F32)
            .with_mask(mask.parse().unwrap())
    }

    /// The name of the refused array, and the rest of the sentence.
    fn refusal(attention: &Attention, arrays: &Arrays) -> (String, String) {
        match check_arrays(attention, arrays) {
            Err(Error::Tensor { tensor, expected, got }) => (tensor, format!("{expected}: {got}")),
            other => panic!("{other:?}"),
        }
    }

    fn assert_refused(attention: &Attention, arrays: Arrays, name: &str, reason: &str) {
        assert_eq!(refusal(attention, &arrays), (name.to_owned(), reason.to_owned()));
    }

    #[test]
    fn missing_arrays_are_named() {
        let none = Arrays::default();
        let per_batch = configuration("causal").with_positions(Positions::PerBatch);
        assert_refused(&per_batch, none, "query_offset", "2 values of shape [2]: nothing");
        for (mask, name, expected) in [
            ("lengths", "key_lengths", "2 values of shape [2]"),
            ("causal | documents", "cu_seqlens_q", "2 values of shape [2]"),
            ("roles", "roles_q", "4 values of shape [4]"),
            ("tree", "tree_bits", "8 values of shape [4, 2]"),
            ("dense", "mask", "8 values of shape [1, 1, 4, 2]"),
        ] {
            assert_refused(&configuration(mask), none, name, &format!("{expected}: nothing"));
        }
        let alibi = configuration("full").with_alibi();
        assert_refused(&alibi, none, "alibi_slopes", "3 values of shape [3]: nothing");
        let bias =
            configuration("full").with_key_bias(Broadcast { per_batch: true, per_head: false });
        assert_refused(&bias, none, "key_bias", "80 values of shape [2, 1, 40]: nothing");
    }

    #[test]
    fn wrong_lengths_are_refused_on_the_device_too() {
        let room = |len| Some(Array::Reserved { len });
        let lengths = Arrays { key_lengths: room(3), ..Arrays::default() };
        let reason = "2 values of shape [2]: 3 values";
        assert_refused(&configuration("lengths"), lengths, "key_lengths", reason);

        let per_head = Broadcast { per_batch: false, per_head: true };
        let dense = Arrays { dense_mask: room(25).map(|a| (a, per_head)), ..Arrays::default() };
        let reason = "24 values of shape [1, 3, 4, 2]: 25 values";
        assert_refused(&configuration("dense"), dense, "mask", reason);

        let roles = Arrays { query_roles: room(4), key_roles: room(40), ..Arrays::default() };
        let short = Arrays { role_table: room(7), ..roles };
        let reason = "8 values of shape [8]: 7 values";
        assert_refused(&configuration("roles"), short, "role_table", reason);
        let right = Arrays { role_table: room(8), ..roles };
        assert_eq!(check_arrays(&configuration("roles"), &right), Ok(()));
    }

    #[test]
    fn arrays_without_use_are_refused() {
        let array = Some(Array::u32(&[0, 0]));
        let unused = Arrays { query_offset: array, ..Arrays::default() };
        let reason = "nothing: the configuration does not use it: 2 values";
        assert_refused(&configuration("causal"), unused, "query_offset", reason);
        let unused = Arrays { key_starts: array, ..Arrays::default() };
        assert_refused(&configuration("causal"), unused, "cu_seqlens_k", reason);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let lengths = Arrays { key_lengths: Some(Array::u32(&[40, 41])), ..Arrays::default() };
        let reason = "numbers of keys from 0 to 40: 41 at index 1";
        assert_refused(&configuration("lengths"), lengths, "key_lengths", reason);

        let roles = Arrays {
            query_roles: Some(Array::u32(&[0, 7, 8, 9])),
            key_roles: Some(Array::u32(&[0; 40])),
            role_table: Some(Array::u32(&[u32::MAX; 8])),
            ..Arrays::default()
        };
        let reason = "roles from 0 to 7: 8 at index 2";
        assert_refused(&configuration("roles"), roles, "roles_q", reason);

        let slopes = [0.5, 0.25, f32::INFINITY];
        let slopes = Arrays { alibi_slopes: Some(Array::f32(&slopes)), ..Arrays::default() };
        let alibi = configuration("full").with_alibi();
        assert_refused(&alibi, slopes, "alibi_slopes", "finite numbers: inf at index 2");

        let sinks = Arrays { sinks: Some(Array::f32(&[0.0, f32::NAN, 1.0])), ..Arrays::default() };
        let sunk = configuration("full").with_sinks();
        assert_refused(&sunk, sinks, "sinks", "finite numbers: NaN at index 1");

        let far = Arrays { query_offset: Some(Array::i32(&[0, i32::MIN])), ..Arrays::default() };
        let per_batch = configuration("causal").with_positions(Positions::PerBatch);
        let reason = "offsets from -536870912 to 536870912: -2147483648 at index 1";
        assert_refused(&per_batch, far, "query_offset", reason);
    }

    #[test]
    fn documents_are_checked() {
        let documents = configuration("documents");
        let with = |queries: &'static [u32], keys: &'static [u32]| Arrays {
            query_starts: Some(Array::u32(queries)),
            key_starts: Some(Array::u32(keys)),
            ..Arrays::default()
        };
        assert_eq!(check_arrays(&documents, &with(&[1, 1, 4], &[0, 20, 40])), Ok(()));
        for (queries, keys, name, reason) in [
            (&[0][..], &[0][..], "cu_seqlens_q", "2 values of shape [2]: 1 values"),
            (&[], &[], "cu_seqlens_q", "2 values of shape [2]: 0 values"),
            (&[0, 4], &[0, 1, 2], "cu_seqlens_k", "2 values of shape [2]: 3 values"),
            (&[0, 3, 2], &[0, 1, 2], "cu_seqlens_q", "ascending values: 2 after 3 at index 2"),
            (&[0, 5], &[0, 1], "cu_seqlens_q", "a last value of at most 4: 5"),
            (&[0, 4], &[0, 41], "cu_seqlens_k", "a last value of at most 40: 41"),
        ] {
            assert_refused(&documents, with(queries, keys), name, reason);
        }
    }

    #[test]
    fn trees_have_at_most_64_nodes() {
        let wide = |mask: &str| {
            Attention::new(Shape::new(1, 1, 100, 8), DType::F32).with_mask(mask.parse().unwrap())
        };
        let bits = Arrays { tree_bits: Some(Array::u32(&[0; 200])), ..Arrays::default() };
        let reason =
            "at most 64 queries (a bit a node) where `tree` is without `documents`: 100 queries";
        assert_refused(&wide("tree"), bits, "tree_bits", reason);
        let with = |starts| {
            let starts = Some(Array::u32(starts));
            Arrays { query_starts: starts, key_starts: starts, ..bits }
        };
        assert_eq!(check_arrays(&wide("tree & documents"), &with(&[0, 40, 100])), Ok(()));
        let reason = "documents of at most 64 queries (the mask has `tree`): 65 in document 1";
        assert_refused(&wide("tree & documents"), with(&[0, 35, 100]), "cu_seqlens_q", reason);
        // Documents that only another term has do not help.
        let mixed = wide("tree | documents");
        assert_eq!(refusal(&mixed, &with(&[0, 40, 100])).0, "tree_bits");
    }

    #[test]
    fn host_rows_need_host_arrays() {
        let alibi = configuration("full").with_alibi();
        let slopes = Some(Array::Reserved { len: 3 });
        let arrays = Arrays { alibi_slopes: slopes, ..Arrays::default() };
        assert_eq!(check_arrays(&alibi, &arrays), Ok(()));
        let error = MaskRows::new(&alibi, &arrays).unwrap_err();
        assert!(
            error.to_string().starts_with("tensor `alibi_slopes`: expected values on the host")
        );
    }
}
