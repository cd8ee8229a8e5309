/* Causal attention with rotary embedding over packed sequences, forward and backward.

   A segment is a run of tokens. They attend to each other causally, and to all of the segment's prefix, a run of tokens
   elsewhere: all responses to one prompt have it as their prefix. Blocks of queries meet blocks of keys with a running
   softmax (arXiv:2205.14135), so memory is linear in length.

   A row of qkv is [heads x dim queries, kv_heads x dim keys, kv_heads x dim values], before rotation. Token t has row
   t % period of cos and sin. */
#include "simd.h"

#define QUERIES 48
#define KEYS 256
#define STRIDE (KEYS + TILE) /* not a power of two: rows would share cache sets */

typedef struct {
  int64_t start, length, prefix_start, prefix_length;
} Segment;

typedef struct {
  const float *qkv, *cos, *sin;
  int64_t period, heads, kv_heads, dim;
  float scale;
} Inputs;

INLINE int64_t row_size(const Inputs *in) { return (in->heads + 2 * in->kv_heads) * in->dim; }

INLINE void load_rotated(const Inputs *in, int64_t token, int64_t head, float factor, float *to) {
  const int64_t place = token % in->period * in->dim;
  rotate(in->qkv + token * row_size(in) + head * in->dim, in->cos + place, in->sin + place, in->dim, factor, to);
}

INLINE const float *value_of(const Inputs *in, int64_t token, int64_t kv) {
  return in->qkv + token * row_size(in) + (in->heads + in->kv_heads + kv) * in->dim;
}

INLINE int64_t key_count(const Segment *p) { return p->prefix_length + p->length; }
INLINE int64_t token_of_key(const Segment *p, int64_t key) {
  return key < p->prefix_length ? p->prefix_start + key : p->start + key - p->prefix_length;
}

/* Writes one row of a segment's keys or values to panels, by dimension [keys / TILE][dim][TILE] or by key
   [dim / TILE][keys][TILE]. Panels are zero beyond length and dim. */
static void pack_by_dimension(const float *row, int64_t dim, int64_t key, float *panels) {
  float *to = panels + key / TILE * dim * TILE + key % TILE;
  for (int64_t c = 0; c < dim; c++) to[c * TILE] = row[c];
}

static void pack_by_key(const float *row, int64_t dim, int64_t key, int64_t keys, float *panels) {
  for (int64_t c = 0; c < dim; c++) panels[c / TILE * keys * TILE + key * TILE + c % TILE] = row[c];
}

/* Number of keys that the last of `keys` tokens attends to in a block of `width` keys from key `block` on. */
INLINE int64_t visible_keys(int64_t keys, int64_t block, int64_t width) {
  return keys < block ? 0 : least(keys - block, width);
}

static int64_t max_keys(const Segment *segments, int64_t count) {
  int64_t most = 0;
  for (int64_t i = 0; i < count; i++) most = key_count(segments + i) > most ? key_count(segments + i) : most;
  return padded(most);
}

/* Turns a block's scores into weights of a running softmax, and scales what was summed before to the new maximum. */
INLINE void update_softmax(float *scores, int64_t keys, int64_t width, float *top, float *total, float *output,
                           int64_t dim) {
  const float most = largest(scores, keys, *top), sum = exponentials(scores, keys, most, scores);
  zero(scores + padded(keys), width - padded(keys));
  if (*total > 0 && most > *top) {
    const float shrink = expf(*top - most);
    *total *= shrink;
    for (int64_t c = 0; c < dim; c++) output[c] *= shrink;
  }
  *total += sum;
  *top = most;
}

static void forward_head(const Inputs *in, const Segment *segment, int64_t head, const float *keys, const float *values,
                         float *scratch, float *out, float *lse) {
  const int64_t dim = in->dim, wide = padded(dim), all = padded(key_count(segment));
  const int64_t before = segment->prefix_length;
  float *queries = scratch, *scores = queries + QUERIES * wide, *output = scores + QUERIES * STRIDE;
  float top[QUERIES], total[QUERIES];
  for (int64_t first = 0; first < segment->length; first += QUERIES) {
    const int64_t count = least(QUERIES, segment->length - first), end = before + first + count;
    for (int64_t i = 0; i < count; i++) {
      load_rotated(in, segment->start + first + i, head, in->scale, queries + i * wide);
      top[i] = -INFINITY, total[i] = 0;
    }
    memset(output, 0, QUERIES * wide * sizeof(float));
    for (int64_t block = 0; block < end; block += KEYS) {
      const int64_t width = padded(least(KEYS, end - block));
      matmul(count, width, dim, queries, wide, 1, keys + block * dim, TILE, dim * TILE, scores, STRIDE, 0);
      for (int64_t i = 0; i < count; i++) {
        const int64_t visible = visible_keys(before + first + i + 1, block, width);
        if (visible)
          update_softmax(scores + i * STRIDE, visible, width, top + i, total + i, output + i * wide, wide);
        else
          zero(scores + i * STRIDE, width);
      }
      matmul(count, wide, width, scores, STRIDE, 1, values + block * TILE, TILE, all * TILE, output, wide, 1);
    }
    for (int64_t i = 0; i < count; i++) {
      const int64_t token = segment->start + first + i;
      const float share = 1 / total[i];
      for (int64_t c = 0; c < dim; c++) out[(token * in->heads + head) * dim + c] = output[i * wide + c] * share;
      lse[token * in->heads + head] = top[i] + logf(total[i]);
    }
  }
}

/* Writes out [S, heads, dim] and the log-sum-exp of the scores lse [S, heads] for the tokens of every segment. Returns
   nonzero if there is no memory. */
int attention_forward(const float *qkv, const float *cos, const float *sin, int64_t period, const Segment *segments,
                      int64_t count, int64_t heads, int64_t kv_heads, int64_t dim, float scale, float *out,
                      float *lse) {
  const Inputs in = {qkv, cos, sin, period, heads, kv_heads, dim, scale};
  const int64_t wide = padded(dim), longest = max_keys(segments, count);
  float *memory = allocate(2 * longest * wide + QUERIES * (2 * wide + STRIDE) + dim);
  if (!memory) return 1;
  float *keys = memory, *values = keys + longest * wide, *scratch = values + longest * wide;
  float *row = scratch + QUERIES * (2 * wide + STRIDE);
  for (const Segment *segment = segments; segment < segments + count; segment++)
    for (int64_t kv = 0; kv < kv_heads; kv++) {
      const int64_t all = padded(key_count(segment));
      memset(keys, 0, all * dim * sizeof(float));
      memset(values, 0, all * wide * sizeof(float));
      for (int64_t key = 0; key < key_count(segment); key++) {
        load_rotated(&in, token_of_key(segment, key), heads + kv, 1, row);
        pack_by_dimension(row, dim, key, keys);
        pack_by_key(value_of(&in, token_of_key(segment, key), kv), dim, key, all, values);
      }
      for (int64_t g = 0; g < heads / kv_heads; g++)
        forward_head(&in, segment, kv * (heads / kv_heads) + g, keys, values, scratch, out, lse);
    }
  free(memory);
  return 0;
}

typedef struct {
  float *keys, *keys_by_key, *values, *grad_keys, *grad_values, *queries, *grad_out, *grad_queries, *weights, *grads;
} Backward;

/* Adds one head's share to the gradients of keys and values, and writes the gradient of its queries. */
static void backward_head(const Inputs *in, const Segment *segment, int64_t head, const Backward *b, const float *out,
                          const float *lse, const float *grad, float *grad_qkv) {
  const int64_t dim = in->dim, wide = padded(dim), all = padded(key_count(segment));
  const int64_t before = segment->prefix_length;
  float delta[QUERIES];
  for (int64_t first = 0; first < segment->length; first += QUERIES) {
    const int64_t count = least(QUERIES, segment->length - first), end = before + first + count;
    const int64_t begin = segment->start + first;
    for (int64_t i = 0; i < count; i++) {
      const int64_t at = ((begin + i) * in->heads + head) * dim;
      load_rotated(in, begin + i, head, in->scale, b->queries + i * wide);
      memcpy(b->grad_out + i * wide, grad + at, dim * sizeof(float));
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < dim; c++) sum += grad[at + c] * out[at + c];
      delta[i] = sum;
    }
    memset(b->grad_queries, 0, QUERIES * wide * sizeof(float));
    for (int64_t block = 0; block < end; block += KEYS) {
      const int64_t width = padded(least(KEYS, end - block));
      matmul(count, width, dim, b->queries, wide, 1, b->keys + block * dim, TILE, dim * TILE, b->weights, STRIDE, 0);
      matmul(count, width, dim, b->grad_out, wide, 1, b->values + block * dim, TILE, dim * TILE, b->grads, STRIDE, 0);
      for (int64_t i = 0; i < count; i++) {
        const int64_t visible = visible_keys(before + first + i + 1, block, width);
        float *weights = b->weights + i * STRIDE, *grads = b->grads + i * STRIDE;
        const float offset = lse[(begin + i) * in->heads + head], mean = delta[i];
        exponentials(weights, visible, offset, weights);
        for (int64_t j = 0; j < padded(visible); j += WIDTH) /* weights are zero beyond the visible keys */
          store(grads + j, load(weights + j) * (load(grads + j) - mean));
        zero(weights + padded(visible), width - padded(visible));
        zero(grads + padded(visible), width - padded(visible));
      }
      matmul(width, wide, count, b->weights, 1, STRIDE, b->grad_out, wide, TILE, b->grad_values + block * wide, wide,
             1);
      matmul(width, wide, count, b->grads, 1, STRIDE, b->queries, wide, TILE, b->grad_keys + block * wide, wide, 1);
      matmul(count, wide, width, b->grads, STRIDE, 1, b->keys_by_key + block * TILE, TILE, all * TILE,
             b->grad_queries, wide, 1);
    }
    for (int64_t i = 0; i < count; i++) {
      const int64_t token = begin + i, place = token % in->period * dim;
      rotate_back(b->grad_queries + i * wide, in->cos + place, in->sin + place, dim, in->scale,
                  grad_qkv + token * row_size(in) + head * dim);
    }
  }
}

/* Adds the gradients of a segment's keys and values to their tokens'. A prefix gets them from several segments. */
static void add_key_grads(const Inputs *in, const Segment *segment, int64_t kv, const Backward *b, float *row,
                          float *grad_qkv) {
  const int64_t dim = in->dim, wide = padded(dim);
  for (int64_t key = 0; key < key_count(segment); key++) {
    const int64_t token = token_of_key(segment, key), place = token % in->period * dim;
    float *to = grad_qkv + token * row_size(in) + (in->heads + kv) * dim;
    rotate_back(b->grad_keys + key * wide, in->cos + place, in->sin + place, dim, 1, row);
    for (int64_t c = 0; c < dim; c++) to[c] += row[c];
    to += in->kv_heads * dim;
    for (int64_t c = 0; c < dim; c++) to[c] += b->grad_values[key * wide + c];
  }
}

/* Adds the gradient of out, grad [S, heads, dim], to grad_qkv, shaped like qkv and zero at first. Returns nonzero if
   there is no memory. */
int attention_backward(const float *qkv, const float *cos, const float *sin, int64_t period, const Segment *segments,
                       int64_t count, int64_t heads, int64_t kv_heads, int64_t dim, float scale, const float *out,
                       const float *lse, const float *grad, float *grad_qkv) {
  const Inputs in = {qkv, cos, sin, period, heads, kv_heads, dim, scale};
  const int64_t wide = padded(dim), part = max_keys(segments, count) * wide, block = QUERIES * wide;
  float *memory = allocate(5 * part + 3 * block + 2 * QUERIES * STRIDE + dim);
  if (!memory) return 1;
  float *blocks = memory + 5 * part, *scores = blocks + 3 * block, *row = scores + 2 * QUERIES * STRIDE;
  memset(blocks, 0, 3 * block * sizeof(float));
  const Backward b = {memory, memory + part,  memory + 2 * part,  memory + 3 * part, memory + 4 * part,
                      blocks, blocks + block, blocks + 2 * block, scores,            scores + QUERIES * STRIDE};
  for (const Segment *segment = segments; segment < segments + count; segment++)
    for (int64_t kv = 0; kv < kv_heads; kv++) {
      const int64_t all = padded(key_count(segment));
      for (int64_t i = 0; i < 5; i++) memset(memory + i * part, 0, all * wide * sizeof(float));
      for (int64_t key = 0; key < key_count(segment); key++) {
        load_rotated(&in, token_of_key(segment, key), heads + kv, 1, row);
        pack_by_dimension(row, dim, key, b.keys);
        pack_by_key(row, dim, key, all, b.keys_by_key);
        pack_by_dimension(value_of(&in, token_of_key(segment, key), kv), dim, key, b.values);
      }
      for (int64_t g = 0; g < heads / kv_heads; g++)
        backward_head(&in, segment, kv * (heads / kv_heads) + g, &b, out, lse, grad, grad_qkv);
      add_key_grads(&in, segment, kv, &b, row, grad_qkv);
    }
  free(memory);
  return 0;
}
