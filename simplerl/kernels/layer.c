/* The products of a decoder layer with what stands before and after them, forward and backward, by blocks of rows that
   stay in the processor's cache. A weight is [out, in] as in torch; every size is a multiple of TILE.

   Products with a weight's transpose (forward) and with itself (backward) read it in panels of TILE columns. */
#include "simd.h"

#define ROWS 96
#define CHUNK 64 /* columns of the gated activation that are dealt with at a time */

/* An odd number of cache lines, so that rows do not share cache sets. */
INLINE int64_t apart(int64_t size) { return (size / TILE | 1) * TILE; }

/* Panels of w's transpose: [out / TILE][in][TILE]. */
static void pack_transposed(const float *w, int64_t out, int64_t in, float *to) {
  for (int64_t j = 0; j < out; j += TILE, w += TILE * in)
    for (int64_t k = 0; k < in; k++, to += TILE)
      for (int64_t t = 0; t < TILE; t++) to[t] = w[t * in + k];
}

/* Panels of w: [in / TILE][out][TILE]. */
static void pack(const float *w, int64_t out, int64_t in, float *to) {
  for (int64_t j = 0; j < in; j += TILE)
    for (int64_t k = 0; k < out; k++, to += TILE) memcpy(to, w + k * in + j, TILE * sizeof(float));
}

/* c (+)= a b with b in panels of `depth` rows. */
INLINE void times(int64_t m, int64_t n, int64_t depth, const float *a, int64_t lda, const float *panels, float *c,
                  int64_t ldc, int add) {
  matmul(m, n, depth, a, lda, 1, panels, TILE, depth * TILE, c, ldc, add);
}

/* c [m x n] += a^T b of `rows` rows of a and b, which is a weight's gradient. */
INLINE void gather(int64_t m, int64_t n, int64_t rows, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                   int64_t ldc) {
  matmul(m, n, rows, a, 1, lda, b, ldb, TILE, c, ldc, 1);
}

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

/* y = norm(x) w^T + bias (none where it is null). x [n, d], w [out, d], y [n, out], scales [n]. */
int norm_linear_forward(const float *x, const float *norm, float eps, const float *w, const float *bias, int64_t n,
                        int64_t d, int64_t out, float *y, float *scales) {
  const int64_t ld = apart(d);
  float *panels = room_for(d * out + ROWS * ld), *normed = panels + d * out;
  if (!panels) return 1;
  pack_transposed(w, out, d, panels);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    normalise(x + first * d, norm, rows, d, eps, normed, ld, scales + first);
    float *to = y + first * out;
    if (bias)
      for (int64_t r = 0; r < rows; r++) memcpy(to + r * out, bias, out * sizeof(float));
    times(rows, out, d, normed, ld, panels, to, out, bias != 0);
  }
  free(panels);
  return 0;
}

/* Adds to grad_norm [d], grad_w [out, d] and grad_bias [out] (none where it is null); `through` is as in norm_back. */
int norm_linear_backward(const float *grad, const float *through, const float *x, const float *norm,
                         const float *scales, const float *w, int64_t n, int64_t d, int64_t out, float *grad_x,
                         float *grad_norm, float *grad_w, float *grad_bias) {
  const int64_t ld = apart(d), ldo = apart(out);
  float *panels = room_for(d * out + ROWS * (2 * ld + ldo)), *normed = panels + d * out;
  if (!panels) return 1;
  float *back = normed + ROWS * ld, *grads = back + ROWS * ld;
  pack(w, out, d, panels);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    copy_rows(grad + first * out, rows, out, grads, ldo);
    normalise_again(x + first * d, norm, rows, d, scales + first, normed, ld);
    gather(out, d, rows, grads, ldo, normed, ld, grad_w, d);
    times(rows, d, out, grads, ldo, panels, back, ld, 0);
    norm_back(back, ld, through + first * d, x + first * d, norm, scales + first, rows, d, grad_x + first * d, grad_norm);
    if (grad_bias)
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < out; i += WIDTH)
          store(grad_bias + i, load(grad_bias + i) + load(grads + r * ldo + i));
  }
  free(panels);
  return 0;
}

/* y = x + a w^T. a [n, in], w [d, in], x and y [n, d]. */
int add_linear_forward(const float *x, const float *a, const float *w, int64_t n, int64_t in, int64_t d, float *y) {
  float *panels = room_for(d * in);
  if (!panels) return 1;
  pack_transposed(w, d, in, panels);
  memcpy(y, x, n * d * sizeof(float));
  for (int64_t first = 0; first < n; first += ROWS)
    times(least(ROWS, n - first), d, in, a + first * in, in, panels, y + first * d, d, 1);
  free(panels);
  return 0;
}

/* grad_a = grad w; adds to grad_w [d, in]. */
int add_linear_backward(const float *grad, const float *a, const float *w, int64_t n, int64_t in, int64_t d,
                        float *grad_a, float *grad_w) {
  const int64_t ld = apart(d), ldi = apart(in);
  float *panels = room_for(d * in + ROWS * (ld + ldi)), *grads = panels + d * in;
  if (!panels) return 1;
  float *inputs = grads + ROWS * ld;
  pack(w, d, in, panels);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    copy_rows(grad + first * d, rows, d, grads, ld);
    copy_rows(a + first * in, rows, in, inputs, ldi);
    times(rows, in, d, grads, ld, panels, grad_a + first * in, in, 0);
    gather(d, in, rows, grads, ld, inputs, ldi, grad_w, in);
  }
  free(panels);
  return 0;
}

/* y = x + (silu(norm(x) gate^T) x (norm(x) up^T)) down^T (arXiv:2002.05202). gate and up [m, d], down [d, m]; keeps the
   two products [n, 2 m] and the norm's scales [n] for the way back, or neither where `kept` is null. */
int mlp_forward(const float *x, const float *norm, float eps, const float *gate, const float *up, const float *down,
                int64_t n, int64_t d, int64_t m, float *y, float *kept, float *scales) {
  const int64_t ld = apart(d), ldm = apart(m), two = 2 * apart(CHUNK);
  float *room = room_for(3 * d * m + ROWS * (ld + ldm + two + 1));
  if (!room) return 1;
  float *gates = room, *ups = gates + d * m, *downs = ups + d * m, *normed = downs + d * m;
  float *inner = normed + ROWS * ld, *both = inner + ROWS * ldm, *spare = both + ROWS * two;
  pack_transposed(gate, m, d, gates);
  pack_transposed(up, m, d, ups);
  pack_transposed(down, d, m, downs);
  memcpy(y, x, n * d * sizeof(float));
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first), stride = kept ? 2 * m : two;
    normalise(x + first * d, norm, rows, d, eps, normed, ld, kept ? scales + first : spare);
    for (int64_t c = 0; c < m; c += CHUNK) {
      const int64_t width = least(CHUNK, m - c);
      float *left = kept ? kept + first * 2 * m + c : both, *right = kept ? left + m : both + two / 2;
      times(rows, width, d, normed, ld, gates + c * d, left, stride, 0);
      times(rows, width, d, normed, ld, ups + c * d, right, stride, 0);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += WIDTH)
          store(inner + r * ldm + c + i, gated(load(left + r * stride + i), load(right + r * stride + i)));
    }
    times(rows, d, m, inner, ldm, downs, y + first * d, d, 1);
  }
  free(room);
  return 0;
}

/* Adds to grad_norm [d], grad_gate and grad_up [m, d] and grad_down [d, m]. */
int mlp_backward(const float *grad, const float *x, const float *norm, const float *scales, const float *kept,
                 const float *gate, const float *up, const float *down, int64_t n, int64_t d, int64_t m, float *grad_x,
                 float *grad_norm, float *grad_gate, float *grad_up, float *grad_down) {
  const int64_t ld = apart(d), part = apart(CHUNK);
  float *room = room_for(3 * d * m + ROWS * (3 * ld + 3 * part));
  if (!room) return 1;
  float *gates = room, *ups = gates + d * m, *downs = ups + d * m, *normed = downs + d * m;
  float *grads = normed + ROWS * ld, *back = grads + ROWS * ld, *inner = back + ROWS * ld;
  float *left = inner + ROWS * part, *right = left + ROWS * part;
  for (int64_t c = 0; c < m; c += CHUNK) { /* each chunk's rows as panels of their own */
    pack(gate + c * d, least(CHUNK, m - c), d, gates + c * d);
    pack(up + c * d, least(CHUNK, m - c), d, ups + c * d);
  }
  pack(down, d, m, downs);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    copy_rows(grad + first * d, rows, d, grads, ld);
    normalise_again(x + first * d, norm, rows, d, scales + first, normed, ld);
    for (int64_t c = 0; c < m; c += CHUNK) {
      const int64_t width = least(CHUNK, m - c);
      const float *given = kept + first * 2 * m + c;
      times(rows, width, d, grads, ld, downs + c * d, inner, part, 0);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += WIDTH) {
          const vec g = load(given + r * 2 * m + i), u = load(given + r * 2 * m + m + i), h = load(inner + r * part + i);
          const vec share = sigmoid(g), open = g * share;
          store(inner + r * part + i, open * u);
          store(right + r * part + i, h * open);
          store(left + r * part + i, h * u * share * (1.0f + g * (1.0f - share)));
        }
      gather(d, width, rows, grads, ld, inner, part, grad_down + c, m);
      gather(width, d, rows, left, part, normed, ld, grad_gate + c * d, d);
      gather(width, d, rows, right, part, normed, ld, grad_up + c * d, d);
      times(rows, d, width, left, part, gates + c * d, back, ld, c > 0);
      times(rows, d, width, right, part, ups + c * d, back, ld, 1);
    }
    norm_back(back, ld, grad + first * d, x + first * d, norm, scales + first, rows, d, grad_x + first * d, grad_norm);
  }
  free(room);
  return 0;
}
