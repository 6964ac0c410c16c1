#include "calib/engine/work_folder.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "base/checksum.h"
#include "base/error.h"
#include "base/new_file.h"
#include "formats/json.h"

namespace kvcal::calib {

using nlohmann::json;
namespace fs = std::filesystem;

namespace {

// What the lock says, and who may remove the folder.
constexpr std::string_view kFolderMade = "kvcal made this folder and removes it when it is done\n";
constexpr std::string_view kFolderFound = "this folder was here before kvcal used it\n";
constexpr std::uint64_t kMaxJsonBytes = std::uint64_t{1} << 26;

std::string numbered(const char* format, int layer) {
  char name[64];
  std::snprintf(name, sizeof(name), format, layer);
  return name;
}

fs::path run_file(const fs::path& folder) {
  return folder / "run.json";
}

fs::path losses_file(const fs::path& folder) {
  return folder / "head.json";
}

fs::path layer_file(const fs::path& folder, int layer) {
  return folder / numbered("layer_%04d.h5", layer);
}

// Whether a run gives a file this name: "hidden_0003.bin", but not "hidden_3.bin".
bool is_final_name(std::string_view name) {
  if (name == "lock" || name == "run.json" || name == "head.json") return true;
  for (const char* format : {"hidden_%04d.bin", "gradient_%04d.bin", "layer_%04d.h5"}) {
    const std::string_view stem = std::string_view(format).substr(0, std::string_view(format).find('%'));
    if (!name.starts_with(stem)) continue;
    const std::string digits(name.substr(stem.size(), 4));
    if (digits.size() == 4 && digits.find_first_not_of("0123456789") == std::string::npos &&
        name == numbered(format, std::stoi(digits)))
      return true;
  }
  return false;
}

std::string text_of(const fs::path& file) {
  const std::vector<std::byte> bytes = base::read_file(file, kMaxJsonBytes);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Whether a file named lock is one of ours, and not a user's.
bool is_our_lock(const fs::path& file) {
  const std::string text = text_of(file);
  return text.empty() || text == kFolderMade || text == kFolderFound;
}

// Throws where the folder belongs to another run, or to something else altogether.
bool is_json(const std::string& text) {
  try {
    (void)formats::parse_json(text, "");
    return true;
  } catch (const base::InvalidInput&) {
    return false;
  }
}

void check_identity(const fs::path& path, const std::string& identity_json) {
  if (!fs::exists(run_file(path))) {
    for (const auto& item : fs::directory_iterator(path)) {
      const std::string name = item.path().filename().string();
      // Killed between making the folder and naming the run.
      if ((name == "lock" && is_our_lock(item.path())) || base::name_of_unfinished(name) == "run.json")
        continue;
      throw base::InvalidInput(
          base::concat(path.string(), " holds ", name,
                       ", which is not of a kvcal run; name an empty or new folder with --work"));
    }
    return;
  }
  const std::string identity = text_of(run_file(path));
  if (!is_json(identity)) {
    throw base::InvalidInput(
        base::concat(run_file(path).string(),
                     ": damaged, so that nobody knows which run the checkpoints beside it are "
                     "of; remove the folder to start anew, or name another with --work"));
  }
  const std::string difference = identity_difference(identity, identity_json);
  if (difference.empty()) return;
  throw base::InvalidInput(base::concat("the work folder ", path.string(),
                                        " belongs to another run: ", difference,
                                        " differ; remove it to start anew, or name another with --work"));
}

// Of the numbers, in whatever digits they are written.
std::string checksum_of(const std::vector<double>& losses) {
  return base::concat(base::checksum(std::as_bytes(std::span(losses))));
}

std::vector<double> parse_losses(const fs::path& file, std::int64_t samples) {
  const std::string text = text_of(file);
  try {
    const json content = formats::parse_json(text, file.string());
    auto losses = content.at("losses").get<std::vector<double>>();
    const bool whole = static_cast<std::int64_t>(losses.size()) == samples &&
                       std::ranges::all_of(losses, [](double loss) { return std::isfinite(loss); });
    if (whole && content.at("checksum") == checksum_of(losses)) return losses;
  } catch (const base::InvalidInput&) {
    // Damaged: below.
  } catch (const json::exception&) {
    // Damaged: below.
  }
  throw DamagedCheckpoint(file, base::concat("not the ", samples, " losses that were written"));
}

formats::LayerCodebook parse_layer(const fs::path& file, int layer) {
  try {
    formats::Codebook codebook = formats::read_codebook(file);
    if (codebook.layers.size() == 1 && codebook.layers[0].index == layer)
      return std::move(codebook.layers[0]);
  } catch (const base::InvalidInput& error) {
    const std::string text = error.what();
    const std::string prefix = file.string() + ": ";
    throw DamagedCheckpoint(file, text.starts_with(prefix) ? text.substr(prefix.size()) : text);
  }
  throw DamagedCheckpoint(file, "holds other layers");
}

// Notes a file that is known to be damaged. Returns whether it is one.
bool note_known(const fs::path& file, const std::vector<DamagedCheckpoint>& known, Checkpoints& found) {
  const auto damage = std::ranges::find(known, file, &DamagedCheckpoint::file);
  if (damage == known.end()) return false;
  found.damaged.push_back(*damage);
  return true;
}

// Only by its size: what is in it is checked when it is read.
bool activation_is_there(const fs::path& file, const CheckpointShape& shape,
                         const std::vector<DamagedCheckpoint>& known, Checkpoints& found) {
  if (note_known(file, known, found)) return false;
  std::error_code error;
  const std::uintmax_t size = fs::file_size(file, error);
  if (error == std::errc::no_such_file_or_directory) return false;
  if (error) base::throw_system_error("read the size of", file, error.value());
  if (size == static_cast<std::uintmax_t>(shape.activation_bytes)) return true;
  found.damaged.emplace_back(file, base::concat(size, " bytes, expected ", shape.activation_bytes));
  return false;
}

std::int64_t folder_bytes(const fs::path& folder) {
  std::int64_t total = 0;
  std::error_code ignored;
  for (const auto& item : fs::directory_iterator(folder, ignored)) {
    const auto size = item.file_size(ignored);
    if (!ignored) total += static_cast<std::int64_t>(size);
  }
  return total;
}

}  // namespace

std::string identity_difference(const std::string& left_json, const std::string& right_json) {
  if (!is_json(left_json) || !is_json(right_json)) return "run.json";
  const json left = formats::parse_json(left_json, "run.json");
  const json right = formats::parse_json(right_json, "run.json");
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

void WorkFolder::check_free(const fs::path& path) {
  base::FileLock::check_free(path / "lock");
}

Checkpoints WorkFolder::find(const fs::path& path, const std::string& identity_json,
                             const CheckpointShape& shape, const std::vector<DamagedCheckpoint>& known) {
  Checkpoints found(shape.layers);
  if (!shape.cached.empty()) found.cached = shape.cached;
  if (!fs::is_directory(path)) return found;
  check_identity(path, identity_json);
  found.bytes = folder_bytes(path);
  // What `parse` gives; nothing where there is no file, or a damaged one, which is noted.
  const auto take = [&found](const fs::path& file, auto& place, const auto& parse) {
    if (!fs::exists(file)) return;
    try {
      place = parse();
    } catch (const DamagedCheckpoint& damage) {
      found.damaged.push_back(damage);
    }
  };
  for (int layer = 0; layer <= shape.layers; ++layer) {
    const auto index = static_cast<std::size_t>(layer);
    found.hidden[index] = activation_is_there(path / numbered("hidden_%04d.bin", layer), shape, known, found);
    found.gradient[index] =
        activation_is_there(path / numbered("gradient_%04d.bin", layer), shape, known, found);
    if (layer == shape.layers) break;
    const fs::path file = layer_file(path, layer);
    take(file, found.fits[index], [&] { return parse_layer(file, layer); });
  }
  const fs::path file = losses_file(path);
  take(file, found.losses, [&] { return parse_losses(file, shape.samples); });
  return found;
}

WorkFolder::WorkFolder(const fs::path& path, const std::string& identity_json) : path_(path) {
  std::error_code error;
  const bool made = fs::create_directories(path_, error);
  if (error) base::throw_system_error("make the work folder", path_, error.value());
  try {
    // Before anything is written into a folder that may be somebody else's.
    check_identity(path_, identity_json);
    lock_ = std::make_unique<base::FileLock>(path_ / "lock", made ? kFolderMade : kFolderFound);
  } catch (...) {
    // A full disk, no file left to open: who comes later could not tell that the folder is ours.
    if (made) fs::remove(path_, error);
    throw;
  }
  made_ = text_of(path_ / "lock") == kFolderMade;
  // Again, for another run may have used it between the two.
  check_identity(path_, identity_json);
  std::set<std::string> unfinished;
  for (const auto& item : fs::directory_iterator(path_)) {
    const std::string name = item.path().filename().string();
    if (is_final_name(base::name_of_unfinished(name))) unfinished.emplace(base::name_of_unfinished(name));
  }
  for (const std::string& name : unfinished) base::remove_unfinished(path_, name);
  if (!fs::exists(run_file(path_))) base::write_file_atomically(run_file(path_), identity_json);
}

fs::path WorkFolder::hidden_file(int layer) const {
  return path_ / numbered("hidden_%04d.bin", layer);
}

fs::path WorkFolder::gradient_file(int layer) const {
  return path_ / numbered("gradient_%04d.bin", layer);
}

void WorkFolder::save_losses(const std::vector<double>& losses) const {
  const json content = {{"losses", losses}, {"checksum", checksum_of(losses)}};
  base::write_file_atomically(losses_file(path_), content.dump());
}

void WorkFolder::save_layer(const formats::Codebook& frame, const formats::LayerCodebook& layer) const {
  formats::Codebook codebook = frame;
  codebook.layers = {layer};
  formats::write_codebook(layer_file(path_, layer.index), codebook);
}

void WorkFolder::remove(const DamagedCheckpoint& damage) const {
  std::error_code error;
  fs::remove(damage.file(), error);
  if (error) base::throw_system_error("remove", damage.file(), error.value());
}

void WorkFolder::finish() {
  const fs::path lock = path_ / "lock";
  std::vector<fs::path> ours;
  std::error_code error, ignored;
  for (const auto& item : fs::directory_iterator(path_, error)) {
    const std::string name = item.path().filename().string();
    if (name != "lock" && is_final_name(name) && item.is_regular_file(ignored)) ours.push_back(item.path());
  }
  // run.json last: until then what is left is still known to be this run's.
  std::ranges::sort(ours, {}, [](const fs::path& file) { return file.filename() == "run.json"; });
  for (const fs::path& file : ours) {
    if (!error) fs::remove(file, error);
  }
  // Where anything is left, so is the lock, which tells the next run that it may remove the folder.
  if (!error) fs::remove(lock, error);
  if (made_ && !error) fs::remove(path_, ignored);  // fails where anything else is in it
  lock_.reset();
}

}  // namespace kvcal::calib
