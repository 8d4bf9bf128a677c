//! Answers in the order of their requests, whatever was finished first.
//!
//! For models that ask for it (`preserve_ordering`). The caller reports each finished request and gets the answers that
//! may leave now.

use std::collections::VecDeque;

use crate::RequestId;

/// Holds answers back until all requests before theirs are finished.
///
/// Requests are numbered without gaps, from 0; each must be [finished](Self::finish) exactly once.
#[derive(Debug)]
pub struct Ordering<A> {
    /// The request whose answer leaves next.
    next: u64,
    /// From `next` on; `None` for those that are not finished.
    finished: VecDeque<Option<Finished<A>>>,
    /// Answers among them.
    held: usize,
}

/// How a request ended.
#[derive(Debug)]
enum Finished<A> {
    Answer(A),
    /// Nothing is sent for it.
    Nothing,
}

impl<A> Default for Ordering<A> {
    fn default() -> Self {
        Self {
            next: 0,
            finished: VecDeque::new(),
            held: 0,
        }
    }
}

impl<A> Ordering<A> {
    /// Notes that a request is finished, with an answer or without one (it was answered outside of this order). Calls
    /// `release` with each answer that may leave now, in order.
    pub fn finish(&mut self, id: RequestId, answer: Option<A>, mut release: impl FnMut(A)) {
        let Some(ahead) = id.0.checked_sub(self.next) else {
            debug_assert!(false, "request {} is finished twice", id.0);
            return;
        };
        let ahead = usize::try_from(ahead).expect("requests in flight are counted in memory");
        if ahead >= self.finished.len() {
            self.finished.resize_with(ahead + 1, || None);
        }
        self.held += usize::from(answer.is_some());
        let before =
            self.finished[ahead].replace(answer.map_or(Finished::Nothing, Finished::Answer));
        debug_assert!(before.is_none(), "request {} is finished twice", id.0);
        while let Some(Some(_)) = self.finished.front() {
            self.next += 1;
            if let Some(Some(Finished::Answer(answer))) = self.finished.pop_front() {
                self.held -= 1;
                release(answer);
            }
        }
    }

    /// How many answers are held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn finish(order: &mut Ordering<u64>, id: u64, answer: bool) -> Vec<u64> {
        let mut out = Vec::new();
        order.finish(RequestId(id), answer.then_some(id), |id| out.push(id));
        out
    }

    #[test]
    fn answers_wait_for_those_before_them() {
        let mut order = Ordering::default();
        assert_eq!(finish(&mut order, 2, true), []);
        assert_eq!(finish(&mut order, 1, false), []);
        assert_eq!(order.held(), 1);
        assert_eq!(finish(&mut order, 0, true), [0, 2]);
        assert_eq!(order.held(), 0);
        assert_eq!(finish(&mut order, 3, true), [3]);
        // Without an answer the next ones are not held either.
        assert_eq!(finish(&mut order, 4, false), []);
        assert_eq!(finish(&mut order, 5, true), [5]);
    }

    proptest! {
        /// Whatever the order of the ends: every answer leaves once, in order, as soon as it may.
        #[test]
        fn any_order_comes_out_in_order(
            ends in Just((0u64..40).collect::<Vec<_>>()).prop_shuffle(),
            answered in proptest::collection::vec(any::<bool>(), 40),
        ) {
            let mut order = Ordering::default();
            let mut out = Vec::new();
            for (count, id) in ends.iter().enumerate() {
                out.extend(finish(&mut order, *id, answered[*id as usize]));
                let ended = &ends[..=count];
                let whole = (0u64..).take_while(|id| ended.contains(id));
                let expected: Vec<u64> = whole.filter(|id| answered[*id as usize]).collect();
                prop_assert_eq!(&out, &expected);
                let all = ended.iter().filter(|id| answered[**id as usize]).count();
                prop_assert_eq!(order.held(), all - out.len());
            }
        }
    }
}
