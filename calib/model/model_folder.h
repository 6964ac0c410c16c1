// calib/model/model_folder.h: from what a user types after --model to a folder that holds a checkpoint.
#pragma once

#include <filesystem>
#include <string>

namespace kvcal::calib {

struct ModelFolder {
  std::filesystem::path path;
  std::string name;  ///< "org/model" for a cached one, else the folder's own name
};

/// model: a folder, or a name ("org/model") in the local Hugging Face cache (HF_HUB_CACHE, HF_HOME/hub or
/// ~/.cache/huggingface/hub). Throws InvalidInput: neither (with the command that downloads it); a GGUF, .bin
/// or .pth file or a folder of such (with the conversion that helps).
[[nodiscard]] ModelFolder find_model_folder(const std::string& model);

}  // namespace kvcal::calib
