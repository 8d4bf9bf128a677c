//! Models loaded from their baked forms compute the same outputs to the bit as models loaded from their own files,
//! whatever happens to cache and store.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
};

use skep_backend::{
    Backend as _, BackendError, ErrorKind, LoadRequest, Model, ModelFile,
    conformance::{Graph, config, fp32, tensor},
};
use skep_backend_embedded::Embedded;
use skep_cache::Cache;
use skep_models::{Kind, Options, Variant};
use skep_proto::onnx::ModelProto;
use skep_store::Tenant;
use skep_testkit::{
    forge,
    node::{TestNode as Node, answers, run},
};
use skep_types::{DataType, DeviceId};
use skep_weights::{Baked, WeightSource, baking::FormPlan};

/// As large as the smallest model that is baked.
const LARGE: usize = 1 << 20;

fn save(node: &Node, graph: Graph) -> PathBuf {
    fs::write(node.path(), graph.encode()).expect("written");
    node.path()
}

fn with_request<T>(
    path: &Path,
    pbtxt: &str,
    weights: Option<&WeightSource>,
    then: impl FnOnce(&LoadRequest<'_>) -> T,
) -> T {
    then(&LoadRequest {
        file: &ModelFile::open(path).expect("opened"),
        config: &config("embedded", pbtxt),
        threads: NonZeroUsize::MIN,
        weights,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    })
}

fn try_load(
    path: &Path,
    pbtxt: &str,
    weights: Option<&WeightSource>,
) -> Result<Arc<dyn Model>, BackendError> {
    with_request(path, pbtxt, weights, |request| Embedded.load(request))
}

fn load(path: &Path, pbtxt: &str, weights: Option<&WeightSource>) -> Arc<dyn Model> {
    try_load(path, pbtxt, weights).expect("loaded")
}

fn kind(text: &str) -> Kind {
    Kind::from_str(text).expect("a kind")
}

const MLP: &str = "mlp:layers=256x512x512x512x10";

/// The engine does not rewrite the graph.
const AS_WRITTEN: &str = "optimization { graph { level: 2 } }";

#[test]
fn baked_models_answer_as_plain_ones_and_share_their_weights() {
    for (name, pbtxt) in [
        (MLP, ""),
        (MLP, AS_WRITTEN),
        ("cnn", ""),
        ("mobilenetv2", ""),
        ("mobilenetv2", AS_WRITTEN),
        ("bert-tiny", ""),
    ] {
        let kind = kind(name);
        let mut node = Node::new();
        let path = node.model(&kind, &Options::default());
        let plain = answers(&load(&path, pbtxt, None), &kind);
        let first = load(&path, pbtxt, Some(&node.weights));
        let bytes = fs::metadata(&path).expect("there").len();
        let is_baked = bytes >= LARGE as u64;
        assert_eq!(node.forms().len(), if is_baked { 2 } else { 0 }, "{name}");
        assert!(answers(&first, &kind) == plain, "{name}: made");

        let stored = node.stat().bytes_stored;
        assert!(!is_baked || stored > bytes / 10 * 9, "{name}: {stored}");
        let second = load(&path, pbtxt, Some(&node.weights));
        assert!(answers(&second, &kind) == plain, "{name}: of the store");
        assert_eq!(node.stat().bytes_stored, stored, "{name}: nothing twice");
        let tensors = second.stored_tensors();
        let said: u64 = tensors.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(stored, said, "{name}: said");
        assert_eq!(node.stat().bytes_leased, 2 * stored, "{name}: held");
        drop((first, second));
        assert_eq!(node.stat().bytes_leased, 0, "{name}: released");

        node.restart();
        let third = load(&path, pbtxt, Some(&node.weights));
        assert!(answers(&third, &kind) == plain, "{name}: of the cache");
    }
}

#[test]
fn variants_share_tensors_and_tenants_do_not() {
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let base = load(&path, "", Some(&node.weights));
    let alone = node.stat().bytes_stored;

    let variant = Options {
        variant: Some(Variant::named(&kind, "head", 3).expect("a variant")),
        ..Options::default()
    };
    let path = node.model(&kind, &variant);
    let plain = answers(&load(&path, "", None), &kind);
    let other = load(&path, "", Some(&node.weights));
    assert!(answers(&other, &kind) == plain);
    let both = node.stat().bytes_stored;
    assert!(both - alone < alone / 10, "{alone} and {both} bytes");

    // Another tenant shares nothing.
    node.weights.tenant = Tenant::named("other").expect("a name");
    let theirs = load(&path, "", Some(&node.weights));
    assert!(answers(&theirs, &kind) == plain);
    assert!(node.stat().bytes_stored >= alone * 9 / 10);
    drop((base, other, theirs));
}

#[test]
fn a_damaged_form_is_made_again() {
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(&path, "", None), &kind);
    drop(load(&path, "", Some(&node.weights)));
    let whole = node.tensors();
    for index in 0..whole.len() {
        let mut bytes = fs::read(&whole[index]).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&whole[index], bytes).expect("written");
        node.restart();
        let model = load(&path, "", Some(&node.weights));
        assert!(answers(&model, &kind) == plain, "tensor {index}");
        assert_eq!(node.tensors(), whole, "made again");
        assert_ne!(node.stat().bytes_stored, 0, "and used");
    }
}

#[test]
fn loads_are_plain_if_the_cache_cannot_store_the_form() {
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(&path, "", None), &kind);
    let check = |node: &Node| {
        let model = load(&path, "", Some(&node.weights));
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
fn a_changed_model_has_another_form_and_every_level_of_optimisation_the_same() {
    let kind = kind(MLP);
    let node = Node::new();
    for seed in [1, 2] {
        let options = Options {
            seed,
            external_data: true,
            ..Options::default()
        };
        let path = node.model(&kind, &options);
        for pbtxt in ["", AS_WRITTEN] {
            let plain = answers(&load(&path, pbtxt, None), &kind);
            let model = load(&path, pbtxt, Some(&node.weights));
            assert!(answers(&model, &kind) == plain, "seed {seed}, `{pbtxt}`");
        }
    }
    assert_eq!(node.forms().len(), 2 * 2);
}

/// `y = x + w` over as many elements as a form's smallest model has bytes for, where `w` is an input with a default.
fn with_default() -> Graph {
    let size = (LARGE / 4).to_string();
    Graph::new()
        .input("x", DataType::Fp32, &["1"])
        .input("w", DataType::Fp32, &[&size])
        .output("y", DataType::Fp32, &[&size])
        .initializer("w", &fp32(&[LARGE / 4], &vec![3.0; LARGE / 4]))
        .node("Add", &["x", "w"], &["y"], &[])
}

#[test]
fn a_replaced_default_makes_another_form_than_an_unused_one() {
    let node = Node::new();
    let path = save(&node, with_default());
    let size = LARGE / 4;
    let fed = format!(
        "input [{{ name: 'x' data_type: TYPE_FP32 dims: 1 }}, {{ name: 'w' data_type: TYPE_FP32 dims: {size} }}]
         output {{ name: 'y' data_type: TYPE_FP32 dims: {size} }}"
    );
    let x = fp32(&[1], &[1.0]);
    let y = |value: f32| vec![fp32(&[size], &vec![value; size])];
    for weights in [None, Some(&node.weights), Some(&node.weights)] {
        let constant = load(&path, "", weights);
        assert!(run(&constant, &[vec![x.clone()]]) == y(4.0));
        let input = load(&path, &fed, weights);
        let given = vec![x.clone(), fp32(&[size], &vec![7.0; size])];
        assert!(run(&input, &[given]) == y(8.0));
    }
    assert_eq!(node.forms().len(), 2 * 2);
}

#[test]
fn baking_ahead_reports_the_form_and_later_loads_make_none() {
    let node = Node::new();
    let path = node.model(&kind(MLP), &Options::default());
    let with = |then: fn(&LoadRequest<'_>) -> Result<(bool, Baked), BackendError>| {
        with_request(&path, "", Some(&node.weights), then)
    };
    let both = |request: &LoadRequest<'_>| {
        let was_baked = !matches!(Embedded.plan_form(request)?, FormPlan::Needed(_));
        Ok((was_baked, Embedded.bake(request)?))
    };
    let Ok((false, Baked::Made { bytes })) = with(both) else {
        unreachable!("nothing was there")
    };
    assert!(bytes > LARGE as u64);
    assert_eq!(with(both), Ok((true, Baked::Known { bytes })));
    assert_eq!(node.stat().bytes_stored, 0, "nothing was loaded");

    let small = Graph::new()
        .input("x", DataType::Fp32, &["n"])
        .output("y", DataType::Fp32, &["n"])
        .node("Neg", &["x"], &["y"], &[]);
    save(&node, small);
    let Ok((true, Baked::WithoutForm(why))) = with(both) else {
        unreachable!("too small")
    };
    assert!(why.ends_with("less than 1048576"), "{why}");
}

#[test]
fn refused_models_are_refused_with_a_cache_too_and_leave_no_form() {
    let node = Node::new();
    let half = tensor(DataType::Fp16, &[LARGE / 2], vec![0; LARGE]);
    let refused = with_default().initializer("half", &half);
    let unknown = with_default().output("z", DataType::Fp32, &["1"]).node(
        "NoSuchOperator",
        &["x"],
        &["z"],
        &[],
    );
    for (graph, expected) in [
        (refused, "tensor `half` has datatype FLOAT16"),
        (unknown, "NoSuchOperator operator not supported"),
    ] {
        let path = save(&node, graph);
        let plain = try_load(&path, "", None).map(|_| ()).expect_err(expected);
        assert_eq!(plain.kind(), ErrorKind::Unsupported);
        assert!(plain.to_string().contains(expected), "{plain}");
        for _ in 0..2 {
            let error = try_load(&path, "", Some(&node.weights)).map(|_| ());
            assert_eq!(error, Err(plain.clone()));
        }
    }
    assert_eq!(node.tensors(), Vec::<PathBuf>::new());
}

#[test]
fn loads_of_one_model_at_once_bake_it_once() {
    let kind = kind(MLP);
    let node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(&path, "", None), &kind);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let model = load(&path, "", Some(&node.weights));
                assert!(answers(&model, &kind) == plain);
            });
        }
    });
    assert_eq!(node.forms().len(), 2);
}

/// A change of a graph, with its name.
type Forgery<'a> = (&'a str, &'a dyn Fn(&mut ModelProto));

/// A form that was tampered with is not used, and is made again from the model.
#[test]
fn a_forged_form_is_made_again() {
    let kind = kind(MLP);
    let mut node = Node::new();
    let path = node.model(&kind, &Options::default());
    let plain = answers(&load(&path, "", None), &kind);
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
            forge::point(forge::external(model), "99.data", 0)
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
        drop(load(&path, "", Some(&node.weights)));
        let graph = node
            .forms()
            .into_iter()
            .find(|path| path.ends_with("graph"));
        let graph = graph.expect("a form");
        let whole = fs::read(&graph).expect("read");
        forge::graph(&graph, change);
        assert!(fs::read(&graph).expect("read") != whole, "{what}");
        node.restart();
        let model = load(&path, "", Some(&node.weights));
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
    assert!(answers(&load(&path, "", Some(&node.weights)), &kind) == plain);
}
