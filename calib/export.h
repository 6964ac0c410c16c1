// calib/export.h: a codebook, or scales of the same calibration, in a form that another system reads
// (docs/exports/README.md).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "formats/export/export_target.h"

namespace kvcal::calib {

/// What `kvcal export` was asked to do; the fields are its options, with the same defaults.
struct ExportOptions {
  std::filesystem::path codebook;
  std::string format;         ///< a target's name
  std::filesystem::path out;  ///< what is made; it must not exist
  std::string method;         ///< a datatype, "nuq3-1%-qn"; empty: the only one
  std::string clip = "max";   ///< or "best", or a quantile, "99.99%"
  formats::ScaleChoice scales;
  std::string model;   ///< a folder, or a name in the local Hugging Face cache; empty: not given
  bool copy = false;   ///< copies the model's files where an overlay would link them
  bool force = false;  ///< a codebook of another model is used all the same
};

/// Those of formats/ and the codec's own.
[[nodiscard]] const std::vector<formats::ExportTarget>& export_targets();

/// Reads, checks, writes. Throws base::WrongUsage for a format or choice that there is not (naming those that there
/// are), base::InvalidInput and base::SystemError as ExportTarget::write, and where `model` is not the codebook's.
[[nodiscard]] formats::ExportReport export_codebook(const ExportOptions& options);

}  // namespace kvcal::calib
