//! The nearest name, for misspelt fields, values and keys.

/// The candidate nearest to `name`, if it is so near that the user probably meant it: few edits away, or the only
/// candidate of which `name` is a part.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    // A third of the name may differ: `max_batchsize` is one edit from its field, `foo` is near to nothing.
    let limit = (name.chars().count() / 3).max(1);
    within(name, candidates.iter().copied(), limit).or_else(|| whole_of(name, &candidates))
}

/// The hint for a misspelt name.
pub(crate) fn did_you_mean(name: Option<String>) -> Option<String> {
    name.map(|name| format!("did you mean `{name}`?"))
}

/// The only candidate that begins with `name`, or that contains its words: `max_batch_size` for `max_batch` and for
/// `batch_size`.
fn whole_of(name: &str, candidates: &[&str]) -> Option<String> {
    // Too many words begin with fewer letters by chance.
    const LETTERS: usize = 3;
    if name.len() < LETTERS {
        return None;
    }
    let words = format!("_{name}_");
    only(candidates, |candidate| candidate.starts_with(name)).or_else(|| {
        only(candidates, |candidate| {
            format!("_{candidate}_").contains(&words)
        })
    })
}

/// The candidate for which `is_whole` holds, if it holds for no other.
fn only(candidates: &[&str], is_whole: impl Fn(&str) -> bool) -> Option<String> {
    let mut wholes = candidates.iter().filter(|candidate| is_whole(candidate));
    let first = wholes.next()?;
    wholes.next().is_none().then(|| (*first).to_owned())
}

/// The candidate nearest to `name` within `limit` edits; the first among equals.
pub(crate) fn within<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    limit: usize,
) -> Option<String> {
    candidates
        .into_iter()
        // The distance is at least the difference in length: a name of a megabyte must not cost a matrix.
        .filter(|candidate| {
            candidate.len().abs_diff(name.len()) <= limit.saturating_mul(4) && name.len() <= 256
        })
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{nearest, within};

    #[test]
    fn a_part_of_only_one_name_suggests_it() {
        let fields = [
            "name",
            "max_batch_size",
            "batch_input",
            "batch_output",
            "version_policy",
        ];
        for (part, whole) in [
            ("max_batch", Some("max_batch_size")),
            ("batch_size", Some("max_batch_size")),
            ("version", Some("version_policy")),
            ("policy", Some("version_policy")),
            // Part of several names, of none, in the middle of a word, too short.
            ("batch", None),
            ("batches", None),
            ("ver", Some("version_policy")),
            ("atch_siz", None),
            ("ve", None),
        ] {
            assert_eq!(nearest(part, fields).as_deref(), whole, "{part}");
        }
    }

    #[test]
    fn only_near_names_are_suggested() {
        let fields = ["max_batch_size", "input", "output"];
        assert_eq!(
            nearest("max_batchsize", fields).as_deref(),
            Some("max_batch_size")
        );
        assert_eq!(nearest("inptu", fields).as_deref(), Some("input"));
        assert_eq!(nearest("nonsense", fields), None);
        // A third of the letters may differ, and no more: two of seven, three of nine.
        assert_eq!(nearest("abcdefg", ["abcdexy"]).as_deref(), Some("abcdexy"));
        assert_eq!(nearest("abcdefg", ["abcdxyz"]), None);
        assert_eq!(
            nearest("abcdefghi", ["abcdefxyz"]).as_deref(),
            Some("abcdefxyz")
        );
        // Long names are compared with nothing.
        let long = "x".repeat(257);
        assert_eq!(within(&long, [long.as_str()], 2), None);
        assert!(within(&long[1..], [&long[1..]], 2).is_some());
        assert_eq!(
            within("max_queue_sise", ["max_queue_size"], 2).as_deref(),
            Some("max_queue_size")
        );
        assert_eq!(within("my_key", ["max_queue_size"], 2), None);
    }
}
