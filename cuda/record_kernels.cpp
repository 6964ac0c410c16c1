#include "cuda/record_kernels.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

#include "base/error.h"
#include "cuda/flat_codebook.h"
#include "cuda/kernels/float16.h"
#include "cuda/kernels/kvcal_cuda.h"
#include "cuda/kernels/launch.h"

namespace kvcal::codec {
namespace {

void check(KvcalStatus status) {
  if (status == KVCAL_OK) return;
  if (status == KVCAL_CUDA_ERROR || status == KVCAL_NO_DEVICE || status == KVCAL_OUT_OF_MEMORY)
    throw base::SystemError(base::concat("the kernels: ", kvcal_last_error()));
  throw base::InvalidInput(base::concat("the kernels: ", kvcal_last_error()));
}

/// Bytes where the kernels work: aligned as records are, a copy of the host's.
class Memory {
 public:
  Memory(const void* from, std::size_t bytes) : bytes_(bytes) {
    blocks_.resize(bytes / sizeof(Block) + 1);
    if (bytes > 0) std::memcpy(blocks_.data(), from, bytes);
    if (!kernels_device_problem().empty()) return;
    const std::string problem = copy_to_device(blocks_.data(), blocks_.size() * sizeof(Block), &device_);
    if (!problem.empty()) throw base::SystemError("the kernels: " + problem);
  }
  template <typename T>
  explicit Memory(const std::vector<T>& from) : Memory(from.data(), from.size() * sizeof(T)) {}
  ~Memory() {
    if (device_ != nullptr) free_on_device(device_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  [[nodiscard]] void* data() { return device_ != nullptr ? device_ : blocks_.data(); }
  template <typename T>
  [[nodiscard]] T* as() {
    return static_cast<T*>(data());
  }
  void copy_to(void* to) {
    if (device_ == nullptr) {
      if (bytes_ > 0) std::memcpy(to, blocks_.data(), bytes_);
      return;
    }
    const std::string problem = copy_from_device(device_, bytes_, to);
    if (!problem.empty()) throw base::SystemError("the kernels: " + problem);
  }

 private:
  struct alignas(KVCAL_RECORD_ALIGNMENT) Block {
    std::uint8_t bytes[KVCAL_RECORD_ALIGNMENT];
  };
  std::size_t bytes_;
  std::vector<Block> blocks_;
  void* device_ = nullptr;
};

/// The pages of one sequence, in the order of their tokens, as the C API's cache and table.
class SequenceMemory {
 public:
  explicit SequenceMemory(const RecordPages& pages)
      : layout_(pages.layout),
        count_(pages.pages()),
        records_(pages.records),
        key_sinks_(pages.key_sinks),
        value_sinks_(pages.value_sinks),
        counters_(&pages.counters, sizeof(KvcalCounters)),
        table_(numbered(count_)) {}

  [[nodiscard]] KvcalCache cache() {
    return {layout_,
            records_.data(),
            count_,
            key_sinks_.data(),
            value_sinks_.data(),
            1,
            counters_.as<KvcalCounters>()};
  }
  [[nodiscard]] KvcalTable table() {
    return {1, static_cast<std::uint32_t>(count_), table_.as<const std::int32_t>(), nullptr};
  }
  void copy_to(RecordPages& pages) {
    records_.copy_to(pages.records.data());
    key_sinks_.copy_to(pages.key_sinks.data());
    value_sinks_.copy_to(pages.value_sinks.data());
    counters_.copy_to(&pages.counters);
  }

 private:
  static std::vector<std::int32_t> numbered(std::size_t count) {
    std::vector<std::int32_t> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0);
    return numbers;
  }

  KvcalRecordLayout layout_;
  std::size_t count_;
  Memory records_, key_sinks_, value_sinks_, counters_, table_;
};

FlatCodebook flat_codebook(const RecordLayer& layer, const KvcalRecordLayout& layout) {
  FlatLayer flat;
  flat.kv_heads = static_cast<std::uint32_t>(layer.kv_heads);
  flat.key_dim = layout.key_dim;
  flat.value_dim = layout.value_dim;
  flat.key_lower.assign(layer.keys.lower().begin(), layer.keys.lower().end());
  flat.key_upper.assign(layer.keys.upper().begin(), layer.keys.upper().end());
  // As they are stored: fitted ones are not the thresholds'.
  for (const Affine& affine : layer.keys.affines()) {
    flat.key_scale.push_back(half_to_float(affine.scale));
    flat.key_zero.push_back(half_to_float(affine.zero));
  }
  flat.key = layer.key;
  flat.value = layer.value;
  flat.value_rotation_block = layout.value_rotation_block;
  FlatCodebook codebook;
  codebook.sinks = static_cast<std::uint32_t>(layer.sinks);
  codebook.value_per_head = true;
  codebook.outlier_fraction = layer.value_outliers;
  codebook.layers.push_back(std::move(flat));
  return codebook;
}

/// A sequence's numbers as one page of float32, which is as long as it.
KvcalPages as_page(Memory& numbers, std::size_t heads, std::size_t dim, const RecordPages& pages) {
  const auto token = static_cast<std::int64_t>(heads * dim);
  return {numbers.data(), KVCAL_FLOAT32,
          pages.pages(),  token * pages.layout.page_tokens,
          token,          static_cast<std::int64_t>(dim)};
}

}  // namespace

const std::string& kernels_device_problem() {
  static const std::string problem = device_problem();
  return problem;
}

void RecordKernels::Close::operator()(KvcalCodebook* codebook) const {
  kvcal_codebook_close(codebook);
}

RecordKernels::RecordKernels(const RecordLayer& layer, const KvcalRecordLayout& layout)
    : layer_(layer), layout_(layout) {
  const std::vector<std::byte> flat = flat_bytes(flat_codebook(layer, layout));
  KvcalCodebook* opened = nullptr;
  check(kvcal_codebook_open(flat.data(), flat.size(),
                            kernels_device_problem().empty() ? KVCAL_DEVICE_CUDA : KVCAL_DEVICE_CPU,
                            &opened));
  codebook_.reset(opened);
  KvcalRecordLayout same;
  check(kvcal_record_layout(opened, 0, layout.page_tokens, layout.key_slots, layout.value_slots, &same));
}

RecordPages RecordKernels::encode(std::span<const float> keys, std::span<const float> values) const {
  RecordPages pages = empty_records(keys.size(), values.size(), layer_, layout_);
  SequenceMemory memory(pages);
  Memory key_numbers(keys.data(), keys.size_bytes()), value_numbers(values.data(), values.size_bytes());
  const auto tokens = static_cast<std::int32_t>(pages.tokens);
  Memory starts(std::vector<std::int32_t>{0, tokens}), lengths(std::vector<std::int32_t>{0});
  const auto rows = [&](Memory& numbers, bool given, std::size_t dim) {
    const auto row = static_cast<std::int64_t>(layer_.kv_heads * dim);
    return KvcalRows{given ? numbers.data() : nullptr, KVCAL_FLOAT32, row, static_cast<std::int64_t>(dim)};
  };
  const KvcalNewTokens given{tokens,
                             starts.as<const std::int32_t>(),
                             lengths.as<const std::int32_t>(),
                             static_cast<std::uint32_t>(tokens),
                             rows(key_numbers, pages.has_keys, layout_.key_dim),
                             rows(value_numbers, pages.has_values, layout_.value_dim)};
  const KvcalCache cache = memory.cache();
  const KvcalTable table = memory.table();
  check(kvcal_append(codebook_.get(), 0, &cache, &table, &given, nullptr));
  KvcalCounters counters;
  check(kvcal_counters(codebook_.get(), &cache, nullptr, &counters));
  memory.copy_to(pages);
  return pages;
}

void RecordKernels::decode(const RecordPages& pages, std::span<float> keys, std::span<float> values) const {
  check_records(pages, layer_, keys.size(), values.size());
  SequenceMemory memory(pages);
  // Whole pages are written.
  const std::size_t room = pages.pages() * layout_.page_tokens * layer_.kv_heads;
  std::vector<float> read_keys(pages.has_keys ? room * layout_.key_dim : 0);
  std::vector<float> read_values(pages.has_values ? room * layout_.value_dim : 0);
  Memory key_numbers(read_keys), value_numbers(read_values);
  const KvcalPages key_pages = as_page(key_numbers, layer_.kv_heads, layout_.key_dim, pages);
  const KvcalPages value_pages = as_page(value_numbers, layer_.kv_heads, layout_.value_dim, pages);
  Memory lengths(std::vector<std::int32_t>{static_cast<std::int32_t>(pages.tokens)});
  const KvcalRange range{0, static_cast<std::uint32_t>(pages.pages()), lengths.as<const std::int32_t>(),
                         nullptr};
  const KvcalCache cache = memory.cache();
  const KvcalTable table = memory.table();
  check(kvcal_dequantise(codebook_.get(), 0, &cache, &table, &range, pages.has_keys ? &key_pages : nullptr,
                         pages.has_values ? &value_pages : nullptr, nullptr));
  key_numbers.copy_to(read_keys.data());
  value_numbers.copy_to(read_values.data());
  std::copy_n(read_keys.begin(), keys.size(), keys.begin());
  std::copy_n(read_values.begin(), values.size(), values.begin());
}

}  // namespace kvcal::codec
