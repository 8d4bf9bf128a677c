//! Nearest names, for misspelt fields, values and keys.

/// The candidate nearest to `name`, if near enough that it was probably meant.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // A third of the name may differ: `max_batchsize` is one edit from its field, `foo` is near to nothing.
    let limit = (name.chars().count() / 3).max(1);
    within(name, candidates, limit)
}

/// The candidate nearest to `name` within `limit` edits, the first of equals.
pub(crate) fn within<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    limit: usize,
) -> Option<String> {
    candidates
        .into_iter()
        // The distance is at least the difference of the lengths: a megabyte of a name must not cost a matrix.
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
    fn suggests_what_is_near_and_nothing_else() {
        let fields = ["max_batch_size", "input", "output"];
        assert_eq!(
            nearest("max_batchsize", fields).as_deref(),
            Some("max_batch_size")
        );
        assert_eq!(nearest("inptu", fields).as_deref(), Some("input"));
        assert_eq!(nearest("nonsense", fields), None);
        assert_eq!(
            within("max_queue_sise", ["max_queue_size"], 2).as_deref(),
            Some("max_queue_size")
        );
        assert_eq!(within("my_key", ["max_queue_size"], 2), None);
    }
}
