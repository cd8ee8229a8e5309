/* Matrix products. simd.h includes this file twice: for ITEM float, and for ITEM pair, two bfloat16 numbers adjacent in
   depth. Then row, column, ldb, panel and depth count pairs. */

/* c [rows, panels * TILE] (+)= a [rows, depth] b. Element (i, k) of a is a[i * row + k * column]; each panel of b is
   [depth, TILE]. `rows` and `panels` are constants once this is inlined, so the sums stay in registers. */
INLINE void NAME(tile)(const int rows, const int panels, int64_t depth, const ITEM *a, int64_t row, int64_t column,
                 const ITEM *b, int64_t ldb, int64_t panel, float *c, int64_t ldc, int add) {
  vec sum[TILE_ROWS][2 * VECTORS];
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < panels * VECTORS; v++) sum[i][v] = add ? load(c + i * ldc + v * WIDTH) : splat(0.0f);
  for (int64_t k = 0; k < depth; k++) {
    ITEMS right[2 * VECTORS];
    for (int v = 0; v < panels * VECTORS; v++)
      right[v] = LOADED(b + v / VECTORS * panel + k * ldb + v % VECTORS * WIDTH);
    for (int i = 0; i < rows; i++) {
      const ITEMS left = SPREAD(a[i * row + k * column]);
      for (int v = 0; v < panels * VECTORS; v++) sum[i][v] = ADDED(sum[i][v], left, right[v]);
    }
  }
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < panels * VECTORS; v++) store(c + i * ldc + v * WIDTH, sum[i][v]);
}

/* c [m, n] (+)= a [m, depth] b [depth, n]; n is a multiple of TILE. Column j of b is in panel j / TILE. */
INLINE void NAME(matmul)(int64_t m, int64_t n, int64_t depth, const ITEM *a, int64_t row, int64_t column, const ITEM *b,
                   int64_t ldb, int64_t panel, float *c, int64_t ldc, int add) {
#define TILE_OF(rows, panels)                                                                             \
  case rows:                                                                                              \
    NAME(tile)(rows, panels, depth, a + i * row, row, column, b + j / TILE * panel, ldb, panel,           \
               c + i * ldc + j, ldc, add);                                                                \
    break;
  int64_t j = 0;
  if (m <= 3) /* few rows: two panels at a time fill the processor's pipelines */
    for (const int64_t i = 0; j + 2 * TILE <= n; j += 2 * TILE) switch (m) { TILE_OF(1, 2) TILE_OF(2, 2) TILE_OF(3, 2) }
  for (; j < n; j += TILE)
    for (int64_t i = 0; i < m; i += TILE_ROWS) {
      switch (least(m - i, TILE_ROWS)) {
        TILE_OF(1, 1) TILE_OF(2, 1) TILE_OF(3, 1) TILE_OF(4, 1)
#if TILE_ROWS > 4
        TILE_OF(5, 1) TILE_OF(6, 1)
#endif
#if TILE_ROWS > 6
        TILE_OF(7, 1) TILE_OF(8, 1) TILE_OF(9, 1) TILE_OF(10, 1) TILE_OF(11, 1) TILE_OF(12, 1)
#endif
      }
    }
#undef TILE_OF
}
