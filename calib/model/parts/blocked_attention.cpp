#include "calib/model/parts/blocked_attention.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/cpu.h"
#include "calib/model/parts/attention_rows.h"

namespace kvcal::calib {
namespace {

// A product has this many rows, of queries in the forward pass and of keys in the gradient ...
constexpr std::int64_t kRows = 64;
// ... and this many columns, or sums over as many: a block of logits is 128 KiB.
constexpr std::int64_t kColumns = 512;

/// How many numbers of type T a product takes at a time: the right factor is stored in words of 32 bits that
/// hold as many of its rows.
template <typename T>
constexpr std::int64_t kPack = 4 / static_cast<std::int64_t>(sizeof(T));

template <typename T>
std::int64_t whole_words(std::int64_t count) {
  return (count + kPack<T> - 1) / kPack<T> * kPack<T>;
}

struct Shape {
  std::int64_t tokens, heads, kv_heads, key_dim, value_dim, window;

  [[nodiscard]] std::int64_t kv_head(std::int64_t head) const { return head / (heads / kv_heads); }
  [[nodiscard]] float scale() const { return 1.0F / std::sqrt(static_cast<float>(key_dim)); }
  // Keys that query `token` sees: [first_key, token].
  [[nodiscard]] std::int64_t first_key(std::int64_t token) const {
    return window > 0 ? std::max<std::int64_t>(0, token - window + 1) : 0;
  }
  // Queries that see key `token`: [token, last_query).
  [[nodiscard]] std::int64_t last_query(std::int64_t token) const {
    return window > 0 ? std::min(tokens, token + window) : tokens;
  }
};

/// Rows [begin, end) of one head of a tensor [tokens, heads, dim].
template <typename T>
struct Matrix {
  const T* data;
  std::int64_t stride;

  static Matrix of_head(const at::Tensor& x, std::int64_t head) {
    return {x.const_data_ptr<T>() + head * x.size(2), x.size(1) * x.size(2)};
  }
  [[nodiscard]] const T* row(std::int64_t token) const { return data + token * stride; }
};

/// c (+)= a b: a is rows x sum, b holds sum x columns in words, c is rows x columns.
template <typename T>
struct Product {
  std::int64_t rows, columns, sum;

  void operator()(const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, float* c,
                  std::int64_t c_stride, bool add) const {
    at::native::cpublas::brgemm(rows, columns, whole_words<T>(sum), a_stride, b_stride, c_stride, add, a, b,
                                c, kPack<T> > 1);
  }
};

/// One head's matrix as right factor, in blocks of kColumns tokens: transposed (a token is a column) or as it
/// is (a token is a row, and summed over).
template <typename T>
class Packed {
 public:
  enum class Tokens { columns, rows };

  Packed(Matrix<T> matrix, std::int64_t tokens, std::int64_t dim, Tokens as)
      : tokens_(tokens),
        dim_(dim),
        as_(as),
        words_(at::empty({whole_words<T>(tokens) * dim / kPack<T>}, at::kInt)) {
    for (std::int64_t begin = 0; begin < tokens; begin += kColumns) {
      const std::int64_t end = std::min(tokens, begin + kColumns);
      std::int32_t* to = words_.mutable_data_ptr<std::int32_t>() + begin * dim / kPack<T>;
      if (as == Tokens::columns)
        transpose(matrix, begin, end, to);
      else
        interleave(matrix, begin, end, to);
    }
  }

  /// The part that begins at `token`, up to its block's end: where it begins, and the words from one of its
  /// rows to the next. As rows: `token` is a multiple of kPack.
  [[nodiscard]] const T* at(std::int64_t token) const {
    const std::int64_t begin = token / kColumns * kColumns;
    const std::int64_t within = token - begin;
    const std::int64_t word =
        begin * dim_ / kPack<T> + (as_ == Tokens::columns ? within : within / kPack<T> * dim_);
    return reinterpret_cast<const T*>(words_.const_data_ptr<std::int32_t>() + word);
  }
  [[nodiscard]] std::int64_t stride(std::int64_t token) const {
    return as_ == Tokens::rows ? dim_ : std::min(kColumns, tokens_ - token / kColumns * kColumns);
  }

 private:
  void transpose(Matrix<T> from, std::int64_t begin, std::int64_t end, std::int32_t* to) const {
    for (std::int64_t token = begin; token < end; ++token) {
      const T* row = from.row(token);
      for (std::int64_t word = 0; word < dim_ / kPack<T>; ++word)
        std::memcpy(to + word * (end - begin) + token - begin, row + word * kPack<T>, sizeof(std::int32_t));
    }
  }
  void interleave(Matrix<T> from, std::int64_t begin, std::int64_t end, std::int32_t* to) const {
    T* out = reinterpret_cast<T*>(to);
    for (std::int64_t token = begin; token < begin + whole_words<T>(end - begin); ++token) {
      T* row = out + (token - begin) / kPack<T> * kPack<T> * dim_ + token % kPack<T>;
      for (std::int64_t d = 0; d < dim_; ++d) row[d * kPack<T>] = token < end ? from.row(token)[d] : T(0);
    }
  }

  std::int64_t tokens_, dim_;
  Tokens as_;
  at::Tensor words_;
};

/// The forward pass over one block of queries of one head.
template <typename T>
class QueryBlock {
 public:
  explicit QueryBlock(const Shape& shape)
      : shape_(shape),
        logits_(at::empty({kRows, kColumns}, at::kFloat)),
        probabilities_(at::empty({kRows, kColumns}, c10::CppTypeToScalarType<T>::value)),
        sums_(at::empty({kRows, shape.value_dim}, at::kFloat)) {}

  /// Writes rows [begin, end) of the head's result and of its log sums.
  void run(std::int64_t begin, std::int64_t end, Matrix<T> queries, const Packed<T>& keys,
           const Packed<T>& values, T* result, std::int64_t result_stride, float* log_sums) {
    const std::int64_t rows = end - begin;
    std::fill_n(largest_, kRows, -std::numeric_limits<float>::infinity());
    std::fill_n(total_, kRows, 0.0F);
    float* sums = sums_.mutable_data_ptr<float>();
    std::fill_n(sums, rows * shape_.value_dim, 0.0F);
    std::int64_t next = 0;
    for (std::int64_t first = shape_.first_key(begin) / kPack<T> * kPack<T>; first < end; first = next) {
      next = std::min(end, (first / kColumns + 1) * kColumns);
      Product<T>{rows, next - first, shape_.key_dim}(queries.row(begin), queries.stride, keys.at(first),
                                                     keys.stride(first), logits_.mutable_data_ptr<float>(),
                                                     kColumns, /*add=*/false);
      for (std::int64_t row = 0; row < rows; ++row) weigh(row, begin + row, first, next);
      Product<T>{rows, shape_.value_dim, next - first}(probabilities_.const_data_ptr<T>(), kColumns,
                                                       values.at(first), values.stride(first), sums,
                                                       shape_.value_dim, /*add=*/true);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      float* sum = sums + row * shape_.value_dim;
      scale_row(sum, shape_.value_dim, 1.0F / total_[row]);
      store_row(sum, shape_.value_dim, result + (begin + row) * result_stride);
      log_sums[begin + row] = largest_[row] + std::log(total_[row]);
    }
  }

 private:
  // Logits of one query at keys [first, next) become unnormalised probabilities; what was summed before is
  // brought to the same largest logit.
  void weigh(std::int64_t row, std::int64_t query, std::int64_t first, std::int64_t next) {
    const float* logits = logits_.const_data_ptr<float>() + row * kColumns;
    T* to = probabilities_.mutable_data_ptr<T>() + row * kColumns;
    const std::int64_t count = next - first;
    const std::int64_t from = std::clamp<std::int64_t>(shape_.first_key(query) - first, 0, count);
    const std::int64_t seen = std::clamp<std::int64_t>(query + 1 - first, from, count);
    std::fill(to, to + from, T(0));
    std::fill(to + seen, to + whole_words<T>(count), T(0));
    if (from == seen) return;
    const float most = std::max(largest_[row], shape_.scale() * largest(logits + from, seen - from));
    const float kept = std::exp(largest_[row] - most);
    if (kept != 1.0F) {
      scale_row(sums_.mutable_data_ptr<float>() + row * shape_.value_dim, shape_.value_dim, kept);
      total_[row] *= kept;
    }
    largest_[row] = most;
    total_[row] += exponentials(logits + from, seen - from, shape_.scale(), most, to + from);
  }

  Shape shape_;
  at::Tensor logits_;         // [kRows, kColumns]
  at::Tensor probabilities_;  // [kRows, kColumns], of type T
  at::Tensor sums_;           // [kRows, value_dim]
  float largest_[kRows];      // of a query's logits so far
  float total_[kRows];        // of its probabilities
};

struct Attended {
  at::Tensor result;    // [tokens, heads, value_dim]
  at::Tensor log_sums;  // [heads, tokens]: log of the sum of e^logit
};

template <typename T>
Attended attend(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                const Shape& shape) {
  using Tokens = typename Packed<T>::Tokens;
  Attended out{at::empty({shape.tokens, shape.heads, shape.value_dim}, queries.options()),
               at::empty({shape.heads, shape.tokens}, at::kFloat)};
  at::parallel_for(0, shape.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    QueryBlock<T> block(shape);
    for (std::int64_t head = begin; head < end; ++head) {
      const std::int64_t kv = shape.kv_head(head);
      const Packed<T> k(Matrix<T>::of_head(keys, kv), shape.tokens, shape.key_dim, Tokens::columns);
      const Packed<T> v(Matrix<T>::of_head(values, kv), shape.tokens, shape.value_dim, Tokens::rows);
      for (std::int64_t first = 0; first < shape.tokens; first += kRows) {
        block.run(first, std::min(shape.tokens, first + kRows), Matrix<T>::of_head(queries, head), k, v,
                  out.result.mutable_data_ptr<T>() + head * shape.value_dim, shape.heads * shape.value_dim,
                  out.log_sums.mutable_data_ptr<float>() + head * shape.tokens);
      }
    }
  });
  return out;
}

struct Gradients {
  at::Tensor queries, keys, values;  // as the inputs
};

/// The gradient of one head, from the keys' side: a block of keys, and all queries that see it.
template <typename T>
class HeadGradient {
  using Tokens = typename Packed<T>::Tokens;

 public:
  HeadGradient(const Shape& shape, Matrix<T> queries, Matrix<T> slopes)
      : shape_(shape),
        query_columns_(queries, shape.tokens, shape.key_dim, Tokens::columns),
        query_rows_(queries, shape.tokens, shape.key_dim, Tokens::rows),
        slope_columns_(slopes, shape.tokens, shape.value_dim, Tokens::columns),
        slope_rows_(slopes, shape.tokens, shape.value_dim, Tokens::rows),
        logits_(at::empty({kRows, kColumns}, at::kFloat)),
        logit_slopes_(at::empty({kRows, kColumns}, at::kFloat)),
        probability_rows_(at::empty({kRows, kColumns}, c10::CppTypeToScalarType<T>::value)),
        slope_block_rows_(at::empty({kRows, kColumns}, c10::CppTypeToScalarType<T>::value)),
        slope_block_words_(at::empty({kRows, kColumns}, c10::CppTypeToScalarType<T>::value)),
        key_columns_(at::empty({shape.key_dim, kRows}, c10::CppTypeToScalarType<T>::value)) {}

  /// means[t]: sum of result x slope of query t. Adds to queries, in blocks of kColumns tokens, each
  /// [key_dim, tokens of the block]; and to keys and values, [tokens, dim].
  void run(Matrix<T> keys, Matrix<T> values, const float* log_sums, const float* means, float* to_queries,
           float* to_keys, float* to_values) {
    for (std::int64_t begin = 0; begin < shape_.tokens; begin += kRows) {
      const std::int64_t end = std::min(shape_.tokens, begin + kRows);
      transpose_keys(keys, begin, end);
      const std::int64_t last = shape_.last_query(end - 1);
      std::int64_t next = 0;
      for (std::int64_t first = begin; first < last; first = next) {
        next = std::min(last, (first / kColumns + 1) * kColumns);
        find_logit_slopes(keys, values, begin, end, first, next, log_sums, means);
        add_products(begin, end, first, next, to_queries, to_keys, to_values);
      }
    }
  }

 private:
  // [key_dim, kRows]: the left factor of the queries' gradient.
  void transpose_keys(Matrix<T> keys, std::int64_t begin, std::int64_t end) {
    T* to = key_columns_.mutable_data_ptr<T>();
    for (std::int64_t d = 0; d < shape_.key_dim; ++d) {
      for (std::int64_t row = 0; row < kRows; ++row)
        to[d * kRows + row] = begin + row < end ? keys.row(begin + row)[d] : T(0);
    }
  }

  // Probabilities and the logits' gradients of keys [begin, end) at queries [first, next).
  void find_logit_slopes(Matrix<T> keys, Matrix<T> values, std::int64_t begin, std::int64_t end,
                         std::int64_t first, std::int64_t next, const float* log_sums, const float* means) {
    float* logits = logits_.mutable_data_ptr<float>();
    float* slopes = logit_slopes_.mutable_data_ptr<float>();
    const std::int64_t rows = end - begin;
    const std::int64_t count = next - first;
    Product<T>{rows, count, shape_.key_dim}(keys.row(begin), keys.stride, query_columns_.at(first),
                                            query_columns_.stride(first), logits, kColumns, /*add=*/false);
    Product<T>{rows, count, shape_.value_dim}(values.row(begin), values.stride, slope_columns_.at(first),
                                              slope_columns_.stride(first), slopes, kColumns, /*add=*/false);
    const std::int64_t padded = whole_words<T>(count);
    for (std::int64_t row = 0; row < whole_words<T>(rows); ++row) {
      float* p = logits + row * kColumns;
      float* s = slopes + row * kColumns;
      const std::int64_t from = row < rows ? std::clamp<std::int64_t>(begin + row - first, 0, count) : count;
      const std::int64_t to =
          row < rows ? std::clamp<std::int64_t>(shape_.last_query(begin + row) - first, from, count) : count;
      gradient_row(p + from, s + from, to - from, shape_.scale(), log_sums + first + from,
                   means + first + from);
      for (float* x : {p, s}) {
        std::fill(x, x + from, 0.0F);
        std::fill(x + to, x + padded, 0.0F);
      }
      store_row(p, padded, probability_rows_.mutable_data_ptr<T>() + row * kColumns);
      store_row(s, padded, slope_block_rows_.mutable_data_ptr<T>() + row * kColumns);
    }
    if constexpr (kPack<T> == 2) {
      for (std::int64_t row = 0; row < rows; row += 2) {
        interleave_rows(slopes + row * kColumns, slopes + (row + 1) * kColumns, count,
                        slope_block_words_.mutable_data_ptr<T>() + row * kColumns);
      }
    }
  }

  void add_products(std::int64_t begin, std::int64_t end, std::int64_t first, std::int64_t next,
                    float* to_queries, float* to_keys, float* to_values) const {
    const std::int64_t rows = end - begin;
    const T* slope_rows = slope_block_rows_.const_data_ptr<T>();
    Product<T>{rows, shape_.value_dim, next - first}(
        probability_rows_.const_data_ptr<T>(), kColumns, slope_rows_.at(first), slope_rows_.stride(first),
        to_values + begin * shape_.value_dim, shape_.value_dim, /*add=*/true);
    Product<T>{rows, shape_.key_dim, next - first}(
        slope_rows, kColumns, query_rows_.at(first), query_rows_.stride(first),
        to_keys + begin * shape_.key_dim, shape_.key_dim, /*add=*/true);
    const std::int64_t block = first / kColumns * kColumns;
    Product<T>{shape_.key_dim, next - first, rows}(
        key_columns_.const_data_ptr<T>(), kRows,
        kPack<T> == 2 ? slope_block_words_.const_data_ptr<T>() : slope_rows, kColumns,
        to_queries + block * shape_.key_dim + first - block, std::min(kColumns, shape_.tokens - block),
        /*add=*/true);
  }

  Shape shape_;
  Packed<T> query_columns_, query_rows_, slope_columns_, slope_rows_;
  at::Tensor logits_, logit_slopes_;                                    // [kRows, kColumns]
  at::Tensor probability_rows_, slope_block_rows_, slope_block_words_;  // the same, of type T
  at::Tensor key_columns_;                                              // [key_dim, kRows]
};

template <typename T>
Gradients gradients(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                    const Attended& out, const at::Tensor& slope, const Shape& shape) {
  // [heads, tokens]
  const at::Tensor means = (out.result.to(at::kFloat) * slope.to(at::kFloat)).sum(2).t().contiguous();
  const at::Tensor to_queries = at::zeros({shape.heads, shape.tokens * shape.key_dim}, at::kFloat);
  const at::Tensor to_keys = at::zeros({shape.heads, shape.tokens, shape.key_dim}, at::kFloat);
  const at::Tensor to_values = at::zeros({shape.heads, shape.tokens, shape.value_dim}, at::kFloat);
  at::parallel_for(0, shape.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t head = begin; head < end; ++head) {
      HeadGradient<T> gradient(shape, Matrix<T>::of_head(queries, head), Matrix<T>::of_head(slope, head));
      gradient.run(
          Matrix<T>::of_head(keys, shape.kv_head(head)), Matrix<T>::of_head(values, shape.kv_head(head)),
          out.log_sums.const_data_ptr<float>() + head * shape.tokens,
          means.const_data_ptr<float>() + head * shape.tokens, to_queries[head].mutable_data_ptr<float>(),
          to_keys[head].mutable_data_ptr<float>(), to_values[head].mutable_data_ptr<float>());
    }
  });
  const at::Tensor of_queries = at::empty_like(queries);
  for (std::int64_t begin = 0; begin < shape.tokens; begin += kColumns) {
    const std::int64_t count = std::min(kColumns, shape.tokens - begin);
    of_queries.slice(0, begin, begin + count)
        .copy_(to_queries.slice(1, begin * shape.key_dim, (begin + count) * shape.key_dim)
                   .view({shape.heads, shape.key_dim, count})
                   .permute({2, 0, 1}));
  }
  const auto of_kv_head = [&](const at::Tensor& x) {
    return x.unflatten(0, {shape.kv_heads, shape.heads / shape.kv_heads})
        .sum(1)
        .transpose(0, 1)
        .to(queries.scalar_type());
  };
  return {of_queries, of_kv_head(to_keys), of_kv_head(to_values)};
}

class BlockedAttention : public torch::autograd::Function<BlockedAttention> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& queries,
                            const at::Tensor& keys, const at::Tensor& values, std::int64_t window) {
    const at::Tensor q = queries.contiguous();
    const at::Tensor k = keys.contiguous();
    const at::Tensor v = values.contiguous();
    const Shape shape = shape_of(q, k, v, window);
    const Attended out = is_float(q) ? attend<float>(q, k, v, shape) : attend<c10::BFloat16>(q, k, v, shape);
    context->save_for_backward({q, k, v, out.result, out.log_sums});
    context->saved_data["window"] = window;
    return out.result.flatten(1);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& slopes) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2];
    const Attended out{saved[3], saved[4]};
    const Shape shape = shape_of(q, k, v, context->saved_data["window"].toInt());
    const at::Tensor slope = slopes[0].contiguous().view(out.result.sizes());
    const Gradients found = is_float(q) ? gradients<float>(q, k, v, out, slope, shape)
                                        : gradients<c10::BFloat16>(q, k, v, out, slope, shape);
    return {found.queries, found.keys, found.values, at::Tensor()};
  }

 private:
  static bool is_float(const at::Tensor& x) { return x.scalar_type() == at::kFloat; }
  static Shape shape_of(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                        std::int64_t window) {
    return {queries.size(0), queries.size(1), keys.size(1), keys.size(2), values.size(2), window};
  }
};

// Whether oneDNN's block product works here: it may have been told to use less of the CPU
// (ONEDNN_MAX_CPU_ISA).
template <typename T>
bool product_works() {
  const std::vector<T> ones(64, T(1));
  std::vector<float> sum(16);
  try {
    Product<T>{4, 4, 4}(ones.data(), 4, ones.data(), 4, sum.data(), 4, /*add=*/false);
  } catch (const c10::Error&) {
    return false;
  }
  return sum[5] == 4;
}

}  // namespace

bool blocked_attention_serves(const at::Tensor& queries, const at::Tensor& values) {
  static const bool fastest =
      base::has_avx512() && !base::cpu_is_intel() && at::globalContext().userEnabledMkldnn();
  static const bool float32 = fastest && product_works<float>();
  static const bool bfloat16 = fastest && base::multiplies_bfloat16() && product_works<c10::BFloat16>();
  if (!queries.is_cpu()) return false;
  if (queries.scalar_type() == at::kFloat) return float32;
  return queries.scalar_type() == at::kBFloat16 && bfloat16 && queries.size(2) % 2 == 0 &&
         values.size(2) % 2 == 0;
}

at::Tensor blocked_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                             std::int64_t window) {
  return BlockedAttention::apply(queries, keys, values, window);
}

}  // namespace kvcal::calib
