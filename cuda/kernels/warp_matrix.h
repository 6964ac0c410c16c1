// cuda/kernels/warp_matrix.h: what a warp's lanes do together with matrices of fp16, and with bytes: the same
// calls for LockstepWarp on a CPU, written from the tables of NVIDIA's PTX ISA, and for DeviceWarp on a GPU.
//
// Lane l = 4 g + t (g 0..7, t 0..3); PTX calls g groupID and t threadID_in_group. A register of 32 bits holds
// two fp16, half e = 0 in the low bits. Which numbers are lane l's (PTX ISA "Matrix Fragments for
// mma.m16n8k8", "... for mma.m16n8k16 with floating point type", "ldmatrix", "movmatrix"; k = 8 or 16):
//
//   A     [16][k]   register j < k / 4, half e:   row g + 8 (j & 1),    column 2 t + e + 8 (j >> 1)
//   B     [k][8]    register j < k / 8, half e:   row 2 t + e + 8 j,    column g
//   C, D  [16][8]   float i < 4:                  row g + 8 (i >> 1),   column 2 t + (i & 1)
//   8x8   [8][8]    of ldmatrix and movmatrix, half e:   row g,         column 2 t + e
//
// So a row-major A is 8x8 matrices loaded as they are; a B that lies as [k][8] is loaded transposed; and
// floats 2 j and 2 j + 1 of a C, rounded to fp16, are after transpose_8x8() register j of a B whose k are C's
// rows.
//
// All lanes must come together: no call may stand in a branch that depends on the lane, or inside each().
// What goes in and out is PerLane<...> of the warp; an output may be the same object as an input.
//
//   mma_m16n8k16(warp, d, a, b, c)   D = A B + C; a: Registers<4>, b: Registers<2>, c and d: Accumulators
//   mma_m16n8k8(warp, d, a, b, c)    the same with a: Registers<2>, b: Registers<1>
//   load_matrices<N, Transposed>(warp, rows)
//                                    N = 1, 2 or 4 matrices 8x8 of shared memory: Registers<N>, matrix i in
//                                    register i. rows: const std::uint16_t*; lane 8 i + r's is row r of
//                                    matrix i: 8 fp16 on an address that 16 divides. Rows may lie anywhere,
//                                    and be the same; those of lanes from 8 N on are not looked at.
//   transpose_8x8(warp, x)           of a matrix in registers; x: std::uint32_t
//   shuffle(warp, x, source)         lane source[lane]'s x; source: unsigned; x: int, unsigned or float
//   shuffle_xor(warp, x, mask)       lane (lane ^ mask)'s x
//   shuffle_up(warp, x, distance)    lane (lane - distance)'s x; a lane's own where that is below 0
//   shuffle_down(warp, x, distance)  lane (lane + distance)'s x; a lane's own where that is above 31
//                                    Of source, mask and distance the low five bits count (PTX "shfl.sync").
//
// And for one lane by itself: permute_bytes().
//
// The warps agree bit by bit but for mma: products of fp16 are exact, but a GPU adds them in an order and
// with a width that PTX leaves open, where LockstepWarp adds in double, C first, then by rising k, and rounds
// to float once. Results agree within a few roundings of the largest number added.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/kernels/codec_math.h"
#include "cuda/kernels/warp_lockstep.h"
#ifdef __CUDACC__
#include "cuda/kernels/warp_device.h"
#endif

namespace kvcal::codec {

/// A lane's part of a matrix of fp16.
template <int N>
struct Registers {
  std::uint32_t r[N];
};

/// A lane's part of C or D.
struct Accumulators {
  float f[4];
};

/// PTX ISA "prmt", default mode. Byte i of the result: for nibble n = selector >> 4 i & 15, byte n & 7 of a
/// (0 to 3) and b (4 to 7); if n & 8, that byte's sign bit eight times instead. The low 16 bits of selector
/// count. (CUDA's __byte_perm() knows no signs.)
KVCAL_HOST_DEVICE std::uint32_t permute_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
#ifdef __CUDA_ARCH__
  std::uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
#else
  const std::uint64_t bytes = a | std::uint64_t{b} << 32;
  std::uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const std::uint32_t nibble = selector >> (4 * i) & 15U;
    std::uint32_t byte = static_cast<std::uint32_t>(bytes >> (8 * (nibble & 7U))) & 0xffU;
    if ((nibble & 8U) != 0) byte = (byte & 0x80U) != 0 ? 0xffU : 0U;
    result |= byte << (8 * i);
  }
  return result;
#endif
}

// On a CPU.

namespace lockstep {

template <typename T>
using PerLane = LockstepWarp::PerLane<T>;

inline std::uint16_t half_of(std::uint32_t pair, unsigned e) {
  return static_cast<std::uint16_t>(pair >> (16 * e));
}

template <unsigned K>
void multiply_add(PerLane<Accumulators>& d, const PerLane<Registers<K / 4>>& a,
                  const PerLane<Registers<K / 8>>& b, const PerLane<Accumulators>& c) {
  double left[16][K], right[8][K];  // A and the transpose of B
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned e = 0; e < 2; ++e) {
      for (unsigned j = 0; j < K / 4; ++j)
        left[g + 8 * (j & 1U)][2 * t + e + 8 * (j >> 1)] = half_to_float(half_of(a[lane].r[j], e));
      for (unsigned j = 0; j < K / 8; ++j)
        right[g][2 * t + e + 8 * j] = half_to_float(half_of(b[lane].r[j], e));
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const double* row = left[lane / 4 + 8 * (i >> 1)];
      const double* column = right[2 * (lane % 4) + (i & 1U)];
      double sum = c[lane].f[i];
      for (unsigned k = 0; k < K; ++k) sum += row[k] * column[k];
      d[lane].f[i] = static_cast<float>(sum);
    }
  }
}

/// x of the lane that source(lane) names; a lane's own where there is none.
template <typename T, typename Source>
PerLane<T> move(const PerLane<T>& x, const Source& source) {
  static_assert(sizeof(T) == 4);
  PerLane<T> moved;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned from = source(lane);
    moved[lane] = x[from < kLanes ? from : lane];
  }
  return moved;
}

}  // namespace lockstep

inline void mma_m16n8k16(const LockstepWarp&, lockstep::PerLane<Accumulators>& d,
                         const lockstep::PerLane<Registers<4>>& a, const lockstep::PerLane<Registers<2>>& b,
                         const lockstep::PerLane<Accumulators>& c) {
  lockstep::multiply_add<16>(d, a, b, c);
}

inline void mma_m16n8k8(const LockstepWarp&, lockstep::PerLane<Accumulators>& d,
                        const lockstep::PerLane<Registers<2>>& a, const lockstep::PerLane<Registers<1>>& b,
                        const lockstep::PerLane<Accumulators>& c) {
  lockstep::multiply_add<8>(d, a, b, c);
}

/// Throws std::logic_error for a row that a GPU would fault on.
template <int N, bool Transposed>
lockstep::PerLane<Registers<N>> load_matrices(const LockstepWarp&,
                                              const lockstep::PerLane<const std::uint16_t*>& rows) {
  static_assert(N == 1 || N == 2 || N == 4);
  for (unsigned lane = 0; lane < 8 * N; ++lane) {
    if (rows[lane] == nullptr || reinterpret_cast<std::uintptr_t>(rows[lane]) % 16 != 0)
      throw std::logic_error("load_matrices: the row of lane " + std::to_string(lane) +
                             " does not lie on an address that 16 divides");
  }
  lockstep::PerLane<Registers<N>> x;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < N; ++i) {
      for (unsigned e = 0; e < 2; ++e) {
        const std::uint32_t half = Transposed ? rows[8 * i + 2 * t + e][g] : rows[8 * i + g][2 * t + e];
        x[lane].r[i] |= half << (16 * e);
      }
    }
  }
  return x;
}

inline lockstep::PerLane<std::uint32_t> transpose_8x8(const LockstepWarp&,
                                                      const lockstep::PerLane<std::uint32_t>& x) {
  lockstep::PerLane<std::uint32_t> transposed;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned row = lane / 4, t = lane % 4;
    for (unsigned e = 0; e < 2; ++e) {
      const std::uint32_t half = lockstep::half_of(x[4 * (2 * t + e) + row / 2], row % 2);
      transposed[lane] |= half << (16 * e);
    }
  }
  return transposed;
}

template <typename T>
lockstep::PerLane<T> shuffle(const LockstepWarp&, const lockstep::PerLane<T>& x,
                             const lockstep::PerLane<unsigned>& source) {
  return lockstep::move(x, [&](unsigned lane) { return source[lane] % kLanes; });
}
template <typename T>
lockstep::PerLane<T> shuffle_xor(const LockstepWarp&, const lockstep::PerLane<T>& x, unsigned mask) {
  return lockstep::move(x, [=](unsigned lane) { return lane ^ mask % kLanes; });
}
template <typename T>
lockstep::PerLane<T> shuffle_up(const LockstepWarp&, const lockstep::PerLane<T>& x, unsigned distance) {
  // Below 0 wraps to beyond 31.
  return lockstep::move(x, [=](unsigned lane) { return lane - distance % kLanes; });
}
template <typename T>
lockstep::PerLane<T> shuffle_down(const LockstepWarp&, const lockstep::PerLane<T>& x, unsigned distance) {
  return lockstep::move(x, [=](unsigned lane) { return lane + distance % kLanes; });
}

// On a GPU: PTX ISA "mma", "ldmatrix", "movmatrix", "shfl.sync". volatile: the compiler must not move what
// all lanes do together into a branch.

#ifdef __CUDACC__

__device__ __forceinline__ void mma_m16n8k16(const DeviceWarp&, DeviceWarp::PerLane<Accumulators>& d,
                                             const DeviceWarp::PerLane<Registers<4>>& a,
                                             const DeviceWarp::PerLane<Registers<2>>& b,
                                             const DeviceWarp::PerLane<Accumulators>& c) {
  const std::uint32_t *x = a.value.r, *y = b.value.r;
  const float* z = c.value.f;
  float* f = d.value.f;
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(f[0]), "=f"(f[1]), "=f"(f[2]), "=f"(f[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]), "f"(z[0]), "f"(z[1]), "f"(z[2]),
        "f"(z[3]));
}

__device__ __forceinline__ void mma_m16n8k8(const DeviceWarp&, DeviceWarp::PerLane<Accumulators>& d,
                                            const DeviceWarp::PerLane<Registers<2>>& a,
                                            const DeviceWarp::PerLane<Registers<1>>& b,
                                            const DeviceWarp::PerLane<Accumulators>& c) {
  const std::uint32_t* x = a.value.r;
  const float* z = c.value.f;
  float* f = d.value.f;
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
      : "=f"(f[0]), "=f"(f[1]), "=f"(f[2]), "=f"(f[3])
      : "r"(x[0]), "r"(x[1]), "r"(b.value.r[0]), "f"(z[0]), "f"(z[1]), "f"(z[2]), "f"(z[3]));
}

template <int N, bool Transposed>
__device__ __forceinline__ DeviceWarp::PerLane<Registers<N>> load_matrices(
    const DeviceWarp&, const DeviceWarp::PerLane<const std::uint16_t*>& rows) {
  static_assert(N == 1 || N == 2 || N == 4);
  DeviceWarp::PerLane<Registers<N>> x;
  std::uint32_t* r = x.value.r;
  const auto row = static_cast<std::uint32_t>(__cvta_generic_to_shared(rows.value));
  // "memory": what others wrote before the last sync() must be there.
#define KVCAL_LDMATRIX(kind, registers, ...)                                   \
  asm volatile("ldmatrix.sync.aligned.m8n8." kind ".shared.b16 " registers ";" \
               : __VA_ARGS__                                                   \
               : "r"(row)                                                      \
               : "memory")
  if constexpr (N == 1 && Transposed) {
    KVCAL_LDMATRIX("x1.trans", "{%0}, [%1]", "=r"(r[0]));
  } else if constexpr (N == 1) {
    KVCAL_LDMATRIX("x1", "{%0}, [%1]", "=r"(r[0]));
  } else if constexpr (N == 2 && Transposed) {
    KVCAL_LDMATRIX("x2.trans", "{%0, %1}, [%2]", "=r"(r[0]), "=r"(r[1]));
  } else if constexpr (N == 2) {
    KVCAL_LDMATRIX("x2", "{%0, %1}, [%2]", "=r"(r[0]), "=r"(r[1]));
  } else if constexpr (Transposed) {
    KVCAL_LDMATRIX("x4.trans", "{%0, %1, %2, %3}, [%4]", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]));
  } else {
    KVCAL_LDMATRIX("x4", "{%0, %1, %2, %3}, [%4]", "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]));
  }
#undef KVCAL_LDMATRIX
  return x;
}

__device__ __forceinline__ DeviceWarp::PerLane<std::uint32_t> transpose_8x8(
    const DeviceWarp&, const DeviceWarp::PerLane<std::uint32_t>& x) {
  DeviceWarp::PerLane<std::uint32_t> transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed.value) : "r"(x.value));
  return transposed;
}

template <typename T>
__device__ __forceinline__ DeviceWarp::PerLane<T> shuffle(const DeviceWarp&, const DeviceWarp::PerLane<T>& x,
                                                          const DeviceWarp::PerLane<unsigned>& source) {
  static_assert(sizeof(T) == 4);
  return {__shfl_sync(0xffffffffU, x.value, static_cast<int>(source.value))};
}
template <typename T>
__device__ __forceinline__ DeviceWarp::PerLane<T> shuffle_xor(const DeviceWarp&,
                                                              const DeviceWarp::PerLane<T>& x,
                                                              unsigned mask) {
  static_assert(sizeof(T) == 4);
  return {__shfl_xor_sync(0xffffffffU, x.value, static_cast<int>(mask))};
}
template <typename T>
__device__ __forceinline__ DeviceWarp::PerLane<T> shuffle_up(const DeviceWarp&,
                                                             const DeviceWarp::PerLane<T>& x,
                                                             unsigned distance) {
  static_assert(sizeof(T) == 4);
  return {__shfl_up_sync(0xffffffffU, x.value, distance)};
}
template <typename T>
__device__ __forceinline__ DeviceWarp::PerLane<T> shuffle_down(const DeviceWarp&,
                                                               const DeviceWarp::PerLane<T>& x,
                                                               unsigned distance) {
  static_assert(sizeof(T) == 4);
  return {__shfl_down_sync(0xffffffffU, x.value, distance)};
}

#endif  // __CUDACC__

}  // namespace kvcal::codec
