/* cuda/kernels/flat_format.h: one datatype of a codebook as a block of bytes that kernels read where it lies.
 *
 * C99, C++ and CUDA. A file is this header, the layers, then arrays; it can be mapped, or copied to a device in one
 * piece, and used as it is: every offset counts bytes from the start of the block, every array begins at a multiple of
 * 64. All numbers are little-endian. Of version 1 where all layers have codes of the same bits and outliers; of version 2 where
 * a recipe chose them for each tensor: then they stand at the layer, and the header's are 0. Of version 3 where values are kept
 * turned: as 2, and the layer says in which blocks. A later version may append fields to both structs: header_bytes and
 * layer_bytes say how long they are; refuse any other.
 */
#ifndef KVCAL_CUDA_FLAT_FORMAT_H
#define KVCAL_CUDA_FLAT_FORMAT_H

#include <stdint.h>

#define KVCAL_FLAT_MAGIC "KVCALFLT"
#define KVCAL_FLAT_VERSION 1
#define KVCAL_FLAT_VERSION_MIXED 2
#define KVCAL_FLAT_VERSION_TURNED 3
#define KVCAL_FLAT_ALIGNMENT 64

typedef struct KvcalFlatHeader {
  char magic[8];          /* KVCAL_FLAT_MAGIC, without its zero byte */
  uint32_t version;       /* KVCAL_FLAT_VERSION, ..._MIXED or ..._TURNED */
  uint32_t header_bytes;  /* sizeof(KvcalFlatHeader) */
  uint64_t file_bytes;    /* of the whole block */
  uint64_t checksum;      /* 64-bit FNV-1a of the bytes from header_bytes on */
  uint64_t layers_offset; /* of KvcalFlatLayer[layers] */
  uint32_t layers;        /* those with a cache, by index */
  uint32_t
      layer_bytes; /* the distance from one to the next: KVCAL_FLAT_LAYER_BYTES, ..._MIXED, sizeof(KvcalFlatLayer) */
  uint32_t bits;           /* 2, 3 or 4; from version 2 on: 0 */
  uint32_t sinks;          /* first tokens of a sequence, kept exact */
  uint32_t value_per_head; /* 1: a value's thresholds are found for each kv head, 0: over all of them */
  float outlier_fraction;  /* 0: nothing is an outlier; from version 2 on: 0 */
  char content_sha256[64]; /* of the codebook, as are: */
  char config_sha256[64];  /* of the model's configuration */
  char weights_sha256[64]; /* of its weights */
} KvcalFlatHeader;

/* Keys are taken before RoPE. Channel c of head h is h * dim + c. */
typedef struct KvcalFlatLayer {
  uint32_t index;
  uint32_t kv_heads, key_dim, value_dim;
  int64_t window;       /* of sliding-window attention; 0: none */
  uint64_t key_affines; /* [kv_heads * key_dim] of { fp16 scale, fp16 zero }: u = (x - zero) / scale */
  uint64_t key_lower;   /* float [kv_heads * key_dim]: below it a number is an outlier; 0 where nothing is */
  uint64_t key_upper;   /* the same, above it */
  uint64_t key_midpoints; /* float [2^bits - 1]: a code is the number of midpoints below u */
  uint64_t key_levels;    /* float [2^bits]: a code reads as level * scale + zero, Q-Norm applied */
  uint64_t value_midpoints;
  uint64_t value_levels;
  /* From version 2 on: in the place of the header's. */
  uint32_t key_bits, value_bits;
  float key_outliers, value_outliers; /* fractions */
  /* From version 3 on: channels of a head's value that a Walsh-Hadamard matrix over the root of its size turns together, a
   * power of two that divides value_dim, before all else, sinks too; 0: none. It is its own inverse. */
  uint32_t value_rotation_block;
  uint32_t reserved; /* 0 */
} KvcalFlatLayer;

/* What versions 1 and 2 have of a layer. */
#define KVCAL_FLAT_LAYER_BYTES 80
#define KVCAL_FLAT_LAYER_BYTES_MIXED 96

#endif
