/* The products of a decoder layer with what stands before and after them, forward and backward, by blocks of rows that
   stay in the processor's cache. A weight is [out, in] as in torch; every size is a multiple of TILE.

   Products with a weight's transpose (forward) and with itself (backward) read it in panels of TILE columns. They are
   there twice, see layer.h: of floats, and of numbers rounded to bfloat16 whose sums are float32. */
#include "simd.h"

#define ROWS 96
#define CHUNK 64 /* columns of the gated activation that are dealt with at a time */

/* An odd number of cache lines, so that rows do not share cache sets. */
INLINE int64_t apart(int64_t size) { return (size / TILE | 1) * TILE; }

static void copy_rows(const float *from, int64_t rows, int64_t d, float *to, int64_t ld) {
  for (int64_t r = 0; r < rows; r++) memcpy(to + r * ld, from + r * d, d * sizeof(float));
}

static void normalise(const float *x, const float *norm, int64_t rows, int64_t d, float eps, float *to, int64_t ld,
                      float *scales) {
  for (int64_t r = 0; r < rows; r++) {
    vec sum = {0};
    for (int64_t i = 0; i < d; i += WIDTH) sum += load(x + r * d + i) * load(x + r * d + i);
    scales[r] = 1.0f / sqrtf(sum_of(sum) / d + eps);
    for (int64_t i = 0; i < d; i += WIDTH) store(to + r * ld + i, load(norm + i) * (load(x + r * d + i) * scales[r]));
  }
}

static void normalise_again(const float *x, const float *norm, int64_t rows, int64_t d, const float *scales, float *to,
                            int64_t ld) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < d; i += WIDTH) store(to + r * ld + i, load(norm + i) * (load(x + r * d + i) * scales[r]));
}

/* grad_x = through + the norm's gradient of what grad [rows, ld] gives; adds to grad_norm [d]. */
static void norm_back(const float *grad, int64_t ld, const float *through, const float *x, const float *norm,
                      const float *scales, int64_t rows, int64_t d, float *grad_x, float *grad_norm) {
  for (int64_t r = 0; r < rows; r++) {
    const float *g = grad + r * ld, *in = x + r * d, scale = scales[r];
    vec dot = {0};
    for (int64_t i = 0; i < d; i += WIDTH) dot += load(g + i) * load(norm + i) * load(in + i);
    const float back = sum_of(dot) * scale * scale / d;
    for (int64_t i = 0; i < d; i += WIDTH) {
      store(grad_x + r * d + i,
            load(through + r * d + i) + scale * (load(g + i) * load(norm + i) - load(in + i) * back));
      store(grad_norm + i, load(grad_norm + i) + load(g + i) * load(in + i) * scale);
    }
  }
}

#define BF16 0
#include "layer.h"
#undef BF16
#define BF16 1
#include "layer.h"
