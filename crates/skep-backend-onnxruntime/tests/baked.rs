//! Models loaded from their baked forms compute the same outputs to the bit as models loaded from their own files,
//! whatever happens to cache and store. Without the library every test says that it is skipped, and passes.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod common;

use std::{
    fs,
    num::NonZeroUsize,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
    thread,
    time::Duration,
};

use common::library;
use skep_backend::{
    Backend as _, LoadRequest, Model, ModelFile, OutputSlot,
    conformance::{Graph, config, fp32, tensor},
};
use skep_backend_onnxruntime::OnnxRuntime;
use skep_cache::{Begun, Cache, Found};
use skep_models::{Kind, Options};
use skep_proto::onnx::ModelProto;
use skep_store::{Daemon, Digest, Store, StoreOptions, Tenant};
use skep_tensor::Tensor;
use skep_testkit::{
    forge,
    node::{TestNode as Node, answers, run},
};
use skep_types::{DataType, DeviceId};
use skep_weights::{Baked, BakingPolicy, WeightSource, baking::FormPlan};

fn load(
    backend: OnnxRuntime,
    path: &Path,
    pbtxt: &str,
    weights: Option<&WeightSource>,
) -> Arc<dyn Model> {
    with_request(path, pbtxt, weights, |request| {
        backend.load(request).expect("loaded")
    })
}

fn with_request<T>(
    path: &Path,
    pbtxt: &str,
    weights: Option<&WeightSource>,
    then: impl FnOnce(&LoadRequest<'_>) -> T,
) -> T {
    then(&LoadRequest {
        file: &ModelFile::open(path).expect("opened"),
        config: &config("onnxruntime", pbtxt),
        threads: NonZeroUsize::MIN,
        weights,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    })
}

fn kind(text: &str) -> Kind {
    Kind::from_str(text).expect("a kind")
}

/// Several layers that are packed, two of them of one size.
const MLP: &str = "mlp:layers=256x512x512x512x10";

#[test]
fn baked_models_answer_as_plain_ones_and_share_their_weights() {
    let Some(backend) = library() else { return };
    for (name, planner) in [
        (MLP, "planned"),
        (MLP, "malloc"),
        (MLP, "runtime"),
        ("cnn", "planned"),
        ("mobilenetv2", "planned"),
        ("bert-tiny", "planned"),
    ] {
        let kind = kind(name);
        let mut node = Node::new();
        let path = node.model(&kind, &Options::default());
        let pbtxt =
            format!("parameters {{ key: 'memory_planner' value {{ string_value: '{planner}' }} }}");
        let plain = answers(&load(backend, &path, &pbtxt, None), &kind);
        let first = load(backend, &path, &pbtxt, Some(&node.weights));
        let is_baked = fs::metadata(&path).expect("there").len() >= 1 << 20;
        assert_eq!(node.forms().len(), if is_baked { 2 } else { 0 }, "{name}");
        assert!(answers(&first, &kind) == plain, "{name}: made");

        let stored = node.stat().bytes_stored;
        let second = load(backend, &path, &pbtxt, Some(&node.weights));
        assert!(answers(&second, &kind) == plain, "{name}: of the store");
        assert_eq!(node.stat().bytes_stored, stored, "{name}: nothing twice");
        drop((first, second));

        node.restart();
        let third = load(backend, &path, &pbtxt, Some(&node.weights));
        assert!(answers(&third, &kind) == plain, "{name}: of the cache");
    }
}

/// A server bakes a model in the background after it loaded the model's own files.
#[test]
fn a_running_model_switches_to_its_form() {
    let Some(backend) = library() else { return };
    for (name, external_data) in [(MLP, false), (MLP, true), ("cnn:classes=4000", false)] {
        let kind = kind(name);
        let mut node = Node::new();
        node.weights.baking = BakingPolicy::Background;
        node.weights.runs_from_cache = true;
        let options = Options {
            external_data,
            ..Options::default()
        };
        let path = node.model(&kind, &options);
        let plain = answers(&load(backend, &path, "", None), &kind);
        with_request(&path, "", Some(&node.weights), |request| {
            let model = backend.load(request).expect("loaded");
            assert!(!model.is_baked());
            assert_eq!(
                node.forms(),
                Vec::<PathBuf>::new(),
                "the load makes nothing"
            );
            assert!(
                !model.switch_to_form(request).expect("no form"),
                "no form exists yet"
            );

            let FormPlan::Needed(needed) = backend.plan_form(request).expect("planned") else {
                unreachable!("nothing is there")
            };
            let begun = node.weights.cache.begin(&needed.key, needed.content);
            let Ok(Begun::Claimed(claim)) = begun else {
                unreachable!("no other process bakes it")
            };
            backend.make_form(request, claim.making()).expect("made");
            let published = backend.publish_form(request, claim).expect("whole");
            assert!(matches!(published, Found::Form(_)), "{published:?}");
            let planned = backend.plan_form(request).expect("planned");
            assert!(matches!(planned, FormPlan::Known(_)));

            // Runs are in flight meanwhile, and an output of the old session outlives it.
            let kept = answers(&model, &kind);
            thread::scope(|scope| {
                let asking = scope.spawn(|| {
                    for _ in 0..20 {
                        assert!(answers(&model, &kind) == plain);
                    }
                });
                assert!(model.switch_to_form(request).expect("its form is there"));
                asking.join().expect("the same answers");
            });
            assert!(model.is_baked());
            assert!(answers(&model, &kind) == plain && kept == plain, "{name}");
            while node.stat().bytes_stored == 0 {}
            assert!(answers(&model, &kind) == plain);
        });
    }
}

/// Products that take minutes, in a model that is large enough to be baked.
#[test]
fn a_model_that_is_slow_to_run_is_baked_without_comparing() {
    let Some(backend) = library() else { return };
    let side: Vec<u8> = [3000_i64; 2].iter().flat_map(|n| n.to_le_bytes()).collect();
    let mut graph = Graph::new()
        .input("x", DataType::Fp32, &["1", "1"])
        .output("y", DataType::Fp32, &["3000", "100"])
        .initializer("side", &tensor(DataType::Int64, &[2], side))
        .initializer("w", &fp32(&[3000, 100], &vec![0.5; 300_000]))
        .node("Expand", &["x", "side"], &["v0"], &[]);
    for step in 0..200 {
        let (from, to) = (format!("v{step}"), format!("v{}", step + 1));
        graph = graph.node("MatMul", &[&from, "v0"], &[&to], &[]);
    }
    let saved = common::save(graph.node("MatMul", &["v200", "w"], &["y"], &[]));
    let node = Node::new();
    with_request(&saved.path, "", Some(&node.weights), |request| {
        let baked = backend.bake(request).expect("baked");
        assert!(matches!(baked, Baked::Made { .. }), "{baked:?}");
    });
}

#[test]
fn variants_share_tensors_and_tenants_do_not() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let base = load(backend, &path, "", Some(&node.weights));
    let alone = node.stat().bytes_stored;

    let variant = Options {
        variant: Some(skep_models::Variant::named(&kind, "head", 3).expect("a variant")),
        ..Options::default()
    };
    let path = node.model(&kind, &variant);
    let plain = answers(&load(backend, &path, "", None), &kind);
    let other = load(backend, &path, "", Some(&node.weights));
    assert!(answers(&other, &kind) == plain);
    let both = node.stat().bytes_stored;
    assert!(both - alone < alone / 10, "{alone} and {both} bytes");

    // Another tenant shares nothing.
    node.weights.tenant = Tenant::named("other").expect("a name");
    let theirs = load(backend, &path, "", Some(&node.weights));
    assert!(answers(&theirs, &kind) == plain);
    assert!(node.stat().bytes_stored >= alone * 9 / 10);
    drop((base, other, theirs));
}

#[test]
fn a_damaged_form_is_made_again() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(backend, &path, "", None), &kind);
    drop(load(backend, &path, "", Some(&node.weights)));
    let whole = node.tensors();
    let each = (0..whole.len()).map(|index| &whole[index..=index]);
    let cases = each.chain([&whole[..]]);
    let cases = cases.flat_map(|tensors| [(tensors, false), (tensors, true)]);
    for (damaged, runs_from_cache) in cases {
        for tensor in damaged {
            damage(tensor);
        }
        // No process has it in memory or remembers it as undamaged.
        node.restart();
        node.weights.runs_from_cache = runs_from_cache;
        let model = load(backend, &path, "", Some(&node.weights));
        assert!(answers(&model, &kind) == plain, "{damaged:?}");
        assert_eq!(node.tensors(), whole, "made again");
        while node.stat().bytes_stored == 0 {}
    }
}

#[test]
fn loads_are_plain_if_the_cache_cannot_store_the_form() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(backend, &path, "", None), &kind);
    let check = |node: &Node| {
        let model = load(backend, &path, "", Some(&node.weights));
        assert!(answers(&model, &kind) == plain);
        assert_eq!(node.stat().bytes_stored, 0);
    };
    // Too small for the form.
    let small = node.root.path().join("small");
    node.weights.cache = Cache::open(&small, 1 << 20).expect("a cache");
    check(&node);
    assert_eq!(node.forms(), Vec::<PathBuf>::new());
    // Nothing can be written.
    let gone = node.root.path().join("gone");
    node.weights.cache = Cache::open(&gone, 1 << 30).expect("a cache");
    fs::remove_dir_all(&gone).expect("removed");
    check(&node);
}

#[test]
fn a_changed_model_has_another_form() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let node = Node::new();
    for seed in [1, 2] {
        let options = Options {
            seed,
            external_data: true,
            ..Options::default()
        };
        let path = node.model(&kind, &options);
        let plain = answers(&load(backend, &path, "", None), &kind);
        let model = load(backend, &path, "", Some(&node.weights));
        assert!(answers(&model, &kind) == plain, "seed {seed}");
        let level = "optimization { graph { level: 2 } }";
        let plain = answers(&load(backend, &path, level, None), &kind);
        let model = load(backend, &path, level, Some(&node.weights));
        assert!(answers(&model, &kind) == plain, "seed {seed}, as written");
    }
    assert_eq!(node.forms().len(), 2 * 4, "graph and manifest of each");
}

#[test]
fn loads_of_one_model_at_once_bake_it_once() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(backend, &path, "", None), &kind);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let model = load(backend, &path, "", Some(&node.weights));
                assert!(answers(&model, &kind) == plain);
            });
        }
    });
    assert_eq!(node.forms().len(), 2);
}

#[test]
fn a_model_that_is_loaded_again_finds_its_session() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(backend, &path, "", None), &kind);
    let asked = |node: &Node| node.stat().hits + node.stat().misses;

    let first = load(backend, &path, "", Some(&node.weights));
    let once = asked(&node);
    let second = load(backend, &path, "", Some(&node.weights));
    assert!(answers(&second, &kind) == plain);
    assert_eq!(asked(&node), once, "while it is loaded");
    let spinning = "parameters { key: 'thread_spinning' value { string_value: '1' } }";
    drop(load(backend, &path, spinning, Some(&node.weights)));
    assert!(asked(&node) > once, "another one for other settings");
    drop((first, second));
    assert_eq!(node.stat().leases, 0, "nothing is kept");

    node.weights.keep_unloaded = Duration::from_secs(3600);
    drop(load(backend, &path, "", Some(&node.weights)));
    let before = asked(&node);
    assert_ne!(node.stat().leases, 0, "kept");
    let again = load(backend, &path, "", Some(&node.weights));
    assert!(answers(&again, &kind) == plain);
    assert_eq!(asked(&node), before, "found again");
}

#[test]
fn every_process_makes_the_same_form() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let stored = |planners: &[&str]| {
        let node = Node::new();
        let path = node.model(&kind, &Options::default());
        for planner in planners {
            let pbtxt = format!(
                "parameters {{ key: 'memory_planner' value {{ string_value: '{planner}' }} }}"
            );
            drop(load(backend, &path, &pbtxt, Some(&node.weights)));
        }
        let weights = &node.weights;
        let listed = weights.store.ls(&weights.tenant).expect("listed");
        listed.into_iter().map(|tensor| tensor.digest).collect()
    };
    let expected: Vec<Digest> = stored(&["planned"]);
    assert_eq!(stored(&["runtime", "planned"]), expected);
}

#[test]
fn weights_move_to_the_store_while_the_model_runs() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    drop(load(backend, &path, "", Some(&node.weights)));
    let files = node.weights.cache.root().join("tensors");
    let files = files.to_str().expect("a path");
    for planner in ["planned", "runtime"] {
        let pbtxt =
            format!("parameters {{ key: 'memory_planner' value {{ string_value: '{planner}' }} }}");
        let plain = answers(&load(backend, &path, &pbtxt, None), &kind);
        // Tensors that are read only for packing stay mapped, but are not read any more.
        node.weights.runs_from_cache = false;
        node.restart();
        let model = load(backend, &path, &pbtxt, Some(&node.weights));
        let (of_files, of_store) = (mappings(files), mappings("skep-segment"));
        drop(model);

        node.weights.runs_from_cache = true;
        node.restart();
        let model = load(backend, &path, &pbtxt, Some(&node.weights));
        assert!(answers(&model, &kind) == plain, "{planner}: at first");
        // Runs continue while the pages change.
        while mappings("skep-segment") <= of_store || mappings(files) > of_files {
            assert!(answers(&model, &kind) == plain, "{planner}: meanwhile");
        }
        // The files are not needed any more.
        let tensors = node.tensors();
        let whole: Vec<Vec<u8>> = tensors.iter().map(|t| fs::read(t).expect("read")).collect();
        for (tensor, bytes) in tensors.iter().zip(&whole) {
            fs::write(tensor, vec![0x55; bytes.len()]).expect("written");
        }
        assert!(answers(&model, &kind) == plain, "{planner}: from then on");
        for (tensor, bytes) in tensors.iter().zip(&whole) {
            fs::write(tensor, bytes).expect("written");
        }
        assert_eq!(node.stat().leases, node.stat().tensors);
        // Tensors that another model brought to the store are used at once.
        let misses = node.stat().misses;
        let other = "parameters { key: 'thread_spinning' value { string_value: '1' } }";
        let other = load(
            backend,
            &path,
            &format!("{pbtxt} {other}"),
            Some(&node.weights),
        );
        assert_eq!(mappings(files), 2 * of_files);
        assert!(answers(&other, &kind) == plain, "{planner}: of the store");
        assert_eq!(node.stat().misses, misses);
        drop((model, other));
        while node.stat().leases != 0 {}
    }
}

#[test]
fn hidden_damage_makes_every_run_fail() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(backend, &path, "", None), &kind);
    drop(load(backend, &path, "", Some(&node.weights)));
    let sockets = node.root.path().join("run");
    let options = StoreOptions {
        adoption_window: Duration::ZERO,
        ..StoreOptions::default()
    };
    let daemon = Daemon::bind(&sockets, &[Tenant::GENERAL], options).expect("sockets");
    let stopper = daemon.stopper();
    let running = thread::spawn(move || daemon.run());
    for store in [None, Some(&sockets)] {
        node.restart();
        if let Some(sockets) = store {
            node.weights.store = Store::connect(sockets).expect("connected");
        }
        a_model_ends_by_damage(backend, &mut node, &plain);
    }
    stopper.stop();
    running.join().expect("no panic").expect("a clean end");
}

fn a_model_ends_by_damage(backend: OnnxRuntime, node: &mut Node, plain: &[Tensor]) {
    let (kind, path) = (kind(MLP), node.path());
    node.weights.runs_from_cache = true;
    // Like a disk error: other bytes in a file whose size and times are unchanged.
    let mut seen = String::new();
    for tensor in node.tensors() {
        damage(&tensor);
        let data = fs::metadata(&tensor).expect("there");
        let digest = tensor.file_name().expect("a name").to_string_lossy();
        seen += &format!(
            "{digest} {}:{}:{}:{}.{}:{}.{}\n",
            data.dev(),
            data.ino(),
            data.size(),
            data.mtime(),
            data.mtime_nsec(),
            data.ctime(),
            data.ctime_nsec()
        );
    }
    let graph = node.forms().into_iter().next().expect("a graph");
    fs::write(graph.with_file_name("seen"), seen).expect("written");

    let model = load(backend, &path, "", Some(&node.weights));
    let mut instance = Arc::clone(&model)
        .instance(DeviceId::default())
        .expect("an instance");
    let rows = fp32(&[1, 256], &[1.0; 256]);
    let error = loop {
        let mut slots = [OutputSlot::new(0)];
        if let Err(error) = instance.execute(&[rows.view()], &mut slots) {
            break error.to_string();
        }
    };
    assert!(
        error.contains("are damaged\n  load the model again"),
        "{error}"
    );
    // The old one is still there.
    let again = load(backend, &path, "", Some(&node.weights));
    assert!(answers(&again, &kind) == plain);
    // From then on the files are not read.
    while node.stat().bytes_stored == 0 {}
}

fn damage(file: &Path) {
    let mut bytes = fs::read(file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("written");
}

/// This process's mappings of files with this name.
fn mappings(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("read");
    maps.lines().filter(|line| line.contains(name)).count()
}

#[test]
fn packed_weights_are_pages_of_the_store() {
    let Some(backend) = library() else { return };
    let mut node = Node::new();
    let path = node.model(&kind(MLP), &Options::default());
    drop(load(backend, &path, "", Some(&node.weights)));
    node.restart();
    let model = load(backend, &path, "", Some(&node.weights));
    // Each segment once, and the three that are large enough over what the library packed.
    let segments = usize::try_from(node.stat().segments).expect("a count");
    assert_eq!(mappings("skep-segment"), segments + 3);
    assert_eq!(mappings("skep-scratch"), 0);
    drop(model);
}

#[test]
fn weights_with_equal_ends_stay_distinct_and_are_shared() {
    let Some(backend) = library() else { return };
    const WIDTH: usize = 512;
    let mut graph = Graph::new()
        .input("x0", DataType::Fp32, &["n", "512"])
        .output("x2", DataType::Fp32, &["n", "512"]);
    for step in 0..2 {
        // The last packed part of both is zeros.
        let value = |index: usize| match index < WIDTH * WIDTH / 2 {
            true => (index % (7 + step)) as f32 / 100.0,
            false => 0.0,
        };
        let values: Vec<f32> = (0..WIDTH * WIDTH).map(value).collect();
        let names = [
            format!("x{step}"),
            format!("w{step}"),
            format!("x{}", step + 1),
        ];
        graph = graph
            .initializer(&names[1], &fp32(&[WIDTH, WIDTH], &values))
            .node("MatMul", &[&names[0], &names[1]], &[&names[2]], &[]);
    }
    let saved = common::save(graph);
    let answer = |model: &Arc<dyn Model>| {
        let values: Vec<f32> = (0..3 * WIDTH).map(|index| (index % 13) as f32).collect();
        run(model, &[vec![fp32(&[3, WIDTH], &values)]])
    };
    let plain = answer(&load(backend, &saved.path, "", None));
    let node = Node::new();
    let model = load(backend, &saved.path, "", Some(&node.weights));
    assert!(answer(&model) == plain);
    let segments = usize::try_from(node.stat().segments).expect("a count");
    assert_eq!(
        mappings("skep-segment"),
        segments + 2,
        "both are the store's"
    );
}

/// A change of a graph, with its name.
type Forgery<'a> = (&'a str, &'a dyn Fn(&mut ModelProto));

/// A form that was tampered with is not used, and is made again from the model.
#[test]
fn a_forged_form_is_made_again() {
    let Some(backend) = library() else { return };
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(backend, &path, "", None), &kind);
    // With it a graph would compute something else, if anything.
    fs::write(node.root.path().join("other"), vec![0; 8 << 20]).expect("written");
    let tries: [Forgery<'_>; 7] = [
        ("a file elsewhere", &|model| {
            forge::point(forge::external(model), "../../../../other", 0);
        }),
        ("an absolute path", &|model| {
            forge::point(forge::external(model), "/proc/self/exe", 0)
        }),
        ("no weight of the form", &|model| {
            forge::external(model).name = Some("other".to_owned())
        }),
        ("other dims", &|model| forge::external(model).dims.reverse()),
        ("more dims", &|model| {
            forge::external(model).dims.push(1 << 40)
        }),
        ("another datatype", &|model| {
            forge::external(model).data_type = Some(7)
        }),
        ("no graph", &|model| model.graph = None),
    ];
    for (what, change) in tries {
        drop(load(backend, &path, "", Some(&node.weights)));
        let graph = node
            .forms()
            .into_iter()
            .find(|path| path.ends_with("graph"));
        let graph = graph.expect("a form");
        let whole = fs::read(&graph).expect("read");
        forge::graph(&graph, change);
        assert!(fs::read(&graph).expect("read") != whole, "{what}");
        node.restart();
        let model = load(backend, &path, "", Some(&node.weights));
        assert!(answers(&model, &kind) == plain, "{what}");
        assert!(
            fs::read(&graph).expect("read") == whole,
            "{what}: made again"
        );
    }
    // A manifest whose tensors have other lengths than their dims.
    let manifest = node
        .forms()
        .into_iter()
        .find(|path| path.ends_with("manifest"));
    let manifest = manifest.expect("a form");
    forge::manifest(&manifest, |line| line.replacen(",", ",1", 1));
    node.restart();
    assert!(answers(&load(backend, &path, "", Some(&node.weights)), &kind) == plain);
}
