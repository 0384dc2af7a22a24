/* y = W x + b: W int8 with a scale for each row, sums in int32, which cannot overflow */
static void linear_TYPE(const int8_t *W, SCALES, const NUMBER *x, OUT *y, int n, int m)
{
    for (int i = 0; i < n; i++) {
        const int8_t *w = W + (long)i * m;
        int32_t sum = 0;
        for (int j = 0; j < m; j++)
            sum += (int32_t)w[j] * x[j];
        y[i] = FINISH;
    }
}
