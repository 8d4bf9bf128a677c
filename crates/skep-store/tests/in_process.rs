//! A store in this process, through its public API.

mod common;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{fill, tensors};
use skep_store::{
    ErrorKind, FillError, Lease, LoadOrder, Store, StoreError, StoreOptions, Tenant, Wanted,
};

fn get(store: &Store, contents: &[Vec<u8>], wanted: &[Wanted]) -> Result<Lease, StoreError> {
    store.acquire(
        &Tenant::GENERAL,
        wanted,
        LoadOrder::Fixed,
        &mut |index, bytes| {
            bytes.copy_from_slice(&contents[index]);
            Ok(())
        },
    )
}

#[test]
fn a_look_leases_what_is_there() {
    let store = Store::in_process(StoreOptions::default());
    let (contents, mut list) = tensors(&[10, 4096, 5000, 20]);
    // One twice.
    list.push(list[2].clone());
    let nothing = store.look(&Tenant::GENERAL, &list).expect("an answer");
    assert_eq!(nothing.indices, [None; 5]);
    assert!(nothing.lease.is_empty());

    let some = get(&store, &contents[1..3], &list[1..3]).expect("a lease");
    let present = store.look(&Tenant::GENERAL, &list).expect("an answer");
    assert_eq!(present.indices, [None, Some(0), Some(1), None, Some(2)]);
    for index in 0..3 {
        assert_eq!(present.lease.bytes(index), contents[1 + index.min(1)]);
    }
    // Its leases are its own.
    drop(some);
    assert_eq!(store.stat(&Tenant::GENERAL).expect("figures").leases, 2);
    assert_eq!(store.stat(&Tenant::GENERAL).expect("figures").hits, 2);
    drop(present);
    assert_eq!(store.stat(&Tenant::GENERAL).expect("figures").leases, 0);
}

#[test]
fn a_second_acquire_finds_what_the_first_filled() {
    let store = Store::in_process(StoreOptions::default());
    // Small tensors, an empty one, one of exactly a page, and one that fills a segment.
    let (contents, mut list) = tensors(&[10, 0, 4096, 5000, 9 << 20, 3]);
    list.push(list[2].clone());
    let first = get(&store, &contents, &list).expect("a lease");
    let second = store
        .acquire(
            &Tenant::GENERAL,
            &list,
            LoadOrder::Random(1),
            &mut |_, _| Err(FillError::new("nothing is left to fill")),
        )
        .expect("a lease");
    for (index, bytes) in contents.iter().enumerate() {
        assert_eq!(first.bytes(index), bytes);
        assert_eq!(first.bytes(index).as_ptr(), first.bytes(index).as_ptr());
        assert_eq!(second.bytes(index), bytes);
        assert_eq!(first.bytes(index).as_ptr() as usize % 4096, 0);
    }
    assert_eq!(first.len(), 7);
    assert_eq!(first.bytes(6), contents[2]);
    assert_eq!(first.bytes(6).as_ptr(), first.bytes(2).as_ptr());
    assert_eq!((first.figures().filled, first.figures().hits), (6, 0));
    assert_eq!((second.figures().filled, second.figures().hits), (0, 6));
    assert_eq!(
        second.figures().hit_bytes,
        list[..6].iter().map(|t| t.length).sum::<u64>()
    );

    let stat = store.stat(&Tenant::GENERAL).expect("figures");
    assert_eq!((stat.segments, stat.tensors), (3, 6));
    assert_eq!((stat.leases, stat.holders), (12, 2));
    assert_eq!(stat.bytes_saved().unsigned_abs(), stat.bytes_stored);
    drop(first);
    assert_eq!(store.gc(&Tenant::GENERAL).expect("room"), 0);
    // Bytes out of a lease keep all of it.
    let kept = second.bytes(4);
    drop(second);
    assert_eq!(store.gc(&Tenant::GENERAL).expect("room"), 0);
    assert_eq!(kept, contents[4]);
    drop(kept);
    assert!(store.gc(&Tenant::GENERAL).expect("room") > 9 << 20);
    let stat = store.stat(&Tenant::GENERAL).expect("figures");
    assert_eq!(
        (
            stat.segments,
            stat.bytes_stored,
            stat.leases,
            stat.reclaimed
        ),
        (0, 0, 0, 6)
    );
}

/// Many acquires at once, in different orders: exactly one fills each tensor, and all see the same bytes.
#[test]
fn many_acquires_at_once_fill_each_tensor_once() {
    const THREADS: u64 = 8;
    let store = Store::in_process(StoreOptions::default());
    let (contents, list) = tensors(&[3 << 20; 16]);
    let filled: Vec<AtomicUsize> = list.iter().map(|_| AtomicUsize::new(0)).collect();
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (store, start, filled, contents, list) =
                (&store, &start, &filled, &contents, &list);
            scope.spawn(move || {
                start.wait();
                let lease = store.acquire(
                    &Tenant::GENERAL,
                    list,
                    LoadOrder::Random(seed),
                    &mut |index, bytes| {
                        filled[index].fetch_add(1, Ordering::Relaxed);
                        bytes.copy_from_slice(&contents[index]);
                        Ok(())
                    },
                );
                let lease = lease.expect("a lease");
                for (index, bytes) in contents.iter().enumerate() {
                    assert_eq!(lease.bytes(index), bytes);
                }
                let figures = lease.figures();
                assert_eq!(figures.hits + figures.filled + figures.waited, 16);
            });
        }
    });
    assert!(
        filled
            .iter()
            .all(|count| count.load(Ordering::Relaxed) == 1)
    );
    let stat = store.stat(&Tenant::GENERAL).expect("figures");
    assert_eq!((stat.misses, stat.tensors), (16, 16));
}

/// The filler fails or panics while another acquire waits; the other then fills.
#[test]
fn a_waiting_acquire_fills_when_the_filler_fails() {
    for panics in [false, true] {
        let store = Store::in_process(StoreOptions::default());
        let (contents, list) = tensors(&[100, 200]);
        let (filling, waiting) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            let failing = scope.spawn(|| {
                store.acquire(
                    &Tenant::GENERAL,
                    &list,
                    LoadOrder::Fixed,
                    &mut |index, _| {
                        if index == 0 {
                            return Ok(());
                        }
                        filling.wait();
                        waiting.wait();
                        assert!(!panics, "as planned");
                        Err(FillError::new("the disk is gone"))
                    },
                )
            });
            filling.wait();
            let other = scope.spawn(|| get(&store, &contents, &list));
            // The other one waits now, or is about to ask: it gets the tickets in either case.
            waiting.wait();
            match failing.join() {
                Ok(outcome) => {
                    let error = outcome.expect_err("it failed");
                    assert_eq!(error.kind(), ErrorKind::Fill);
                    assert_eq!(
                        error.to_string(),
                        "tensor 1 could not be filled: the disk is gone"
                    );
                }
                Err(_) => assert!(panics),
            }
            let lease = other.join().expect("no panic").expect("a lease");
            assert_eq!(lease.bytes(1), contents[1]);
            assert_eq!(lease.figures().filled, 2);
        });
    }
}

#[test]
fn bytes_without_their_digest_are_never_published() {
    let store = Store::in_process(StoreOptions::default());
    let (contents, list) = tensors(&[100, 200]);
    let error = store
        .acquire(
            &Tenant::GENERAL,
            &list,
            LoadOrder::Fixed,
            &mut |index, bytes| {
                bytes.copy_from_slice(&contents[index]);
                bytes[50] ^= u8::from(index == 1);
                Ok(())
            },
        )
        .expect_err("wrong bytes");
    assert_eq!(error.kind(), ErrorKind::Content);
    assert!(error.to_string().contains(&list[1].digest.to_string()));
    let stat = store.stat(&Tenant::GENERAL).expect("figures");
    assert_eq!(
        (stat.tensors, stat.segments, stat.leases, stat.holders),
        (0, 0, 0, 0)
    );
    assert_eq!(
        get(&store, &contents, &list)
            .expect("a lease")
            .figures()
            .filled,
        2
    );
}

#[test]
fn a_tenant_sees_nothing_of_another() {
    let store = Store::in_process(StoreOptions::default());
    let (contents, list) = tensors(&[1000]);
    let general = get(&store, &contents, &list).expect("a lease");
    let dedicated = Tenant::named("a").expect("a name");
    let mut fills = 0;
    let lease = store
        .acquire(&dedicated, &list, LoadOrder::Fixed, &mut |index, bytes| {
            fills += 1;
            bytes.copy_from_slice(&contents[index]);
            Ok(())
        })
        .expect("a lease");
    assert_eq!(fills, 1);
    assert_ne!(lease.bytes(0).as_ptr(), general.bytes(0).as_ptr());
    let stat = store.stat(&dedicated).expect("figures");
    assert_eq!((stat.hits, stat.misses, stat.leases), (0, 1, 1));
    assert_eq!(
        store.tenants().expect("tenants"),
        [Tenant::GENERAL, dedicated]
    );
}

#[test]
fn a_file_range_can_be_mapped_but_not_for_writing() {
    let store = Store::in_process(StoreOptions::default());
    let (contents, list) = tensors(&[10, 5000]);
    let lease = get(&store, &contents, &list).expect("a lease");
    let place = lease.file_range(1);
    assert_eq!((place.offset % 4096, place.length), (0, 5000));
    let mut bytes = vec![0; 5000];
    let read = rustix::io::pread(place.descriptor, &mut bytes, place.offset);
    assert_eq!(read, Ok(5000));
    assert_eq!(bytes, contents[1]);
    assert!(rustix::io::pwrite(place.descriptor, b"x", place.offset).is_err());
}

#[test]
fn bounds_are_checked_before_a_byte_is_written() {
    let store = Store::in_process(StoreOptions {
        max_tenant_bytes: 1 << 20,
        ..StoreOptions::default()
    });
    let (_, list) = tensors(&[2 << 20]);
    let error = store
        .acquire(&Tenant::GENERAL, &list, LoadOrder::Fixed, &mut |_, _| {
            panic!("nothing is to be filled")
        })
        .expect_err("no room");
    assert_eq!(
        error.to_string(),
        "bytes of tenant `general` would be 2097152, expected at most 1048576"
    );
    assert_eq!(error.kind(), ErrorKind::Bound);
}

#[test]
fn descriptions_are_bounded_and_agree() {
    let store = Store::in_process(StoreOptions::default());
    let (contents, list) = tensors(&[10]);
    let mut two = vec![list[0].clone(), list[0].clone()];
    two[1].description.dims = vec![5, 2];
    let error = get(&store, &contents, &two).expect_err("two descriptions");
    assert_eq!(error.kind(), ErrorKind::Content);
    let mut many = list.clone();
    many[0].description.dims = vec![1; 65];
    let error = get(&store, &contents, &many)
        .expect_err("too many dims")
        .to_string();
    assert!(
        error.ends_with("has 65 dims, expected at most 64"),
        "{error}"
    );
}

/// Idle tensors are dropped when they are due, even if nothing else happens in the store.
#[test]
fn idle_tensors_are_dropped_without_another_request() {
    let store = Store::in_process(StoreOptions {
        keep_alive: Duration::from_millis(1),
        ..StoreOptions::default()
    });
    let (contents, list) = tensors(&[10]);
    let lease = get(&store, &contents, &list).expect("a lease");
    let file = rustix::io::dup(lease.file_range(0).descriptor).expect("a descriptor");
    drop(lease);
    // The store's mapping is in the list of mappings until the sweeper drops it.
    let inode = rustix::fs::fstat(&file).expect("a file").st_ino;
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("mappings");
        maps.lines().any(|line| {
            line.contains("skep-segment")
                && line.split_whitespace().nth(4) == Some(&inode.to_string())
        })
    };
    while mapped() {
        thread::yield_now();
    }
}

#[test]
fn when_memory_is_short_idle_tensors_of_all_tenants_go() {
    let store = Store::in_process(StoreOptions::default());
    let tenant = Tenant::named("t").expect("a name");
    let (contents, list) = tensors(&[1 << 20, 9 << 20]);
    let mut used = Vec::new();
    for (tenant, keeps) in [(&Tenant::GENERAL, true), (&tenant, false)] {
        for wanted in list.chunks(1) {
            let index = usize::from(wanted[0] == list[1]);
            let mut write = fill(&contents[index..]);
            let lease = store.acquire(tenant, wanted, LoadOrder::Fixed, &mut write);
            used.extend(lease.ok().filter(|_| keeps && index == 0));
        }
    }
    let tensors = |tenant| store.stat(tenant).expect("figures").tensors;
    assert_eq!((tensors(&Tenant::GENERAL), tensors(&tenant)), (2, 2));
    assert_eq!(store.relieve(), (9 << 20) + (1 << 20) + (9 << 20));
    assert_eq!((tensors(&Tenant::GENERAL), tensors(&tenant)), (1, 0));
    assert_eq!(used[0].bytes(0), contents[0]);
}
