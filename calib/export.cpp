#include "calib/export.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "calib/export_flat.h"
#include "calib/open_session.h"
#include "calib/validate/method_names.h"
#include "formats/export/merge.h"

namespace kvcal::calib {
namespace {

const formats::ExportTarget& find_target(const std::string& name) {
  const auto& targets = export_targets();
  const auto found = std::ranges::find(targets, name, &formats::ExportTarget::name);
  if (found != targets.end()) return *found;
  std::string known;
  for (const formats::ExportTarget& target : targets)
    known += base::concat(known.empty() ? "" : ", ", target.name);
  throw base::WrongUsage(base::concat("--format is '", name, "'; there are ", known));
}

// Of formats that hold a datatype, of those that hold scales, and of those that lie beside a model.
void check_content(const ExportOptions& options, const formats::ExportTarget& target) {
  const auto refuse = [&target](bool given, std::string_view option, std::string_view why) {
    if (!given) return;
    throw base::WrongUsage(
        base::concat("--format ", target.name, " takes no ", option, ": ", why, "; leave it out"));
  };
  const bool whole = target.content == formats::ExportContent::codebook;
  constexpr std::string_view kWhole = "it holds the whole codebook";
  if (target.content != formats::ExportContent::scales) {
    const std::string_view why = whole ? kWhole : "it holds no scales";
    refuse(options.type.has_value(), "--type", why);
    refuse(options.scope.has_value(), "--per", why);
    refuse(options.clip.has_value(), "--clip", why);
    refuse(options.measured_keys, "--measured-keys", why);
  }
  refuse(options.copy && !target.needs_model, "--copy", "it links no files of a model");
}

// A datatype may be named whatever is exported, so that one command line serves all formats.
void warn_of_method(const ExportOptions& options, const formats::ExportTarget& target,
                    formats::ExportReport& report) {
  if (options.method.empty() || target.content == formats::ExportContent::datatypes) return;
  const bool whole = target.content == formats::ExportContent::codebook;
  report.warnings.push_back(
      base::concat("--method ", options.method, " changes nothing of ", target.name, ": ",
                   whole ? "it holds the whole codebook" : "its scales belong to no datatype"));
}

void check_into(const ExportOptions& options, const formats::ExportTarget& target) {
  if (!target.merges) {
    std::string known;
    for (const formats::ExportTarget& other : export_targets())
      if (other.merges) known += base::concat(known.empty() ? "" : ", ", other.name);
    throw base::WrongUsage(
        base::concat("--format ", target.name, " cannot be merged with --into; ", known, " can"));
  }
  if (options.out.empty() && options.model.empty() && !options.copy && !options.force) return;
  throw base::WrongUsage(
      "--into changes a checkpoint in place, of which shapes alone are compared; leave out --out, --model, "
      "--copy and --force");
}

void check_model_options(const ExportOptions& options, const formats::ExportTarget& target) {
  if (target.needs_model && options.model.empty()) {
    throw base::WrongUsage(base::concat("--format ", target.name,
                                        " takes the model's own files; name their folder with --model"));
  }
  if (!options.force || target.needs_model) return;
  throw base::WrongUsage(base::concat(
      "--format ", target.name, " takes no --force ",
      options.model.empty() ? "without --model: nothing is compared; leave it out"
                            : "with --model: it takes of the model only the comparison; leave out both"));
}

// An option without effect is refused: who gives it counts on what it would do elsewhere.
void check_options(const ExportOptions& options, const formats::ExportTarget& target) {
  if (!options.into.empty()) check_into(options, target);
  check_content(options, target);
  if (options.into.empty()) check_model_options(options, target);
}

// What formats/ says of a layer is said of the file that it was read from.
template <typename Work>
auto naming_file(const std::filesystem::path& codebook, const Work& work) {
  try {
    return work();
  } catch (const base::InvalidInput& error) {
    if (!std::string_view(error.what()).starts_with("layer ")) throw;
    throw base::InvalidInput(base::concat(codebook.string(), ": ", error.what()));
  }
}

formats::DatatypeChoice find_method(const formats::Codebook& codebook, const std::string& name) {
  std::vector<formats::DatatypeChoice> held = formats::held_datatypes(codebook);
  if (name.empty() && held.size() == 1) return held.front();
  std::string known;
  for (formats::DatatypeChoice choice : held) {
    for (const bool qnorm : {false, true}) {
      choice.qnorm = qnorm;
      if (choice.name() == name) return choice;
      known += base::concat(known.empty() ? "" : ", ", choice.name());
    }
  }
  throw base::WrongUsage(base::concat(
      name.empty() ? std::string("the codebook holds several datatypes; choose one with --method")
                   : base::concat("--method is '", name, "', which the codebook does not hold"),
      ": ", known));
}

void check_recipe(const formats::Codebook& codebook, const formats::ExportTarget& target) {
  if (!target.takes_recipe) {
    std::string known;
    for (const formats::ExportTarget& other : export_targets())
      if (other.takes_recipe) known += base::concat(known.empty() ? "" : ", ", other.name);
    throw base::WrongUsage(base::concat(
        "--format ", target.name, " has one datatype for all tensors and takes no recipe; ", known, " does"));
  }
  if (!codebook.recipe)
    throw base::WrongUsage("--method is 'recipe', and the codebook has none; kvcal allocate writes one");
}

formats::ScaleChoice scale_choice(const ExportOptions& options, const formats::ExportTarget& target) {
  formats::ScaleChoice choice = target.usual;
  choice.type = options.type.value_or(choice.type);
  choice.scope = options.scope.value_or(choice.scope);
  choice.measured_keys = options.measured_keys;
  const std::string text = options.clip.value_or("best");
  choice.clip = text == "max"    ? formats::Clip::max
                : text == "best" ? formats::Clip::best
                                 : formats::Clip::quantile;
  if (choice.clip != formats::Clip::quantile) return choice;
  double percent = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), percent);
  std::string known;
  for (const double level : formats::kMagnitudeLevels) {
    if (level == 1) continue;
    if (error == std::errc{} && std::string_view(end, text.data() + text.size()) == "%" &&
        std::abs(percent / 100 - level) < 1e-9) {
      choice.level = level;
      return choice;
    }
    char name[40];
    std::snprintf(name, sizeof(name), ", %g%%", level * 100);
    known += name;
  }
  throw base::WrongUsage(base::concat("--clip is '", text, "'; there are max, best", known));
}

void check_out(const std::filesystem::path& out) {
  if (std::filesystem::symlink_status(out).type() != std::filesystem::file_type::not_found) {
    throw base::SystemError(
        base::concat(out.string(), " exists; name another file or folder with --out, or remove it"));
  }
  const std::filesystem::path folder = out.parent_path().empty() ? "." : out.parent_path();
  if (!std::filesystem::is_directory(folder)) {
    throw base::SystemError(base::concat("cannot write ", out.string(), ": the folder ", folder.string(),
                                         " does not exist; make it first"));
  }
}

// The session's folder, which is nobody's to change.
std::filesystem::path model_folder(const ExportOptions& options, const formats::Codebook& codebook) {
  const Session session = open_session(options.model, DtypeChoice::float32, 1);
  const std::filesystem::path& folder = session.folder.path;
  if (base::lies_in(options.out, folder)) {
    throw base::WrongUsage(base::concat("--out ", options.out.string(), " lies in the model's folder ",
                                        folder.string(), "; name a place elsewhere"));
  }
  if (!options.force) check_same_model(codebook, options.codebook, session);
  return folder;
}

}  // namespace

const std::vector<formats::ExportTarget>& export_targets() {
  static const std::vector<formats::ExportTarget> all = [] {
    std::vector<formats::ExportTarget> targets = formats::export_targets();
    targets.insert(targets.begin() + 1, flat_target());
    return targets;
  }();
  return all;
}

formats::ExportReport export_codebook(const ExportOptions& options) {
  const formats::ExportTarget& target = find_target(options.format);
  check_options(options, target);
  const formats::Codebook codebook = formats::read_codebook(options.codebook);
  if (!options.into.empty()) {
    const formats::ScaleChoice choice = scale_choice(options, target);
    formats::ExportReport report = naming_file(
        options.codebook, [&] { return formats::merge_scales(codebook, choice, options.into, target.name); });
    warn_of_method(options, target, report);
    return report;
  }
  formats::ExportRequest request{codebook, options.out, {}, {}, {}, options.copy};
  if (target.content == formats::ExportContent::datatypes) {
    if (options.method == kRecipeMethod)
      check_recipe(codebook, target);
    else
      request.datatype = find_method(codebook, options.method);
  }
  if (target.content == formats::ExportContent::scales) request.scales = scale_choice(options, target);
  if (!options.model.empty()) request.model = model_folder(options, codebook);
  check_out(options.out);
  formats::ExportReport report = naming_file(options.codebook, [&] { return target.write(request); });
  warn_of_method(options, target, report);
  return report;
}

formats::ExportCheck check_exported(const std::filesystem::path& exported,
                                    const std::filesystem::path& codebook) {
  if (codebook.empty()) return formats::check_export(exported, nullptr);
  const formats::Codebook held = formats::read_codebook(codebook);
  return naming_file(codebook, [&] { return formats::check_export(exported, &held); });
}

}  // namespace kvcal::calib
