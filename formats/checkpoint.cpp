#include "formats/checkpoint.h"

#include <algorithm>
#include <map>
#include <set>

#include "base/error.h"
#include "base/sha256.h"
#include "formats/internal/json.h"
#include "formats/json.h"

namespace kvcal::formats {
namespace {

using base::concat;
using base::InvalidInput;
namespace fs = std::filesystem;

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";
/// Tensor name -> shard file name, both checked.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const nlohmann::json index = read_json_file(path);
  const auto weights = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || weights == index.end() || !weights->is_object() || weights->empty()) {
    throw InvalidInput(concat(path.string(), ": no weight_map that names the shard of each tensor"));
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : weights->items()) {
    if (!shard.is_string())
      throw InvalidInput(concat(path.string(), ": the shard of tensor '", name, "' is not text"));
    const std::string file = shard.get<std::string>();
    // A shard lies beside its index: anything else could name any file of the machine.
    if (file.empty() || file == "." || file == ".." ||
        file.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      // The reason before the name: a zero byte in it ends the message.
      throw InvalidInput(concat(path.string(),
                                ": refused: not the name of a file in the same folder: the shard '", file,
                                "' of tensor '", name, "'"));
    }
    shards.emplace(name, file);
  }
  return shards;
}

/// Why there is nothing to read here, with the way out.
[[noreturn]] void throw_no_safetensors(const fs::path& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    names.insert(it->path().filename().string());
  }
  if (error)
    throw base::SystemError(concat("cannot read the folder ", folder.string(), ": ", error.message()));
  const auto any = [&](auto&& matches) { return std::ranges::find_if(names, matches); };
  const auto fail = [&](const std::string& found, std::string_view remedy) {
    throw InvalidInput(
        concat(folder.string(), ": found ", found, " but no ", kSingle, " and no ", kIndex, "; ", remedy));
  };
  auto found = any([](const std::string& name) { return name.ends_with(".gguf"); });
  if (found != names.end()) {
    fail(
        *found,
        "GGUF files hold quantised weights: use the model's original folder from Hugging Face (safetensors)");
  }
  found =
      any([](const std::string& name) { return name.starts_with("consolidated") || name == "params.json"; });
  if (found != names.end()) {
    fail(*found,
         "this is the maker's own layout: convert it with transformers' convert_llama_weights_to_hf.py "
         "(Llama) or "
         "convert_mistral_weights_to_hf.py (Mistral), or download the -hf variant of the model");
  }
  found = any([](const std::string& name) {
    return name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt");
  });
  if (found != names.end()) {
    fail(*found,
         "PyTorch pickles can run code and are not read: convert them with python -c \"from transformers "
         "import "
         "AutoModelForCausalLM as M; M.from_pretrained('DIR', "
         "torch_dtype='auto').save_pretrained('DIR-safetensors')\"");
  }
  found = any([](const std::string& name) { return name.ends_with(".safetensors"); });
  if (found != names.end()) {
    fail(*found,
         "download the missing index (or rename a file that holds the whole model to model.safetensors)");
  }
  throw InvalidInput(concat(folder.string(), ": no ", kSingle, " and no ", kIndex,
                            ": not a model folder, or its weights were not downloaded"));
}

void add_uint64(base::Sha256& hash, std::uint64_t value) {
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) bytes.push_back(static_cast<char>((value >> shift) & 0xffU));
  hash.update(bytes);
}

const SafetensorsFile* owner(std::span<const SafetensorsFile> files, const TensorView& tensor) {
  const auto found = std::ranges::find(files, tensor.file, &SafetensorsFile::path);
  return found == files.end() ? nullptr : &*found;
}

}  // namespace

Checkpoint::Checkpoint(const fs::path& folder) : folder_(folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw InvalidInput(concat(folder.string(), ": ",
                              fs::exists(folder, error) ? "not a folder" : "there is no such folder",
                              "; expected a model folder with config.json and safetensors weights"));
  }
  if (fs::exists(folder / kSingle, error)) {
    files_.emplace_back(folder / kSingle);
  } else if (fs::exists(folder / kIndex, error)) {
    open_shards(folder / kIndex);
  } else {
    throw_no_safetensors(folder);
  }
  for (const SafetensorsFile& file : files_)
    tensors_.insert(tensors_.end(), file.tensors().begin(), file.tensors().end());
  std::ranges::stable_sort(tensors_, {}, &TensorView::name);
  const auto twice = std::ranges::adjacent_find(tensors_, {}, &TensorView::name);
  if (twice != tensors_.end()) {
    throw InvalidInput(concat(folder.string(), ": the tensor '", twice->name,
                              "' is in two shards: ", twice->file.filename().string(), " and ",
                              std::next(twice)->file.filename().string(),
                              "; remove files that are left over from another model"));
  }
}

void Checkpoint::open_shards(const fs::path& index) {
  const std::map<std::string, std::string> shards = read_index(index);
  std::map<std::string, std::size_t> opened;
  for (const auto& [tensor, shard] : shards) {
    if (opened.contains(shard)) continue;
    std::error_code error;
    if (!fs::exists(folder_ / shard, error)) {
      throw InvalidInput(
          concat(folder_.string(), ": the shard ", shard, ", which ", kIndex, " names for tensor '", tensor,
                 "', is missing; download it (hf download ORG/MODEL ", shard, " --local-dir DIR)"));
    }
    opened.emplace(shard, files_.size());
    files_.emplace_back(folder_ / shard);
  }
  for (const auto& [tensor, shard] : shards) {
    if (files_[opened.at(shard)].find(tensor) == nullptr) {
      throw InvalidInput(concat(folder_.string(), ": ", kIndex, " says that tensor '", tensor, "' is in ",
                                shard, ", but it is not there; download both again"));
    }
  }
}

const TensorView* Checkpoint::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(tensors_, name, {}, &TensorView::name);
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

const TensorView& Checkpoint::get(std::string_view name) const {
  const TensorView* found = find(name);
  if (found == nullptr) {
    throw InvalidInput(concat(folder_.string(), ": the tensor '", name, "' is missing from the checkpoint's ",
                              tensors_.size(),
                              " tensors; is it complete, and of the architecture that config.json says?"));
  }
  return *found;
}

std::string Checkpoint::weights_sha256() const {
  constexpr std::size_t kEdgeBytes = 32 * 1024;
  base::Sha256 hash;
  for (const TensorView& tensor : tensors_) {
    add_uint64(hash, tensor.name.size());
    hash.update(tensor.name);
    add_uint64(hash, dtype_name(tensor.dtype).size());
    hash.update(dtype_name(tensor.dtype));
    add_uint64(hash, tensor.shape.size());
    for (const std::int64_t extent : tensor.shape) add_uint64(hash, static_cast<std::uint64_t>(extent));
    add_uint64(hash, tensor.data.size());
    const std::size_t edge = std::min(kEdgeBytes, tensor.data.size());
    hash.update(tensor.data.first(edge));
    hash.update(tensor.data.last(edge));
  }
  return hash.hex();
}

void Checkpoint::advise_will_need(const TensorView& tensor) const {
  if (const SafetensorsFile* file = owner(files_, tensor)) file->advise_will_need(tensor);
}

void Checkpoint::advise_dont_need(const TensorView& tensor) const {
  if (const SafetensorsFile* file = owner(files_, tensor)) file->advise_dont_need(tensor);
}

}  // namespace kvcal::formats
