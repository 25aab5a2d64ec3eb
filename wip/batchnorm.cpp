// Batch normalisation in training mode, optionally followed by ReLU6, for one CPU thread.
//
// Arrays are (rows, channels), channels last, of float32 or bfloat16; statistics and parameters are float32. Rows are
// read in groups of `width` = lcm(channels, 32) numbers, so that every channel count fills whole vectors; the caller
// passes only sizes that `width` divides. No PyTorch header is used: that keeps the compilation at about a second.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace {
constexpr long LANES = 16;
using Floats = float __attribute__((vector_size(4 * LANES)));
using Words = uint32_t __attribute__((vector_size(4 * LANES)));
using Halves = uint16_t __attribute__((vector_size(2 * LANES)));
using bfloat16 = uint16_t;  // the upper half of a float32

inline Floats load(const float *from) {
  Floats out;
  std::memcpy(&out, from, sizeof out);
  return out;
}
inline Floats load(const bfloat16 *from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Floats)(__builtin_convertvector(halves, Words) << 16);
}
inline void store(float *to, Floats values) { std::memcpy(to, &values, sizeof values); }
inline void store(bfloat16 *to, Floats values) {
  Words words = (Words)values;  // to nearest, ties to even; NaNs made by arithmetic and infinities pass unharmed
  Halves halves = __builtin_convertvector((words + 0x7fff + ((words >> 16) & 1)) >> 16, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

// One number per channel, repeated over the rows of a group.
template <class Value> std::vector<float> repeated(long width, long channels, Value value) {
  std::vector<float> out(width);
  for (long i = 0; i < width; i++) out[i] = value(i % channels);
  return out;
}

// Sums over rows of two terms: term(position, column, a, b) adds the terms of LANES numbers to a and b. Tiles that
// fit the cache are summed in float32 and added up in float64.
template <class Term>
void column_sums(long size, long width, long channels, std::vector<double> &a, std::vector<double> &b, Term term) {
  std::vector<double> wide_a(width), wide_b(width);
  const long tile = std::max(1L, 8192 / width) * width;
  for (long begin = 0; begin < size; begin += tile) {
    const long end = std::min(size, begin + tile);
    for (long column = 0; column < width; column += 2 * LANES) {
      Floats sums[4] = {};  // two chains for each sum, to hide the latency of additions
      for (long i = begin + column; i < end; i += width) {
        term(i, column, sums[0], sums[2]);
        term(i + LANES, column + LANES, sums[1], sums[3]);
      }
      for (long lane = 0; lane < 2 * LANES; lane++) {
        wide_a[column + lane] += sums[lane / LANES][lane % LANES];
        wide_b[column + lane] += sums[2 + lane / LANES][lane % LANES];
      }
    }
  }
  for (long i = 0; i < width; i++) a[i % channels] += wide_a[i], b[i % channels] += wide_b[i];
}

template <class T>
void forward(const T *x, T *y, long size, long channels, const float *weight, const float *bias, float *running_mean,
             float *running_var, float *mean, float *invstd, double momentum, double eps, bool relu6) {
  const long width = std::lcm(channels, 2 * LANES), rows = size / channels;
  std::vector<float> first(width);  // the first row: near the mean, so that subtracting it avoids cancellation
  for (long i = 0; i < width; i += LANES) store(&first[i], load(x + i));
  const auto origin = repeated(width, channels, [&](long c) { return first[c]; });
  std::vector<double> sum(channels), squares(channels);
  column_sums(size, width, channels, sum, squares, [&](long i, long column, Floats &a, Floats &b) {
    const Floats shifted = load(x + i) - load(&origin[column]);
    a += shifted;
    b += shifted * shifted;
  });
  for (long c = 0; c < channels; c++) {
    const double offset = sum[c] / rows, var = std::max(0.0, squares[c] / rows - offset * offset);
    mean[c] = origin[c] + offset;
    invstd[c] = 1 / std::sqrt(var + eps);
    running_mean[c] += momentum * (mean[c] - running_mean[c]);
    running_var[c] += momentum * (var * rows / (rows - 1) - running_var[c]);
  }
  const auto scale = repeated(width, channels, [&](long c) { return weight[c] * invstd[c]; });
  const auto shift = repeated(width, channels, [&](long c) { return bias[c] - mean[c] * scale[c]; });
  for (long begin = 0; begin < size; begin += width)
    for (long column = 0; column < width; column += LANES) {
      Floats z = load(x + begin + column) * load(&scale[column]) + load(&shift[column]);
      if (relu6) z = z < 0 ? Floats{} : z, z = z > 6 ? Floats{} + 6 : z;  // comparisons that let NaN through
      store(y + begin + column, z);
    }
}

template <class T>
void backward(const T *x, const T *dy, T *dx, long size, long channels, const float *weight, const float *bias,
              const float *mean, const float *invstd, float *dweight, float *dbias, bool relu6) {
  const long width = std::lcm(channels, 2 * LANES), rows = size / channels;
  const auto center = repeated(width, channels, [&](long c) { return mean[c]; });
  const auto scale = repeated(width, channels, [&](long c) { return weight[c] * invstd[c]; });
  const auto shift = repeated(width, channels, [&](long c) { return bias[c] - mean[c] * scale[c]; });
  const auto passed = [&](long i, long column, Floats in) {  // the gradient after ReLU6, whose output is not kept
    const Floats out = load(dy + i), z = in * load(&scale[column]) + load(&shift[column]);
    return relu6 ? ((z > 0) & (z < 6) ? out : Floats{}) : out;
  };
  std::vector<double> sum(channels), product(channels);
  column_sums(size, width, channels, sum, product, [&](long i, long column, Floats &a, Floats &b) {
    const Floats in = load(x + i), dz = passed(i, column, in);
    a += dz;
    b += dz * (in - load(&center[column]));
  });
  for (long c = 0; c < channels; c++) dbias[c] = sum[c], dweight[c] = product[c] * invstd[c];
  // dx = scale (dz - mean(dz) - xhat mean(dz xhat)), as scale dz + slope x + constant
  const auto slope = repeated(width, channels, [&](long c) { return -scale[c] * invstd[c] * dweight[c] / rows; });
  const auto constant =
      repeated(width, channels, [&](long c) { return -scale[c] * dbias[c] / rows - slope[c] * mean[c]; });
  for (long begin = 0; begin < size; begin += width)
    for (long column = 0; column < width; column += LANES) {
      const Floats in = load(x + begin + column), dz = passed(begin + column, column, in);
      store(dx + begin + column, dz * load(&scale[column]) + (in * load(&slope[column]) + load(&constant[column])));
    }
}
}  // namespace

#define EXPORT(NAME, T)                                                                                              \
  extern "C" void forward_##NAME(const T *x, T *y, long size, long channels, const float *weight, const float *bias, \
                                 float *running_mean, float *running_var, float *mean, float *invstd,                \
                                 double momentum, double eps, bool relu6) {                                          \
    forward(x, y, size, channels, weight, bias, running_mean, running_var, mean, invstd, momentum, eps, relu6);      \
  }                                                                                                                  \
  extern "C" void backward_##NAME(const T *x, const T *dy, T *dx, long size, long channels, const float *weight,     \
                                  const float *bias, const float *mean, const float *invstd, float *dweight,         \
                                  float *dbias, bool relu6) {                                                        \
    backward(x, dy, dx, size, channels, weight, bias, mean, invstd, dweight, dbias, relu6);                          \
  }
EXPORT(float32, float)
EXPORT(bfloat16, bfloat16)
