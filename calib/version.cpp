#include "calib/version.h"

namespace kvcal::calib {

const char* version() {
  return KVCAL_VERSION;
}

}  // namespace kvcal::calib
