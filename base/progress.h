// base/progress.h: how libraries report: they neither log nor print, they call this, and apps/ implements it.
#pragma once

#include <cstdint>
#include <string_view>

namespace kvcal::base {

/// Receives what a long computation has to say. Calls may come from any thread, one at a time for each
/// method. The default does nothing, so that a library user need not implement what it does not show.
class Progress {
 public:
  virtual ~Progress() = default;
  /// A stage begins ("forward", "backward", ...) that will take `total` steps of the given unit
  /// ("tokens", "layers").
  virtual void begin_stage(std::string_view /*name*/, std::int64_t /*total*/, std::string_view /*unit*/) {}
  /// `done` of the stage's steps are done; `detail` is what is being worked on ("layer 3 of 32").
  virtual void advance(std::int64_t /*done*/, std::string_view /*detail*/) {}
  virtual void end_stage() {}
  /// Something the user should know that is not an error.
  virtual void warning(std::string_view /*text*/) {}
  virtual void info(std::string_view /*text*/) {}
  /// Called between steps: throws Interrupted where the user asked to stop.
  virtual void check_interrupted() {}
};

}  // namespace kvcal::base
