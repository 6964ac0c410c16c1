// tests/bench/rates.h: what kernels_bench measures: a line of its table each, what is below what is required, all as JSON.
#pragma once

#include <cstddef>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace kvcal::bench {

struct Rate {
  std::string operation;
  int bits;
  double outliers;
  unsigned head_dim;
  std::size_t count;  ///< tokens; of a decode append sequences
  double seconds;
  std::size_t bytes = 0;  ///< read and written; 0: only the time was measured
};

/// Prefill appends and dequantises of fewer tokens than this do not fill a device: nothing is required of them.
inline constexpr std::size_t kGatedTokens = 32768;

class Rates {
 public:
  std::string device;
  double copy = 0;  ///< bytes a second, read and written

  static void print_header() {
    std::printf("| operation | bits | outliers | head_dim | tokens | us | GB/s | share of the copy |\n");
    std::printf("|---|---|---|---|---|---|---|---|\n");
  }

  /// Prints it, too.
  void add(Rate rate) {
    std::printf("| %s | %d | %g %% | %u | %zu | %.1f |", rate.operation.c_str(), rate.bits,
                rate.outliers * 100, rate.head_dim, rate.count, rate.seconds * 1e6);
    if (rate.bytes > 0)
      std::printf(" %.0f | %.1f %% |\n", speed(rate) / 1e9, speed(rate) / copy * 100);
    else
      std::printf(" | |\n");
    std::fflush(stdout);
    rates_.push_back(std::move(rate));
  }

  /// Sentences on those of an operation whose share of the copy is below `least`, or that there are none. least 0: none is.
  [[nodiscard]] std::vector<std::string> below(const std::string& operation, double least) const {
    std::vector<std::string> found;
    if (least <= 0) return found;
    std::size_t measured = 0;
    for (const Rate& rate : rates_) {
      if (rate.operation != operation || rate.count < kGatedTokens) continue;
      ++measured;
      if (speed(rate) / copy >= least) continue;
      std::ostringstream text;
      text << operation << ", " << rate.bits << " bits, " << rate.outliers * 100 << " % outliers, head_dim "
           << rate.head_dim << ", " << rate.count << " tokens: " << speed(rate) / copy
           << " of the copy; required " << least;
      found.push_back(text.str());
    }
    if (measured == 0)
      found.push_back(operation + ": nothing of " + std::to_string(kGatedTokens) +
                      " tokens or more was measured");
    return found;
  }

  /// Throws std::runtime_error where the file cannot be written.
  void write_json(const std::string& path, double copy_after, const std::vector<std::string>& below) const {
    std::ofstream file(path);
    // Neither the device's name nor what is below holds a character that JSON would have escaped.
    file << "{\n  \"device\": \"" << device << "\",\n  \"copy_bytes_per_second\": " << copy
         << ",\n  \"copy_bytes_per_second_after\": " << copy_after << ",\n  \"rates\": [";
    const char* separator = "\n";
    for (const Rate& rate : rates_) {
      file << separator << "    {\"operation\": \"" << rate.operation << "\", \"bits\": " << rate.bits
           << ", \"outliers\": " << rate.outliers << ", \"head_dim\": " << rate.head_dim
           << (rate.bytes > 0 ? ", \"tokens\": " : ", \"sequences\": ") << rate.count
           << ", \"seconds\": " << rate.seconds;
      if (rate.bytes > 0)
        file << ", \"bytes_per_second\": " << speed(rate) << ", \"share\": " << speed(rate) / copy;
      file << '}';
      separator = ",\n";
    }
    file << "\n  ],\n  \"below\": [";
    separator = "\n";
    for (const std::string& line : below) {
      file << separator << "    \"" << line << '"';
      separator = ",\n";
    }
    file << "\n  ]\n}\n";
    file.close();
    if (!file) throw std::runtime_error("cannot write " + path);
  }

 private:
  static double speed(const Rate& rate) { return static_cast<double>(rate.bytes) / rate.seconds; }

  std::vector<Rate> rates_;
};

}  // namespace kvcal::bench
