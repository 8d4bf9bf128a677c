//! The chosen configuration is nearly the best one of all.

#[path = "../examples/configurations.rs"]
#[expect(dead_code, reason = "what prints the table is not used here")]
mod example;

#[test]
fn a_choice_is_within_five_percent_of_the_best_of_all() {
    let all = example::compare();
    assert_eq!(all.len(), example::MODELS.len() * 2 * 11);
    for one in &all {
        let ratio = one.chosen.1 / one.best.1;
        assert!(ratio <= 1.05, "{ratio:.4}: {one:?}");
        assert!(ratio >= 1.0, "better than the best: {one:?}");
    }
    // Neither one instance with all cores nor one thread each is always right.
    let of = |threads: &dyn Fn(&example::Comparison) -> bool| {
        all.iter().filter(|one| threads(one)).count()
    };
    assert!(of(&|one| one.chosen.0.instances == 1) > 0);
    assert!(of(&|one| one.chosen.0.threads == 1) > 0);
}
