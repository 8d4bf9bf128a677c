//! The tensors of a form that runs want: in the store, or for now in the cache's files.

use std::{fs::File, os::fd::AsFd};

use bytes::Bytes;
use skep_backend::{
    Weights as Shared,
    baking::{Failure, acquire, look},
};
use skep_cache::{CacheError, Form, FormTensor, Mapped, Role};
use skep_store::{FileRange, Lease, Present, Wanted};

/// Where each of some parts of a form is.
pub(crate) struct Tensors {
    /// To those that are in the store; `None` where that did not answer.
    lease: Option<Lease>,
    lie: Vec<Lies>,
}

enum Lies {
    /// In the store.
    Stored(Lease, usize),
    /// In the cache; open where it is a packed weight.
    Cached(Mapped, Option<File>),
}

impl Tensors {
    /// Those that the store has; the others are brought there now, or stay in the cache's files for a while.
    pub(crate) fn get(
        form: &Form,
        shared: &Shared,
        parts: &[&FormTensor],
    ) -> Result<Self, Failure> {
        if !shared.runs_from_cache {
            let lease = acquire(form, shared, parts)?;
            let lie = (0..parts.len()).map(|index| Lies::Stored(lease.clone(), index));
            return Ok(Self {
                lie: lie.collect(),
                lease: Some(lease),
            });
        }
        // Without a store there are the files; whoever brings them to the store says what is wrong with that.
        let (lease, indices) = match look(shared, parts) {
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
        let mut lie = Vec::with_capacity(parts.len());
        for index in indices {
            lie.push(match (&lease, index) {
                (Some(lease), Some(index)) => Lies::Stored(lease.clone(), index),
                _ => {
                    let Some((part, mapped)) = cached.next() else {
                        break;
                    };
                    let opened = (part.role == Role::Packed)
                        .then(|| form.open_mapped(&part.tensor, &mapped));
                    let file = opened.transpose();
                    let file = file.map_err(|error| Failure::Unusable(error.to_string()))?;
                    Lies::Cached(mapped, file)
                }
            });
        }
        Ok(Self { lease, lie })
    }

    /// To those that are in the store.
    pub(crate) const fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// A tensor's bytes.
    pub(crate) fn bytes(&self, index: usize) -> Bytes {
        match &self.lie[index] {
            Lies::Stored(lease, index) => lease.bytes(*index),
            Lies::Cached(mapped, _) => mapped.bytes(),
        }
    }

    /// Where a packed weight lies, for mapping it elsewhere; `None` of another one in the cache.
    pub(crate) fn place(&self, index: usize) -> Option<FileRange<'_>> {
        match &self.lie[index] {
            Lies::Stored(lease, index) => Some(lease.file_range(*index)),
            Lies::Cached(mapped, file) => Some(FileRange {
                descriptor: file.as_ref()?.as_fd(),
                offset: 0,
                length: mapped.bytes().len() as u64,
            }),
        }
    }

    /// Those that are in the cache, by their indices.
    pub(crate) fn into_cached(self) -> Vec<(usize, Mapped)> {
        let lie = self.lie.into_iter().enumerate();
        lie.filter_map(|(index, lies)| match lies {
            Lies::Stored(..) => None,
            Lies::Cached(mapped, _) => Some((index, mapped)),
        })
        .collect()
    }
}

/// What follows from a tensor that could not be mapped. Where it is damaged the form goes: the load that makes it again
/// replaces what is damaged.
pub(crate) fn unmapped(form: &Form, error: &CacheError) -> Failure {
    if !error.is_damage() {
        return Failure::Unusable(error.to_string());
    }
    Failure::damaged(form, &error.to_string())
}
