//! Subjects of commits: imperative, and short enough for one line of a log.

use std::{path::Path, process::Command};

/// Commits up to this one were written before there was a check.
const SINCE: &str = "6daa005666aecd5c9796580f39b72a05a1cf9a63";

/// A subject that is longer is cut by tools that list commits.
const MAX_SUBJECT: usize = 72;

/// Verbs whose imperative ends as a past tense, a gerund or a third person does.
const IMPERATIVES: [&str; 22] = [
    "bring", "ping", "ring", "string", "swing", // -ing
    "bleed", "embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed", "succeed",
    "weed", // -ed
    "bias", "bus", "canvas", "focus", "alias", "index", // -s
];

/// Past tenses that no ending gives away.
const IRREGULAR: [&str; 18] = [
    "began", "bound", "brought", "built", "chose", "did", "found", "gave", "held", "kept", "left",
    "made", "said", "sent", "taught", "took", "went", "wrote",
];

/// Reports new commits whose subject is too long, or does not say what the commit does. Without git's history there is
/// nothing to check.
pub(super) fn check(root: &Path, findings: &mut Vec<String>) {
    let listed = Command::new("git")
        .args([
            "log",
            "--no-merges",
            "--format=%h %s",
            &format!("{SINCE}..HEAD"),
        ])
        .current_dir(root)
        .output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        return;
    };
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let (commit, subject) = line.split_once(' ').unwrap_or((line, ""));
        if let Some(fault) = fault(subject) {
            findings.push(format!("commit {commit}: subject `{subject}` {fault}"));
        }
    }
}

/// What is wrong with a subject.
fn fault(subject: &str) -> Option<String> {
    let length = subject.chars().count();
    if length > MAX_SUBJECT {
        return Some(format!(
            "has {length} characters, expected at most {MAX_SUBJECT}"
        ));
    }
    let words = match subject.split_once(": ") {
        // An area: names of crates, files and tasks.
        Some((area, rest)) if !area.contains(' ') || area.contains(", ") => rest,
        _ => subject,
    };
    let first = words
        .split([' ', ',', ':', ';'])
        .next()
        .unwrap_or_default()
        .to_lowercase();
    (!is_imperative(&first))
        .then(|| format!("begins with `{first}`, expected an imperative (`fix`, `add`)"))
}

/// Whether a word may be an imperative, as far as its form tells.
fn is_imperative(word: &str) -> bool {
    if IMPERATIVES.contains(&word) {
        return true;
    }
    let is_third_person = word.ends_with('s') && !word.ends_with("ss");
    !(word.is_empty()
        || word.ends_with("ed")
        || word.ends_with("ing")
        || is_third_person
        || IRREGULAR.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imperatives_pass() {
        for subject in [
            "store: keep leases until the holder ends",
            "Fix it",
            "xtask, docs: embed the page",
            "docs: process one request: a walk",
        ] {
            assert_eq!(fault(subject), None, "{subject}");
        }
    }

    #[test]
    fn other_forms_are_found() {
        for subject in [
            "store: fixed leases",
            "Fixing it",
            "docs: adds a page",
            "http: made faster",
            "",
        ] {
            assert!(fault(subject).is_some(), "{subject}");
        }
    }

    #[test]
    fn long_subjects_are_found() {
        let subject = format!("fix {}", "x".repeat(MAX_SUBJECT - 4));
        assert_eq!(fault(&subject), None);
        assert!(fault(&format!("{subject}x")).is_some());
    }
}
