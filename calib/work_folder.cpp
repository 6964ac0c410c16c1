#include "calib/work_folder.h"

#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"

namespace kvcal::calib {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

std::string numbered(const char* format, int layer) {
  char name[64];
  std::snprintf(name, sizeof(name), format, layer);
  return name;
}

void make_folder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error)
    throw base::SystemError(
        base::concat("cannot make the work folder ", path.string(), ": ", error.message()));
}

}  // namespace

std::string identity_difference(const std::string& left_json, const std::string& right_json) {
  const json left = json::parse(left_json, nullptr, false);
  const json right = json::parse(right_json, nullptr, false);
  if (!left.is_object() || !right.is_object()) return "run.json";
  std::set<std::string> keys;
  for (const json* side : {&left, &right}) {
    for (const auto& [key, value] : side->items()) keys.insert(key);
  }
  std::string names;
  for (const std::string& key : keys) {
    if (left.value(key, json()) == right.value(key, json())) continue;
    names += (names.empty() ? "" : ", ") + key;
    if (left.contains(key) && right.contains(key) && left[key].dump().size() < 40 &&
        right[key].dump().size() < 40) {
      names += " (" + left[key].dump() + " there, " + right[key].dump() + " here)";
    }
  }
  return names;
}

namespace {

fs::path run_file(const fs::path& folder) {
  return folder / "run.json";
}

fs::path losses_file(const fs::path& folder) {
  return folder / "head.json";
}

fs::path layer_file(const fs::path& folder, int layer) {
  return folder / numbered("layer_%04d.h5", layer);
}

// Throws where the folder belongs to another run, or to something else altogether.
void check_identity(const fs::path& path, const std::string& identity_json) {
  if (!fs::exists(run_file(path))) {
    for (const auto& item : fs::directory_iterator(path)) {
      const std::string name = item.path().filename().string();
      if (name == "lock" || name.ends_with(".tmp")) continue;
      throw base::InvalidInput(
          base::concat(path.string(), " holds ", name,
                       ", which is not of a kvcal run; name an empty or new folder with --work"));
    }
    return;
  }
  const std::string difference = identity_difference(base::read_text_file(run_file(path)), identity_json);
  if (difference.empty()) return;
  throw base::InvalidInput(base::concat("the work folder ", path.string(),
                                        " belongs to another run: ", difference,
                                        " differ; remove it to start anew, or name another with --work"));
}

}  // namespace

WorkState WorkFolder::state(const fs::path& path, const std::string& identity_json, int num_layers) {
  WorkState state;
  if (!fs::is_directory(path)) return state;
  check_identity(path, identity_json);
  for (int layer = 0; layer < num_layers; ++layer) state.layers_done += fs::exists(layer_file(path, layer));
  state.forward_done = fs::exists(losses_file(path));
  return state;
}

WorkFolder::WorkFolder(const fs::path& path, const std::string& identity_json) : path_(path) {
  make_folder(path_);
  lock_ = std::make_unique<base::FileLock>(path_ / "lock");
  check_identity(path_, identity_json);
  base::remove_temporaries(path_);
  if (!fs::exists(run_file(path_))) base::write_file_atomically(run_file(path_), identity_json);
}

fs::path WorkFolder::hidden_file(int layer) const {
  return path_ / numbered("hidden_%04d.bin", layer);
}

fs::path WorkFolder::gradient_file(int layer) const {
  return path_ / numbered("gradient_%04d.bin", layer);
}

std::optional<std::vector<double>> WorkFolder::losses() const {
  const fs::path file = losses_file(path_);
  if (!fs::exists(file)) return std::nullopt;
  const json content = json::parse(base::read_text_file(file), nullptr, false);
  if (!content.is_array())
    throw base::InvalidInput(base::concat(file.string(), ": damaged; remove it and run again"));
  return content.get<std::vector<double>>();
}

void WorkFolder::save_losses(const std::vector<double>& losses) const {
  base::write_file_atomically(losses_file(path_), json(losses).dump());
}

bool WorkFolder::has_layer(int layer) const {
  return fs::exists(layer_file(path_, layer));
}

std::optional<formats::LayerCodebook> WorkFolder::load_layer(int layer) const {
  if (!has_layer(layer)) return std::nullopt;
  try {
    formats::Codebook codebook = formats::read_codebook(layer_file(path_, layer));
    if (codebook.layers.size() == 1 && codebook.layers[0].index == layer)
      return std::move(codebook.layers[0]);
  } catch (const base::Error&) {
    // Damaged on disk: made again below.
  }
  remove(layer_file(path_, layer));
  return std::nullopt;
}

void WorkFolder::save_layer(const formats::Codebook& frame, const formats::LayerCodebook& layer) const {
  formats::Codebook codebook = frame;
  codebook.layers = {layer};
  formats::write_codebook(layer_file(path_, layer.index), codebook);
}

void WorkFolder::remove(const fs::path& file) const {
  std::error_code ignored;
  fs::remove(file, ignored);
}

void WorkFolder::remove_all() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  lock_.reset();
}

}  // namespace kvcal::calib
