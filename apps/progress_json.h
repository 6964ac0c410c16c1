// apps/progress_json.h: progress and messages for programs: a JSON object a line, on standard error.
//
//   {"event": "stage", "name": "forward", "total": 4096, "unit": "tokens"}   a stage begins; total 0: not known
//   {"event": "advance", "done": 1024, "detail": "layer 3 of 32"}            ten times a second at most
//   {"event": "end"}                                                         the stage is over
//   {"event": "warning", "text": "..."}, {"event": "info", "text": "..."}
//
// A later version may add events and members. Errors stay what they are: a line that begins with "kvcal: error: ".
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string_view>

#include "apps/json_output.h"
#include "apps/progress.h"

namespace kvcal::apps {

/// Safe to call from several threads.
class ProgressJson : public ShownProgress {
 public:
  explicit ProgressJson(Verbosity verbosity) : verbosity_(verbosity) {}

  void begin_stage(std::string_view name, std::int64_t total, std::string_view unit) override;
  void advance(std::int64_t done, std::string_view detail) override;
  void end_stage() override;
  void warning(std::string_view text) override;
  void info(std::string_view text) override;

 private:
  using Clock = std::chrono::steady_clock;

  void write(const Json& event);

  std::mutex mutex_;
  Verbosity verbosity_;
  bool in_stage_ = false;
  Clock::time_point next_;  ///< no report of advance before
};

}  // namespace kvcal::apps
