//! The steps of baking that all backends share: look up a model's form, make it if it is missing, load it, and continue
//! without it if anything fails.
//!
//! ```text
//! load --> form known?  no --> load the model's own files; with BakingPolicy::BeforeLoad make the form first
//!               |
//!               v
//!          open(form): acquire its tensors from the store, which reads missing ones from the cache
//!               damaged --> remove the form; with BakingPolicy::BeforeLoad make it again, once
//!               any other failure --> log a warning, load the model's own files
//!
//! baking in the background, while the model runs:
//! plan --> is the form missing, and what does making it cost?
//! make_form --> makes it in a separate directory, in another process
//! publish --> checks it and adds it to the cache
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path, PathBuf},
    time::Instant,
};

use skep_cache::{Begun, CacheError, Claim, Content, Form, FormKey, FormTensor, Found, Making};
use skep_onnx::OnnxModel;
use skep_store::{ErrorKind, FillError, Lease, Present, StoreError, Wanted};

use crate::{Baked, BakingPolicy, WeightSource};

/// Smaller models are loaded from their own files: a form costs more than sharing it would save.
pub const MIN_MODEL_BYTES: u64 = 1 << 20;

/// Weights below a page stay in the graph: each of the others takes whole pages.
pub const MIN_WEIGHT_BYTES: usize = 4096;

/// The name of the layout of a model's file. All backends share weights in this layout.
pub const PLAIN: &str = "plain";

/// What a baking process takes besides weights: the library, its code, its threads, the graph.
pub const BASE_BYTES: u64 = 64 << 20;

/// A model as a backend bakes it.
pub trait Bakes {
    /// The model's file, for messages.
    fn path(&self) -> &Path;

    /// All files of the model.
    fn files(&self) -> Vec<PathBuf>;

    /// Why the model cannot have a form, if that is known before baking.
    fn unfit(&self) -> Option<&'static str> {
        None
    }

    /// What its form depends on besides the content of its files. The first entry names the backend and the version of
    /// its forms.
    fn depends_on(&self) -> Vec<Vec<u8>>;

    /// An upper bound on the cost of making its form.
    fn cost(&self) -> BakeCost;

    /// Makes its form: adds the tensors to `making` and returns the graph.
    ///
    /// # Errors
    /// Why it cannot be made.
    fn make(&self, making: &mut Making) -> Result<FormGraph, NoForm>;
}

/// The most that baking a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BakeCost {
    /// Memory of the baking process, without pages of files, which the system can reclaim at any time.
    pub memory_bytes: u64,
    /// Disk space in the cache's directory while the model is baked.
    pub disk_bytes: u64,
}

/// What a model's form still needs.
#[derive(Debug)]
pub enum FormPlan {
    /// Nothing: it exists.
    Known(Form),
    /// The model is loaded without a form, for this reason.
    WithoutForm(String),
    /// It has to be made.
    Needed(NeededForm),
}

/// A form that has to be made.
#[derive(Debug)]
pub struct NeededForm {
    /// Its key in the cache.
    pub key: FormKey,
    /// The content of the model's files.
    pub content: Content,
    /// What making it costs.
    pub cost: BakeCost,
}

/// A form without its tensors.
#[derive(Debug)]
pub struct FormGraph {
    /// The graph, in the runtime's own format.
    pub graph: Vec<u8>,
    /// Notes of the backend for later loads.
    pub notes: BTreeMap<String, String>,
}

/// Why a form could not be made.
#[derive(Debug)]
pub enum NoForm {
    /// This model cannot have a form.
    Never(String),
    /// It failed this time; a later attempt may succeed.
    Now(String),
}

impl From<io::Error> for NoForm {
    fn from(error: io::Error) -> Self {
        Self::Now(error.to_string())
    }
}

impl From<CacheError> for NoForm {
    fn from(error: CacheError) -> Self {
        Self::Now(error.to_string())
    }
}

/// Why a form could not be made this time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BakeError(String);

/// Why a form was not loaded.
#[derive(Debug)]
pub enum FormFailure {
    /// The form is damaged and was removed: it can be made again.
    Damaged(String),
    /// It cannot be used on this machine or at this time.
    Unusable(String),
}

impl FormFailure {
    /// Removes a damaged form.
    #[must_use]
    pub fn damaged(form: &Form, why: &str) -> Self {
        form.forget();
        Self::Damaged(why.to_owned())
    }
}

/// How to load a model.
enum FormChoice {
    /// From this form.
    Form {
        form: Form,
        /// Whether this call made it.
        is_new: bool,
    },
    /// Without a form, for this reason.
    WithoutForm(String),
}

impl FormChoice {
    fn of(found: Found) -> Option<Self> {
        match found {
            Found::Form(form) => Some(Self::Form {
                form,
                is_new: false,
            }),
            Found::Unusable(why) => Some(Self::WithoutForm(why)),
            Found::Nothing => None,
        }
    }
}

/// What is known about a form before one is made.
enum FormKnowledge {
    Decided(FormChoice),
    /// Only the key of a form of this content, which is not in the cache.
    Nothing(FormKey, Content),
    /// Not even the key: the files were not read, because the cache cannot have a form of them.
    Unread,
}

/// When to read files whose content the cache does not remember.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadEffort {
    /// Only if the cache may have their form: reading takes a fifth of a plain load.
    IfWorthwhile,
    Always,
}

impl ReadEffort {
    const fn of(weights: &WeightSource) -> Self {
        match weights.baking {
            BakingPolicy::BeforeLoad => Self::Always,
            BakingPolicy::Background | BakingPolicy::Never => Self::IfWorthwhile,
        }
    }
}

/// Loads a model from its form. Makes the form if it is missing and `weights.baking` is [`BakingPolicy::BeforeLoad`].
/// Returns `None` if the model has to be loaded from its own files, and logs why. Calls `open` again if the form was
/// damaged.
pub fn load<T>(
    model: &impl Bakes,
    weights: &WeightSource,
    open: impl Fn(&Form) -> Result<T, FormFailure>,
) -> Option<T> {
    let path = model.path().display();
    for _ in 0..2 {
        let form = match form(model, weights) {
            Ok(FormChoice::Form { form, .. }) => form,
            Ok(FormChoice::WithoutForm(why)) => {
                tracing::debug!("`{path}` is loaded without a baked form: {why}");
                return None;
            }
            Err(why) => {
                tracing::warn!("`{path}` is loaded without a baked form: {why}");
                return None;
            }
        };
        match open(&form) {
            Ok(loaded) => return Some(loaded),
            Err(FormFailure::Damaged(why)) if weights.baking == BakingPolicy::BeforeLoad => {
                tracing::warn!("the baked form of `{path}` is made again: {why}");
            }
            Err(FormFailure::Damaged(why) | FormFailure::Unusable(why)) => {
                tracing::warn!("`{path}` is loaded without its baked form: {why}");
                return None;
            }
        }
    }
    None
}

/// Finds out what a model's form still needs. Reads the model's files if the cache does not remember their content.
///
/// # Errors
/// If they cannot be read.
pub fn plan(model: &impl Bakes, weights: &WeightSource) -> Result<FormPlan, String> {
    Ok(match find(model, weights, ReadEffort::Always)? {
        FormKnowledge::Decided(FormChoice::Form { form, .. }) => FormPlan::Known(form),
        FormKnowledge::Decided(FormChoice::WithoutForm(why)) => FormPlan::WithoutForm(why),
        FormKnowledge::Nothing(key, content) => FormPlan::Needed(NeededForm {
            key,
            content,
            cost: model.cost(),
        }),
        FormKnowledge::Unread => FormPlan::WithoutForm("its files were not read".to_owned()),
    })
}

/// The key of the model's form, whether or not the form exists; `None` if it certainly does not.
pub fn form_key(model: &impl Bakes, weights: &WeightSource) -> Option<FormKey> {
    match find(model, weights, ReadEffort::of(weights)) {
        Ok(FormKnowledge::Decided(FormChoice::Form { form, .. })) => Some(*form.key()),
        Ok(FormKnowledge::Nothing(key, _)) => Some(key),
        Ok(FormKnowledge::Decided(FormChoice::WithoutForm(_)) | FormKnowledge::Unread) | Err(_) => {
            None
        }
    }
}

/// Makes the form if it is missing or damaged.
///
/// # Errors
/// If it could not be made this time, for example on a full disk.
pub fn bake(model: &impl Bakes, weights: &WeightSource) -> Result<Baked, BakeError> {
    // A load checks only the tensors that it uses; baking verifies every one.
    if let Ok(FormKnowledge::Decided(FormChoice::Form { form, .. })) =
        find(model, weights, ReadEffort::Always)
        && let Err(error) = form.verify()
    {
        let path = model.path().display();
        tracing::warn!("the baked form of `{path}` is made again: {error}");
    }
    match form(model, weights) {
        Ok(FormChoice::Form { form, is_new: true }) => Ok(Baked::Made {
            bytes: form.bytes(),
        }),
        Ok(FormChoice::Form { form, .. }) => Ok(Baked::Known {
            bytes: form.bytes(),
        }),
        Ok(FormChoice::WithoutForm(why)) => Ok(Baked::WithoutForm(why)),
        Err(why) => Err(BakeError(why)),
    }
}

/// Makes the form in a directory, for another process to publish, or notes there why the model cannot have one.
///
/// # Errors
/// Why it could not be made this time.
pub fn make_form(model: &impl Bakes, mut making: Making) -> Result<(), BakeError> {
    match model.make(&mut making) {
        Ok(FormGraph { graph, notes }) => making.finish(&graph, notes),
        Err(NoForm::Never(why)) => making.unusable(&why),
        Err(NoForm::Now(why)) => return Err(BakeError(why)),
    }
    .map_err(|error| BakeError(error.to_string()))
}

/// Gets those tensors of a form that the store has.
///
/// # Errors
/// [`FormFailure::Unusable`] if the store does not answer.
pub fn look(weights: &WeightSource, parts: &[&FormTensor]) -> Result<Present, FormFailure> {
    let wanted: Vec<Wanted> = parts.iter().map(|part| part.tensor.clone()).collect();
    let present = weights.store.look(&weights.tenant, &wanted);
    present.map_err(|error| store_failure(&error))
}

/// Gets tensors of a form from the store, and fills those that it lacks from the cache.
///
/// # Errors
/// [`FormFailure::Damaged`] for tensors that are damaged in the cache, otherwise [`FormFailure::Unusable`].
pub fn acquire(
    form: &Form,
    weights: &WeightSource,
    parts: &[&FormTensor],
) -> Result<Lease, FormFailure> {
    let wanted: Vec<Wanted> = parts.iter().map(|part| part.tensor.clone()).collect();
    let mut fill = |index: usize, bytes: &mut [u8]| {
        let read = form.read(&wanted[index], bytes);
        read.map_err(FillError::new)
    };
    let acquired = weights
        .store
        .acquire(&weights.tenant, &wanted, weights.order, &mut fill);
    acquired.map_err(|error| match error.kind() {
        // A store in another process names the tensor only in its text.
        ErrorKind::Content => match form.verify() {
            Err(damage) => FormFailure::Damaged(damage.to_string()),
            Ok(()) => store_failure(&error),
        },
        ErrorKind::Fill => FormFailure::damaged(form, &error.to_string()),
        _ => store_failure(&error),
    })
}

fn store_failure(error: &StoreError) -> FormFailure {
    FormFailure::Unusable(format!("the tensor store: {error}"))
}

/// The model's file at `path`, and the files beside it that it refers to.
#[must_use]
pub fn files(path: &Path, onnx: &OnnxModel) -> Vec<PathBuf> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let beside = onnx.external_files();
    let beside = beside.iter().map(|name| directory.join(name));
    std::iter::once(path.to_owned()).chain(beside).collect()
}

/// Gets the form from the cache, or makes it.
///
/// # Errors
/// Why it could not be made this time.
fn form(model: &impl Bakes, weights: &WeightSource) -> Result<FormChoice, String> {
    let (key, content) = match find(model, weights, ReadEffort::of(weights))? {
        FormKnowledge::Decided(choice) => return Ok(choice),
        FormKnowledge::Nothing(key, content) if weights.baking == BakingPolicy::BeforeLoad => {
            (key, content)
        }
        FormKnowledge::Nothing(..) | FormKnowledge::Unread => {
            return Ok(FormChoice::WithoutForm("it is not baked yet".to_owned()));
        }
    };
    let begun = weights.cache.begin(&key, content);
    match begun.map_err(|e| e.to_string())? {
        Begun::Claimed(claim) => make(model, claim, weights),
        Begun::Found(found) => FormChoice::of(found)
            .ok_or_else(|| "its form was removed right after it was made".to_owned()),
        Begun::Busy => Err("another process bakes it".to_owned()),
    }
}

/// Looks the form up without making it.
///
/// # Errors
/// If the model's files cannot be read.
fn find(
    model: &impl Bakes,
    weights: &WeightSource,
    effort: ReadEffort,
) -> Result<FormKnowledge, String> {
    if let Some(key) = weights.cache.only() {
        // A process that may read only one form got its key.
        let choice = FormChoice::of(weights.cache.look_up(key))
            .unwrap_or_else(|| FormChoice::WithoutForm("its form is damaged or gone".to_owned()));
        return Ok(FormKnowledge::Decided(choice));
    }
    let files = model.files();
    let bytes: u64 = files
        .iter()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|metadata| metadata.len())
        .sum();
    if bytes < MIN_MODEL_BYTES {
        let why = format!("its files have {bytes} bytes, less than {MIN_MODEL_BYTES}");
        return Ok(FormKnowledge::Decided(FormChoice::WithoutForm(why)));
    }
    if let Some(why) = model.unfit() {
        return Ok(FormKnowledge::Decided(FormChoice::WithoutForm(
            why.to_owned(),
        )));
    }
    let directory = model.path().parent().unwrap_or(Path::new(""));
    if let Some(file) = files.iter().find(|file| !is_inside(directory, file)) {
        let why = format!("`{}` is outside the model's directory", file.display());
        return Ok(FormKnowledge::Decided(FormChoice::WithoutForm(why)));
    }
    let budget_bytes = weights.cache.budget_bytes();
    if !weights.cache.is_reader() && bytes > budget_bytes {
        let why = format!(
            "its files have {bytes} bytes, more than the cache may hold, which is {budget_bytes} bytes"
        );
        return Ok(FormKnowledge::Decided(FormChoice::WithoutForm(why)));
    }
    let cache = &weights.cache;
    let content = match effort {
        ReadEffort::Always => cache.content(&files).map(Some),
        ReadEffort::IfWorthwhile => cache.content_if_known(&files),
    };
    let Some(content) = content.map_err(|e| e.to_string())? else {
        return Ok(FormKnowledge::Unread);
    };
    let key = key(model, &content);
    let choice = FormChoice::of(weights.cache.look_up(&key));
    Ok(choice.map_or(FormKnowledge::Nothing(key, content), FormKnowledge::Decided))
}

/// Whether a file lies in a directory or below it.
fn is_inside(directory: &Path, file: &Path) -> bool {
    let names = file.strip_prefix(directory).map(Path::components);
    names.is_ok_and(|mut names| names.all(|name| matches!(name, Component::Normal(_))))
}

/// The key of the form of files with this content.
fn key(model: &impl Bakes, content: &Content) -> FormKey {
    let digest = content.digest();
    let depends_on = model.depends_on();
    let mut parts: Vec<&[u8]> = depends_on.iter().map(Vec::as_slice).collect();
    parts.insert(parts.len().min(1), &digest);
    FormKey::of(&parts)
}

fn make(model: &impl Bakes, claim: Claim, weights: &WeightSource) -> Result<FormChoice, String> {
    let began = Instant::now();
    let path = model.path().display();
    make_form(model, claim.making()).map_err(|error| error.to_string())?;
    let key = *claim.key();
    let found = publish(model, claim, weights)?;
    let Found::Form(form) = found else {
        return match found {
            Found::Unusable(why) => Ok(FormChoice::WithoutForm(why)),
            _ => Err(format!("the form with key {key} is gone")),
        };
    };
    tracing::info!("baked `{path}` in {} ms", began.elapsed().as_millis());
    Ok(FormChoice::Form { form, is_new: true })
}

/// Publishes a form that was made. The model's files must still have the content that the claim is for: if a file was
/// replaced meanwhile, the form may have been made of another file than the one whose content gave the key.
///
/// # Errors
/// Why the form is not published.
pub fn publish(model: &impl Bakes, claim: Claim, weights: &WeightSource) -> Result<Found, String> {
    let content = weights.cache.content(&model.files());
    let content = content.map_err(|error| error.to_string())?;
    if key(model, &content) != *claim.key() {
        return Err("its files changed while it was baked".to_owned());
    }
    let found = claim.publish().map_err(|error| error.to_string())?;
    // This may exceed the budget. A failed cleanup does not keep the model from being served.
    if let Err(error) = weights.cache.collect() {
        tracing::warn!("{error}");
    }
    Ok(found)
}
