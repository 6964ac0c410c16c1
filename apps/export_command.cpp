// kvcal export: hand a codebook, or scales of the same calibration, to another system.
#include <array>
#include <string>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "base/error.h"
#include "calib/export.h"

namespace kvcal::apps {
namespace {

using base::concat;

constexpr auto kTypes = std::to_array<base::Choice<formats::ScaledType>>({{"int8", formats::ScaledType::int8},
                                                                          {"int4", formats::ScaledType::int4},
                                                                          {"fp8", formats::ScaledType::fp8}});
constexpr auto kScopes =
    std::to_array<base::Choice<formats::ScaleScope>>({{"tensor", formats::ScaleScope::tensor},
                                                      {"head", formats::ScaleScope::head},
                                                      {"channel", formats::ScaleScope::channel}});

std::string formats_help() {
  std::string text = "In which form:";
  for (const formats::ExportTarget& target : calib::export_targets())
    text += concat(text.ends_with(":") ? " " : "; ", target.name, ": ", target.about);
  return text;
}

void add_options(CommandLine& line, calib::ExportOptions& options) {
  CLI::App& app = line.app();
  app.add_option("FILE", options.codebook, "The codebook, as kvcal calibrate writes it")->type_name(" ");
  app.option_defaults()->group("What goes out");
  app.add_option("--format", options.format, formats_help())->type_name("NAME");
  app.add_option("-o,--out", options.out, "File or folder to make; it must not exist")->type_name("PATH");
  app.add_option("-m,--model", options.model, "The model's folder, for formats that lie beside its weights")
      ->type_name("DIR");
  app.add_flag("--copy", options.copy, "Copy the model's files, where links are made otherwise");
  app.add_flag("--force", options.force, "Take a codebook of another model");
  app.option_defaults()->group("Of formats that hold a datatype");
  app.add_option("--method", options.method,
                 "Which, such as nuq3-1% or nuq3-1%-qn; needed where the codebook holds several")
      ->type_name("NAME");
  app.option_defaults()->group("Of formats that hold scales");
  add_choice(app, "--type", options.scales.type, kTypes,
             "The cache's numbers: int8 (the default), int4, fp8");
  add_choice(app, "--per", options.scales.scope, kScopes,
             "What shares a scale: channel (the default), head, tensor");
  app.add_option(
         "--clip", options.clip,
         "The threshold that a scale is made of: max (the default), a quantile such as 99.99%, or best, "
         "which leaves the least error weighted by sensitivity")
      ->type_name("RULE");
  app.add_flag(
      "--measured-keys", options.scales.measured_keys,
      "Thresholds of keys after RoPE as measured; otherwise of the pairs that RoPE turns, which hold at "
      "any position");
}

std::string report_text(const formats::ExportReport& report) {
  std::string text;
  for (const std::filesystem::path& file : report.files) text += concat("Wrote ", file.string(), "\n");
  if (!report.serve.empty()) text += concat("\nServe it with\n  ", report.serve, "\n");
  if (!report.needs.empty()) text += concat("Needs ", report.needs, "\n");
  if (!report.beware.empty()) text += concat("Beware: ", report.beware, "\n");
  return text;
}

Json report_json(const calib::ExportOptions& options, const formats::ExportReport& report) {
  Json files = Json::array();
  for (const std::filesystem::path& file : report.files) files.push_back(file.string());
  return {{"format", options.format}, {"files", std::move(files)}, {"serve", report.serve},
          {"needs", report.needs},    {"beware", report.beware},   {"warnings", report.warnings}};
}

}  // namespace

int run_export(const std::vector<std::string>& arguments) {
  calib::ExportOptions options;
  JsonOutput json;
  Verbosity verbosity = Verbosity::kNormal;
  CommandLine line(
      "export",
      "Hands a codebook over to a serving system, whole or as the scales that today's systems load "
      "(docs/exports/README.md). Prints the command that serves it and how a scale could get lost.",
      "  kvcal export llama.h5 --format safetensors --out llama.safetensors\n"
      "  kvcal export llama.h5 --format onnx-genai --type int8 --per channel --clip 99.99% --out "
      "scales.json");
  add_options(line, options);
  line.add_json(json);
  line.add_verbosity(verbosity);
  if (!line.parse(arguments)) return kDone;
  require(!options.codebook.empty(), "FILE", "name the codebook to export");
  require(!options.format.empty(), "--format", "name the form, such as --format safetensors");
  require(!options.out.empty(), "--out", "name the file or folder to make");
  json.check({options.codebook, options.out});

  start_log(verbosity);
  const formats::ExportReport report = calib::export_codebook(options);
  for (const std::string& warning : report.warnings) log_warning(warning);
  if (json.wanted()) json.write(report_json(options, report));
  if (!json.to_stdout()) print(report_text(report));
  return kDone;
}

}  // namespace kvcal::apps
