// kernels_bench: rates of the kernels on a CUDA device, through the C API, beside a copy within the device's memory.
//
//   kernels_bench [--all] [--json FILE] [--require-append SHARE] [--require-dequantise SHARE]
//
// Prints a Markdown table: prefill append and dequantise (to fp16) of 4,096, 32,768 and 262,144 tokens in prompts of 4,096, and
// decode append of one token to each of 1, 32 and 256 sequences; for 2, 3 and 4 bits, without outliers and with 1 %, 8 kv
// heads of dimension 128 (--all: of 64 and 256, too), pages of 64 tokens in no order, fp16 in and out.
//   time    of one call (two kernels), in a CUDA graph of many: the host's part is not in it. Median of 15 launches.
//   GB/s    (1e9) bytes that must be read and written: rows of keys and values, and all written parts of their records.
//   share   GB/s / those of cudaMemcpyAsync of 1 GiB in the same run, whose bytes count twice, too.
// Calls go from buffer to buffer, together more than 4 times the L2 cache. A decode append has its page in the L2 cache,
// where an engine's has not; its rows are 64 tokens in turn.
// Before a rate is measured, what is written and read back is compared with the CPU codec's, bit by bit, of every prompt.
//
// --require-append, --require-dequantise: the least share of each prefill append and dequantise of 32,768 tokens or more.
// Exit status: 0; 1 a failure, or numbers that are wrong; 2 usage; 3 a share is below what is required; 4 no device.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <sstream>

#include "bench/device_timing.h"
#include "bench/rates.h"
#include "cuda/kernels/float16.h"
#include "cuda/test_codebook.h"

namespace kvcal::bench {
namespace {

using codec::CacheShape;

constexpr std::size_t kHeads = 8, kPageTokens = 64, kPrompt = 4096, kPromptPages = kPrompt / kPageTokens;
constexpr std::size_t kCopied = std::size_t{1} << 30;
// A decoded page is the prompt's page of this number: tokens before it need not be there.
constexpr std::size_t kDecodedPage = 16;

struct Options {
  bool all = false;
  std::string json;
  double require_append = 0, require_dequantise = 0;
};

void check(KvcalStatus status) {
  if (status != KVCAL_OK) throw std::runtime_error(kvcal_last_error());
}

std::vector<std::uint16_t> halves_of(const std::vector<float>& numbers) {
  std::vector<std::uint16_t> halves(numbers.size());
  std::ranges::transform(numbers, halves.begin(), codec::float_to_half);
  return halves;
}

/// A prompt's rows of one head dimension, rounded to fp16.
struct Prompt {
  std::vector<std::uint16_t> key_halves, value_halves;  ///< [kPrompt][kHeads * dim]
  std::vector<float> keys, values;
  DeviceMemory device_keys, device_values;

  explicit Prompt(unsigned dim)
      : key_halves(halves_of(codec::some_numbers(kPrompt, kHeads * dim, 1))),
        value_halves(halves_of(codec::some_numbers(kPrompt, kHeads * dim, 2))),
        keys(key_halves.size()),
        values(key_halves.size()),
        device_keys(key_halves),
        device_values(value_halves) {
    std::ranges::transform(key_halves, keys.begin(), codec::half_to_float);
    std::ranges::transform(value_halves, values.begin(), codec::half_to_float);
  }
};

/// A codebook on the device, and what the CPU codec makes of the prompt with it.
struct Method {
  CacheShape shape;
  const Prompt& prompt;
  codec::TestCodebook codebook;
  codec::OpenCodebook opened;
  KvcalRecordLayout layout{};
  codec::RecordPages stored;
  std::vector<std::uint16_t> read_keys, read_values;

  Method(const CacheShape& of, const Prompt& numbers)
      : shape(of),
        prompt(numbers),
        codebook(codec::make_codebook(of)),
        opened(codec::open_codebook(codebook, KVCAL_DEVICE_CUDA)) {
    check(
        kvcal_record_layout(opened.get(), 0, kPageTokens, KVCAL_DEFAULT_SLOTS, KVCAL_DEFAULT_SLOTS, &layout));
    stored = codec::encode_records(prompt.keys, prompt.values, codebook.layer, layout);
    std::vector<float> keys(prompt.keys.size()), values(prompt.values.size());
    codec::decode_records(stored, codebook.layer, keys, values);
    read_keys = halves_of(keys);
    read_values = halves_of(values);
  }
  [[nodiscard]] std::size_t dim() const { return shape.key_dim; }
  /// Of a record: what is behind is not written.
  [[nodiscard]] std::size_t written_bytes() const {
    return layout.value_outliers + dim() / KVCAL_STRIP_CHANNELS * layout.value_slots * 4;
  }
  [[nodiscard]] std::int64_t row() const { return static_cast<std::int64_t>(kHeads * dim()); }
  [[nodiscard]] KvcalRows rows(const DeviceMemory& from) const {
    return {from.data(), KVCAL_FLOAT16, row(), static_cast<std::int64_t>(dim())};
  }
};

/// Pages of `sequences` prompts, each of `pages` pages; sinks and counters of them.
class Cache {
 public:
  Cache(const Method& method, std::size_t sequences, std::size_t pages)
      : method_(method),
        sequences_(sequences),
        pages_(pages),
        records_(sequences * pages * kHeads * method.layout.record_bytes),
        sinks_(sequences * kHeads * method.shape.sinks * method.dim() * 2 * 2),
        counters_(std::vector<std::uint8_t>(sizeof(KvcalCounters))) {
    KVCAL_CHECK_CUDA(cudaMemset(records_.data(), 0xa5, records_.size()));
  }
  [[nodiscard]] KvcalCache view() const {
    return {method_.layout,
            records_.data(),
            sequences_ * pages_,
            sinks_.data(),
            sinks_.as<std::uint8_t>() + sinks_.size() / 2,
            sequences_,
            counters_.as<KvcalCounters>()};
  }
  /// That nothing was refused, and page p of each sequence is the prompt's page first_page + p. Throws otherwise.
  void compare(const std::vector<std::int32_t>& table, std::size_t first_page) const {
    KvcalCounters counters{};
    const KvcalCache cache = view();
    check(kvcal_counters(method_.opened.get(), &cache, nullptr, &counters));
    const std::vector<std::uint8_t> bytes = records_.bytes();
    const std::size_t record = method_.layout.record_bytes;
    for (std::size_t i = 0; i < table.size() * kHeads; ++i) {
      const std::size_t page = i / kHeads, head = i % kHeads,
                        wanted = ((first_page + page % pages_) * kHeads + head) * record,
                        at = (static_cast<std::size_t>(table[page]) * kHeads + head) * record;
      if (std::memcmp(&bytes[at], &method_.stored.records[wanted], method_.written_bytes()) != 0) {
        throw std::runtime_error("wrong numbers: the record of sequence " + std::to_string(page / pages_) +
                                 ", page " + std::to_string(page % pages_) + ", head " +
                                 std::to_string(head) + " is not the CPU codec's");
      }
    }
  }

 private:
  const Method& method_;
  std::size_t sequences_, pages_;
  DeviceMemory records_, sinks_, counters_;
};

std::vector<std::int32_t> shuffled(std::size_t count) {
  std::vector<std::int32_t> pages(count);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937(7));
  return pages;
}

/// Prompts, their cache, and room to read them back.
struct PrefillBuffers {
  DeviceMemory keys, values, read_keys, read_values;
  Cache cache;

  PrefillBuffers(const Method& method, std::size_t prompts)
      : keys(prompts * method.prompt.device_keys.size()),
        values(keys.size()),
        read_keys(keys.size()),
        read_values(keys.size()),
        cache(method, prompts, kPromptPages) {
    keys.fill_with(method.prompt.device_keys);
    values.fill_with(method.prompt.device_values);
  }
  void compare_read(const Method& method) const {
    for (const auto& [read, wanted] :
         {std::pair(&read_keys, &method.read_keys), std::pair(&read_values, &method.read_values)}) {
      const std::vector<std::uint8_t> bytes = read->bytes();
      for (std::size_t at = 0; at < bytes.size(); at += wanted->size() * 2) {
        if (std::memcmp(&bytes[at], wanted->data(), wanted->size() * 2) != 0)
          throw std::runtime_error("wrong numbers: what is read is not what the CPU codec reads");
      }
    }
  }
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    int device = 0;
    KVCAL_CHECK_CUDA(cudaGetDevice(&device));
    KVCAL_CHECK_CUDA(cudaGetDeviceProperties(&properties_, device));
    const auto attribute = [&](cudaDeviceAttr which) {
      int value = 0;
      KVCAL_CHECK_CUDA(cudaDeviceGetAttribute(&value, which, device));
      return value;
    };
    int driver = 0, runtime = 0;
    KVCAL_CHECK_CUDA(cudaDriverGetVersion(&driver));
    KVCAL_CHECK_CUDA(cudaRuntimeGetVersion(&runtime));
    l2_ = static_cast<std::size_t>(properties_.l2CacheSize);
    std::ostringstream text;
    text << properties_.name << ", " << properties_.multiProcessorCount << " multiprocessors, up to "
         << attribute(cudaDevAttrClockRate) / 1000 << " MHz, memory up to "
         << attribute(cudaDevAttrMemoryClockRate) / 1000 << " MHz, L2 cache " << (l2_ >> 20)
         << " MiB; driver for CUDA " << driver / 1000 << '.' << driver % 1000 / 10 << ", runtime "
         << runtime / 1000 << '.' << runtime % 1000 / 10;
    rates_.device = text.str();
    rates_.copy = copy_bandwidth();
  }

  /// 0, or 3 where a share is below what is required.
  int run() {
    std::printf("%s\n\nA copy of 1 GiB: %.0f GB/s, read and written.\n\n", rates_.device.c_str(),
                rates_.copy / 1e9);
    Rates::print_header();
    for (const unsigned dim :
         options_.all ? std::vector<unsigned>{128, 64, 256} : std::vector<unsigned>{128}) {
      const Prompt prompt(dim);
      for (const int bits : {2, 3, 4}) {
        for (const double outliers : {0.0, 0.01}) {
          const Method method({.bits = bits,
                               .kv_heads = kHeads,
                               .key_dim = dim,
                               .value_dim = dim,
                               .page_tokens = kPageTokens,
                               .outliers = outliers},
                              prompt);
          measure(method);
        }
      }
    }
    const double after = copy_bandwidth();
    std::printf("\nThe copy, after all: %.0f GB/s.\n", after / 1e9);
    for (const std::string& line : left_out_) std::printf("%s\n", line.c_str());
    std::vector<std::string> below = rates_.below("prefill append", options_.require_append);
    for (std::string& line : rates_.below("dequantise", options_.require_dequantise))
      below.push_back(std::move(line));
    for (const std::string& line : below) std::printf("below: %s\n", line.c_str());
    if (!options_.json.empty()) rates_.write_json(options_.json, after, below);
    return below.empty() ? 0 : 3;
  }

 private:
  /// Bytes a second.
  [[nodiscard]] double copy_bandwidth() const {
    const DeviceMemory from(kCopied), to(kCopied);
    KVCAL_CHECK_CUDA(cudaMemset(from.data(), 1, kCopied));
    const double seconds = timer_.seconds(2, [&](std::size_t, cudaStream_t stream) {
      KVCAL_CHECK_CUDA(cudaMemcpyAsync(to.data(), from.data(), kCopied, cudaMemcpyDeviceToDevice, stream));
    });
    return 2 * static_cast<double>(kCopied) / seconds;
  }

  void add(const Method& method, const char* operation, std::size_t count, double seconds,
           std::size_t bytes = 0) {
    rates_.add(
        {operation, method.shape.bits, method.shape.outliers, method.shape.key_dim, count, seconds, bytes});
  }

  void measure(const Method& method) {
    try {
      for (const std::size_t tokens : {4096, 32768, 262144}) measure_prefill(method, tokens);
      for (const std::size_t sequences : {1, 32, 256}) measure_decode(method, sequences);
    } catch (const std::exception& error) {
      std::ostringstream where;
      where << method.shape.bits << " bits, " << method.shape.outliers * 100 << " % outliers, head_dim "
            << method.dim();
      throw std::runtime_error(where.str() + ": " + error.what());
    }
  }

  void measure_prefill(const Method& method, std::size_t tokens) {
    const std::size_t prompts = tokens / kPrompt, numbers = tokens * kHeads * method.dim() * 2 * 2,
                      records = tokens / kPageTokens * kHeads * method.written_bytes();
    const std::size_t sets = 4 * l2_ / (numbers + records) + 1;
    std::size_t free_bytes = 0, total_bytes = 0;
    KVCAL_CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    if (sets * (2 * numbers + 2 * records) > free_bytes / 10 * 9) {
      left_out_.push_back("left out for want of memory: " + std::to_string(tokens) + " tokens of head_dim " +
                          std::to_string(method.dim()) + ", " + std::to_string(method.shape.bits) + " bits");
      return;
    }
    std::vector<std::unique_ptr<PrefillBuffers>> buffers;
    for (std::size_t i = 0; i < sets; ++i)
      buffers.push_back(std::make_unique<PrefillBuffers>(method, prompts));

    const std::vector<std::int32_t> pages = shuffled(prompts * kPromptPages);
    std::vector<std::int32_t> starts(prompts + 1);
    for (std::size_t i = 0; i <= prompts; ++i) starts[i] = static_cast<std::int32_t>(i * kPrompt);
    const DeviceMemory device_pages(pages), device_starts(starts),
        before(std::vector<std::int32_t>(prompts, 0)),
        after(std::vector<std::int32_t>(prompts, static_cast<std::int32_t>(kPrompt)));
    const KvcalTable table{static_cast<std::uint32_t>(prompts), kPromptPages,
                           device_pages.as<const std::int32_t>(), nullptr};
    const auto append = [&](std::size_t call, cudaStream_t stream) {
      const PrefillBuffers& set = *buffers[call % sets];
      const KvcalCache cache = set.cache.view();
      const KvcalNewTokens given{static_cast<std::int64_t>(tokens),
                                 device_starts.as<const std::int32_t>(),
                                 before.as<const std::int32_t>(),
                                 kPrompt,
                                 method.rows(set.keys),
                                 method.rows(set.values)};
      check(kvcal_append(method.opened.get(), 0, &cache, &table, &given, stream));
    };
    const auto dequantise = [&](std::size_t call, cudaStream_t stream) {
      const PrefillBuffers& set = *buffers[call % sets];
      const KvcalCache cache = set.cache.view();
      const KvcalRange range{0, kPromptPages, after.as<const std::int32_t>(), nullptr};
      const auto room = [&](const DeviceMemory& to) {
        return KvcalPages{to.data(),    KVCAL_FLOAT16,
                          pages.size(), method.row() * std::int64_t{kPageTokens},
                          method.row(), static_cast<std::int64_t>(method.dim())};
      };
      const KvcalPages keys = room(set.read_keys), values = room(set.read_values);
      check(kvcal_dequantise(method.opened.get(), 0, &cache, &table, &range, &keys, &values, stream));
    };
    for (std::size_t i = 0; i < sets; ++i) {
      append(i, nullptr);
      dequantise(i, nullptr);
    }
    buffers.front()->cache.compare(pages, 0);
    buffers.front()->compare_read(method);
    const std::size_t calls = std::max<std::size_t>(4, 2 * sets);
    add(method, "prefill append", tokens, timer_.seconds(calls, append), numbers + records);
    add(method, "dequantise", tokens, timer_.seconds(calls, dequantise), numbers + records);
    buffers.front()->cache.compare(pages, 0);
  }

  void measure_decode(const Method& method, std::size_t sequences) {
    const Cache cache(method, sequences, 1);
    const KvcalCache view = cache.view();
    // Tables say page 16; the pages before it are not touched.
    const std::vector<std::int32_t> pages = shuffled(sequences);
    std::vector<std::int32_t> table_pages(sequences * (kDecodedPage + 1), 0), starts(sequences + 1);
    for (std::size_t i = 0; i < sequences; ++i) table_pages[i * (kDecodedPage + 1) + kDecodedPage] = pages[i];
    std::iota(starts.begin(), starts.end(), 0);
    const DeviceMemory device_pages(table_pages), device_starts(starts);
    const KvcalTable table{static_cast<std::uint32_t>(sequences), kDecodedPage + 1,
                           device_pages.as<const std::int32_t>(), nullptr};
    std::vector<std::int32_t> lengths;  // [kPageTokens][sequences]
    std::vector<std::uint16_t> keys, values;
    const auto row = static_cast<std::ptrdiff_t>(method.row());
    for (std::size_t token = kDecodedPage * kPageTokens; token < (kDecodedPage + 1) * kPageTokens; ++token) {
      const auto at = static_cast<std::ptrdiff_t>(token) * row;
      for (std::size_t i = 0; i < sequences; ++i) {
        lengths.push_back(static_cast<std::int32_t>(token));
        keys.insert(keys.end(), method.prompt.key_halves.begin() + at,
                    method.prompt.key_halves.begin() + at + row);
        values.insert(values.end(), method.prompt.value_halves.begin() + at,
                      method.prompt.value_halves.begin() + at + row);
      }
    }
    const DeviceMemory device_lengths(lengths), device_keys(keys), device_values(values);
    const auto append = [&](std::size_t token, cudaStream_t stream) {
      const std::size_t first = token * sequences * static_cast<std::size_t>(row);
      KvcalNewTokens given{static_cast<std::int64_t>(sequences),
                           device_starts.as<const std::int32_t>(),
                           device_lengths.as<const std::int32_t>() + token * sequences,
                           1,
                           method.rows(device_keys),
                           method.rows(device_values)};
      given.keys.data = device_keys.as<const std::uint16_t>() + first;
      given.values.data = device_values.as<const std::uint16_t>() + first;
      check(kvcal_append(method.opened.get(), 0, &view, &table, &given, stream));
    };
    for (std::size_t token = 0; token < kPageTokens; ++token) append(token, nullptr);
    cache.compare(pages, kDecodedPage);
    add(method, "decode append", sequences, timer_.seconds(kPageTokens, append));
    cache.compare(pages, kDecodedPage);
  }

  Options options_;
  Timer timer_;
  cudaDeviceProp properties_{};
  std::size_t l2_ = 0;
  Rates rates_;
  std::vector<std::string> left_out_;
};

/// A share, 0 to 1.
std::optional<double> share_of(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value >= 0 && value <= 1)) return std::nullopt;
  return value;
}

std::optional<Options> parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--all") {
      options.all = true;
      continue;
    }
    if (i + 1 == count) return std::nullopt;
    const std::string value = arguments[++i];
    if (name == "--json") {
      options.json = value;
      continue;
    }
    const std::optional<double> share = share_of(value);
    if (!share || (name != "--require-append" && name != "--require-dequantise")) return std::nullopt;
    (name == "--require-append" ? options.require_append : options.require_dequantise) = *share;
  }
  return options;
}

int run(int count, char** arguments) {
  const std::optional<Options> options = parse(count, arguments);
  if (!options) {
    std::fprintf(stderr,
                 "usage: kernels_bench [--all] [--json FILE] [--require-append SHARE] "
                 "[--require-dequantise SHARE]\n");
    return 2;
  }
  if (kvcal_device_status(KVCAL_DEVICE_CUDA) != KVCAL_OK) {
    std::fprintf(stderr, "kernels_bench: %s\n", kvcal_last_error());
    return 4;
  }
  return Bench(*options).run();
}

}  // namespace
}  // namespace kvcal::bench

int main(int count, char** arguments) {
  try {
    return kvcal::bench::run(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernels_bench: %s\n", error.what());
    return 1;
  }
}
