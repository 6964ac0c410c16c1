// base/cpu.h: what the CPU that this process runs on is good at.
#pragma once

namespace kvcal::base {

/// Whether this is a CPU of Intel's.
[[nodiscard]] bool cpu_is_intel();

/// Whether this CPU has instructions that multiply bfloat16 (AVX-512 BF16 or AMX on x86-64, BF16 on Arm).
[[nodiscard]] bool multiplies_bfloat16();

/// Whether this CPU has AVX-512 with the parts that all but the first have: F, BW, DQ and VL.
[[nodiscard]] bool has_avx512();

}  // namespace kvcal::base
