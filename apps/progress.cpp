#include "apps/progress.h"

#include "apps/progress_bar.h"
#include "apps/progress_json.h"
#include "apps/signals.h"
#include "base/error.h"

namespace kvcal::apps {

void ShownProgress::check_interrupted() {
  if (const int signal = pending_signal(); signal != 0) throw base::Interrupted(signal);
}

std::unique_ptr<ShownProgress> make_progress(ProgressForm form, Verbosity verbosity) {
  if (form == ProgressForm::kJson) return std::make_unique<ProgressJson>(verbosity);
  return std::make_unique<ProgressBar>(verbosity);
}

}  // namespace kvcal::apps
