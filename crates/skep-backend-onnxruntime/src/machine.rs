//! What of the machine decides how the library lays memory out.

/// Channels in a block of the library's layout of images, as it chooses it on this machine: 16 with AVX-512, 8 with AVX, 1
/// where it has no such layout (`MlasNchwcGetBlockSize`).
#[must_use]
pub fn channel_block() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return 16;
        }
        if is_x86_feature_detected!("avx") {
            return 8;
        }
    }
    1
}
