//! Shared-memory regions of clients: registered, shown, unregistered. There are no CUDA regions, as on a Triton
//! without a GPU.

use skep_regions::RegionStatus;
use skep_wire::documents::SystemRegion;

use crate::{error::ApiError, state::ServerState};

/// One region, or all if `name` is empty.
pub(crate) fn system_status(
    state: &ServerState,
    name: &str,
) -> Result<Vec<SystemRegion>, ApiError> {
    let regions = state.regions()?;
    let found = match name {
        "" => regions.all(),
        name => vec![regions.status(name)?],
    };
    Ok(found.into_iter().map(row).collect())
}

fn row(status: RegionStatus) -> SystemRegion {
    SystemRegion {
        name: status.name,
        key: status.key,
        offset: status.offset,
        byte_size: status.byte_size,
    }
}

/// Registers a region.
pub(crate) fn system_register(state: &ServerState, region: &SystemRegion) -> Result<(), ApiError> {
    let regions = state.regions()?;
    Ok(regions.register(&region.name, &region.key, region.offset, region.byte_size)?)
}

/// Forgets a region, or all if `name` is empty. A name that is not registered is fine.
pub(crate) fn system_unregister(state: &ServerState, name: &str) -> Result<(), ApiError> {
    let regions = state.regions()?;
    match name {
        "" => regions.unregister_all(),
        name => regions.unregister(name),
    }
    Ok(())
}

/// Checks that a client may ask for CUDA regions. The server has none.
pub(crate) fn cuda_status(state: &ServerState, name: &str) -> Result<(), ApiError> {
    state.regions()?;
    match name {
        "" => Ok(()),
        name => Err(ApiError::new(
            skep_runtime::ErrorKind::NotFound,
            format!("Unable to find cuda shared memory region: '{name}'"),
        )),
    }
}

/// Why a CUDA region is not registered.
pub(crate) fn cuda_register(state: &ServerState, name: &str) -> ApiError {
    match state.regions() {
        Err(error) => error,
        Ok(_) => ApiError::invalid(format!(
            "failed to register CUDA shared memory region: '{name}', GPUs not supported"
        )),
    }
}

/// Unregisters CUDA regions. The server has none, so nothing changes.
pub(crate) fn cuda_unregister(state: &ServerState) -> Result<(), ApiError> {
    state.regions().map(drop)
}
