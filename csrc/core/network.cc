// The forward and backward passes of all layers and directions of a network.
#include "core/network.h"

#include "core/thread_setup.h"

namespace tidegate {

namespace {

// The bytes of a block's intermediate outputs between layers, which stay in L2.
constexpr Index kIntermediateBytes = 256 * 1024;

// The number of steps in a block. A stack with one direction runs a block in all layers before the
// next block. A multiple of the steps that are projected together.
template <class T>
Index steps_at_once(const Config& config, CallSize size, Index chunk) {
  // An empty batch takes no time, whatever its number of steps.
  if (config.num_layers == 1 || config.bidirectional || size.batch == 0) return size.steps;
  const Index step = checked_size(std::max<Index>(1, size.batch), config.output_size(), sizeof(T));
  const Index chunks = std::max<Index>(1, kIntermediateBytes / step / chunk);
  return std::min(size.steps, chunks * chunk);
}

}  // namespace

template <class T>
ForwardWorkspace<T>::ForwardWorkspace(const Config& config, const Weights<T>& weights,
                                      CallSize size, int threads, bool inference)
    : steps_at_once(size.steps),
      states(inference ? static_cast<std::size_t>(config.num_layers * config.num_directions()) : 0),
      memory([&](Arena& arena) {
        const Index width = weights.kernels().width;
        for (int d = 0; d < config.num_directions(); ++d) {
          scratch[d] =
              ForwardScratch<T>::take(arena, config, weights, size.steps, size.batch, threads);
        }
        if (!inference) return;
        for (LayerStates& state : states) {
          state.h = States<T>::take(arena, 2, size.batch, config.state_size(), width);
          if (config.has_cell_state())
            state.c = States<T>::take(arena, 2, size.batch, config.hidden_size, width);
        }
        steps_at_once = tidegate::steps_at_once<T>(config, size, scratch[0].chunk);
        if (config.num_layers > 1)
          intermediate = arena.take<T>(steps_at_once, size.batch, config.output_size());
      }) {}

template <class T>
Record<T>::Record(const Config& network, std::shared_ptr<const Weights<T>> snapshot, Schedule owned,
                  bool dropout)
    : config(network),
      weights(std::move(snapshot)),
      schedule(std::move(owned)),
      inputs(static_cast<std::size_t>(config.num_layers)),
      directions(static_cast<std::size_t>(config.num_layers * config.num_directions())),
      memory(
          [&](Arena& arena) {
            const Index steps = schedule.steps();
            const Index batch = schedule.batch();
            const Index width = weights->kernels().width;
            for (std::size_t layer = 0; layer < inputs.size(); ++layer) {
              inputs[layer] =
                  arena.take<T>(steps, batch, config.layer_input_size(static_cast<Index>(layer)));
            }
            if (dropout)
              dropout_scale =
                  arena.take<T>(config.num_layers - 1, steps, batch, config.output_size());
            for (Direction& d : directions) {
              d.h = States<T>::take(arena, steps + 1, batch, config.state_size(), width);
              if (config.has_cell_state())
                d.c = States<T>::take(arena, steps + 1, batch, config.hidden_size, width);
              const Index gate_stride = slice_count(config.hidden_size, width) * width;
              const Index row_stride = checked_size(weights->cell().gate_count, gate_stride);
              d.saved = {arena.take<T>(steps, batch, row_stride), batch, gate_stride, row_stride};
            }
          },
          "the tape") {}

namespace {

// The rows of thread `i` of `parts`: each thread's rows have about the same total length.
Range rows_of(const Schedule& schedule, Index i, Index parts) {
  const Index batch = schedule.batch();
  if (!schedule.ragged()) return part_of(batch, i, parts);
  Index total = 0;
  for (Index n = 0; n < batch; ++n) total += schedule.length(n);
  const auto first_row = [&](Index part) {
    if (part == parts) return batch;
    Index row = 0;
    for (Index before = 0; row < batch && before < total * part / parts;)
      before += schedule.length(row++);
    return row;
  };
  return {first_row(i), first_row(i + 1)};
}

// The work that a plan assigns to a thread.
struct ThreadTask {
  int thread;
  int first_direction, end_direction;
  const Share& share;       // its share of its directions
  const Share& whole_call;  // its share of work that all threads divide
};

// Calls body(task) on each thread of the plan. Throws Interrupted if the calling thread's poll
// requested an early end, for which the body checks by the shares.
template <class Body>
void run_plan(const Plan& plan, const Config& config, const Schedule& schedule, ThreadLease& lease,
              const Body& body) {
  Interruption interruption;
  Interruption* const interruption_or_null = interruption.possible() ? &interruption : nullptr;
  const ThreadSetup setup;
  const auto directions = static_cast<int>(config.num_directions());
  const Range all_rows = {0, schedule.batch()};
  if (plan.threads == 1) {
    Barrier barrier(1);
    const Share share(0, 1, false, all_rows, barrier, interruption_or_null);
    body(ThreadTask{0, 0, directions, share, share});
    interruption.finish();
    return;
  }
  Barrier barrier_of_all(plan.threads);
  Barrier group_barriers[kMaxDirections] = {Barrier(plan.group_size(0)),
                                            Barrier(plan.group_size(plan.groups - 1))};
  lease.run([&](int thread) {
    if (thread >= plan.threads) return;
    const int group = plan.group_of(thread);
    const int index = plan.index_in_group(thread);
    const int members = plan.group_size(group);
    const Range rows = plan.by_units ? all_rows : rows_of(schedule, index, members);
    const Share share(index, members, plan.by_units, rows, group_barriers[group],
                      interruption_or_null);
    const Share whole_call(thread, plan.threads, false, all_rows, barrier_of_all,
                           interruption_or_null);
    body(ThreadTask{thread, plan.groups == 1 ? 0 : group, plan.groups == 1 ? directions : group + 1,
                    share, whole_call});
  });
  interruption.finish();
}

// Estimates assume rows of full length, so the times of other calls are not recorded.
void record_time(const PlannedCall& plan, const Schedule& schedule) {
  if (!schedule.ragged()) plan.record();
}

// The part of one direction of a sequence (T, N, D*S).
template <class T>
View<T> direction_of(View<T> sequence, Index direction, Index state) {
  if (!sequence.given) return sequence;
  if (sequence.data) sequence.data += direction * state;
  sequence.shape[2] = state;
  return sequence;
}

// Calls f(t, row) for the active rows of this share of the steps.
template <class F>
void for_active_rows(const Schedule& schedule, const Share& share, const F& f) {
  const Range steps = share.part(Timeline(schedule, false).steps());
  for (Index t = steps.begin; t < steps.end; ++t) {
    for (Index n = 0; n < schedule.active(t); ++n) f(t, schedule.caller_row(n));
  }
}

template <class T>
void multiply_by(const T* factors, T* values, Index count) {
  for (Index j = 0; j < count; ++j) values[j] *= factors[j];
}

}  // namespace

template <class T>
void run_forward(const Config& config, const Weights<T>& weights, const Schedule& schedule,
                 const Inputs<T>& inputs, const Outputs<T>& outputs,
                 const ForwardWorkspace<T>& workspace, Record<T>* record, PlannedCall plan) {
  ThreadLease lease(plan.threads);
  if (lease.size() < plan.threads) {
    const Call call = {config, Work::forward, schedule.steps(), schedule.batch(),
                       weights.storage().cost};
    plan = plan_again(call, lease.size(), plan);
  }
  const Index width = config.output_size();
  const CallSize size = {schedule.steps(), schedule.batch()};
  run_plan(plan, config, schedule, lease, [&](const ThreadTask& task) {
    if (record) {
      const View<T> x = record->layer_input(0);
      for_active_rows(schedule, task.whole_call, [&](Index t, Index n) {
        const T* from = inputs.x.row(t, n);
        std::copy(from, from + config.input_size, x.row(t, n));
      });
      if (record->dropout_scale) {
        const Range part =
            task.whole_call.part((config.num_layers - 1) * size.steps * size.batch * width);
        std::copy(inputs.dropout_scale + part.begin, inputs.dropout_scale + part.end,
                  record->dropout_scale + part.begin);
      }
      task.whole_call.barrier_wait();
    }
    const Index block = workspace.steps_at_once;
    for (Index s0 = 0; s0 == 0 || s0 < size.steps; s0 += block) {
      const Range steps = {s0, std::min(s0 + block, size.steps)};
      // In inference, layers write alternately to `intermediate` and y, the last layer to y.
      const auto buffer = [&](Index layer) {
        if ((config.num_layers - 1 - layer) % 2 == 0) return outputs.y;
        const Index first = config.reverse ? size.steps - steps.end : steps.begin;
        View<T> intermediate = view(workspace.intermediate, size.steps, size.batch, width);
        intermediate.data -= first * intermediate.stride[0];
        return intermediate;
      };
      for (Index layer = 0; layer < config.num_layers; ++layer) {
        const bool top = layer + 1 == config.num_layers;
        const View<const T> x = record       ? constant(record->layer_input(layer))
                                : layer == 0 ? inputs.x
                                             : constant(buffer(layer - 1));
        const View<T> y = record && !top ? record->layer_input(layer + 1) : buffer(layer);
        for (int d = task.first_direction; d < task.end_direction; ++d) {
          const auto index = static_cast<std::size_t>(layer * config.num_directions() + d);
          const ForwardDirection<T> direction = {
              .config = config,
              .weights = weights,
              .layer = layer,
              .direction = d,
              .schedule = schedule,
              .x = x,
              .y = direction_of(y, d, config.state_size()),
              .h_0 = inputs.h_0,
              .c_0 = inputs.c_0,
              .h_n = outputs.h_n,
              .c_n = outputs.c_n,
              .h = record ? record->direction(layer, d).h : workspace.states[index].h,
              .c = record ? record->direction(layer, d).c : workspace.states[index].c,
              .saved = record ? record->direction(layer, d).saved : SavedGates<T>{},
              .scratch = workspace.scratch[d],
          };
          direction.run(task.share, task.thread, steps);
        }
        if (config.num_layers > 1 && task.whole_call.barrier_wait_then_stops()) return;
        if (!top && record && record->dropout_scale) {
          const T* factors = record->dropout_of(layer);
          for_active_rows(schedule, task.whole_call, [&](Index t, Index n) {
            multiply_by(factors + (t * size.batch + n) * width, y.row(t, n), width);
          });
          task.whole_call.barrier_wait();
        }
      }
      if (size.steps == 0) break;
    }
  });
  record_time(plan, schedule);
}

namespace {

template <class T>
struct BackwardWorkspace {
  BackwardWorkspace(const Record<T>& record, int threads)
      : memory([&](Arena& arena) {
          const Config& config = record.config;
          const CallSize size = record.size();
          for (int d = 0; d < config.num_directions(); ++d) {
            scratch[d] = BackwardScratch<T>::take(arena, config, *record.weights, size.steps,
                                                  size.batch, threads);
          }
          const Index buffers = std::min<Index>(2, config.num_layers - 1);
          for (Index i = 0; i < buffers; ++i)
            intermediate[i] = arena.take<T>(size.steps, size.batch, config.output_size());
          if (config.bidirectional) {
            second_dx = arena.take<T>(size.steps, size.batch,
                                      std::max(config.input_size, config.output_size()));
          }
        }) {}

  BackwardScratch<T> scratch[kMaxDirections];
  T* intermediate[2] = {};  // (T, N, D*S), dense: gradients by the layers' inputs, alternately
  T* second_dx = nullptr;   // (T, N, inputs), dense: the part of the second direction
  Buffer memory;
};

}  // namespace

template <class T>
void run_backward(const Record<T>& record, const OutputGradients<T>& outputs,
                  const InputGradients<T>& inputs, int threads) {
  const Config& config = record.config;
  const Schedule& schedule = record.schedule;
  const CallSize size = record.size();
  const Call call = {config, Work::backward, size.steps, size.batch,
                     record.weights->storage().cost};
  PlannedCall plan = plan_call(call, threads, record.weights->memory());
  ThreadLease lease(plan.threads);
  if (lease.size() < plan.threads) plan = plan_again(call, lease.size(), plan);
  const BackwardWorkspace<T> workspace(record, plan.threads);
  const std::vector<ParameterOffsets> offsets = parameter_offsets(config);

  run_plan(plan, config, schedule, lease, [&](const ThreadTask& task) {
    for (Index layer = config.num_layers - 1; layer >= 0; --layer) {
      const bool top = layer + 1 == config.num_layers;
      const Index width = config.layer_input_size(layer);
      const View<const T> dy = top ? outputs.y
                                   : constant(view(workspace.intermediate[layer % 2], size.steps,
                                                   size.batch, config.output_size()));
      const View<T> dx =
          layer == 0 ? inputs.x
                     : view(workspace.intermediate[(layer - 1) % 2], size.steps, size.batch, width);
      View<T> second_dx = view(workspace.second_dx, size.steps, size.batch, width);
      second_dx.given = dx.given;
      for (int d = task.first_direction; d < task.end_direction; ++d) {
        const BackwardDirection<T> direction = {
            .config = config,
            .weights = *record.weights,
            .layer = layer,
            .direction = d,
            .schedule = schedule,
            .x = constant(record.layer_input(layer)),
            .h = record.direction(layer, d).h,
            .c = record.direction(layer, d).c,
            .saved = record.direction(layer, d).saved,
            .dy = direction_of(dy, d, config.state_size()),
            .dh_n = outputs.h_n,
            .dc_n = outputs.c_n,
            .dx = d == 0 ? dx : second_dx,
            .dh_0 = inputs.h_0,
            .dc_0 = inputs.c_0,
            .dparameters = inputs.parameters,
            .offsets = offsets[static_cast<std::size_t>(layer * config.num_directions() + d)],
            .scratch = workspace.scratch[d],
        };
        direction.run(task.share, task.thread);
      }
      if (task.whole_call.barrier_wait_then_stops()) return;
      // A sum of two terms is bitwise the same in either order.
      const T* factors = layer > 0 ? record.dropout_of(layer - 1) : nullptr;
      if (dx.given && (config.bidirectional || factors)) {
        for_active_rows(schedule, task.whole_call, [&](Index t, Index n) {
          T* row = dx.row(t, n);
          if (config.bidirectional) {
            record.weights->kernels().outer->add_rows({second_dx.row(t, n), 0, nullptr},
                                                      {row, 0, nullptr}, 1, width);
          }
          if (factors) multiply_by(factors + (t * size.batch + n) * width, row, width);
        });
      }
      if (layer > 0) task.whole_call.barrier_wait();
    }
    if (inputs.x.given && !inputs.x.first_row) {
      const Range rows = task.whole_call.part(size.batch);
      for (Index n = rows.begin; n < rows.end; ++n) {
        for (Index t = schedule.length(n); t < size.steps; ++t) {
          T* row = inputs.x.row(t, schedule.caller_row(n));
          std::fill(row, row + config.input_size, T(0));
        }
      }
    }
  });
  record_time(plan, schedule);
}

template struct ForwardWorkspace<float>;
template struct ForwardWorkspace<double>;
template struct Record<float>;
template struct Record<double>;
template void run_forward(const Config&, const Weights<float>&, const Schedule&,
                          const Inputs<float>&, const Outputs<float>&,
                          const ForwardWorkspace<float>&, Record<float>*, PlannedCall);
template void run_forward(const Config&, const Weights<double>&, const Schedule&,
                          const Inputs<double>&, const Outputs<double>&,
                          const ForwardWorkspace<double>&, Record<double>*, PlannedCall);
template void run_backward(const Record<float>&, const OutputGradients<float>&,
                           const InputGradients<float>&, int);
template void run_backward(const Record<double>&, const OutputGradients<double>&,
                           const InputGradients<double>&, int);

}  // namespace tidegate
