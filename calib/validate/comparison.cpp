#include "calib/validate/comparison.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <functional>
#include <mutex>

#include "base/error.h"
#include "calib/engine/sample_lanes.h"
#include "calib/engine/state_store.h"
#include "calib/plan/machine.h"
#include "calib/plan/tensor_memory.h"
#include "fisher/head_loss.h"

namespace kvcal::calib {
namespace {

constexpr int kAllTensors = -1;

/// A model whose cache is stored by a method from a layer on.
struct Variant {
  std::size_t method = 0;  // its place in the list
  int start = 0;           // it is the full-precision run up to this layer
  int tensor = kAllTensors;

  [[nodiscard]] bool alone() const { return tensor != kAllTensors; }
  [[nodiscard]] bool stores(int layer) const { return !alone() || layer == start; }
};

/// Positions of a window that go through the head together.
struct Piece {
  std::int64_t window = 0, begin = 0, end = 0;
};

std::vector<std::vector<float>> sensitivities_of(const formats::Codebook* codebook, int layer,
                                                 const std::vector<formats::CachedTensor>& tensors) {
  std::vector<std::vector<float>> weights(tensors.size());
  if (codebook == nullptr) return weights;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    const formats::TensorCodebook* found = codebook->find(layer, tensors[t].name);
    if (found != nullptr && found->tensor.channels() == tensors[t].channels())
      weights[t] = found->fisher_channel;
  }
  return weights;
}

class Comparison {
 public:
  Comparison(const Session& session, const TokenWindows& windows, const std::vector<NamedMethod>& methods,
             const formats::Codebook* sensitivities, const ComparisonOptions& options,
             base::Progress& progress)
      : session_(session),
        tokens_(windows),
        methods_(methods),
        sensitivities_(sensitivities),
        options_(options),
        progress_(progress),
        lanes_(options.lanes, session.placement.threads),
        states_(options.memory_bytes, options.scratch),
        costs_(methods.size()) {
    for (std::size_t m = 0; m < methods.size(); ++m) {
      costs_[m].name = methods[m].name;
      if (methods[m].method) variants_.push_back({m});
    }
  }

  std::vector<MethodCost> run() {
    embed();
    std::int64_t stored = 0;
    for (const NamedMethod& method : methods_) stored += method.method ? 1 : 0;
    begin_stage("layers", comparison_layers(session_, stored, options_.each_alone));
    for (int layer = 0; layer < session_.num_layers(); ++layer) run_layer(layer);
    end_stage();
    score();
    return std::move(costs_);
  }

 private:
  [[nodiscard]] std::int64_t windows() const { return tokens_.samples; }
  // The full-precision run has two slots for each window, input and output of a layer by turns.
  [[nodiscard]] std::int64_t exact_slot(int layer, std::int64_t window) const {
    return layer % 2 * windows() + window;
  }
  [[nodiscard]] std::int64_t slot(std::size_t variant, std::int64_t window) const {
    return (static_cast<std::int64_t>(variant) + 2) * windows() + window;
  }

  void begin_stage(const char* name, std::int64_t rounds) {
    rounds_ = std::max<std::int64_t>(1, rounds);
    done_ = 0;
    progress_.begin_stage(options_.stage + name, tokens_.tokens(), "tokens");
  }

  void end_stage() {
    progress_.end_stage();
    TensorMemory::release();
    release_freed_memory();
  }

  void for_each(std::int64_t tasks, const std::string& detail,
                const std::function<std::int64_t(std::int64_t)>& tokens_of_task) {
    lanes_.run(tasks, [&](std::int64_t task) {
      {
        const std::scoped_lock lock(progress_mutex_);
        progress_.check_interrupted();
      }
      const at::NoGradGuard no_graph;
      const std::int64_t tokens = tokens_of_task(task);
      const std::scoped_lock lock(progress_mutex_);
      done_ += tokens;
      progress_.advance(done_ / rounds_, detail);
    });
  }

  void embed() {
    const at::NoGradGuard no_graph;
    const std::vector<TensorSpec> specs = session_.model->embedding_weights();
    for (const TensorSpec& spec : specs) session_.weights->check_values(spec);
    for (std::int64_t w = 0; w < windows(); ++w) {
      const at::Tensor embedded = session_.model->embed(tokens_.sample(w));
      require_finite(session_, embedded, layer_place(0), w, "embeddings");
      states_.put(exact_slot(0, w), embedded.to(at::kCPU));
    }
    session_.weights->dont_need(specs);
  }

  // Each method's storages, in the order of methods_; those of full precision are empty.
  [[nodiscard]] std::vector<LayerStorages> storages_of(
      int layer, const std::vector<formats::CachedTensor>& tensors) const {
    std::vector<LayerStorages> result;
    for (const NamedMethod& method : methods_) {
      if (method.method)
        result.push_back(layer_storages(method.name, *method.method, layer, tensors));
      else
        result.push_back({method.name, layer, tensors, {}}), result.back().storages.resize(tensors.size());
    }
    return result;
  }

  void run_layer(int layer) {
    const std::vector<formats::CachedTensor> tensors = session_.model->cache(layer);
    const std::vector<LayerStorages> storages = storages_of(layer, tensors);
    const std::vector<std::vector<float>> weights = sensitivities_of(sensitivities_, layer, tensors);
    if (options_.each_alone) leave_exact_run(layer, tensors.size());
    const bool last = layer + 1 == session_.num_layers();
    session_.weights->will_need(last ? session_.model->head_weights()
                                     : session_.model->block_weights(layer + 1));
    std::vector<std::vector<std::vector<StorageError>>> errors(static_cast<std::size_t>(windows()));
    {
      const auto block = session_.model->load_block(layer);
      // The full-precision run first: it takes longest, for every method measures itself on it.
      const auto tasks = static_cast<std::int64_t>(variants_.size() + 1) * windows();
      const LayerStorages& exact = *std::ranges::find_if(
          storages, [](const LayerStorages& method) { return method.method == kFullPrecision; });
      const std::string detail = base::concat("layer ", layer + 1, " of ", session_.num_layers());
      for_each(tasks, detail, [&](std::int64_t task) {
        const std::int64_t window = task % windows();
        if (task < windows()) {
          errors[static_cast<std::size_t>(window)] =
              run_exact(*block, layer, window, exact, storages, weights);
        } else {
          run_variant(*block, layer, static_cast<std::size_t>(task / windows() - 1), window, storages);
        }
        return static_cast<std::int64_t>(tokens_.sample(window).size());
      });
    }
    session_.weights->dont_need(session_.model->block_weights(layer));
    for (std::int64_t w = 0; w < windows(); ++w) states_.drop(exact_slot(layer, w));
    if (!tensors.empty()) add_costs(layer, storages, errors);
  }

  void leave_exact_run(int layer, std::size_t tensors) {
    for (std::size_t m = 0; m < methods_.size(); ++m) {
      if (!methods_[m].method) continue;
      for (std::size_t t = 0; t < tensors; ++t) variants_.push_back({m, layer, static_cast<int>(t)});
    }
  }

  // The errors of each method's tensors; none where they are not measured.
  std::vector<std::vector<StorageError>> run_exact(const fisher::Block& block, int layer, std::int64_t window,
                                                   const LayerStorages& exact,
                                                   const std::vector<LayerStorages>& storages,
                                                   const std::vector<std::vector<float>>& weights) {
    const at::Tensor input = states_.get(exact_slot(layer, window)).to(session_.placement.device);
    MeasuringHook hook(storages, weights, window);
    const bool measures = options_.errors && options_.decoded == 0;
    const at::Tensor output = measures ? block.forward(input, &hook) : forward(block, input, exact, window);
    require_finite(session_, output, layer_place(layer), window, "activations");
    states_.put(exact_slot(layer + 1, window), output.to(at::kCPU));
    return measures ? hook.take_errors() : std::vector<std::vector<StorageError>>();
  }

  // All tensors stored: a window as a whole, or its end token by token.
  [[nodiscard]] at::Tensor forward(const fisher::Block& block, const at::Tensor& input,
                                   const LayerStorages& storages, std::int64_t window) const {
    if (options_.decoded == 0) {
      StoringHook hook(storages, window);
      return block.forward(input, &hook);
    }
    GrowingHook hook(storages, window, input.size(0));
    const std::int64_t prompt = input.size(0) - options_.decoded;
    std::vector<at::Tensor> outputs = {block.forward(input.slice(0, 0, prompt), &hook)};
    for (std::int64_t token = prompt; token < input.size(0); ++token)
      outputs.push_back(block.forward(input.slice(0, token, token + 1), &hook));
    return at::cat(outputs);
  }

  void run_variant(const fisher::Block& block, int layer, std::size_t index, std::int64_t window,
                   const std::vector<LayerStorages>& storages) {
    const Variant& variant = variants_[index];
    const std::int64_t from = layer == variant.start ? exact_slot(layer, window) : slot(index, window);
    const at::Tensor input = states_.get(from).to(session_.placement.device);
    StoringHook alone(storages[variant.method], window, variant.tensor);
    const at::Tensor output = variant.alone() ? block.forward(input, variant.stores(layer) ? &alone : nullptr)
                                              : forward(block, input, storages[variant.method], window);
    require_finite(session_, output, methods_[variant.method].name + ", " + layer_place(layer), window,
                   "activations");
    states_.put(slot(index, window), output.to(at::kCPU));
  }

  void add_costs(int layer, const std::vector<LayerStorages>& storages,
                 const std::vector<std::vector<std::vector<StorageError>>>& errors) {
    for (std::size_t m = 0; m < methods_.size(); ++m) {
      if (!methods_[m].method) continue;
      LayerCost cost{layer, {}};
      for (std::size_t t = 0; t < storages[m].tensors.size(); ++t) {
        TensorCost tensor{storages[m].tensors[t].name, storages[m].tensors[t].thresholds, {}, 0, {}};
        for (const auto& window : errors)
          if (!window.empty()) tensor.error += window[m][t];
        if (const TensorStorage* storage = storages[m].storages[t].get()) {
          tensor.outlier_fraction = storage->outlier_fraction();
          costs_[m].static_bytes += storage->static_bytes();
        }
        cost.tensors.push_back(std::move(tensor));
      }
      costs_[m].layers.push_back(std::move(cost));
    }
  }

  [[nodiscard]] std::vector<Piece> pieces() const {
    const std::int64_t rows = fisher::head_rows(session_.config().vocab_size);
    std::vector<Piece> result;
    for (std::int64_t w = 0; w < windows(); ++w) {
      const auto end = static_cast<std::int64_t>(tokens_.sample(w).size()) - 1;
      for (std::int64_t begin = options_.first_scored[static_cast<std::size_t>(w)]; begin < end;
           begin += rows)
        result.push_back({w, begin, std::min(end, begin + rows)});
    }
    return result;
  }

  void score() {
    const std::vector<Piece> parts = pieces();
    // [pieces][full precision and variants]
    std::vector<std::vector<WindowScores>> scores(parts.size());
    begin_stage("logits", 1);
    {
      const auto head = session_.model->load_head();
      for_each(static_cast<std::int64_t>(parts.size()), "head", [&](std::int64_t task) {
        const auto index = static_cast<std::size_t>(task);
        scores[index] = score_piece(*head, parts[index]);
        return parts[index].end - parts[index].begin;
      });
    }
    session_.weights->dont_need(session_.model->head_weights());
    end_stage();
    std::vector<std::vector<WindowScores>> windows_of(variants_.size() + 1);
    for (auto& windows : windows_of) windows.resize(static_cast<std::size_t>(this->windows()));
    for (std::size_t p = 0; p < parts.size(); ++p) {
      for (std::size_t v = 0; v < windows_of.size(); ++v)
        windows_of[v][static_cast<std::size_t>(parts[p].window)].append(scores[p][v]);
    }
    distribute(windows_of);
  }

  [[nodiscard]] std::vector<WindowScores> score_piece(const fisher::Head& head, const Piece& piece) const {
    const std::span<const std::int32_t> targets =
        tokens_.sample(piece.window)
            .subspan(static_cast<std::size_t>(piece.begin) + 1,
                     static_cast<std::size_t>(piece.end - piece.begin));
    const auto logits_of = [&](std::int64_t slot, const std::string& name) {
      at::Tensor logits =
          head.logits(states_.rows(slot, piece.begin, piece.end).to(session_.placement.device));
      require_finite(session_, logits, name + "the head", piece.window, "logits");
      return logits;
    };
    const ReferenceScores reference(logits_of(exact_slot(session_.num_layers(), piece.window), ""), targets);
    std::vector<WindowScores> scores = {reference.itself()};
    for (std::size_t v = 0; v < variants_.size(); ++v) {
      const std::string name = methods_[variants_[v].method].name + ", ";
      scores.push_back(reference.compare(logits_of(slot(v, piece.window), name)));
    }
    return scores;
  }

  // windows_of: [full precision and variants][windows]
  void distribute(const std::vector<std::vector<WindowScores>>& windows_of) {
    for (std::size_t m = 0; m < methods_.size(); ++m)
      if (!methods_[m].method) set_score(costs_[m], windows_of[0]);
    for (std::size_t v = 0; v < variants_.size(); ++v) {
      const Variant& variant = variants_[v];
      MethodCost& cost = costs_[variant.method];
      if (!variant.alone()) {
        set_score(cost, windows_of[v + 1]);
        cost.perplexity_delta_stderr = perplexity_delta_stderr(windows_of[0], windows_of[v + 1]);
        continue;
      }
      const auto layer = std::ranges::find(cost.layers, variant.start, &LayerCost::layer);
      layer->tensors[static_cast<std::size_t>(variant.tensor)].alone = summarise(windows_of[v + 1]);
    }
  }

  static void set_score(MethodCost& cost, const std::vector<WindowScores>& windows) {
    cost.score = summarise(windows);
    cost.windows = windows;
  }

  const Session& session_;
  const TokenWindows& tokens_;
  const std::vector<NamedMethod>& methods_;
  const formats::Codebook* sensitivities_;
  const ComparisonOptions& options_;
  base::Progress& progress_;
  SampleLanes lanes_;
  StateStore states_;
  std::vector<Variant> variants_;
  std::vector<MethodCost> costs_;
  std::mutex progress_mutex_;
  std::int64_t rounds_ = 1, done_ = 0;  // tokens times layers
};

}  // namespace

double MethodCost::bits_per_value() const {
  StorageUse use;
  for (const LayerCost& layer : layers)
    for (const TensorCost& tensor : layer.tensors) use += tensor.error.use;
  return use.values == 0 ? 0 : 8.0 * static_cast<double>(use.bytes) / static_cast<double>(use.values);
}

std::int64_t comparison_layers(const Session& session, std::int64_t methods, bool each_alone) {
  const std::int64_t layers = session.num_layers();
  std::int64_t rounds = layers * (methods + 1);
  if (!each_alone) return rounds;
  for (int layer = 0; layer < layers; ++layer)
    rounds += methods * static_cast<std::int64_t>(session.model->cache(layer).size()) * (layers - layer);
  return rounds;
}

std::int64_t comparison_states(const Session& session, std::int64_t methods, bool each_alone) {
  std::int64_t states = methods + 2;
  if (!each_alone) return states;
  for (int layer = 0; layer < session.num_layers(); ++layer)
    states += methods * static_cast<std::int64_t>(session.model->cache(layer).size());
  return states;
}

std::vector<MethodCost> compare(const Session& session, const TokenWindows& windows,
                                const std::vector<NamedMethod>& methods,
                                const formats::Codebook* sensitivities, const ComparisonOptions& options,
                                base::Progress& progress) {
  return Comparison(session, windows, methods, sensitivities, options, progress).run();
}

}  // namespace kvcal::calib
