//! What pictures in SVG have in common: round numbers along an axis, and names as words.

/// A round distance of ticks, at least `rough`.
pub(crate) fn step(rough: f64) -> f64 {
    round(rough, &[1.0, 2.0, 2.5, 5.0, 10.0])
}

/// The same where only whole numbers mean something.
pub(crate) fn whole_step(rough: f64) -> f64 {
    round(rough.max(1.0), &[1.0, 2.0, 5.0, 10.0])
}

fn round(rough: f64, factors: &[f64]) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let steps = factors.iter().map(|factor| factor * power);
    // The last is large enough but for the last digit of a power of ten.
    steps
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power)
}

/// Multiples of `step` from `first` to `last`, a hundred at most.
pub(crate) fn ticks(first: f64, last: f64, step: f64) -> impl Iterator<Item = f64> {
    let begin = (first / step - 1e-9).ceil();
    (0..100)
        .map(move |index| (begin + f64::from(index)) * step)
        .take_while(move |tick| *tick <= last + step * 1e-3)
}

/// A number with as many decimals as it needs, three at most.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A text as XML has it.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // However they are written, no document may have them.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                escaped.push('\u{fffd}');
            }
            other => escaped.push(other),
        }
    }
    escaped
}

/// So much of a name as `letters` have room for: its end, where names differ.
pub(crate) fn ending(name: &str, letters: usize) -> String {
    let count = name.chars().count();
    if count <= letters {
        return name.to_owned();
    }
    let skipped = count - letters.saturating_sub(1);
    std::iter::once('…')
        .chain(name.chars().skip(skipped))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        for (range, expected) in [
            (1.5, 0.5),
            (1.0, 0.2),
            (0.3, 0.1),
            (12.0, 2.5),
            (0.05, 0.01),
        ] {
            let step = step(range / 5.0);
            assert!((step - expected).abs() < 1e-9, "{range}: {step}");
        }
        assert_eq!(ticks(0.0, 1.5, 0.5).count(), 4);
        let labels: Vec<String> = ticks(0.0, 1.0, step(0.2)).map(number).collect();
        assert_eq!(labels, ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        let steps = |first: f64, last: f64| {
            ticks(first, last, whole_step((last - first) / 10.0)).collect::<Vec<_>>()
        };
        assert_eq!(
            steps(77.0, 1346.0),
            [200.0, 400.0, 600.0, 800.0, 1000.0, 1200.0]
        );
        assert_eq!(steps(3.0, 5.0), [3.0, 4.0, 5.0]);
        assert_eq!(steps(0.0, 0.0), [0.0]);
        assert!(steps(0.0, 1.8e19).len() <= 11);
    }

    #[test]
    fn names_cannot_break_the_picture() {
        assert_eq!(
            escaped("a<b>&\"c\"\u{1}\nü"),
            "a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}\nü"
        );
        assert_eq!(ending("abc", 3), "abc");
        assert_eq!(ending("äbcd", 3), "…cd");
        assert_eq!(ending("abcd", 1), "…");
    }
}
