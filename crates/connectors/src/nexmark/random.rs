//! Randomness as a pure function: a draw is a hash of (seed, field, event number). No state passes from event to event, so
//! any event, and any single field of it, can be made alone.

/// The 64-bit finaliser of SplitMix64: every input bit reaches every output bit.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The golden ratio in 64 bits, as in SplitMix64: spreads neighbouring event numbers.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The random numbers of one field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draws {
    key: u64,
}

impl Draws {
    /// The draws of field `field` under `seed`.
    pub(super) fn new(seed: u64, field: u64) -> Self {
        Self { key: mix(mix(seed.wrapping_add(STEP)).wrapping_add(field.wrapping_mul(STEP))) }
    }

    /// The draw of one event.
    #[inline(always)]
    pub(super) fn at(self, event: u64) -> Draw {
        Draw(mix(event.wrapping_mul(STEP).wrapping_add(self.key)))
    }
}

/// 64 random bits; its two halves are independent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw(u64);

impl Draw {
    /// Uniform in `0..bound`, from the upper half; `bound` fits 32 bits.
    #[inline(always)]
    pub(super) fn upper(self, bound: u64) -> u64 {
        ((self.0 >> 32) * bound) >> 32
    }

    /// Uniform in `0..bound`, from the lower half; `bound` fits 32 bits.
    #[inline(always)]
    pub(super) fn lower(self, bound: u64) -> u64 {
        ((self.0 & 0xffff_ffff) * bound) >> 32
    }

    /// Uniform in `0..bound`, from all bits.
    #[inline(always)]
    pub(super) fn below(self, bound: u64) -> u64 {
        let product = u128::from(self.0) * u128::from(bound);
        (product >> 64) as u64
    }
}

/// Prices, `round(10^(6u) · 100)` for a uniform `u`: log-uniform from 1.00 to 1,000,000.00 in cents.
///
/// The power is a product of three table entries of ten bits of `u` each. The tables are made of square roots and products
/// only, which IEEE 754 fixes to the last bit, so that prices are equal on every machine.
#[derive(Debug)]
pub(super) struct Prices {
    tables: Box<[[f64; 1024]; 3]>,
}

impl Prices {
    pub(super) fn new() -> Self {
        let mut root = 1e6_f64;
        let tables = std::array::from_fn(|_| {
            let roots: [f64; 10] = std::array::from_fn(|_| {
                root = root.sqrt();
                root
            });
            std::array::from_fn(|bits| {
                (0..10).filter(|bit| bits >> (9 - bit) & 1 == 1).map(|bit: usize| roots[bit]).product()
            })
        });
        Self { tables: Box::new(tables) }
    }

    /// The price of one draw.
    #[inline(always)]
    pub(super) fn of(&self, draw: Draw) -> i64 {
        let part = |shift: u32| (draw.0 >> shift & 1023) as usize;
        let [high, middle, low] = &*self.tables;
        let power = high[part(54)] * middle[part(44)] * low[part(34)];
        // Positive and below 2^53: adding a half and cutting off rounds.
        (power * 100.0 + 0.5) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_uniform_and_fields_are_independent() {
        let (one, other) = (Draws::new(7, 1), Draws::new(7, 2));
        let mut cells = [[0_u32; 8]; 8];
        for event in 0..64_000 {
            cells[one.at(event).upper(8) as usize][other.at(event).lower(8) as usize] += 1;
        }
        for count in cells.iter().flatten() {
            assert!((850..1150).contains(count), "{cells:?}");
        }
    }

    #[test]
    fn prices_follow_the_power() {
        let prices = Prices::new();
        assert_eq!(prices.of(Draw(0)), 100);
        assert!((99_990_000..=100_000_000).contains(&prices.of(Draw(u64::MAX))));
        for bits in [1_u64 << 63, 3 << 61, 12_345_678_901_234_567_890] {
            let exact = 10_f64.powf((bits >> 34) as f64 / (1_u64 << 30) as f64 * 6.0) * 100.0;
            assert!((prices.of(Draw(bits)) as f64 - exact).abs() <= 0.5 + exact * 1e-9, "{bits}");
        }
    }
}
