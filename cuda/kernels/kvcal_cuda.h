/* cuda/kernels/kvcal_cuda.h: a KV cache in a codebook's form, for serving engines: the C API.
 *
 *   kvcal_codebook_open()    the bytes that `kvcal export --format flat` writes, checked, and copied to the device
 *   kvcal_record_layout()    how large a page of it is (record_format.h); the engine allocates
 *   kvcal_append()           new keys, before RoPE, and values into pages: one token for each sequence, or prompts
 *   kvcal_dequantise()       pages back to fp16, bf16 or float32, keys still before RoPE, for the engine's own attention
 *   kvcal_counters()         what could not be kept
 *
 * C99. Nothing throws, nothing is printed; a status other than KVCAL_OK comes with a sentence, kvcal_last_error().
 * With KVCAL_DEVICE_CUDA, pointers marked [device] are to memory of the current CUDA device, which must be the one that was
 * current when the codebook was opened; calls only enqueue work on
 * `stream`, and what is wrong with numbers that only the device sees (a page out of range, lengths that disagree) is left
 * out and counted: kvcal_counters() tells. With KVCAL_DEVICE_CPU all pointers are to host memory, the same source runs
 * lane by lane on the CPU, slowly, before the call returns, and such a thing is its status, too.
 * A value's thresholds are always found for each kv head, whatever the codebook was made with: calibrate with
 * --value-scope head.
 * Values of a codebook that keeps them turned (value_rotation_block of the layout) are turned by kvcal_append() and turned back
 * by kvcal_dequantise(); an attention that reads records itself turns its output back, once for each query head.
 * A codebook may be used by several threads at once; a page by one call at a time.
 */
#ifndef KVCAL_CUDA_H
#define KVCAL_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "cuda/kernels/record_format.h"

#if defined(__GNUC__)
#define KVCAL_API __attribute__((visibility("default")))
#else
#define KVCAL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define KVCAL_CUDA_VERSION 1

/* Of 32 bits; said to C++, where a number that is no enumerator would be undefined else, not refused. */
#ifdef __cplusplus
#define KVCAL_32_BITS : int32_t
#else
#define KVCAL_32_BITS
#endif

typedef enum KvcalStatus KVCAL_32_BITS {
  KVCAL_OK = 0,
  KVCAL_INVALID_ARGUMENT = 1, /* a null pointer, a number out of range, a type or layout that does not fit */
  KVCAL_INVALID_CODEBOOK = 2, /* no flat codebook, of another version, damaged, or without a kernel */
  KVCAL_INVALID_DATA = 3,     /* a page, a row or a length out of range; the rest of the work is done */
  KVCAL_NO_DEVICE = 4,        /* built without CUDA, or there is no driver or no device */
  KVCAL_CUDA_ERROR = 5,       /* the CUDA runtime says so */
  KVCAL_OUT_OF_MEMORY = 6
} KvcalStatus;

typedef enum KvcalDevice KVCAL_32_BITS { KVCAL_DEVICE_CPU = 0, KVCAL_DEVICE_CUDA = 1 } KvcalDevice;

typedef enum KvcalType KVCAL_32_BITS { KVCAL_FLOAT16 = 0, KVCAL_BFLOAT16 = 1, KVCAL_FLOAT32 = 2 } KvcalType;

/* Opaque; on a CUDA device it holds its tables there. */
typedef struct KvcalCodebook KvcalCodebook;

typedef struct KvcalCodebookInfo {
  uint32_t layers;
  uint32_t bits;          /* 0: each layer's own; kvcal_record_layout() has them */
  uint32_t sinks;         /* first tokens of a sequence, kept in fp16 */
  float outlier_fraction; /* 0 too where each tensor has its own */
  KvcalDevice device;
} KvcalCodebookInfo;

typedef struct KvcalLayerInfo {
  uint32_t index; /* of the model's layer */
  uint32_t kv_heads, key_dim, value_dim;
  int64_t window; /* of sliding-window attention; 0: none */
} KvcalLayerInfo;

/* The cache of one layer. */
typedef struct KvcalCache {
  KvcalRecordLayout layout;
  /* [device] [pages][kv_heads][layout.record_bytes], any contents; aligned to 128, on the CPU to 16 */
  void* records;
  uint64_t pages;
  /* Sinks are no part of the pages: who shares or moves a sequence's first page does the same with its slot. */
  void* key_sinks; /* [device] fp16 [sink_slots][kv_heads][sinks][key_dim], before RoPE; null without sinks */
  void* value_sinks; /* [device] fp16 [sink_slots][kv_heads][sinks][value_dim]; turned as all values are */
  uint64_t sink_slots;
  KvcalCounters* counters; /* [device] set to 0 by the engine; several caches may share it */
} KvcalCache;

/* Which pages hold which tokens of a batch. */
typedef struct KvcalTable {
  uint32_t sequences;
  uint32_t max_pages;
  const int32_t* pages;      /* [device] [sequences][max_pages]: of the cache; read as far as lengths reach */
  const int32_t* sink_slots; /* [device] [sequences]; null: sequence i has slot i */
} KvcalTable;

/* Keys or values. Number (row, head, channel) stands at row * row_stride + head * head_stride + channel. */
typedef struct KvcalRows {
  const void* data; /* [device] aligned to 16 bytes */
  KvcalType type;
  int64_t row_stride;  /* in numbers; a multiple of 8 */
  int64_t head_stride; /* in numbers; a multiple of 8 */
} KvcalRows;

/* New tokens of a batch: sequence i brings rows starts[i] to starts[i + 1] and had lengths[i] tokens before. */
typedef struct KvcalNewTokens {
  int64_t rows;
  const int32_t* starts;   /* [device] [sequences + 1] */
  const int32_t* lengths;  /* [device] [sequences] */
  uint32_t max_new_tokens; /* no sequence brings more: 1 when decoding; at most rows */
  KvcalRows keys, values;  /* data null: these are not brought; not both */
} KvcalNewTokens;

/* Pages to write. Number (page, token, head, channel) goes to page * page_stride + token * token_stride +
 * head * head_stride + channel. */
typedef struct KvcalPages {
  void* data; /* [device] aligned to 16 bytes */
  KvcalType type;
  uint64_t pages;                                 /* that there is room for */
  int64_t page_stride, token_stride, head_stride; /* in numbers; multiples of 8 */
} KvcalPages;

/* What is read back: pages first_page to first_page + pages of each sequence, as far as it reaches; at most max_pages. */
typedef struct KvcalRange {
  uint32_t first_page, pages;
  const int32_t* lengths; /* [device] [sequences]: tokens of each */
  const int32_t* targets; /* [device] [sequences][pages]; null: page p of sequence i goes to i * pages + p */
} KvcalRange;

/* The last status other than KVCAL_OK of this thread, in a sentence; "" where there was none. */
KVCAL_API const char* kvcal_last_error(void);

/* KVCAL_CUDA_VERSION of the library. */
KVCAL_API uint32_t kvcal_cuda_version(void);

/* KVCAL_OK where this build and this machine can serve `device`. */
KVCAL_API KvcalStatus kvcal_device_status(KvcalDevice device);

/* flat: the bytes of one datatype (flat_format.h); they are copied. Sets *codebook to null where it fails. */
KVCAL_API KvcalStatus kvcal_codebook_open(const void* flat, size_t bytes, KvcalDevice device,
                                          KvcalCodebook** codebook);
/* Waits until the device is done with it; a graph that captured calls with it must not be replayed after. Null is allowed.
 * Neither open nor close while a graph is captured. */
KVCAL_API void kvcal_codebook_close(KvcalCodebook* codebook);
KVCAL_API KvcalStatus kvcal_codebook_info(const KvcalCodebook* codebook, KvcalCodebookInfo* info);
/* layer: 0 to layers - 1, the codebook's own order. */
KVCAL_API KvcalStatus kvcal_layer_info(const KvcalCodebook* codebook, uint32_t layer, KvcalLayerInfo* info);

/* Slots that hold nearly all outliers of the codebook's fraction, for kvcal_record_layout(). */
#define KVCAL_DEFAULT_SLOTS UINT32_MAX

/* page_tokens: 16 or 64. key_slots, value_slots: multiples of 4 up to 64, or KVCAL_DEFAULT_SLOTS. */
KVCAL_API KvcalStatus kvcal_record_layout(const KvcalCodebook* codebook, uint32_t layer, uint32_t page_tokens,
                                          uint32_t key_slots, uint32_t value_slots,
                                          KvcalRecordLayout* layout);

/* New tokens go behind lengths[i]; what a page held from there on is forgotten, so that a sequence may be cut back. What a
 * page holds before its row 0 comes does not matter. stream: a cudaStream_t; null is the default stream, and all that
 * KVCAL_DEVICE_CPU takes. */
KVCAL_API KvcalStatus kvcal_append(const KvcalCodebook* codebook, uint32_t layer, const KvcalCache* cache,
                                   const KvcalTable* table, const KvcalNewTokens* tokens, void* stream);

/* keys, values: null: these are not read; not both. Rows behind a sequence's end are written as 0 in the pages that it
 * begins, other pages are left alone. What finds no room in one of keys and values is left out of both. */
KVCAL_API KvcalStatus kvcal_dequantise(const KvcalCodebook* codebook, uint32_t layer, const KvcalCache* cache,
                                       const KvcalTable* table, const KvcalRange* range,
                                       const KvcalPages* keys, const KvcalPages* values, void* stream);

/* The counters as they are once the work on `stream` is done, for which it waits (not while a graph is captured). They are
 * filled in where the status is KVCAL_INVALID_DATA, too: something was refused since the engine set them to 0. */
KVCAL_API KvcalStatus kvcal_counters(const KvcalCodebook* codebook, const KvcalCache* cache, void* stream,
                                     KvcalCounters* counters);

#ifdef __cplusplus
}
#endif

#endif
