/* A KV cache, and one decode step of the layers with it.

   For each slot and key head the cache has keys by dimension, [capacity / TILE][dim][TILE], and values
   [capacity][wide], wide = dim rounded up to TILE: both products then read adjacent floats. A row of qkv is as in
   attention.c. */
#include "simd.h"

void norm_forward(const float *, const float *, int64_t, int64_t, float, float *, float *);

typedef struct {
  float *keys, *values;
  int64_t capacity, heads, kv_heads, dim;
} Cache;

/* Writes the key and value of one token and key head; `row` is scratch space [dim]. */
static void write_token(const Cache *c, const float *qkv, const float *cos, const float *sin, int64_t slot, int64_t kv,
                        int64_t position, float *row) {
  const int64_t entry = slot * c->kv_heads + kv, wide = padded(c->dim);
  rotate(qkv + (c->heads + kv) * c->dim, cos, sin, c->dim, 1, row);
  float *key = c->keys + (entry * c->capacity + position / TILE * TILE) * c->dim + position % TILE;
  for (int64_t i = 0; i < c->dim; i++) key[i * TILE] = row[i];
  memcpy(c->values + (entry * c->capacity + position) * wide, qkv + (c->heads + c->kv_heads + kv) * c->dim,
         c->dim * sizeof(float));
}

/* Writes a prompt's keys and values, rows 0 to length - 1 of qkv, into each of its slots. Returns nonzero if there is
   no memory. */
int cache_prompt(const float *qkv, const float *cos, const float *sin, int64_t length, const int64_t *slots,
                 int64_t count, float *keys, float *values, int64_t capacity, int64_t heads, int64_t kv_heads,
                 int64_t dim) {
  const Cache c = {keys, values, capacity, heads, kv_heads, dim};
  float *row = allocate(dim);
  if (!row) return 1;
  for (int64_t i = 0; i < count; i++)
    for (int64_t kv = 0; kv < kv_heads; kv++)
      for (int64_t t = 0; t < length; t++)
        write_token(&c, qkv + t * (heads + 2 * kv_heads) * dim, cos + t * dim, sin + t * dim, slots[i], kv, t, row);
  free(row);
  return 0;
}

static void softmax(float *scores, int64_t keys) {
  const float total = exponentials(scores, keys, largest(scores, keys, -INFINITY), scores);
  for (int64_t j = 0; j < keys; j++) scores[j] /= total;
}

/* Prefetches keys and values that are needed next: a KV cache seldom fits into the processor's cache. */
INLINE void prefetch(const Cache *c, int64_t first, int64_t count) {
  const float *keys = c->keys + first * c->dim, *values = c->values + first * padded(c->dim);
  for (int64_t i = 0; i < count * c->dim; i += 16) __builtin_prefetch(keys + i);
  for (int64_t i = 0; i < count * padded(c->dim); i += 16) __builtin_prefetch(values + i);
}

/* Writes the keys and values of n new tokens, qkv [n, ...], then their attention out [n, heads * dim]. */
static void attend(const Cache *c, const float *qkv, const float *cos, const float *sin, const int64_t *positions,
                   const int64_t *slots, int64_t n, float scale, float *scratch, float *out) {
  const int64_t dim = c->dim, heads = c->heads, group = heads / c->kv_heads, wide = padded(dim);
  const int64_t width = c->capacity + TILE;
  float *queries = scratch, *output = queries + group * wide, *row = output + group * wide, *scores = row + wide;
  for (int64_t r = 0; r < n; r++, qkv += (heads + 2 * c->kv_heads) * dim) {
    const int64_t known = positions[r] + 1;
    const float *cosines = cos + positions[r] * dim, *sines = sin + positions[r] * dim;
    for (int64_t kv = 0; kv < c->kv_heads; kv++) {
      const int64_t entry = (slots[r] * c->kv_heads + kv) * c->capacity, first = kv * group;
      write_token(c, qkv, cosines, sines, slots[r], kv, positions[r], row);
      if (kv + 1 < c->kv_heads)
        prefetch(c, entry + c->capacity, known);
      else if (r + 1 < n)
        prefetch(c, slots[r + 1] * c->kv_heads * c->capacity, positions[r + 1]);
      for (int64_t g = 0; g < group; g++)
        rotate(qkv + (first + g) * dim, cosines, sines, dim, scale, queries + g * wide);
      matmul(group, padded(known), dim, queries, wide, 1, c->keys + entry * dim, TILE, dim * TILE, scores, width, 0);
      for (int64_t g = 0; g < group; g++) softmax(scores + g * width, known);
      matmul(group, wide, known, scores, width, 1, c->values + entry * wide, wide, TILE, output, wide, 0);
      for (int64_t g = 0; g < group; g++)
        memcpy(out + (r * heads + first + g) * dim, output + g * wide, dim * sizeof(float));
    }
  }
}

typedef struct {
  int64_t hidden, inner, heads, kv_heads, dim, capacity, bf16;
  float eps, scale;
} Shape;

/* A layer's weights and KV cache. A matrix is in panels [out / TILE][in][TILE] of floats, or [out / TILE][in / 2][TILE]
   of pairs. Biases may be null. */
typedef struct {
  const float *input_norm;
  const void *qkv;
  const float *qkv_bias;
  const void *out;
  const float *out_bias, *mlp_norm;
  const void *gate, *up, *down;
  float *keys, *values;
} Layer;

/* The left factor of a product: x [n, in] itself, or rounded to pairs in `memory`. */
static const void *as_factor(int64_t bf16, int64_t n, int64_t in, const float *x, float *memory) {
  if (!bf16) return x;
  for (int64_t i = 0; i < n * in; i += WIDTH) store_rounded((pair *)memory + i / 2, load(x + i));
  return memory;
}

/* The panels from column j on. */
INLINE const void *panels_from(int64_t bf16, const void *panels, int64_t in, int64_t j) {
  return (const float *)panels + (bf16 ? j * in / 2 : j * in);
}

/* y [n, out] (+)= x times a matrix in panels, plus a bias. x [n, in] is from as_factor. */
static void linear(int64_t bf16, int64_t n, int64_t in, int64_t out, const void *x, const void *panels,
                   const float *bias, float *y, int add) {
  if (bias)
    for (int64_t r = 0; r < n; r++)
      for (int64_t i = 0; i < out; i++) y[r * out + i] = bias[i] + (add ? y[r * out + i] : 0);
  if (bf16)
    matmul_bf16(n, out, in / 2, x, in / 2, 1, panels, TILE, in / 2 * TILE, y, out, add || bias);
  else
    matmul(n, out, in, x, in, 1, panels, TILE, in * TILE, y, out, add || bias);
}

/* Most columns that a product of the layer sums over. */
INLINE int64_t max_inputs(const Shape *s) {
  const int64_t attended = s->heads * s->dim, inner = attended > s->inner ? attended : s->inner;
  return inner > s->hidden ? inner : s->hidden;
}

/* Runs a decoder layer on n rows x [n, hidden], in place. `normed` is the start of the scratch memory. */
static void decode_layer(float *x, const Layer *layer, const Shape *s, const float *cos, const float *sin,
                         const int64_t *positions, const int64_t *slots, int64_t n, float *normed) {
  const int64_t attended = s->heads * s->dim, all = attended + 2 * s->kv_heads * s->dim;
  const int64_t most = max_inputs(s);
  const Cache cache = {layer->keys, layer->values, s->capacity, s->heads, s->kv_heads, s->dim};
  float *qkv = normed + n * s->hidden, *inner = qkv + n * all, *gate = inner + n * most, *up = gate + n * TILE;
  float *rounded = up + n * TILE, *scales = rounded + n * most / 2, *scratch = scales + n;
  const int64_t bf16 = s->bf16;
  const void *given;
  norm_forward(x, layer->input_norm, n, s->hidden, s->eps, normed, scales);
  given = as_factor(bf16, n, s->hidden, normed, rounded);
  linear(bf16, n, s->hidden, all, given, layer->qkv, layer->qkv_bias, qkv, 0);
  attend(&cache, qkv, cos, sin, positions, slots, n, s->scale, scratch, inner);
  given = as_factor(bf16, n, attended, inner, rounded);
  linear(bf16, n, attended, s->hidden, given, layer->out, layer->out_bias, x, 1);
  norm_forward(x, layer->mlp_norm, n, s->hidden, s->eps, normed, scales);
  given = as_factor(bf16, n, s->hidden, normed, rounded);
  for (int64_t j = 0; j < s->inner; j += TILE) {
    linear(bf16, n, s->hidden, TILE, given, panels_from(bf16, layer->gate, s->hidden, j), 0, gate, 0);
    linear(bf16, n, s->hidden, TILE, given, panels_from(bf16, layer->up, s->hidden, j), 0, up, 0);
    for (int64_t r = 0; r < n; r++)
      for (int64_t i = 0; i < TILE; i += WIDTH)
        store(inner + r * s->inner + j + i, gated(load(gate + r * TILE + i), load(up + r * TILE + i)));
  }
  given = as_factor(bf16, n, s->inner, inner, rounded);
  linear(bf16, n, s->inner, s->hidden, given, layer->down, 0, x, 1);
}

/* Runs one new token per row through all layers, x [n, hidden] in place. Returns nonzero if there is no memory. */
int decode_layers(float *x, const Layer *layers, int64_t count, const Shape *s, const float *cos, const float *sin,
                  const int64_t *positions, const int64_t *slots, int64_t n) {
  const int64_t attended = s->heads * s->dim, all = attended + 2 * s->kv_heads * s->dim, wide = padded(s->dim);
  const int64_t most = max_inputs(s), group = s->heads / s->kv_heads;
  float *scratch = allocate(n * (s->hidden + all + most + most / 2 + 2 * TILE + 1) + (2 * group + 1) * wide +
                            group * (s->capacity + TILE));
  if (!scratch) return 1;
  for (int64_t i = 0; i < count; i++) decode_layer(x, layers + i, s, cos, sin, positions, slots, n, scratch);
  free(scratch);
  return 0;
}

/* y [n, out] = x [n, in] times a matrix in panels of floats. */
void product(const float *x, const float *panels, int64_t n, int64_t in, int64_t out, float *y) {
  linear(0, n, in, out, x, panels, 0, y, 0);
}
