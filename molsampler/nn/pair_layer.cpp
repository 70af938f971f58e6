// Messages between pairs of particles in one layer of an EGNN: what they move, their sums at each particle, and
// the gradients of both. The equations are those of bodies/egnn.py.
//
// ROWS configurations are taken at a time, pair after pair: every intermediate result of a pair stays in the
// cache, and the backward pass computes it again. Matrices are row-major, LANES numbers to a register.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "elementary.h"

namespace {

using elementary::exponential;
using elementary::logarithm;

#if defined(__AVX512F__)
constexpr int LANES = 16, BLOCK = 8, WIDEST = 3;
#elif defined(__AVX__)
constexpr int LANES = 8, BLOCK = 4, WIDEST = 3;
#else
constexpr int LANES = 4, BLOCK = 4, WIDEST = 2;
#endif
constexpr long ROWS = 32;

using Vector = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

Vector &at(float *place) { return *reinterpret_cast<Vector *>(place); }
const Vector &at(const float *place) { return *reinterpret_cast<const Vector *>(place); }

// BLOCK rows and WIDTH registers of C, or of C and the product A B, over `depth`; A is read by its columns if TURNED.
template <int WIDTH, bool TURNED>
void multiply_block(const float *a, long stride_a, const float *b, long stride_b, float *c, long stride_c, long depth) {
  Vector sum[BLOCK][WIDTH];
#pragma GCC unroll 8
  for (int r = 0; r < BLOCK; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) sum[r][v] = at(c + r * stride_c + v * LANES);
  for (long k = 0; k < depth; ++k) {
    Vector right[WIDTH];
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) right[v] = at(b + k * stride_b + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < BLOCK; ++r) {
      const float left = TURNED ? a[k * stride_a + r] : a[r * stride_a + k];
#pragma GCC unroll 4
      for (int v = 0; v < WIDTH; ++v) sum[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < BLOCK; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < WIDTH; ++v) at(c + r * stride_c + v * LANES) = sum[r][v];
}

// C += A B, or A^T B: C is rows x columns, A rows x depth (depth x rows if TURNED), B depth x columns. Rows fill
// blocks, columns registers.
template <bool TURNED>
void multiply(const float *a, long stride_a, const float *b, float *c, long rows, long columns, long depth) {
  for (long start = 0; start < columns;) {
    const long left = (columns - start) / LANES;
    const long take = left == 4 && WIDEST == 3 ? 2 : (left < WIDEST ? left : WIDEST);
    for (long r = 0; r < rows; r += BLOCK) {
      const float *from = a + (TURNED ? r : r * stride_a);
      float *to = c + r * columns + start;
      if (take == 1) multiply_block<1, TURNED>(from, stride_a, b + start, columns, to, columns, depth);
      if (take == 2) multiply_block<2, TURNED>(from, stride_a, b + start, columns, to, columns, depth);
      if (WIDEST > 2 && take == 3)
        multiply_block<WIDEST, TURNED>(from, stride_a, b + start, columns, to, columns, depth);
    }
    start += take * LANES;
  }
}

// SiLU in place, and its slope unless null.
void silu(float *__restrict z, float *__restrict slope, long count) {
  if (slope == nullptr) {
    for (long t = 0; t < count; ++t) {
      const float e = exponential(-std::fabs(z[t])), inverse = 1.0f / (1.0f + e);
      z[t] *= z[t] < 0.0f ? e * inverse : inverse;
    }
    return;
  }
  for (long t = 0; t < count; ++t) {
    const float e = exponential(-std::fabs(z[t])), inverse = 1.0f / (1.0f + e);
    const float share = z[t] < 0.0f ? e * inverse : inverse, value = z[t] * share;
    slope[t] = share * (1.0f + z[t] - value);
    z[t] = value;
  }
}

struct Settings {
  long particles, dimensions, batch, width, centres, extra;
  bool inverse, ordered, deep;
  float range, gamma, smallest, epsilon;

  // Features of a distance, then those that are given; both together in whole registers.
  long own() const { return 1 + centres + inverse; }
  long features() const { return own() + extra; }
  long padded() const { return (features() + LANES - 1) / LANES * LANES; }
  long tile() const { return ROWS * width; }
  float shift() const { return 0.2f * range / 3.0f; }
};

// Tensors of particles have shape (n, batch, *), `extra` (pairs, batch, *); null stands for none.
struct Inputs {
  const float *x, *first, *second, *extra, *centres;
  const float *edge, *message, *message_bias, *hidden, *hidden_bias, *head;
};

// Gradients, and those of outputs that they come from. Those of weights are one block for each ROWS of the batch,
// in the order edge (turned), message, message_bias, hidden, hidden_bias, head; null if nobody asks.
struct Gradients {
  const float *by_moved, *by_aggregated;
  float *x, *first, *second, *extra, *weights;
};

// The matrices of a layer as they are multiplied.
struct Weights {
  std::vector<float> edge, edge_turned, message_turned, hidden_turned;

  Weights(const Settings &s, const Inputs &in) : edge(s.width * s.padded()), edge_turned(s.padded() * s.width) {
    for (long o = 0; o < s.width; ++o)
      for (long f = 0; f < s.features(); ++f)
        edge[o * s.padded() + f] = edge_turned[f * s.width + o] = in.edge[o * s.features() + f];
    message_turned = turned(in.message, s.width);
    if (s.deep) hidden_turned = turned(in.hidden, s.width);
  }

  static std::vector<float> turned(const float *from, long width) {
    std::vector<float> to(width * width);
    for (long o = 0; o < width; ++o)
      for (long i = 0; i < width; ++i) to[i * width + o] = from[o * width + i];
    return to;
  }
};

// One pair in `count` configurations of at most ROWS, the last block of rows filled up.
struct Tile {
  long i, j, pair, start, count, rows;
  float difference[3][ROWS], squared[ROWS], distance[ROWS], strength[ROWS];
  std::vector<float> features, first, message, coordinate, slope_first, slope_message, slope_coordinate;

  Tile(const Settings &s, bool slopes)
      : features(s.padded() * ROWS), first(s.tile()), message(s.tile()), coordinate(s.tile()),
        slope_first(slopes ? s.tile() : 0), slope_message(slopes ? s.tile() : 0),
        slope_coordinate(slopes ? s.tile() : 0) {}

  void place(long of_pair, long of_i, long of_j, long of_start, long of_count) {
    pair = of_pair, i = of_i, j = of_j, start = of_start, count = of_count;
    rows = (count + BLOCK - 1) / BLOCK * BLOCK;
  }

  static float *slope(std::vector<float> &of) { return of.empty() ? nullptr : of.data(); }

  void load(const Settings &s, const Inputs &in, const Weights &weights, const float *x) {
    for (long r = 0; r < ROWS; ++r) squared[r] = 0.0f;
    for (long k = 0; k < s.dimensions; ++k)
      for (long r = 0; r < ROWS; ++r) {
        difference[k][r] = x[(i * s.dimensions + k) * ROWS + r] - x[(j * s.dimensions + k) * ROWS + r];
        squared[r] += difference[k][r] * difference[k][r];
      }
    for (long r = 0; r < ROWS; ++r) distance[r] = std::sqrt(squared[r] + s.epsilon);
    describe(s, in);
    const float *from = in.first + (i * s.batch + start) * s.width;
    const float *to = (s.ordered ? in.second : in.first) + (j * s.batch + start) * s.width;
    for (long t = 0; t < count * s.width; ++t) first[t] = from[t] + to[t];
    for (long t = count * s.width; t < rows * s.width; ++t) first[t] = 0.0f;
    multiply<true>(features.data(), ROWS, weights.edge_turned.data(), first.data(), rows, s.width, s.features());
    silu(first.data(), slope(slope_first), rows * s.width);
    dense(s, first, weights.message_turned, in.message_bias, message, slope_message);
    if (s.deep) dense(s, message, weights.hidden_turned, in.hidden_bias, coordinate, slope_coordinate);
    const float *seen = last(s);
    for (long r = 0; r < ROWS; ++r) strength[r] = 0.0f;
    for (long r = 0; r < rows; ++r) {
      Vector sum = {};
      for (long w = 0; w < s.width; w += LANES) sum += at(seen + r * s.width + w) * at(in.head + w);
      for (int l = 0; l < LANES; ++l) strength[r] += sum[l];
    }
  }

  // Features by rows of one feature each.
  void describe(const Settings &s, const Inputs &in) {
    float *row = features.data();
    for (long r = 0; r < ROWS; ++r) row[r] = logarithm(1.0f + squared[r] / (s.range * s.range));
    for (long c = 0; c < s.centres; ++c) {
      row += ROWS;
      for (long r = 0; r < ROWS; ++r) {
        const float away = distance[r] - in.centres[c], exponent = away * away * -s.gamma;
        row[r] = exponential(exponent > s.smallest ? exponent : s.smallest);
      }
    }
    if (s.inverse) {
      row += ROWS;
      for (long r = 0; r < ROWS; ++r) row[r] = 1.0f / (distance[r] + s.shift());
    }
    for (long e = 0; e < s.extra; ++e) {
      row += ROWS;
      const float *given = in.extra + (pair * s.batch + start) * s.extra + e;
      for (long r = 0; r < ROWS; ++r) row[r] = r < count ? given[r * s.extra] : 0.0f;
    }
  }

  void dense(const Settings &s, const std::vector<float> &from, const std::vector<float> &weights, const float *bias,
             std::vector<float> &to, std::vector<float> &slopes) const {
    for (long r = 0; r < rows; ++r) std::memcpy(to.data() + r * s.width, bias, s.width * sizeof(float));
    multiply<false>(from.data(), s.width, weights.data(), to.data(), rows, s.width, s.width);
    silu(to.data(), slope(slopes), rows * s.width);
  }

  const float *last(const Settings &s) const { return s.deep ? coordinate.data() : message.data(); }

  // Gradient of the distance's features, given with ROWS rows, as that of the squared distance.
  void features_back(const Settings &s, const Inputs &in, const float *grad, float *by_squared, float *by_distance) const {
    const long stride = s.padded();
    for (long r = 0; r < ROWS; ++r) by_squared[r] += grad[r * stride] / (s.range * s.range + squared[r]);
    for (long c = 0; c < s.centres; ++c) {
      const float *value = features.data() + (1 + c) * ROWS;
      for (long r = 0; r < ROWS; ++r) {
        const float away = distance[r] - in.centres[c];
        const float slope = away * away * -s.gamma > s.smallest ? -2.0f * s.gamma * away * value[r] : 0.0f;
        by_distance[r] += grad[r * stride + 1 + c] * slope;
      }
    }
    if (!s.inverse) return;
    const float *value = features.data() + (1 + s.centres) * ROWS;
    for (long r = 0; r < ROWS; ++r) by_distance[r] -= grad[r * stride + 1 + s.centres] * value[r] * value[r];
  }
};

// Numbers of ROWS configurations, by rows of one coordinate each, filled up with the first.
void gather(const Settings &s, const float *from, float *to, long start, long count) {
  for (long i = 0; i < s.particles; ++i)
    for (long k = 0; k < s.dimensions; ++k)
      for (long r = 0; r < ROWS; ++r)
        to[(i * s.dimensions + k) * ROWS + r] =
            from[(i * s.batch + start + (r < count ? r : 0)) * s.dimensions + k];
}

void scatter(const Settings &s, const float *from, float *to, long start, long count) {
  for (long i = 0; i < s.particles; ++i)
    for (long k = 0; k < s.dimensions; ++k)
      for (long r = 0; r < count; ++r)
        to[(i * s.batch + start + r) * s.dimensions + k] = from[(i * s.dimensions + k) * ROWS + r];
}

void add(float *to, const float *from, long count) {
  for (long t = 0; t < count; ++t) to[t] += from[t];
}

// Sums of rows.
void add_rows(float *to, const float *from, long rows, long width) {
  for (long r = 0; r < rows; ++r) add(to, from + r * width, width);
}

template <typename Call>
void each_pair(const Settings &s, const Call &call) {
  long pair = 0;
  for (long i = 0; i < s.particles; ++i)
    for (long j = s.ordered ? 0 : i + 1; j < s.particles; ++j)
      if (i != j) call(pair++, i, j);
}

struct Backward {
  const Settings &s;
  const Inputs &in;
  const Gradients &out;
  const Weights &weights;
  Tile tile;
  std::vector<float> x, by_moved, by_x, by_features, inner, outer;

  Backward(const Settings &s, const Inputs &in, const Gradients &out, const Weights &weights)
      : s(s), in(in), out(out), weights(weights), tile(s, true), x(s.particles * s.dimensions * ROWS),
        by_moved(x.size()), by_x(x.size()), by_features(s.padded() * ROWS), inner(s.tile()), outer(s.tile()) {}

  void rows(long start, long count, float *grad) {
    gather(s, in.x, x.data(), start, count);
    gather(s, out.by_moved, by_moved.data(), start, count);
    std::fill(by_x.begin(), by_x.end(), 0.0f);
    each_pair(s, [&](long pair, long i, long j) {
      tile.place(pair, i, j, start, count);
      tile.load(s, in, weights, x.data());
      one(grad);
    });
    scatter(s, by_x.data(), out.x, start, count);
  }

  long place(long particle) const { return (particle * s.batch + tile.start) * s.width; }

  void one(float *grad) {
    float by_strength[ROWS], by_distance[ROWS], by_squared[ROWS], pull[3][ROWS];
    move_back(by_strength, by_distance, pull);
    float *of_edge = grad, *of_message = of_edge ? of_edge + s.padded() * s.width : nullptr;
    float *of_message_bias = grad ? of_message + s.width * s.width : nullptr;
    float *of_hidden = grad ? of_message_bias + s.width : nullptr;
    float *of_hidden_bias = grad ? of_hidden + (s.deep ? s.width * s.width : 0) : nullptr;
    float *of_head = grad ? of_hidden_bias + (s.deep ? s.width : 0) : nullptr;
    const float *seen = tile.last(s);
    const long rows = tile.rows, filled = rows * s.width;
    for (long r = 0; r < rows; ++r)
      for (long w = 0; w < s.width; ++w) outer[r * s.width + w] = by_strength[r] * in.head[w];
    if (grad)
      for (long r = 0; r < rows; ++r)
        for (long w = 0; w < s.width; ++w) of_head[w] += by_strength[r] * seen[r * s.width + w];
    if (s.deep) dense_back(tile.slope_coordinate, tile.message, in.hidden, of_hidden, of_hidden_bias);
    aggregated_back();
    dense_back(tile.slope_message, tile.first, in.message, of_message, of_message_bias);
    for (long t = 0; t < filled; ++t) outer[t] *= tile.slope_first[t];
    add(out.first + place(tile.i), outer.data(), tile.count * s.width);
    add((s.ordered ? out.second : out.first) + place(tile.j), outer.data(), tile.count * s.width);
    if (grad) {
      // Rows of features that fill up are zero.
      multiply<false>(tile.features.data(), ROWS, outer.data(), of_edge, s.padded(), s.width, rows);
    }
    std::fill(by_features.begin(), by_features.end(), 0.0f);
    multiply<false>(outer.data(), s.width, weights.edge.data(), by_features.data(), rows, s.padded(), s.width);
    for (long r = 0; r < ROWS; ++r) by_squared[r] = 0.0f;
    tile.features_back(s, in, by_features.data(), by_squared, by_distance);
    for (long e = 0; e < s.extra; ++e)
      for (long r = 0; r < tile.count; ++r)
        out.extra[(tile.pair * s.batch + tile.start + r) * s.extra + e] = by_features[r * s.padded() + s.own() + e];
    for (long r = 0; r < ROWS; ++r) by_squared[r] += 0.5f * by_distance[r] / tile.distance[r];
    for (long k = 0; k < s.dimensions; ++k) {
      float *of_i = by_x.data() + (tile.i * s.dimensions + k) * ROWS, *of_j = by_x.data() + (tile.j * s.dimensions + k) * ROWS;
      for (long r = 0; r < ROWS; ++r) {
        const float found = pull[k][r] + 2.0f * tile.difference[k][r] * by_squared[r];
        of_i[r] += found;
        of_j[r] -= found;
      }
    }
  }

  // Of (x_i - x_j) strength / (distance + 1); rows that fill up count for nothing.
  void move_back(float *by_strength, float *by_distance, float (*pull)[ROWS]) {
    float along[ROWS];
    for (long r = 0; r < ROWS; ++r) along[r] = 0.0f;
    for (long k = 0; k < s.dimensions; ++k) {
      const float *of_i = by_moved.data() + (tile.i * s.dimensions + k) * ROWS;
      const float *of_j = by_moved.data() + (tile.j * s.dimensions + k) * ROWS;
      for (long r = 0; r < ROWS; ++r) {
        const float wanted = r < tile.count ? of_i[r] - (s.ordered ? 0.0f : of_j[r]) : 0.0f;
        along[r] += wanted * tile.difference[k][r];
        pull[k][r] = wanted * tile.strength[r] / (tile.distance[r] + 1.0f);
      }
    }
    for (long r = 0; r < ROWS; ++r) {
      by_strength[r] = along[r] / (tile.distance[r] + 1.0f);
      by_distance[r] = -by_strength[r] * tile.strength[r] / (tile.distance[r] + 1.0f);
    }
  }

  // Messages are summed at their particles.
  void aggregated_back() {
    if (out.by_aggregated == nullptr) return;
    add(outer.data(), out.by_aggregated + place(tile.i), tile.count * s.width);
    if (!s.ordered) add(outer.data(), out.by_aggregated + place(tile.j), tile.count * s.width);
  }

  // Of `outer`, gradient of a layer's result, to that of what went in.
  void dense_back(const std::vector<float> &slope, const std::vector<float> &from, const float *weight, float *of_weight,
                  float *of_bias) {
    const long rows = tile.rows, filled = rows * s.width;
    for (long t = 0; t < filled; ++t) outer[t] *= slope[t];
    if (of_weight) {
      multiply<true>(outer.data(), s.width, from.data(), of_weight, s.width, s.width, rows);
      add_rows(of_bias, outer.data(), rows, s.width);
    }
    std::fill_n(inner.begin(), filled, 0.0f);
    multiply<false>(outer.data(), s.width, weight, inner.data(), rows, s.width, s.width);
    inner.swap(outer);
  }
};

}  // namespace

extern "C" {

long pair_layer_lanes() { return LANES; }
long pair_layer_rows() { return ROWS; }

// Displacements `moved` (n, batch, d) and, unless null, sums of messages `aggregated` (n, batch, width), added to
// what is there, of the configurations from `start` to `stop`.
void pair_layer_forward(const Inputs *inputs, float *moved, float *aggregated, long start, long stop, const Settings *settings) {
  const Settings &s = *settings;
  const Inputs &in = *inputs;
  const Weights weights(s, in);
  Tile tile(s, false);
  std::vector<float> x(s.particles * s.dimensions * ROWS), sums(x.size());
  for (long row = start; row < stop; row += ROWS) {
    const long count = stop - row < ROWS ? stop - row : ROWS;
    gather(s, in.x, x.data(), row, count);
    std::fill(sums.begin(), sums.end(), 0.0f);
    each_pair(s, [&](long pair, long i, long j) {
      tile.place(pair, i, j, row, count);
      tile.load(s, in, weights, x.data());
      if (aggregated) {
        add(aggregated + (i * s.batch + row) * s.width, tile.message.data(), count * s.width);
        if (!s.ordered) add(aggregated + (j * s.batch + row) * s.width, tile.message.data(), count * s.width);
      }
      for (long k = 0; k < s.dimensions; ++k) {
        float *of_i = sums.data() + (i * s.dimensions + k) * ROWS, *of_j = sums.data() + (j * s.dimensions + k) * ROWS;
        for (long r = 0; r < ROWS; ++r) {
          const float step = tile.difference[k][r] * tile.strength[r] / (tile.distance[r] + 1.0f);
          of_i[r] += step;
          of_j[r] -= s.ordered ? 0.0f : step;
        }
      }
    });
    scatter(s, sums.data(), moved, row, count);
  }
}

// Gradients of the same configurations; those of features and of weights are added to what is there.
void pair_layer_backward(const Inputs *inputs, const Gradients *gradients, long start, long stop, const Settings *settings) {
  const Settings &s = *settings;
  const Weights weights(s, *inputs);
  const long block = (s.padded() + s.width + 1) * s.width + (s.deep ? (s.width + 1) * s.width : 0) + s.width;
  Backward backward(s, *inputs, *gradients, weights);
  for (long row = start; row < stop; row += ROWS) {
    const long count = stop - row < ROWS ? stop - row : ROWS;
    float *grad = gradients->weights ? gradients->weights + row / ROWS * block : nullptr;
    backward.rows(row, count, grad);
  }
}
}
