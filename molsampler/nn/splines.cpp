// Monotone rational-quadratic splines, each number through one of its own: values and log slopes, or those of
// the inverse, and the gradients of both. The equations are those of splines.py.
//
// LANES numbers go side by side; every loop over `l` is meant to become vector code.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "elementary.h"

namespace {

using elementary::exponential;
using elementary::log_one_plus;
using elementary::logarithm;

constexpr int LANES = 16;
using Lane = float[LANES];

struct Settings {
  long bins;
  bool circular, inverse;
  float low, high, least_bin, least_slope, unit;

  long parameters() const { return circular ? 3 * bins : 3 * bins - 1; }
  float rest() const { return 1.0f - least_bin * bins; }
};

// LANES numbers, their splines, and the bin of each.
struct Block {
  Lane x, x0, x1, y0, y1, raw0, raw1, d0, d1, xi;
  int32_t inside[LANES], index[LANES];
  std::vector<float> free, soft;

  explicit Block(const Settings &s) : free(s.parameters() * LANES), soft(2 * s.bins * LANES) {}

  const float *steep(const Settings &s, long j) const { return free.data() + (2 * s.bins + j) * LANES; }

  void load(const Settings &s, const float *numbers, const float *all, long count) {
    const long own = s.parameters();
    for (int l = 0; l < LANES; ++l) x[l] = l < count ? numbers[l] : s.low;
    for (long j = 0; j < own; ++j)
      for (int l = 0; l < LANES; ++l) free[j * LANES + l] = all[(l < count ? l : 0) * own + j];
    softmax(s, 0);
    softmax(s, 1);
    find(s);
    slopes(s);
    place(s);
  }

  // Shares of the interval along x and y; the largest first, so that no exponential overflows.
  void softmax(const Settings &s, long which) {
    const float *from = free.data() + which * s.bins * LANES;
    float *to = soft.data() + which * s.bins * LANES;
    Lane top, sum;
    for (int l = 0; l < LANES; ++l) top[l] = from[l], sum[l] = 0.0f;
    for (long j = 1; j < s.bins; ++j)
      for (int l = 0; l < LANES; ++l) top[l] = from[j * LANES + l] > top[l] ? from[j * LANES + l] : top[l];
    for (long j = 0; j < s.bins; ++j)
      for (int l = 0; l < LANES; ++l) {
        to[j * LANES + l] = exponential(from[j * LANES + l] - top[l]);
        sum[l] += to[j * LANES + l];
      }
    for (int l = 0; l < LANES; ++l) sum[l] = 1.0f / sum[l];
    for (long j = 0; j < s.bins; ++j)
      for (int l = 0; l < LANES; ++l) to[j * LANES + l] *= sum[l];
  }

  void find(const Settings &s) {
    const float width = s.high - s.low, rest = s.rest();
    const float *soft_x = soft.data(), *soft_y = soft_x + s.bins * LANES;
    Lane along, from_x, from_y;
    int32_t found[LANES];
    for (int l = 0; l < LANES; ++l) {
      inside[l] = x[l] >= s.low && x[l] <= s.high;
      along[l] = (x[l] - s.low) / width;
      from_x[l] = from_y[l] = 0.0f;
      x0[l] = x1[l] = y0[l] = y1[l] = 0.0f;
      index[l] = found[l] = 0;
    }
    for (long j = 0; j < s.bins; ++j) {
      const bool last = j == s.bins - 1;
      for (int l = 0; l < LANES; ++l) {
        const float to_x = last ? 1.0f : from_x[l] + (s.least_bin + rest * soft_x[j * LANES + l]);
        const float to_y = last ? 1.0f : from_y[l] + (s.least_bin + rest * soft_y[j * LANES + l]);
        const int32_t here = !found[l] && (last || along[l] < (s.inverse ? to_y : to_x));
        x0[l] = here ? s.low + width * from_x[l] : x0[l];
        x1[l] = here ? s.low + width * to_x : x1[l];
        y0[l] = here ? s.low + width * from_y[l] : y0[l];
        y1[l] = here ? s.low + width * to_y : y1[l];
        index[l] = here ? static_cast<int32_t>(j) : index[l];
        found[l] |= here;
        from_x[l] = to_x;
        from_y[l] = to_y;
      }
    }
  }

  // The free number behind the slope at either end of a bin; on an interval the outer ones have none.
  long first(const Settings &s, long bin) const { return s.circular ? bin : bin - 1; }
  long second(const Settings &s, long bin) const { return s.circular ? (bin + 1) % s.bins : bin; }

  void slopes(const Settings &s) {
    const long ends = s.parameters() - 2 * s.bins;
    for (int l = 0; l < LANES; ++l) raw0[l] = raw1[l] = 0.0f;
    for (long bin = 0; bin < s.bins; ++bin) {
      const long a = first(s, bin), b = second(s, bin);
      const bool has_a = a >= 0, has_b = b < ends;
      const float *at_a = steep(s, has_a ? a : 0), *at_b = steep(s, has_b ? b : 0);
      for (int l = 0; l < LANES; ++l) {
        raw0[l] = has_a && index[l] == bin ? at_a[l] : raw0[l];
        raw1[l] = has_b && index[l] == bin ? at_b[l] : raw1[l];
      }
    }
    const int32_t last = static_cast<int32_t>(s.bins - 1);
    for (int l = 0; l < LANES; ++l) {
      const float low = slope(s, raw0[l]), high = slope(s, raw1[l]);
      d0[l] = !s.circular && index[l] == 0 ? 1.0f : low;
      d1[l] = !s.circular && index[l] == last ? 1.0f : high;
    }
  }

  static float slope(const Settings &s, float raw) {
    const float at = raw + s.unit, away = at < 0.0f ? at : -at;
    return s.least_slope + (at > 0.0f ? at : 0.0f) + log_one_plus(exponential(away));
  }

  // Where in its bin a number lies, or what it is the value of; in a form of the root that loses no digits.
  void place(const Settings &s) {
    for (int l = 0; l < LANES; ++l) {
      const float width = x1[l] - x0[l], rise = y1[l] - y0[l], steep = rise / width;
      const float up = (x[l] - y0[l]) * (d1[l] + d0[l] - 2.0f * steep);
      const float a = rise * (steep - d0[l]) + up, b = rise * d0[l] - up, c = -steep * (x[l] - y0[l]);
      const float under = b * b - 4.0f * a * c;
      const float back = 2.0f * c / (-b - std::sqrt(under > 0.0f ? under : 0.0f));
      xi[l] = s.inverse ? back : (x[l] - x0[l]) / width;
    }
  }
};

// Gradients with respect to x, the corners and the slopes.
struct Slopes {
  Lane x, x0, x1, y0, y1, d0, d1;
};

// Of `by_y` times the value and `by_slope` times the log slope of the map at xi.
void back(const Block &bin, const float *by_y, const float *by_slope, Slopes &out) {
  for (int l = 0; l < LANES; ++l) {
    const float width = bin.x1[l] - bin.x0[l], rise = bin.y1[l] - bin.y0[l], s = rise / width;
    const float d0 = bin.d0[l], d1 = bin.d1[l], xi = bin.xi[l], other = 1.0f - xi, across = xi * other;
    const float bend = d1 + d0 - 2.0f * s, below = s + bend * across;
    const float share = (s * xi * xi + d0 * across) / below;
    const float inner = d1 * xi * xi + 2.0f * s * across + d0 * other * other;
    const float g_upper = by_y[l] * rise / below;
    const float g_below = -g_upper * share - 2.0f * by_slope[l] / below;
    const float g_inner = by_slope[l] / inner, g_bend = g_below * across;
    const float g_s = 2.0f * by_slope[l] / s + g_upper * xi * xi + g_below + g_inner * 2.0f * across - 2.0f * g_bend;
    const float g_across = g_upper * d0 + g_below * bend + g_inner * 2.0f * s;
    const float g_xi =
        g_upper * 2.0f * s * xi + g_inner * 2.0f * (d1 * xi - d0 * other) + g_across * (1.0f - 2.0f * xi);
    const float g_rise = by_y[l] * share + g_s / width, g_width = -(g_xi * xi + g_s * s) / width;
    out.x[l] = g_xi / width;
    out.x0[l] = -g_xi / width - g_width;
    out.x1[l] = g_width;
    out.y0[l] = by_y[l] - g_rise;
    out.y1[l] = g_rise;
    out.d0[l] = g_upper * across + g_bend + g_inner * other * other;
    out.d1[l] = g_bend + g_inner * xi * xi;
  }
}

// Slope of the map at xi.
inline float steepness(const Block &bin, int l) {
  const float s = (bin.y1[l] - bin.y0[l]) / (bin.x1[l] - bin.x0[l]);
  const float xi = bin.xi[l], other = 1.0f - xi, across = xi * other;
  const float below = s + (bin.d1[l] + bin.d0[l] - 2.0f * s) * across;
  const float inner = bin.d1[l] * xi * xi + 2.0f * s * across + bin.d0[l] * other * other;
  return s * s * inner / (below * below);
}

// What free numbers of shares get of the gradients `at0` and `at1` of a bin's two ends.
void shares_back(const Settings &s, const Block &bin, long which, const float *at0, const float *at1, float *grad) {
  const float scale = (s.high - s.low) * s.rest();
  const float *soft = bin.soft.data() + which * s.bins * LANES;
  const int32_t last = static_cast<int32_t>(s.bins - 1);
  Lane mean;
  for (int l = 0; l < LANES; ++l) mean[l] = 0.0f;
  for (long j = 0; j < s.bins; ++j)
    for (int l = 0; l < LANES; ++l) {
      // An end moves with all shares before it; those of the interval stand fast.
      const float of0 = j < bin.index[l] ? at0[l] : 0.0f;
      const float of1 = j <= bin.index[l] && bin.index[l] != last ? at1[l] : 0.0f;
      const float pull = scale * (of0 + of1);
      grad[j * LANES + l] = pull;
      mean[l] += soft[j * LANES + l] * pull;
    }
  for (long j = 0; j < s.bins; ++j)
    for (int l = 0; l < LANES; ++l) grad[j * LANES + l] = soft[j * LANES + l] * (grad[j * LANES + l] - mean[l]);
}

void slopes_back(const Settings &s, const Block &bin, const Slopes &out, float *grad) {
  const long ends = s.parameters() - 2 * s.bins;
  Lane by0, by1;
  for (int l = 0; l < LANES; ++l) {
    const float at0 = bin.raw0[l] + s.unit, at1 = bin.raw1[l] + s.unit;
    const float e0 = exponential(at0 < 0.0f ? at0 : -at0), e1 = exponential(at1 < 0.0f ? at1 : -at1);
    by0[l] = out.d0[l] * (at0 < 0.0f ? e0 : 1.0f) / (1.0f + e0);
    by1[l] = out.d1[l] * (at1 < 0.0f ? e1 : 1.0f) / (1.0f + e1);
  }
  for (long j = 0; j < ends * LANES; ++j) grad[j] = 0.0f;
  for (long at = 0; at < s.bins; ++at) {
    const long a = bin.first(s, at), b = bin.second(s, at);
    for (int l = 0; l < LANES; ++l) {
      if (a >= 0) grad[a * LANES + l] += bin.index[l] == at ? by0[l] : 0.0f;
      if (b < ends) grad[b * LANES + l] += bin.index[l] == at ? by1[l] : 0.0f;
    }
  }
}

}  // namespace

extern "C" {

// Values and log slopes of `rows` numbers, each with its own free numbers.
void spline_forward(const float *x, const float *free, float *y, float *slope, long rows, const Settings *settings) {
  const Settings s = *settings;
  Block bin(s);
  for (long row = 0; row < rows; row += LANES) {
    const long count = rows - row < LANES ? rows - row : LANES;
    bin.load(s, x + row, free + row * s.parameters(), count);
    Lane value, log_slope;
    for (int l = 0; l < LANES; ++l) {
      const float width = bin.x1[l] - bin.x0[l], rise = bin.y1[l] - bin.y0[l], steep = rise / width;
      const float xi = bin.xi[l], across = xi * (1.0f - xi);
      const float below = steep + (bin.d1[l] + bin.d0[l] - 2.0f * steep) * across;
      const float up = bin.y0[l] + rise * (steep * xi * xi + bin.d0[l] * across) / below;
      const float logged = logarithm(steepness(bin, l));
      const float moved = s.inverse ? bin.x0[l] + xi * width : up;
      value[l] = bin.inside[l] ? moved : bin.x[l];
      log_slope[l] = bin.inside[l] ? (s.inverse ? -logged : logged) : 0.0f;
    }
    std::memcpy(y + row, value, count * sizeof(float));
    std::memcpy(slope + row, log_slope, count * sizeof(float));
  }
}

// Gradients `grad_x` of numbers and, unless null, `grad_free` of free numbers, from those of values and log slopes.
void spline_backward(const float *x, const float *free, const float *grad_y, const float *grad_slope, float *grad_x,
                     float *grad_free, long rows, const Settings *settings) {
  const Settings s = *settings;
  const long own = s.parameters();
  Block bin(s);
  std::vector<float> grad(own * LANES);
  Slopes out;
  for (long row = 0; row < rows; row += LANES) {
    const long count = rows - row < LANES ? rows - row : LANES;
    bin.load(s, x + row, free + row * own, count);
    Lane by_y, by_slope, whole_y, result;
    for (int l = 0; l < LANES; ++l) {
      whole_y[l] = l < count ? grad_y[row + l] : 0.0f;
      // Beyond the ends the map is the identity.
      by_y[l] = bin.inside[l] ? whole_y[l] : 0.0f;
      by_slope[l] = bin.inside[l] && l < count ? grad_slope[row + l] : 0.0f;
    }
    if (s.inverse) {
      // Of x = F^-1(y): F'(x) dx = dy - dF at fixed x, and the log slope is minus that of F at x.
      Lane none, one;
      for (int l = 0; l < LANES; ++l) none[l] = 0.0f, one[l] = 1.0f;
      back(bin, none, one, out);
      for (int l = 0; l < LANES; ++l) {
        result[l] = (by_y[l] - by_slope[l] * out.x[l]) / steepness(bin, l);
        by_y[l] = -result[l];
        by_slope[l] = -by_slope[l];
      }
      back(bin, by_y, by_slope, out);
    } else {
      back(bin, by_y, by_slope, out);
      for (int l = 0; l < LANES; ++l) result[l] = out.x[l];
    }
    for (int l = 0; l < LANES; ++l) result[l] = bin.inside[l] ? result[l] : whole_y[l];
    std::memcpy(grad_x + row, result, count * sizeof(float));
    if (grad_free == nullptr) continue;
    shares_back(s, bin, 0, out.x0, out.x1, grad.data());
    shares_back(s, bin, 1, out.y0, out.y1, grad.data() + s.bins * LANES);
    slopes_back(s, bin, out, grad.data() + 2 * s.bins * LANES);
    for (long l = 0; l < count; ++l)
      for (long j = 0; j < own; ++j) {
        const float found = grad[j * LANES + l];
        grad_free[(row + l) * own + j] = bin.inside[l] ? found : 0.0f;
      }
  }
}
}
