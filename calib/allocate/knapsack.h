// calib/allocate/knapsack.h: one option for each item at the least cost within a budget: the multiple-choice knapsack problem,
// solved to the proven optimum.
//
// Dynamic programming over Pareto frontiers: item by item, the sums of bytes and cost that no other sum beats in both. What
// keeps them few is the linear relaxation of the items to come (Sinha and Zoltners, 1979): a sum whose bound lies above a choice
// already at hand is dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvcal::calib {

struct KnapsackOption {
  std::int64_t bytes = 0;  ///< at least 0
  double cost = 0;         ///< finite, at least 0
};

/// At least one option each.
using KnapsackItems = std::vector<std::vector<KnapsackOption>>;

struct KnapsackChoice {
  std::vector<std::size_t> options;  ///< [items]
  std::int64_t bytes = 0;
  double cost = 0;
  double lower_bound =
      0;  ///< what no choice within the budget goes below: `cost`, but where frontiers grew too long
};

/// What the cheapest options take together. Throws InvalidInput where sums overflow.
[[nodiscard]] std::int64_t smallest_bytes(const KnapsackItems& items);

/// The least cost within `budget`, of equal ones the fewest bytes. states: how many sums are held at most, together; beyond
/// that those of the worst bound are dropped, and `lower_bound` says how much that may have cost.
/// Throws InvalidInput where not even smallest_bytes() fit.
[[nodiscard]] KnapsackChoice choose_options(const KnapsackItems& items, std::int64_t budget,
                                            std::size_t states = std::size_t{1} << 23);

/// Bytes, and the least cost of a choice that takes so many.
struct KnapsackPoint {
  std::int64_t bytes = 0;
  double cost = 0;
};

/// From the fewest bytes to the least cost: the choices on the lower convex hull of all of them.
[[nodiscard]] std::vector<KnapsackPoint> knapsack_curve(const KnapsackItems& items);

}  // namespace kvcal::calib
