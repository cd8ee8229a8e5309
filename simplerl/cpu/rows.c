/* Operations on single rows: norm, gated activation, drawing a token. Everything is float32. */
#include "simd.h"

#define ROWS 64

/* y = x / rms(x) x weight, scales = 1 / rms(x). x, y [n, d], weight [d], scales [n]. */
void norm_forward(const float *x, const float *weight, int64_t n, int64_t d, float eps, float *y, float *scales) {
  for (int64_t r = 0; r < n; r++, x += d, y += d) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < d; i++) sum += x[i] * x[i];
    const float scale = 1.0f / sqrtf(sum / d + eps);
    for (int64_t i = 0; i < d; i++) y[i] = weight[i] * (x[i] * scale);
    scales[r] = scale;
  }
}

/* grad_x = through + the gradient of x for y's grad; adds to grad_weight [d]. `through` is the gradient along the
   residual connection. Returns nonzero if there is no memory. */
int norm_backward(const float *grad, const float *through, const float *x, const float *weight, const float *scales,
                  int64_t n, int64_t d, float *grad_x, float *grad_weight) {
  float *part = allocate(d);
  if (!part) return 1;
  for (int64_t begin = 0; begin < n; begin += ROWS) {
    memset(part, 0, d * sizeof(float));
    for (int64_t r = begin; r < least(begin + ROWS, n); r++) {
      const float *g = grad + r * d, *in = x + r * d, *t = through + r * d, scale = scales[r];
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < d; i++) dot += g[i] * weight[i] * in[i];
      const float back = dot * scale * scale / d;
      for (int64_t i = 0; i < d; i++) grad_x[r * d + i] = t[i] + scale * (g[i] * weight[i] - in[i] * back);
      for (int64_t i = 0; i < d; i++) part[i] += g[i] * in[i] * scale;
    }
    for (int64_t i = 0; i < d; i++) grad_weight[i] += part[i];
  }
  free(part);
  return 0;
}

/* y = silu(gate) x up (arXiv:2002.05202). A row of x is [gate, up], 2 m wide; y is [n, m]. */
void swiglu_forward(const float *x, int64_t n, int64_t m, float *y) {
  const int64_t whole = m / WIDTH * WIDTH, rest = m - whole;
  for (int64_t r = 0; r < n; r++, x += 2 * m, y += m) {
    for (int64_t i = 0; i < whole; i += WIDTH) store(y + i, gated(load(x + i), load(x + m + i)));
    if (rest) store_some(y + whole, gated(load_some(x + whole, rest), load_some(x + m + whole, rest)), rest);
  }
}

/* Gradients of gate and up for the gradient of silu(gate) x up. */
INLINE void swiglu_grads(vec grad, vec gate, vec up, vec *grad_gate, vec *grad_up) {
  const vec share = sigmoid(gate);
  *grad_up = grad * gate * share;
  *grad_gate = grad * up * share * (1.0f + gate * (1.0f - share));
}

void swiglu_backward(const float *grad, const float *x, int64_t n, int64_t m, float *grad_x) {
  const int64_t whole = m / WIDTH * WIDTH, rest = m - whole;
  vec gate, up;
  for (int64_t r = 0; r < n; r++, x += 2 * m, grad_x += 2 * m, grad += m) {
    for (int64_t i = 0; i < whole; i += WIDTH) {
      swiglu_grads(load(grad + i), load(x + i), load(x + m + i), &gate, &up);
      store(grad_x + i, gate), store(grad_x + m + i, up);
    }
    if (rest) {
      swiglu_grads(load_some(grad + whole, rest), load_some(x + whole, rest), load_some(x + m + whole, rest), &gate,
                   &up);
      store_some(grad_x + whole, gate, rest), store_some(grad_x + m + whole, up, rest);
    }
  }
}

INLINE float block_sum(const float *weights) {
  vec sum = {0};
  for (int i = 0; i < TILE; i += WIDTH) sum += load(weights + i);
  return sum_of(sum);
}

/* Draws from n rows of logits: the first token whose cumulative probability exceeds uniform x total. A token less
   likely than e^-87 times the likeliest is never drawn. Returns nonzero if there is no memory. */
int draw(const float *logits, const float *temperatures, const float *uniforms, int64_t n, int64_t v, int64_t *tokens,
         float *logprobs) {
  float *weights = allocate(padded(v));
  if (!weights) return 1;
  for (int64_t r = 0; r < n; r++, logits += v) {
    const float top = largest(logits, v, -INFINITY), inverse_temperature = 1.0f / temperatures[r];
    double total = 0, sum = 0;
    for (int64_t i = 0; i < v; i += WIDTH) {
      const vec x = ((v - i < WIDTH ? load_some(logits + i, v - i) : load(logits + i)) - top) * inverse_temperature;
      store(weights + i, choose(x < splat(-87.0f), splat(0), exponential(x)));
    }
    for (int64_t i = v; i < padded(v); i++) weights[i] = 0;
    for (int64_t i = 0; i < v; i += TILE) total += block_sum(weights + i);
    const double goal = uniforms[r] * total;
    int64_t token = 0;
    for (double next; token + TILE < v && (next = sum + block_sum(weights + token)) <= goal; token += TILE) sum = next;
    for (; token + 1 < v && (sum += weights[token]) <= goal;) token++;
    while (token > 0 && weights[token] == 0) token--; /* if rounding went past the last token that can be drawn */
    tokens[r] = token;
    logprobs[r] = logf((float)(weights[token] / total));
  }
  free(weights);
  return 0;
}

typedef struct {
  int64_t *token, *position, *count;
  const int64_t *limit, *stop_rule;
  const float *temperature, *uniforms;
  int64_t *ids;
  float *logprobs;
} Rows;

enum { AT_LIMIT = 4, NOT_FINITE = 8 };

/* Draws a token for each of n rows and records it. row_codes [n] are the tokens' codes (codes [stop rules, v]), plus
   AT_LIMIT if the row has all its tokens, plus NOT_FINITE for such a log-prob. ids, logprobs and uniforms are
   [slots, max_tokens]. Returns nonzero if there is no memory. */
int draw_step(const float *logits, const Rows *rows, const uint8_t *codes, int64_t n, int64_t v, int64_t max_tokens,
              int64_t *row_codes) {
  for (int64_t r = 0; r < n; r++) {
    const int64_t index = r * max_tokens + rows->count[r];
    if (draw(logits + r * v, rows->temperature + r, rows->uniforms + index, 1, v, rows->token + r,
             rows->logprobs + index))
      return 1;
    const int64_t token = rows->token[r];
    rows->ids[index] = token;
    rows->position[r]++;
    rows->count[r]++;
    row_codes[r] = codes[rows->stop_rule[r] * v + token] + (rows->count[r] >= rows->limit[r] ? AT_LIMIT : 0) +
               (isfinite(rows->logprobs[index]) ? 0 : NOT_FINITE);
  }
  return 0;
}
