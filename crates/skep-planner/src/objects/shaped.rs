//! Objects with several dimensions, such as textures: an object holds a tensor if it is as large in every dimension.

use std::{cmp::Reverse, collections::BinaryHeap};

/// A tensor whose object has a shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapedBuffer<const N: usize> {
    /// Elements per dimension.
    pub shape: [u64; N],
    /// First step at which it is live.
    pub start: u64,
    /// The step after the last.
    pub end: u64,
}

/// Each tensor's object, and the objects' shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapedPlan<const N: usize> {
    /// For each tensor, an index into `shapes`.
    pub objects: Vec<usize>,
    /// For each object, its elements per dimension.
    pub shapes: Vec<[u64; N]>,
}

/// An object a tensor.
pub fn naive<const N: usize>(buffers: &[ShapedBuffer<N>]) -> ShapedPlan<N> {
    ShapedPlan {
        objects: (0..buffers.len()).collect(),
        shapes: buffers.iter().map(|buffer| buffer.shape).collect(),
    }
}

/// A tensor takes the object of exactly its shape that was released last, or a new one: TFLite's rule for the shapes of
/// tensors. Tensors come by their start.
pub fn equality_last_released<const N: usize>(buffers: &[ShapedBuffer<N>]) -> ShapedPlan<N> {
    let mut released = Released::default();
    assign(buffers, |shapes, buffer| {
        released.until(buffer.start);
        let position = released
            .objects
            .iter()
            .rposition(|&object| shapes[object] == buffer.shape);
        released.take(position, buffer, shapes.len())
    })
}

/// A tensor takes the first object of its shape that is not in use, or a new one: TFLite's rule for
/// textures. Tensors come by their start.
pub fn equality<const N: usize>(buffers: &[ShapedBuffer<N>]) -> ShapedPlan<N> {
    let mut ends: Vec<u64> = Vec::new();
    assign(buffers, |shapes, buffer| {
        let found = (0..shapes.len())
            .find(|&object| shapes[object] == buffer.shape && ends[object] <= buffer.start);
        match found {
            Some(object) => ends[object] = buffer.end,
            None => ends.push(buffer.end),
        }
        found
    })
}

/// A tensor takes, of the released objects that cover it in every dimension, the one with the fewest elements too many,
/// released first of several; or a new one: objects do not grow. Tensors come by their start.
pub fn greedy_in_order<const N: usize>(buffers: &[ShapedBuffer<N>]) -> ShapedPlan<N> {
    let mut released = Released::default();
    assign(buffers, |shapes, buffer| {
        released.until(buffer.start);
        let covers = |object: usize| {
            let mut dimensions = shapes[object].iter().zip(&buffer.shape);
            dimensions.all(|(has, needs)| has >= needs)
        };
        let position = (0..released.objects.len())
            .filter(|&position| covers(released.objects[position]))
            .min_by_key(|&position| elements(&shapes[released.objects[position]]));
        released.take(position, buffer, shapes.len())
    })
}

/// Objects in the order of their release: by the end of their tensor, then by number.
#[derive(Default)]
struct Released {
    in_use: BinaryHeap<Reverse<(u64, usize)>>,
    objects: Vec<usize>,
}

impl Released {
    fn until(&mut self, step: u64) {
        while let Some(&Reverse((end, object))) = self.in_use.peek()
            && end <= step
        {
            self.in_use.pop();
            self.objects.push(object);
        }
    }

    /// Gives the object at this position to `buffer`, or else the `new` one.
    fn take<const N: usize>(
        &mut self,
        position: Option<usize>,
        buffer: &ShapedBuffer<N>,
        new: usize,
    ) -> Option<usize> {
        let object = position.map(|position| self.objects.remove(position));
        self.in_use
            .push(Reverse((buffer.end, object.unwrap_or(new))));
        object
    }
}

fn elements<const N: usize>(shape: &[u64; N]) -> u128 {
    let sizes = shape.iter().map(|size| u128::from(*size));
    sizes.fold(1, u128::saturating_mul)
}

/// Asks for each tensor's object in the order of starts, and makes a new object where none is free.
fn assign<const N: usize>(
    buffers: &[ShapedBuffer<N>],
    mut choose: impl FnMut(&[[u64; N]], &ShapedBuffer<N>) -> Option<usize>,
) -> ShapedPlan<N> {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&tensor| buffers[tensor].start);
    let mut plan = ShapedPlan {
        objects: vec![0; buffers.len()],
        shapes: Vec::new(),
    };
    for tensor in order {
        let chosen = choose(&plan.shapes, &buffers[tensor]);
        plan.objects[tensor] = chosen.unwrap_or(plan.shapes.len());
        if chosen.is_none() {
            plan.shapes.push(buffers[tensor].shape);
        }
    }
    plan
}
