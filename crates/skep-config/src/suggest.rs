//! Nearest names, for misspelt fields, values and keys.

/// The candidate nearest to `name`, if near enough that it was probably meant: by edits, or as the only one that `name` is
/// a part of.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    // A third of the name may differ: `max_batchsize` is one edit from its field, `foo` is near to nothing.
    let limit = (name.chars().count() / 3).max(1);
    within(name, candidates.iter().copied(), limit).or_else(|| whole_of(name, &candidates))
}

/// The only candidate that begins with `name`, or that has its words: `max_batch_size` of `max_batch` and of `batch_size`.
fn whole_of(name: &str, candidates: &[&str]) -> Option<String> {
    // Fewer letters begin too many words by chance.
    const LETTERS: usize = 3;
    if name.len() < LETTERS {
        return None;
    }
    let only = |is_whole: &dyn Fn(&str) -> bool| {
        let mut wholes = candidates.iter().filter(|candidate| is_whole(candidate));
        let first = wholes.next()?;
        wholes.next().is_none().then(|| (*first).to_owned())
    };
    let words = format!("_{name}_");
    only(&|candidate| candidate.starts_with(name))
        .or_else(|| only(&|candidate| format!("_{candidate}_").contains(&words)))
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
    fn a_part_of_one_name_is_near_to_it() {
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
            // Of several, or of none; in the middle of a word; too short.
            ("batch", None),
            ("batches", None),
            ("atch_siz", None),
            ("ve", None),
        ] {
            assert_eq!(nearest(part, fields).as_deref(), whole, "{part}");
        }
    }

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
