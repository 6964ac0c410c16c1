#include "calib/model/model_folder.h"

#include <cstdlib>
#include <optional>

#include "base/error.h"
#include "base/file.h"

namespace kvcal::calib {
namespace {

namespace fs = std::filesystem;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

fs::path hub_cache() {
  if (const std::string cache = environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const std::string home = environment("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  if (const std::string cache = environment("XDG_CACHE_HOME"); !cache.empty())
    return fs::path(cache) / "huggingface/hub";
  return fs::path(environment("HOME")) / ".cache/huggingface/hub";
}

bool is_hub_name(const std::string& model) {
  const auto slash = model.find('/');
  return slash != std::string::npos && slash > 0 && slash + 1 < model.size() &&
         model.find('/', slash + 1) == std::string::npos && model.front() != '.' && model.front() != '/' &&
         model.front() != '~';
}

// The snapshot that refs/main names; else the only one there is.
std::optional<fs::path> cached_snapshot(const std::string& model) {
  const auto slash = model.find('/');
  const fs::path entry = hub_cache() / ("models--" + model.substr(0, slash) + "--" + model.substr(slash + 1));
  std::error_code ignored;
  if (fs::exists(entry / "refs/main", ignored)) {
    std::string revision = base::read_text_file(entry / "refs/main");
    while (!revision.empty() && std::isspace(static_cast<unsigned char>(revision.back())) != 0)
      revision.pop_back();
    const fs::path snapshot = entry / "snapshots" / revision;
    if (!revision.empty() && fs::is_directory(snapshot, ignored)) return snapshot;
  }
  std::optional<fs::path> only;
  for (const auto& item : fs::directory_iterator(entry / "snapshots", ignored)) {
    if (only) return std::nullopt;
    only = item.path();
  }
  return only;
}

void refuse_file(const fs::path& file) {
  const std::string extension = file.extension().string();
  std::string remedy = "expected a folder with config.json and *.safetensors";
  if (extension == ".gguf") {
    remedy =
        "GGUF weights are quantised for llama.cpp; name the folder of the original checkpoint (safetensors), "
        "or convert it: "
        "AutoModelForCausalLM.from_pretrained(DIR, gguf_file=FILE).save_pretrained(OUT) of transformers";
  } else if (extension == ".bin" || extension == ".pth" || extension == ".pt") {
    remedy =
        "pickled weights are not read; convert the folder: "
        "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT) "
        "of transformers writes safetensors";
  } else if (extension == ".safetensors") {
    remedy = "name the folder that holds it, beside its config.json";
  }
  throw base::InvalidInput(base::concat("--model ", file.string(), " is a file; ", remedy));
}

// A folder without config.json: say what it is where its files tell.
void refuse_foreign_folder(const fs::path& folder) {
  for (const auto& item : fs::directory_iterator(folder)) {
    const std::string name = item.path().filename().string();
    if (item.path().extension() == ".gguf" || item.path().extension() == ".bin") refuse_file(item.path());
    if (name.starts_with("consolidated.") && item.path().extension() == ".pth") {
      throw base::InvalidInput(base::concat(
          folder.string(), " holds ", name,
          ", Meta's own form; convert it with transformers' "
          "models/llama/convert_llama_weights_to_hf.py, or download the repository's Hugging Face form"));
    }
  }
  throw base::InvalidInput(
      base::concat(folder.string(), ": no config.json; --model takes a folder of the Hugging Face form"));
}

}  // namespace

ModelFolder find_model_folder(const std::string& model) {
  if (model.empty()) throw base::WrongUsage("--model is empty");
  std::error_code ignored;
  const fs::path path(model);
  if (fs::is_regular_file(path, ignored)) refuse_file(path);
  if (fs::is_directory(path, ignored)) {
    if (!fs::exists(path / "config.json", ignored)) refuse_foreign_folder(path);
    std::string name = fs::weakly_canonical(path, ignored).filename().string();
    return {path, name.empty() ? model : name};
  }
  if (is_hub_name(model)) {
    if (const auto snapshot = cached_snapshot(model)) return {*snapshot, model};
    throw base::InvalidInput(base::concat("--model ", model,
                                          " is neither a folder nor in the Hugging Face cache at ",
                                          hub_cache().string(), "; download it first: hf download ", model));
  }
  throw base::InvalidInput(base::concat("--model ", model, ": no such folder"));
}

}  // namespace kvcal::calib
