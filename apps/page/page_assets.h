// apps/page/page_assets.h: what of the page is the same for every result; embed_assets.py writes page_assets.cpp.
#pragma once

#include <string_view>

namespace kvcal::apps {

extern const std::string_view kPageTemplate;   ///< HTML with @NAME@ where each part goes
extern const std::string_view kPageStyle;      ///< CSS
extern const std::string_view kPageScript;     ///< JavaScript
extern const std::string_view kPlotly;         ///< plotly.min.js, gzip, base64
extern const std::string_view kPlotlyLicence;  ///< plain text

}  // namespace kvcal::apps
