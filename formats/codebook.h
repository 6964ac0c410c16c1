// formats/codebook.h: the codebook of a model: HDF5, schema 1 (docs/codebook-format.md), written and read.
//
// A file may hold any non-empty subset of a model's layers. Written and read back, a codebook is equal to
// what was given (layers by index, tensors by tensor_rank(), outlier sets by fraction, datatypes by bits).
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvcal::formats {

inline constexpr int kCodebookSchemaMajor = 1;
inline constexpr int kCodebookSchemaMinor = 3;

/// What shares a pair of outlier thresholds.
enum class ThresholdScope {
  channel,  ///< a channel over all tokens: found in calibration and stored (keys)
  token,    ///< a token (and kv head where the file's value_scope is head): found when quantised (values)
};

/// "channel" or "token", as the file has it.
[[nodiscard]] std::string_view threshold_scope_name(ThresholdScope scope);

/// One of the tensors that a layer caches.
struct CachedTensor {
  std::string name;  ///< "key", "value", or another: lower-case letters, digits and _, a letter first
  int heads = 0;
  int dim = 0;  ///< per head
  ThresholdScope thresholds = ThresholdScope::channel;

  [[nodiscard]] std::int64_t channels() const { return std::int64_t{heads} * dim; }

  bool operator==(const CachedTensor&) const = default;
};

/// A layer's tensors are sorted by it: key, value, then others by name.
[[nodiscard]] std::pair<bool, std::string> tensor_rank(const CachedTensor& tensor);

inline constexpr int kHistogramBins = 128;

/// A non-uniform datatype: 2^bits centroids in the normalised range [-1, 1],
/// ascending (the last may be repeated).
struct Datatype {
  int bits = 0;  ///< 1 to 8
  std::vector<float> centroids;
  double qnorm_scale = 1;  ///< dequantising with Q-Norm uses centroid * scale + offset
  double qnorm_offset = 0;
  double objective = 0;            ///< what the centroids reach: sum of F s^2 (x' - q(x'))^2
  double lower_bound = 0;          ///< what no centroids could go below, as proven
  std::string weights = "fisher";  ///< "fisher", "uniform" (all weights of the fit were zero) or "none"
  /// Ranges fitted to this datatype, [channels] each: x = scale * centroid + zero. Empty: half the distance of the
  /// thresholds and their middle. From schema 1.3 on, only where thresholds are a channel's.
  std::vector<float> scale, zero;
  /// As OutlierSet::histogram, in the units of the fitted ranges; empty without them.
  std::vector<float> histogram;

  [[nodiscard]] bool has_ranges() const { return !scale.empty(); }

  bool operator==(const Datatype&) const = default;
};

/// The thresholds for one fraction of outliers, and the datatypes fitted to what lies within.
struct OutlierSet {
  double fraction = 0;  ///< 0 <= fraction < 0.5
  /// [channels] where thresholds are a channel's; empty where they are a token's.
  std::vector<float> lower, upper;
  std::vector<Datatype> datatypes;
  /// [kHistogramBins] equal parts of the normalised range [-1, 1]: the share of the fit's weight that lies in each.
  /// Empty in files of schema 1.0.
  std::vector<float> histogram;

  bool operator==(const OutlierSet&) const = default;
};

/// How far fits on the two halves of the calibration sample differ.
struct SampleAgreement {
  double threshold_shift = 0;
  double datatype_excess = 0;

  bool operator==(const SampleAgreement&) const = default;
};

/// Shares of numbers whose magnitude lies at or below a quantile of Magnitudes; the last is the maximum.
inline constexpr std::array<double, 8> kMagnitudeLevels = {0.9,    0.99,   0.995,   0.999,
                                                           0.9995, 0.9999, 0.99999, 1};

/// Number formats of symmetric scales whose best threshold is kept, in the order of MagnitudeGroup::best.
enum class ScaledType { int8, int4, fp8 };
inline constexpr int kScaledTypes = 3;

/// The magnitudes of what shares one scale.
struct MagnitudeGroup {
  std::vector<float> quantiles;  ///< [count, kMagnitudeLevels.size()], ascending in each row
  /// [count, kScaledTypes]: the threshold whose scale leaves the least error, each number weighted by its
  /// sensitivity.
  std::vector<float> best;

  bool operator==(const MagnitudeGroup&) const = default;
};

/// Of a tensor's numbers over all tokens of the sample, sinks too: what symmetric scales are made of.
struct Magnitudes {
  MagnitudeGroup channel, head, tensor;  ///< count is channels, heads, 1

  bool operator==(const Magnitudes&) const = default;
};

/// Of a tensor; keys also as they are after RoPE.
struct TensorMagnitudes {
  Magnitudes cached;
  std::optional<Magnitudes> rotated;  ///< as measured
  /// Of the length of each pair of channels that RoPE turns, c and c + dim / 2 of a head: what either can reach at
  /// any position.
  std::optional<Magnitudes> envelope;

  bool operator==(const TensorMagnitudes&) const = default;
};

/// Of one tensor of a layer; keys are taken before RoPE, except where it says otherwise.
struct TensorCodebook {
  CachedTensor tensor;
  std::vector<float> fisher_channel;  ///< [channels], sum of F over samples and tokens
  std::vector<OutlierSet> outliers;
  SampleAgreement halves;
  /// The same statistics with sinks counted as any token, for KVQuant's ablation; empty where it was not asked for.
  std::vector<OutlierSet> with_sinks;
  /// Thresholds alone, for the same fractions, after RoPE and with sinks counted; empty for what is not rotated.
  std::vector<OutlierSet> rotated;
  std::optional<TensorMagnitudes> magnitudes;  ///< from schema 1.2 on
  /// Channels that a Walsh-Hadamard matrix turns together, a power of two that divides the head's: the outlier sets are of
  /// the tensor turned so, and so is what is stored. 0: as it is. From schema 1.3 on, only where thresholds are a token's.
  int rotation_block = 0;

  bool operator==(const TensorCodebook&) const = default;
};

struct LayerCodebook {
  int index = 0;  ///< 0 to 9999
  std::string rope_json = "null";
  std::int64_t window = 0;              ///< of sliding-window attention; 0: none
  std::vector<TensorCodebook> tensors;  ///< at least one, each under a name of its own

  /// Null where there is none of that name.
  [[nodiscard]] const TensorCodebook* find(std::string_view name) const;

  /// Throw InvalidInput, "layer 3: no tensor 'key'", where it is missing.
  [[nodiscard]] const TensorCodebook& key() const;
  [[nodiscard]] const TensorCodebook& value() const;
  [[nodiscard]] TensorCodebook& key();
  [[nodiscard]] TensorCodebook& value();

  /// Whether it has keys (thresholds by channel) and values (by token) with equally many heads. The file then
  /// holds kv_heads, key_dim and value_dim at the layer; the sizes of any other tensor stand at that tensor.
  [[nodiscard]] bool has_kv_heads() const;

  bool operator==(const LayerCodebook&) const = default;
};

/// Which model it is, and defaults for the layers.
struct ModelInfo {
  std::string name, architecture, config_sha256, weights_sha256;
  int num_layers = 0, num_attention_heads = 0, num_kv_heads = 0, head_dim = 0;
  std::string rope_json = "null";

  bool operator==(const ModelInfo&) const = default;
};

/// A calibration text: the file's name without its folder.
struct TextInfo {
  std::string name, sha256;

  bool operator==(const TextInfo&) const = default;
};

/// Where the codebook comes from: everything that bears on the result.
struct CalibrationInfo {
  int revision = 1;  ///< of the algorithm that made it; files without it are of the first
  std::string options_json = "{}";
  std::vector<TextInfo> texts;
  std::string tokens_sha256;
  std::int64_t samples = 0, seqlen = 0, tokens = 0;
  std::string bos;
  int sinks = 0;
  std::int64_t seed = 0;
  std::string dtype, device, value_scope, sensitivity, fisher_scale;
  double loss = 0;

  /// Tokens in the statistics: all but sinks.
  [[nodiscard]] std::int64_t counted() const { return tokens - samples * sinks; }
  /// Next tokens of a window that its loss is the mean of, the mean over the samples, of which there is at least one.
  [[nodiscard]] double targets() const {
    return static_cast<double>(tokens) / static_cast<double>(samples) - 1;
  }

  bool operator==(const CalibrationInfo&) const = default;
};

/// Bits of a tensor that stays as it is.
inline constexpr int kKeptBits = 16;

/// What one tensor of a layer is stored by.
struct TensorRecipe {
  int layer = 0;
  std::string tensor;
  int bits = 0;           ///< of one of the tensor's datatypes; kKeptBits: none
  double fraction = 0;    ///< its outliers
  double divergence = 0;  ///< foretold, in nats a token

  bool operator==(const TensorRecipe&) const = default;
};

/// Which datatype each tensor is stored by, chosen under a budget of bytes (`kvcal allocate`).
struct Recipe {
  std::string options_json = "{}";  ///< what was asked for
  std::string source =
      "estimated";           ///< of divergences: "estimated" (from the file's objectives) or "measured"
  std::int64_t context = 0;  ///< tokens of the sequence that bytes are of
  std::int64_t bytes = 0;
  double bits_per_value = 0;
  double divergence = 0;     ///< the sum over tensors
  std::vector<float> curve;  ///< [points, 2]: bits per value, ascending, and the divergence foretold there
  std::vector<TensorRecipe> tensors;  ///< every tensor of every layer

  /// Null where there is none.
  [[nodiscard]] const TensorRecipe* find(int layer, std::string_view tensor) const;

  bool operator==(const Recipe&) const = default;
};

struct Codebook {
  int schema_major = kCodebookSchemaMajor;
  int schema_minor = kCodebookSchemaMinor;
  std::string created_by;
  std::string content_sha256;  ///< set by the reader; the writer computes it anew
  ModelInfo model;
  CalibrationInfo calibration;
  std::vector<LayerCodebook> layers;
  std::optional<Recipe> recipe;  ///< from schema 1.3 on

  /// Null where there is no such layer, or no tensor of that name in it.
  [[nodiscard]] const TensorCodebook* find(int layer, std::string_view tensor) const;

  bool operator==(const Codebook&) const = default;
};

/// Most bytes of a text in a file, of texts_json() too: what the header of an HDF5 object takes.
inline constexpr std::size_t kMaxCodebookText = 64000;

/// As /calibration@texts holds them: [{"name", "sha256"}, ...].
[[nodiscard]] std::string texts_json(const std::vector<TextInfo>& texts);

/// "outliers_" and the fraction as printf's %g prints it, in any locale: outliers_0, outliers_0.01.
[[nodiscard]] std::string outlier_group_name(double fraction);

/// Writes schema kCodebookSchemaMajor.kCodebookSchemaMinor to a temporary name, syncs, renames: the same
/// codebook gives the same bytes. Throws InvalidInput naming the path in the file and the rule, before
/// anything is written: no layers or an index given twice, no tensor or a name given twice or against the
/// rule, sizes that disagree, values that are not finite, centroids that descend, text that is not UTF-8 or
/// not JSON where it must be. Throws SystemError (a full disk), leaving nothing behind.
void write_codebook(const std::filesystem::path& path, const Codebook& codebook);

/// Throws SystemError where the file cannot be opened, InvalidInput with the reason for everything that
/// schema 1 does not allow: not HDF5, another format, a newer schema_major, not complete, something missing,
/// of the wrong type or shape, a dataset without Fletcher-32, values that are not finite, centroids that
/// descend, a content_sha256 that does not match, a damaged or truncated file. Groups, datasets and
/// attributes that this version does not know are passed over, but hashed.
[[nodiscard]] Codebook read_codebook(const std::filesystem::path& path);

/// As read_codebook(), for who writes it again: throws InvalidInput for a newer schema_minor, too, of which parts would be lost.
[[nodiscard]] Codebook read_known_codebook(const std::filesystem::path& path);

/// For programs whose only HDF5 files are those of this reader and writer, before the first of them: HDF5
/// then does not close itself at exit, which after a damaged file it cannot, saying so on standard error.
/// Not for libraries: a host program's own files would no longer be flushed at its exit.
void skip_hdf5_exit();

}  // namespace kvcal::formats
