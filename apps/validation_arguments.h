// apps/validation_arguments.h: what commands share that run a validation: the options of its inputs, and its plan as it begins.
#pragma once

#include <string>

#include "apps/command_line.h"
#include "apps/progress.h"
#include "calib/validate.h"

namespace kvcal::apps {

/// Model, texts and tokens; the codebook apart. `options` outlives the command line.
void add_validation_inputs(CommandLine& line, calib::ValidationOptions& options, const std::string& group);
/// How windows are cut from them.
void add_validation_windows(CommandLine& line, calib::ValidationOptions& options, const std::string& group);
/// Arithmetic, device, threads, memory, scratch folder.
void add_validation_machine(CommandLine& line, calib::ValidationOptions& options);

/// Prints the plan before the work.
class PlanPrinter final : public calib::ValidationListener {
 public:
  explicit PlanPrinter(ShownProgress& progress) : progress_(progress) {}
  void on_plan(const calib::ValidationPlan& plan) override;

 private:
  ShownProgress& progress_;
};

}  // namespace kvcal::apps
