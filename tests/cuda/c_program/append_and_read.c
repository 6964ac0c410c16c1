/* tests/cuda/c_program/append_and_read.c: what a serving engine does with a KV cache, for one layer and one
 * sequence, from C99. `append_and_read CODEBOOK.flat` opens on the CPU what `kvcal export --format flat` wrote,
 * allocates a cache by its layout, appends a prompt of 40 made-up tokens and three more one by one, reads all of
 * them back in float32, and prints what they cost: bits per value and the relative error of keys and values,
 * |read - given|^2 / |given|^2. Exit code 1 with a sentence where something fails.
 */
#define _POSIX_C_SOURCE 200112L /* posix_memalign(): C99 has no allocation that is aligned */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/kernels/kvcal_cuda.h"

enum { PAGE_TOKENS = 16, PAGES = 3, PROMPT = 40, TOKENS = 43 };

static void check(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "append_and_read: %s\n", what);
  exit(1);
}
static void must(KvcalStatus status) {
  check(status == KVCAL_OK, kvcal_last_error());
}

static void* allocate(size_t bytes) {
  void* memory;
  check(posix_memalign(&memory, KVCAL_RECORD_ALIGNMENT, bytes + 1) == 0, "out of memory");
  return memset(memory, 0xa5, bytes); /* a cache may hold anything */
}

/* Numbers between -2 and 2, most of them small; one channel is always large. */
static float* made_up(size_t count, uint32_t seed) {
  float* x = allocate(count * sizeof *x);
  for (size_t i = 0; i < count; ++i) {
    const float u = (float)(seed = seed * 1664525u + 1013904223u) / 2147483648.0f - 1.0f;
    x[i] = 2.0f * u * u * u + (i % 64 == 5 ? 4.0f : 0.0f);
  }
  return x;
}

static double relative_error(const float* read, const float* given, size_t count) {
  double error = 0, size = 0;
  for (size_t i = 0; i < count; ++i) {
    const double x = given[i], difference = read[i] - x;
    error += difference * difference, size += x * x;
  }
  return error / size;
}

int main(int argc, char** argv) {
  static unsigned char flat[1 << 24]; /* no more than 16 MiB */
  FILE* file = argc == 2 ? fopen(argv[1], "rb") : NULL;
  check(file != NULL, "no file to read; usage: append_and_read CODEBOOK.flat");
  const size_t bytes = fread(flat, 1, sizeof flat, file);
  fclose(file);
  KvcalCodebook* codebook;
  KvcalCodebookInfo info;
  KvcalLayerInfo layer;
  must(kvcal_codebook_open(flat, bytes, KVCAL_DEVICE_CPU, &codebook));
  must(kvcal_codebook_info(codebook, &info));
  must(kvcal_layer_info(codebook, 0, &layer));
  /* Three pages, and the sinks of one sequence, whose first tokens are in page 2. */
  KvcalCounters counters = {0, 0, 0, 0, 0, 0, 0};
  KvcalCache cache = {.pages = PAGES, .sink_slots = 1, .counters = &counters};
  const uint32_t slots = KVCAL_DEFAULT_SLOTS;
  must(kvcal_record_layout(codebook, 0, PAGE_TOKENS, slots, slots, &cache.layout));
  const int64_t heads = layer.kv_heads, key_row = heads * layer.key_dim, value_row = heads * layer.value_dim;
  cache.records = allocate(PAGES * heads * cache.layout.record_bytes);
  cache.key_sinks = allocate(info.sinks * key_row * 2);
  cache.value_sinks = allocate(info.sinks * value_row * 2);
  const int32_t pages[PAGES] = {2, 0, 1};
  const KvcalTable table = {1, PAGES, pages, NULL};

  /* The prompt, then token by token. */
  float *keys = made_up(TOKENS * key_row, 1), *values = made_up(TOKENS * value_row, 2);
  for (int32_t length = 0, count = PROMPT; length < TOKENS; length += count, count = 1) {
    const int32_t starts[2] = {length, length + count};
    const KvcalRows new_keys = {keys, KVCAL_FLOAT32, key_row, layer.key_dim};
    const KvcalRows new_values = {values, KVCAL_FLOAT32, value_row, layer.value_dim};
    const KvcalNewTokens tokens = {TOKENS, starts, &length, (uint32_t)count, new_keys, new_values};
    must(kvcal_append(codebook, 0, &cache, &table, &tokens, NULL));
  }
  /* All pages, one after the other. */
  const int32_t length = TOKENS;
  const KvcalRange range = {0, PAGES, &length, NULL};
  float* read_keys = allocate(PAGES * PAGE_TOKENS * key_row * sizeof(float));
  float* read_values = allocate(PAGES * PAGE_TOKENS * value_row * sizeof(float));
  const int64_t key_page = PAGE_TOKENS * key_row, value_page = PAGE_TOKENS * value_row;
  const KvcalPages to_keys = {read_keys, KVCAL_FLOAT32, PAGES, key_page, key_row, layer.key_dim};
  const KvcalPages to_values = {read_values, KVCAL_FLOAT32, PAGES, value_page, value_row, layer.value_dim};
  must(kvcal_dequantise(codebook, 0, &cache, &table, &range, &to_keys, &to_values, NULL));

  printf("layers %u\nbits %u\nrecord_bytes %u\n", info.layers, info.bits, cache.layout.record_bytes);
  printf("bits_per_value %.3f\n", cache.layout.record_bytes * 0.5 / (layer.key_dim + layer.value_dim));
  printf("key_error %.5f\n", relative_error(read_keys, keys, TOKENS * key_row));
  printf("value_error %.5f\n", relative_error(read_values, values, TOKENS * value_row));
  kvcal_codebook_close(codebook);
  return 0;
}
