/* A key-value cache, and one decoding step of a layer with it.

   Of one slot and key head, keys are kept by dimension [capacity / TILE][dim][TILE] and values [capacity][wide], with
   wide = dim rounded up to TILE: both products then run over consecutive floats. A row of qkv is as in attention.c. */
#include "simd.h"

void norm_forward(const float *, const float *, int64_t, int64_t, float, float *, float *);

typedef struct {
  float *keys, *values;
  int64_t capacity, heads, kv_heads, dim;
} Cache;

static void put(const Cache *c, const float *qkv, const float *cos, const float *sin, int64_t slot, int64_t kv,
                int64_t position, float *row) {
  const int64_t lane = slot * c->kv_heads + kv, wide = padded(c->dim);
  rotate(qkv + (c->heads + kv) * c->dim, cos, sin, c->dim, 1, row);
  float *key = c->keys + (lane * c->capacity + position / TILE * TILE) * c->dim + position % TILE;
  for (int64_t i = 0; i < c->dim; i++) key[i * TILE] = row[i];
  memcpy(c->values + (lane * c->capacity + position) * wide, qkv + (c->heads + c->kv_heads + kv) * c->dim,
         c->dim * sizeof(float));
}

/* Writes a prompt's keys and values, rows 0 to length - 1 of qkv, into each of its slots. */
int cache_prompt(const float *qkv, const float *cos, const float *sin, int64_t length, const int64_t *slots,
                 int64_t count, float *keys, float *values, int64_t capacity, int64_t heads, int64_t kv_heads,
                 int64_t dim) {
  const Cache c = {keys, values, capacity, heads, kv_heads, dim};
  float *row = room_for(dim);
  if (!row) return 1;
  for (int64_t i = 0; i < count; i++)
    for (int64_t kv = 0; kv < kv_heads; kv++)
      for (int64_t t = 0; t < length; t++)
        put(&c, qkv + t * (heads + 2 * kv_heads) * dim, cos + t * dim, sin + t * dim, slots[i], kv, t, row);
  free(row);
  return 0;
}

static void weigh(float *scores, int64_t keys) {
  const float total = exponentials(scores, keys, largest(scores, keys, -INFINITY), scores);
  for (int64_t j = 0; j < keys; j++) scores[j] /= total;
}

/* Asks for the keys and values that come next while others are at work: a cache seldom fits the processor's own. */
INLINE void fetch(const Cache *c, int64_t first, int64_t count) {
  const float *keys = c->keys + first * c->dim, *values = c->values + first * padded(c->dim);
  for (int64_t i = 0; i < count * c->dim; i += 16) __builtin_prefetch(keys + i);
  for (int64_t i = 0; i < count * padded(c->dim); i += 16) __builtin_prefetch(values + i);
}

/* Attention of n new tokens, whose keys and values are written first: out [n, heads * dim] of qkv. */
static void attend(const Cache *c, const float *qkv, const float *cos, const float *sin, const int64_t *positions,
                   const int64_t *slots, int64_t n, float scale, float *scratch, float *out) {
  const int64_t dim = c->dim, heads = c->heads, group = heads / c->kv_heads, wide = padded(dim);
  const int64_t width = c->capacity + TILE;
  float *queries = scratch, *output = queries + group * wide, *row = output + group * wide, *scores = row + wide;
  for (int64_t r = 0; r < n; r++, qkv += (heads + 2 * c->kv_heads) * dim) {
    const int64_t known = positions[r] + 1;
    const float *cosines = cos + positions[r] * dim, *sines = sin + positions[r] * dim;
    for (int64_t kv = 0; kv < c->kv_heads; kv++) {
      const int64_t lane = (slots[r] * c->kv_heads + kv) * c->capacity, first = kv * group;
      put(c, qkv, cosines, sines, slots[r], kv, positions[r], row);
      if (kv + 1 < c->kv_heads)
        fetch(c, lane + c->capacity, known);
      else if (r + 1 < n)
        fetch(c, slots[r + 1] * c->kv_heads * c->capacity, positions[r + 1]);
      for (int64_t g = 0; g < group; g++)
        rotate(qkv + (first + g) * dim, cosines, sines, dim, scale, queries + g * wide);
      matmul(group, padded(known), dim, queries, wide, 1, c->keys + lane * dim, TILE, dim * TILE, scores, width, 0);
      for (int64_t g = 0; g < group; g++) weigh(scores + g * width, known);
      matmul(group, wide, known, scores, width, 1, c->values + lane * wide, wide, TILE, output, wide, 0);
      for (int64_t g = 0; g < group; g++)
        memcpy(out + (r * heads + first + g) * dim, output + g * wide, dim * sizeof(float));
    }
  }
}

typedef struct {
  int64_t hidden, inner, heads, kv_heads, dim, capacity;
  float eps, scale;
} Shape;

/* A matrix [in, out] is kept in panels [out / TILE][in][TILE]. Biases may be absent. */
typedef struct {
  const float *input_norm, *qkv, *qkv_bias, *out, *out_bias, *mlp_norm, *gate, *up, *down;
  float *keys, *values;
} Layer;

/* y [n, out] (+)= x [n, in] times a matrix in panels, plus a bias. */
static void linear(int64_t n, int64_t in, int64_t out, const float *x, const float *panels, const float *bias,
                   float *y, int add) {
  if (bias)
    for (int64_t r = 0; r < n; r++)
      for (int64_t i = 0; i < out; i++) y[r * out + i] = bias[i] + (add ? y[r * out + i] : 0);
  matmul(n, out, in, x, in, 1, panels, TILE, in * TILE, y, out, add || bias);
}

/* A decoder layer for n rows x [n, hidden], in place. */
static void decode_layer(float *x, const Layer *layer, const Shape *s, const float *cos, const float *sin,
                         const int64_t *positions, const int64_t *slots, int64_t n, float *normed) {
  const int64_t attended = s->heads * s->dim, all = attended + 2 * s->kv_heads * s->dim;
  const int64_t most = attended > s->inner ? attended : s->inner;
  const Cache cache = {layer->keys, layer->values, s->capacity, s->heads, s->kv_heads, s->dim};
  float *qkv = normed + n * s->hidden, *inner = qkv + n * all, *gate = inner + n * most, *up = gate + n * TILE;
  float *scales = up + n * TILE, *scratch = scales + n;
  norm_forward(x, layer->input_norm, n, s->hidden, s->eps, normed, scales);
  linear(n, s->hidden, all, normed, layer->qkv, layer->qkv_bias, qkv, 0);
  attend(&cache, qkv, cos, sin, positions, slots, n, s->scale, scratch, inner);
  linear(n, attended, s->hidden, inner, layer->out, layer->out_bias, x, 1);
  norm_forward(x, layer->mlp_norm, n, s->hidden, s->eps, normed, scales);
  for (int64_t j = 0; j < s->inner; j += TILE) {
    linear(n, s->hidden, TILE, normed, layer->gate + j * s->hidden, 0, gate, 0);
    linear(n, s->hidden, TILE, normed, layer->up + j * s->hidden, 0, up, 0);
    for (int64_t r = 0; r < n; r++)
      for (int64_t i = 0; i < TILE; i += WIDTH)
        store(inner + r * s->inner + j + i, gated(load(gate + r * TILE + i), load(up + r * TILE + i)));
  }
  linear(n, s->inner, s->hidden, inner, layer->down, 0, x, 1);
}

/* One new token per row through all layers, x [n, hidden] in place. Returns nonzero when there is no memory. */
int decode_layers(float *x, const Layer *layers, int64_t count, const Shape *s, const float *cos, const float *sin,
                  const int64_t *positions, const int64_t *slots, int64_t n) {
  const int64_t attended = s->heads * s->dim, all = attended + 2 * s->kv_heads * s->dim, wide = padded(s->dim);
  const int64_t most = attended > s->inner ? attended : s->inner, group = s->heads / s->kv_heads;
  float *scratch = room_for(n * (s->hidden + all + most + 2 * TILE + 1) + (2 * group + 1) * wide +
                            group * (s->capacity + TILE));
  if (!scratch) return 1;
  for (int64_t i = 0; i < count; i++) decode_layer(x, layers + i, s, cos, sin, positions, slots, n, scratch);
  free(scratch);
  return 0;
}

/* y [n, out] = x [n, in] times a matrix in panels. */
void product(const float *x, const float *panels, int64_t n, int64_t in, int64_t out, float *y) {
  linear(n, in, out, x, panels, 0, y, 0);
}
