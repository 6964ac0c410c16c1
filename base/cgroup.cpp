#include "base/cgroup.h"

#include <algorithm>
#include <charconv>
#include <concepts>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvcal::base {
namespace {

namespace fs = std::filesystem;

enum class Version { kV1, kV2 };

// A line of /proc/self/cgroup: the group of this process in one hierarchy.
// controllers: a comma-list, empty for version 2.
struct Membership {
  Version version;
  std::string controllers;
  std::string path;
};

// A line of /proc/self/mountinfo that mounts a hierarchy. root: the group that stands at the mount point.
// options: a comma-list, with the controllers for version 1.
struct Mount {
  Version version;
  std::string root;
  std::string point;
  std::string options;
};

// A group to ask: the process's own or one above it.
struct Level {
  Version version;
  fs::path folder;
};

// Line by line, as getline takes a read that fails (a folder, a group just removed) for the end,
// where stream iterators throw.
std::vector<std::string> read_lines(const fs::path& path) {
  std::vector<std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (std::size_t end = text.find(separator); end != std::string_view::npos; end = text.find(separator)) {
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  parts.push_back(text);
  return parts;
}

bool contains(std::string_view list, char separator, std::string_view item) {
  const auto parts = split(list, separator);
  return std::find(parts.begin(), parts.end(), item) != parts.end();
}

// None for "max", for a negative number (version 1 writes -1 for no quota) and for anything but digits.
std::optional<std::int64_t> parse_number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

std::optional<std::int64_t> read_number(const fs::path& path) {
  const auto lines = read_lines(path);
  return lines.size() == 1 ? parse_number(lines.front()) : std::nullopt;
}

// mountinfo writes space, tab, newline and backslash of a path as three octal digits: "\040".
std::string unescape(std::string_view text) {
  const auto octal = [](char c) { return c >= '0' && c <= '7'; };
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escaped = text[i] == '\\' && i + 3 < text.size() && text[i + 1] <= '3' && octal(text[i + 1]) &&
                         octal(text[i + 2]) && octal(text[i + 3]);
    if (!escaped) {
      result += text[i];
      continue;
    }
    result += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
    i += 3;
  }
  return result;
}

// "ID:CONTROLLERS:PATH"; the path may hold colons. Version 2 has ID 0 and no controllers.
std::vector<Membership> read_memberships(const fs::path& root) {
  std::vector<Membership> memberships;
  for (const std::string& line : read_lines(root / "proc/self/cgroup")) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const Version version = line.starts_with("0::") ? Version::kV2 : Version::kV1;
    memberships.push_back({version, line.substr(first + 1, second - first - 1), line.substr(second + 1)});
  }
  return memberships;
}

// "ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS".
std::vector<Mount> read_mounts(const fs::path& root) {
  std::vector<Mount> mounts;
  for (const std::string& line : read_lines(root / "proc/self/mountinfo")) {
    const auto fields = split(line, ' ');
    if (fields.size() < 10) continue;
    const auto dash = std::find(fields.begin() + 6, fields.end(), "-");
    if (fields.end() - dash < 4 || (dash[1] != "cgroup" && dash[1] != "cgroup2")) continue;
    const Version version = dash[1] == "cgroup2" ? Version::kV2 : Version::kV1;
    Mount mount{version, unescape(fields[3]), unescape(fields[4]), std::string(dash[3])};
    // A later mount hides an earlier one at the same point.
    std::erase_if(mounts, [&](const Mount& earlier) { return earlier.point == mount.point; });
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

// The path of a group below a mount's root, empty for the root itself; none where it isn't below. A process
// outside its cgroup namespace has a path with "..", which must not lead out of the mount.
std::optional<std::string> path_below(std::string_view path, std::string_view mount_root) {
  while (mount_root.ends_with('/')) mount_root.remove_suffix(1);
  if (!path.starts_with(mount_root)) return std::nullopt;
  path.remove_prefix(mount_root.size());
  if (!path.empty() && !path.starts_with('/')) return std::nullopt;
  if (contains(path, '/', "..")) return std::nullopt;
  return std::string(path);
}

// The mount point, then each group on the way down to `below`.
void append_levels(const fs::path& root, const Mount& mount, std::string_view below,
                   std::vector<Level>& levels) {
  fs::path folder = root / fs::path(mount.point).relative_path();
  levels.push_back({mount.version, folder});
  for (const std::string_view name : split(below, '/')) {
    if (name.empty()) continue;
    folder /= name;
    levels.push_back({mount.version, folder});
  }
}

// Every group that may limit this process's use of what `controller` controls.
std::vector<Level> levels_of(const fs::path& root, std::string_view controller) {
  std::vector<Level> levels;
  const auto mounts = read_mounts(root);
  for (const Membership& member : read_memberships(root)) {
    const bool v1 = member.version == Version::kV1;
    if (v1 && !contains(member.controllers, ',', controller)) continue;
    const Mount* chosen = nullptr;
    std::optional<std::string> chosen_below;
    for (const Mount& mount : mounts) {
      if (mount.version != member.version || (v1 && !contains(mount.options, ',', controller))) continue;
      auto below = path_below(member.path, mount.root);
      // Of mounts that hold the group, the one with the longest way down to it shows the most levels. A
      // container may see the host's path with its own group mounted: then the mount point is that group.
      if (chosen == nullptr || (below && (!chosen_below || below->size() > chosen_below->size()))) {
        chosen = &mount;
        chosen_below = std::move(below);
      }
    }
    if (chosen != nullptr) append_levels(root, *chosen, chosen_below.value_or(""), levels);
  }
  return levels;
}

// The lesser of two limits, either of which may be none.
template <std::totally_ordered Value>
std::optional<Value> tighter(std::optional<Value> a, std::optional<Value> b) {
  if (!a || !b) return a ? a : b;
  return std::min(*a, *b);
}

std::optional<std::int64_t> memory_limit(const Level& level) {
  if (level.version == Version::kV2)
    return tighter(read_number(level.folder / "memory.max"), read_number(level.folder / "memory.high"));
  // Version 1 writes no limit as the largest multiple of the page size.
  constexpr std::int64_t kLargest = std::int64_t{1} << 60;
  const auto limit = read_number(level.folder / "memory.limit_in_bytes");
  return limit && *limit <= kLargest ? limit : std::nullopt;
}

// Version 1 counts a group alone under the plain names and with all below it under total_, as its usage does;
// version 2 knows only the latter.
std::optional<std::int64_t> memory_room(const Level& level) {
  const bool v2 = level.version == Version::kV2;
  const auto limit = memory_limit(level);
  if (!limit) return std::nullopt;
  auto used = read_number(level.folder / (v2 ? "memory.current" : "memory.usage_in_bytes"));
  if (!used) return std::nullopt;
  for (const std::string& line : read_lines(level.folder / "memory.stat")) {
    const auto fields = split(line, ' ');
    if (fields.size() != 2) continue;
    const bool droppable = v2 ? fields[0] == "inactive_file" || fields[0] == "active_file"
                              : fields[0] == "total_inactive_file" || fields[0] == "total_active_file";
    // The files are read one after the other, so the cache may have grown past the usage since.
    if (droppable) used = *used - std::min(*used, parse_number(fields[1]).value_or(0));
  }
  return std::max<std::int64_t>(0, *limit - *used);
}

std::optional<double> cpu_quota(const Level& level) {
  std::optional<std::int64_t> quota, period;
  if (level.version == Version::kV2) {
    const auto lines = read_lines(level.folder / "cpu.max");
    if (lines.size() != 1) return std::nullopt;
    const auto fields = split(lines.front(), ' ');
    if (fields.size() != 2) return std::nullopt;
    quota = parse_number(fields[0]);
    period = parse_number(fields[1]);
  } else {
    quota = read_number(level.folder / "cpu.cfs_quota_us");
    period = read_number(level.folder / "cpu.cfs_period_us");
  }
  if (!quota || !period || *quota == 0 || *period == 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

}  // namespace

std::optional<std::int64_t> cgroup_memory_room(const fs::path& root) {
  std::optional<std::int64_t> room;
  for (const Level& level : levels_of(root, "memory")) room = tighter(room, memory_room(level));
  return room;
}

std::optional<double> cgroup_cpu_quota(const fs::path& root) {
  std::optional<double> quota;
  for (const Level& level : levels_of(root, "cpu")) quota = tighter(quota, cpu_quota(level));
  return quota;
}

}  // namespace kvcal::base
