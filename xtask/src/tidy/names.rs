//! Names of types: a word of the glossary is the type of one crate only.

use crate::figures::type_names;

/// Words of docs/glossary.md that are types, and the crate that each belongs to.
const OWNERS: &[(&str, &str)] = &[
    ("DataType", "skep-types"),
    ("Dims", "skep-types"),
    ("Shape", "skep-types"),
    ("Time", "skep-types"),
    ("Notice", "skep-config"),
    ("Batch", "skep-scheduler"),
    ("Scheduler", "skep-scheduler"),
    ("Buffer", "skep-planner"),
    ("Plan", "skep-planner"),
    ("Strategy", "skep-planner"),
    ("Charge", "skep-tensor"),
    ("Tensor", "skep-tensor"),
    ("TensorView", "skep-tensor"),
    ("Arena", "skep-alloc"),
    ("Recording", "skep-layout"),
    ("Region", "skep-alloc"),
    ("Replay", "skep-layout"),
    ("Digest", "skep-store"),
    ("Lease", "skep-store"),
    ("Segment", "skep-store"),
    ("Tenant", "skep-store"),
    ("Ticket", "skep-store"),
    ("Form", "skep-cache"),
    ("Backend", "skep-backend"),
    ("Instance", "skep-backend"),
    ("Model", "skep-backend"),
    ("Worker", "skep-sandbox"),
    ("Device", "skep-runtime"),
    ("Repository", "skep-runtime"),
];

/// The types of a file that have a word of another crate for their name, with that crate.
pub(super) fn check(crate_name: &str, file: &syn::File) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    for name in type_names(file) {
        let owner = OWNERS.iter().find(|(word, _)| *word == name);
        found.extend(owner.filter(|(_, owner)| *owner != crate_name));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(crate_name: &str, text: &str) -> Vec<&'static str> {
        let file = syn::parse_file(text).expect("the text is Rust");
        let found = check(crate_name, &file);
        found.into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn a_word_is_refused_outside_of_its_crate() {
        let text = "struct Other;\nstruct Tensor;\nenum TensorKind {}\n";
        assert_eq!(refused("skep-server", text), ["Tensor"]);
        assert!(refused("skep-tensor", text).is_empty());
    }

    #[test]
    fn aliases_and_traits_are_types() {
        assert_eq!(
            refused("skep-server", "type Plan = u8;\ntrait Model {}\n"),
            ["Plan", "Model"]
        );
    }

    #[test]
    fn associated_types_are_not_refused() {
        assert!(
            refused(
                "skep-server",
                "impl Backend for A {\n    type Model = u8;\n}\n"
            )
            .is_empty()
        );
    }
}
