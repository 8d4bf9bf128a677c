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

/// The instruction sets of this machine that the library may choose kernels, layouts and packed forms by, as one word.
pub(crate) fn instruction_sets() -> String {
    let mut word = std::env::consts::ARCH.to_owned();
    #[cfg(target_arch = "x86_64")]
    {
        let sets = [
            ("sse4.1", is_x86_feature_detected!("sse4.1")),
            ("avx", is_x86_feature_detected!("avx")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avxvnni", is_x86_feature_detected!("avxvnni")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
        ];
        for (name, _) in sets.iter().filter(|(_, has)| *has) {
            word.push('+');
            word.push_str(name);
        }
    }
    word
}
