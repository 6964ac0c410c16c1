#include "calib/export.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/error.h"
#include "calib/export_flat.h"
#include "calib/open_session.h"
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

formats::ScaleChoice scale_choice(const ExportOptions& options, const formats::ExportTarget& target) {
  formats::ScaleChoice choice = target.usual;
  choice.type = options.type.value_or(choice.type);
  choice.scope = options.scope.value_or(choice.scope);
  choice.measured_keys = options.measured_keys;
  const std::string& text = options.clip;
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

formats::ExportReport merge(const ExportOptions& options, const formats::ExportTarget& target,
                            const formats::Codebook& codebook) {
  if (!target.merges) {
    std::string known;
    for (const formats::ExportTarget& other : export_targets())
      if (other.merges) known += base::concat(known.empty() ? "" : ", ", other.name);
    throw base::WrongUsage(
        base::concat("--format ", target.name, " cannot be merged with --into; ", known, " can"));
  }
  if (!options.out.empty() || !options.model.empty() || options.copy || options.force)
    throw base::WrongUsage(
        "--into changes a checkpoint in place, of which shapes alone are compared; leave out --out, --model, "
        "--copy and "
        "--force");
  return formats::merge_scales(codebook, scale_choice(options, target), options.into, target.name);
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
  const formats::Codebook codebook = formats::read_codebook(options.codebook);
  if (!options.into.empty()) return merge(options, target, codebook);
  formats::ExportRequest request{codebook, options.out, {}, {}, {}, options.copy};
  if (target.content == formats::ExportContent::datatypes)
    request.datatype = find_method(codebook, options.method);
  if (target.content == formats::ExportContent::scales) request.scales = scale_choice(options, target);
  if (target.needs_model && options.model.empty()) {
    throw base::WrongUsage(base::concat("--format ", target.name,
                                        " takes the model's own files; name their folder with --model"));
  }
  if (!options.model.empty()) {
    const Session session = open_session(options.model, DtypeChoice::float32, 1);
    if (!options.force) check_same_model(codebook, options.codebook, session);
    request.model = session.folder.path;
  }
  check_out(options.out);
  return target.write(request);
}

}  // namespace kvcal::calib
