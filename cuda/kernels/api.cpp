#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>

#include "cuda/kernels/codebook_handle.h"
#include "cuda/kernels/flat_reader.h"
#include "cuda/kernels/kvcal_cuda.h"
#include "cuda/kernels/launch.h"
#include "cuda/kernels/record_sizes.h"
#include "cuda/kernels/text.h"

namespace {

using namespace kvcal::codec;

thread_local std::string last_error;

/// A status with its sentence.
struct Failure {
  KvcalStatus status;
  std::string what;
};
using Checked = std::optional<Failure>;

Failure invalid(std::string what) {
  return {KVCAL_INVALID_ARGUMENT, std::move(what)};
}

/// Runs what a C function does. Nothing is thrown beyond here.
template <typename Body>
KvcalStatus guarded(const char* function, const Body& body) noexcept {
  try {
    const Checked failure = body();
    if (!failure) return KVCAL_OK;
    last_error = text(function, ": ", failure->what);
    return failure->status;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";  // short enough to need none
    return KVCAL_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    // What is left: the standard library's own, such as a length that no memory holds.
    try {
      last_error = text(function, ": ", error.what());
    } catch (...) {
    }
    return KVCAL_OUT_OF_MEMORY;
  }
}

bool is_aligned(const void* pointer, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

/// a * b * c, unless it is more than an object can have bytes.
std::optional<std::uint64_t> product(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result) || __builtin_mul_overflow(result, c, &result) ||
      result > INT64_MAX)
    return std::nullopt;
  return result;
}

Checked check_device(KvcalDevice device) {
  if (device == KVCAL_DEVICE_CPU) return {};
  if (device != KVCAL_DEVICE_CUDA) return invalid(text("there is no device of the number ", int{device}));
  std::string problem = device_problem();
  if (problem.empty()) return {};
  return Failure{KVCAL_NO_DEVICE, std::move(problem)};
}

Checked check_layer(const KvcalCodebook* codebook, std::uint32_t layer) {
  if (codebook == nullptr) return invalid("codebook is null");
  if (layer >= codebook->header().layers)
    return invalid(text("layer ", layer, "; the codebook has ", codebook->header().layers));
  return {};
}

Checked check_type(KvcalType type, const char* what) {
  if (type == KVCAL_FLOAT16 || type == KVCAL_BFLOAT16 || type == KVCAL_FLOAT32) return {};
  return invalid(text(what, ".type is ", int{type}, ", which is no KvcalType"));
}

/// The layer of the cache, and that the cache's layout is one of it.
Checked check_cache(const KvcalCodebook* codebook, std::uint32_t layer, const KvcalCache* cache) {
  if (Checked failure = check_layer(codebook, layer)) return failure;
  if (std::string problem = codebook->layer_problem(layer); !problem.empty())
    return Failure{KVCAL_INVALID_CODEBOOK, std::move(problem)};
  if (std::string problem = codebook->place_problem(); !problem.empty()) return invalid(std::move(problem));
  if (cache == nullptr) return invalid("cache is null");
  const KvcalRecordLayout& given = cache->layout;
  if (given.version != KVCAL_RECORD_VERSION)
    return invalid(text("records of version ", given.version, "; expected ", KVCAL_RECORD_VERSION));
  KvcalRecordLayout layout;
  std::string problem =
      make_layout(given.key_bits, given.value_bits, given.key_dim, given.value_dim, given.page_tokens,
                  given.key_slots, given.value_slots, given.value_rotation_block, layout);
  if (!problem.empty()) return invalid("cache.layout: " + problem);
  if (std::memcmp(&layout, &given, sizeof(layout)) != 0)
    return invalid("cache.layout: its offsets are not those of kvcal_record_layout()");
  const KvcalFlatLayer flat = codebook->layer(layer);
  if (layout.key_bits != flat.key_bits || layout.value_bits != flat.value_bits ||
      layout.key_dim != flat.key_dim || layout.value_dim != flat.value_dim) {
    return invalid(text("cache.layout is for ", layout.key_bits, " and ", layout.value_bits,
                        " bits and head dimensions ", layout.key_dim, " and ", layout.value_dim, "; layer ",
                        flat.index, " of the codebook has ", flat.key_bits, " and ", flat.value_bits, ", ",
                        flat.key_dim, " and ", flat.value_dim));
  }
  if (layout.value_rotation_block != flat.value_rotation_block) {
    return invalid(text("cache.layout is for values turned in blocks of ", layout.value_rotation_block,
                        ", 0: not turned; layer ", flat.index, " of the codebook has ",
                        flat.value_rotation_block));
  }
  if (cache->records == nullptr && cache->pages > 0) return invalid("cache.records is null");
  // What PyTorch allocates on the CPU is aligned to 64.
  const std::uintptr_t alignment = codebook->device() == KVCAL_DEVICE_CPU ? 16 : KVCAL_RECORD_ALIGNMENT;
  if (!is_aligned(cache->records, alignment))
    return invalid(text("cache.records is not aligned to ", alignment, " bytes"));
  if (!product(cache->pages, flat.kv_heads, layout.record_bytes))
    return invalid(text("cache.pages: ", cache->pages, " pages are more than memory can hold"));
  if (cache->counters == nullptr) return invalid("cache.counters is null");
  if (!is_aligned(cache->counters, alignof(KvcalCounters)))
    return invalid("cache.counters is not aligned to 8 bytes");
  const std::uint32_t sinks = codebook->header().sinks;
  if (sinks == 0) return {};
  if (cache->key_sinks == nullptr || cache->value_sinks == nullptr)
    return invalid(text("cache.key_sinks or value_sinks is null; the codebook keeps ", sinks, " sinks"));
  if (!is_aligned(cache->key_sinks, 2) || !is_aligned(cache->value_sinks, 2))
    return invalid("cache.key_sinks or value_sinks is not aligned to 2 bytes");
  const std::uint64_t widest = std::max(flat.key_dim, flat.value_dim);
  if (!product(cache->sink_slots, std::uint64_t{flat.kv_heads} * sinks, widest * 2))
    return invalid(text("cache.sink_slots: ", cache->sink_slots, " are more than memory can hold"));
  return {};
}

Checked check_aligned(const std::int32_t* numbers, const char* what) {
  if (is_aligned(numbers, alignof(std::int32_t))) return {};
  return invalid(text(what, " is not aligned to 4 bytes"));
}

Checked check_table(const KvcalTable* table) {
  if (table == nullptr) return invalid("table is null");
  if (table->sequences > INT32_MAX || table->max_pages > INT32_MAX)
    return invalid(text("table: ", table->sequences, " sequences of ", table->max_pages,
                        " pages; each is at most 2147483647"));
  if (table->pages == nullptr && table->sequences > 0 && table->max_pages > 0)
    return invalid("table.pages is null");
  if (Checked failure = check_aligned(table->pages, "table.pages")) return failure;
  return check_aligned(table->sink_slots, "table.sink_slots");
}

/// A warp's work is a page, or a tile, of a head.
Checked check_tasks(std::uint64_t sequences, std::uint64_t parts, std::uint64_t heads) {
  const std::optional<std::uint64_t> tasks = product(sequences, parts, heads);
  if (tasks && *tasks <= kMostTasks) return {};
  return invalid(text(sequences, " sequences x ", parts, " pages or tiles x ", heads,
                      " kv heads are more than ", kMostTasks, " parts of work: make it several calls"));
}

Checked check_stride(std::int64_t stride, std::uint64_t count, const char* what) {
  if (stride < 0 || stride % 8 != 0)
    return invalid(text(what, " is ", stride, "; a multiple of 8, at least 0"));
  if (!product(static_cast<std::uint64_t>(stride), count, 4))
    return invalid(text(what, ": ", stride, " times ", count, " is more than memory can hold"));
  return {};
}

Checked check_rows(const KvcalRows& rows, std::int64_t count, std::uint32_t heads, const std::string& what) {
  if (rows.data == nullptr) return {};  // not brought
  if (!is_aligned(rows.data, 16)) return invalid(what + ".data is not aligned to 16 bytes");
  if (Checked failure = check_type(rows.type, what.c_str())) return failure;
  if (Checked failure =
          check_stride(rows.row_stride, static_cast<std::uint64_t>(count), (what + ".row_stride").c_str()))
    return failure;
  return check_stride(rows.head_stride, heads, (what + ".head_stride").c_str());
}

Checked check_pages(const KvcalPages* pages, const KvcalRecordLayout& layout, std::uint32_t heads,
                    const std::string& what) {
  if (pages == nullptr) return {};  // not read
  if (pages->data == nullptr) return invalid(what + ".data is null");
  if (!is_aligned(pages->data, 16)) return invalid(what + ".data is not aligned to 16 bytes");
  if (Checked failure = check_type(pages->type, what.c_str())) return failure;
  if (Checked failure = check_stride(pages->page_stride, pages->pages, (what + ".page_stride").c_str()))
    return failure;
  if (Checked failure =
          check_stride(pages->token_stride, layout.page_tokens, (what + ".token_stride").c_str()))
    return failure;
  return check_stride(pages->head_stride, heads, (what + ".head_stride").c_str());
}

CacheView view_of(const KvcalCache& cache) {
  CacheView view;
  view.layout = cache.layout;
  view.records = static_cast<std::uint8_t*>(cache.records);
  view.pages = cache.pages;
  view.key_sinks = static_cast<std::uint16_t*>(cache.key_sinks);
  view.value_sinks = static_cast<std::uint16_t*>(cache.value_sinks);
  view.sink_slots = cache.sink_slots;
  view.counters = cache.counters;
  return view;
}

TableView view_of(const KvcalTable& table) {
  return {table.sequences, table.max_pages, table.pages, table.sink_slots};
}

NumbersView view_of(const KvcalRows& rows) {
  return {rows.data, rows.type, rows.row_stride, rows.head_stride};
}

PagesView view_of(const KvcalPages& pages) {
  return {pages.data, pages.type, pages.page_stride, pages.token_stride, pages.head_stride, pages.pages};
}

Checked refused(std::string what) {
  return Failure{KVCAL_INVALID_DATA, std::move(what)};
}

/// Why a page of a sequence, which holds sinks or not, cannot be worked on.
Checked find_wrong_place(const CacheView& cache, const TableView& table, std::uint32_t sequence,
                         std::int64_t page, bool has_sinks) {
  if (page >= table.max_pages)
    return refused(text("sequence ", sequence, " needs page ", page, "; max_pages is ", table.max_pages));
  const std::int64_t number = table.pages[std::uint64_t{sequence} * table.max_pages + page];
  if (number < 0 || static_cast<std::uint64_t>(number) >= cache.pages)
    return refused(text("table.pages[", sequence, "][", page, "] is ", number, "; the cache has ",
                        cache.pages, " pages"));
  if (!has_sinks || find_sinks(cache, table, sequence) != cache.sink_slots) return {};
  if (table.sink_slots == nullptr)
    return refused(text("table.sink_slots is null, which gives sequence ", sequence, " slot ", sequence,
                        "; the cache has ", cache.sink_slots, " sink slots"));
  return refused(text("table.sink_slots[", sequence, "] is ", table.sink_slots[sequence], "; the cache has ",
                      cache.sink_slots, " sink slots"));
}

/// Why a sequence's rows cannot be appended, whatever its pages are.
Checked find_wrong_rows(const AppendArguments& a, std::uint32_t sequence) {
  const std::int64_t first = a.starts[sequence], last = a.starts[sequence + 1];
  if (first < 0) return refused(text("tokens.starts[", sequence, "] is ", first, "; at least 0"));
  if (last < first)
    return refused(text("tokens.starts[", sequence + 1, "] is ", last, ", less than tokens.starts[", sequence,
                        "], ", first));
  if (last > a.rows)
    return refused(text("tokens.starts[", sequence + 1, "] is ", last, "; tokens.rows is ", a.rows));
  if (a.lengths[sequence] < 0)
    return refused(text("tokens.lengths[", sequence, "] is ", a.lengths[sequence], "; at least 0"));
  if (last - first > std::int64_t{a.max_new_tokens})
    return refused(text("sequence ", sequence, " brings ", last - first, " tokens; tokens.max_new_tokens is ",
                        a.max_new_tokens));
  return {};
}

/// What was refused first, of work on the CPU, and its first cause.
Checked find_refused(const AppendArguments& a) {
  const std::uint32_t page_tokens = a.cache.layout.page_tokens;
  const std::uint32_t pages = most_pages(a.max_new_tokens, page_tokens);
  for (std::uint32_t sequence = 0; sequence < a.table.sequences; ++sequence) {
    for (std::uint32_t page = 0; page < pages; ++page) {
      const NewRows rows = find_new_rows(a, {sequence, page, 0});
      if (!rows.refused) continue;
      if (Checked failure = find_wrong_rows(a, sequence)) return failure;
      return find_wrong_place(a.cache, a.table, sequence,
                              std::int64_t{a.lengths[sequence]} / page_tokens + page,
                              rows.begin < rows.sinks);
    }
  }
  return {};
}

/// keys, values: as they were given; those of `a` have the room that is in both.
Checked find_refused(const DequantiseArguments& a, const KvcalPages* keys, const KvcalPages* values) {
  const std::uint32_t tiles = a.cache.layout.page_tokens / kTileTokens;
  for (std::uint64_t i = 0; i < std::uint64_t{a.table.sequences} * a.pages; ++i) {
    const bool of_keys = keys != nullptr;  // values are refused as keys are
    const TileTask tile = find_tile(a, static_cast<std::uint32_t>(i * tiles * a.layer.kv_heads), of_keys,
                                    of_keys ? a.layer.key_dim : a.layer.value_dim);
    if (!tile.refused) continue;
    const auto sequence = static_cast<std::uint32_t>(i / a.pages);
    const std::uint64_t entry = i % a.pages;
    if (a.lengths[sequence] < 0)
      return refused(text("range.lengths[", sequence, "] is ", a.lengths[sequence], "; at least 0"));
    if (Checked failure = find_wrong_place(a.cache, a.table, sequence,
                                           static_cast<std::int64_t>(a.first_page + entry), tile.sinks > 0))
      return failure;
    const std::int64_t target =
        a.targets != nullptr ? std::int64_t{a.targets[i]} : static_cast<std::int64_t>(i);
    const bool in_keys =
        values == nullptr || (of_keys && (target < 0 || static_cast<std::uint64_t>(target) >= keys->pages));
    const std::string room = text("; there is room for ", (in_keys ? keys : values)->pages, " pages in ",
                                  in_keys ? "keys" : "values");
    if (a.targets == nullptr)
      return refused(text("range.targets is null, which puts page ", a.first_page + entry, " of sequence ",
                          sequence, " at ", target, room));
    return refused(text("range.targets[", sequence, "][", entry, "] is ", target, room));
  }
  return {};
}

Checked cuda_failure(std::string what) {
  if (what.empty()) return {};
  const bool memory = what.find("cudaErrorMemoryAllocation") != std::string::npos;
  return Failure{memory ? KVCAL_OUT_OF_MEMORY : KVCAL_CUDA_ERROR, std::move(what)};
}

}  // namespace

const char* kvcal_last_error(void) {
  return last_error.c_str();
}

uint32_t kvcal_cuda_version(void) {
  return KVCAL_CUDA_VERSION;
}

KvcalStatus kvcal_device_status(KvcalDevice device) {
  return guarded("kvcal_device_status", [&] { return check_device(device); });
}

KvcalStatus kvcal_codebook_open(const void* flat, size_t bytes, KvcalDevice device,
                                KvcalCodebook** codebook) {
  if (codebook != nullptr) *codebook = nullptr;
  return guarded("kvcal_codebook_open", [&]() -> Checked {
    if (codebook == nullptr) return invalid("codebook is null");
    if (flat == nullptr) return invalid("flat is null");
    if (Checked failure = check_device(device)) return failure;
    // Copied before it is looked at: it is aligned then, and nobody changes it meanwhile.
    auto opened =
        std::make_unique<KvcalCodebook>(std::span(static_cast<const std::byte*>(flat), bytes), device);
    std::string problem = flat_problem(opened->bytes());
    if (!problem.empty()) return Failure{KVCAL_INVALID_CODEBOOK, "the block " + problem};
    if (device == KVCAL_DEVICE_CUDA) {
      if (Checked failure = cuda_failure(opened->move_to_device())) return failure;
    }
    *codebook = opened.release();
    return {};
  });
}

void kvcal_codebook_close(KvcalCodebook* codebook) {
  delete codebook;
}

KvcalStatus kvcal_codebook_info(const KvcalCodebook* codebook, KvcalCodebookInfo* info) {
  return guarded("kvcal_codebook_info", [&]() -> Checked {
    if (codebook == nullptr || info == nullptr) return invalid("codebook or info is null");
    const KvcalFlatHeader& header = codebook->header();
    *info = {header.layers, header.bits, header.sinks, header.outlier_fraction, codebook->device()};
    return {};
  });
}

KvcalStatus kvcal_layer_info(const KvcalCodebook* codebook, uint32_t layer, KvcalLayerInfo* info) {
  return guarded("kvcal_layer_info", [&]() -> Checked {
    if (Checked failure = check_layer(codebook, layer)) return failure;
    if (info == nullptr) return invalid("info is null");
    const KvcalFlatLayer flat = codebook->layer(layer);
    *info = {flat.index, flat.kv_heads, flat.key_dim, flat.value_dim, flat.window};
    return {};
  });
}

KvcalStatus kvcal_record_layout(const KvcalCodebook* codebook, uint32_t layer, uint32_t page_tokens,
                                uint32_t key_slots, uint32_t value_slots, KvcalRecordLayout* layout) {
  return guarded("kvcal_record_layout", [&]() -> Checked {
    if (Checked failure = check_layer(codebook, layer)) return failure;
    if (layout == nullptr) return invalid("layout is null");
    if (std::string problem = codebook->layer_problem(layer); !problem.empty())
      return Failure{KVCAL_INVALID_CODEBOOK, std::move(problem)};
    const KvcalFlatLayer flat = codebook->layer(layer);
    if (key_slots == KVCAL_DEFAULT_SLOTS)
      key_slots = default_key_slots(KvcalCodebook::exact_fraction(flat.key_outliers), flat.key_dim);
    if (value_slots == KVCAL_DEFAULT_SLOTS) {
      value_slots = default_value_slots(KvcalCodebook::exact_fraction(flat.value_outliers), flat.value_dim,
                                        page_tokens);
    }
    KvcalRecordLayout made;
    std::string problem = make_layout(flat.key_bits, flat.value_bits, flat.key_dim, flat.value_dim,
                                      page_tokens, key_slots, value_slots, flat.value_rotation_block, made);
    if (!problem.empty()) return invalid(std::move(problem));
    *layout = made;
    return {};
  });
}

KvcalStatus kvcal_append(const KvcalCodebook* codebook, uint32_t layer, const KvcalCache* cache,
                         const KvcalTable* table, const KvcalNewTokens* tokens, void* stream) {
  return guarded("kvcal_append", [&]() -> Checked {
    if (Checked failure = check_cache(codebook, layer, cache)) return failure;
    if (Checked failure = check_table(table)) return failure;
    if (tokens == nullptr) return invalid("tokens is null");
    if (table->sequences > 0 && (tokens->starts == nullptr || tokens->lengths == nullptr))
      return invalid("tokens.starts or tokens.lengths is null");
    if (Checked failure = check_aligned(tokens->starts, "tokens.starts")) return failure;
    if (Checked failure = check_aligned(tokens->lengths, "tokens.lengths")) return failure;
    if (tokens->rows < 0 || tokens->rows > INT32_MAX)
      return invalid(text("tokens.rows is ", tokens->rows, "; at least 0, at most 2147483647"));
    if (tokens->max_new_tokens > static_cast<std::uint64_t>(tokens->rows))
      return invalid(
          text("tokens.max_new_tokens is ", tokens->max_new_tokens, " of ", tokens->rows, " rows"));
    if (tokens->keys.data == nullptr && tokens->values.data == nullptr && tokens->rows > 0)
      return invalid("tokens.keys.data and tokens.values.data are null");
    AppendArguments a;
    a.layer = codebook->view(layer);
    if (Checked failure = check_rows(tokens->keys, tokens->rows, a.layer.kv_heads, "tokens.keys"))
      return failure;
    if (Checked failure = check_rows(tokens->values, tokens->rows, a.layer.kv_heads, "tokens.values"))
      return failure;
    a.cache = view_of(*cache);
    a.table = view_of(*table);
    a.starts = tokens->starts;
    a.lengths = tokens->lengths;
    a.max_new_tokens = tokens->max_new_tokens;
    a.rows = tokens->rows;
    a.keys = view_of(tokens->keys);
    a.values = view_of(tokens->values);
    const std::uint32_t pages = most_pages(a.max_new_tokens, a.cache.layout.page_tokens);
    if (Checked failure = check_tasks(a.table.sequences, pages, a.layer.kv_heads)) return failure;
    if (codebook->device() == KVCAL_DEVICE_CUDA) return cuda_failure(append_on_device(a, stream));
    if (stream != nullptr) return invalid("a stream, on the CPU");
    append_on_cpu(a);
    return find_refused(a);
  });
}

KvcalStatus kvcal_dequantise(const KvcalCodebook* codebook, uint32_t layer, const KvcalCache* cache,
                             const KvcalTable* table, const KvcalRange* range, const KvcalPages* keys,
                             const KvcalPages* values, void* stream) {
  return guarded("kvcal_dequantise", [&]() -> Checked {
    if (Checked failure = check_cache(codebook, layer, cache)) return failure;
    if (Checked failure = check_table(table)) return failure;
    if (range == nullptr) return invalid("range is null");
    if (table->sequences > 0 && range->lengths == nullptr) return invalid("range.lengths is null");
    if (std::uint64_t{range->first_page} + range->pages > table->max_pages) {
      return invalid(text("range: pages ", range->first_page, " to ",
                          std::uint64_t{range->first_page} + range->pages, " of ", table->max_pages));
    }
    if (Checked failure = check_aligned(range->lengths, "range.lengths")) return failure;
    if (Checked failure = check_aligned(range->targets, "range.targets")) return failure;
    if (keys == nullptr && values == nullptr) return invalid("keys and values are null");
    DequantiseArguments a;
    a.layer = codebook->view(layer);
    a.cache = view_of(*cache);
    if (Checked failure = check_pages(keys, a.cache.layout, a.layer.kv_heads, "keys")) return failure;
    if (Checked failure = check_pages(values, a.cache.layout, a.layer.kv_heads, "values")) return failure;
    a.table = view_of(*table);
    a.lengths = range->lengths;
    a.targets = range->targets;
    a.first_page = range->first_page;
    a.pages = range->pages;
    if (keys != nullptr) a.keys = view_of(*keys);
    if (values != nullptr) a.values = view_of(*values);
    // What finds no room in one is left out of both, and counted once.
    if (keys != nullptr && values != nullptr)
      a.keys.pages = a.values.pages = std::min(keys->pages, values->pages);
    const std::uint64_t tiles = std::uint64_t{a.pages} * (a.cache.layout.page_tokens / kTileTokens);
    if (Checked failure = check_tasks(a.table.sequences, tiles, a.layer.kv_heads)) return failure;
    if (codebook->device() == KVCAL_DEVICE_CUDA) return cuda_failure(dequantise_on_device(a, stream));
    if (stream != nullptr) return invalid("a stream, on the CPU");
    dequantise_on_cpu(a);
    return find_refused(a, keys, values);
  });
}

KvcalStatus kvcal_counters(const KvcalCodebook* codebook, const KvcalCache* cache, void* stream,
                           KvcalCounters* counters) {
  return guarded("kvcal_counters", [&]() -> Checked {
    if (codebook == nullptr || cache == nullptr || counters == nullptr)
      return invalid("codebook, cache or counters is null");
    if (cache->counters == nullptr) return invalid("cache.counters is null");
    if (std::string problem = codebook->place_problem(); !problem.empty()) return invalid(std::move(problem));
    if (codebook->device() == KVCAL_DEVICE_CUDA) {
      if (Checked failure = cuda_failure(read_counters_on_device(cache->counters, stream, counters)))
        return failure;
    } else {
      if (stream != nullptr) return invalid("a stream, on the CPU");
      std::memcpy(counters, cache->counters, sizeof(*counters));
    }
    if (counters->refused == 0) return {};
    return Failure{KVCAL_INVALID_DATA, text(counters->refused,
                                            " parts of the work were left out: a page, a row, a "
                                            "length or a sink slot was out of range")};
  });
}
