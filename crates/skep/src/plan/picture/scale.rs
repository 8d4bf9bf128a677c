//! Axes: round numbers to mark, and bytes in one unit.

/// Up to about `most` round numbers from `first` to `last`, their distance 1, 2 or 5 times a power of ten.
pub(super) fn ticks(first: f64, last: f64, most: f64) -> Vec<f64> {
    let span = last - first;
    if !(span > 0.0 && span.is_finite()) {
        return vec![first];
    }
    let raw = span / most;
    let magnitude = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * magnitude >= raw * (1.0 - 1e-9));
    let step = factor.unwrap_or(10.0) * magnitude;
    let begin = (first / step).ceil();
    let count = ((last - begin * step) / step + 1e-9).floor().max(0.0);
    let mut ticks = Vec::new();
    let mut index = 0.0;
    while index <= count {
        ticks.push((begin + index) * step);
        index += 1.0;
    }
    ticks
}

/// The unit in which `most` bytes have one to four digits before the point, and its bytes.
pub(super) fn unit(most: u64) -> (&'static str, f64) {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|(_, bits)| most >= 1 << bits);
    unit.map_or(("bytes", 1.0), |(name, bits)| (name, f64::from(1 << bits)))
}

/// A tick without needless zeros.
pub(super) fn label(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 6.9, 6.0), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(
            ticks(0.0, 1.0, 6.0)
                .iter()
                .map(|tick| label(*tick))
                .collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(
            ticks(77.0, 1346.0, 8.0),
            [200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0]
        );
        assert_eq!(ticks(5.0, 5.0, 8.0), [5.0]);
        assert!(ticks(0.0, 1.8e19, 10.0).len() <= 11);
    }

    #[test]
    fn units_fit() {
        assert_eq!(unit(1000).0, "bytes");
        assert_eq!(unit(1 << 20), ("MiB", 1_048_576.0));
        assert_eq!(unit(u64::MAX).0, "GiB");
    }
}
