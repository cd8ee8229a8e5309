/* The products of a decoder layer, each fused with the norm, residual or activation next to it, forward and backward,
   by blocks of rows that stay in the processor's cache. A weight is [out, in] as in torch; every size is a multiple of
   TILE.

   Products with a weight's transpose (forward) and with the weight (backward) read it in panels of TILE columns. They
   are in layer.h, included twice: with factors that are floats, and rounded to bfloat16 with float32 sums. */
#include "simd.h"

#define ROWS 96
#define CHUNK 64 /* columns of the gated activation computed at a time */

/* Floats from one row to the next: an odd number of cache lines, so that rows do not share cache sets. */
INLINE int64_t row_stride(int64_t size) { return (size / TILE | 1) * TILE; }

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

/* normalise with the scales that it returned. */
static void normalise_by(const float *x, const float *norm, int64_t rows, int64_t d, const float *scales, float *to,
                            int64_t ld) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < d; i += WIDTH) store(to + r * ld + i, load(norm + i) * (load(x + r * d + i) * scales[r]));
}

/* grad_x = through + the gradient of the norm's input for its output's grad [rows, ld]; adds to grad_norm [d].
   `through` is the gradient along the residual connection. */
static void norm_backward_rows(const float *grad, int64_t ld, const float *through, const float *x, const float *norm,
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
