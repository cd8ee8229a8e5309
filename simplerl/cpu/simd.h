/* Vectors of floats, by a compiler extension of gcc and clang: one source serves AVX-512, AVX2, NEON and SSE. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#define TILE_ROWS 12
#elif defined(__AVX2__)
#define WIDTH 8
#define TILE_ROWS 6
#else
#define WIDTH 4
#define TILE_ROWS 4
#endif
#define TILE 16 /* columns of a weight panel and tokens of a block of keys; padded sizes are multiples of it */
#define VECTORS (TILE / WIDTH)

#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef int32_t mask __attribute__((vector_size(WIDTH * 4)));
typedef float unaligned_vec __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

INLINE vec load(const float *from) { return *(const unaligned_vec *)from; }
INLINE void store(float *to, vec value) { *(unaligned_vec *)to = value; }
INLINE int64_t padded(int64_t size) { return (size + TILE - 1) / TILE * TILE; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Scratch memory that begins with a cache line: a load from two lines costs twice. Null if there is not enough. */
INLINE float *allocate(int64_t floats) { return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64); }

INLINE vec splat(float value) { return value - (vec){0}; }

INLINE float sum_of(vec values) {
  float sum = 0;
  for (int i = 0; i < WIDTH; i++) sum += values[i];
  return sum;
}

/* The first `count` values of a vector, zeros after them: the end of a row whose length is no multiple of WIDTH. */
INLINE vec load_some(const float *from, int64_t count) {
  vec values = {0};
  memcpy(&values, from, count * sizeof(float));
  return values;
}

INLINE void store_some(float *to, vec values, int64_t count) { memcpy(to, &values, count * sizeof(float)); }

INLINE vec choose(mask test, vec yes, vec no) { return (vec)((test & (mask)yes) | (~test & (mask)no)); }

/* e^x to about 1 ulp for x in [-87, 88], e^-87 for smaller x, NaN for NaN. Compilers do not vectorise expf. */
INLINE vec exponential(vec x) {
  x = choose(x < splat(-87.0f), splat(-87.0f), x);
  /* Adding 1.5 x 2^23 rounds to a whole number and leaves it in the low bits. */
  const vec shifted = x * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
  const vec rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vec sum = splat(1.9875691500e-4f);
  sum = sum * rest + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 5.0000001201e-1f;
  sum = sum * rest * rest + rest + 1.0f;
  return sum * (vec)(((mask)shifted + (127 - 0x4B400000)) << 23);
}

/* 1 / (1 + e^-x); silu is x times it. */
INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(choose(x < splat(-88.0f), splat(88.0f), -x))); }

/* silu(gate) x up (arXiv:2002.05202). */
INLINE vec gated(vec gate, vec up) { return gate * up * sigmoid(gate); }

INLINE void zero(float *values, int64_t count) { /* of a few vectors: calling memset would cost more */
  for (int64_t i = 0; i < count; i += WIDTH) store(values + i, splat(0));
}

/* Writes weights = e^(scores - top) to a padded row, zeros from `keys` on; returns their sum. */
INLINE float exponentials(const float *scores, int64_t keys, float top, float *weights) {
  vec sum = {0};
  const int64_t whole = keys / WIDTH * WIDTH;
  for (int64_t j = 0; j < whole; j += WIDTH) {
    const vec value = exponential(load(scores + j) - top);
    store(weights + j, value);
    sum += value;
  }
  if (whole < keys) {
    store(weights + whole, exponential(load(scores + whole) - top));
    for (int64_t j = keys; j < whole + WIDTH; j++) weights[j] = 0;
    sum += load(weights + whole);
    zero(weights + whole + WIDTH, padded(keys) - whole - WIDTH);
  } else {
    zero(weights + whole, padded(keys) - whole);
  }
  return sum_of(sum);
}

/* The largest of `top` and the values. Compilers do not vectorise a maximum in the presence of NaN. */
INLINE float largest(const float *values, int64_t count, float top) {
  vec most = splat(top);
  int64_t i = 0;
  for (vec v; i + WIDTH <= count; i += WIDTH) v = load(values + i), most = choose(v > most, v, most);
  for (int lane = 0; lane < WIDTH; lane++) top = most[lane] > top ? most[lane] : top;
  for (; i < count; i++) top = values[i] > top ? values[i] : top;
  return top;
}

#define ITEM float
#define ITEMS vec
#define NAME(name) name
#define SPREAD splat
#define LOADED load
#define ADDED(sum, left, right) ((sum) + (left) * (right))
#include "matmul.h"
#undef ITEM
#undef ITEMS
#undef NAME
#undef SPREAD
#undef LOADED
#undef ADDED

/* Two bfloat16 numbers, adjacent in the dimension that is summed over; the first is in the low half. Products are
   exact, sums float32. */
typedef uint32_t pair;
typedef uint32_t pairs __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t unaligned_pairs __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

INLINE pairs load_pairs(const pair *from) { return *(const unaligned_pairs *)from; }
INLINE pairs splat_pair(pair value) { return value - (pairs){0}; }

INLINE vec dot_pairs(vec sum, pairs left, pairs right) {
#if defined(__AVX512BF16__)
  return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
#else
  sum += (vec)(left << 16) * (vec)(right << 16);
  return sum + (vec)(left & 0xffff0000u) * (vec)(right & 0xffff0000u);
#endif
}

/* Each value rounded to bfloat16, ties to even, in its high half; NaN stays NaN. */
INLINE pairs rounded(vec x) {
  const pairs bits = (pairs)x, odd = (bits >> 16) & 1, number = (pairs)(x == x);
  return (number & (bits + 0x7fff + odd)) | (~number & 0x7fc00000u);
}

INLINE pairs paired(vec first, vec second) { return rounded(first) >> 16 | (rounded(second) & 0xffff0000u); }

/* Stores WIDTH adjacent floats as WIDTH / 2 pairs. */
INLINE void store_rounded(pair *to, vec x) {
#if defined(__AVX512BF16__)
  const __m256bh narrow = _mm512_cvtneps_pbh((__m512)x);
  memcpy(to, &narrow, sizeof narrow);
#else
  const pairs high = rounded(x) >> 16;
  uint16_t half[WIDTH];
  for (int i = 0; i < WIDTH; i++) half[i] = (uint16_t)high[i];
  memcpy(to, half, sizeof half);
#endif
}

#define ITEM pair
#define ITEMS pairs
#define NAME(name) name##_bf16
#define SPREAD splat_pair
#define LOADED load_pairs
#define ADDED dot_pairs
#include "matmul.h"
#undef ITEM
#undef ITEMS
#undef NAME
#undef SPREAD
#undef LOADED
#undef ADDED

/* Rotary embedding of one head (arXiv:2104.09864, the convention of halves): to = factor x rotated(from). With `back`
   the transposed rotation, for gradients. */
INLINE void rotate_by(const float *from, const float *cos, const float *sin, int64_t dim, float factor, const int back,
                      float *to) {
  const int64_t half = dim / 2;
  int64_t i = 0;
  for (; i + WIDTH <= half; i += WIDTH) {
    const vec low = load(from + i), high = load(from + half + i);
    const vec low_sin = back ? -load(sin + half + i) : load(sin + i);
    const vec high_sin = back ? -load(sin + i) : load(sin + half + i);
    store(to + i, factor * (low * load(cos + i) - high * low_sin));
    store(to + half + i, factor * (high * load(cos + half + i) + low * high_sin));
  }
  for (; i < half; i++) {
    const float low = from[i], high = from[half + i];
    const float low_sin = back ? -sin[half + i] : sin[i], high_sin = back ? -sin[i] : sin[half + i];
    to[i] = factor * (low * cos[i] - high * low_sin);
    to[half + i] = factor * (high * cos[half + i] + low * high_sin);
  }
}

INLINE void rotate(const float *from, const float *cos, const float *sin, int64_t dim, float factor, float *to) {
  rotate_by(from, cos, sin, dim, factor, 0, to);
}

INLINE void rotate_back(const float *from, const float *cos, const float *sin, int64_t dim, float factor, float *to) {
  rotate_by(from, cos, sin, dim, factor, 1, to);
}
