//! Covering a rate with instances: how many of each kind reach a throughput for the least weight. An instance counts
//! whole, and any number of a kind may be taken, so that this is the unbounded covering knapsack.
//!
//! ```text
//! minimise  sum of count * weight   where  sum of count * throughput >= rate
//! ```

/// One kind of instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Offer {
    /// Requests a second, above 0.
    pub(super) throughput: f64,
    /// What an instance costs, above 0.
    pub(super) weight: f64,
}

impl Offer {
    fn price(self) -> f64 {
        self.weight / self.throughput
    }

    /// How many of it reach a rate.
    fn reach(self, rate: f64) -> u32 {
        let count = (rate / self.throughput - SLACK).ceil();
        // The cast saturates.
        #[expect(clippy::cast_sign_loss, reason = "not below 0")]
        let count = count.max(0.0) as u32;
        count
    }
}

/// A covering: how many of each offer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cover {
    pub(super) counts: Vec<u32>,
    /// No covering weighs less.
    pub(super) bound: f64,
}

impl Cover {
    /// A covering whose bound are fractions of the cheapest offer.
    pub(super) fn with_fractional_bound(counts: Vec<u32>, offers: &[Offer], rate: f64) -> Self {
        let bound = cheapest(offers).map_or(0.0, |best| rate * offers[best].price());
        Self { counts, bound }
    }
}

/// A rate is covered if what is left is this small beside an instance's throughput: rounding is no reason for one more.
const SLACK: f64 = 1e-9;

/// Beyond so many instances of the cheapest offer, the search leaves the others out: what it could still gain is less
/// than the weight of a few instances out of them.
const SEARCHED_INSTANCES: u32 = 64;

/// The cheapest offer by throughput, as often as it takes: what taking the best and subtracting its rate comes to (the
/// selection of Tetris, USENIX ATC'22, §5.2).
pub(super) fn decreasing(offers: &[Offer], rate: f64) -> Vec<u32> {
    let mut counts = vec![0; offers.len()];
    if let Some(best) = cheapest(offers) {
        counts[best] = offers[best].reach(rate);
    }
    counts
}

/// As [`decreasing`], but the last instances are the ones that cover what is left for the least weight.
pub(super) fn with_tail(offers: &[Offer], rate: f64) -> Vec<u32> {
    let mut counts = vec![0; offers.len()];
    let Some(best) = cheapest(offers) else {
        return counts;
    };
    let most = offers[best].reach(rate);
    // One tail for each of the last few counts of the best offer.
    const TAILS: u32 = 8;
    let mut least = f64::INFINITY;
    let mut chosen = (most, None);
    for count in (most.saturating_sub(TAILS)..=most).rev() {
        let begun = f64::from(count) * offers[best].weight;
        let left = rate - f64::from(count) * offers[best].throughput;
        let (weight, tail) = match left <= SLACK * offers[best].throughput {
            true => (begun, None),
            false => {
                let covering = offers
                    .iter()
                    .map(|offer| f64::from(offer.reach(left)) * offer.weight)
                    .enumerate()
                    .min_by(|a, b| a.1.total_cmp(&b.1));
                let Some((tail, weight)) = covering else {
                    continue;
                };
                (begun + weight, Some((tail, offers[tail].reach(left))))
            }
        };
        if weight < least {
            least = weight;
            chosen = (count, tail);
        }
    }
    counts[best] = chosen.0;
    if let Some((tail, count)) = chosen.1 {
        counts[tail] += count;
    }
    counts
}

/// The least weight, by branch and bound, within so many steps; after them, the best covering found so far.
pub(super) fn search(offers: &[Offer], rate: f64, max_steps: u64) -> Cover {
    let mut counts = with_tail(offers, rate);
    let mut order = undominated(offers);
    order.sort_by(|a, b| offers[*a].price().total_cmp(&offers[*b].price()));
    let Some(&best) = order.first() else {
        return Cover::with_fractional_bound(counts, offers, rate);
    };
    let fixed = offers[best].reach(rate).saturating_sub(SEARCHED_INSTANCES);
    let sorted: Vec<Offer> = order.iter().map(|index| offers[*index]).collect();
    let begun = f64::from(fixed) * sorted[0].weight;
    let mut search = Search {
        offers: &sorted,
        counts: vec![0; sorted.len()],
        least: weight(offers, &counts),
        found: None,
        steps_left: max_steps,
    };
    search.descend(0, rate - f64::from(fixed) * sorted[0].throughput, begun);
    let is_complete = search.steps_left > 0 && fixed == 0;
    if let Some(found) = search.found {
        counts.fill(0);
        for (index, count) in order.iter().zip(found) {
            counts[*index] = count;
        }
        counts[best] += fixed;
    }
    if is_complete {
        let bound = weight(offers, &counts);
        return Cover { counts, bound };
    }
    Cover::with_fractional_bound(counts, offers, rate)
}

pub(super) fn weight(offers: &[Offer], counts: &[u32]) -> f64 {
    let weights = offers.iter().zip(counts);
    weights
        .map(|(offer, count)| offer.weight * f64::from(*count))
        .sum()
}

/// The offer with the least weight by throughput; of equal ones, the first.
fn cheapest(offers: &[Offer]) -> Option<usize> {
    let prices = offers.iter().map(|offer| offer.price()).enumerate();
    prices
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(index, _)| index)
}

/// The offers for which no other has as much throughput for as little weight; of equal ones, the first.
fn undominated(offers: &[Offer]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..offers.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (offers[*a], offers[*b]);
        (b.throughput.total_cmp(&a.throughput)).then(a.weight.total_cmp(&b.weight))
    });
    let mut lightest = f64::INFINITY;
    order.retain(|index| {
        let is_lighter = offers[*index].weight < lightest;
        lightest = lightest.min(offers[*index].weight);
        is_lighter
    });
    order
}

struct Search<'a> {
    /// By price.
    offers: &'a [Offer],
    counts: Vec<u32>,
    least: f64,
    found: Option<Vec<u32>>,
    steps_left: u64,
}

impl Search<'_> {
    /// Covers what is left of the rate with offers from `first` on; those before weigh `begun`.
    fn descend(&mut self, first: usize, left: f64, begun: f64) {
        let offer = self.offers[first];
        let next = self.offers.get(first + 1);
        let most = offer.reach(left);
        for count in (0..=most).rev() {
            if self.steps_left == 0 {
                break;
            }
            self.steps_left -= 1;
            let weight = begun + f64::from(count) * offer.weight;
            let rest = left - f64::from(count) * offer.throughput;
            self.counts[first] = count;
            if rest <= SLACK * offer.throughput {
                if weight < self.least {
                    self.least = weight;
                    self.found = Some(self.counts.clone());
                }
                continue;
            }
            // With fewer of this offer, more is left for dearer ones.
            let Some(next) = next else { break };
            if weight + rest * next.price() >= self.least {
                break;
            }
            self.descend(first + 1, rest, weight);
        }
        self.counts[first] = 0;
    }
}
