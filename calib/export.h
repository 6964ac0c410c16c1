// calib/export.h: a codebook, or scales of the same calibration, in a form that another system reads
// (docs/exports/README.md).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "formats/export/check.h"
#include "formats/export/export_target.h"

namespace kvcal::calib {

/// What `kvcal export` was asked to do; the fields are its options, with the same defaults. One that the format has no
/// use for must not be set.
struct ExportOptions {
  std::filesystem::path codebook;
  std::string format;               ///< a target's name
  std::filesystem::path out;        ///< what is made; it must not exist
  std::filesystem::path into;       ///< instead of `out`: a quantised checkpoint that scales are merged into
  std::string method;               ///< a datatype, "nuq3-1%-qn"; empty: the only one
  std::optional<std::string> clip;  ///< of scales: "best", "max" or a quantile, "99.99%"; nullopt: "best"
  std::optional<formats::ScaledType> type;   ///< of scales; nullopt: what the target has usually
  std::optional<formats::ScaleScope> scope;  ///< likewise
  bool measured_keys = false;                ///< as in formats::ScaleChoice
  std::string model;   ///< a folder, or a name in the local Hugging Face cache; empty: not given
  bool copy = false;   ///< copies the model's files where an overlay would link them
  bool force = false;  ///< a codebook of another model is used all the same
};

/// Those of formats/ and the codec's own.
[[nodiscard]] const std::vector<formats::ExportTarget>& export_targets();

/// Reads, checks, writes. Throws base::WrongUsage for a format or choice that there is not (naming those that there
/// are), for an option that would change nothing, and for an `out` in the model's own folder; base::InvalidInput and
/// base::SystemError as ExportTarget::write and formats::merge_scales, naming the codebook's file where a layer of it is
/// refused, and where `model` is not the codebook's. Of `into` only the shapes are compared: its weights are quantised,
/// not those calibrated.
[[nodiscard]] formats::ExportReport export_codebook(const ExportOptions& options);

/// formats::check_export with the codebook in a file; empty: without one.
[[nodiscard]] formats::ExportCheck check_exported(const std::filesystem::path& exported,
                                                  const std::filesystem::path& codebook);

}  // namespace kvcal::calib
