// calib/engine/work_folder.h: the folder in which a run leaves what it needs to go on after it was stopped.
//
//   lock                  held while a run uses the folder; says whether kvcal made the folder
//   run.json              the identity of the run: model, tokens, options; written first
//   hidden_0003.bin       layer 3's input for all samples; also hidden_<layers>, the head's
//   head.json             each sample's loss; written after gradient_<layers>.bin
//   gradient_0003.bin     the gradient at layer 3's input for all samples
//   layer_0003.h5         the finished codebook of layer 3, a codebook file of its own
//
// Every file appears under its name only when it is whole. Files of other names are somebody else's: they
// are never removed, and neither is the folder while it holds any, or where it was there before.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "calib/engine/checkpoints.h"
#include "formats/codebook.h"

namespace kvcal::calib {

/// What the files of a run look like.
struct CheckpointShape {
  int layers = 0;
  std::int64_t samples = 0;
  std::int64_t activation_bytes = 0;  ///< of each hidden and gradient file
  /// [layers]: those with a cache of their own, and so a codebook; empty: all.
  std::vector<bool> cached = {};
};

class WorkFolder {
 public:
  /// Makes the folder or goes on with it. Throws SystemError where it cannot be made or read, or another run
  /// holds it; InvalidInput where it belongs to another model, other tokens or other options, naming what
  /// differs, or holds files without being a kvcal run's. identity_json: an object of strings.
  WorkFolder(const std::filesystem::path& path, const std::string& identity_json);

  /// Throws SystemError where another run holds the folder, which need not exist.
  static void check_free(const std::filesystem::path& path);

  /// What a run would go on from; writes nothing, and the folder need not exist. Files that are not what was
  /// written are listed as damaged. Throws as the constructor does; SystemError, too, where a file cannot be
  /// read, which says nothing about what it holds. known: files that turned out damaged when they were read.
  [[nodiscard]] static Checkpoints find(const std::filesystem::path& path, const std::string& identity_json,
                                        const CheckpointShape& shape,
                                        const std::vector<DamagedCheckpoint>& known = {});

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path hidden_file(int layer) const;
  [[nodiscard]] std::filesystem::path gradient_file(int layer) const;

  /// Throw SystemError (a full disk). frame: the codebook's provenance, without layers.
  void save_losses(const std::vector<double>& losses) const;
  void save_layer(const formats::Codebook& frame, const formats::LayerCodebook& layer) const;

  /// Removes a damaged file. Throws SystemError where that fails.
  void remove(const DamagedCheckpoint& damage) const;
  /// Removes the run's files, and the folder where kvcal made it and nothing else is in it: the run is done.
  /// What cannot be removed stays; that is no error.
  void finish();

 private:
  std::filesystem::path path_;
  std::unique_ptr<base::FileLock> lock_;
  bool made_ = false;  // by kvcal, this run or the one it goes on from
};

/// What differs between two identities (JSON objects of strings): their keys, comma-separated;
/// empty where nothing does.
[[nodiscard]] std::string identity_difference(const std::string& left_json, const std::string& right_json);

}  // namespace kvcal::calib
