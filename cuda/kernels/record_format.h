/* cuda/kernels/record_format.h: how a KV cache is stored in pages: the layout of a record, byte by byte.
 *
 * C99, C++ and CUDA. A record is the page (16 or 64 tokens) of one kv head of one layer: its keys before RoPE and its
 * values, as codes of 2, 3 or 4 bits (not the same for both, perhaps), with what is needed to read them. A cache is [pages][kv_heads][record_bytes],
 * aligned to 128 bytes; which page holds which tokens is the serving system's affair. All numbers are little-endian.
 *
 *   offset          bytes                                what
 *   0               page_tokens * key_dim * key_bits / 8     codes of keys, tile by tile
 *   value_codes     page_tokens * value_dim * value_bits / 8 codes of values, tile by tile
 *   value_affines   page_tokens * 4                      of each token's value: { fp16 scale, fp16 zero }
 *   key_outliers    page_tokens / 16 * key_slots * 4     slots of each tile: { uint16 index, fp16 delta }
 *   value_outliers  value_dim / 16 * value_slots * 4     slots of each strip of 16 channels, over the whole page
 *   record_bytes                                         the end, rounded up to 128; the bytes between are not written
 *
 * A number reads as level(code) * scale + zero, both rounded to float32 and never fused (codec_math.h), then to fp16, at
 * most +-65504; plus its delta if it has one, rounded and limited the same. Keys' scales and zeros are the layer's, by
 * channel (flat_format.h). A slot whose delta is 0 is empty; all of its bits are.
 * A page's first tokens may be sinks, which are kept elsewhere in fp16: their codes and scales here are 0.
 *
 * Codes lie so that a warp's load of a tile is the A operand of mma.m16n8k16 for the attention that reads it. A tile is
 * 16 tokens. Lane l = 4 g + t (g 0..7, t 0..3) owns dim * bits / 64 words of 32 bits. Steps s = 0 .. dim / 16 - 1 hold 8
 * codes of each lane, of register j = 0..3 and half e = 0..1 of the operand:
 *
 *   keys     token g + 8 (j & 1),       channel 8 s + 2 t + e + (j >> 1) * dim / 2    (a RoPE pair: j and j + 2)
 *   values   token 2 t + e + 8 (j >> 1), channel 16 s + g + 8 (j & 1)
 *
 * The code of (j, e) lies in nibble 2 j + e (bits 4 n to 4 n + 3) of:
 *
 *   4 bits   word s
 *   3 bits   with G = s / 4, q = s % 4: q < 3: word 3 G + q, the nibble's low three bits;
 *            q = 3: bit b of the code is the nibble's top bit in word 3 G + b
 *   2 bits   word s / 2: bits 2 (s % 2) and 2 (s % 2) + 1 of the nibble
 *
 * Words lie in groups of four (16 bytes a lane, 512 a warp), then what is left in a group of two (8 bytes a lane), then
 * of one: word w of lane l in group i begins at 512 i + 16 l + 4 (w % 4).
 *
 * An outlier's index is row * key_dim + channel in a tile of keys; token * 16 + channel % 16 in a strip of values, the
 * token counted from the page's first. Slots are filled by falling |delta|, of equal ones by rising index; an outlier
 * that finds no room falls to the nearest code, and is counted. A reader must not count on their order.
 */
#ifndef KVCAL_CUDA_RECORD_FORMAT_H
#define KVCAL_CUDA_RECORD_FORMAT_H

#include <stdint.h>

/* The bytes of a record are those of version 1, whose keys and values had codes of the same bits, and of version 2, whose
 * values were never turned. */
#define KVCAL_RECORD_VERSION 3
#define KVCAL_RECORD_ALIGNMENT 128
#define KVCAL_TILE_TOKENS 16
#define KVCAL_STRIP_CHANNELS 16
#define KVCAL_MOST_SLOTS 64

/* Made by kvcal_record_layout(). */
typedef struct KvcalRecordLayout {
  uint32_t version;              /* KVCAL_RECORD_VERSION */
  uint32_t key_bits, value_bits; /* 2, 3 or 4 */
  uint32_t key_dim, value_dim;   /* 64, 128 or 256 */
  uint32_t page_tokens;          /* 16 or 64 */
  uint32_t key_slots;   /* of a tile of keys: a multiple of 4, at most 64; 0: outliers are not kept */
  uint32_t value_slots; /* of a strip of values: the same */
  /* Channels of a head's value that a Walsh-Hadamard matrix over the root of its size turns together, sinks too, before
   * thresholds are found (flat_format.h); 0: none. kvcal_dequantise() turns back. */
  uint32_t value_rotation_block;
  uint32_t value_codes, value_affines, key_outliers, value_outliers; /* offsets in bytes */
  uint32_t record_bytes;
} KvcalRecordLayout;

/* What an append could not keep. Written by the kernels, never set to 0 by them. */
typedef struct KvcalCounters {
  uint64_t key_outliers; /* that were met, and a slot was asked for */
  uint64_t value_outliers;
  uint64_t dropped_keys;   /* of these: fell to the nearest code, because their tile's slots were full */
  uint64_t dropped_values; /* the same for values */
  uint64_t not_finite;     /* numbers that were NaN or infinite: stored as 0 */
  uint64_t saturated;      /* numbers or deltas beyond fp16: stored as +-65504 */
  uint64_t refused;        /* parts of the work that were left out: a page, a row or a length out of range */
} KvcalCounters;

#endif
