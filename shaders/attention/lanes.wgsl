// A row's maximum and total, joined by shuffles among the LANES neighbouring lanes that own it.

fn row_max(x: f32) -> f32 {
    var largest = x;
    // rounds: LANES
    for (var distance = 1u; distance < LANES; distance *= 2u) {
        largest = max(largest, subgroupShuffleXor(largest, distance));
    }
    return largest;
}

fn row_sum(x: f32) -> f32 {
    var total = x;
    // rounds: LANES
    for (var distance = 1u; distance < LANES; distance *= 2u) {
        total += subgroupShuffleXor(total, distance);
    }
    return total;
}
