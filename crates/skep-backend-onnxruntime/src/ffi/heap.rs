//! What the C library's heap keeps for itself.

/// Gives memory that was freed back to the system.
///
/// Loading a model parses it into buffers that are freed afterwards, but glibc keeps them: for a self-contained BERT
/// that is a third of the process. Elsewhere than on glibc there is nothing to do.
pub(crate) fn give_back_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's `malloc_trim` may be called from any thread at any time.
        unsafe { malloc_trim(0) };
    }
}
