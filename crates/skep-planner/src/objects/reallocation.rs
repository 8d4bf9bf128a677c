//! Which tensors may follow each other in an object whatever order a parallel run takes.

use std::collections::{BTreeSet, VecDeque};

/// The tensors that may share an object with each tensor, sorted, given which tensors are computed from which
/// (`children[a]` lists what needs `a`).
///
/// A tensor may follow `a` if it depends on every child of `a`: then all of them are done with `a` when it is written.
///
/// # Panics
/// Where a child is not the number of a list.
pub fn reallocation_graph(children: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut related: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); children.len()];
    for (root, own) in children.iter().enumerate() {
        let mut reached_from = vec![0_usize; children.len()];
        for &child in own {
            for reached in reach(children, child) {
                reached_from[reached] += 1;
            }
        }
        for (tensor, count) in reached_from.into_iter().enumerate() {
            if !own.is_empty() && count == own.len() {
                related[root].insert(tensor);
                related[tensor].insert(root);
            }
        }
    }
    let lists = related.into_iter();
    lists.map(|list| list.into_iter().collect()).collect()
}

/// The tensors that depend on `start`, without itself.
fn reach(children: &[Vec<usize>], start: usize) -> Vec<usize> {
    let mut seen = vec![false; children.len()];
    seen[start] = true;
    let mut queue = VecDeque::from([start]);
    let mut reached = Vec::new();
    while let Some(tensor) = queue.pop_front() {
        for &child in &children[tensor] {
            if !seen[child] {
                seen[child] = true;
                reached.push(child);
                queue.push_back(child);
            }
        }
    }
    reached
}
