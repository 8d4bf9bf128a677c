//! Not-a-number and infinities, which JSON has no numbers for.

/// What JSON has no numbers for, as Triton writes it.
pub(super) const SPECIALS: [(&str, f32); 3] = [
    ("NaN", f32::NAN),
    ("Infinity", f32::INFINITY),
    ("-Infinity", f32::NEG_INFINITY),
];

/// What Triton's parser takes besides.
const FURTHER_SPECIALS: [(&str, f32); 3] = [
    ("-NaN", f32::NAN),
    ("Inf", f32::INFINITY),
    ("-Inf", f32::NEG_INFINITY),
];

/// The value of a bare special; FP64 has the same ones.
pub(super) fn special(word: &str) -> Option<f32> {
    let mut all = SPECIALS.iter().chain(&FURTHER_SPECIALS);
    all.find(|(name, _)| *name == word).map(|(_, value)| *value)
}
