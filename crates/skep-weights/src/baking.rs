//! What backends that bake models do in the same way: look for a model's form, make it where there is none, load it, and
//! go on without it when anything goes wrong.
//!
//! ```text
//! load --> form known?  no --> loaded as it is; with [`BakingPolicy::First`] Bakes::make first, kept in the cache
//!               |
//!               v
//!          open(form): acquire its tensors (the store's; out of the cache where nobody has them)
//!               damaged --> removed; made again, once, with [`BakingPolicy::First`]
//!               anything else that fails --> a warning, and the model is loaded as it is
//!
//! plan --> is a form missing, and what does it take?      for whoever bakes behind a model that runs:
//! make_form --> makes it in a directory of its own        in another process
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

/// Models with less are loaded as they are: what there is to share is less than what a form costs.
pub const MIN_MODEL_BYTES: u64 = 1 << 20;

/// WeightSource below a page stay in the graph: each of the others takes pages of its own.
pub const MIN_WEIGHT_BYTES: usize = 4096;

/// The layout's name of weights as the model's file has them: all backends share these.
pub const PLAIN: &str = "plain";

/// What a process takes that bakes, beside weights: the library, its code, its threads, the graph.
pub const BASE_BYTES: u64 = 64 << 20;

/// A model as a backend bakes it.
pub trait Bakes {
    /// The model's file, for messages.
    fn path(&self) -> &Path;

    /// The files that the model consists of.
    fn files(&self) -> Vec<PathBuf>;

    /// Why there is no form of it, where that can be told beforehand.
    fn unfit(&self) -> Option<&'static str> {
        None
    }

    /// What its form depends on, beside the content of its files; the first says whose forms these are and what they mean.
    fn depends_on(&self) -> Vec<Vec<u8>>;

    /// What making its form takes, beforehand.
    fn cost(&self) -> BakeCost;

    /// Makes its form: adds the tensors, and returns the rest.
    ///
    /// # Errors
    /// Why there is none.
    fn make(&self, making: &mut Making) -> Result<FormRest, NoForm>;
}

/// What baking a model takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BakeCost {
    /// Memory of the process that bakes. Pages of files, which the system can take back at any time, are not counted.
    pub memory_bytes: u64,
    /// Room in the cache's directory, until it is over.
    pub disk_bytes: u64,
}

/// What is left to be done for a model's form.
#[derive(Debug)]
pub enum FormPlan {
    /// Nothing: it is there.
    Known(Form),
    /// The model is loaded without a form; the reason.
    WithoutForm(String),
    /// It has to be made.
    Needed(NeededForm),
}

/// A form that has to be made.
#[derive(Debug)]
pub struct NeededForm {
    /// What it will be found by.
    pub key: FormKey,
    /// Of the model's files.
    pub content: Content,
    /// What making it takes.
    pub cost: BakeCost,
}

/// What a form has beside its tensors.
#[derive(Debug)]
pub struct FormRest {
    /// The graph, in the runtime's own format.
    pub graph: Vec<u8>,
    /// What the backend wants to know again.
    pub notes: BTreeMap<String, String>,
}

/// Why there is no form.
#[derive(Debug)]
pub enum NoForm {
    /// This model has none, and never will.
    Never(String),
    /// Not now.
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
    /// The form is damaged, and has been removed: it can be made again.
    Damaged(String),
    /// It cannot be used here or now.
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

/// How a model is to be loaded.
enum FormChoice {
    /// From this form.
    Form {
        form: Form,
        /// Made just now.
        is_new: bool,
    },
    /// Without one, because.
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

/// What is known before anything is made.
enum FormKnowledge {
    Decided(FormChoice),
    /// Nothing but what the form would be found by, and of what.
    Nothing(FormKey, Content),
    /// Not even that: the files were not read, since no form of them can be there.
    Unread,
}

/// Whether files are read about which nothing is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadEffort {
    /// Where a form may be there: reading takes a fifth of a plain load.
    IfWorthwhile,
    Always,
}

impl ReadEffort {
    const fn of(weights: &WeightSource) -> Self {
        match weights.baking {
            BakingPolicy::First => Self::Always,
            BakingPolicy::Behind | BakingPolicy::Never => Self::IfWorthwhile,
        }
    }
}

/// Loads a model by its form, which is made if it is not there and `weights` says so. `None` where the model is to be loaded
/// as it is; the log says why. `open` may be called a second time, where the form turned out to be damaged.
pub fn load<T>(
    subject: &impl Bakes,
    weights: &WeightSource,
    open: impl Fn(&Form) -> Result<T, FormFailure>,
) -> Option<T> {
    let path = subject.path().display();
    for _ in 0..2 {
        let form = match form(subject, weights) {
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
            Err(FormFailure::Damaged(why)) if weights.baking == BakingPolicy::First => {
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

/// What is left to be done for the form of a model. Reads the model's files where they are not remembered.
///
/// # Errors
/// When they cannot be read.
pub fn plan(subject: &impl Bakes, weights: &WeightSource) -> Result<FormPlan, String> {
    Ok(match find(subject, weights, ReadEffort::Always)? {
        FormKnowledge::Decided(FormChoice::Form { form, .. }) => FormPlan::Known(form),
        FormKnowledge::Decided(FormChoice::WithoutForm(why)) => FormPlan::WithoutForm(why),
        FormKnowledge::Nothing(key, content) => FormPlan::Needed(NeededForm {
            key,
            content,
            cost: subject.cost(),
        }),
        FormKnowledge::Unread => FormPlan::WithoutForm("its files were not read".to_owned()),
    })
}

/// What a form of it is found by, whether or not there is one; `None` where there is none for certain.
pub fn form_key(subject: &impl Bakes, weights: &WeightSource) -> Option<FormKey> {
    match find(subject, weights, ReadEffort::of(weights)) {
        Ok(FormKnowledge::Decided(FormChoice::Form { form, .. })) => Some(*form.key()),
        Ok(FormKnowledge::Nothing(key, _)) => Some(key),
        Ok(FormKnowledge::Decided(FormChoice::WithoutForm(_)) | FormKnowledge::Unread) | Err(_) => {
            None
        }
    }
}

/// Makes the form if it is not there, or damaged.
///
/// # Errors
/// When it could not be made this time, as on a full disk.
pub fn bake(subject: &impl Bakes, weights: &WeightSource) -> Result<Baked, BakeError> {
    // A load checks only the tensors that it uses; baking verifies every one.
    if let Ok(FormKnowledge::Decided(FormChoice::Form { form, .. })) =
        find(subject, weights, ReadEffort::Always)
        && let Err(error) = form.verify()
    {
        let path = subject.path().display();
        tracing::warn!("the baked form of `{path}` is made again: {error}");
    }
    match form(subject, weights) {
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

/// Makes the form in a directory, for another process to publish: or the reason why there never is one.
///
/// # Errors
/// Why it could not be made this time.
pub fn make_form(subject: &impl Bakes, mut making: Making) -> Result<(), BakeError> {
    match subject.make(&mut making) {
        Ok(FormRest { graph, notes }) => making.finish(&graph, notes),
        Err(NoForm::Never(why)) => making.unusable(&why),
        Err(NoForm::Now(why)) => return Err(BakeError(why)),
    }
    .map_err(|error| BakeError(error.to_string()))
}

/// Gets those tensors of a form from the store that are there.
///
/// # Errors
/// [`FormFailure::Unusable`] when the store does not answer.
pub fn look(weights: &WeightSource, parts: &[&FormTensor]) -> Result<Present, FormFailure> {
    let wanted: Vec<Wanted> = parts.iter().map(|part| part.tensor.clone()).collect();
    let present = weights.store.look(&weights.tenant, &wanted);
    present.map_err(|error| FormFailure::Unusable(format!("the tensor store: {error}")))
}

/// Gets tensors of a form from the store, out of the cache where nobody has them.
///
/// # Errors
/// [`FormFailure::Damaged`] for tensors that the cache does not have as they were, otherwise [`FormFailure::Unusable`].
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
    let unusable = |error: StoreError| FormFailure::Unusable(format!("the tensor store: {error}"));
    acquired.map_err(|error| match error.kind() {
        // A store in another process says which tensor it was in words only.
        ErrorKind::Content => match form.verify() {
            Err(damage) => FormFailure::Damaged(damage.to_string()),
            Ok(()) => unusable(error),
        },
        ErrorKind::Fill => FormFailure::damaged(form, &error.to_string()),
        _ => unusable(error),
    })
}

/// The model's file at `path` and those beside it that it refers to.
#[must_use]
pub fn files(path: &Path, onnx: &OnnxModel) -> Vec<PathBuf> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let beside = onnx.external_files();
    let beside = beside.iter().map(|name| directory.join(name));
    std::iter::once(path.to_owned()).chain(beside).collect()
}

/// The form, out of the cache or made now.
///
/// # Errors
/// Why it could not be made this time.
fn form(subject: &impl Bakes, weights: &WeightSource) -> Result<FormChoice, String> {
    let (key, content) = match find(subject, weights, ReadEffort::of(weights))? {
        FormKnowledge::Decided(answer) => return Ok(answer),
        FormKnowledge::Nothing(key, content) if weights.baking == BakingPolicy::First => {
            (key, content)
        }
        FormKnowledge::Nothing(..) | FormKnowledge::Unread => {
            return Ok(FormChoice::WithoutForm("it has not been baked".to_owned()));
        }
    };
    let begun = weights.cache.begin(&key, content);
    match begun.map_err(|e| e.to_string())? {
        Begun::Claimed(claim) => make(subject, claim, weights),
        Begun::Found(found) => FormChoice::of(found)
            .ok_or_else(|| "its form was removed as soon as it was made".to_owned()),
        Begun::Busy => Err("another process bakes it".to_owned()),
    }
}

/// What is known of the form before it is made.
///
/// # Errors
/// When the model's files cannot be read.
fn find(
    subject: &impl Bakes,
    weights: &WeightSource,
    effort: ReadEffort,
) -> Result<FormKnowledge, String> {
    if let Some(key) = weights.cache.only() {
        // Whoever may read no other form was told which one it is.
        let answer = FormChoice::of(weights.cache.look_up(key));
        let gone = || FormChoice::WithoutForm("its form is damaged or gone".to_owned());
        return Ok(FormKnowledge::Decided(answer.unwrap_or_else(gone)));
    }
    let files = subject.files();
    let bytes: u64 = files
        .iter()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|metadata| metadata.len())
        .sum();
    if bytes < MIN_MODEL_BYTES {
        let why = format!("it has {bytes} bytes, less than {MIN_MODEL_BYTES}");
        return Ok(FormKnowledge::Decided(FormChoice::WithoutForm(why)));
    }
    if let Some(why) = subject.unfit() {
        return Ok(FormKnowledge::Decided(FormChoice::WithoutForm(
            why.to_owned(),
        )));
    }
    let inside = |file: &PathBuf| {
        let directory = subject.path().parent().unwrap_or(Path::new(""));
        let names = file.strip_prefix(directory).map(Path::components);
        names.is_ok_and(|mut names| names.all(|name| matches!(name, Component::Normal(_))))
    };
    if let Some(file) = files.iter().find(|file| !inside(file)) {
        let why = format!("`{}` is not in its directory", file.display());
        return Ok(FormKnowledge::Decided(FormChoice::WithoutForm(why)));
    }
    let budget_bytes = weights.cache.budget_bytes();
    if !weights.cache.is_reader() && bytes > budget_bytes {
        let why = format!("it has {bytes} bytes, and the cache may hold {budget_bytes}");
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
    let key = key(subject, &content);
    let answer = FormChoice::of(weights.cache.look_up(&key));
    Ok(answer.map_or(FormKnowledge::Nothing(key, content), FormKnowledge::Decided))
}

/// What the form of files of this content is found by.
fn key(subject: &impl Bakes, content: &Content) -> FormKey {
    let digest = content.digest();
    let depends_on = subject.depends_on();
    let mut parts: Vec<&[u8]> = depends_on.iter().map(Vec::as_slice).collect();
    parts.insert(parts.len().min(1), &digest);
    FormKey::of(&parts)
}

fn make(subject: &impl Bakes, claim: Claim, weights: &WeightSource) -> Result<FormChoice, String> {
    let began = Instant::now();
    let path = subject.path().display();
    make_form(subject, claim.making()).map_err(|error| error.to_string())?;
    let key = *claim.key();
    let found = publish(subject, claim, weights)?;
    let Found::Form(form) = found else {
        return match found {
            Found::Unusable(why) => Ok(FormChoice::WithoutForm(why)),
            _ => Err(format!("the form of key {key} is gone")),
        };
    };
    tracing::info!("baked `{path}` in {} ms", began.elapsed().as_millis());
    Ok(FormChoice::Form { form, is_new: true })
}

/// Publishes what was made of a model, whose files must still be those that the claim is of: whoever replaced one meanwhile
/// may have given the maker another one than was looked at.
///
/// # Errors
/// Why it is not published.
pub fn publish(
    subject: &impl Bakes,
    claim: Claim,
    weights: &WeightSource,
) -> Result<Found, String> {
    let content = weights.cache.content(&subject.files());
    let content = content.map_err(|error| error.to_string())?;
    if key(subject, &content) != *claim.key() {
        return Err("its files changed while it was baked".to_owned());
    }
    let found = claim.publish().map_err(|error| error.to_string())?;
    // What is over the budget goes now; that nothing could be removed is no reason not to serve.
    if let Err(error) = weights.cache.collect() {
        tracing::warn!("{error}");
    }
    Ok(found)
}
