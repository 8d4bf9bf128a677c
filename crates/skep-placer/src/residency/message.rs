//! Inputs and outputs of the state machine.

use std::time::Duration;

use skep_types::Time;

/// A model, numbered by the caller. Small numbers: they index a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelKey(pub u32);

/// A tensor that several models may share, by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorKey(pub [u8; 32]);

/// What a model holds while it is resident.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelSize {
    /// Bytes that no other model shares.
    pub private_bytes: u64,
    /// Tensors that others may share, each with its bytes.
    pub tensors: Vec<(TensorKey, u64)>,
}

impl ModelSize {
    /// A model that shares nothing.
    #[must_use]
    pub const fn private(bytes: u64) -> Self {
        Self {
            private_bytes: bytes,
            tensors: Vec::new(),
        }
    }
}

/// What is known of a model before it has ever been loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelTerms {
    /// Estimate of what it will hold.
    pub size: ModelSize,
    /// Estimate of what its load takes beside that, and gives back.
    pub load_bytes: u64,
    /// Estimate of how long its load takes.
    pub load_time: Duration,
    /// Whether it never leaves by itself.
    pub is_pinned: bool,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResidencyInput {
    /// The model is known from now on; a model that was known gets these terms.
    Add(ModelKey, ModelTerms),
    /// The model never leaves by itself, or it may.
    Pin(ModelKey, bool),
    /// The model is known no more. If it is resident, it leaves.
    Remove(ModelKey),
    /// A request for a model waits for it to load.
    Requested(ModelKey),
    /// A request that waited for a model left.
    Abandoned(ModelKey),
    /// A resident model has got this many requests since the last input of this kind.
    Used {
        /// The model.
        model: ModelKey,
        /// How many requests.
        requests: u64,
        /// When the last one came.
        last: Time,
        /// Whether requests are in it now.
        is_busy: bool,
    },
    /// The model has to load, whether or not requests wait for it. Nothing leaves for it unless `evicts`.
    Load {
        /// The model.
        model: ModelKey,
        /// Whether idle models leave if there is no room.
        evicts: bool,
    },
    /// The model has to leave.
    Unload(ModelKey),
    /// A load has ended well.
    Loaded {
        /// The model.
        model: ModelKey,
        /// What it holds now.
        size: ModelSize,
        /// What its next load will take beside that.
        load_bytes: u64,
        /// How long the load took.
        took: Duration,
    },
    /// What a resident model holds now.
    Measured(ModelKey, ModelSize),
    /// What a resident model holds beside its tensors now: it has more or fewer instances.
    Resized {
        /// The model.
        model: ModelKey,
        /// Bytes that no other model shares.
        private_bytes: u64,
    },
    /// A load has failed.
    Failed(ModelKey),
    /// The memory of a model that left is free. It may have been loaded again meanwhile.
    Unloaded(ModelKey),
    /// Bytes within the budget that are nobody's: weights that are kept although no model uses them, and what the node
    /// holds beyond what it counts.
    Unclaimed {
        /// What can be given up.
        kept: u64,
        /// What cannot.
        beyond: u64,
    },
}

/// Why a model leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DepartureReason {
    /// Another model needs its room.
    RoomFor(ModelKey),
    /// More is in use than the budget allows.
    OverBudget,
    /// It was idle for longer than models are kept.
    Idle,
    /// It had to: an explicit unload, or it is known no more.
    Explicit,
}

/// Why a model is not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadRefusal {
    /// The model alone needs more than the budget leaves beside what never leaves.
    TooLarge {
        /// What it needs, its load included.
        needed: u64,
        /// The budget.
        budget: u64,
        /// What is held by models that never leave.
        pinned: u64,
        /// What the node has held beyond what it counts for some seconds.
        beyond: u64,
    },
    /// There is no room, and nothing was to leave for it.
    NoRoom {
        /// What it needs, its load included.
        needed: u64,
        /// What is free.
        free: u64,
    },
    /// The last load failed, and it is too early to try again.
    BackOff {
        /// When a request tries again.
        until: Time,
    },
    /// The model is not known any more, or was unloaded explicitly.
    Withdrawn,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResidencyOutput {
    /// Load a model; [`ResidencyInput::Loaded`] or [`ResidencyInput::Failed`] has to follow.
    Load(ModelKey),
    /// Unload a model; [`ResidencyInput::Unloaded`] has to follow, once its memory is free.
    Unload(ModelKey, DepartureReason),
    /// Give up this many bytes of weights that no model uses; [`ResidencyInput::Unclaimed`] has to follow.
    Reclaim(u64),
    /// Tell all requests that wait for a model that it is not loaded.
    Refuse(ModelKey, LoadRefusal),
}

/// Where a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResidencyState {
    /// In the repository.
    Known,
    /// In the repository, and its last load found its weights in the tensor store or put them there, from where the next
    /// one takes them as long as they are kept.
    Stored,
    /// Waits for room.
    Wanted,
    /// Being loaded.
    Loading,
    /// Has instances.
    Resident,
    /// Its last requests are answered, its memory is being freed.
    Leaving,
}

impl ResidencyState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Known,
        Self::Stored,
        Self::Wanted,
        Self::Loading,
        Self::Resident,
        Self::Leaving,
    ];

    /// The word for people and for JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Stored => "stored",
            Self::Wanted => "wanted",
            Self::Loading => "loading",
            Self::Resident => "resident",
            Self::Leaving => "leaving",
        }
    }
}
