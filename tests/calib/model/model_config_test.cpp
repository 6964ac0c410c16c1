#include "calib/model/model_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "calib/model/model.h"
#include "calib/model/model_folder.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class ModelConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("kvcal_config_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  ModelConfig read(const json& config) {
    std::ofstream(folder_ / "config.json") << config.dump();
    return read_model_definition(folder_).config;
  }
  std::string error_of(const json& config) {
    try {
      (void)read(config);
    } catch (const base::InvalidInput& error) {
      return error.what();
    }
    return "";
  }
  void expect_error(const json& config, const std::vector<std::string>& parts) {
    const std::string text = error_of(config);
    for (const std::string& part : parts)
      EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
  }

  const json llama_ = {{"architectures", {"LlamaForCausalLM"}},
                       {"hidden_size", 64},
                       {"intermediate_size", 128},
                       {"num_hidden_layers", 2},
                       {"num_attention_heads", 8},
                       {"vocab_size", 100}};
  fs::path folder_;
};

json with(json config, const std::string& key, const json& value) {
  config[key] = value;
  return config;
}

TEST_F(ModelConfigTest, DefaultsAreTransformers) {
  const ModelConfig model = read(llama_);
  ASSERT_EQ(model.num_layers(), 2);
  for (const LayerConfig& layer : model.layers) {
    EXPECT_EQ(layer.num_attention_heads, 8);
    EXPECT_EQ(layer.num_kv_heads, 8);
    EXPECT_EQ(layer.head_dim, 8);
    EXPECT_EQ(layer.value_dim, 8);
    EXPECT_EQ(layer.window, 0);
    EXPECT_EQ(layer.rope_json, R"({"theta":10000.0,"type":"default"})");
  }
  const json fields = json::parse(model.fingerprint_json);
  EXPECT_EQ(fields["rms_norm_eps"], 1e-6);
  EXPECT_EQ(fields["tied_embeddings"], false);
  const json mistral = with(with(llama_, "architectures", {"MistralForCausalLM"}), "num_attention_heads", 16);
  EXPECT_EQ(read(mistral).layers[0].num_kv_heads, 8);
  EXPECT_EQ(read(mistral).layers[0].window, 4096);
  EXPECT_EQ(read(with(mistral, "sliding_window", nullptr)).layers[0].window, 0);
}

TEST_F(ModelConfigTest, RopeIsReadInBothForms) {
  const json scaling = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  const ModelConfig old_form = read(with(with(llama_, "rope_scaling", scaling), "rope_theta", 500000.0));
  const ModelConfig new_form = read(with(llama_, "rope_parameters", with(scaling, "rope_theta", 500000.0)));
  EXPECT_EQ(json::parse(old_form.layers[0].rope_json)["type"], "llama3");
  EXPECT_EQ(old_form.layers[0].rope_json, new_form.layers[0].rope_json);
  EXPECT_EQ(old_form.sha256(), new_form.sha256());
  const ModelConfig linear = read(with(llama_, "rope_scaling", {{"type", "linear"}, {"factor", 2.0}}));
  EXPECT_EQ(json::parse(linear.layers[0].rope_json)["factor"], 2.0);
}

TEST_F(ModelConfigTest, TheFingerprintIsOfWhatTheMathematicsUses) {
  const std::string plain = read(llama_).sha256();
  EXPECT_EQ(read(with(llama_, "transformers_version", "9")).sha256(), plain);
  EXPECT_EQ(read(with(llama_, "rope_theta", 10000.0)).sha256(), plain);
  EXPECT_NE(read(with(llama_, "rope_theta", 20000.0)).sha256(), plain);
  EXPECT_NE(read(with(llama_, "rms_norm_eps", 1e-5)).sha256(), plain);
}

TEST_F(ModelConfigTest, RefusalsNameFileKeyAndRemedy) {
  expect_error(with(llama_, "architectures", {"GPT2LMHeadModel"}),
               {"GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM"});
  expect_error(with(llama_, "quantization_config", {{"quant_method", "awq"}}),
               {"quantised", "awq", "original"});
  expect_error(with(llama_, "hidden_size", "64"), {"config.json", "'hidden_size'", "\"64\""});
  expect_error(with(llama_, "num_key_value_heads", 3), {"'num_key_value_heads'", "divisor"});
  expect_error(with(llama_, "hidden_act", "swiglu"), {"'hidden_act'", "silu"});
  expect_error(with(llama_, "rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}), {"yarn", "llama3"});
  expect_error(with(llama_, "rope_scaling", {{"rope_type", "linear"}}), {"factor"});
  expect_error(with(llama_, "vocab_size", -5), {"'vocab_size'", "-5"});
  expect_error(json::array(), {"not a JSON object"});
}

TEST_F(ModelConfigTest, BrokenJsonNamesTheFile) {
  std::ofstream(folder_ / "config.json") << "{\"hidden_size\": ";
  EXPECT_THROW((void)read_model_definition(folder_), base::InvalidInput);
}

TEST_F(ModelConfigTest, AFileOrAnAbsentNameIsAnsweredWithWhatHelps) {
  const auto text_of = [](const std::string& model) -> std::string {
    try {
      (void)find_model_folder(model);
    } catch (const base::Error& error) {
      return error.what();
    }
    return "";
  };
  std::ofstream(folder_ / "model.gguf") << "GGUF";
  EXPECT_NE(text_of((folder_ / "model.gguf").string()).find("GGUF"), std::string::npos);
  EXPECT_NE(text_of(folder_.string()).find("GGUF"), std::string::npos);
  EXPECT_NE(text_of("nobody/no-such-model").find("hf download nobody/no-such-model"), std::string::npos);
  EXPECT_NE(text_of("/no/such/folder").find("no such folder"), std::string::npos);
}

TEST_F(ModelConfigTest, ANameIsFoundInTheHubCache) {
  const fs::path snapshot = folder_ / "models--org--small/snapshots/abc";
  fs::create_directories(snapshot);
  fs::create_directories(folder_ / "models--org--small/refs");
  std::ofstream(folder_ / "models--org--small/refs/main") << "abc\n";
  ::setenv("HF_HUB_CACHE", folder_.c_str(), 1);
  EXPECT_EQ(find_model_folder("org/small").path, snapshot);
  EXPECT_EQ(find_model_folder("org/small").name, "org/small");
  ::unsetenv("HF_HUB_CACHE");
}

}  // namespace
}  // namespace kvcal::calib
