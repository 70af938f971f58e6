// Elementary functions of single precision without branches, so that loops over them become vector code.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace elementary {

// exp for arguments of zero and less, to three units in the last place: a polynomial, and the exponent put in.
inline float exponential(float x) {
  const float kept = x > -87.0f ? x : -87.0f;
  const float whole = std::nearbyint(kept * 1.44269504f);
  const float rest = (kept - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &p, 4);
  bits += static_cast<int32_t>(whole) * (1 << 23);
  std::memcpy(&p, &bits, 4);
  return x == x ? p : x;
}

// log(1 + x) from zero to one, by twice the area tangent of x / (2 + x).
inline float log_one_plus(float x) {
  const float t = x / (2.0f + x), q = t * t;
  float p = 1.0f / 15.0f;
  p = p * q + 1.0f / 13.0f;
  p = p * q + 1.0f / 11.0f;
  p = p * q + 1.0f / 9.0f;
  p = p * q + 1.0f / 7.0f;
  p = p * q + 1.0f / 5.0f;
  p = p * q + 1.0f / 3.0f;
  return 2.0f * t + 2.0f * t * q * p;
}

// log of normal numbers, and of zero; what is no number or infinite stays so. The exponent, and that of what
// lies between the roots of one half and two.
inline float logarithm(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  const int32_t shifted = bits - 0x3f3504f3;
  const float exponent = static_cast<float>(shifted >> 23);
  bits = (shifted & 0x007fffff) + 0x3f3504f3;
  float m;
  std::memcpy(&m, &bits, 4);
  const float t = (m - 1.0f) / (m + 1.0f), q = t * t;
  float p = 1.0f / 9.0f;
  p = p * q + 1.0f / 7.0f;
  p = p * q + 1.0f / 5.0f;
  p = p * q + 1.0f / 3.0f;
  const float near = 2.0f * t + 2.0f * t * q * p;
  const float found = exponent * 0.693359375f + (near - exponent * 2.12194440e-4f);
  return x > 0.0f && x <= 3.4028235e38f ? found : (x == 0.0f ? -INFINITY : x);
}

}  // namespace elementary
