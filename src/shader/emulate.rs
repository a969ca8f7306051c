//! Cooperative matrices in plain WGSL, so that kernels on matrix units can be run where there are
//! none: for tests on software drivers, and slow.
//!
//! A subgroup of 32 becomes 32 neighbouring invocations of a workgroup, and each holds its part of a
//! matrix of 16x16: of a sum half a row, of a left factor the whole row, and of a right factor the
//! columns of its half. What waits for a subgroup waits for the workgroup, so conditions around it
//! must be uniform there, and what is asked of all lanes is asked of the whole workgroup.
//! Lanes shuffle as the driver lets them, which reaches no further than its own subgroups do.

use std::collections::BTreeSet;

use super::unroll::Line;

/// The types of matrices and the calls that keep their arguments.
const NAMES: [(&str, &str); 7] = [
    ("coop_mat16x16<f16, A>", "LeftMatrix"),
    ("coop_mat16x16<f16, B>", "RightMatrix"),
    ("coop_mat16x16<f32, C>", "SumMatrix"),
    ("coopMultiplyAdd(", "multiply_add("),
    ("subgroupBarrier(", "workgroupBarrier("),
    ("subgroupAny(", "any_of_workgroup("),
    ("subgroupMax(", "max_of_workgroup("),
];

/// The parameters of an entry point that say where an invocation is in its subgroup.
const SUBGROUP: &str = "    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
";

const INVOCATION: &str = "    @builtin(local_invocation_index) invocation: u32,
) {
    let subgroup = invocation / 32u; let subgroup_lane = invocation % 32u; matrix_lane = subgroup_lane;
";

const TYPES: &str = "
alias LeftMatrix = mat4x4<f32>;
alias RightMatrix = array<vec4<f32>, 32>;
alias SumMatrix = mat2x4<f32>;
var<private> matrix_lane: u32;
var<workgroup> largest_number: atomic<u32>;
fn multiply_add(left: LeftMatrix, right: RightMatrix, sum: SumMatrix) -> SumMatrix {
    var a = left;
    var b = right;
    var c = sum;
    for (var k = 0u; k < 16u; k++) {
        c[0] += a[k / 4u][k % 4u] * b[2u * k];
        c[1] += a[k / 4u][k % 4u] * b[2u * k + 1u];
    }
    return c;
}
fn max_of_workgroup(x: u32) -> u32 {
    workgroupBarrier();
    atomicStore(&largest_number, 0u);
    workgroupBarrier();
    atomicMax(&largest_number, x);
    workgroupBarrier();
    return atomicLoad(&largest_number);
}
fn any_of_workgroup(x: bool) -> bool {
    return max_of_workgroup(select(0u, 1u, x)) != 0u;
}
";

/// What matrices do with one array: `ARRAY` in vectors of four, its rows `stride` of them apart.
const LOAD_LEFT_ROWS: &str = "
fn load_left_rows_NAME(at: u32, stride: u32) -> LeftMatrix {
    let start = at + matrix_lane / 2u * stride;
    return mat4x4<f32>(vec4<f32>(ARRAY[start]), vec4<f32>(ARRAY[start + 1u]),
        vec4<f32>(ARRAY[start + 2u]), vec4<f32>(ARRAY[start + 3u]));
}
";

const LOAD_LEFT_COLUMNS: &str = "
fn load_left_columns_NAME(at: u32, stride: u32) -> LeftMatrix {
    let row = matrix_lane / 2u;
    var m: LeftMatrix;
    for (var k = 0u; k < 16u; k++) {
        m[k / 4u][k % 4u] = f32(ARRAY[at + k * stride + row / 4u][row % 4u]);
    }
    return m;
}
";

const LOAD_RIGHT_ROWS: &str = "
fn load_right_rows_NAME(at: u32, stride: u32) -> RightMatrix {
    var m: RightMatrix;
    for (var i = 0u; i < 32u; i++) {
        m[i] = vec4<f32>(ARRAY[at + i / 2u * stride + matrix_lane % 2u * 2u + i % 2u]);
    }
    return m;
}
";

const LOAD_RIGHT_COLUMNS: &str = "
fn load_right_columns_NAME(at: u32, stride: u32) -> RightMatrix {
    var m: RightMatrix;
    for (var i = 0u; i < 32u; i++) {
        let x = vec4<f32>(ARRAY[at + (matrix_lane % 2u * 8u + i % 8u) * stride + i / 8u]);
        for (var k = 0u; k < 4u; k++) {
            m[2u * (i / 8u * 4u + k) + i % 8u / 4u][i % 4u] = x[k];
        }
    }
    return m;
}
";

const LOAD_SUM_ROWS: &str = "
fn load_sum_rows_NAME(at: u32, stride: u32) -> SumMatrix {
    let start = at + matrix_lane / 2u * stride + matrix_lane % 2u * 2u;
    return mat2x4<f32>(vec4<f32>(ARRAY[start]), vec4<f32>(ARRAY[start + 1u]));
}
";

const STORE_SUM_ROWS: &str = "
fn store_sum_rows_NAME(m: SumMatrix, at: u32, stride: u32) {
    let start = at + matrix_lane / 2u * stride + matrix_lane % 2u * 2u;
    ARRAY[start] = m[0];
    ARRAY[start + 1u] = m[1];
}
";

/// Every kind of access that the kernels use, by the start of the call.
const ACCESSES: [(&str, &str, &str); 6] = [
    ("coopLoadT<coop_mat16x16<f16, A>>(", "load_left_rows", LOAD_LEFT_ROWS),
    ("coopLoad<coop_mat16x16<f16, A>>(", "load_left_columns", LOAD_LEFT_COLUMNS),
    ("coopLoadT<coop_mat16x16<f16, B>>(", "load_right_rows", LOAD_RIGHT_ROWS),
    ("coopLoad<coop_mat16x16<f16, B>>(", "load_right_columns", LOAD_RIGHT_COLUMNS),
    ("coopLoadT<coop_mat16x16<f32, C>>(", "load_sum_rows", LOAD_SUM_ROWS),
    ("coopStoreT(", "store_sum_rows", STORE_SUM_ROWS),
];

/// Rewrites a kernel on matrix units; what it cannot rewrite stays, for the compiler to name.
pub(super) fn emulate(lines: &[Line]) -> Vec<Line> {
    let mut text: String = lines.iter().map(|(text, _)| format!("{text}\n")).collect();
    let mut functions = BTreeSet::new();
    for (start, name, function) in ACCESSES {
        text = rewrite(&text, start, name, |array| {
            functions
                .insert(function.replace("NAME", &array.replace('.', "_")).replace("ARRAY", array));
        });
    }
    for (from, to) in NAMES {
        text = text.replace(from, to);
    }
    text = text.replace(SUBGROUP, INVOCATION);
    // Every rewriting keeps the lines; what is added belongs to no file.
    let mut out: Vec<Line> =
        text.lines().map(str::to_owned).zip(lines.iter().map(|&(_, origin)| origin)).collect();
    let added = std::iter::once(TYPES).chain(functions.iter().map(String::as_str));
    out.extend(added.flat_map(str::lines).map(|line| (line.to_owned(), (0, 0))));
    out
}

/// Turns each `START… &array[index], …)` into `name_array(… index, …)`.
fn rewrite(text: &str, start: &str, name: &str, mut seen: impl FnMut(&str)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, call)) = rest.split_once(start) {
        out.push_str(before);
        let parsed = call.split_once('&').and_then(|(first, place)| {
            let (array, place) = place.split_once('[')?;
            let (index, after) = place.split_at(closing(place)?);
            Some((first, array, index, &after[1..]))
        });
        let Some((first, array, index, after)) = parsed else {
            out.push_str(start);
            rest = call;
            continue;
        };
        seen(array);
        out.push_str(&format!("{name}_{}({first}{index}", array.replace('.', "_")));
        rest = after;
    }
    out + rest
}

/// Where the bracket ends that `text` begins inside of.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    text.find(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_rewritten_and_lines_kept() {
        let text = [
            "let a = coopLoadT<coop_mat16x16<f16, A>>(",
            "    &tiles.keys[b[1] + 2u], STRIDE);",
            "coopStoreT((*acc)[r], &out[3u], STRIDE);",
        ];
        let lines: Vec<Line> =
            text.iter().enumerate().map(|(n, text)| ((*text).to_owned(), (1, n + 1))).collect();
        let out = emulate(&lines);
        let kept: Vec<_> = out[..3].iter().map(|(text, _)| text.trim()).collect();
        assert_eq!(
            kept,
            [
                "let a = load_left_rows_tiles_keys(",
                "b[1] + 2u, STRIDE);",
                "store_sum_rows_out((*acc)[r], 3u, STRIDE);",
            ]
        );
        assert_eq!(out[2].1, (1, 3));
        let added: String = out[3..].iter().map(|(text, _)| text.as_str()).collect();
        assert!(added.contains("fn load_left_rows_tiles_keys(at: u32"), "{added}");
        assert!(added.contains("    out[start] = m[0];"), "{added}");
    }
}
