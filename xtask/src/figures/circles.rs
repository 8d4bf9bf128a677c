//! Circles among files: sets in which each file reaches every other one along arrows.

use std::collections::BTreeSet;

/// The strongly connected components of more than one node, largest first, by Kosaraju's two passes.
pub(super) fn circles(nodes: usize, arrows: &BTreeSet<(usize, usize)>) -> Vec<Vec<usize>> {
    let (mut forward, mut backward) = (vec![Vec::new(); nodes], vec![Vec::new(); nodes]);
    for (from, to) in arrows {
        forward[*from].push(*to);
        backward[*to].push(*from);
    }
    let mut finished = Vec::new();
    let mut seen = vec![false; nodes];
    for node in 0..nodes {
        visit(node, &forward, &mut seen, &mut finished);
    }
    let mut seen = vec![false; nodes];
    let mut found = Vec::new();
    for node in finished.into_iter().rev() {
        let mut component = Vec::new();
        visit(node, &backward, &mut seen, &mut component);
        if component.len() > 1 {
            component.sort_unstable();
            found.push(component);
        }
    }
    found.sort_by_key(|component| (usize::MAX - component.len(), component[0]));
    found
}

/// Appends what can be reached from a node and was not seen, each behind what it reaches.
fn visit(node: usize, next: &[Vec<usize>], seen: &mut [bool], finished: &mut Vec<usize>) {
    if seen[node] {
        return;
    }
    seen[node] = true;
    for node in &next[node] {
        visit(*node, next, seen, finished);
    }
    finished.push(node);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_largest_first() {
        let arrows = BTreeSet::from([(0, 1), (1, 0), (1, 2), (2, 3), (3, 4), (4, 2), (5, 0)]);
        assert_eq!(circles(6, &arrows), [vec![2, 3, 4], vec![0, 1]]);
    }

    #[test]
    fn a_tree_has_no_circles() {
        let arrows = BTreeSet::from([(0, 1), (0, 2), (1, 2)]);
        assert!(circles(3, &arrows).is_empty());
    }
}
