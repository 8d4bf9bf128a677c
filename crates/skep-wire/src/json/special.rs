//! NaN and infinities, which JSON numbers cannot express.

/// The special values, as Triton writes them.
pub(super) const SPECIALS: [(&str, f32); 3] = [
    ("NaN", f32::NAN),
    ("Infinity", f32::INFINITY),
    ("-Infinity", f32::NEG_INFINITY),
];

/// Further spellings that Triton's parser accepts.
const FURTHER_SPECIALS: [(&str, f32); 3] = [
    ("-NaN", f32::NAN),
    ("Inf", f32::INFINITY),
    ("-Inf", f32::NEG_INFINITY),
];

/// The value of a bare special; FP64 has the same.
pub(super) fn special(word: &str) -> Option<f32> {
    let mut all = SPECIALS.iter().chain(&FURTHER_SPECIALS);
    all.find(|(name, _)| *name == word).map(|(_, value)| *value)
}
