// formats/internal/codebook_rules.h: what makes a codebook valid, and the names in its file:
// shared by writer and reader.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "formats/codebook.h"
#include "formats/internal/hdf5_tree.h"

namespace kvcal::formats {

inline constexpr std::string_view kCodebookFormat = "kvcal-codebook";

/// What follows a tensor's path in those of its further statistics.
inline constexpr const char* kWithSinks = "/with_sinks";
inline constexpr const char* kRotated = "_rope";
inline constexpr const char* kEnvelope = "_envelope";
inline constexpr const char* kMagnitudes = "/magnitudes";
inline constexpr const char* kRecipe = "/recipe";
inline constexpr std::size_t kCurveColumns = 2;  // of its curve

/// The rotation of a tensor that is turned: Walsh-Hadamard matrices, divided by the root of their size.
inline constexpr const char* kHadamard = "hadamard";

/// "/layers/0000"
[[nodiscard]] std::string layer_path(int index);

/// "/recipe/0000", and with a tensor "/recipe/0000/key"
[[nodiscard]] std::string recipe_path(int layer);
[[nodiscard]] std::string recipe_path(const TensorRecipe& tensor);

/// By layer, then as a layer's tensors.
void sort_recipe(std::vector<TensorRecipe>& tensors);

/// What a file of the codebook holds: all groups, datasets and attributes, content_sha256 among them.
[[nodiscard]] Hdf5Tree codebook_tree(const Codebook& codebook);

/// The reverse of codebook_tree(). Throws InvalidInput as read_codebook() does, naming `file`, also where the content is not
/// what content_sha256 says.
[[nodiscard]] Codebook codebook_of(const Hdf5Tree& tree, const std::string& file);

/// Sizes, order and values, and that texts are text. Throws InvalidInput naming `file`, the path in it and
/// the rule. Expects layers, outlier sets and datatypes sorted.
void validate_codebook(const Codebook& codebook, const std::string& file);

}  // namespace kvcal::formats
