// One datatype of a codebook as a C99 header of constant tables (docs/exports/c-header.md).
//
// Numbers are the shortest decimals that a compiler reads back as the same float: hexadecimal ones are no C++
// before C++17. Text from the codebook stands in string literals only, never in a comment or a name.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.h"
#include "base/new_file.h"
#include "formats/datatype_choice.h"
#include "formats/export/export_target.h"

namespace kvcal::formats {

ExportTarget c_header_target();

namespace {

using base::concat;
using base::InvalidInput;

constexpr std::size_t kNumbersPerLine = 8;
constexpr std::size_t kLongestString = 4095;  // that a C99 compiler must take

/// What the header needs of a layer.
struct LayerTables {
  const LayerCodebook* layer = nullptr;
  ChosenDatatype key, value;
};

// A constant expression of type float, or double where suffix is empty.
template <typename Number>
std::string number_text(Number number, std::string_view suffix) {
  char text[64];
  const auto result = std::to_chars(text, text + sizeof(text), number);
  std::string literal(text, result.ptr);
  if (literal.find_first_of(".e") == std::string::npos) literal += ".0";
  return literal.append(suffix);
}

// Bytes that C might take for something else (quotes, trigraphs, anything but printable ASCII) in octal.
std::string string_literal(std::string_view text, const char* what) {
  if (text.size() > kLongestString) {
    throw InvalidInput(concat(what, ": a text of ", text.size(),
                              " bytes; a C compiler need not take more than ", kLongestString));
  }
  std::string literal = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= ' ' && byte < 0x7f && c != '"' && c != '\\' && c != '?') {
      literal += c;
      continue;
    }
    literal += '\\';
    for (const int shift : {6, 3, 0}) literal += static_cast<char>('0' + ((byte >> shift) & 7));
  }
  return literal + "\"";
}

// In the order of the layers.
std::vector<LayerTables> tables_of(const Codebook& codebook, const DatatypeChoice& choice) {
  std::vector<LayerTables> tables;
  for (const LayerCodebook& layer : codebook.layers) {
    if (!layer.has_kv_heads() || layer.tensors.size() != 2) {
      throw InvalidInput(concat("layer ", layer.index, ": caches other tensors than keys and values of the ",
                                "same heads, for which the header has no tables"));
    }
    tables.push_back({&layer, require_datatype(layer.index, layer.key(), choice),
                      require_datatype(layer.index, layer.value(), choice)});
  }
  return tables;
}

// What codes come back as, in units of the range, to the bit as the codec computes it: with each operation
// rounded to float. In double both are exact enough for that, and nothing can be fused.
std::vector<float> levels_of(const Datatype& datatype, const std::string& what) {
  const double scale = static_cast<float>(datatype.qnorm_scale);
  const double offset = static_cast<float>(datatype.qnorm_offset);
  std::vector<float> levels;
  for (const double centroid : datatype.centroids) {
    const auto scaled = static_cast<float>(centroid * scale);
    levels.push_back(static_cast<float>(scaled + offset));
    if (!std::isfinite(levels.back()))
      throw InvalidInput(concat(what, ": Q-Norm's scale ", datatype.qnorm_scale, " or offset ",
                                datatype.qnorm_offset, " overflows"));
  }
  return levels;
}

/// Text of the header, part by part.
class Header {
 public:
  Header(const Codebook& codebook, const DatatypeChoice& choice)
      : codebook_(codebook),
        choice_(choice),
        tables_(tables_of(codebook, choice)),
        has_ranges_(std::ranges::any_of(
            tables_, [](const LayerTables& tables) { return tables.key.datatype->has_ranges(); })),
        has_turned_(std::ranges::any_of(
            tables_, [](const LayerTables& tables) { return tables.layer->value().rotation_block > 0; })) {}

  std::string text() {
    text_ =
        "/* A codebook of kvcal for a quantised cache of keys and values: constant tables, C99.\n"
        " * docs/exports/c-header.md of kvcal says how codes are made and read.\n"
        " */\n"
        "#ifndef KVCAL_CODEBOOK_H\n#define KVCAL_CODEBOOK_H\n\n#include <stddef.h>\n\n";
    add_names();
    add_sizes();
    add_types();
    for (const LayerTables& tables : tables_) add_layer(tables);
    add_table();
    text_ += "\n#endif\n";
    return std::move(text_);
  }

 private:
  void define(const char* name, const std::string& value) {
    text_ += concat("#define KVCAL_", name, " ", value, "\n");
  }

  void define_text(const char* name, const std::string& value) { define(name, string_literal(value, name)); }

  void add_names() {
    define_text("MODEL_NAME", codebook_.model.name);
    define_text("ARCHITECTURE", codebook_.model.architecture);
    define_text("CONFIG_SHA256", codebook_.model.config_sha256);
    define_text("WEIGHTS_SHA256", codebook_.model.weights_sha256);
    define_text("CONTENT_SHA256", codebook_.content_sha256);
    define_text("CREATED_BY", codebook_.created_by);
    define_text("DATATYPE", choice_.name());
    text_ += "\n";
  }

  void add_sizes() {
    define("BITS", std::to_string(choice_.bits));
    define("CENTROIDS", std::to_string(1 << choice_.bits));
    define("OUTLIER_FRACTION", number_text(tables_.front().key.outliers->fraction, ""));
    define("QNORM", choice_.qnorm ? "1" : "0");
    text_ +=
        "/* Ranges of keys are key_scale and key_zero (1), or half the distance of thresholds and their "
        "middle (0). */\n";
    define("KEY_RANGES", has_ranges_ ? "1" : "0");
    text_ += "/* Values are turned before all else (1), as value_rotation_block says, or not (0). */\n";
    define("VALUES_TURNED", has_turned_ ? "1" : "0");
    define("SINKS", std::to_string(codebook_.calibration.sinks));
    text_ += "/* Thresholds of values are found in each token: over all its heads (0), or in each (1). */\n";
    define("VALUES_BY_HEAD", codebook_.calibration.value_scope == "head" ? "1" : "0");
    define("NUM_LAYERS", std::to_string(codebook_.model.num_layers));
    const LayerCodebook& first = *tables_.front().layer;
    const auto same = [&](const LayerTables& tables) {
      return tables.layer->key().tensor == first.key().tensor &&
             tables.layer->value().tensor == first.value().tensor;
    };
    if (std::ranges::all_of(tables_, same)) {
      text_ += "/* Of all layers that have a cache; not defined where they differ. */\n";
      define("KV_HEADS", std::to_string(first.key().tensor.heads));
      define("KEY_DIM", std::to_string(first.key().tensor.dim));
      define("VALUE_DIM", std::to_string(first.value().tensor.dim));
    }
    text_ += "\n";
  }

  void add_types() {
    text_ +=
        "/* Channel c of head h is element h * dim + c. A layer without a cache of its own is all 0 and "
        "NULL. */\n"
        "struct kvcal_layer {\n"
        "  int kv_heads, key_dim, value_dim; /* dims per head */\n";
    if (has_turned_) {
      text_ +=
          "  int value_rotation_block; /* channels of a head that a Walsh-Hadamard matrix over the root of "
          "its "
          "size turns together; 0: none */\n";
    }
    // Under other names where they say less: what takes them for ranges doesn't compile. So of values that are turned.
    text_ += has_ranges_ ? "  const float *key_outlier_below, *key_outlier_above; /* [kv_heads * key_dim], "
                           "before RoPE */\n"
                           "  const float *key_scale, *key_zero; /* [kv_heads * key_dim]: level * scale + "
                           "zero, both rounded to "
                           "fp16 */\n"
                         : "  const float *key_lower, *key_upper; /* [kv_heads * key_dim], before RoPE */\n";
    const char* turned = has_turned_ ? "turned_" : "";
    text_ += concat("  const float *key_centroids, *", turned,
                    "value_centroids; /* [KVCAL_CENTROIDS], ascending: the nearest gives the code */\n"
                    "  const float *key_levels, *",
                    turned,
                    "value_levels; /* [KVCAL_CENTROIDS]: what a code comes back as */\n"
                    "};\n\n");
  }

  void add_array(const LayerTables& tables, const char* name, const std::vector<float>& numbers) {
    text_ +=
        concat("static const float kvcal_", tables.layer->index, "_", name, "[", numbers.size(), "] = {");
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      text_ += i == 0 ? "\n  " : i % kNumbersPerLine == 0 ? ",\n  " : ", ";
      text_ += number_text(numbers[i], "f");
    }
    text_ += "};\n";
  }

  void add_layer(const LayerTables& tables) {
    add_array(tables, "key_lower", tables.key.outliers->lower);
    add_array(tables, "key_upper", tables.key.outliers->upper);
    if (has_ranges_) add_ranges(tables);
    add_array(tables, "key_centroids", tables.key.datatype->centroids);
    add_array(tables, "value_centroids", tables.value.datatype->centroids);
    if (!choice_.qnorm) return;
    add_array(tables, "key_levels",
              levels_of(*tables.key.datatype, concat("layer ", tables.layer->index, ", key")));
    add_array(tables, "value_levels",
              levels_of(*tables.value.datatype, concat("layer ", tables.layer->index, ", value")));
  }

  // The thresholds' own where this layer's were not fitted.
  void add_ranges(const LayerTables& tables) {
    std::vector<float> scale = tables.key.datatype->scale, zero = tables.key.datatype->zero;
    if (scale.empty()) {
      const OutlierSet& set = *tables.key.outliers;
      for (std::size_t c = 0; c < set.lower.size(); ++c) {
        const double lower = set.lower[c], upper = set.upper[c];
        scale.push_back(static_cast<float>((upper - lower) / 2));
        zero.push_back(static_cast<float>((upper + lower) / 2));
      }
    }
    add_array(tables, "key_scale", scale);
    add_array(tables, "key_zero", zero);
  }

  void add_entry(const LayerTables& tables) {
    const LayerCodebook& layer = *tables.layer;
    const std::string prefix = concat("kvcal_", layer.index, "_");
    const char* levels = choice_.qnorm ? "levels" : "centroids";
    text_ += concat(
        "  {", layer.key().tensor.heads, ", ", layer.key().tensor.dim, ", ", layer.value().tensor.dim, ", ",
        has_turned_ ? concat(layer.value().rotation_block, ", ") : "", prefix, "key_lower, ", prefix,
        "key_upper,\n   ", has_ranges_ ? concat(prefix, "key_scale, ", prefix, "key_zero, ") : "", prefix,
        "key_centroids, ", prefix, "value_centroids, ", prefix, "key_", levels, ", ", prefix, "value_",
        levels, "},\n");
  }

  void add_table() {
    text_ += "\nstatic const struct kvcal_layer kvcal_layers[KVCAL_NUM_LAYERS] = {\n";
    auto next = tables_.begin();
    for (int i = 0; i < codebook_.model.num_layers; ++i) {
      if (next != tables_.end() && next->layer->index == i) {
        add_entry(*next++);
      } else {
        text_ += concat("  {0, 0, 0, ", has_turned_ ? "0, " : "", "NULL, NULL, NULL, NULL, NULL, NULL",
                        has_ranges_ ? ", NULL, NULL" : "", "},\n");
      }
    }
    text_ += "};\n";
  }

  const Codebook& codebook_;
  const DatatypeChoice& choice_;
  std::vector<LayerTables> tables_;
  bool has_ranges_, has_turned_;
  std::string text_;
};

ExportReport write(const ExportRequest& request) {
  if (!request.datatype) throw base::WrongUsage("c-header needs a datatype: name one with --method");
  base::write_file_atomically(request.out, Header(request.codebook, *request.datatype).text());
  ExportReport report;
  report.files = {request.out};
  report.serve = concat("#include \"", request.out.filename().string(), "\"");
  report.needs = "a compiler of C99 or C++";
  report.beware =
      "nothing in C compares the tables with a model: compare KVCAL_WEIGHTS_SHA256 with kvcal inspect's, and "
      "KVCAL_NUM_LAYERS and the sizes with the model's, before the first use";
  const bool windows = std::ranges::any_of(request.codebook.layers,
                                           [](const LayerCodebook& layer) { return layer.window > 0; });
  if (windows)
    report.warnings.emplace_back(
        "some layers attend through a sliding window, of which the header says nothing");
  return report;
}

}  // namespace

ExportTarget c_header_target() {
  return {.name = "c-header",
          .about = "one datatype as constant tables in C99, for kernels",
          .content = ExportContent::datatypes,
          .write = write};
}

}  // namespace kvcal::formats
