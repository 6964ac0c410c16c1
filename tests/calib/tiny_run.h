// tests/calib/tiny_run.h: calibrations of a tiny random model, run to the end, stopped at chosen moments, and
// what they leave on disk.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "calib/calibrate.h"
#include "calib/model/model.h"
#include "calib/plan/machine.h"
#include "calib/text/text_sampler.h"
#include "fisher/block_gradients.h"
#include "formats/npy.h"
#include "formats/safetensors.h"

namespace kvcal::calib {

namespace fs = std::filesystem;

constexpr int kLayers = 3;
constexpr std::int64_t kHidden = 32, kChannels = 2 * 8, kInner = 48, kVocabulary = 64;  // of kConfig
constexpr std::int64_t kSamples = 4, kLength = 24, kPadding = 5;
constexpr std::int64_t kTokens = kSamples * kLength - kPadding;

constexpr const char* kConfig = R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
  "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
  "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": true})";

/// A Llama of random weights, always the same.
inline void write_model(const fs::path& folder) {
  at::manual_seed(11);
  std::map<std::string, at::Tensor> tensors;
  const auto add = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    tensors[name + ".weight"] = at::randn({out, in}, at::kFloat) * 0.2;
  };
  const auto add_norm = [&](const std::string& name) {
    tensors[name + ".weight"] = 1 + at::randn({kHidden}, at::kFloat) * 0.1;
  };
  add("model.embed_tokens", kVocabulary, kHidden);
  add_norm("model.norm");
  for (int layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = base::concat("model.layers.", layer, ".");
    add_norm(prefix + "input_layernorm");
    add_norm(prefix + "post_attention_layernorm");
    for (const char* name : {"self_attn.q_proj", "self_attn.o_proj"}) add(prefix + name, kHidden, kHidden);
    for (const char* name : {"self_attn.k_proj", "self_attn.v_proj"}) add(prefix + name, kChannels, kHidden);
    for (const char* name : {"mlp.gate_proj", "mlp.up_proj"}) add(prefix + name, kInner, kHidden);
    add(prefix + "mlp.down_proj", kHidden, kInner);
  }
  fs::create_directories(folder);
  std::ofstream(folder / "config.json") << kConfig;
  std::vector<formats::TensorView> views;
  for (const auto& [name, tensor] : tensors) {
    const auto* data = static_cast<const std::byte*>(tensor.const_data_ptr());
    views.push_back({name, formats::Dtype::F32, tensor.sizes().vec(), {data, tensor.nbytes()}, {}});
  }
  formats::write_safetensors(folder / "model.safetensors", views);
}

/// The last row ends in padding.
inline void write_tokens(const fs::path& file) {
  std::mt19937 generator(5);
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < kSamples * kLength; ++i)
    ids.push_back(i < kTokens ? static_cast<std::int32_t>(generator() % kVocabulary) : -1);
  const std::vector<std::int64_t> shape = {kSamples, kLength};
  formats::write_npy(file, ids, shape);
}

/// Keeps what a run says, and stops it where `stop` says so.
class Listener : public base::Progress {
 public:
  explicit Listener(std::function<bool(const Listener&)> stop_where = nullptr)
      : stop(std::move(stop_where)) {}

  void begin_stage(std::string_view name, std::int64_t /*total*/, std::string_view /*unit*/) override {
    stages.emplace_back(name);
    stage_checks = 0;
  }
  void warning(std::string_view text) override { warnings.emplace_back(text); }
  void check_interrupted() override {
    ++checks;
    ++stage_checks;
    if (stop && stop(*this)) throw base::Interrupted(2);
  }
  [[nodiscard]] bool warned_of(const std::string& name) const {
    return std::ranges::any_of(warnings,
                               [&](const auto& text) { return text.find(name) != std::string::npos; });
  }

  std::function<bool(const Listener&)> stop;
  std::vector<std::string> stages, warnings;
  int checks = 0;        // in all
  int stage_checks = 0;  // since the stage began; a stage checks once for each sample of each layer
};

/// Where to stop a run, and what it has left in its work folder by then, beside the lock and run.json.
struct StopPoint {
  const char* name;
  const char* stage;
  int check;                         ///< of the stage; the first sample of a layer, so that no lane is ahead
  const char* fitted;                ///< a layer file that the fit beside the pass writes first, or ""
  std::vector<std::string> files;    ///< sorted
  std::vector<std::string> of_need;  ///< those that the rest of the run reads
};

inline void PrintTo(const StopPoint& point, std::ostream* out) {
  *out << point.name;
}

const StopPoint kTwoLayersForward = {"TwoLayersForward",
                                     "forward",
                                     2 * kSamples + 1,
                                     "",
                                     {"hidden_0000.bin", "hidden_0001.bin", "hidden_0002.bin"},
                                     {"hidden_0000.bin", "hidden_0001.bin", "hidden_0002.bin"}};
const StopPoint kOneLayerFitted = {
    "OneLayerFitted",
    "backward",
    kSamples + 1,
    "layer_0002.h5",
    {"gradient_0002.bin", "gradient_0003.bin", "head.json", "hidden_0000.bin", "hidden_0001.bin",
     "hidden_0002.bin", "layer_0002.h5"},
    {"gradient_0002.bin", "head.json", "hidden_0000.bin", "hidden_0001.bin", "layer_0002.h5"}};
const StopPoint kTwoLayersFitted = {
    "TwoLayersFitted",
    "backward",
    2 * kSamples + 1,
    "layer_0001.h5",
    {"gradient_0001.bin", "gradient_0002.bin", "head.json", "hidden_0000.bin", "hidden_0001.bin",
     "layer_0001.h5", "layer_0002.h5"},
    {"gradient_0001.bin", "head.json", "hidden_0000.bin", "layer_0001.h5", "layer_0002.h5"}};

inline std::string bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_bytes(const fs::path& file, const std::string& bytes) {
  std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
}

/// Everything below a folder: its inode, and when it was last written, in nanoseconds.
inline std::map<std::string, std::pair<std::uint64_t, std::int64_t>> snapshot(const fs::path& folder) {
  std::map<std::string, std::pair<std::uint64_t, std::int64_t>> result;
  for (const auto& item : fs::recursive_directory_iterator(folder)) {
    struct stat status {};
    EXPECT_EQ(::lstat(item.path().c_str(), &status), 0);
    result[fs::relative(item.path(), folder).string()] = {
        status.st_ino, std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
  }
  return result;
}

inline std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& item : fs::directory_iterator(folder)) names.push_back(item.path().filename().string());
  std::ranges::sort(names);
  return names;
}

class CalibrateTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("kvcal_calibrate_" + std::to_string(::getpid()));
    fs::remove_all(root_);
    options_.model = (root_ / "model").string();
    options_.tokens = root_ / "tokens.npy";
    options_.out = root_ / "out.h5";
    options_.bits = {2, 3};
    options_.outliers = {0, 0.05};
    options_.dtype = DtypeChoice::float32;
    options_.threads = 2;
    write_model(options_.model);
    write_tokens(options_.tokens);
    work_ = options_.work_folder();
  }
  void TearDown() override { fs::remove_all(root_); }

  CalibrationReport run() {
    base::Progress quiet;
    return calibrate(options_, quiet);
  }
  /// Whether it was stopped before its end.
  bool stopped(Listener& listener) {
    try {
      (void)calibrate(options_, listener);
      return false;
    } catch (const base::Interrupted&) {
      return true;
    }
  }
  void stop_at(const StopPoint& point) {
    bool waited_in_vain = false;
    Listener listener([&](const Listener& now) {
      if (now.stages.empty() || now.stages.back() != point.stage || now.stage_checks < point.check)
        return false;
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      while (!fs::exists(work_ / point.fitted) && !waited_in_vain) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        waited_in_vain = std::chrono::steady_clock::now() > deadline;
      }
      return true;
    });
    ASSERT_TRUE(stopped(listener));
    ASSERT_FALSE(waited_in_vain) << point.fitted;
    std::vector<std::string> expected = point.files;
    expected.insert(expected.end(), {"lock", "run.json"});
    ASSERT_EQ(names_in(work_), expected);
  }
  /// What a run gives that nothing disturbs; the same for every test.
  const std::string& undisturbed() {
    static const std::string bytes = [this] {
      CalibrationOptions options = options_;
      options.out = root_ / "undisturbed.h5";
      base::Progress quiet;
      (void)calibrate(options, quiet);
      std::string result = bytes_of(options.out);
      fs::remove(options.out);
      return result;
    }();
    return bytes;
  }
  void expect_finished() {
    EXPECT_TRUE(bytes_of(options_.out) == undisturbed());
    EXPECT_FALSE(fs::exists(work_));
  }

  fs::path root_, work_;
  CalibrationOptions options_;
};

}  // namespace kvcal::calib
