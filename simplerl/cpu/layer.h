/* The products of a layer. layer.c includes this file twice: with BF16 0 factors are floats, with BF16 1 pairs of
   bfloat16 numbers. */
#undef ITEM
#undef PER
#undef NAME
#if BF16
#define ITEM pair
#define PER 2
#define NAME(name) name##_bf16
#else
#define ITEM float
#define PER 1
#define NAME(name) name
#endif

/* A block [rows, ld] as the left factor of a product that sums over columns: pairs of adjacent columns. Pairs are
   written to `memory`. */
INLINE const ITEM *NAME(row_factor)(const float *x, int64_t rows, int64_t width, int64_t ld, float *memory) {
#if BF16
  pair *to = (pair *)memory;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < width; i += WIDTH) store_rounded(to + (r * ld + i) / 2, load(x + r * ld + i));
  return to;
#else
  return x;
#endif
}

/* A block [rows, ld] as a factor of a product that sums over rows: pairs of adjacent rows. */
INLINE const ITEM *NAME(column_factor)(const float *x, int64_t rows, int64_t width, int64_t ld, float *memory) {
#if BF16
  pair *to = (pair *)memory;
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t i = 0; i < width; i += WIDTH) {
      const vec next = r + 1 < rows ? load(x + (r + 1) * ld + i) : splat(0);
      *(unaligned_pairs *)(to + r / 2 * ld + i) = paired(load(x + r * ld + i), next);
    }
  return to;
#else
  return x;
#endif
}

/* Writes the panels of w's transpose, [out / TILE][in / PER][TILE]. */
static void NAME(pack_transposed)(const float *w, int64_t out, int64_t in, ITEM *to) {
#if BF16
  for (int64_t j = 0; j < out; j += TILE, w += TILE * in)
    for (int64_t k = 0; k < in; k += WIDTH, to += WIDTH / 2 * TILE) {
      pair row[WIDTH / 2];
      for (int64_t t = 0; t < TILE; t++) {
        store_rounded(row, load(w + t * in + k));
        for (int64_t i = 0; i < WIDTH / 2; i++) to[i * TILE + t] = row[i];
      }
    }
#else
  for (int64_t j = 0; j < out; j += TILE, w += TILE * in)
    for (int64_t k = 0; k < in; k++, to += TILE)
      for (int64_t t = 0; t < TILE; t++) to[t] = w[t * in + k];
#endif
}

/* Writes the panels of w, [in / TILE][out / PER][TILE]. */
static void NAME(pack)(const float *w, int64_t out, int64_t in, ITEM *to) {
#if BF16
  for (int64_t j = 0; j < in; j += TILE)
    for (int64_t k = 0; k < out; k += 2)
      for (int64_t t = 0; t < TILE; t += WIDTH, to += WIDTH)
        *(unaligned_pairs *)to = paired(load(w + k * in + j + t), load(w + (k + 1) * in + j + t));
#else
  for (int64_t j = 0; j < in; j += TILE)
    for (int64_t k = 0; k < out; k++, to += TILE) memcpy(to, w + k * in + j, TILE * sizeof(float));
#endif
}

/* c [m, n] (+)= a b; a is a row_factor, b in panels of `depth` rows. */
INLINE void NAME(multiply)(int64_t m, int64_t n, int64_t depth, const ITEM *a, int64_t lda, const ITEM *panels,
                           float *c, int64_t ldc, int add) {
  NAME(matmul)(m, n, depth / PER, a, lda / PER, 1, panels, TILE, depth / PER * TILE, c, ldc, add);
}

/* c [m, n] += a^T b, a weight's gradient; a and b are column_factors of `rows` rows. */
INLINE void NAME(add_grad_w)(int64_t m, int64_t n, int64_t rows, const ITEM *a, int64_t lda, const ITEM *b, int64_t ldb,
                             float *c, int64_t ldc) {
  NAME(matmul)(m, n, (rows + PER - 1) / PER, a, 1, lda, b, ldb, TILE, c, ldc, 1);
}

/* y = norm(x) w^T + bias. x [n, d], w [out, d], y [n, out], scales [n]; bias may be null. */
int NAME(norm_linear_forward)(const float *x, const float *norm, float eps, const float *w, const float *bias,
                              int64_t n, int64_t d, int64_t out, float *y, float *scales) {
  const int64_t ld = row_stride(d);
  float *memory = allocate(d * out + 2 * ROWS * ld), *normed = memory + d * out, *spare = normed + ROWS * ld;
  if (!memory) return 1;
  ITEM *panels = (ITEM *)memory;
  NAME(pack_transposed)(w, out, d, panels);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    normalise(x + first * d, norm, rows, d, eps, normed, ld, scales + first);
    float *to = y + first * out;
    if (bias)
      for (int64_t r = 0; r < rows; r++) memcpy(to + r * out, bias, out * sizeof(float));
    NAME(multiply)(rows, out, d, NAME(row_factor)(normed, rows, d, ld, spare), ld, panels, to, out, bias != 0);
  }
  free(memory);
  return 0;
}

/* Writes grad_x; adds to grad_norm [d], grad_w [out, d] and grad_bias [out], which may be null. `through` is as in
   norm_backward_rows. */
int NAME(norm_linear_backward)(const float *grad, const float *through, const float *x, const float *norm,
                         const float *scales, const float *w, int64_t n, int64_t d, int64_t out, float *grad_x,
                         float *grad_norm, float *grad_w, float *grad_bias) {
  const int64_t ld = row_stride(d), ldo = row_stride(out);
  float *memory = allocate(d * out + ROWS * (3 * ld + 3 * ldo)), *normed = memory + d * out;
  if (!memory) return 1;
  float *back = normed + ROWS * ld, *grads = back + ROWS * ld, *spare = grads + ROWS * ldo;
  ITEM *panels = (ITEM *)memory;
  NAME(pack)(w, out, d, panels);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    copy_rows(grad + first * out, rows, out, grads, ldo);
    normalise_by(x + first * d, norm, rows, d, scales + first, normed, ld);
    const ITEM *inputs = NAME(column_factor)(normed, rows, d, ld, spare + 2 * ROWS * ldo);
    NAME(add_grad_w)(out, d, rows, NAME(column_factor)(grads, rows, out, ldo, spare), ldo, inputs, ld, grad_w, d);
    NAME(multiply)(rows, d, out, NAME(row_factor)(grads, rows, out, ldo, spare + ROWS * ldo), ldo, panels, back, ld, 0);
    norm_backward_rows(back, ld, through + first * d, x + first * d, norm, scales + first, rows, d, grad_x + first * d,
                       grad_norm);
    if (grad_bias)
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < out; i += WIDTH)
          store(grad_bias + i, load(grad_bias + i) + load(grads + r * ldo + i));
  }
  free(memory);
  return 0;
}

/* y = x + a w^T. a [n, in], w [d, in], x and y [n, d]. */
int NAME(add_linear_forward)(const float *x, const float *a, const float *w, int64_t n, int64_t in, int64_t d,
                             float *y) {
  float *memory = allocate(d * in + ROWS * in), *spare = memory + d * in;
  if (!memory) return 1;
  ITEM *panels = (ITEM *)memory;
  NAME(pack_transposed)(w, d, in, panels);
  memcpy(y, x, n * d * sizeof(float));
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    NAME(multiply)(rows, d, in, NAME(row_factor)(a + first * in, rows, in, in, spare), in, panels, y + first * d, d, 1);
  }
  free(memory);
  return 0;
}

/* Writes grad_a = grad w; adds to grad_w [d, in]. */
int NAME(add_linear_backward)(const float *grad, const float *a, const float *w, int64_t n, int64_t in, int64_t d,
                        float *grad_a, float *grad_w) {
  const int64_t ld = row_stride(d), ldi = row_stride(in);
  float *memory = allocate(d * in + ROWS * (3 * ld + 2 * ldi)), *grads = memory + d * in;
  if (!memory) return 1;
  float *inputs = grads + ROWS * ld, *spare = inputs + ROWS * ldi;
  ITEM *panels = (ITEM *)memory;
  NAME(pack)(w, d, in, panels);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    copy_rows(grad + first * d, rows, d, grads, ld);
    copy_rows(a + first * in, rows, in, inputs, ldi);
    const ITEM *right = NAME(column_factor)(inputs, rows, in, ldi, spare + 2 * ROWS * ld);
    NAME(multiply)(rows, in, d, NAME(row_factor)(grads, rows, d, ld, spare), ld, panels, grad_a + first * in, in, 0);
    const ITEM *left = NAME(column_factor)(grads, rows, d, ld, spare + ROWS * ld);
    NAME(add_grad_w)(d, in, rows, left, ld, right, ldi, grad_w, in);
  }
  free(memory);
  return 0;
}

/* y = x + (silu(norm(x) gate^T) x (norm(x) up^T)) down^T (arXiv:2002.05202). gate and up [m, d], down [d, m]. Writes
   what backward needs: the two products gate_up [n, 2 m] and the norm's scales [n]; neither if `gate_up` is null. */
int NAME(mlp_forward)(const float *x, const float *norm, float eps, const float *gate, const float *up,
                      const float *down, int64_t n, int64_t d, int64_t m, float *y, float *gate_up, float *scales) {
  const int64_t ld = row_stride(d), ldm = row_stride(m), two = 2 * row_stride(CHUNK);
  float *memory = allocate(3 * d * m + ROWS * (2 * ld + 2 * ldm + two + 1));
  if (!memory) return 1;
  ITEM *gates = (ITEM *)memory, *ups = gates + d * m, *downs = ups + d * m;
  float *normed = memory + 3 * d * m, *inner = normed + ROWS * ld, *both = inner + ROWS * ldm;
  float *unused = both + ROWS * two, *spare = unused + ROWS;
  NAME(pack_transposed)(gate, m, d, gates);
  NAME(pack_transposed)(up, m, d, ups);
  NAME(pack_transposed)(down, d, m, downs);
  memcpy(y, x, n * d * sizeof(float));
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first), stride = gate_up ? 2 * m : two;
    normalise(x + first * d, norm, rows, d, eps, normed, ld, gate_up ? scales + first : unused);
    const ITEM *given = NAME(row_factor)(normed, rows, d, ld, spare);
    for (int64_t c = 0; c < m; c += CHUNK) {
      const int64_t width = least(CHUNK, m - c);
      float *left = gate_up ? gate_up + first * 2 * m + c : both, *right = gate_up ? left + m : both + two / 2;
      NAME(multiply)(rows, width, d, given, ld, gates + c * d / PER, left, stride, 0);
      NAME(multiply)(rows, width, d, given, ld, ups + c * d / PER, right, stride, 0);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += WIDTH)
          store(inner + r * ldm + c + i, gated(load(left + r * stride + i), load(right + r * stride + i)));
    }
    const ITEM *gated_rows = NAME(row_factor)(inner, rows, m, ldm, spare + ROWS * ld);
    NAME(multiply)(rows, d, m, gated_rows, ldm, downs, y + first * d, d, 1);
  }
  free(memory);
  return 0;
}

/* Writes grad_x; adds to grad_norm [d], grad_gate and grad_up [m, d] and grad_down [d, m]. */
int NAME(mlp_backward)(const float *grad, const float *x, const float *norm, const float *scales, const float *gate_up,
                 const float *gate, const float *up, const float *down, int64_t n, int64_t d, int64_t m, float *grad_x,
                 float *grad_norm, float *grad_gate, float *grad_up, float *grad_down) {
  const int64_t ld = row_stride(d), part = row_stride(CHUNK);
  float *memory = allocate(3 * d * m + ROWS * (6 * ld + 8 * part));
  if (!memory) return 1;
  ITEM *gates = (ITEM *)memory, *ups = gates + d * m, *downs = ups + d * m;
  float *normed = memory + 3 * d * m, *grads = normed + ROWS * ld, *back = grads + ROWS * ld, *inner = back + ROWS * ld;
  float *left = inner + ROWS * part, *right = left + ROWS * part, *wide = right + ROWS * part;
  float *spare = wide + 3 * ROWS * ld; /* memory for pairs: `wide` of blocks [rows, d], `spare` of chunks */
  for (int64_t c = 0; c < m; c += CHUNK) { /* the rows of each chunk in panels of their own */
    NAME(pack)(gate + c * d, least(CHUNK, m - c), d, gates + c * d / PER);
    NAME(pack)(up + c * d, least(CHUNK, m - c), d, ups + c * d / PER);
  }
  NAME(pack)(down, d, m, downs);
  for (int64_t first = 0; first < n; first += ROWS) {
    const int64_t rows = least(ROWS, n - first);
    copy_rows(grad + first * d, rows, d, grads, ld);
    normalise_by(x + first * d, norm, rows, d, scales + first, normed, ld);
    const ITEM *inputs = NAME(column_factor)(normed, rows, d, ld, wide);
    const ITEM *across = NAME(row_factor)(grads, rows, d, ld, wide + ROWS * ld);
    const ITEM *down_grads = NAME(column_factor)(grads, rows, d, ld, wide + 2 * ROWS * ld);
    for (int64_t c = 0; c < m; c += CHUNK) {
      const int64_t width = least(CHUNK, m - c);
      const float *given = gate_up + first * 2 * m + c;
      NAME(multiply)(rows, width, d, across, ld, downs + c * d / PER, inner, part, 0);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i += WIDTH) {
          const vec g = load(given + r * 2 * m + i), u = load(given + r * 2 * m + m + i);
          const vec h = load(inner + r * part + i);
          const vec share = sigmoid(g), open = g * share;
          store(inner + r * part + i, open * u);
          store(right + r * part + i, h * open);
          store(left + r * part + i, h * u * share * (1.0f + g * (1.0f - share)));
        }
      const ITEM *products = NAME(column_factor)(inner, rows, width, part, spare);
      const ITEM *lefts = NAME(column_factor)(left, rows, width, part, spare + ROWS * part);
      const ITEM *rights = NAME(column_factor)(right, rows, width, part, spare + 2 * ROWS * part);
      NAME(add_grad_w)(d, width, rows, down_grads, ld, products, part, grad_down + c, m);
      NAME(add_grad_w)(width, d, rows, lefts, part, inputs, ld, grad_gate + c * d, d);
      NAME(add_grad_w)(width, d, rows, rights, part, inputs, ld, grad_up + c * d, d);
      lefts = NAME(row_factor)(left, rows, width, part, spare + 3 * ROWS * part);
      rights = NAME(row_factor)(right, rows, width, part, spare + 4 * ROWS * part);
      NAME(multiply)(rows, d, width, lefts, part, gates + c * d / PER, back, ld, c > 0);
      NAME(multiply)(rows, d, width, rights, part, ups + c * d / PER, back, ld, 1);
    }
    norm_backward_rows(back, ld, grad + first * d, x + first * d, norm, scales + first, rows, d, grad_x + first * d,
                       grad_norm);
  }
  free(memory);
  return 0;
}
