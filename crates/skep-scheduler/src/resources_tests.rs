//! Tests of the resources: what may run at once, whose turn it is, how many copies there are.

use proptest::prelude::*;

use super::*;

const FIRST: InstanceId = InstanceId(0);

fn demand(name: &str, device: Option<u32>, count: u32) -> ResourceDemand {
    ResourceDemand {
        name: name.to_owned(),
        device,
        count,
    }
}

fn supply(name: &str, device: Option<u32>, count: u32) -> ResourceSupply {
    ResourceSupply {
        name: name.to_owned(),
        device,
        count,
    }
}

/// A share under test; calls return the executions that they grant, claimed.
struct Tried {
    share: ResourceShare,
}

impl Tried {
    fn new(supplies: &[ResourceSupply]) -> Self {
        Self {
            share: ResourceShare::new(supplies.to_vec()),
        }
    }

    /// A model of one free instance.
    fn model(&mut self, priority: u32, demands: &[ResourceDemand]) -> ResourceSeatId {
        let seat = self.share.join();
        self.add(seat, FIRST, priority, demands);
        seat
    }

    fn add(
        &mut self,
        seat: ResourceSeatId,
        id: InstanceId,
        priority: u32,
        demands: &[ResourceDemand],
    ) {
        let added = self.share.add(seat, id, priority, demands);
        added.expect("enough of all resources");
        assert!(self.free(seat, id).is_empty());
    }

    fn claimed(&mut self, grants: ResourceGrants) -> Vec<(ResourceSeatId, InstanceId)> {
        let claim = |seat| (seat, self.share.claim(seat).expect("a grant"));
        grants.into_iter().map(claim).collect()
    }

    fn want(&mut self, seat: ResourceSeatId) -> Vec<(ResourceSeatId, InstanceId)> {
        let mut grants = ResourceGrants::new();
        self.share.want(seat, &mut grants);
        self.claimed(grants)
    }

    fn free(&mut self, seat: ResourceSeatId, id: InstanceId) -> Vec<(ResourceSeatId, InstanceId)> {
        let mut grants = ResourceGrants::new();
        self.share.free(seat, id, &mut grants);
        self.claimed(grants)
    }
}

#[test]
fn models_that_share_one_copy_take_turns() {
    let mut tried = Tried::new(&[]);
    let a = tried.model(1, &[demand("R", None, 1)]);
    let b = tried.model(1, &[demand("R", None, 1)]);
    assert_eq!(tried.want(a), [(a, FIRST)]);
    assert!(tried.want(b).is_empty());
    // It wants again before its execution ends, and comes behind the other one.
    assert!(tried.want(a).is_empty());
    assert_eq!(tried.free(a, FIRST), [(b, FIRST)]);
    assert_eq!(tried.free(b, FIRST), [(a, FIRST)]);
    assert!(tried.free(a, FIRST).is_empty());
}

#[test]
fn instances_of_one_model_share_resources_too() {
    let mut tried = Tried::new(&[supply("R", None, 2)]);
    let a = tried.share.join();
    for id in 0..3 {
        tried.add(a, InstanceId(id), 1, &[demand("R", None, 1)]);
    }
    assert_eq!(tried.want(a), [(a, InstanceId(0))]);
    assert_eq!(tried.want(a), [(a, InstanceId(1))]);
    assert!(tried.want(a).is_empty());
    assert_eq!(tried.free(a, InstanceId(1)), [(a, InstanceId(2))]);
}

#[test]
fn a_resource_of_a_device_is_apart_from_that_of_another() {
    let mut tried = Tried::new(&[]);
    let a = tried.model(1, &[demand("R", Some(0), 1)]);
    let b = tried.model(1, &[demand("R", Some(1), 1)]);
    let c = tried.model(1, &[demand("R", Some(1), 1)]);
    assert_eq!(tried.want(a).len(), 1);
    assert_eq!(tried.want(b).len(), 1);
    assert!(tried.want(c).is_empty());
}

#[test]
fn there_are_as_many_copies_as_the_largest_demand() {
    let mut tried = Tried::new(&[]);
    let small: Vec<ResourceSeatId> = (0..5)
        .map(|_| tried.model(1, &[demand("R", None, 1)]))
        .collect();
    let large = tried.model(1, &[demand("R", None, 4)]);
    let running = small.iter().filter(|seat| !tried.want(**seat).is_empty());
    assert_eq!(running.count(), 4);
    // Without the large one there is one copy, once those that run have ended.
    let mut grants = ResourceGrants::new();
    tried.share.leave(large, &mut grants);
    for seat in &small[..3] {
        assert!(tried.free(*seat, FIRST).is_empty());
    }
    assert_eq!(tried.free(small[3], FIRST), [(small[4], FIRST)]);
}

#[test]
fn a_demand_above_what_the_operator_states_is_refused() {
    let mut share = ResourceShare::new(vec![
        supply("R", None, 9),
        supply("R", None, 4),
        supply("S", None, 2),
        supply("S", Some(1), 5),
        supply("T", Some(0), 1),
    ]);
    let seat = share.join();
    let mut add = |name: &str, device, count| {
        let added = share.add(seat, FIRST, 1, &[demand(name, device, count)]);
        added.map_err(|error| error.to_string())
    };
    assert_eq!(add("R", None, 4), Ok(()));
    assert_eq!(
        add("R", None, 10),
        Err("Resource count for \"R\" is limited to 4 which will prevent scheduling of one or more model instances, the minimum required count is 10".to_owned())
    );
    assert_eq!(add("S", Some(1), 5), Ok(()));
    assert!(add("S", Some(0), 3).is_err());
    // What is stated of a device says nothing about the node.
    assert_eq!(add("T", None, 3), Ok(()));
}

#[test]
fn a_name_is_of_a_device_or_of_the_node() {
    let mut share = ResourceShare::default();
    let seat = share.join();
    let mixed = |name: &str| {
        Err(ResourceError::Mixed {
            name: name.to_owned(),
        })
    };
    let both = [demand("R", None, 1), demand("R", Some(0), 1)];
    assert_eq!(share.add(seat, FIRST, 1, &both), mixed("R"));
    assert_eq!(share.add(seat, FIRST, 1, &both[..1]), Ok(()));
    assert_eq!(share.add(seat, InstanceId(1), 1, &both[1..]), mixed("R"));
    share.remove(seat, FIRST, &mut ResourceGrants::new());
    assert_eq!(share.add(seat, InstanceId(1), 1, &both[1..]), Ok(()));
}

#[test]
fn priority_2_gets_half_the_turns() {
    let mut tried = Tried::new(&[]);
    let first = tried.model(1, &[demand("R", None, 1)]);
    let second = tried.model(2, &[demand("R", None, 1)]);
    let mut running = tried.want(first);
    assert!(tried.want(second).is_empty());
    let mut counts = [0; 2];
    for _ in 0..300 {
        let (seat, id) = running.pop().expect("one runs");
        counts[seat.0 as usize] += 1;
        assert!(tried.want(seat).is_empty());
        running = tried.free(seat, id);
        assert_eq!(running.len(), 1);
    }
    assert_eq!(counts, [200, 100]);
}

#[test]
fn a_model_that_was_idle_does_not_catch_up() {
    let mut tried = Tried::new(&[]);
    let busy = tried.model(1, &[demand("R", None, 1)]);
    let idle = tried.model(1, &[demand("R", None, 1)]);
    for _ in 0..100 {
        assert_eq!(tried.want(busy).len(), 1);
        assert!(tried.free(busy, FIRST).is_empty());
    }
    let mut running = tried.want(busy);
    assert!(tried.want(idle).is_empty());
    let mut order = Vec::new();
    for _ in 0..6 {
        let (seat, id) = running.pop().expect("one runs");
        order.push(seat == busy);
        assert!(tried.want(seat).is_empty());
        running = tried.free(seat, id);
    }
    assert_eq!(order, [true, false, true, false, true, false]);
}

#[test]
fn what_the_first_one_waits_for_is_kept_for_it() {
    let mut tried = Tried::new(&[supply("R", None, 2)]);
    let small = [1; 3].map(|_| tried.model(1, &[demand("R", None, 1)]));
    let large = tried.model(1, &[demand("R", None, 2)]);
    let other = tried.model(1, &[demand("S", None, 1)]);
    assert_eq!(tried.want(small[0]).len(), 1);
    assert_eq!(tried.want(small[1]).len(), 1);
    assert!(tried.want(large).is_empty());
    assert!(tried.want(small[2]).is_empty());
    // One copy is free, and stays so for the large one.
    assert!(tried.free(small[0], FIRST).is_empty());
    assert!(tried.want(small[0]).is_empty());
    // A resource that it does not need does not wait for it.
    assert_eq!(tried.want(other), [(other, FIRST)]);
    assert_eq!(tried.free(small[1], FIRST), [(large, FIRST)]);
    assert_eq!(tried.free(large, FIRST).len(), 2);
}

#[test]
fn an_instance_that_goes_before_its_claim_leaves_the_wish() {
    let mut tried = Tried::new(&[]);
    let a = tried.share.join();
    tried.add(a, InstanceId(0), 1, &[demand("R", None, 1)]);
    let b = tried.model(1, &[demand("R", None, 1)]);
    let mut grants = ResourceGrants::new();
    tried.share.want(a, &mut grants);
    tried.share.want(b, &mut grants);
    assert_eq!(grants.as_slice(), [a]);
    grants.clear();
    tried.share.away(a, InstanceId(0), &mut grants);
    assert_eq!(grants.as_slice(), [b]);
    assert_eq!(tried.share.claim(a), None);
    assert_eq!(tried.share.claim(b), Some(FIRST));
    assert_eq!(tried.share.claim(b), None);
    // Another instance comes, and takes up the wish.
    let added = tried.share.add(a, InstanceId(1), 1, &[]);
    assert_eq!(added, Ok(()));
    assert_eq!(tried.free(a, InstanceId(1)), [(a, InstanceId(1))]);
}

#[test]
fn an_unused_execution_counts_no_turn() {
    let mut tried = Tried::new(&[]);
    let a = tried.model(1, &[demand("R", None, 1)]);
    let b = tried.model(1, &[demand("R", None, 1)]);
    assert_eq!(tried.want(a), [(a, FIRST)]);
    let mut grants = ResourceGrants::new();
    tried.share.give_back(a, FIRST, &mut grants);
    assert!(grants.is_empty());
    assert_eq!(tried.want(b), [(b, FIRST)]);
    assert!(tried.want(a).is_empty());
    assert!(tried.want(b).is_empty());
    assert_eq!(tried.free(b, FIRST), [(a, FIRST)]);
}

/// A step of a random history.
#[derive(Debug, Clone, Copy)]
enum Step {
    Want(usize),
    End(usize, u32),
    Away(usize, u32),
    Remove(usize, u32),
    Add(usize, u32, u32, [u32; 2]),
}

fn step() -> impl Strategy<Value = Step> {
    let (model, instance) = (0usize..4, 0u32..3);
    prop_oneof![
        4 => model.clone().prop_map(Step::Want),
        4 => (model.clone(), instance.clone()).prop_map(|(m, i)| Step::End(m, i)),
        1 => (model.clone(), instance.clone()).prop_map(|(m, i)| Step::Away(m, i)),
        1 => (model.clone(), instance.clone()).prop_map(|(m, i)| Step::Remove(m, i)),
        2 => (model, instance, 0u32..4, [0u32..4, 0u32..4])
            .prop_map(|(m, i, priority, counts)| Step::Add(m, i, priority, counts)),
    ]
}

proptest! {
    /// Never more than there is, whatever happens; and once all has ended, every model that wants gets its turn.
    #[test]
    fn no_resource_is_given_twice_and_no_wish_is_lost(steps in prop::collection::vec(step(), 1..200)) {
        let mut share = ResourceShare::new(vec![supply("R", None, 4)]);
        let seats: Vec<ResourceSeatId> = (0..4).map(|_| share.join()).collect();
        // What each instance needs, and whether it holds that.
        let mut known: Vec<(usize, u32, [u32; 2], bool)> = Vec::new();
        let mut wishes = [false; 4];
        for step in steps {
            let mut grants = ResourceGrants::new();
            match step {
                Step::Want(model) => {
                    wishes[model] = true;
                    share.want(seats[model], &mut grants);
                }
                Step::End(model, id) | Step::Away(model, id) => {
                    for (_, _, _, holds) in known.iter_mut().filter(|k| (k.0, k.1) == (model, id)) {
                        *holds = false;
                    }
                    match step {
                        Step::End(..) => share.free(seats[model], InstanceId(id), &mut grants),
                        _ => share.away(seats[model], InstanceId(id), &mut grants),
                    }
                }
                Step::Remove(model, id) => {
                    known.retain(|k| (k.0, k.1) != (model, id));
                    share.remove(seats[model], InstanceId(id), &mut grants);
                }
                Step::Add(model, id, priority, counts) => {
                    if known.iter().any(|k| (k.0, k.1) == (model, id)) {
                        continue;
                    }
                    let demands = [demand("R", None, counts[0]), demand("S", Some(0), counts[1])];
                    let added = share.add(seats[model], InstanceId(id), priority, &demands);
                    prop_assert_eq!(added, Ok(()));
                    known.push((model, id, counts, false));
                }
            }
            for seat in grants {
                let model = seat.0 as usize;
                prop_assert!(wishes[model]);
                wishes[model] = false;
                let id = share.claim(seat).expect("a grant").0;
                let instance = known.iter_mut().find(|k| (k.0, k.1) == (model, id));
                let instance = instance.expect("an instance that is there");
                prop_assert!(!instance.3);
                instance.3 = true;
                let held = known.iter().filter(|k| k.3).map(|k| k.2[0]).sum::<u32>();
                prop_assert!(held <= 4, "{held}");
                let largest = known.iter().map(|k| k.2[1]).max();
                let held: Vec<u32> = known.iter().filter(|k| k.3).map(|k| k.2[1]).collect();
                // One that began under a larger supply may still run, alone.
                let begun = known.iter().find(|k| (k.0, k.1) == (model, id)).map(|k| k.2[1]);
                prop_assert!(
                    begun == Some(0) || held.iter().sum::<u32>() <= largest.unwrap_or(0),
                    "{held:?}"
                );
            }
        }
        // All ends, and again until nobody wants anything.
        for _ in 0..8 {
            for (model, id, _, _) in known.iter().copied() {
                let mut grants = ResourceGrants::new();
                share.free(seats[model], InstanceId(id), &mut grants);
                for seat in grants {
                    share.claim(seat).expect("a grant");
                    wishes[seat.0 as usize] = false;
                }
            }
        }
        for (model, wish) in wishes.iter().enumerate() {
            prop_assert!(!wish || !known.iter().any(|k| k.0 == model), "model {model} waits");
        }
    }
}
