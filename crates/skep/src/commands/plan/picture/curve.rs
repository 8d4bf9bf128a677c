//! What is live, over time.

use skep_planner::Problem;

/// Bytes that are live in each section under a plan. Of a pair at one offset, one in place of the other, the larger
/// counts while both are live.
pub(super) fn loads(problem: &Problem, offsets: &[u64]) -> Vec<u64> {
    let spans = problem.timeline().spans();
    let buffers = problem.buffers();
    let mut change = vec![0_u64; problem.timeline().sections() + 1];
    let mut add = |sections: std::ops::Range<usize>, bytes: u64| {
        if !sections.is_empty() {
            change[sections.start] = change[sections.start].wrapping_add(bytes);
            change[sections.end] = change[sections.end].wrapping_sub(bytes);
        }
    };
    for (number, buffer) in buffers.iter().enumerate() {
        let own = spans[number].sections();
        if let Some(input) = buffer
            .in_place
            .filter(|&input| offsets[input] == offsets[number])
        {
            let both = own.start.max(spans[input].sections().start)
                ..own.end.min(spans[input].sections().end);
            add(both, buffer.size.min(buffers[input].size).wrapping_neg());
        }
        add(own, buffer.size);
    }
    change.pop();
    let mut load = 0_u64;
    for change in &mut change {
        load = load.wrapping_add(*change);
        *change = load;
    }
    change
}

#[cfg(test)]
mod tests {
    use skep_planner::Buffer;

    use super::*;

    #[test]
    fn what_is_live_is_added_up() {
        let buffers = vec![
            Buffer::new(4, 0, 3),
            Buffer::new(4, 2, 9).in_place_of(0),
            Buffer::new(2, 5, 6),
        ];
        let problem = Problem::new(buffers).expect("valid");
        // Sections 0..2, 2..3, 3..5, 5..6, 6..9.
        assert_eq!(loads(&problem, &[0, 0, 4]), [4, 4, 4, 6, 4]);
        assert_eq!(loads(&problem, &[0, 4, 0]), [4, 8, 4, 6, 4]);
        assert!(loads(&Problem::new(Vec::new()).expect("valid"), &[]).is_empty());
    }
}
