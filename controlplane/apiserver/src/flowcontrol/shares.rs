//! How the server's concurrency is divided among priority levels: by shares, and then by what each
//! lends and borrows. Pure.

/// What a priority level asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim {
    pub shares: u32,
    pub lendable_percent: u32,
    /// None: as much as there is.
    pub borrowing_percent: Option<u32>,
}

/// Seats that a level has of itself, and the bounds between which they are lent and borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    pub nominal: u32,
    pub least: u32,
    pub most: u32,
}

impl Bounds {
    /// Before anything is known of the demand.
    pub fn initial(self) -> u32 {
        self.nominal - (self.nominal - self.least) / 2
    }

    /// The widest that one request is taken to be; none where nothing is queued.
    pub fn widest(self, hand_size: usize) -> u32 {
        let hands = self.nominal / u32::try_from(hand_size.max(1)).unwrap_or(u32::MAX);
        ((f64::from(self.nominal) * 0.15).ceil() as u32).min(hands).max(1)
    }
}

/// Divides `total` seats by shares.
pub fn divide(total: u32, claims: &[Claim]) -> Vec<Bounds> {
    let sum: u64 = claims.iter().map(|claim| u64::from(claim.shares)).sum();
    let percent = |of: u32, percent: u32| (f64::from(of) * f64::from(percent) / 100.0).round() as u32;
    let bounds = claims.iter().map(|claim| {
        let nominal = u32::try_from((u64::from(total) * u64::from(claim.shares)).div_ceil(sum.max(1))).unwrap_or(total);
        Bounds {
            nominal,
            least: nominal - percent(nominal, claim.lendable_percent.min(100)),
            most: nominal + claim.borrowing_percent.map_or(total, |limit| percent(nominal, limit)),
        }
    });
    bounds.collect()
}

/// How many seats a level wanted in the last period.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Demand {
    pub peak: u32,
    pub average: f64,
    pub smoothed: f64,
}

/// What remains of the old envelope after a period.
const SMOOTHING: f64 = 0.977;

impl Demand {
    /// Takes in another period. The spread is not measured: it is at most what a demand between 0
    /// and its peak can have with this average.
    pub fn after(self, peak: u32, average: f64) -> Self {
        let spread = (average * (f64::from(peak) - average)).max(0.0).sqrt();
        let envelope = f64::from(peak).min(average + spread);
        let decayed = SMOOTHING * self.smoothed + (1.0 - SMOOTHING) * envelope;
        Self { peak, average, smoothed: envelope.max(decayed) }
    }
}

/// The seats of each level for the next period: nobody below what he needs of his own, the rest in
/// proportion to demand. `exempt`: seats that exempt requests take away.
pub fn borrow(levels: &[(Bounds, Demand)], total: u32, exempt: u32) -> Vec<u32> {
    let least: u32 = levels.iter().map(|(bounds, _)| bounds.least).sum();
    let needs: Vec<u32> = levels.iter().map(|(b, demand)| b.least.max(b.nominal.min(demand.peak))).collect();
    let needed: u32 = needs.iter().sum();
    let left = total.saturating_sub(exempt);
    if left <= least {
        return levels.iter().map(|(bounds, _)| bounds.least).collect();
    }
    if left <= needed {
        let part = f64::from(left - least) / f64::from((needed - least).max(1));
        let own = |(at, (bounds, _)): (usize, &(Bounds, Demand))| {
            bounds.least + (f64::from(needs[at] - bounds.least) * part).round() as u32
        };
        return levels.iter().enumerate().map(own).collect();
    }
    let wanted: Vec<(f64, f64, f64)> = levels
        .iter()
        .zip(&needs)
        .map(|((bounds, demand), need)| {
            let need = f64::from(*need);
            (need, need.max(demand.smoothed).max(0.001), f64::from(bounds.most))
        })
        .collect();
    // What a level gets grows with the common factor; the factor that spends exactly all is found
    // by halving, which at these sizes is as good as exact.
    let spent =
        |factor: f64| -> f64 { wanted.iter().map(|(low, target, high)| (factor * target).clamp(*low, *high)).sum() };
    let (mut low, mut high) = (0.0, f64::from(total) * 1000.0 + 1.0);
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if spent(middle) < f64::from(total) { low = middle } else { high = middle }
    }
    wanted.iter().map(|(low, target, most)| (high * target).clamp(*low, *most).round() as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The levels of every cluster, at the default 600 seats.
    #[test]
    fn the_standard_levels_get_what_upstream_gives_them() {
        let claim = |shares, lendable_percent| Claim { shares, lendable_percent, borrowing_percent: None };
        let claims = [
            claim(5, 0),
            claim(0, 0),
            claim(20, 50),
            claim(10, 0),
            claim(40, 25),
            claim(30, 33),
            claim(40, 50),
            claim(100, 90),
        ];
        let bounds = divide(600, &claims);
        let nominal: Vec<u32> = bounds.iter().map(|bounds| bounds.nominal).collect();
        assert_eq!(nominal, [13, 0, 49, 25, 98, 74, 98, 245]);
        let least: Vec<u32> = bounds.iter().map(|bounds| bounds.least).collect();
        assert_eq!(least, [13, 0, 24, 25, 73, 50, 49, 24]);
        assert_eq!(bounds[7].widest(6), 37);
        assert_eq!(bounds[0].widest(1), 2);
    }

    #[test]
    fn seats_go_where_they_are_wanted() {
        let bounds = divide(
            100,
            &[
                Claim { shares: 50, lendable_percent: 50, borrowing_percent: None },
                Claim { shares: 50, lendable_percent: 50, borrowing_percent: None },
            ],
        );
        let demand = |peak: u32| Demand::default().after(peak, f64::from(peak));
        let of = |first: u32, second: u32| borrow(&[(bounds[0], demand(first)), (bounds[1], demand(second))], 100, 0);
        assert_eq!(of(0, 0), [50, 50]);
        assert_eq!(of(100, 0), [75, 25], "25 cannot be lent");
        assert_eq!(of(100, 100), [50, 50]);
    }

    #[test]
    fn demand_decays_slowly() {
        let high = Demand::default().after(10, 10.0);
        assert!((high.smoothed - 10.0).abs() < 1e-9);
        let later = high.after(0, 0.0);
        assert!((later.smoothed - 9.77).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn everything_is_spent_within_bounds(
            levels in proptest::collection::vec((1_u32..100, 0_u32..=100, 0_u32..300), 1..8), total in 10_u32..1000
        ) {
            let claims: Vec<Claim> =
                levels.iter().map(|(shares, lendable_percent, _)| Claim { shares: *shares, lendable_percent: *lendable_percent, borrowing_percent: None }).collect();
            let bounds = divide(total, &claims);
            let sum: u32 = bounds.iter().map(|bounds| bounds.nominal).sum();
            prop_assert!(sum >= total && sum <= total + levels.len() as u32);
            let input: Vec<(Bounds, Demand)> = bounds.iter().zip(&levels)
                .map(|(bounds, (_, _, peak))| (*bounds, Demand::default().after(*peak, f64::from(*peak) / 2.0))).collect();
            let got = borrow(&input, sum, 0);
            for ((bounds, _), got) in input.iter().zip(&got) {
                prop_assert!(*got >= bounds.least && *got <= bounds.most, "{bounds:?} {got}");
            }
            let spent: u32 = got.iter().sum();
            prop_assert!(spent.abs_diff(sum) <= levels.len() as u32, "{spent} of {sum}");
        }
    }
}
