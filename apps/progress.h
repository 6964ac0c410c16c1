// apps/progress.h: how a command shows where it stands, on standard error.
#pragma once

#include <array>
#include <memory>

#include "apps/log.h"
#include "base/choices.h"
#include "base/progress.h"

namespace kvcal::apps {

enum class ProgressForm {
  kText,  ///< for people: a bar on a terminal, plain lines elsewhere (progress_bar.h)
  kJson,  ///< for programs: an object a line (progress_json.h)
};

inline constexpr std::array kProgressForms = {
    base::Choice<ProgressForm>{"text", ProgressForm::kText},
    base::Choice<ProgressForm>{"json", ProgressForm::kJson},
};

class ShownProgress : public base::Progress {
 public:
  /// Throws base::Interrupted for a signal that came since handle_signals(OnSignal::kAsk).
  void check_interrupted() override;
  /// Takes off the screen what will be redrawn, for a message of somebody else.
  virtual void clear() {}
};

[[nodiscard]] std::unique_ptr<ShownProgress> make_progress(ProgressForm form, Verbosity verbosity);

}  // namespace kvcal::apps
