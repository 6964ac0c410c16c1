#include "apps/progress_json.h"

#include <cstdio>
#include <string>

namespace kvcal::apps {
namespace {

constexpr std::chrono::milliseconds kInterval(100);

}  // namespace

void ProgressJson::begin_stage(std::string_view name, std::int64_t total, std::string_view unit) {
  const std::scoped_lock lock(mutex_);
  if (in_stage_) write({{"event", "end"}});
  in_stage_ = true;
  next_ = Clock::now();
  write({{"event", "stage"}, {"name", name}, {"total", total}, {"unit", unit}});
}

void ProgressJson::advance(std::int64_t done, std::string_view detail) {
  const std::scoped_lock lock(mutex_);
  if (!in_stage_ || Clock::now() < next_) return;
  next_ = Clock::now() + kInterval;
  write({{"event", "advance"}, {"done", done}, {"detail", detail}});
}

void ProgressJson::end_stage() {
  const std::scoped_lock lock(mutex_);
  if (in_stage_) write({{"event", "end"}});
  in_stage_ = false;
}

void ProgressJson::warning(std::string_view text) {
  const std::scoped_lock lock(mutex_);
  write({{"event", "warning"}, {"text", text}});
}

void ProgressJson::info(std::string_view text) {
  const std::scoped_lock lock(mutex_);
  if (verbosity_ != Verbosity::kQuiet) write({{"event", "info"}, {"text", text}});
}

void ProgressJson::write(const Json& event) {
  // text_of() would break it into several lines.
  const std::string line = event.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

}  // namespace kvcal::apps
