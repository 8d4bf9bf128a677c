//! Management calls: what they do, which of them are the same, and which must not run at once.

use skep_types::ModelName;

use crate::{
    models::residency::ScaleOrder,
    repository::{LoadOverrides, ModelId},
};

/// What a management call does.
#[derive(Debug, Clone)]
pub(in crate::models) enum ManagementCall {
    Load {
        target: CallTarget,
        overrides: LoadOverrides,
        /// Whether an ensemble that lacks parts is left alone, and the parts reported.
        reports_missing: bool,
    },
    Unload(CallTarget),
    /// Changes the number of instances.
    Scale(ScaleOrder),
    Index {
        ready_only: bool,
    },
}

/// Which models a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::models) enum CallTarget {
    /// All models with a name, in every namespace.
    Named(ModelName),
    /// This model.
    One(ModelId),
}

impl CallTarget {
    fn name(&self) -> &ModelName {
        match self {
            Self::Named(name) => name,
            Self::One(id) => &id.name,
        }
    }
}

/// Calls in different lanes do not take each other's places: an index is answered while every load is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallLane {
    Loads,
    Unloads,
    Indexes,
}

pub(super) const LANES: usize = 3;

/// Calls in the same line run one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum CallLine {
    Model(ModelName),
    Index { ready_only: bool },
}

impl ManagementCall {
    pub(super) const fn lane(&self) -> CallLane {
        match self {
            // Both start instances.
            Self::Load { .. } | Self::Scale(_) => CallLane::Loads,
            Self::Unload(_) => CallLane::Unloads,
            Self::Index { .. } => CallLane::Indexes,
        }
    }

    pub(super) fn line(&self) -> CallLine {
        match self {
            Self::Load { target, .. } | Self::Unload(target) => {
                CallLine::Model(target.name().clone())
            }
            Self::Scale(order) => CallLine::Model(order.id.name.clone()),
            Self::Index { ready_only } => CallLine::Index {
                ready_only: *ready_only,
            },
        }
    }

    /// Whether one outcome answers both.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Load {
                    target,
                    overrides,
                    reports_missing,
                },
                Self::Load {
                    target: others,
                    overrides: with,
                    reports_missing: reports,
                },
            ) => target == others && reports_missing == reports && overrides.is_same(with),
            (Self::Unload(target), Self::Unload(others)) => target == others,
            (Self::Scale(order), Self::Scale(other)) => order == other,
            (Self::Index { ready_only }, Self::Index { ready_only: other }) => ready_only == other,
            _ => false,
        }
    }
}
