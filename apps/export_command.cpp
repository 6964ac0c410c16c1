// kvcal export: hand a codebook, or scales of the same calibration, to another system.
#include <algorithm>
#include <array>
#include <filesystem>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/json_output.h"
#include "apps/sizes.h"
#include "apps/terminal.h"
#include "base/error.h"
#include "calib/export.h"
#include "formats/export/check.h"

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

struct ExportArguments {
  calib::ExportOptions options;
  std::filesystem::path check;
  JsonOutput json;
  Verbosity verbosity = Verbosity::kNormal;
};

void add_options(CommandLine& line, ExportArguments& arguments) {
  CLI::App& app = line.app();
  calib::ExportOptions& options = arguments.options;
  app.add_option("FILE", options.codebook, "The codebook, as kvcal calibrate writes it")->type_name(" ");
  app.option_defaults()->group("What goes out");
  app.add_option("--format", options.format, formats_help())->type_name("NAME");
  app.add_option("-o,--out", options.out, "File or folder to make; it must not exist")->type_name("PATH");
  app.add_option("--into", options.into,
                 "Instead of --out: a checkpoint whose weights are quantised (compressed-tensors, modelopt, "
                 "fp8), into which compressed-tensors or modelopt merges the scales in place. Its weights "
                 "are not those of the codebook: only shapes are compared")
      ->type_name("DIR");
  app.add_option("-m,--model", options.model, "The model's folder, for formats that lie beside its weights")
      ->type_name("DIR");
  app.add_flag("--copy", options.copy, "Copy the model's files, where links are made otherwise");
  app.add_flag("--force", options.force, "Take a codebook of another model");
  app.add_option(
         "--check", arguments.check,
         "Instead of an export: a folder or file that one wrote, read as a loader would; each scale that is "
         "missing, 1.0, not finite or of another model, and exit code 3. With FILE also whether the scales "
         "can be that codebook's")
      ->type_name("PATH");
  app.option_defaults()->group("Of formats that hold a datatype");
  app.add_option("--method", options.method,
                 "Which, such as nuq3-1% or nuq3-1%-qn, or of flat also recipe; needed where the codebook "
                 "holds several")
      ->type_name("NAME");
  app.option_defaults()->group("Of formats that hold scales");
  app.add_option_function<std::string>(
         "--type",
         [&options](const std::string& name) { options.type = base::parse_choice("--type", name, kTypes); },
         "The cache's numbers: int8, int4 or fp8; by default what the format has usually")
      ->type_name("NAME");
  app.add_option_function<std::string>(
         "--per",
         [&options](const std::string& name) { options.scope = base::parse_choice("--per", name, kScopes); },
         "What shares a scale: channel, head or tensor; by default what the format has usually")
      ->type_name("NAME");
  app.add_option_function<std::string>(
         "--clip", [&options](const std::string& rule) { options.clip = rule; },
         "The threshold that a scale is made of: best (the default), which leaves the least error "
         "weighted by sensitivity; a quantile such as 99.99%; or max")
      ->type_name("RULE");
  app.add_flag(
      "--measured-keys", options.measured_keys,
      "Thresholds of keys after RoPE as measured; otherwise of the pairs that RoPE turns, which hold at "
      "any position");
}

// The words of a shell's command: quoted blanks part none.
std::vector<std::string> shell_words(std::string_view command) {
  std::vector<std::string> words(1);
  char quote = 0;
  for (const char letter : command) {
    if (quote == 0 && letter == ' ') {
      words.emplace_back();
      continue;
    }
    if (quote == 0 && (letter == '\'' || letter == '"')) {
      quote = letter;
    } else if (quote == letter) {
      quote = 0;
    }
    words.back() += letter;
  }
  return words;
}

// Indented; what is longer than a line goes on in the next as a shell reads it. Lines without an option are
// no commands but words about one.
std::string command_text(const std::string& command) {
  constexpr std::size_t kIndent = 2, kFurther = 6, kGoesOn = 2;  // " \"
  if (command.find(" -") == std::string::npos)
    return concat("  ", hanging(command, kColumns - kIndent, kFurther), "\n");
  std::string text, line(kIndent, ' ');
  bool is_first = true;
  for (const std::string& word : shell_words(command)) {
    if (!is_first && line.size() + 1 + word.size() + kGoesOn > kColumns) {
      text += line + " \\\n";
      line.assign(kFurther, ' ');
      is_first = true;
    }
    line += (is_first ? "" : " ") + word;
    is_first = false;
  }
  return text + line + "\n";
}

std::string report_text(const formats::ExportReport& report) {
  std::string text;
  for (const std::filesystem::path& file : report.files) text += concat("Wrote ", file.string(), "\n");
  if (!report.serve.empty()) {
    text += concat("\n", bold("Serve it with"), "\n");
    std::istringstream commands(report.serve);
    for (std::string command; std::getline(commands, command);) text += command_text(command);
  }
  if (!report.needs.empty()) text += hanging(concat("Needs ", report.needs)) + "\n";
  if (!report.beware.empty()) text += hanging(concat(attention("Beware:"), " ", report.beware)) + "\n";
  return text;
}

Json report_json(const calib::ExportOptions& options, const formats::ExportReport& report) {
  Json files = Json::array();
  for (const std::filesystem::path& file : report.files) files.push_back(file.string());
  return {{"format", options.format}, {"files", std::move(files)}, {"serve", report.serve},
          {"needs", report.needs},    {"beware", report.beware},   {"warnings", report.warnings}};
}

std::string check_text(const std::filesystem::path& path, const formats::ExportCheck& check) {
  std::string text = concat(path.string(), ", ", check.format, ": ", check.scales, " scales");
  if (check.smallest)
    text += concat(", ", format_number(*check.smallest, 4), " to ", format_number(*check.largest, 4));
  text += check.problems.empty() ? std::string(", nothing wrong")
                                 : attention(concat(", ", check.problems.size(),
                                                    check.problems.size() == 1 ? " problem" : " problems"));
  text = hanging(text) + "\n";
  for (const formats::ScaleFinding& problem : check.problems)
    text += concat("  ", hanging(concat(problem.name, ": ", problem.problem), kColumns - 2, 4), "\n");
  return text;
}

Json check_json(const formats::ExportCheck& check) {
  Json problems = Json::array();
  for (const formats::ScaleFinding& problem : check.problems)
    problems.push_back({{"name", problem.name}, {"problem", problem.problem}});
  return {{"format", check.format},
          {"scales", check.scales},
          {"problems", std::move(problems)},
          {"smallest", check.smallest ? Json(*check.smallest) : Json(nullptr)},
          {"largest", check.largest ? Json(*check.largest) : Json(nullptr)}};
}

// A check takes FILE and --json, and what every command takes.
void check_alone(const ExportArguments& arguments, const CLI::App& app) {
  if (arguments.check.empty())
    throw base::WrongUsage("--check needs a path: name the folder or file that an export wrote");
  constexpr std::array<std::string_view, 5> kTaken = {"check", "json", "config", "quiet", "verbose"};
  std::string others;
  for (const CLI::Option* option : app.get_options()) {
    const std::vector<std::string>& names = option->get_lnames();
    if (option->count() == 0 || names.empty() || std::ranges::find(kTaken, names.front()) != kTaken.end())
      continue;
    others += concat(others.empty() ? "" : ", ", "--", names.front());
  }
  if (others.empty()) return;
  throw base::WrongUsage(
      concat("--check reads what an export wrote and takes FILE and --json only; leave out ", others));
}

int run_check(const ExportArguments& arguments) {
  const formats::ExportCheck check = calib::check_exported(arguments.check, arguments.options.codebook);
  if (arguments.json.wanted()) arguments.json.write(check_json(check));
  const bool quiet = arguments.verbosity == Verbosity::kQuiet && check.problems.empty();
  if (!arguments.json.to_stdout() && !quiet) print(check_text(arguments.check, check));
  return check.problems.empty() ? kDone : kLimitNotMet;
}

}  // namespace

int run_export(const std::vector<std::string>& arguments) {
  ExportArguments parsed;
  const calib::ExportOptions& options = parsed.options;
  CommandLine line(
      "export",
      "Hands a codebook over to a serving system, whole or as the scales that today's systems load "
      "(docs/exports/README.md). Prints the command that serves it and how a scale could get lost.",
      "  kvcal export llama.h5 --format safetensors \\\n"
      "      --out llama.safetensors\n"
      "  kvcal export llama.h5 --format onnx-genai --type int8 \\\n"
      "      --per channel --clip 99.99% --out scales.json\n"
      "  kvcal export llama.h5 --format compressed-tensors \\\n"
      "      --type fp8 --per tensor --into llama-w4a16\n"
      "  kvcal export --check overlay llama.h5");
  add_options(line, parsed);
  line.add_json(parsed.json);
  line.add_verbosity(parsed.verbosity);
  if (!line.parse(arguments)) return kDone;
  if (line.app().count("--check") > 0) {
    check_alone(parsed, line.app());
    parsed.json.check({options.codebook, parsed.check});
    return run_check(parsed);
  }
  require(!options.codebook.empty(), "FILE", "name the codebook to export");
  require(!options.format.empty(), "--format", "name the form, such as --format safetensors");
  require(!options.out.empty() || !options.into.empty(), "--out",
          "name the file or folder to make, or with --into a quantised checkpoint");
  parsed.json.check({options.codebook, options.out.empty() ? options.into : options.out});

  start_log(parsed.verbosity);
  const formats::ExportReport report = calib::export_codebook(options);
  for (const std::string& warning : report.warnings) log_warning(warning);
  if (parsed.json.wanted()) parsed.json.write(report_json(options, report));
  const bool text_wanted = !parsed.json.to_stdout() && parsed.verbosity != Verbosity::kQuiet;
  if (text_wanted) print(report_text(report));
  return kDone;
}

}  // namespace kvcal::apps
