#include "base/error.h"

#include <system_error>

namespace kvcal::base {

Interrupted::Interrupted(int signal) : Error(concat("interrupted by signal ", signal)), signal_(signal) {}

std::string errno_text(int error_number) {
  return std::generic_category().message(error_number);
}

}  // namespace kvcal::base
