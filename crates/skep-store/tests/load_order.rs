//! Holders that start at once on an empty store share the work, in whichever order each of them asks.

mod common;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use common::wanted;
use skep_store::{FillError, LoadOrder, Stat, Store, StoreOptions, Tenant, Wanted};

const GENERAL: Tenant = Tenant::GENERAL;
const HOLDERS: usize = 4;
/// The number of tensors, each of which is filled alone.
const TENSORS: usize = 8;
/// A tensor as large as a segment is asked for alone.
const TENSOR_BYTES: usize = 8 << 20;

fn bytes(number: usize) -> Vec<u8> {
    vec![number as u8; TENSOR_BYTES]
}

fn list() -> Vec<Wanted> {
    (0..TENSORS).map(|number| wanted(&bytes(number))).collect()
}

/// The tensor that a holder with this order asks for first.
fn first(list: &[Wanted], order: LoadOrder) -> usize {
    let mut asked = None;
    let store = Store::in_process(StoreOptions::default());
    let failed = store.acquire(&GENERAL, list, order, &mut |index, _| {
        asked = Some(index);
        Err(FillError::new("one is enough"))
    });
    assert!(failed.is_err());
    asked.expect("asked")
}

/// Random orders that all begin with different tensors.
fn orders(list: &[Wanted]) -> Vec<LoadOrder> {
    let mut firsts = Vec::new();
    let orders = (0..100).map(LoadOrder::Random);
    let orders: Vec<LoadOrder> = orders
        .filter(|order| {
            let first = first(list, *order);
            let is_new = !firsts.contains(&first);
            firsts.push(first);
            is_new
        })
        .take(HOLDERS)
        .collect();
    assert_eq!(orders.len(), HOLDERS, "orders differ");
    orders
}

/// Runs holders in step, each over its own connection: no fill ends before every holder is in one. While at least as
/// many tensors are left as there are holders, each finds one to fill, so all fill the same number; a holder that asks
/// for a tensor that another fills goes on to the next one. Returns the store's figures while all are in their first
/// fill.
fn in_step(list: &[Wanted], orders: &[LoadOrder]) -> Stat {
    let store = Store::in_process(StoreOptions::default());
    let (met, go) = (Barrier::new(HOLDERS + 1), Barrier::new(HOLDERS + 1));
    let filled: Vec<AtomicUsize> = list.iter().map(|_| AtomicUsize::new(0)).collect();
    let figures = thread::scope(|scope| {
        for order in orders {
            let stream = store.stream(&GENERAL).expect("a connection");
            let (met, go, filled) = (&met, &go, &filled);
            scope.spawn(move || {
                let store = Store::over(stream).expect("a store");
                let mut fills = 0;
                let lease = store.acquire(&GENERAL, list, *order, &mut |index, to| {
                    fills += 1;
                    if fills > TENSORS / HOLDERS {
                        return Err(FillError::new("more than its share"));
                    }
                    met.wait();
                    go.wait();
                    filled[index].fetch_add(1, Ordering::Relaxed);
                    to.fill(index as u8);
                    Ok(())
                });
                let lease = lease.expect("a lease");
                assert!((0..TENSORS).all(|index| lease.bytes(index) == bytes(index)));
                assert_eq!(fills, TENSORS / HOLDERS);
            });
        }
        let mut figures = None;
        for _ in 0..TENSORS / HOLDERS {
            met.wait();
            figures.get_or_insert_with(|| store.stat(&GENERAL).expect("figures"));
            go.wait();
        }
        figures.expect("figures")
    });
    let counts = filled.iter().map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts.collect::<Vec<_>>(), [1; TENSORS]);
    figures
}

#[test]
fn with_different_orders_no_holder_asks_for_what_another_fills() {
    let list = list();
    let figures = in_step(&list, &orders(&list));
    assert_eq!((figures.misses, figures.waits), (HOLDERS as u64, 0));
}

/// The second holder asks for one tensor that is being filled, the third for two.
#[test]
fn with_one_order_each_asks_for_what_those_before_it_fill() {
    let figures = in_step(&list(), &[LoadOrder::Fixed; HOLDERS]);
    let waits = HOLDERS * (HOLDERS - 1) / 2;
    assert_eq!(
        (figures.misses, figures.waits),
        (HOLDERS as u64, waits as u64)
    );
}
