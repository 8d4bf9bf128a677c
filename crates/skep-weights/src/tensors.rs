//! The tensors of a form that runs use: in the store, or at first in the cache's files.

use std::{fs::File, os::fd::AsFd};

use bytes::Bytes;
use skep_cache::{CacheError, Form, FormTensor, Mapped, Role};
use skep_store::{FileRange, Lease, Present, Wanted};

use crate::{
    WeightSource,
    baking::{FormFailure, acquire, look},
};

/// Where the wanted tensors of a form are.
pub struct FormTensors {
    /// The lease on those in the store; `None` if the store did not answer.
    lease: Option<Lease>,
    locations: Vec<TensorLocation>,
}

enum TensorLocation {
    /// In the store.
    Stored(Lease, usize),
    /// In the cache; with an open file if it is a packed weight.
    Cached(Mapped, Option<File>),
}

impl FormTensors {
    /// Gets `parts`. Those that the store lacks are brought there now, or stay in the cache's files at first
    /// ([`WeightSource::runs_from_cache`]).
    ///
    /// # Errors
    /// [`FormFailure::Damaged`] for a tensor that differs from what was baked, otherwise [`FormFailure::Unusable`].
    pub fn get(
        form: &Form,
        source: &WeightSource,
        parts: &[&FormTensor],
    ) -> Result<Self, FormFailure> {
        if !source.runs_from_cache {
            let lease = acquire(form, source, parts)?;
            let locations =
                (0..parts.len()).map(|index| TensorLocation::Stored(lease.clone(), index));
            return Ok(Self {
                locations: locations.collect(),
                lease: Some(lease),
            });
        }
        // If the store fails, the files remain; the later move to the store reports why it failed.
        let (lease, indices) = match look(source, parts) {
            Ok(Present { lease, indices }) => (Some(lease), indices),
            Err(_) => (None, vec![None; parts.len()]),
        };
        let missing = parts.iter().zip(&indices);
        let missing = missing.filter(|(_, index)| index.is_none());
        let missing: Vec<&FormTensor> = missing.map(|(part, _)| *part).collect();
        let wanted: Vec<&Wanted> = missing.iter().map(|part| &part.tensor).collect();
        let mapped = form
            .map_seen(&wanted)
            .map_err(|error| unmapped(form, &error))?;
        let mut cached = missing.iter().zip(mapped);
        let mut locations = Vec::with_capacity(parts.len());
        for index in indices {
            locations.push(match (&lease, index) {
                (Some(lease), Some(index)) => TensorLocation::Stored(lease.clone(), index),
                _ => {
                    let Some((part, mapped)) = cached.next() else {
                        break;
                    };
                    let opened = (part.role == Role::Packed)
                        .then(|| form.open_mapped(&part.tensor, &mapped));
                    let file = opened.transpose();
                    let file = file.map_err(|error| FormFailure::Unusable(error.to_string()))?;
                    TensorLocation::Cached(mapped, file)
                }
            });
        }
        Ok(Self { lease, locations })
    }

    /// The lease on the tensors in the store.
    #[must_use]
    pub const fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// A tensor's bytes.
    #[must_use]
    pub fn bytes(&self, index: usize) -> Bytes {
        match &self.locations[index] {
            TensorLocation::Stored(lease, index) => lease.bytes(*index),
            TensorLocation::Cached(mapped, _) => mapped.bytes(),
        }
    }

    /// The file range of a packed weight, for mapping it elsewhere; `None` for any other tensor in the cache.
    #[must_use]
    pub fn place(&self, index: usize) -> Option<FileRange<'_>> {
        match &self.locations[index] {
            TensorLocation::Stored(lease, index) => Some(lease.file_range(*index)),
            TensorLocation::Cached(mapped, file) => Some(FileRange {
                descriptor: file.as_ref()?.as_fd(),
                offset: 0,
                length: mapped.bytes().len() as u64,
            }),
        }
    }

    /// The tensors in the cache, with their indices.
    #[must_use]
    pub fn into_cached(self) -> Vec<(usize, Mapped)> {
        let locations = self.locations.into_iter().enumerate();
        locations
            .filter_map(|(index, location)| match location {
                TensorLocation::Stored(..) => None,
                TensorLocation::Cached(mapped, _) => Some((index, mapped)),
            })
            .collect()
    }
}

/// Turns a failed mapping into the failure of its form. Removes the form if the tensor is damaged: the load that
/// makes it again replaces the damaged tensor.
#[must_use]
pub fn unmapped(form: &Form, error: &CacheError) -> FormFailure {
    if !error.is_damage() {
        return FormFailure::Unusable(error.to_string());
    }
    FormFailure::damaged(form, &error.to_string())
}
