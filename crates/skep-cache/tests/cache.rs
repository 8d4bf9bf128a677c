//! A cache directory as its users see it: whole forms or none, once for each content, within its budget.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use skep_cache::{Begun, Cache, Claim, Content, ErrorKind, Form, FormKey, Found, Making, Role};
use skep_store::{Description, Digest};
use skep_testkit::files;
use skep_types::DataType;
use tempfile::TempDir;

fn cache(budget_bytes: u64) -> (TempDir, Cache) {
    let root = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(root.path(), budget_bytes).expect("a cache");
    (root, cache)
}

fn key(name: &str) -> FormKey {
    FormKey::of(&[name.as_bytes()])
}

fn vector(length: usize) -> Description {
    Description {
        datatype: DataType::Uint8,
        dims: vec![length as u64],
        layout: "plain".into(),
    }
}

fn begin(cache: &Cache, name: &str) -> Claim {
    begin_of(cache, name, Content::default())
}

fn begin_of(cache: &Cache, name: &str, content: Content) -> Claim {
    match cache.begin(&key(name), content).expect("begun") {
        Begun::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

/// Finishes an empty form.
fn finish(claim: Claim) {
    let making = claim.making();
    making.finish(b"graph", BTreeMap::new()).expect("finished");
    claim.publish().expect("published");
}

fn add(making: &mut Making, values: &[u8]) {
    for value in values {
        let name = format!("w {value}");
        making
            .add(Role::Weight, &name, vector(1000), &[*value; 1000])
            .expect("added");
    }
}

/// A form of tensors of 1000 equal bytes each.
fn make(cache: &Cache, name: &str, tensors: &[u8]) -> Form {
    let claim = begin(cache, name);
    let mut making = claim.making();
    add(&mut making, tensors);
    let notes = BTreeMap::from([("runtime".to_owned(), "1.2 x".to_owned())]);
    making.finish(name.as_bytes(), notes).expect("finished");
    match claim.publish().expect("published") {
        Found::Form(form) => form,
        other => panic!("{other:?}"),
    }
}

fn form(cache: &Cache, name: &str) -> Option<Form> {
    match cache.look_up(&key(name)) {
        Found::Form(form) => Some(form),
        _ => None,
    }
}

#[test]
fn any_process_finds_a_form() {
    let (root, first) = cache(1 << 20);
    assert!(matches!(first.look_up(&key("a")), Found::Nothing));
    make(&first, "a", &[1, 2, 1]);
    let other = Cache::open(root.path(), 1 << 20).expect("a cache");
    let form = form(&other, "a").expect("there");
    assert_eq!(
        (&form.graph()[..], form.note("runtime")),
        (&b"a"[..], Some("1.2 x"))
    );
    assert_eq!(fs::read(form.graph_path()).expect("read"), b"a");
    let names: Vec<&str> = form.parts().iter().map(|part| &*part.name).collect();
    assert_eq!(names, ["w 1", "w 2", "w 1"]);
    for (part, value) in form.parts().iter().zip([1, 2, 1]) {
        let mut bytes = [0; 1000];
        form.read(&part.tensor, &mut bytes).expect("read");
        assert_eq!(bytes, [value; 1000]);
        assert_eq!(
            form.map(&part.tensor).expect("mapped").bytes(),
            &[value; 1000][..]
        );
    }
    assert_eq!(
        files(&other.root().join("tensors")).len(),
        2,
        "equal ones once"
    );
}

#[test]
fn one_process_makes_a_form_and_others_wait() {
    let (_root, cache) = cache(1 << 20);
    let making = begin(&cache, "a");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| cache.begin(&key("a"), Content::default()).expect("begun"));
        // Another key is not affected.
        make(&cache, "b", &[2]);
        let busy = cache.try_begin(&key("a"), Content::default());
        assert!(matches!(busy.expect("looked"), Begun::Busy));
        finish(making);
        let other = other.join().expect("no panic");
        assert!(matches!(other, Begun::Found(Found::Form(_))), "{other:?}");
    });
}

#[test]
fn an_unfinished_form_leaves_nothing() {
    let (root, cache) = cache(1 << 20);
    let tmp = || files(&cache.root().join("tmp")).len();
    let claim = begin(&cache, "a");
    let mut making = claim.making();
    add(&mut making, &[1]);
    fs::write(making.scratch().join("half"), b"written").expect("written");
    // Neither another process that starts nor one that cleans up takes it away.
    Cache::open(root.path(), 1 << 20).expect("a cache");
    cache.collect().expect("collected").expect("alone");
    assert_eq!(tmp(), 2);
    drop(claim);
    assert!(form(&cache, "a").is_none());
    assert_eq!((tmp(), files(&cache.root().join("tensors")).len()), (0, 0));
}

#[test]
fn leftovers_of_a_dead_process_are_removed_at_the_next_start() {
    let (root, cache) = cache(1 << 20);
    let left = cache.root().join("tmp/bake-left");
    for inner in ["tensors", "scratch"] {
        fs::create_dir_all(left.join(inner)).expect("made");
    }
    fs::write(left.join("scratch/half"), b"written").expect("written");
    let held = begin(&cache, "a");
    Cache::open(root.path(), 1 << 20).expect("a cache");
    assert!(!left.exists());
    assert!(held.directory().exists());
}

#[test]
fn one_process_has_the_turn() {
    let (root, cache) = cache(1 << 20);
    let other = Cache::open(root.path(), 1 << 20).expect("a cache");
    let turn = cache.try_turn().expect("looked").expect("free");
    assert!(other.try_turn().expect("looked").is_none());
    drop(turn);
    assert!(other.try_turn().expect("looked").is_some());
}

/// What another process may leave in its staging directory, and the error for it.
type Forgery = (&'static str, fn(&Path), &'static str);

fn only(directory: &Path) -> PathBuf {
    let [file] = &files(directory)[..] else {
        panic!("one file");
    };
    file.clone()
}

const FORGERIES: [Forgery; 13] = [
    (
        "a tensor changed",
        |staged| fs::write(only(&staged.join("tensors")), [9; 1000]).expect("written"),
        "do not have its digest",
    ),
    (
        "a tensor cut short",
        |staged| fs::write(only(&staged.join("tensors")), [1; 999]).expect("written"),
        "has 999 bytes, expected 1000",
    ),
    (
        "a tensor gone",
        |staged| fs::remove_file(only(&staged.join("tensors"))).expect("removed"),
        "No such file",
    ),
    (
        "a tensor that is a link",
        |staged| {
            let tensor = only(&staged.join("tensors"));
            let elsewhere = staged.with_extension("elsewhere");
            fs::rename(&tensor, &elsewhere).expect("moved");
            std::os::unix::fs::symlink(&elsewhere, &tensor).expect("linked");
        },
        "Too many levels of symbolic links",
    ),
    (
        "a tensor with another name",
        |staged| {
            let tensor = only(&staged.join("tensors"));
            fs::hard_link(tensor, staged.with_extension("second")).expect("linked");
        },
        "is not a regular file of this user with one name",
    ),
    (
        "one tensor more",
        |staged| fs::write(staged.join("tensors/more"), b"").expect("written"),
        "files that its manifest does not name",
    ),
    (
        "a directory among tensors",
        |staged| fs::create_dir(staged.join("tensors/more")).expect("made"),
        "files that its manifest does not name",
    ),
    (
        "tensors that are a link",
        |staged| {
            let elsewhere = staged.with_extension("tensors");
            fs::rename(staged.join("tensors"), &elsewhere).expect("moved");
            std::os::unix::fs::symlink(&elsewhere, staged.join("tensors")).expect("linked");
        },
        "is not a directory of this user",
    ),
    (
        "a file more",
        |staged| fs::write(staged.join("seen"), b"").expect("written"),
        "it holds {",
    ),
    (
        "a graph changed",
        |staged| fs::write(staged.join("graph"), b"other").expect("written"),
        "its graph is not the one of its manifest",
    ),
    (
        "a graph that is a pipe",
        |staged| {
            fs::remove_file(staged.join("graph")).expect("removed");
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, staged.join("graph"), kind, mode, 0)
                .expect("made");
        },
        "is not a regular file of this user with one name",
    ),
    (
        "a manifest changed",
        |staged| {
            let path = staged.join("manifest");
            let text = fs::read_to_string(&path).expect("read");
            fs::write(&path, text.replace("1000", "2000")).expect("written");
        },
        "its last line is not the digest",
    ),
    (
        "a manifest of another size of tensor",
        |staged| forge(staged, "1000 UINT8 1000", "1000 UINT8 999"),
        "a tensor UINT8[999] plain has 1000 bytes",
    ),
];

/// Changes a manifest and its final digest.
fn forge(staged: &Path, old: &str, new: &str) {
    let path = staged.join("manifest");
    let text = fs::read_to_string(&path).expect("read");
    let (body, _) = text.split_once("end ").expect("an end");
    assert!(body.contains(old), "{body}");
    let body = body.replace(old, new);
    let end = blake3::hash(body.as_bytes());
    fs::write(path, format!("{body}end {end}\n")).expect("written");
}

#[test]
fn an_incomplete_form_is_not_published() {
    for (what, change, expected) in FORGERIES {
        let (_root, cache) = cache(1 << 20);
        let claim = begin(&cache, "a");
        let mut making = claim.making();
        add(&mut making, &[1]);
        let notes = BTreeMap::from([("note".to_owned(), "x".to_owned())]);
        making.finish(b"graph", notes).expect("finished");
        change(claim.directory());
        let error = claim.publish().expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Refused, "{what}: {error}");
        assert!(error.to_string().contains(expected), "{what}: {error}");
        assert!(form(&cache, "a").is_none(), "{what}");
        assert_eq!(files(&cache.root().join("tensors")).len(), 0, "{what}");
    }
}

#[test]
fn a_form_beyond_the_budget_is_not_published() {
    let (_root, cache) = cache(1500);
    let claim = begin(&cache, "a");
    // Its maker has another opinion.
    let mut making = Making::new(claim.directory(), 1 << 20);
    add(&mut making, &[1, 2]);
    making.finish(b"graph", BTreeMap::new()).expect("finished");
    let error = claim.publish().expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

/// A form is only valid under the key that it was published under.
#[test]
fn a_form_under_another_key_is_damaged() {
    let (_root, cache) = cache(1 << 20);
    let good = make(&cache, "a", &[1]).graph_path();
    let other = make(&cache, "b", &[2]).graph_path();
    let (good, other) = (
        good.parent().expect("in one"),
        other.parent().expect("in one"),
    );
    fs::remove_dir_all(other).expect("removed");
    fs::create_dir(other).expect("made");
    for name in ["manifest", "graph"] {
        fs::copy(good.join(name), other.join(name)).expect("copied");
    }
    assert!(form(&cache, "b").is_none());
    assert!(!other.exists(), "removed");
    assert!(form(&cache, "a").is_some());
    let again = make(&cache, "b", &[2]);
    assert_eq!(again.parts()[0].name, "w 2");
}

#[test]
fn files_with_a_remembered_digest_are_not_read() {
    let (root, cache) = cache(1 << 20);
    let model = model(root.path(), "model", b"twelve bytes");
    let known = || {
        cache
            .content_if_known(std::slice::from_ref(&model))
            .expect("looked")
    };
    assert_eq!(known(), None, "no form is of a file of this size");
    let content = cache.content(std::slice::from_ref(&model)).expect("read");
    assert_eq!(known(), Some(content.clone()), "remembered");

    // A form of such a file, and another file of that size, as after the model was copied again.
    finish(begin_of(&cache, "a", content.clone()));
    fs::remove_file(only(&cache.root().join("stamps"))).expect("removed");
    assert_eq!(known(), Some(content), "worth reading");
    fs::write(&model, b"thirteen byte").expect("written");
    assert_eq!(known(), None);
}

#[test]
fn a_model_that_cannot_be_baked_is_remembered() {
    let (_root, cache) = cache(1 << 20);
    let claim = begin(&cache, "a");
    claim.making().unusable("it is random").expect("noted");
    match claim.publish().expect("published") {
        Found::Unusable(why) => assert_eq!(why, "it is random"),
        other => panic!("{other:?}"),
    }
    match cache.look_up(&key("a")) {
        Found::Unusable(why) => assert_eq!(why, "it is random"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_damage_is_found() {
    let (_root, cache) = cache(1 << 20);
    let damage = |file: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(file).expect("read");
        change(&mut bytes);
        fs::write(file, bytes).expect("written");
    };
    for (what, name) in [("manifest", "manifest"), ("graph", "graph")] {
        let path = make(&cache, what, &[1]).graph_path().with_file_name(name);
        damage(&path, &|bytes| bytes[0] ^= 1);
        assert!(form(&cache, what).is_none(), "{what}");
        assert!(!path.exists(), "{what} is removed");
    }

    let graph = make(&cache, "without", &[1]).graph_path();
    fs::remove_file(graph.with_file_name("manifest")).expect("removed");
    assert!(form(&cache, "without").is_none());
    make(&cache, "without", &[1]);
    assert!(form(&cache, "without").is_some(), "made again");
    form(&cache, "without").expect("there").forget();
    cache.collect().expect("collected");

    let tensor = |cache: &Cache| files(&cache.root().join("tensors"))[0].clone();
    make(&cache, "short", &[1]);
    damage(&tensor(&cache), &|bytes| bytes.truncate(999));
    assert!(form(&cache, "short").is_none());

    // Of the right length: only reading the bytes shows it.
    let made = make(&cache, "changed", &[1]);
    damage(&tensor(&cache), &|bytes| bytes[500] ^= 1);
    let found = form(&cache, "changed").expect("looks whole");
    let part = found.parts()[0].tensor.clone();
    let error = found.map(&part).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    let mut bytes = [0; 1000];
    found.read(&part, &mut bytes).expect("read");
    assert_ne!(Digest::of(&part.description, &bytes), part.digest);
    made.forget_tensor(&part);
    assert!(form(&cache, "changed").is_none());
    make(&cache, "changed", &[1]);
    let found = form(&cache, "changed").expect("made again");
    assert_eq!(found.map(&part).expect("mapped").bytes(), &[1; 1000][..]);
}

/// After one damaged tensor the form is made again, without a search for others.
#[test]
fn making_a_form_replaces_damaged_tensors_and_keeps_the_rest() {
    let (_root, cache) = cache(1 << 20);
    make(&cache, "a", &[1, 2, 3]);
    let paths = files(&cache.root().join("tensors"));
    let inode = |path: &PathBuf| fs::metadata(path).expect("there").ino();
    let before: Vec<u64> = paths.iter().map(inode).collect();
    let [longer, other, _] = &paths[..] else {
        panic!("three tensors");
    };
    fs::write(longer, [7; 1001]).expect("written");
    let mut bytes = fs::read(other).expect("read");
    bytes[999] ^= 1;
    fs::write(other, bytes).expect("written");

    assert!(form(&cache, "a").is_none(), "one has another length");
    let again = make(&cache, "a", &[1, 2, 3]);
    again.verify().expect("whole");
    let after: Vec<u64> = paths.iter().map(inode).collect();
    assert_ne!(before[1], after[1]);
    assert_eq!(before[2], after[2]);
}

#[test]
fn a_reader_does_not_remove_damage() {
    let (root, cache) = cache(1 << 20);
    make(&cache, "a", &[1, 2, 3]);
    form(&cache, "a").expect("there").verify().expect("whole");
    let tensors = files(&cache.root().join("tensors"));
    for path in &tensors[..2] {
        fs::write(path, [9; 1000]).expect("written");
    }
    let reader = Cache::reader(root.path(), key("a"));
    let found = form(&reader, "a").expect("looks whole");
    assert!(!reader.found_damage());
    let error = found.verify().expect_err("changed");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(reader.found_damage());
    assert_eq!(files(&cache.root().join("tensors")), tensors);

    let found = form(&cache, "a").expect("looks whole");
    found.verify().expect_err("changed");
    assert!(form(&cache, "a").is_none());
    assert_eq!(files(&cache.root().join("tensors")), tensors[2..]);
    assert!(!cache.found_damage(), "it is gone");
}

#[test]
fn tenants_share_no_tensor_and_one_budget() {
    let (root, cache) = cache(1 << 20);
    let mut parts = vec![cache.clone()];
    parts.extend(["one", "two"].map(|name| cache.of_tenant(name).expect("a part")));
    // The same model everywhere, used last by `one`.
    for (part, age) in parts.iter().zip([300, 100, 200]) {
        assert!(form(part, "m").is_none(), "no other tenant's form is found");
        let manifest = make(part, "m", &[1, 2])
            .graph_path()
            .with_file_name("manifest");
        let used = SystemTime::now() - Duration::from_secs(age);
        let file = File::options().append(true).open(manifest).expect("opened");
        file.set_modified(used).expect("set");
    }
    let tensors = |part: &Cache| files(&part.root().join("tensors")).len();
    assert_eq!(parts.iter().map(tensors).collect::<Vec<_>>(), [2, 2, 2]);
    let all = cache.collect().expect("collected").expect("alone");
    assert_eq!((all.kept_forms, all.removed_forms), (3, 0));
    assert!(all.kept_bytes > 6000, "each counts");

    // Whichever part asks: the budget is everybody's.
    let collected = parts[2].collect_to(all.kept_bytes - 1);
    let collected = collected.expect("collected").expect("alone");
    assert_eq!((collected.kept_forms, collected.removed_forms), (2, 1));
    assert_eq!(collected.removed_bytes, 2000);
    let there = |part: &Cache| form(part, "m").is_some();
    assert_eq!(
        parts.iter().map(there).collect::<Vec<_>>(),
        [false, true, true]
    );

    // Another process finds the same parts.
    let again = Cache::open(root.path(), 1 << 20).expect("a cache");
    let one = again.of_tenant("one").expect("a part");
    form(&one, "m").expect("there").verify().expect("whole");
    // While a form of any part is published, nothing is removed.
    let lock = File::open(parts[1].root().join("lock")).expect("opened");
    lock.lock_shared().expect("locked");
    assert_eq!(cache.collect().expect("collected"), None);
}

#[test]
fn the_budget_keeps_the_last_used_forms_and_their_shared_tensors() {
    let (_root, cache) = cache(1 << 20);
    for (name, tensors, age) in [
        ("old", &[1_u8, 2][..], 300),
        ("older", &[2, 3], 400),
        ("young", &[3, 4], 100),
    ] {
        let form = make(&cache, name, tensors);
        let manifest = form.graph_path().with_file_name("manifest");
        let file = File::options().append(true).open(manifest).expect("opened");
        let used = SystemTime::now() - Duration::from_secs(age);
        file.set_modified(used).expect("set");
    }
    let all = cache.collect().expect("collected").expect("alone");
    assert_eq!((all.kept_forms, all.removed_bytes), (3, 0));
    let own = all.kept_bytes - 4000;

    // Looking a form up is a use.
    assert!(form(&cache, "older").is_some());
    let budget_bytes = all.kept_bytes - 1;
    let collected = cache
        .collect_to(budget_bytes)
        .expect("collected")
        .expect("alone");
    assert_eq!((collected.removed_forms, collected.kept_forms), (1, 2));
    // Tensor 2 is `older`'s as well.
    assert_eq!(collected.removed_bytes, 1000);
    assert!(collected.kept_bytes < 3000 + own);
    assert!(form(&cache, "old").is_none());
    assert!(form(&cache, "older").is_some() && form(&cache, "young").is_some());

    let collected = cache.collect_to(0).expect("collected").expect("alone");
    assert_eq!((collected.kept_forms, collected.kept_bytes), (0, 0));
    assert_eq!(files(&cache.root().join("tensors")).len(), 0);
}

/// A file that was modified an hour ago, so that its digest is remembered.
fn model(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, bytes).expect("written");
    let file = File::options().append(true).open(&path).expect("opened");
    let then = SystemTime::now() - Duration::from_secs(3600);
    file.set_modified(then).expect("set");
    path
}

#[test]
fn remembered_digests_go_with_the_form() {
    let (root, cache) = cache(1 << 20);
    let stamps = || files(&cache.root().join("stamps")).len();
    let path = |name: &str, bytes: &[u8]| model(root.path(), name, bytes);
    let content = |paths: &[PathBuf]| cache.content(paths).expect("read");

    // Two files of one model, a copy of one of them elsewhere, and a model that has no form.
    let [graph, weights] = [path("graph", b"graph"), path("weights", b"weights")];
    let of_two = content(&[graph, weights]);
    content(&[path("copy", b"weights")]);
    content(&[path("other", b"other")]);
    finish(begin_of(&cache, "a", of_two));
    let of_none = content(&[path("none", b"none")]);
    let claim = begin_of(&cache, "none", of_none);
    claim.making().unusable("it is random").expect("noted");
    claim.publish().expect("published");
    fs::write(cache.root().join("stamps/.tmpabc"), b"half").expect("written");
    assert_eq!(stamps(), 6);
    cache.collect().expect("collected").expect("alone");
    assert_eq!(stamps(), 4, "the other's and what was not finished go");

    // The files of a form that goes.
    form(&cache, "a").expect("there").forget();
    cache.collect().expect("collected").expect("alone");
    assert_eq!(stamps(), 1);
    cache.collect_to(0).expect("collected").expect("alone");
    assert_eq!(stamps(), 0);
}

#[test]
fn the_lock_of_a_form_goes_with_it_unless_it_is_held() {
    let (_root, cache) = cache(1 << 20);
    let locks = || files(&cache.root().join("making")).len();
    make(&cache, "a", &[1]);
    make(&cache, "b", &[2]);
    drop(begin(&cache, "c"));
    assert_eq!(locks(), 3);
    cache.collect().expect("collected").expect("alone");
    assert_eq!(locks(), 2, "`c` was given up");

    // Another process that has just begun, and waits for what is being removed.
    form(&cache, "a").expect("there").forget();
    let held = File::open(lock_path(&cache, "a")).expect("there");
    held.lock().expect("locked");
    cache.collect().expect("collected").expect("alone");
    assert_eq!(locks(), 2, "it is held");
    drop(held);
    cache.collect().expect("collected").expect("alone");
    assert_eq!(locks(), 1);
    cache.collect_to(0).expect("collected").expect("alone");
    assert_eq!(locks(), 0);
}

fn lock_path(cache: &Cache, name: &str) -> PathBuf {
    cache.root().join(format!("making/{}.lock", key(name)))
}

/// Whether a process waits for a lock of this file.
fn is_waited_for(file: &File) -> bool {
    let inode = format!(":{} ", file.metadata().expect("read").ino());
    let locks = fs::read_to_string("/proc/locks").expect("read");
    let mut waiting = locks.lines().filter(|line| line.contains("->"));
    waiting.any(|line| line.contains(&inode))
}

/// A process that waited for a lock file that was removed meanwhile has to lock the new one: otherwise two would make
/// one form.
#[test]
fn a_removed_lock_file_does_not_count() {
    let (_root, cache) = cache(1 << 20);
    let path = lock_path(&cache, "a");
    let removed = File::create(&path).expect("made");
    removed.lock().expect("locked");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| begin(&cache, "a"));
        while !is_waited_for(&removed) {
            std::thread::yield_now();
        }
        fs::remove_file(&path).expect("removed");
        let next = File::create(&path).expect("made");
        next.lock().expect("locked");
        drop(removed);
        while !is_waited_for(&next) {
            assert!(!other.is_finished(), "two have a lock of one form");
            std::thread::yield_now();
        }
        drop(next);
        let making = other.join().expect("no panic");
        let third = File::open(&path).expect("there");
        assert!(third.try_lock().is_err(), "it is held");
        finish(making);
        assert!(third.try_lock().is_ok());
    });
}

#[test]
fn a_form_beyond_the_budget_is_refused_before_it_is_written() {
    let (_root, cache) = cache(2500);
    let claim = begin(&cache, "a");
    let mut making = claim.making();
    for value in [1, 2] {
        making
            .add(Role::Weight, "w", vector(1000), &[value; 1000])
            .expect("added");
    }
    let error = making
        .add(Role::Weight, "w", vector(1000), &[3; 1000])
        .expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "the baked form has 3000 bytes, more than the cache's budget of 2500"
    );
}

#[test]
fn a_directory_that_others_may_change_is_refused() {
    let root = tempfile::tempdir().expect("a directory");
    let named = root.path().join("named");
    Cache::open(&named, 1).expect("a cache");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    };
    let made = fs::metadata(named.join("v1")).expect("there").mode();
    assert_eq!(made & 0o777, 0o700);
    let v1 = named.join("v1");
    for path in [&named, &v1, &v1.join("models"), &v1.join("tensors")] {
        mode(path, 0o770);
        let error = Cache::open(&named, 1).map(drop).expect_err("a group may");
        assert_eq!(error.kind(), ErrorKind::Unsafe);
        let shown = path.display().to_string();
        assert_eq!(
            error.to_string(),
            format!(
                "`{shown}` is not a safe place for baked models: a group may write it (mode 770), expected its owner alone; \
                 `chmod g-w {shown}` mends that"
            )
        );
        mode(path, 0o755);
        Cache::open(&named, 1).expect("they may only read");
    }
    mode(&named, 0o1777);
    Cache::open(&named, 1).expect("sticky");
}

#[test]
fn a_directory_that_cannot_be_created_is_named() {
    let root = tempfile::tempdir().expect("a directory");
    let file = root.path().join("file");
    fs::write(&file, b"").expect("written");
    let error = Cache::open(&file, 1).map(drop).expect_err("no directory");
    assert_eq!(error.kind(), ErrorKind::Io);
    let expected = format!("cannot make `{}`: ", file.display());
    assert!(error.to_string().starts_with(&expected), "{error}");
}
