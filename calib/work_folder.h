// calib/work_folder.h: the folder in which a run leaves what it needs to go on after it was stopped.
//
//   lock                  held while a run uses the folder
//   run.json              the fingerprint of model, tokens and options; written first
//   hidden_0003.bin       layer 3's input for all samples; also hidden_<layers>, the head's
//   head.json             each sample's loss; written after gradient_<layers>.bin
//   gradient_0003.bin     the gradient at layer 3's input for all samples
//   layer_0003.h5         the finished codebook of layer 3, a codebook file of its own
//
// Every file appears under its name only when it is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// How far an earlier run came.
struct WorkState {
  int layers_done = 0;        ///< layers that are fitted
  bool forward_done = false;  ///< the forward pass and the head's losses are there
};

class WorkFolder {
 public:
  /// Makes the folder or goes on with it. Throws SystemError where it cannot be made or another run holds it;
  /// InvalidInput where it belongs to another model, other tokens or other options, naming what differs where
  /// it can. identity_json: what the fingerprint is made of, an object of strings.
  WorkFolder(const std::filesystem::path& path, const std::string& identity_json);

  /// What a run that uses this folder would go on from; writes nothing, and the folder need not exist. Throws
  /// InvalidInput as the constructor does.
  [[nodiscard]] static WorkState state(const std::filesystem::path& path, const std::string& identity_json,
                                       int num_layers);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path hidden_file(int layer) const;
  [[nodiscard]] std::filesystem::path gradient_file(int layer) const;

  /// Losses of the head, if its step is done.
  [[nodiscard]] std::optional<std::vector<double>> losses() const;
  void save_losses(const std::vector<double>& losses) const;

  [[nodiscard]] bool has_layer(int layer) const;
  /// A finished layer; none where there is no file. A file that cannot be read is removed and counts as none.
  [[nodiscard]] std::optional<formats::LayerCodebook> load_layer(int layer) const;
  /// frame: the codebook's provenance, without layers.
  void save_layer(const formats::Codebook& frame, const formats::LayerCodebook& layer) const;

  /// Removes a file of the folder that is no longer needed.
  void remove(const std::filesystem::path& file) const;
  /// Removes the whole folder, held until it is gone: the run is done.
  void remove_all();

 private:
  std::filesystem::path path_;
  std::unique_ptr<base::FileLock> lock_;
};

/// What differs between two identities (JSON objects of strings): their keys, comma-separated; empty where
/// nothing does.
[[nodiscard]] std::string identity_difference(const std::string& left_json, const std::string& right_json);

}  // namespace kvcal::calib
