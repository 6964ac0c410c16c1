// formats/export/merge.h: scales of the cache merged in place into a checkpoint whose weights are quantised already,
// for loaders of quant_method compressed-tensors, modelopt or fp8 (docs/exports/compressed-tensors.md, modelopt.md).
//
// The scales go into a shard of their own, kOverlayShard, which model.safetensors.index.json then lists; the
// quantisation's own files say that the cache is FP8. All else stays as it is, byte for byte. A single
// model.safetensors is called kOverlaySingle afterwards, the same file: where one of the former name lies,
// transformers reads it and no index.
//
// Each file appears whole or not at all, and in an order in which a run killed at any moment leaves a folder that
// loads as before: the shard, which no index lists yet; the index; the quantisation's files. Running again finishes
// it. A file that is a symbolic link is replaced by a file; nothing is written through a link.
#pragma once

#include <filesystem>
#include <string_view>

#include "formats/export/export_target.h"

namespace kvcal::formats {

/// Merges FP8 scales of the codebook into the checkpoint in `folder`. `format` is the target whose names are
/// expected, "compressed-tensors" (which are those of quant_method fp8 too) or "modelopt"; empty: whichever the
/// folder has. The weights of a quantised checkpoint are not those that were calibrated: only the layers, kv heads
/// and head_dim are compared with the codebook's.
/// Throws, with every file as it was, InvalidInput: no quantization_config, a quant_method that has no form for
/// scales (naming it), a kv_cache_scheme other than 8 bit float, static and symmetric, scales that exist already,
/// other sizes than the codebook's, a layer that the codebook lacks; WrongUsage for a choice that the form does not
/// have. SystemError (a full disk) leaves a folder that loads as before.
[[nodiscard]] ExportReport merge_scales(const Codebook& codebook, const ScaleChoice& choice,
                                        const std::filesystem::path& folder, std::string_view format = {});

}  // namespace kvcal::formats
